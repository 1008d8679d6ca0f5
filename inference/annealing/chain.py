r"""Chains of draws: from the sources that a search found, through a few noise levels, to the last.

A chain starts from the clean sources that were found and noise of a few times the last level, which
exceeds a search's errors in the details of a mode; or from sources that were given, and noise of
at most the level at which modes are settled. It follows underdamped Langevin dynamics on the
posterior of the noisy sources (:class:`pyro_sep.inference.AnnealedPosterior`) with step size
:math:`h = \kappa \sigma`, since the curvature is at most :math:`2 / \sigma^2`. Song & Ermon 2019
(arXiv 1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942). Steps are unadjusted
(:mod:`~pyro_sep.inference.steps.underdamped`), exact on Gaussians and stable at long steps; or
adjusted (:mod:`~pyro_sep.inference.steps.ghmc`), exact at any step size, which adapts before the
draws.

At the last level the noisy sources are recorded, with a draw of the clean sources given them and
the mixture, and their mean. Before every draw a Gibbs step chooses which source explains what
(:mod:`~pyro_sep.inference.steps.permutation`), so that a chain visits all orders of comparable
probability, each as often as it is probable. After each step unknown gains and noise are updated,
and gains traded for amplitudes (:mod:`~pyro_sep.inference.steps.gains`). Noise is inferred only
where overtones tell sources apart: earlier it would account for all that no source explains yet.
"""

from collections.abc import Iterator
from functools import partial
from math import exp
from typing import cast

import torch
from torch import Tensor

from pyro_sep.inference.annealing.draws import Draws, by_chain, history_by_chain, statistics
from pyro_sep.inference.annealing.run import Run
from pyro_sep.inference.annealing.sections import join
from pyro_sep.inference.state import Evaluation, StepInfo, UnderdampedState
from pyro_sep.inference.steps.gains import RESCALE_EVERY, JointState, follow, rescale
from pyro_sep.inference.steps.ghmc import adjusted_step
from pyro_sep.inference.steps.permutation import draw_assignment
from pyro_sep.inference.steps.underdamped import init, underdamped_step

BLOCK = 10  # draws that leave together


def begin(run: Run) -> None:
    """Join the sections that were found, or take what is given; add noise of the first level."""
    clean = join(run.clean, run.starts) if run.initial is None else run.initial
    sigma = run.sigmas[0]
    position = run.target.tie(clean) + sigma * run.evaluator.noise(run.target, clean)
    evaluate = partial(run.evaluator.evaluate, run.target, sigma=sigma)
    run.chain = init(position, evaluate, run.evaluator.generator, run.target.project)
    run.clean = []


def cool(run: Run, sigma: float, lower: float) -> None:
    """Make a step at one level and go to a lower one; at the last level make all of the warm-up."""
    settings, last, state = run.settings, sigma == lower, _state(run)
    contributions = _contributions(state, sigma)
    for step in range(1, 1 + (settings.warmup if last else 1)):
        state, info = _step(run, state, sigma)
        size = run.step_size * sigma
        run.history.append(statistics(state.chain, info.acceptance_rate, sigma, size))
        if settings.adjusted:
            rate = float(info.acceptance_rate.mean())
            run.adaptation.step(settings.target_acceptance - rate)
            run.step_size = exp(run.adaptation.get_state()[0])
        if step % RESCALE_EVERY == 0:
            state = _rescale(run, state, contributions, sigma)
    if last and settings.adjusted:
        run.step_size = exp(run.adaptation.get_state()[1])
    run.target, run.chain = state
    if not last:
        run.chain = _lower(run, run.chain, sigma, lower)


def draw(run: Run, mixtures: int) -> Iterator[tuple[int, Draws]]:
    """Blocks of draws at the last level, and the number of the first draw of each."""
    if run.contributions is None:
        state = _state(run)
        run.contributions = _contributions(state, run.settings.sigma_min)
        batch, count = state.chain.position.shape[:2]
        run.assignment = torch.arange(count, device=state.chain.position.device).repeat(batch, 1)
    while run.drawn < run.settings.draws:
        first = run.drawn
        yield first, _block(run, min(BLOCK, run.settings.draws - first), mixtures)


def _block(run: Run, count: int, mixtures: int) -> Draws:
    sigma, thin, state = run.settings.sigma_min, run.settings.thin, _state(run)
    history, audio, latents, orders = [], [], [], []
    for step in range(1, count * thin + 1):
        state, info = _step(run, state, sigma)
        if step % RESCALE_EVERY == 0:
            state = _rescale(run, state, cast(Tensor, run.contributions), sigma)
        if step % thin == 0:
            state = _swap(run, state, sigma)
            target, chain = state
            size = run.step_size * sigma
            history.append(statistics(chain, info.acceptance_rate, sigma, size))
            clean, mean = target.draw_clean(
                chain.position, chain.evaluation, sigma, run.evaluator.generator
            )
            run.evaluator.count(chain.position, target.clean_gradients)
            audio.append((clean, mean, chain.position))
            latents.append(target.mixing.latents())
            orders.append(cast(Tensor, run.assignment))
    run.target, run.chain = state
    run.drawn += count
    shape = (mixtures, run.settings.chains)
    sources, means, noisy = (by_chain(part, *shape) for part in zip(*audio, strict=True))
    mixing = {name: by_chain([part[name] for part in latents], *shape) for name in latents[0]}
    assignment = by_chain(orders, *shape)
    return Draws(sources, means, noisy, history_by_chain(history, *shape), mixing, assignment)


def _state(run: Run) -> JointState:
    return JointState(run.target, cast(UnderdampedState, run.chain))


def _step(run: Run, state: JointState, sigma: float) -> tuple[JointState, StepInfo]:
    """One step of the sources, then an update of unknown gains and noise."""
    (target, chain), generator, settings = state, run.evaluator.generator, run.settings
    step = adjusted_step if settings.adjusted else underdamped_step
    chain, info = step(
        chain,
        partial(run.evaluator.evaluate, target, sigma=sigma),
        run.step_size * sigma,
        settings.persistence,
        generator,
        target.project,
    )
    noise = sigma <= settings.sigma_detail
    target, evaluation = follow(target, chain.position, chain.evaluation, sigma, generator, noise)
    return JointState(target, chain._replace(evaluation=evaluation)), info


def _swap(run: Run, state: JointState, sigma: float) -> JointState:
    """A Gibbs draw of which contribution each source takes, where swaps are tried at all."""
    (target, chain), settings = state, run.settings
    count = chain.position.shape[1]
    if not settings.swaps or count < 2:
        return state
    evaluator = run.evaluator
    cross = evaluator.cross_log_prior(target, chain.position, sigma)
    assignment = draw_assignment(cross, evaluator.generator)
    moved = (assignment != torch.arange(count, device=assignment.device)).any(1).nonzero()[:, 0]
    if not len(moved):
        return state
    run.assignment = cast(Tensor, run.assignment).gather(1, assignment)
    order = assignment[..., None].expand_as(chain.position)
    run.contributions = cast(Tensor, run.contributions).gather(1, order)
    target, position = target.reassign(chain.position, assignment)
    found = evaluator.evaluate(target.select(moved), position[moved], sigma)
    evaluation = Evaluation._make(
        before.index_copy(0, moved, after)
        for before, after in zip(chain.evaluation, found, strict=True)
    )
    return JointState(target, chain._replace(position=position, evaluation=evaluation))


def _rescale(run: Run, state: JointState, contributions: Tensor, sigma: float) -> JointState:
    """Trade gains for amplitudes, where gains are unknown."""
    if "gains" not in state.target.latents():
        return state
    evaluate = partial(run.evaluator.evaluate, sigma=sigma)
    return rescale(state, evaluate, contributions, run.evaluator.generator)[0]


def _contributions(state: JointState, sigma: float) -> Tensor:
    """Contributions of the sources to the mixture, by the clean sources expected now."""
    target, chain = state
    clean = target.denoise(chain.position, chain.evaluation, sigma)
    return target.mixing.weights(clean) * clean


def _lower(run: Run, chain: UnderdampedState, sigma: float, lower: float) -> UnderdampedState:
    """The chain with less noise.

    The direction to the clean sources does not change, so the gradient at the lower level is about
    that at the higher one, scaled; a Metropolis test needs the exact density.
    """
    clean = run.target.denoise(chain.position, chain.evaluation, sigma)
    position = clean + lower / sigma * (chain.position - clean)
    evaluation = chain.evaluation._replace(gradient=sigma / lower * chain.evaluation.gradient)
    if run.settings.adjusted:
        evaluation = run.evaluator.evaluate(run.target, position, lower)
    return UnderdampedState(position, chain.velocity, evaluation)
