"""Settings of an annealed run, and what follows from them: its ladders."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_sep.arguments import flag, number, whole
from pyro_sep.inference.mala import OPTIMAL_ACCEPTANCE
from pyro_sep.inference.schedules import MIN_LEVELS, geometric_ladder, two_rate_ladder
from pyro_sep.posterior import TANGENTS

PERSISTENT_ACCEPTANCE = 0.9  # a refused step turns the velocity back: it must be rare
MOST = 1_000_000  # of levels, steps and the like: more would never end

# In units of sigma_freeze, where it is settled who explains what:
HALVINGS = ((2.0, 2), (1.1, 4))  # below each this part of the candidates goes on, below the last
SINGLE = 0.45  # one
TURN = 0.66  # from there a search goes on faster
OPEN = 2.0  # replicas are noised to this; who explains what stays, how well is open
SWAP = (0.6, 0.11, 6)  # candidates are noised to the first, and compared at the second, where a
#                        triangle's overtones tell it from a sine; in so many levels
DETAIL = 0.15  # overtones begin to tell
PRESENCE = (1.4, 0.45, 9)  # a source that is woken has to find its tone, which takes longer
REPLICA_LEVELS = 10
RESTART = 3.5  # in units of sigma_min: from there a chain goes down from what was found
MIN_SECTION = 256  # audio samples
EXCHANGE_EVERY = 4  # levels of a search
SCREENED = 2  # exchanges that are tried in a round, of all pairs
SPLICED = 8  # lengths of a frame, whose densities say which moments are best


class Round(NamedTuple):
    """A comparison of candidates, all noised again and denoised alike."""

    sigmas: tuple[float, ...]  # from where they are noised to, to where they are compared
    averaged: int  # levels, the last ones, whose mean log density is compared
    most: int  # of them, one after the other


@dataclass(frozen=True)
class Annealing:
    """Settings of a run.

    The search (:mod:`~pyro_sep.inference.search`) takes one gradient a level; the chain that draws
    starts from what it found.

    Attributes:
        sigma_max: first noise level.
        sigma_freeze: where it is settled which source explains what: exchanges end there.
        sigma_min: last noise level, where draws are kept.
        tries: searches at most, where what was found surprises the priors.
        candidates: of every search, side by side.
        levels: of a search.
        swaps: rounds at most in which sources are put in each other's place, where there are more
            than two; twice as many where it is decided which are present.
        replicas: of what was found, from which the best moments are taken; 0 for none.
        section: audio samples that are searched at once; longer frames are searched in sections.
        chains: independent searches per mixture, each with a chain of draws.
        cooling: noise levels through which a chain comes down to the last one.
        warmup: steps at the last level before the first draw.
        draws: draws kept per chain.
        thin: steps between draws, one gradient each.
        step_size: kappa, in units of sigma; the stability bound is sqrt(2).
        persistence: share of the velocity that survives a step; 0 is overdamped Langevin dynamics.
        adjusted: by a Metropolis test of every step, see :mod:`~pyro_sep.inference.ghmc`; then the
            step size is that of the first step alone, and adapts before the draws.

    Raises:
        ValueError: a number out of its range, or of no number's type; noise levels that do not
            fall.
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
        least = dict.fromkeys(("swaps", "replicas"), 0)
        least |= dict.fromkeys(
            ("tries", "candidates", "cooling", "warmup", "chains", "draws", "thin"), 1
        )
        least |= {"levels": MIN_LEVELS, "section": MIN_SECTION}
        taken: dict[str, Any] = {
            name: whole(name, getattr(self, name), f"at least {low}" if low else "0 or more", low)
            for name, low in least.items()
        }
        if large := [name for name, value in taken.items() if value > MOST]:
            raise ValueError(f"{large[0]}: got {taken[large[0]]}, expected at most {MOST}")
        for name in ("sigma_max", "sigma_freeze", "sigma_min"):
            taken[name] = number(name, getattr(self, name))
        step_size, persistence = self.step_size, self.persistence
        expected = "above 0, below sqrt(2)"
        taken["step_size"] = number("step_size", step_size, expected, 0, math.sqrt(2))
        expected = "at least 0, below 1"
        taken["persistence"] = number("persistence", persistence, expected, -math.inf, 1)
        if taken["persistence"] < 0:
            raise ValueError(f"persistence: got {persistence}, expected {expected}")
        taken["adjusted"] = flag("adjusted", self.adjusted)
        for name, value in taken.items():
            object.__setattr__(self, name, value)  # in the types of Python, whatever was given
        two_rate_ladder(self.sigma_max, self.sigma_freeze, self.sigma_min, self.levels)  # or raises
        self._ladder()

    @property
    def target_acceptance(self) -> float:
        """Share of adjusted steps to take: the best of MALA; more where velocities survive."""
        return PERSISTENT_ACCEPTANCE if self.persistence else OPTIMAL_ACCEPTANCE

    @property
    def search_sigmas(self) -> tuple[float, ...]:
        """Levels of a search, slow until it is settled who explains what; the last one twice."""
        return (*self._ladder(), self.sigma_min)

    def _ladder(self) -> tuple[float, ...]:
        turn = max(TURN * self.sigma_freeze, 1.01 * self.sigma_min)
        return two_rate_ladder(self.sigma_max, turn, self.sigma_min, self.levels)

    @property
    def halving(self) -> tuple[tuple[float, int], ...]:
        """Levels, falling, and how many candidates go on below them."""
        parts = [(share * self.sigma_freeze, -(-self.candidates // n)) for share, n in HALVINGS]
        return (*parts, (SINGLE * self.sigma_freeze, 1))

    @property
    def sigma_detail(self) -> float:
        """Where overtones begin to tell sources apart."""
        return max(self.sigma_min, DETAIL * self.sigma_freeze)

    @property
    def replica_sigmas(self) -> tuple[float, ...]:
        """Levels of replicas."""
        start = min(self.sigma_max, OPEN * self.sigma_freeze)
        return geometric_ladder(start, self.sigma_min, REPLICA_LEVELS)

    @property
    def cooling_sigmas(self) -> tuple[float, ...]:
        """Levels of a chain on its way to the draws."""
        if self.cooling == 1:
            return (self.sigma_min,)
        start = min(self.sigma_max, RESTART * self.sigma_min)
        return geometric_ladder(start, self.sigma_min, self.cooling)

    def rounds(self, count: int, may_be_silent: bool) -> list[Round]:
        """Rounds of candidates of ``count`` sources; first, if it is not known, who is present."""
        held = []
        if may_be_silent:
            held.append((PRESENCE, 2 * self.swaps))
        if count > 2 or may_be_silent:
            held.append((SWAP, self.swaps))
        rounds = []
        for (high, low, levels), most in held:
            end = max(self.sigma_min, low * self.sigma_freeze)
            start = min(self.sigma_max, max(high * self.sigma_freeze, 2 * end))
            sigmas = geometric_ladder(start, end, levels)
            rounds.append(Round((*sigmas, end), 2, most))
        return rounds

    def gradients(
        self, count: int, may_be_silent: bool, average: bool, overlap: float = 1.0
    ) -> float:
        """About how many gradients of a frame a chain takes, if no search fails.

        Args:
            count: of sources.
            may_be_silent: whether it is to be decided which are present.
            average: whether a search ends with the mean of its candidates.
            overlap: length of all sections that are searched, in lengths of the frame.
        """
        chain = self.cooling + self.warmup + self.draws * (self.thin + TANGENTS)
        if average:
            return overlap * self.candidates * (self.levels + 1) + chain
        left = [self.candidates] * (self.levels + 1)
        for i, sigma in enumerate(self.search_sigmas):
            left[i] = min([n for level, n in self.halving if sigma < level], default=left[i])
        above = [
            n
            for n, sigma in zip(left, self.search_sigmas, strict=False)
            if sigma >= self.sigma_freeze
        ]
        exchanges = sum(above[::EXCHANGE_EVERY]) * count / 3
        tried = 1 + min(SCREENED, count * (count - 1) // 2) + (count if may_be_silent else 0)
        rounds = sum(len(r.sigmas) * tried + count / 3 for r in self.rounds(count, may_be_silent))
        replicas = self.replicas * REPLICA_LEVELS + (self.replicas + 2) * SPLICED / 3
        search = sum(left) + exchanges + 1 + rounds + bool(self.replicas) * replicas
        return overlap * search + chain
