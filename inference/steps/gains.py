r"""Unknown gains and noise, updated beside the sources.

Given noisy sources x the likelihood of :mod:`pyro_sep.mixing.latent` is nearly Gaussian in the
gains, of precision :math:`X X^\top / v`, with v the variance of the mixture, which depends on the
gains too. :func:`update` draws along the axes of that Gaussian, one after the other, so that
correlated gains move together, by slice sampling within their whole range, and the noise likewise
(Neal 2003, Ann. Statist. 31). So there is no step size to choose.

These draws move gains little, since noisy sources determine them well, while the mixture also
allows twice the gain with half the source. :func:`rescale` moves along this direction. With fixed
reference contributions :math:`w_k`, near :math:`a_k s_k`,

.. math:: a_k' = a_k e^{\delta_k}, \qquad x_k' = x_k + w_k (1 / a_k' - 1 / a_k)

keeps the contribution of the signal and the noise of the source. Its inverse is a move of the same
law, and it keeps the volume of x, so the ratio is that of the posteriors times :math:`\prod_k a_k'
/ a_k`. It is the interweaving of two parametrisations (Yu & Meng 2011, J. Comput. Graph. Stat. 20).

Both leave the posterior of every chain invariant.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation, StepInfo, UnderdampedState, choose, isfinite
from pyro_sep.inference.steps.underdamped import energy
from pyro_sep.mixing.latent import GAIN_RANGE, MAX_NOISE, LatentMixing

RESCALE_WIDTH = 0.1  # of delta: half the spread of the toy sources' amplitudes
RESCALE_EVERY = 2  # steps: its gradient costs as much as that of a step
SLICE_STEPS = 60  # each about halves the slice: down to float64's last bits


class JointState(NamedTuple):
    """Chains whose gains and noise, those of the posterior, are sampled beside the sources."""

    target: AnnealedPosterior
    chain: UnderdampedState


def update(
    mixing: LatentMixing,
    mixture: Tensor,
    sources: Tensor,
    sigma: float,
    generator: torch.Generator,
    noise: bool = True,
) -> LatentMixing:
    """A draw of the unknown gains and, if asked, noise, given sources at a noise level."""
    # In float32 differences of densities are lost to rounding.
    drawn = replace(mixing, gains=mixing.gains.double(), noise_scale=mixing.noise_scale.double())
    fit = _Fit(mixture.double(), sources[..., : mixture.shape[-1]].double(), sigma)
    if mixing.infer_gains:
        for axis in torch.linalg.eigh(fit.gram).eigenvectors.unbind(-1):
            ends = torch.stack([(end - drawn.gains) / axis for end in GAIN_RANGE])
            low, high = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
            moved = partial(_along, drawn, axis)
            drawn = _slice(fit, moved, torch.zeros_like(low), low, high, generator)
    if mixing.infer_noise and noise:
        scale = drawn.noise_scale
        low = torch.zeros_like(scale)
        moved = partial(_with_noise, drawn)
        drawn = _slice(fit, moved, scale, low, low + MAX_NOISE, generator)
    return replace(
        mixing, gains=drawn.gains.to(mixing.gains), noise_scale=drawn.noise_scale.to(mixing.gains)
    )


def follow(
    target: AnnealedPosterior,
    position: Tensor,
    evaluation: Evaluation,
    sigma: float,
    generator: torch.Generator,
    noise: bool,
) -> tuple[AnnealedPosterior, Evaluation]:
    """Posterior and evaluation after :func:`update`; unchanged where gains and noise are known."""
    if not target.mixing.has_latents:
        return target, evaluation
    mixing = cast(LatentMixing, target.mixing)
    mixing = update(mixing, target.mixture, position, sigma, generator, noise)
    return target.remix(mixing, position, evaluation, sigma)


def rescale(
    state: JointState,
    evaluate: Callable[[AnnealedPosterior, Tensor], Evaluation],
    contributions: Tensor,
    generator: torch.Generator,
) -> tuple[JointState, StepInfo]:
    """One step that trades unknown gains for amplitudes, at the cost of one evaluation.

    The contributions w_k ``(batch, source, frame)`` must not depend on the state.
    """
    target, chain = state
    mixing = cast(LatentMixing, target.mixing)
    log_step = RESCALE_WIDTH * torch.empty_like(mixing.gains).normal_(generator=generator)
    gains = mixing.gains * log_step.exp()
    position = chain.position + contributions * (1 / gains - 1 / mixing.gains)[..., None]
    evaluation = evaluate(replace(target, mixing=replace(mixing, gains=gains)), position)
    gained = evaluation.log_density.double() - chain.evaluation.log_density.double()
    log_ratio = (gained + log_step.double().sum(-1)).nan_to_num(nan=-math.inf)
    uniform = torch.empty_like(log_ratio).uniform_(generator=generator)
    accepted = uniform.log() < log_ratio
    mixing = replace(mixing, gains=choose(accepted, gains, mixing.gains))
    moved = choose(accepted, UnderdampedState(position, chain.velocity, evaluation), chain)
    diverging = ~isfinite(*evaluation[:2])
    info = StepInfo(log_ratio.exp().clamp(max=1), diverging, energy(moved))
    return JointState(replace(target, mixing=mixing), moved), info


class _Fit:
    """Density of gains and noise given the sources, by sufficient statistics in float64."""

    def __init__(self, mixture: Tensor, heard: Tensor, sigma: float) -> None:
        self.sigma, self.time = sigma, mixture.shape[-1]
        self.gram = (heard @ heard.mT).nan_to_num()  # one that diverged must not stop the others
        self.with_mixture = (heard @ mixture[..., None])[..., 0]
        self.power = mixture.square().sum(-1)

    def log_density(self, mixing: LatentMixing) -> Tensor:
        """Log density of gains and noise ``(batch,)``, up to a constant."""
        a = mixing.gains
        fit = (a * (self.gram @ a[..., None])[..., 0] - 2 * a * self.with_mixture).sum(-1)
        scale = mixing.scale_at(self.sigma)[..., 0]
        normal = -(self.power + fit) / (2 * scale**2) - self.time * scale.log()
        return normal + mixing.log_prior()


def _along(mixing: LatentMixing, axis: Tensor, t: Tensor) -> LatentMixing:
    return replace(mixing, gains=mixing.gains + t[:, None] * axis)


def _with_noise(mixing: LatentMixing, noise_scale: Tensor) -> LatentMixing:
    return replace(mixing, noise_scale=noise_scale)


def _slice(
    fit: _Fit,
    moved: Callable[[Tensor], LatentMixing],
    start: Tensor,
    low: Tensor,
    high: Tensor,
    generator: torch.Generator,
) -> LatentMixing:
    """A slice-sampling draw on a line, whose slice is all of it at first, and shrinks."""
    height = fit.log_density(moved(start))
    height = height + torch.empty_like(start).uniform_(generator=generator).log()
    drawn, found = start, torch.zeros_like(start, dtype=torch.bool)
    for _ in range(SLICE_STEPS):
        trial = low + (high - low) * torch.empty_like(start).uniform_(generator=generator)
        hit = ~found & (fit.log_density(moved(trial)) >= height)
        drawn, found = torch.where(hit, trial, drawn), found | hit
        if bool(found.all()):
            break
        low = torch.where(trial < start, trial, low)
        high = torch.where(trial < start, high, trial)
    return moved(drawn)
