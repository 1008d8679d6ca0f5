r"""Annealed Langevin dynamics down a ladder of noise levels.

At every level sigma the chain follows underdamped Langevin dynamics on the posterior of the noisy
sources (:class:`pyro_sep.posterior.AnnealedPosterior`) with step size :math:`h = \kappa \sigma`, in
which the curvature, at most :math:`2 / \sigma^2`, is the same at all levels. Song & Ermon 2019
(arXiv 1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942). Four things find the
mode:

* momentum (:mod:`~pyro_sep.inference.underdamped`) crosses a frame's space in tens of steps;
* exchanges of what two sources explain (:mod:`~pyro_sep.inference.permutation`);
* explorers: every chain starts as several. Where the modes are being chosen the better half by mean
  log posterior goes on, where they have been the best one goes on as the chain. Chains share
  nothing, so they stay independent.
* tournaments, with more than two sources: wrong modes are tones in the wrong hands. At the turn,
  and again where overtones stand out of the noise, every exchange of two sources is tried beside
  the sources as they are. All candidates are noised again, just as far as overtones can still
  change hands, and annealed alike, so that none is ahead; the best by mean log posterior goes on.

Selection searches for modes: it leaves out the density of what it proposes. The law of the draws is
that of the chain at the last level, started in the mode that was found.

At the last level draws are kept, and each is denoised (Tweedie) and conditioned on the mixture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_sep.inference.langevin import Evaluation
from pyro_sep.inference.permutation import draw_assignment, reassign
from pyro_sep.inference.schedules import geometric_ladder, two_rate_ladder
from pyro_sep.inference.underdamped import UnderdampedState, init, underdamped_step
from pyro_sep.posterior import AnnealedPosterior

RENOISE = 2.5  # candidates are noised to this multiple of the level where they are compared
RENOISE_LEVELS = 6  # on their way back
COMPARED_STEPS = 10  # whose mean log posterior decides
REFINE_SHARE = 0.14  # of sigma_turn: there a triangle's overtones tell it from a sine


@dataclass(frozen=True)
class Annealing:
    """Settings of a run.

    Attributes:
        sigma_max: first noise level.
        sigma_turn: where the modes have been chosen: only the best explorer goes on, exchanges end.
            The better half of the explorers goes on from 1.5 times this level.
        sigma_min: last noise level, where draws are kept.
        tournaments: at each of the two levels, where there are more than two sources.
        levels: noise levels, see :func:`~pyro_sep.inference.schedules.two_rate_ladder`.
        steps: Langevin steps per level, one gradient each.
        chains: independent chains per mixture.
        explorers: chains that each chain starts as.
        draws: draws kept per chain.
        thin: steps between draws.
        step_size: kappa, in units of sigma; the stability bound is sqrt(2).
        persistence: share of the velocity that survives a step.
        exchange_every: steps between exchanges.
    """

    sigma_max: float
    sigma_turn: float
    sigma_min: float
    tournaments: int = 1
    levels: int = 22
    steps: int = 30
    chains: int = 2
    explorers: int = 2
    draws: int = 50
    thin: int = 2
    step_size: float = 0.7
    persistence: float = 0.9
    exchange_every: int = 20

    def __post_init__(self) -> None:
        if self.tournaments < 0:
            raise ValueError(f"tournaments: got {self.tournaments}, expected 0 or more")
        for name in ("steps", "chains", "explorers", "draws", "thin", "exchange_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.step_size < 2**0.5:
            raise ValueError(f"step_size: got {self.step_size}, expected above 0, below sqrt(2)")
        if not 0 <= self.persistence < 1:
            raise ValueError(f"persistence: got {self.persistence}, expected at least 0, below 1")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ladder."""
        return two_rate_ladder(self.sigma_max, self.sigma_turn, self.sigma_min, self.levels)

    @property
    def sigma_refine(self) -> float:
        """Where the second tournaments are: the last level at REFINE_SHARE of the turn or above."""
        return min(sigma for sigma in self.sigmas if sigma >= REFINE_SHARE * self.sigma_turn)

    def renoised(self, sigma: float) -> tuple[float, ...]:
        """Ladder of a tournament at ``sigma``."""
        return geometric_ladder(min(self.sigma_max, RENOISE * sigma), sigma, RENOISE_LEVELS)

    @property
    def renoised_steps(self) -> int:
        """Steps per level of that ladder."""
        return max(1, self.steps // 3)

    def total_steps(self, count: int) -> int:
        """Steps per chain with ``count`` sources."""
        tournament = RENOISE_LEVELS * self.renoised_steps + COMPARED_STEPS
        tournaments = 2 * self.tournaments if count > 2 else 0
        return self.levels * self.steps + tournaments * tournament + self.draws * self.thin


class Draws(NamedTuple):
    """Posterior draws of all chains on all mixtures, and how they came about."""

    sources: Tensor  # (mixture, chain, draw, source, frame), clean
    lp: Tensor  # (mixture, chain, draw), log posterior of the noisy sources, nats
    log_prior: Tensor  # (mixture, chain, draw, source), nats
    grad_norm: Tensor  # (mixture, chain, draw)
    warmup_lp: Tensor  # (mixture, chain, step)
    warmup_log_prior: Tensor  # (mixture, chain, step, source)
    warmup_grad_norm: Tensor  # (mixture, chain, step)
    warmup_sigma: Tensor  # (step,)
    gradients: int  # evaluations per mixture, those of explorers and tournaments included


def anneal(
    mixtures: Tensor,
    posterior: Callable[[Tensor], AnnealedPosterior],
    settings: Annealing,
    generator: torch.Generator,
    progress: bool = False,
) -> Draws:
    """Separate mixtures, all chains of all mixtures at once.

    Args:
        mixtures: ``(mixture, time)``.
        posterior: of lanes, given the mixture of each ``(lane, time)``.
        settings: ladder and budget.
        generator: source of randomness, on the mixtures' device.
        progress: show a bar with noise level and log posterior.
    """
    lanes = settings.chains * settings.explorers
    target = posterior(mixtures.repeat_interleave(lanes, 0))
    count = len(target.priors)
    with tqdm(total=settings.total_steps(count), unit="step", disable=not progress) as bar:
        walk = _Walk(target, settings, generator, bar)
        above = [sigma for sigma in settings.sigmas if sigma >= settings.sigma_turn]
        for sigma in above:
            if sigma < 1.5 * settings.sigma_turn:
                walk.keep_best(-(-settings.explorers // 2))
            walk.settle(sigma, exchange=True)
        walk.keep_best(1)
        walk.hold_tournaments(settings.sigma_turn)
        for sigma in settings.sigmas[len(above) :]:
            walk.settle(sigma, exchange=False)
            if sigma == settings.sigma_refine:
                walk.hold_tournaments(sigma)
        clean, kept = walk.draw()

    def by_chain(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values, 1)
        return stacked.reshape(len(mixtures), settings.chains, *stacked.shape[1:])

    warmup = walk.history
    return Draws(
        by_chain(clean),
        by_chain(kept.lp),
        by_chain(kept.log_prior),
        by_chain(kept.grad_norm),
        by_chain(warmup.lp),
        by_chain(warmup.log_prior),
        by_chain(warmup.grad_norm),
        torch.tensor(settings.sigmas).repeat_interleave(settings.steps),
        walk.evaluations // len(mixtures),
    )


def best_explorers(log_density: Tensor, explorers: int, count: int = 1) -> Tensor:
    """Lanes of the best explorers of every chain, by mean log density: ``(chain * count,)``.

    Args:
        log_density: ``(step, lane)``, the explorers of a chain side by side.
        explorers: per chain.
        count: how many of them to keep.
    """
    mean = log_density.mean(0).nan_to_num(nan=-torch.inf).reshape(-1, explorers)
    first = torch.arange(len(mean), device=mean.device)[:, None] * explorers
    return (first + mean.topk(count, dim=1).indices).reshape(-1)


def _orders(count: int) -> list[list[int]]:
    """The sources as they are, and every exchange of two."""
    orders = [list(range(count))]
    for i, j in combinations(range(count), 2):
        order = list(range(count))
        order[i], order[j] = j, i
        orders.append(order)
    return orders


class _History:
    """Statistics of every lane at every step."""

    def __init__(self) -> None:
        self.lp: list[Tensor] = []
        self.log_prior: list[Tensor] = []
        self.grad_norm: list[Tensor] = []

    def add(self, state: UnderdampedState) -> None:
        self.lp.append(state.evaluation.log_density)
        self.log_prior.append(state.evaluation.parts)
        self.grad_norm.append(state.evaluation.gradient.flatten(1).norm(dim=1))

    def take(self, lanes: Tensor) -> None:
        for values in (self.lp, self.log_prior, self.grad_norm):
            values[:] = [value[lanes] for value in values]


class _Walk:
    """Lanes of chains on their way down the ladder."""

    def __init__(
        self,
        target: AnnealedPosterior,
        settings: Annealing,
        generator: torch.Generator,
        bar: "tqdm[None]",
    ) -> None:
        self.target, self.settings, self.generator, self.bar = target, settings, generator, bar
        self.history = _History()
        self.evaluations = 0  # of a lane's gradient
        self.explorers = settings.explorers
        start = target.mixture.new_empty(len(target.mixture), len(target.priors), target.frame)
        self.position = settings.sigma_max * start.normal_(generator=generator)

    def settle(self, sigma: float, exchange: bool) -> None:
        """All steps of one level."""
        state = self._start(self.target, self.position, sigma)
        for step in range(1, self.settings.steps + 1):
            state = self._step(self.target, state, sigma)
            self.history.add(state)
            if exchange and step % self.settings.exchange_every == 0:
                state = self._exchange(state, sigma)
        self.position = state.position

    def keep_best(self, count: int) -> None:
        """Go on with the explorers of every chain that were best over the last level."""
        if count >= self.explorers:
            return
        last = torch.stack(self.history.lp[-self.settings.steps :])
        best = best_explorers(last, self.explorers, count)
        self.explorers = count
        self.target, self.position = self.target.take(best), self.position[best]
        self.history.take(best)

    def hold_tournaments(self, sigma: float) -> None:
        """Try every exchange of two sources, and go on with the best."""
        count = len(self.target.priors)
        for _ in range(self.settings.tournaments if count > 2 else 0):
            orders = _orders(count)
            lanes = torch.arange(len(self.position), device=self.position.device)
            lanes = lanes.repeat_interleave(len(orders))
            target, position = self.target.take(lanes), self.position[lanes]
            assignment = torch.tensor(orders, device=position.device).repeat(len(self.position), 1)
            position = reassign(position, assignment, target.mixing.weights(position))
            sigmas = self.settings.renoised(sigma)
            noise = torch.empty_like(position).normal_(generator=self.generator)
            position = position + (sigmas[0] ** 2 - sigma**2) ** 0.5 * noise
            for level in sigmas:
                position, _ = self._run(target, position, level, self.settings.renoised_steps)
            position, log_density = self._run(target, position, sigma, COMPARED_STEPS)
            self.position = position[best_explorers(log_density, len(orders))]

    def draw(self) -> tuple[list[Tensor], _History]:
        """Clean draws ``(lane, source, time)`` at the last level, and their statistics."""
        sigma, kept, clean = self.settings.sigma_min, _History(), []
        state = self._start(self.target, self.position, sigma)
        for step in range(1, self.settings.draws * self.settings.thin + 1):
            state = self._step(self.target, state, sigma)
            if step % self.settings.thin == 0:
                kept.add(state)
                clean.append(self.target.denoise(state.position, state.evaluation, sigma))
        return clean, kept

    def _run(
        self, target: AnnealedPosterior, position: Tensor, sigma: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Some steps at one level: the position, and the log density ``(step, lane)``."""
        state, log_density = self._start(target, position, sigma), []
        for _ in range(steps):
            state = self._step(target, state, sigma)
            log_density.append(state.evaluation.log_density)
        return state.position, torch.stack(log_density)

    def _start(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> UnderdampedState:
        return init(position, self._evaluate(target, sigma), self.generator)

    def _evaluate(self, target: AnnealedPosterior, sigma: float) -> Callable[[Tensor], Evaluation]:
        def evaluate(position: Tensor) -> Evaluation:
            self.evaluations += len(position)
            return target.evaluate(position, sigma)

        return evaluate

    def _step(
        self, target: AnnealedPosterior, state: UnderdampedState, sigma: float
    ) -> UnderdampedState:
        evaluate = self._evaluate(target, sigma)
        step_size, persistence = self.settings.step_size * sigma, self.settings.persistence
        state = underdamped_step(state, evaluate, step_size, persistence, self.generator)
        self.bar.set_postfix(sigma=f"{sigma:.3f}", refresh=False)
        self.bar.update()
        return state

    def _exchange(self, state: UnderdampedState, sigma: float) -> UnderdampedState:
        cross = self.target.cross_log_prior(state.position, sigma)
        gains = self.target.mixing.weights(state.position)
        position = reassign(state.position, draw_assignment(cross, self.generator), gains)
        return state._replace(
            position=position, evaluation=self._evaluate(self.target, sigma)(position)
        )
