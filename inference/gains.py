r"""Unknown gains and noise, updated in blocks of their own beside the sources.

Given noisy sources x the likelihood of :mod:`pyro_sep.latent_mixing` is nearly Gaussian in the
gains: with :math:`G = X X^\top` and the variance v of the present gains, of mean :math:`G^{-1} X m`
and covariance :math:`v G^{-1}`. :func:`update` proposes all gains at once from that Gaussian, cut
off at the range of the gains one gain after the other, and takes them by the Metropolis-Hastings
ratio, in which v is that of either end. The noise is drawn by slice sampling (Neal 2003, Ann.
Statist. 31), which needs no step size.

Such gains move by as little as noisy sources leave open, while what the mixture leaves open is
wide: twice the gain with half the source. :func:`rescale` goes along it. With fixed reference
shares :math:`w_k`, near :math:`a_k s_k`,

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
from torch.distributions import Normal

from pyro_sep.inference.langevin import Evaluation
from pyro_sep.inference.underdamped import UnderdampedState
from pyro_sep.latent_mixing import GAIN_RANGE, MAX_NOISE, LatentMixing
from pyro_sep.posterior import AnnealedPosterior

RESCALE_WIDTH = 0.1  # of delta: half the spread of the toy sources' amplitudes
RESCALE_EVERY = 2  # steps: their gradient costs as much as that of one
SLICE_STEPS = 60  # each shrinks the slice by a half or so: to float64's last bits


def update(
    mixing: LatentMixing, mixture: Tensor, sources: Tensor, sigma: float, generator: torch.Generator
) -> LatentMixing:
    """Gains and noise after one update given the sources.

    Args:
        mixing: before it; what is known in it stays.
        mixture: ``(lane, time)``.
        sources: noisy ones ``(lane, source, frame)``.
        sigma: their noise level.
        generator: source of randomness.
    """
    exact = replace(
        mixing, gains=mixing.gains.double(), noise_scale=mixing.noise_scale.double()
    )  # in float32 ratios drown
    problem = _LeastSquares(mixture.double(), sources[..., : mixture.shape[-1]].double(), sigma)
    if mixing.infer_gains:
        exact = _update_gains(exact, problem, generator)
    if mixing.infer_noise:
        exact = _update_noise(exact, problem, generator)
    return replace(
        mixing, gains=exact.gains.to(mixing.gains), noise_scale=exact.noise_scale.to(mixing.gains)
    )


def rescale(
    target: AnnealedPosterior,
    mixing: LatentMixing,
    state: UnderdampedState,
    shares: Tensor,
    evaluate: Callable[[AnnealedPosterior, Tensor], Evaluation],
    generator: torch.Generator,
) -> tuple[AnnealedPosterior, UnderdampedState]:
    """Trade gains for amplitudes in every lane, at the cost of one evaluation.

    Args:
        target: of the lanes.
        mixing: the target's, of unknown gains.
        state: of its lanes.
        shares: w_k ``(lane, source, frame)``, chosen without regard to the state.
        evaluate: a posterior at sources of a noise level.
        generator: source of randomness.
    """
    step = RESCALE_WIDTH * torch.empty_like(mixing.gains).normal_(generator=generator)
    gains = mixing.gains * step.exp()
    position = state.position + shares * (1 / gains - 1 / mixing.gains)[..., None]
    proposed = replace(target, mixing=replace(mixing, gains=gains))
    evaluation = evaluate(proposed, position)
    gained = evaluation.log_density.double() - state.evaluation.log_density.double()
    taken = _decide(gained + step.double().sum(-1), generator)
    chosen = replace(mixing, gains=torch.where(taken[:, None], gains, mixing.gains))
    return replace(target, mixing=chosen), UnderdampedState(
        _where(taken, position, state.position),
        state.velocity,
        Evaluation._make(
            _where(taken, new, old) for new, old in zip(evaluation, state.evaluation, strict=True)
        ),
    )


class _LeastSquares:
    """What sources say of the gains of their mixture, in float64."""

    def __init__(self, mixture: Tensor, heard: Tensor, sigma: float) -> None:
        self.mixture, self.sigma, self.time = mixture, sigma, mixture.shape[-1]
        self.gram = heard @ heard.mT
        self.with_mixture = (heard @ mixture[..., None])[..., 0]
        self.power = mixture.square().sum(-1)
        inverse = torch.linalg.inv_ex(self.gram).inverse
        self.factor = torch.linalg.cholesky_ex(inverse).L
        self.mean = (inverse @ self.with_mixture[..., None])[..., 0]

    def log_density(self, mixing: LatentMixing) -> Tensor:
        """Of gains and noise ``(lane,)``, up to a constant."""
        a = mixing.gains
        fit = (a * (self.gram @ a[..., None])[..., 0] - 2 * a * self.with_mixture).sum(-1)
        scale = mixing.scale_at(self.sigma)[..., 0]
        normal = -(self.power + fit) / (2 * scale**2) - self.time * scale.log()
        return normal + mixing.log_weight(self.mixture, self.sigma) + mixing.log_prior()

    def walk(self, scale: Tensor, choose: Callable[[int, Normal], Tensor]) -> tuple[Tensor, Tensor]:
        """Gains one after the other, and the log density of proposing them.

        The law of each given those before it is the Gaussian's, its mean moved into the range and
        its tails cut off at its ends.

        Args:
            scale: of the mixture given sources, ``(lane, 1)``.
            choose: the k-th gain ``(lane,)``, given its law before the tails are cut off.
        """
        low, high = GAIN_RANGE
        factor = scale[..., None] * self.factor
        errors: list[Tensor] = []
        gains: list[Tensor] = []
        total = torch.zeros_like(self.power)
        for k in range(self.mean.shape[-1]):
            centre = self.mean[:, k]
            for j, error in enumerate(errors):
                centre = centre + factor[:, k, j] * error
            law = Normal(centre.clamp(low, high), factor[:, k, k], validate_args=False)
            gain = choose(k, law)
            inside = law.cdf(centre.new_tensor(high)) - law.cdf(centre.new_tensor(low))
            total = total + law.log_prob(gain) - inside.log()
            errors.append((gain - centre) / factor[:, k, k])
            gains.append(gain)
        return torch.stack(gains, -1), total


def _update_gains(
    mixing: LatentMixing, problem: _LeastSquares, generator: torch.Generator
) -> LatentMixing:
    low, high = GAIN_RANGE

    def draw(_: int, law: Normal) -> Tensor:
        below, above = (law.cdf(law.mean.new_tensor(end)) for end in (low, high))
        uniform = torch.empty_like(law.mean).uniform_(generator=generator)
        return law.icdf(below + (above - below) * uniform)

    gains, there = problem.walk(mixing.scale_at(problem.sigma), draw)
    proposed = replace(mixing, gains=gains)
    _, back = problem.walk(proposed.scale_at(problem.sigma), lambda k, _: mixing.gains[:, k])
    log_ratio = problem.log_density(proposed) - problem.log_density(mixing) + back - there
    taken = _decide(log_ratio, generator)
    return replace(mixing, gains=torch.where(taken[:, None], gains, mixing.gains))


def _update_noise(
    mixing: LatentMixing, problem: _LeastSquares, generator: torch.Generator
) -> LatentMixing:
    present = mixing.noise_scale
    uniform = torch.empty_like(present).uniform_(generator=generator)
    height = problem.log_density(mixing) + uniform.log()
    low, high = torch.zeros_like(present), torch.full_like(present, MAX_NOISE)
    drawn, found = present, torch.zeros_like(present, dtype=torch.bool)
    for _ in range(SLICE_STEPS):
        if bool(found.all()):
            break
        trial = low + (high - low) * torch.empty_like(present).uniform_(generator=generator)
        hit = ~found & (problem.log_density(replace(mixing, noise_scale=trial)) >= height)
        drawn, found = torch.where(hit, trial, drawn), found | hit
        low = torch.where(~found & (trial < present), trial, low)
        high = torch.where(~found & (trial >= present), trial, high)
    return replace(mixing, noise_scale=drawn)


def _decide(log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """Whether each lane takes what is proposed to it."""
    uniform = torch.empty_like(log_ratio).uniform_(generator=generator)
    return uniform.log() < log_ratio.nan_to_num(nan=-math.inf)


def _where(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
