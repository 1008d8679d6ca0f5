"""Settings of an annealed run, and what follows from them: its ladders and its length."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_sep.arguments import flag, number, whole
from pyro_sep.inference.mala import OPTIMAL_ACCEPTANCE
from pyro_sep.inference.schedules import MIN_LEVELS, geometric_ladder, two_rate_ladder

RENOISE = 2.5  # candidates are noised to this multiple of sigma_turn before they are compared there
REFINE_RENOISE = 4.0  # and to this one of sigma_refine
RENOISE_LEVELS = 6  # on their way back
PRESENCE_SHARE = 0.45  # of sigma_turn: there it is decided which sources are present
PRESENCE_RENOISE = 3.1  # up to 1.4 times sigma_turn: a source that is woken has to find its tone,
PRESENCE_LEVELS = 9  # which takes as many levels, of all their steps
COMPARED_STEPS = 10  # whose mean log posterior decides
PERSISTENT_ACCEPTANCE = 0.9  # a refused step turns the velocity back: it must be rare
REFINE_SHARE = 0.14  # of sigma_turn: there a triangle's overtones tell it from a sine


class Tournament(NamedTuple):
    """A comparison of candidates, all noised again and annealed alike."""

    sigmas: tuple[float, ...]  # from where they are noised to, to where they are compared
    steps: int  # per level
    most: int  # of them, one after the other

    @property
    def total_steps(self) -> int:
        """Steps of a candidate."""
        return len(self.sigmas) * self.steps + COMPARED_STEPS


MOST = 1_000_000  # of levels, steps and the like: more would never end


@dataclass(frozen=True)
class Annealing:
    """Settings of a run.

    Attributes:
        sigma_max: first noise level.
        sigma_turn: where the modes have been chosen: only the best explorer goes on, exchanges end.
            The better half of the explorers goes on from 1.5 times this level.
        sigma_min: last noise level, where draws are kept.
        tournaments: at most, at each of the two levels, where there are more than two sources, and
            twice as many where it is decided which are present; a chain holds no more once one has
            left it as it was.
        levels: noise levels, see :func:`~pyro_sep.inference.schedules.two_rate_ladder`.
        steps: Langevin steps per level, one gradient each.
        chains: independent chains per mixture.
        explorers: chains that each chain starts as.
        draws: draws kept per chain.
        thin: steps between draws.
        step_size: kappa, in units of sigma; the stability bound is sqrt(2).
        persistence: share of the velocity that survives a step; 0 is overdamped Langevin dynamics.
        corrected: by a Metropolis test of every step, see :mod:`~pyro_sep.inference.ghmc`; then the
            step size is that of the first level alone, and adapts at every level before the draws.
        exchange_every: steps between exchanges above the turn, one a level at least; 0 for none.

    Raises:
        ValueError: a number out of its range, or of no number's type; noise levels that do not
            fall.
    """

    sigma_max: float
    sigma_turn: float
    sigma_min: float
    tournaments: int = 3
    levels: int = 22
    steps: int = 30
    chains: int = 2
    explorers: int = 2
    draws: int = 50
    thin: int = 2
    step_size: float = 0.7
    persistence: float = 0.9
    corrected: bool = False
    exchange_every: int = 20

    def __post_init__(self) -> None:
        least = dict.fromkeys(("tournaments", "exchange_every"), 0)
        least |= dict.fromkeys(("steps", "chains", "explorers", "draws", "thin"), 1)
        least |= {"levels": MIN_LEVELS}
        taken: dict[str, Any] = {
            name: whole(name, getattr(self, name), f"at least {low}" if low else "0 or more", low)
            for name, low in least.items()
        }
        if large := [name for name, value in taken.items() if value > MOST]:
            raise ValueError(f"{large[0]}: got {taken[large[0]]}, expected at most {MOST}")
        for name in ("sigma_max", "sigma_turn", "sigma_min"):
            taken[name] = number(name, getattr(self, name))
        step_size, persistence = self.step_size, self.persistence
        expected = "above 0, below sqrt(2)"
        taken["step_size"] = number("step_size", step_size, expected, 0, math.sqrt(2))
        expected = "at least 0, below 1"
        taken["persistence"] = number("persistence", persistence, expected, -math.inf, 1)
        if taken["persistence"] < 0:
            raise ValueError(f"persistence: got {persistence}, expected {expected}")
        taken["corrected"] = flag("corrected", self.corrected)
        for name, value in taken.items():
            object.__setattr__(self, name, value)  # in the types of Python, whatever was given
        two_rate_ladder(self.sigma_max, self.sigma_turn, self.sigma_min, self.levels)  # or raises

    @property
    def target_acceptance(self) -> float:
        """Share of corrected steps to take: the best of MALA; more where velocities survive."""
        return PERSISTENT_ACCEPTANCE if self.persistence else OPTIMAL_ACCEPTANCE

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ladder."""
        return two_rate_ladder(self.sigma_max, self.sigma_turn, self.sigma_min, self.levels)

    def tournaments_at(self, count: int, may_be_silent: bool) -> dict[float, Tournament]:
        """Tournaments of ``count`` sources, by the level that they are held at.

        Which sources are present is decided at the first level, if it is not known.
        """
        places = []
        if may_be_silent:
            ladder = (PRESENCE_SHARE, PRESENCE_RENOISE, PRESENCE_LEVELS)
            places.append((ladder, (self.steps, 2 * self.tournaments)))
        exchange = (max(1, self.steps // 3), self.tournaments)
        if count > 2 and not may_be_silent:
            places.append(((1.0, RENOISE, RENOISE_LEVELS), exchange))
        if count > 2 or may_be_silent:
            places.append(((REFINE_SHARE, REFINE_RENOISE, RENOISE_LEVELS), exchange))
        held: dict[float, Tournament] = {}
        for (share, renoise, levels), budget in places:
            sigma = self._last_level(share)
            start = min(self.sigma_max, renoise * sigma)
            held.setdefault(sigma, Tournament(geometric_ladder(start, sigma, levels), *budget))
        return held

    @property
    def sigma_refine(self) -> float:
        """Where overtones tell: the last level at REFINE_SHARE of the turn or above."""
        return self._last_level(REFINE_SHARE)

    def _last_level(self, share: float) -> float:
        """The last of the ladder at this share of the turn or above."""
        return min(sigma for sigma in self.sigmas if sigma >= share * self.sigma_turn)

    def total_steps(self, count: int, may_be_silent: bool) -> int:
        """Steps per chain with ``count`` sources, if all tournaments are held."""
        held = self.tournaments_at(count, may_be_silent).values()
        tournaments = sum(tournament.most * tournament.total_steps for tournament in held)
        return self.levels * self.steps + tournaments + self.draws * self.thin
