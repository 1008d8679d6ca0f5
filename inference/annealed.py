r"""Annealed Langevin dynamics down a ladder of noise levels.

At every level sigma the chain follows underdamped Langevin dynamics on the posterior of the noisy
sources (:class:`pyro_sep.posterior.AnnealedPosterior`) with step size :math:`h = \kappa \sigma`, in
which the curvature, at most :math:`2 / \sigma^2`, is the same at all levels. Song & Ermon 2019
(arXiv 1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942). Four things find the
mode:

* momentum crosses a frame's space in tens of steps;
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

Unknown gains and noise belong to the lane (:mod:`~pyro_sep.inference.gains`). Gains stay alike down
to the turn: above it priors do not mind quiet sources, so one of a large gain would take the whole
mixture. Below it they are updated beside the sources, and traded for amplitudes. Noise follows
from the level of the second tournaments on: earlier it would take what no source explains yet.

Steps are uncorrected, :mod:`~pyro_sep.inference.underdamped`, exact on Gaussians and stable at long
steps; or Metropolis-corrected, :mod:`~pyro_sep.inference.ghmc`, exact at any, where the step size
of each level adapts to the acceptance (dual averaging) and stays as it is for the draws.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from math import exp, log
from typing import NamedTuple

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor
from tqdm import tqdm

from pyro_sep.inference.gains import RESCALE_EVERY, rescale, update
from pyro_sep.inference.ghmc import corrected_step
from pyro_sep.inference.langevin import Evaluation
from pyro_sep.inference.permutation import draw_assignment
from pyro_sep.inference.settings import COMPARED_STEPS, Annealing
from pyro_sep.inference.underdamped import UnderdampedState, init, underdamped_step
from pyro_sep.latent_mixing import LatentMixing
from pyro_sep.mixing import LinearMixing
from pyro_sep.posterior import AnnealedPosterior


class Statistics(NamedTuple):
    """Of every chain at every step or draw."""

    lp: Tensor  # (mixture, chain, draw), log posterior of the noisy sources, nats
    log_prior: Tensor  # (mixture, chain, draw, source), nats
    grad_norm: Tensor  # (mixture, chain, draw)
    acceptance_rate: Tensor  # (mixture, chain, draw), 1 where steps are not corrected
    noise_level: Tensor  # (mixture, chain, draw), sigma
    step_size: Tensor  # (mixture, chain, draw)


class Draws(NamedTuple):
    """Posterior draws of all chains on all mixtures, and how they came about."""

    sources: Tensor  # (mixture, chain, draw, source, frame), clean
    noisy: Tensor  # (mixture, chain, draw, source, frame), at the last noise level
    statistics: Statistics
    warmup: Statistics
    gradients: int  # evaluations per mixture, those of explorers and tournaments included
    gains: Tensor  # (mixture, chain, draw, source)
    noise_scale: Tensor  # (mixture, chain, draw)


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
        for stage in _plan(settings):
            stage(walk)
        clean, noisy, kept, mixings = walk.draw()
    like = clean[0]

    def by_chain(values: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(values), 1)
        return stacked.reshape(len(mixtures), settings.chains, *stacked.shape[1:])

    return Draws(
        by_chain(clean),
        by_chain(noisy),
        Statistics._make(map(by_chain, zip(*kept.steps, strict=True))),
        Statistics._make(map(by_chain, zip(*walk.history.steps, strict=True))),
        walk.evaluations // len(mixtures),
        by_chain([own.weights(like)[..., 0].expand(like.shape[:2]) for own in mixings]),
        by_chain([own.noise(like).expand(len(like)) for own in mixings]),
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


def _plan(settings: Annealing) -> list[Callable[["_Walk"], None]]:
    """What a walk does before its draws, in order."""
    stages: list[Callable[[_Walk], None]] = []
    turn = settings.sigma_turn
    for sigma in settings.sigmas:
        if sigma < 1.5 * turn:
            stages.append(partial(_Walk.keep_best, count=-(-settings.explorers // 2)))
        stages.append(partial(_Walk.settle, sigma=sigma, exchange=sigma >= turn))
        if sigma == turn:
            stages.append(partial(_Walk.keep_best, count=1))
        if sigma in (turn, settings.sigma_refine):
            stages += [partial(_Walk.hold_tournament, sigma=sigma)] * settings.tournaments
    return stages


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
        self.steps: list[Statistics] = []

    def add(
        self, state: UnderdampedState, acceptance_rate: Tensor, sigma: float, step_size: float
    ) -> None:
        log_density = state.evaluation.log_density
        self.steps.append(
            Statistics(
                log_density,
                state.evaluation.parts,
                state.evaluation.gradient.flatten(1).norm(dim=1),
                acceptance_rate,
                torch.full_like(log_density, sigma),
                torch.full_like(log_density, step_size),
            )
        )

    def take(self, lanes: Tensor) -> None:
        self.steps = [Statistics._make(part[lanes] for part in step) for step in self.steps]


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
        self.step_size = settings.step_size  # in units of sigma
        self.position = target.start(settings.sigma_max, generator)

    def settle(self, sigma: float, exchange: bool) -> None:
        """All steps of one level."""
        state = self._start(self.target, self.position, sigma)
        shares = self._shares(state, sigma)
        adaptation = DualAveraging(prox_center=log(self.step_size))
        for step in range(1, self.settings.steps + 1):
            self.target, state, acceptance_rate = self._step(self.target, state, sigma)
            self.history.add(state, acceptance_rate, sigma, self.step_size * sigma)
            if self.settings.corrected:
                adaptation.step(self.settings.target_acceptance - float(acceptance_rate.mean()))
                self.step_size = exp(adaptation.get_state()[0])
            if exchange and step % self.settings.exchange_every == 0:
                state = self._exchange(state, sigma)
            elif not exchange and step % RESCALE_EVERY == 0:
                state = self._rescale(state, shares, sigma)
        if self.settings.corrected:
            self.step_size = exp(adaptation.get_state()[1])
        self.position = state.position

    def keep_best(self, count: int) -> None:
        """Go on with the explorers of every chain that were best over the last level."""
        if count >= self.explorers:
            return
        last = torch.stack([step.lp for step in self.history.steps[-self.settings.steps :]])
        best = best_explorers(last, self.explorers, count)
        self.explorers = count
        self.target, self.position = self.target.take(best), self.position[best]
        self.history.take(best)

    def hold_tournament(self, sigma: float) -> None:
        """Where there are more than two sources, try every exchange, and go on with the best."""
        count = len(self.target.priors)
        if count < 3:
            return
        orders = _orders(count)
        lanes = torch.arange(len(self.position), device=self.position.device)
        lanes = lanes.repeat_interleave(len(orders))
        target, position = self.target.take(lanes), self.position[lanes]
        assignment = torch.tensor(orders, device=position.device).repeat(len(self.position), 1)
        target, position = target.reassign(position, assignment)
        sigmas = self.settings.renoised(sigma)
        noise = target.project(torch.empty_like(position).normal_(generator=self.generator))
        position = position + (sigmas[0] ** 2 - sigma**2) ** 0.5 * noise
        for level in sigmas:
            target, position, _ = self._run(target, position, level, self.settings.renoised_steps)
        target, position, log_density = self._run(target, position, sigma, COMPARED_STEPS)
        best = best_explorers(log_density, len(orders))
        self.target, self.position = target.take(best), position[best]

    def draw(self) -> tuple[list[Tensor], list[Tensor], _History, list[LinearMixing]]:
        """Clean and noisy draws ``(lane, source, time)`` at the last level, and what is theirs."""
        sigma, kept, clean, noisy, mixings = self.settings.sigma_min, _History(), [], [], []
        state = self._start(self.target, self.position, sigma)
        shares = self._shares(state, sigma)
        for step in range(1, self.settings.draws * self.settings.thin + 1):
            self.target, state, acceptance_rate = self._step(self.target, state, sigma)
            if step % RESCALE_EVERY == 0:
                state = self._rescale(state, shares, sigma)
            if step % self.settings.thin == 0:
                kept.add(state, acceptance_rate, sigma, self.step_size * sigma)
                clean.append(self.target.denoise(state.position, state.evaluation, sigma))
                noisy.append(state.position)
                mixings.append(self.target.mixing)
        return clean, noisy, kept, mixings

    def _run(
        self, target: AnnealedPosterior, position: Tensor, sigma: float, steps: int
    ) -> tuple[AnnealedPosterior, Tensor, Tensor]:
        """Some steps at one level: the position, and the log density ``(step, lane)``."""
        state, log_density = self._start(target, position, sigma), []
        for _ in range(steps):
            target, state, _ = self._step(target, state, sigma)
            log_density.append(state.evaluation.log_density)
        return target, state.position, torch.stack(log_density)

    def _start(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> UnderdampedState:
        return init(position, self._evaluate(target, sigma), self.generator, target.project)

    def _evaluate(self, target: AnnealedPosterior, sigma: float) -> Callable[[Tensor], Evaluation]:
        def evaluate(position: Tensor) -> Evaluation:
            self.evaluations += len(position)
            return target.evaluate(position, sigma)

        return evaluate

    def _step(
        self, target: AnnealedPosterior, state: UnderdampedState, sigma: float
    ) -> tuple[AnnealedPosterior, UnderdampedState, Tensor]:
        """One step, then of unknown gains and noise, and its probability ``(lane,)``."""
        self.bar.set_postfix(sigma=f"{sigma:.3f}", refresh=False)
        self.bar.update()
        evaluate = self._evaluate(target, sigma)
        how = (self.step_size * sigma, self.settings.persistence, self.generator, target.project)
        if self.settings.corrected:
            state, acceptance_rate = corrected_step(state, evaluate, *how)
        else:
            state = underdamped_step(state, evaluate, *how)
            acceptance_rate = torch.ones_like(state.evaluation.log_density)
        if isinstance(target.mixing, LatentMixing) and sigma < self.settings.sigma_turn:
            mixing = update(
                target.mixing,
                target.mixture,
                state.position,
                sigma,
                self.generator,
                noise=sigma <= self.settings.sigma_refine,
            )
            target, evaluation = target.remix(mixing, state.position, state.evaluation, sigma)
            state = state._replace(evaluation=evaluation)
        return target, state, acceptance_rate

    def _exchange(self, state: UnderdampedState, sigma: float) -> UnderdampedState:
        cross = self.target.cross_log_prior(state.position, sigma)
        assignment = draw_assignment(cross, self.generator)
        self.target, position = self.target.reassign(state.position, assignment)
        return state._replace(
            position=position, evaluation=self._evaluate(self.target, sigma)(position)
        )

    def _shares(self, state: UnderdampedState, sigma: float) -> Tensor:
        """What the sources are in the mixture, as it seems now."""
        clean = self.target.denoise(state.position, state.evaluation, sigma)
        return self.target.mixing.weights(clean) * clean

    def _rescale(self, state: UnderdampedState, shares: Tensor, sigma: float) -> UnderdampedState:
        """Trade gains for amplitudes, where gains are unknown."""
        mixing = self.target.mixing
        if not (isinstance(mixing, LatentMixing) and mixing.infer_gains):
            return state

        def evaluate(target: AnnealedPosterior, position: Tensor) -> Evaluation:
            return self._evaluate(target, sigma)(position)

        self.target, state = rescale(self.target, mixing, state, shares, evaluate, self.generator)
        return state
