r"""Annealed Langevin dynamics down a ladder of noise levels.

At every level sigma the chain follows underdamped Langevin dynamics on the posterior of the noisy
sources (:class:`pyro_sep.posterior.AnnealedPosterior`) with step size :math:`h = \kappa \sigma`, in
which the curvature, at most :math:`2 / \sigma^2`, is the same at all levels. Song & Ermon 2019 (arXiv
1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942). Three things find the mode:

* momentum (:mod:`~pyro_sep.inference.underdamped`) crosses a frame's space in tens of steps;
* exchanges of what two sources explain (:mod:`~pyro_sep.inference.permutation`);
* explorers: every chain starts as several. Where the modes are chosen for good, the explorer of the
  highest mean log posterior goes on as the chain. Chains share nothing, so they stay independent.

At the last level draws are kept, and each is denoised (Tweedie) and conditioned on the mixture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_sep.inference.permutation import draw_assignment, reassign
from pyro_sep.inference.schedules import geometric_ladder
from pyro_sep.inference.underdamped import UnderdampedState, init, underdamped_step
from pyro_sep.posterior import AnnealedPosterior


@dataclass(frozen=True)
class Annealing:
    """Settings of a run.

    Attributes:
        sigma_max: first noise level.
        sigma_min: last noise level, where draws are kept.
        levels: noise levels, in a geometric ladder.
        steps: Langevin steps per level, one gradient each.
        chains: independent chains per mixture.
        explorers: chains that each chain starts as.
        explore_until: noise level below which only the best explorer goes on.
        draws: draws kept per chain.
        thin: steps between draws.
        step_size: kappa, in units of sigma; stable below sqrt(2).
        persistence: share of the velocity that survives a step.
        exchange_every: steps between exchanges, above ``explore_until``.
    """

    sigma_max: float
    sigma_min: float
    levels: int = 16
    steps: int = 40
    chains: int = 2
    explorers: int = 4
    explore_until: float = 0.3
    draws: int = 50
    thin: int = 2
    step_size: float = 0.8
    persistence: float = 0.9
    exchange_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "chains", "explorers", "draws", "thin", "exchange_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.step_size < 2**0.5:
            raise ValueError(f"step_size: got {self.step_size}, expected 0 to sqrt(2), the bound")
        if not 0 <= self.persistence < 1:
            raise ValueError(f"persistence: got {self.persistence}, expected at least 0, below 1")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ladder."""
        return geometric_ladder(self.sigma_max, self.sigma_min, self.levels)

    @property
    def total_steps(self) -> int:
        """Gradients per chain."""
        return self.levels * self.steps + self.draws * self.thin


class Draws(NamedTuple):
    """Posterior draws of all chains on all mixtures, and how they came about."""

    sources: Tensor  # (mixture, chain, draw, source, time), clean
    lp: Tensor  # (mixture, chain, draw), log posterior of the noisy sources, nats
    log_prior: Tensor  # (mixture, chain, draw, source), nats
    grad_norm: Tensor  # (mixture, chain, draw)
    warmup_lp: Tensor  # (mixture, chain, step)
    warmup_grad_norm: Tensor  # (mixture, chain, step)
    warmup_log_prior: Tensor  # (mixture, chain, step, source)
    warmup_sigma: Tensor  # (step,)


class _History:
    """Statistics of every lane at every step."""

    def __init__(self) -> None:
        self.lp: list[Tensor] = []
        self.grad_norm: list[Tensor] = []
        self.log_prior: list[Tensor] = []

    def add(self, state: UnderdampedState) -> None:
        self.lp.append(state.evaluation.log_density)
        self.grad_norm.append(state.evaluation.gradient.flatten(1).norm(dim=1))
        self.log_prior.append(state.evaluation.parts)

    def take(self, lanes: Tensor) -> None:
        for values in (self.lp, self.grad_norm, self.log_prior):
            values[:] = [value[lanes] for value in values]


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
    count, lanes_each = len(mixtures), settings.chains * settings.explorers
    target = posterior(mixtures.repeat_interleave(lanes_each, 0))
    shape = (len(target.mixture), len(target.priors), mixtures.shape[-1])
    start = torch.empty(shape, dtype=mixtures.dtype, device=mixtures.device)
    position = settings.sigma_max * start.normal_(generator=generator)
    gains = target.mixing.weights(position)
    history, exploring, state = _History(), settings.explorers > 1, None
    with tqdm(total=settings.total_steps, unit="step", disable=not progress) as bar:
        for sigma in settings.sigmas:
            if exploring and sigma < settings.explore_until:
                best = best_explorers(
                    torch.stack(history.lp[-settings.steps :]), settings.explorers
                )
                target, position, exploring = target.take(best), position[best], False
                history.take(best)
            evaluate = partial(target.evaluate, sigma=sigma)
            state = init(position, evaluate, generator)
            step_size = settings.step_size * sigma
            for step in range(1, settings.steps + 1):
                state = underdamped_step(
                    state, evaluate, step_size, settings.persistence, generator
                )
                history.add(state)
                if step % settings.exchange_every == 0 and sigma >= settings.explore_until:
                    odds = target.cross_log_prior(state.position, sigma)
                    assignment = draw_assignment(odds, generator)
                    moved = reassign(state.position, assignment, gains)
                    state = state._replace(position=moved, evaluation=evaluate(moved))
                bar.update()
                bar.set_postfix(
                    sigma=f"{sigma:.3f}", lp=f"{state.evaluation.log_density.max():.0f}"
                )
            position = state.position
        if exploring:
            best = best_explorers(torch.stack(history.lp[-settings.steps :]), settings.explorers)
            target, position = target.take(best), position[best]
            history.take(best)
        kept, clean = _History(), []
        evaluate = partial(target.evaluate, sigma=settings.sigma_min)
        state = init(position, evaluate, generator)
        for step in range(1, settings.draws * settings.thin + 1):
            state = underdamped_step(state, evaluate, step_size, settings.persistence, generator)
            if step % settings.thin == 0:
                kept.add(state)
                clean.append(target.denoise(state.position, state.evaluation, settings.sigma_min))
            bar.update()

    def by_chain(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values, 1)
        return stacked.reshape(count, settings.chains, *stacked.shape[1:])

    return Draws(
        by_chain(clean),
        by_chain(kept.lp),
        by_chain(kept.log_prior),
        by_chain(kept.grad_norm),
        by_chain(history.lp),
        by_chain(history.grad_norm),
        by_chain(history.log_prior),
        torch.tensor(settings.sigmas).repeat_interleave(settings.steps),
    )


def best_explorers(log_density: Tensor, explorers: int) -> Tensor:
    """Lane of the best explorer of every chain, by mean log density.

    Args:
        log_density: ``(step, lane)``, the explorers of a chain side by side.
        explorers: per chain.
    """
    mean = log_density.mean(0).reshape(-1, explorers)
    first = torch.arange(len(mean), device=mean.device) * explorers
    return first + mean.argmax(1)
