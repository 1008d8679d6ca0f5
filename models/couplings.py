r"""Elementwise monotone maps for coupling transforms, on audio ``(batch, channel, 1, token)``.

A coupling leaves some channels as they are and maps each sample x of the others to z by a monotone
function whose parameters a network reads from the former. The log-determinant sums
:math:`\log |dz/dx|`. Splitting and merging, the affine step and the splines are nflows'.

* *affine* (Dinh et al. 2017, arXiv 1605.08803): :math:`z = (x - \mu) / s`.
* *spline*: the same, then a rational-quadratic spline with K bins on [-B, B], the identity beyond
  (Durkan et al. 2019, arXiv 1906.04032).
* *mixture*: :math:`z = \Phi^{-1}\bigl(\sum_c \pi_c \, \Phi((x - \mu_c) / s_c)\bigr)`, under which x
  is a mixture of K Gaussians where z is standard normal (with logistics: Ho et al. 2019, Flow++,
  arXiv 1902.00275). Its inverse is Newton's method with bisection, accurate to the rounding of the
  distribution function.

A network gives ``per_sample`` numbers for each, ``(batch, channel * per_sample, 1, token)``; zero
of all is the identity. The method ``smooth`` of a map makes them those of a source whose noise has
a known variance :math:`\nu^2`: every scale becomes :math:`\sqrt{\nu^2 + s^2}`, which is exact for
the affine and the mixture map.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from nflows.transforms.coupling import (
    AffineCouplingTransform,
    CouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from nflows.utils.torchutils import sum_except_batch
from torch import Tensor

Kind = Literal["affine", "spline", "mixture"]
SPLINE_BOUND = 4.0  # stds of the affine step: where a sample of the source still falls
SCALE_MIN = 0.002  # floor of s, without which the density of a clean curve has no bound
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
ROOT_ITERATIONS, ROOT_TOLERANCE = 100, 16  # at most; in units of the rounding
TAIL = -80.0  # log probability down to which float32 holds the probability itself


class AffineCoupling(AffineCouplingTransform):
    """Affine coupling; parameters mean and log scale."""

    @staticmethod
    def per_sample(components: int) -> int:
        """Numbers per sample."""
        return 2

    @staticmethod
    def smooth(raw: Tensor, noise_variance: Tensor) -> Tensor:
        """Mean and log scale of a noisy source."""
        mean, spread = raw.split(1, -1)
        return torch.cat([mean, _log_scale(spread, noise_variance)], -1)

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = transform_params.unflatten(1, (-1, 2)).unbind(2)
        scale = (-log_scale).exp()
        return scale, -mean * scale


class SplineCoupling(PiecewiseRationalQuadraticCouplingTransform):
    """Affine step and spline; parameters mean, log scale, K widths, K heights, K - 1 slopes."""

    @staticmethod
    def per_sample(components: int) -> int:
        """Numbers per sample."""
        return 2 + 3 * components - 1

    @staticmethod
    def smooth(raw: Tensor, noise_variance: Tensor) -> Tensor:
        """Mean, log scale and spline of a noisy source."""
        return torch.cat([AffineCoupling.smooth(raw[..., :2], noise_variance), raw[..., 2:]], -1)

    def _transform_dim_multiplier(self) -> int:
        return self.per_sample(self.num_bins)

    def _piecewise_cdf(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        mean, log_scale = transform_params[..., 0], transform_params[..., 1]
        # Slopes count from the identity's, as nflows counts those at the ends.
        one = math.log(math.expm1(1 - self.min_derivative))
        slopes = inputs.new_full((self.num_bins - 1,), one)
        spline = transform_params[..., 2:] + F.pad(slopes, (2 * self.num_bins, 0))
        if inverse:
            outputs, log_slope = super()._piecewise_cdf(inputs, spline, inverse=True)
            return mean + outputs * log_scale.exp(), log_slope + log_scale
        normal = (inputs - mean) * (-log_scale).exp()
        outputs, log_slope = super()._piecewise_cdf(normal, spline)
        return outputs, log_slope - log_scale


class MixtureCoupling(CouplingTransform):
    """Distribution function of K Gaussians; parameters K logits, K means, K log scales."""

    def __init__(self, mask: object, transform_net_create_fn: object, components: int) -> None:
        self.components = components
        super().__init__(mask, transform_net_create_fn)

    @staticmethod
    def per_sample(components: int) -> int:
        """Numbers per sample."""
        return 3 * components

    @staticmethod
    def smooth(raw: Tensor, noise_variance: Tensor) -> Tensor:
        """Logits, means and log scales of a noisy source, the means from -1 to 1 at the start."""
        logits, shift, spread = raw.chunk(3, -1)
        centres = torch.linspace(-1, 1, shift.shape[-1]).to(raw)
        centres = centres - centres.mean()  # of one, it is 0
        return torch.cat([logits, shift + centres, _log_scale(spread - 2, noise_variance)], -1)

    def _transform_dim_multiplier(self) -> int:
        return self.per_sample(self.components)

    def _coupling_transform_forward(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs, log_slope = _to_normal(inputs, *self._mixture(transform_params))
        return outputs, sum_except_batch(log_slope)

    def _coupling_transform_inverse(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs, log_slope = _from_normal(inputs, *self._mixture(transform_params))
        return outputs, -sum_except_batch(log_slope)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, log_scale = (
            params.unflatten(1, (-1, 3 * self.components)).movedim(2, -1).chunk(3, -1)
        )
        return logits.log_softmax(-1), mean, log_scale


COUPLINGS: dict[Kind, type[AffineCoupling] | type[SplineCoupling] | type[MixtureCoupling]] = {
    "affine": AffineCoupling,
    "spline": SplineCoupling,
    "mixture": MixtureCoupling,
}


def coupling(kind: Kind, mask: object, network: object, components: int) -> CouplingTransform:
    """A coupling by name: ``network(in_channels, out_channels)`` builds what reads parameters."""
    if kind == "affine":
        return AffineCoupling(mask, network)
    if kind == "spline":
        return SplineCoupling(
            mask, network, num_bins=components, tails="linear", tail_bound=SPLINE_BOUND
        )
    return MixtureCoupling(mask, network, components)


def _log_scale(spread: Tensor, noise_variance: Tensor) -> Tensor:
    scale = SCALE_MIN + F.softplus(spread)
    return 0.5 * (scale.square() + noise_variance).log()


def _to_normal(
    x: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Normal z of a mixture's x, and log dz/dx; the last dim of the mixture is the component."""
    u = (x[..., None] - mean) * (-log_scale).exp()
    log_density = torch.logsumexp(log_weight - log_scale - 0.5 * u.square(), -1)
    log_below = torch.logsumexp(log_weight + _LogNdtr.apply(u), -1)
    log_above = torch.logsumexp(log_weight + _LogNdtr.apply(-u), -1)
    # From the lighter tail, which floating point resolves; at a tie a minimum has no slope.
    lower = log_below < log_above
    tail = _LogNdtri.apply(torch.where(lower, log_below, log_above))
    z = torch.where(lower, tail, -tail)
    return z, log_density + 0.5 * z.square()


def _from_normal(
    z: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixture's x of a normal z, and log dz/dx there.

    x lies between the components' own quantiles of z, where Newton's method and bisection, which
    cannot miss it, take turns. A last Newton step is what carries the gradient.
    """
    with torch.no_grad():
        quantiles = mean + log_scale.exp() * z[..., None]
        lowest, highest = quantiles.amin(-1), quantiles.amax(-1)
        low, high = lowest, highest
        rounding = ROOT_TOLERANCE * torch.finfo(z.dtype).eps
        x = (low + high) / 2
        for iteration in range(ROOT_ITERATIONS):
            reached, log_slope = _to_normal(x, log_weight, mean, log_scale)
            error = z - reached
            found = error.abs() < rounding * (1 + z.abs())
            if bool((found | (high - low < rounding * high.abs())).all()):
                break
            low, high = torch.where(error > 0, x, low), torch.where(error > 0, high, x)
            newton = x + error * (-log_slope).exp()
            take = (newton > low) & (newton < high) & (iteration % 3 < 2)
            x = torch.where(take, newton, (low + high) / 2)
    reached, log_slope = _to_normal(x, log_weight, mean, log_scale)
    step = (z - reached) * (-log_slope.detach()).exp()
    x = x + (step - step.detach() + step.detach().clamp(lowest - x, highest - x))
    return x, _to_normal(x, log_weight, mean, log_scale)[1]


def _newton(z: Tensor, log_probability: Tensor) -> Tensor:
    return z - (torch.special.log_ndtr(z) - log_probability) / _hazard(z)


def _hazard(u: Tensor) -> Tensor:
    """Slope of the log normal distribution function: density over probability below ``u``."""
    # Beyond 12 it is 0 to any precision, and erfcx would overflow.
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-u.clamp_max(12) / math.sqrt(2))


class _LogNdtr(torch.autograd.Function):
    """``torch.special.log_ndtr`` with a slope that holds far out: torch's own is wrong there."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return torch.special.log_ndtr(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return gradients[0] * _hazard(u)


class _LogNdtri(torch.autograd.Function):
    """Normal quantile of a log probability up to log 1/2, however small, by Newton's method."""

    @staticmethod
    def forward(ctx: Any, log_probability: Tensor) -> Tensor:
        far = log_probability.clamp_max(-1.0)
        tail = -(-2 * far - (-2 * far).log() - 2 * LOG_SQRT_2PI).clamp_min(0).sqrt()
        near = torch.special.ndtri(log_probability.clamp_min(TAIL).exp())
        z = torch.where(log_probability > TAIL, near, tail)
        for _ in range(3):
            z = _newton(z, log_probability)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # an output, so its own slope is this one again
        return gradients[0] / _hazard(z)
