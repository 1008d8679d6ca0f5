r"""Unknown gains and unknown noise of a mixture, and how well they can be known.

A gain is log-uniform on a range, alike for all sources; the noise's std is half-normal:

.. math:: p(a_k) \propto 1 / a_k, \quad a_k \in (a_{\min}, a_{\max}), \qquad
          p(\gamma) \propto e^{-\gamma^2 / 2 \gamma_0^2}, \quad \gamma \in (0, 1)

The mixture tells the contributions :math:`a_k s_k`. So a gain is known as well as the prior knows
the amplitude of its source: amplitudes uniform on 0.8 to 1 leave it open to 25 %.

At noise level sigma the mixture of noisy sources carries their noise, of variance :math:`\sigma^2
\sum_k a_k^2`. It counts as part of the mixture's:

.. math:: p_\sigma(m \mid x, a, \gamma) = \mathcal{N}\bigl(m; \textstyle\sum_k a_k x_k,
          (V_\sigma - \sigma^2 \sum_k a_k^2) I\bigr), \qquad
          V_\sigma = \max(\gamma^2, 2 \sigma^2 \textstyle\sum_k a_k^2)

The mean of this over the noise of x, given clean sources s, is :math:`\mathcal{N}(m; \sum_k a_k
s_k, V_\sigma I)`. So noise above the floor :math:`\sigma (2 \sum_k a_k^2)^{1/2}` is known as it
would be from clean sources; of noise below it all that can be said is that it is below, and there
it has its prior. Where it is below, small gains have less noise to account for: they come out low,
by 1 or 2 % with the toy priors at the default levels, more where a prior leaves amplitudes open.
Both go with sigma.
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

from pyro_sep.mixing.known import NOISE_SCALE, LinearMixing, Mixing, check_count
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
        """The range."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "LogUniform":
        """The same law over a larger batch."""
        low, high = (end.expand(Size(batch_shape)) for end in (self.low, self.high))
        return LogUniform(low, high)


@dataclass(frozen=True)
class LatentMixing(LinearMixing):
    """Gains and noise of every lane; one lane where tensors have no lanes.

    Attributes:
        gains: a_k, ``(*lane, source)``.
        noise_scale: gamma, ``(*lane,)``.
        infer_gains: whether the gains are unknown.
        infer_noise: whether the noise is.
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
        """Sum of the squared gains, ``(*lane, 1)``."""
        return self.gains.square().sum(-1, keepdim=True)

    def weights(self, like: Tensor) -> Tensor:
        """Gains as a column ``(*lane, source, 1)`` of a tensor's dtype and device."""
        return self.gains[..., None].to(like)

    def noise(self, like: Tensor) -> Tensor:
        """The noise's std, ``(*lane,)``, of a tensor's dtype and device."""
        return self.noise_scale.to(like)

    def scale_at(self, sigma: float) -> Tensor:
        """Std of the mixture given sources at noise level ``sigma``, ``(*lane, 1)``."""
        own = sigma**2 * self.gain_energy
        return (torch.maximum(self.noise_scale[..., None] ** 2, 2 * own) - own).sqrt()

    def log_prior(self) -> Tensor:
        """Log density of what is unknown, up to a constant, ``(*lane,)``."""
        total = torch.zeros_like(self.noise_scale)
        if self.infer_gains:
            low, high = GAIN_RANGE
            inside = ((self.gains >= low) & (self.gains <= high)).all(-1)
            total = torch.where(inside, -self.gains.log().sum(-1), -math.inf)
        if self.infer_noise:
            total = total - (self.noise_scale / NOISE_SPREAD) ** 2 / 2
        return total

    def select(self, lanes: Tensor) -> Self:
        """That of some lanes."""
        return replace(
            self,
            gains=self.gains[lanes],
            noise_scale=self.noise_scale[lanes],
        )

    def update(self, lanes: Tensor, other: Self) -> Self:
        """With those of another in some lanes."""
        return replace(
            self,
            gains=self.gains.index_copy(0, lanes, other.gains),
            noise_scale=self.noise_scale.index_copy(0, lanes, other.noise_scale),
        )

    def latents(self) -> dict[str, Tensor]:
        """What is unknown of gains and noise, by name, ``(*lane, ...)``."""
        gains = {"gains": self.gains} if self.infer_gains else {}
        return gains | ({"noise_scale": self.noise_scale} if self.infer_noise else {})

    def with_latents(self, unknown: Mapping[str, Tensor]) -> Self:
        """With these values of :meth:`unknown`."""
        kept: dict[str, Any] = dict(unknown)
        return replace(self, **kept)

    def fixed_weights(self, like: Tensor) -> Tensor:
        """Ones ``(source, 1)``: gains go along; or the gains, which lanes share where known."""
        if self.infer_gains:
            return torch.ones(self.count, 1, dtype=like.dtype, device=like.device)
        return self.weights(like)[0]

    def reassign(self, assignment: Tensor) -> Self:
        """After an exchange ``(lane, source)``."""
        if self.infer_gains:
            return replace(self, gains=self.gains.gather(-1, assignment))
        return self


def known_mixing(priors: Priors, gains: Gains | Infer | None, noise_scale: float | Infer) -> Mixing:
    """What is known of a mixing, and defaults for the rest: gains are 1/N where None.

    Raises:
        ValueError: numbers that do not fit, see :class:`~pyro_sep.mixing.Mixing`; other words than
            "infer".
    """
    check_priors(priors)
    for name, value in (("gains", gains), ("noise_scale", noise_scale)):
        if isinstance(value, str) and value != "infer":
            raise ValueError(f"{name}: got {value!r}, expected numbers or 'infer'")
    gamma = NOISE_SCALE if isinstance(noise_scale, str) else noise_scale
    if gains is None or isinstance(gains, str):
        return Mixing.mean(len(priors), gamma)
    mixing = Mixing(cast(tuple[float, ...], gains), gamma)
    check_count(priors, mixing)
    return mixing


def start_mixing(
    mixture: Tensor,
    priors: Priors,
    known: Mixing,
    infer_gains: bool,
    infer_noise: bool,
) -> LatentMixing:
    """Where lanes start: gains alike, of the mixture's power, and noise of its prior's width.

    Args:
        mixture: of the lanes, ``(lane, time)``.
        priors: of the sources.
        known: what is not inferred.
        infer_gains: whether gains are.
        infer_noise: whether the noise is.
    """
    gains = mixture.new_tensor(known.gains).repeat(len(mixture), 1)
    if infer_gains:
        alike = mixture.square().mean(-1) / sum(prior.rms**2 for prior in priors.values())
        gains = alike.sqrt().clamp(*GAIN_RANGE)[:, None].repeat(1, known.count)
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
