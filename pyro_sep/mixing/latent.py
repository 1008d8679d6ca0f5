r"""Unknown gains and unknown noise of a mixture.

A gain is log-uniform on a range, alike for all sources; the noise's std is half-normal:

.. math:: p(a_k) \propto 1 / a_k, \quad a_k \in (a_{\min}, a_{\max}), \qquad
          p(\gamma) \propto e^{-\gamma^2 / 2 \gamma_0^2}, \quad \gamma \in (0, 1)

A gain and its source's amplitude are only weakly identifiable; their product, the contribution
:math:`a_k s_k`, is identified well. A prior of amplitudes uniform on 0.8 to 1 leaves the gain open
to 25 %.

At noise level sigma the mixture of noisy sources carries their noise, of variance :math:`\sigma^2
\sum_k a_k^2`. It counts as part of the mixture's:

.. math:: p_\sigma(m \mid x, a, \gamma) = \mathcal{N}\bigl(m; \textstyle\sum_k a_k x_k,
          (V_\sigma - \sigma^2 \sum_k a_k^2) I\bigr), \qquad
          V_\sigma = \max(\gamma^2, 2 \sigma^2 \textstyle\sum_k a_k^2)

The mean of this over the noise of x, given clean sources s, is :math:`\mathcal{N}(m; \sum_k a_k
s_k, V_\sigma I)`. So noise above the floor :math:`\sigma (2 \sum_k a_k^2)^{1/2}` has the posterior
that it would have given clean sources, and noise below it has its prior. There small gains explain
less noise, so gains are estimated low: by 1 or 2 % with the toy priors at the default levels, more
where a prior leaves amplitudes open. Floor and bias shrink with sigma.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform

from pyro_sep.mixing.known import (
    NOISE_SCALE,
    LinearMixing,
    Mixing,
    check_count,
    default_gains,
    level_gain,
)
from pyro_sep.priors.base import Priors, check_priors, device_of

GAIN_RANGE = (0.2, 2.0)
NOISE_SPREAD = 0.1  # gamma_0, full scale 1: noise 20 dB below full scale is nothing unusual
MAX_NOISE = 1.0  # full scale
Infer = Literal["infer"]
Gains = Sequence[float] | NDArray[Any] | Tensor


class LogUniform(dist.TransformedDistribution):
    """Uniform in the logarithm between two positive numbers."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        base = dist.Uniform(low.log(), high.log(), validate_args=False)
        super().__init__(base, [ExpTransform()], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The interval between the two numbers."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "LogUniform":
        """The same law over a larger batch."""
        low, high = (end.expand(Size(batch_shape)) for end in (self.low, self.high))
        return LogUniform(low, high)


@dataclass(frozen=True)
class LatentMixing(LinearMixing):
    """A mixing law whose gains, noise or both are unknown, with current values for each chain.

    The mixture is Normal(sum_k a_k s_k, gamma). :func:`pyro_sep.separate` makes one for
    ``gains="infer"`` or ``noise_scale="infer"``; in a Pyro model of your own,
    :func:`pyro_sep.mixing.latent.draw_mixing` samples one.

    Attributes:
        gains: a_k of each source, ``(*batch, source)``.
        noise_scale: gamma, the std of the mixture's own noise, ``(*batch,)``.
        infer_gains: whether the gains are unknown.
        infer_noise: whether the noise is.

    >>> mixing = LatentMixing(torch.tensor([[0.5, 1.0]]), torch.tensor([0.01]), infer_noise=False)
    >>> mixing.mix(torch.ones(1, 2, 3)), list(mixing.latents())
    (tensor([[1.5000, 1.5000, 1.5000]]), ['gains'])
    """

    gains: Tensor
    noise_scale: Tensor
    infer_gains: bool = True
    infer_noise: bool = True

    @property
    def count(self) -> int:
        """Sources that are mixed."""
        return self.gains.shape[-1]

    @property
    def gain_energy(self) -> Tensor:
        """Sum of the squared gains, ``(*batch, 1)``."""
        return self.gains.square().sum(-1, keepdim=True)

    def weights(self, like: Tensor) -> Tensor:
        """Gains as a column ``(*batch, source, 1)`` of a tensor's dtype and device."""
        return self.gains[..., None].to(like)

    def noise(self, like: Tensor) -> Tensor:
        """The noise's std, ``(*batch,)``, of a tensor's dtype and device."""
        return self.noise_scale.to(like)

    def scale_at(self, sigma: float) -> Tensor:
        """Std of the mixture given sources at noise level ``sigma``, ``(*batch, 1)``."""
        own = sigma**2 * self.gain_energy
        return (torch.maximum(self.noise_scale[..., None] ** 2, 2 * own) - own).sqrt()

    def log_prior(self) -> Tensor:
        """Log prior density of unknown gains and noise, up to a constant, ``(*batch,)``."""
        total = torch.zeros_like(self.noise_scale)
        if self.infer_gains:
            low, high = GAIN_RANGE
            inside = ((self.gains >= low) & (self.gains <= high)).all(-1)
            total = torch.where(inside, -self.gains.log().sum(-1), -math.inf)
        if self.infer_noise:
            total = total - (self.noise_scale / NOISE_SPREAD) ** 2 / 2
        return total

    def select(self, indices: Tensor) -> Self:
        """The mixing restricted to a subset of the batch."""
        return replace(self, gains=self.gains[indices], noise_scale=self.noise_scale[indices])

    def update(self, indices: Tensor, other: Self) -> Self:
        """The mixing with the values of another one in a subset of the batch."""
        return replace(
            self,
            gains=self.gains.index_copy(0, indices, other.gains),
            noise_scale=self.noise_scale.index_copy(0, indices, other.noise_scale),
        )

    def latents(self) -> dict[str, Tensor]:
        """Unknown gains and noise by name, ``(*batch, ...)``."""
        gains = {"gains": self.gains} if self.infer_gains else {}
        return gains | ({"noise_scale": self.noise_scale} if self.infer_noise else {})

    def with_latents(self, latents: Mapping[str, Tensor]) -> Self:
        """The mixing with these values of :meth:`latents`."""
        values: dict[str, Any] = dict(latents)
        return replace(self, **values)

    def fixed_weights(self, like: Tensor) -> Tensor:
        """Ones ``(source, 1)`` where gains are unknown and swapped too; else the known gains."""
        if self.infer_gains:
            return torch.ones(self.count, 1, dtype=like.dtype, device=like.device)
        return self.weights(like)[0]

    def reassign(self, assignment: Tensor) -> Self:
        """The mixing after a swap ``(batch, source)``."""
        if self.infer_gains:
            return replace(self, gains=self.gains.gather(-1, assignment))
        return self


def known_mixing(priors: Priors, gains: Gains | Infer | None, noise_scale: float | Infer) -> Mixing:
    """The known gains and noise, or defaults: those of the priors where gains are None.

    Raises:
        ValueError: numbers that do not fit, see :class:`~pyro_sep.mixing.Mixing`; other words than
            "infer"; no gains where priors of several sets disagree, see :func:`default_gains`.
    """
    check_priors(priors)
    for name, value in (("gains", gains), ("noise_scale", noise_scale)):
        if isinstance(value, str) and value != "infer":
            raise ValueError(f"{name}: got {value!r}, expected numbers or 'infer'")
    gamma = NOISE_SCALE if isinstance(noise_scale, str) else noise_scale
    if isinstance(gains, str):
        return Mixing.mean(len(priors), gamma)  # a place holder
    mixing = Mixing(
        cast(tuple[float, ...], default_gains(priors) if gains is None else gains), gamma
    )
    check_count(priors, mixing)
    return mixing


def start_mixing(
    mixture: Tensor,
    priors: Priors,
    known: Mixing,
    infer_gains: bool,
    infer_noise: bool,
) -> LatentMixing:
    """The start of a search: equal gains, by the mixture's power, and the width of noise's prior.

    Args:
        mixture: ``(batch, time)``.
        priors: of the sources.
        known: gains and noise that are not inferred.
        infer_gains: whether gains are inferred.
        infer_noise: whether the noise is inferred.
    """
    gains = mixture.new_tensor(known.gains).repeat(len(mixture), 1)
    if infer_gains:
        alike = level_gain(mixture, priors).clamp(*GAIN_RANGE)
        gains = alike[:, None].repeat(1, known.count)
    noise_scale = NOISE_SPREAD if infer_noise else known.noise_scale
    every = mixture.new_full((len(mixture),), noise_scale)
    return LatentMixing(gains, every, infer_gains, infer_noise)


def draw_mixing(priors: Priors, gains: Gains | Infer, noise_scale: float | Infer) -> LatentMixing:
    """Gains and noise in a Pyro model: sites ``gains`` and ``noise_scale`` where to be inferred.

    It is the ``mixing`` of :func:`pyro_sep.mixing.model`.

    Args:
        priors: of the sources.
        gains: a_k, or "infer".
        noise_scale: gamma, or "infer".

    Raises:
        ValueError: see :func:`known_mixing`.
    """
    known = known_mixing(priors, gains, noise_scale)
    infer_gains, infer_noise = isinstance(gains, str), isinstance(noise_scale, str)
    a, gamma, spread = (
        torch.tensor(value, dtype=torch.float32, device=device_of(priors))
        for value in (known.gains, known.noise_scale, NOISE_SPREAD)
    )
    if infer_gains:
        low, high = (torch.full_like(a, end) for end in GAIN_RANGE)
        a = pyro.sample("gains", LogUniform(low, high).to_event(1))
    if infer_noise:
        gamma = pyro.sample("noise_scale", dist.HalfNormal(spread))
    return LatentMixing(a, gamma, infer_gains, infer_noise)
