"""Settings of an annealed run, and the noise ladders that follow from them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_sep.checks.arguments import flag, number, whole
from pyro_sep.inference.annealing.schedules import MIN_LEVELS, geometric_ladder, two_rate_ladder
from pyro_sep.inference.steps.mala import OPTIMAL_ACCEPTANCE

MIN_TIME = 256  # audio samples of a frame, or a section: less holds no period of a low tone

PERSISTENT_ACCEPTANCE = 0.9  # a rejected step reverses the velocity: it must be rare
MOST = 1_000_000  # of levels, steps and other counts: a run of more would never end
SWAP_EVERY = 4  # levels of a search, between two draws of which source explains what
SCREENED = 2  # swaps that are tried in a round, of all pairs of sources
REPLICA_LEVELS = 10

# Noise levels in units of sigma_freeze, where it is settled which source explains what:
HALVINGS = ((2.0, 2), (1.1, 4))  # below each level one in so many candidates continues,
SINGLE = 0.45  # and below this one the best alone
FASTER = 0.66  # below it the levels of a search fall faster
OPEN = 2.0  # replicas start here: sources keep their tones, and details are drawn anew
DETAIL = 0.15  # below it overtones tell sources apart
# A round noises all candidates to the first level and compares them at the second, after so many:
SWAP = (0.6, 0.11, 6)  # overtones tell a triangle from a sine at the second
PRESENCE = (1.4, 0.45, 9)  # a source that was silent has to find its tone, which takes longer

RESTART = 3.5  # in units of sigma_min, where a chain starts from the sources that were found


class Round(NamedTuple):
    """A comparison of candidates that all start from the same noise level."""

    sigmas: tuple[float, ...]  # from the level of the start to that of the comparison
    most: int  # rounds one after the other, at most


@dataclass(frozen=True)
class Annealing:
    """Settings of a run.

    The search (:mod:`~pyro_sep.inference.annealing.search`) takes one gradient a level; the chain
    that draws starts from what it found.

    Attributes:
        sigma_max: first noise level.
        sigma_freeze: where it is settled which source explains what: swaps end there.
        sigma_min: last noise level, where draws are recorded.
        tries: searches at most, where what was found is implausible under the priors.
        candidates: of every search, side by side.
        levels: of a search.
        swaps: rounds at most in which a search tries swaps of sources, where there are more than
            two; twice as many where presence is inferred. With 0 the chains try none either.
        replicas: refinements of what was found, which are recombined; 0 for none.
        section: audio samples that are searched at once; longer frames are searched in sections.
        chains: independent searches per mixture, each with a chain of draws.
        cooling: noise levels through which a chain comes down to the last one.
        warmup: steps at the last level before the first draw.
        draws: draws recorded per chain.
        thin: steps between draws, one gradient each.
        step_size: kappa, in units of sigma; the stability bound is sqrt(2).
        persistence: share of the velocity that survives a step; 0 is overdamped Langevin dynamics.
        adjusted: by a Metropolis test of every step, see :mod:`~pyro_sep.inference.steps.ghmc`;
            then the step size is that of the first step, and adapts before the draws.

    Raises:
        ValueError: a number out of its range, or of no number's type; noise levels that do not
            fall.

    >>> settings = Annealing(sigma_max=2.0, sigma_freeze=0.5, sigma_min=0.05, cooling=2)
    >>> settings.cooling_sigmas
    (0.17500000000000002, 0.05)
    """

    sigma_max: float
    sigma_freeze: float
    sigma_min: float
    tries: int = 4
    candidates: int = 4
    levels: int = 40
    swaps: int = 2
    replicas: int = 8
    section: int = 2_048
    chains: int = 1
    cooling: int = 8
    warmup: int = 6
    draws: int = 10
    thin: int = 2
    step_size: float = 0.7
    persistence: float = 0.9
    adjusted: bool = False

    def __post_init__(self) -> None:
        least = dict.fromkeys(
            ("tries", "candidates", "cooling", "warmup", "chains", "draws", "thin"), 1
        )
        least |= {"swaps": 0, "replicas": 0, "levels": MIN_LEVELS, "section": MIN_TIME}
        taken: dict[str, Any] = {
            name: whole(name, getattr(self, name), f"at least {low}" if low else "0 or more", low)
            for name, low in least.items()
        }
        if large := [name for name, value in taken.items() if value > MOST]:
            raise ValueError(f"{large[0]}: got {taken[large[0]]}, expected at most {MOST}")
        for name in ("sigma_max", "sigma_freeze", "sigma_min"):
            taken[name] = number(name, getattr(self, name))
        expected = "above 0, below sqrt(2)"
        taken["step_size"] = number("step_size", self.step_size, expected, 0, math.sqrt(2))
        expected = "at least 0, below 1"
        taken["persistence"] = number("persistence", self.persistence, expected, -math.inf, 1)
        if taken["persistence"] < 0:
            raise ValueError(f"persistence: got {self.persistence}, expected {expected}")
        taken["adjusted"] = flag("adjusted", self.adjusted)
        for name, value in taken.items():
            object.__setattr__(self, name, value)  # as Python's own types, whatever was given
        two_rate_ladder(self.sigma_max, self.sigma_freeze, self.sigma_min, self.levels)  # or raises

    @property
    def target_acceptance(self) -> float:
        """Share of adjusted steps to accept, MALA's optimum, or more where velocities persist."""
        return PERSISTENT_ACCEPTANCE if self.persistence else OPTIMAL_ACCEPTANCE

    @property
    def search_sigmas(self) -> tuple[float, ...]:
        """Levels of a search, slow until it is settled who explains what; the last one twice."""
        fast = max(FASTER * self.sigma_freeze, 1.01 * self.sigma_min)
        ladder = two_rate_ladder(self.sigma_max, fast, self.sigma_min, self.levels)
        return (*ladder, self.sigma_min)

    @property
    def halving(self) -> tuple[tuple[float, int], ...]:
        """Levels, falling, and how many candidates continue below them."""
        parts = [(share * self.sigma_freeze, -(-self.candidates // n)) for share, n in HALVINGS]
        return (*parts, (SINGLE * self.sigma_freeze, 1))

    @property
    def sigma_detail(self) -> float:
        """Level below which overtones tell sources apart."""
        return max(self.sigma_min, DETAIL * self.sigma_freeze)

    @property
    def replica_sigmas(self) -> tuple[float, ...]:
        """Levels of replicas."""
        start = min(self.sigma_max, OPEN * self.sigma_freeze)
        return geometric_ladder(start, self.sigma_min, REPLICA_LEVELS)

    @property
    def cooling_sigmas(self) -> tuple[float, ...]:
        """Levels of a chain on its way to the draws."""
        return self._cooling_from(RESTART * self.sigma_min)

    @property
    def initial_sigmas(self) -> tuple[float, ...]:
        """Levels of a chain on its way to the draws from sources that were given.

        Details can change there, and not which source explains what.
        """
        return self._cooling_from(min(RESTART * self.sigma_min, self.sigma_freeze))

    def _cooling_from(self, start: float) -> tuple[float, ...]:
        start = min(self.sigma_max, start)
        if self.cooling == 1 or start <= self.sigma_min:
            return (self.sigma_min,)
        return geometric_ladder(start, self.sigma_min, self.cooling)

    def rounds(self, count: int, may_be_silent: bool) -> list[Round]:
        """Rounds of candidates of ``count`` sources, those of presence first if it is inferred."""
        kinds = [(PRESENCE, 2 * self.swaps)] if may_be_silent else []
        kinds += [(SWAP, self.swaps)] if count > 2 or may_be_silent else []
        rounds = []
        for (high, low, levels), most in kinds:
            end = max(self.sigma_min, low * self.sigma_freeze)
            start = min(self.sigma_max, max(high * self.sigma_freeze, 2 * end))
            sigmas = geometric_ladder(start, end, levels)
            rounds.append(Round((*sigmas, end), most))
        return rounds
