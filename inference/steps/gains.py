r"""Unknown gains and noise, updated in blocks of their own beside the sources.

Given noisy sources x the likelihood of :mod:`pyro_sep.mixing.latent` is nearly Gaussian in the
gains, of precision :math:`X X^\top / v`, with v the variance of the mixture, which depends on the
gains too. :func:`update` draws along the axes of that Gaussian, one after the other, so that gains
which the sources leave open together move together. It draws by slice sampling, of all of the line
within the range of the gains, and so it does the noise (Neal 2003, Ann. Statist. 31): there is no
step size, and no gain gets stuck where v is far from that of the mode.

Such gains move by as little as noisy sources leave open, while what the mixture leaves open is
wide: twice the gain with half the source. :func:`rescale` goes along it. With fixed reference
contributions :math:`w_k`, near :math:`a_k s_k`,

.. math:: a_k' = a_k e^{\delta_k}, \qquad x_k' = x_k + w_k (1 / a_k' - 1 / a_k)

keeps the share of the signal and the noise of the source. Its inverse is a move of the same law,
and it keeps the volume of x, so the ratio is that of the posteriors times :math:`\prod_k a_k' /
a_k`. It is the interweaving of two parametrisations (Yu & Meng 2011, J. Comput. Graph. Stat. 20).

All moves leave the posterior of every lane as it is, each lane for itself.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.steps.underdamped import UnderdampedState, choose
from pyro_sep.mixing.latent import GAIN_RANGE, MAX_NOISE, LatentMixing

RESCALE_WIDTH = 0.1  # of delta: half the spread of the toy sources' amplitudes
RESCALE_EVERY = 2  # steps: their gradient costs as much as that of one
SLICE_STEPS = 60  # each shrinks the slice by a half or so: to float64's last bits


def update(
    mixing: LatentMixing,
    mixture: Tensor,
    sources: Tensor,
    sigma: float,
    generator: torch.Generator,
    noise: bool = True,
) -> LatentMixing:
    """Gains and noise after one update given the sources.

    Args:
        mixing: before it; what is known in it stays.
        mixture: ``(lane, time)``.
        sources: noisy ones ``(lane, source, frame)``.
        sigma: their noise level.
        generator: source of randomness.
        noise: whether unknown noise is updated too.
    """
    # In float32 differences drown.
    exact = replace(mixing, gains=mixing.gains.double(), noise_scale=mixing.noise_scale.double())
    fit = _Fit(mixture.double(), sources[..., : mixture.shape[-1]].double(), sigma)
    if mixing.infer_gains:
        exact = _update_gains(exact, fit, generator)
    if mixing.infer_noise and noise:
        exact = _update_noise(exact, fit, generator)
    return replace(
        mixing, gains=exact.gains.to(mixing.gains), noise_scale=exact.noise_scale.to(mixing.gains)
    )


def follow(
    target: AnnealedPosterior,
    position: Tensor,
    evaluation: Evaluation,
    sigma: float,
    generator: torch.Generator,
    noise: bool,
) -> tuple[AnnealedPosterior, Evaluation]:
    """Posterior and evaluation after an update of what is unknown of the mixing; else as they are.

    Args:
        target: of the lanes.
        position: noisy sources ``(lane, source, frame)``.
        evaluation: there.
        sigma: their noise level.
        generator: source of randomness.
        noise: whether unknown noise is updated too.
    """
    if not isinstance(target.mixing, LatentMixing):
        return target, evaluation
    mixing = update(target.mixing, target.mixture, position, sigma, generator, noise)
    return target.remix(mixing, position, evaluation, sigma)


def rescale(
    target: AnnealedPosterior,
    mixing: LatentMixing,
    state: UnderdampedState,
    contributions: Tensor,
    evaluate: Callable[[AnnealedPosterior, Tensor], Evaluation],
    generator: torch.Generator,
) -> tuple[AnnealedPosterior, UnderdampedState]:
    """Trade gains for amplitudes in every lane, at the cost of one evaluation.

    Args:
        target: of the lanes.
        mixing: the target's, of unknown gains.
        state: of its lanes.
        contributions: w_k ``(lane, source, frame)``, chosen without regard to the state.
        evaluate: a posterior at sources of a noise level.
        generator: source of randomness.
    """
    step = RESCALE_WIDTH * torch.empty_like(mixing.gains).normal_(generator=generator)
    gains = mixing.gains * step.exp()
    position = state.position + contributions * (1 / gains - 1 / mixing.gains)[..., None]
    proposed = replace(target, mixing=replace(mixing, gains=gains))
    evaluation = evaluate(proposed, position)
    gained = evaluation.log_density.double() - state.evaluation.log_density.double()
    taken = _decide(gained + step.double().sum(-1), generator)
    chosen = replace(mixing, gains=torch.where(taken[:, None], gains, mixing.gains))
    moved = UnderdampedState(position, state.velocity, evaluation)
    return replace(target, mixing=chosen), choose(taken, moved, state)


class _Fit:
    """What sources say of the gains of their mixture, in float64."""

    def __init__(self, mixture: Tensor, heard: Tensor, sigma: float) -> None:
        self.sigma, self.time = sigma, mixture.shape[-1]
        self.gram = (heard @ heard.mT).nan_to_num()  # a lane that diverged must not stop the others
        self.with_mixture = (heard @ mixture[..., None])[..., 0]
        self.power = mixture.square().sum(-1)

    def log_density(self, mixing: LatentMixing) -> Tensor:
        """Of gains and noise ``(lane,)``, up to a constant."""
        a = mixing.gains
        fit = (a * (self.gram @ a[..., None])[..., 0] - 2 * a * self.with_mixture).sum(-1)
        scale = mixing.scale_at(self.sigma)[..., 0]
        normal = -(self.power + fit) / (2 * scale**2) - self.time * scale.log()
        return normal + mixing.log_prior()


def _update_gains(mixing: LatentMixing, fit: _Fit, generator: torch.Generator) -> LatentMixing:
    for axis in torch.linalg.eigh(fit.gram).eigenvectors.unbind(-1):
        start = mixing
        ends = torch.stack([(end - start.gains) / axis for end in GAIN_RANGE])
        low, high = ends.amin(0).amax(-1), ends.amax(0).amin(-1)

        def moved(t: Tensor, start: LatentMixing = start, axis: Tensor = axis) -> LatentMixing:
            return replace(start, gains=start.gains + t[:, None] * axis)

        def log_density(t: Tensor, moved: Callable[[Tensor], LatentMixing] = moved) -> Tensor:
            return fit.log_density(moved(t))

        mixing = moved(_slice(log_density, torch.zeros_like(low), low, high, generator))
    return mixing


def _update_noise(mixing: LatentMixing, fit: _Fit, generator: torch.Generator) -> LatentMixing:
    def log_density(noise_scale: Tensor) -> Tensor:
        return fit.log_density(replace(mixing, noise_scale=noise_scale))

    low = torch.zeros_like(mixing.noise_scale)
    drawn = _slice(log_density, mixing.noise_scale, low, low + MAX_NOISE, generator)
    return replace(mixing, noise_scale=drawn)


def _slice(
    log_density: Callable[[Tensor], Tensor],
    present: Tensor,
    low: Tensor,
    high: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """One draw of every lane, started from the whole of its line; its ends close in on it."""
    height = log_density(present) + torch.empty_like(present).uniform_(generator=generator).log()
    drawn, found = present, torch.zeros_like(present, dtype=torch.bool)
    for _ in range(SLICE_STEPS):
        trial = low + (high - low) * torch.empty_like(present).uniform_(generator=generator)
        hit = ~found & (log_density(trial) >= height)
        drawn, found = torch.where(hit, trial, drawn), found | hit
        if bool(found.all()):
            break
        low = torch.where(trial < present, trial, low)
        high = torch.where(trial < present, high, trial)
    return drawn


def _decide(log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """Whether each lane takes what is proposed to it."""
    uniform = torch.empty_like(log_ratio).uniform_(generator=generator)
    return uniform.log() < log_ratio.nan_to_num(nan=-math.inf)
