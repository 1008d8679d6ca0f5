r"""Priors over the audio of one source, as Pyro distributions.

A prior is conditioned on a noise level: ``prior.condition(sigma)`` is the law of
:math:`x = s + \sigma n`, with s a clean source and n standard normal noise. Its ``log_prob`` is a
log density over the whole event, summed over time, in nats.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from pyro.distributions import Normal, TorchDistribution, TransformedDistribution, constraints
from torch import Size, Tensor
from torch.distributions.transforms import Transform

from pyro_sep.data.toy import SAMPLE_RATE
from pyro_sep.models.family import Network
from pyro_sep.models.flowavenet import FloWaveNet
from pyro_sep.models.waveform import Waveform, WaveformConfig
from pyro_sep.models.wavenet import WaveNet

DEFAULT_TIME = 16_000  # audio samples of an event: a second


class Prior(Protocol):
    """What separation asks of a prior; every family of priors has it."""

    name: str
    sample_rate: int

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the prior knows."""

    @property
    def level(self) -> float:
        """RMS of the clean source, full scale 1."""

    @property
    def multiple(self) -> int:
        """A frame's audio samples are a multiple of this."""

    def condition(self, sigma: float | Tensor) -> Self:
        """The law of the source plus white noise of std sigma."""

    def frame(self, time: int) -> Self:
        """The law of a frame of ``time`` audio samples."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time."""


Priors = Mapping[str, Prior]


class NetworkPrior(TorchDistribution):
    """What the priors of this module share: a network computes their densities.

    ``event_shape`` is ``(time,)``, ``batch_shape`` that of ``sigma``. The network's weights take no
    gradient; ``log_prob`` has one with respect to its value.

    Args:
        network: a trained network.
        name: what the source is called.
        sample_rate: of the audio, in Hz.
        time: audio samples per event; where None, 16,000 or a few more that the network can take.
        sigma: noise level, scalar or a batch; the lowest known one where None.

    Raises:
        ValueError: sigma outside the range that the network was trained for, no time, or a time
            that the network cannot take.
    """

    arg_constraints = {"sigma": constraints.nonnegative}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        network: Network | Waveform,
        *,
        name: str,
        sample_rate: int,
        time: int | None = None,
        sigma: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.name = name
        self.sample_rate = sample_rate
        if time is None:
            time = -(-DEFAULT_TIME // self.multiple) * self.multiple
        if time < 1 or time % self.multiple:
            raise ValueError(
                f"time: got {time} audio samples, expected a positive multiple of {self.multiple} "
                f"for the prior of {name!r}; pad or crop"
            )
        reference = next(network.parameters())
        level = self.sigmas[0] if sigma is None else sigma
        self.sigma = torch.as_tensor(level, dtype=reference.dtype, device=reference.device)
        low, high = self.sigmas
        if not bool(((self.sigma >= low * 0.9999) & (self.sigma <= high * 1.0001)).all()):
            raise ValueError(
                f"sigma: got {self.sigma.tolist()}, expected {low:g} to {high:g}, "
                f"the noise levels that the prior of {name!r} was trained for"
            )
        self._build(time, validate_args)

    def _build(self, time: int, validate_args: bool | None) -> None:
        TorchDistribution.__init__(self, self.sigma.shape, Size((time,)), validate_args)

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the network was trained for."""
        return self.network.config.sigma_min, self.network.config.sigma_max

    @property
    def level(self) -> float:
        """RMS of the clean source, full scale 1."""
        return self.network.config.sigma_data

    @property
    def multiple(self) -> int:
        """A frame's audio samples are a multiple of this."""
        return self.network.config.multiple

    def condition(self, sigma: float | Tensor) -> Self:
        """The law of the source plus white noise of std ``sigma``."""
        return self._with(sigma=sigma)

    def frame(self, time: int) -> Self:
        """The law of a frame of ``time`` audio samples."""
        return self._with(time=time)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the network in place, like ``torch.nn.Module.to``; the prior on what it became."""
        self.network.to(*args, **kwargs)
        return self._with()

    def in_segments(self, seconds: float) -> Self:
        """Have the network evaluate long audio in parts, in place; the prior on what it became.

        Memory grows with their length, and with what a prediction sees where that is more. Values
        and gradients are the same up to rounding; see :mod:`pyro_sep.models.windows`.

        Args:
            seconds: of audio that is evaluated at once.

        Raises:
            ValueError: less than an audio sample, or no finite number; a true prior, whose density
                is no sum over time.
        """
        if isinstance(self.network, Waveform):
            raise ValueError(
                f"segment: got {seconds:g} s for the true prior of {self.name!r}, expected a "
                "trained one; the true one hears all of a frame at once, take a shorter excerpt"
            )
        if not 1 <= seconds * self.sample_rate < math.inf:
            raise ValueError(
                f"segment: got {seconds:g} s, expected at least 1 / {self.sample_rate} s, an audio "
                "sample"
            )
        self.network.window = round(seconds * self.sample_rate)
        return self._with()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law over a larger batch."""
        return self._with(sigma=self.sigma.expand(Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time: ``value.shape[:-1]`` broadcast with the batch."""
        if self._validate_args:
            self._validate_sample(value)
        rows, sigma, shape = _rows(value, self.sigma)
        return self.network.log_prob(rows, sigma).reshape(shape)

    @torch.no_grad()
    def misfit(self, value: Tensor) -> Tensor:
        r"""How much noisy audio surprises the prior, ``log_prob``'s shape: 1 if it is a draw of it.

        .. math:: \frac{1}{T} \sum_t z_t^2

        the mean square of what is standard normal, independently, under the prior: a WaveNet's
        normal scores of each sample given those before it, a flow's latent. Of a draw it has the
        std sqrt(2 / T); above 1 audio is further from what was predicted than the prior believes.
        It does not depend on how well a source can be predicted, as ``log_prob`` does, and so does
        not say which of two priors knows audio better: a prior that expects anything is never
        surprised. NaN of a true prior, which does not predict sample by sample.
        """
        rows, sigma, shape = _rows(value, self.sigma)
        if isinstance(self.network, Waveform):
            return torch.full(shape, math.nan, dtype=value.dtype, device=value.device)
        return self.network.squared_scores(rows, sigma).reshape(shape) / value.shape[-1]

    def _with(self, **changes: Any) -> Self:
        kept: dict[str, Any] = {
            "time": self.event_shape[0],
            "sigma": self.sigma,
            "validate_args": self._validate_args,
        }
        return type(self)(
            self.network, name=self.name, sample_rate=self.sample_rate, **(kept | changes)
        )


class SamplingPrior(NetworkPrior):
    """Those whose network draws audio, without a gradient."""

    network: WaveNet | Waveform
    has_rsample = False

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noisy audio ``sample_shape + batch + (time,)``."""
        shape = self._extended_shape(Size(sample_shape))
        sigma = self.sigma.expand(shape[:-1]).reshape(-1)
        return self.network.sample(shape[-1], sigma).reshape(shape)


class WaveNetPrior(SamplingPrior):
    r"""Smoothed autoregressive prior, a :class:`~pyro_sep.models.wavenet.WaveNet`.

    .. math:: \log p_\sigma(x) = \sum_t \log \sum_c \pi_c(x_{<t}, \sigma) \,
              \mathcal{N}(x_t; \mu_c(x_{<t}, \sigma), s_c^2(x_{<t}, \sigma) + \sigma^2)

    Arguments, shapes and errors are those of :class:`NetworkPrior`. Jayaram & Thickstun 2021 (arXiv
    2105.08164).
    """

    network: WaveNet


class FloWaveNetPrior(NetworkPrior, TransformedDistribution):
    r"""Normalizing-flow prior, a :class:`~pyro_sep.models.flowavenet.FloWaveNet`.

    .. math:: x = f_\sigma^{-1}(z), \qquad z \sim \mathcal{N}(0, I), \qquad
              \log p_\sigma(x) = \log \mathcal{N}(f_\sigma(x); 0, I)
              + \log |\det \partial f_\sigma / \partial x|

    A :class:`pyro.distributions.TransformedDistribution`: ``rsample`` is differentiable, and
    :class:`pyro.infer.reparam.TransformReparam` moves a sampler to z, where the prior is white.
    Arguments, shapes and errors are those of :class:`NetworkPrior`. Kim et al. 2019 (arXiv
    1811.02155).
    """

    network: FloWaveNet
    has_rsample = True

    def _build(self, time: int, validate_args: bool | None) -> None:
        zeros = self.sigma.new_zeros(*self.sigma.shape, time)
        base = Normal(zeros, torch.ones_like(zeros)).to_event(1)
        flow = FlowTransform(self.network, self.sigma)
        TransformedDistribution.__init__(self, base, [flow], validate_args)


class WaveformPrior(SamplingPrior):
    r"""The true prior of a toy waveform, a :class:`~pyro_sep.models.waveform.Waveform`.

    .. math:: p_\sigma(x) = \int \mathcal{N}(x; A \, w_{f, \phi}, \sigma^2 I) \;
              p(f) p(A) p(\phi) \, df \, dA \, d\phi

    An oracle: no learned prior can do better, so what separation still lacks under it is the
    sampler's. Arguments, shapes and errors are those of :class:`NetworkPrior`.
    """

    network: Waveform

    @classmethod
    def of(cls, name: str) -> Self:
        """The prior of a waveform of :data:`pyro_sep.data.toy.WAVEFORMS`."""
        return cls(Waveform(WaveformConfig(name)), name=name, sample_rate=SAMPLE_RATE)


class FlowTransform(Transform):
    """From a flow's latent to audio at noise levels ``sigma``, as a torch transform.

    It caches nothing: a cache would return the density of what its input once was.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: FloWaveNet, sigma: Tensor) -> None:
        super().__init__(cache_size=0)
        self.network, self.sigma = network, sigma

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlowTransform)
            and self.network is other.network
            and torch.equal(self.sigma, other.sigma)
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of d audio / d latent, at audio ``y``."""
        return -self._run(self.network, y)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self._run(self.network.inverse, x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._run(self.network, y)[0]

    def _run(self, function: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        rows, sigma, shape = _rows(value, self.sigma)
        outputs, log_det = function(rows, sigma)
        return outputs.reshape(*shape, -1), log_det.reshape(shape)


def misfit(prior: Prior, value: Tensor) -> Tensor:
    """Of a prior that has :meth:`NetworkPrior.misfit`; NaN of others."""
    own: Callable[[Tensor], Tensor] | None = getattr(prior, "misfit", None)
    return torch.full_like(value[..., 0], math.nan) if own is None else own(value)


def _rows(value: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Size]:
    """Frames ``(row, time)`` and noise levels ``(row,)``, broadcast, and the shape of the rows."""
    shape = torch.broadcast_shapes(value.shape[:-1], sigma.shape)
    rows = value.expand(*shape, value.shape[-1]).reshape(-1, value.shape[-1])
    return rows, sigma.expand(shape).reshape(-1), shape


#: Priors by the family of their network, :data:`pyro_sep.models.family.FAMILIES`.
PRIORS: dict[str, type[NetworkPrior]] = {"wavenet": WaveNetPrior, "flow": FloWaveNetPrior}
