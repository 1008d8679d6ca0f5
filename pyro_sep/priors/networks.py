r"""Priors whose densities a trained network computes: WaveNets and flows."""

import copy
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Self, get_args

import torch
from pyro.distributions import Normal, TorchDistribution, TransformedDistribution, constraints
from torch import Size, Tensor
from torch.distributions.transforms import Transform

from pyro_sep.audio.treble import HALVES
from pyro_sep.checks.arguments import choice, numbers, shown, whole
from pyro_sep.models.arithmetic import plain_arithmetic
from pyro_sep.models.flowavenet import FloWaveNet
from pyro_sep.models.registry import Network
from pyro_sep.models.waveform import Waveform
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.priors.base import Estimate, MixingRule, check_level

DEFAULT_TIME = 16_000  # audio samples of an event: a second
GAIN_ERROR = 0.03  # of WaveNets of tones, whose denoisers err by 1 to 2 % of the amplitude at the
#                    level of the draws, and chains by twice as much (docs/results/calibration)
MAX_TIME = 2**31 - 1  # audio samples of an event: more than twelve hours of them at 48 kHz


class NetworkPrior(TorchDistribution):
    """A prior whose density a network computes: the base of the families.

    ``event_shape`` is ``(time,)``, ``batch_shape`` that of ``sigma``. The network's weights take no
    gradient; ``log_prob`` has one with respect to its value.

    Args:
        network: a trained network.
        name: of the source.
        sample_rate: of the audio, in Hz.
        time: audio samples per event; where None, 16,000 or a few more that the network can take.
        sigma: noise level, scalar or a batch; the lowest known one where None.
        mixing: whether a mixture of such sources is their ``"sum"`` or their ``"mean"``.
        estimate: which estimate suits their mixtures, ``"mode"`` or ``"mean"``; see
            :func:`pyro_sep.separate`.
        treble: what the source has above the band, see :mod:`pyro_sep.audio.treble`; none where it
            is not known.

    Raises:
        ValueError: sigma that is no number or outside the range that the network was trained for,
            no time, or a time that the network cannot take; a bad name, rate, mixing or estimate.

    >>> from pyro_sep.priors import load_priors
    >>> prior = load_priors("toy/wavenet")["sine"]
    >>> isinstance(prior, NetworkPrior), prior.sample_rate, prior.mixing
    (True, 16000, 'mean')
    """

    is_exact = False
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
        mixing: MixingRule = "sum",
        estimate: Estimate = "mean",
        treble: Sequence[float] = (),
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: got {shown(name)}, expected the name of the source")
        self.name = name
        self.mixing = choice("mixing", mixing, get_args(MixingRule))
        self.estimate = choice("estimate", estimate, get_args(Estimate))
        expected = f"at most {HALVES} numbers of 0 or more, one for a half octave above the band"
        self.treble = numbers("treble", treble, expected)
        if len(self.treble) > HALVES or any(value < 0 for value in self.treble):
            raise ValueError(f"treble: got {shown(treble)}, expected {expected}")
        self.sample_rate = whole("sample_rate", sample_rate, "a rate in Hz, at least 1", 1)
        with torch.inference_mode(False):  # what is made in it never takes part in a gradient
            self.network = _usable(network).requires_grad_(False).eval()
            self.sigma = self._level(self.sigmas[0] if sigma is None else sigma)
            self._build(self._time(time), validate_args)

    def _level(self, sigma: Any) -> Tensor:
        """A noise level as a tensor of the network's type and device."""
        check_level(sigma, self.sigmas, self.name)
        reference = next(self.network.parameters())
        level = torch.as_tensor(sigma, dtype=reference.dtype, device=reference.device)
        return level.clone() if level.is_inference() else level

    def _time(self, time: Any) -> int:
        """Audio samples of an event."""
        multiple = self.multiple
        if time is None:
            return -(-DEFAULT_TIME // multiple) * multiple
        expected = f"a positive multiple of {multiple} for the prior of {self.name!r}; pad or crop"
        taken = whole("time", time, expected, -MAX_TIME, MAX_TIME)
        if taken < 1 or taken % multiple:
            raise ValueError(f"time: got {taken} audio samples, expected {expected}")
        return taken

    def _build(self, time: int, validate_args: bool | None) -> None:
        TorchDistribution.__init__(self, self.sigma.shape, Size((time,)), validate_args)

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the network was trained for."""
        return self.network.config.sigma_min, self.network.config.sigma_max

    @property
    def rms(self) -> float:
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

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The prior, whose network is moved in place, like ``torch.nn.Module.to``."""
        for place in (device, dtype):
            if place is not None:
                self.network.to(place)
        return self._with()

    def in_segments(self, seconds: float) -> Self:
        """The prior, whose network evaluates long audio in segments from now on, in place.

        Memory grows with the length of a segment, or of the network's receptive field where that
        is longer. Values and gradients are the same up to rounding; see
        :mod:`pyro_sep.models.windows`.

        Args:
            seconds: length of a segment.

        Raises:
            ValueError: less than an audio sample, or no finite number; an exact prior, whose
                density is no sum over time.
        """
        if not 1 <= seconds * self.sample_rate < math.inf:
            raise ValueError(
                f"segment: got {seconds:g} s, expected at least 1 / {self.sample_rate} s, an audio "
                "sample"
            )
        self.network.window = round(seconds * self.sample_rate)
        return self._with()

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same law over a larger batch."""
        return self._with(sigma=self.sigma.expand(Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time: ``value.shape[:-1]`` broadcast with the batch.

        It is computed in the network's type of floats, float32 unless it was moved to another,
        whatever that of the audio, and under ``torch.autocast`` too.

        Raises:
            ValueError: audio that is no floats, of another length than ``event_shape``, or on
                another device than the network.
        """
        rows, sigma, shape = _rows(value, self.sigma)
        if self._validate_args:
            if (time := rows.shape[-1]) != self.event_shape[0]:
                raise ValueError(
                    f"value: got {time} audio samples, expected {self.event_shape[0]}, those of "
                    f"the prior of {self.name!r}; use prior.frame({time})"
                )
            self._validate_sample(value)
        with plain_arithmetic():
            return self.network.log_prob(rows, sigma).reshape(shape)

    @torch.no_grad()
    def misfit(self, value: Tensor) -> Tensor:
        r"""How implausible noisy audio is under the prior, ``log_prob``'s shape; 1 for its draws.

        .. math:: \frac{1}{T} \sum_t z_t^2

        the mean square of what is standard normal, independently, under the prior: a WaveNet's
        normal scores of each sample given those before it, a flow's latent. Of a draw it has the
        std sqrt(2 / T); above 1, audio is further from its prediction than the prior expects.
        Unlike ``log_prob`` it does not depend on how predictable a source is, so it does not
        compare priors: a prior that expects anything finds everything plausible. NaN of an exact
        prior, which does not predict sample by sample.
        """
        rows, sigma, shape = _rows(value, self.sigma)
        with plain_arithmetic():
            return self.network.squared_scores(rows, sigma).reshape(shape) / value.shape[-1]

    def _with(self, **changes: Any) -> Self:
        kept: dict[str, Any] = {
            "time": self.event_shape[0],
            "sigma": self.sigma,
            "mixing": self.mixing,
            "estimate": self.estimate,
            "treble": self.treble,
            "validate_args": self._validate_args,
        }
        return type(self)(
            self.network, name=self.name, sample_rate=self.sample_rate, **(kept | changes)
        )


class SamplingPrior(NetworkPrior):
    """A prior whose network draws audio, without a gradient."""

    network: WaveNet | Waveform
    has_rsample = False

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noisy audio ``sample_shape + batch + (time,)``."""
        shape = self._extended_shape(Size(sample_shape))
        sigma = self.sigma.expand(shape[:-1]).reshape(-1)
        with plain_arithmetic():
            return self.network.sample(shape[-1], sigma).reshape(shape)


class WaveNetPrior(SamplingPrior):
    r"""Autoregressive prior: each audio sample given the past, a mixture of Gaussians.

    A :class:`~pyro_sep.models.wavenet.WaveNet` reads the past x with its noise, and predicts the
    clean audio sample; the variance of the noise is added to the prediction:

    .. math:: \log p_\sigma(x) = \sum_t \log \sum_c \pi_c(x_{<t}, \sigma) \,
              \mathcal{N}(x_t; \mu_c(x_{<t}, \sigma), s_c^2(x_{<t}, \sigma) + \sigma^2)

    Arguments, shapes and errors are those of :class:`NetworkPrior`. Jayaram & Thickstun 2021 (arXiv
    2105.08164).

    >>> from pyro_sep.models.wavenet import WaveNetConfig
    >>> network = WaveNet(WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=2))
    >>> prior = WaveNetPrior(network, name="flute", sample_rate=8_000).frame(64).condition(0.1)
    >>> prior.log_prob(prior.sample((3,))).shape
    torch.Size([3])
    """

    network: WaveNet

    @property
    def gain_error(self) -> float:
        """Std of the relative errors in the amplitude of the source, which clean draws correct.

        See :mod:`pyro_sep.inference.gain_errors`. It is 0 where frames hold many decisions
        (``estimate="mean"``): there other errors are far larger.
        """
        return GAIN_ERROR if self.estimate == "mode" else 0.0


class FloWaveNetPrior(NetworkPrior, TransformedDistribution):
    r"""Normalizing-flow prior, a :class:`~pyro_sep.models.flowavenet.FloWaveNet`.

    .. math:: x = f_\sigma^{-1}(z), \qquad z \sim \mathcal{N}(0, I), \qquad
              \log p_\sigma(x) = \log \mathcal{N}(f_\sigma(x); 0, I)
              + \log |\det \partial f_\sigma / \partial x|

    A :class:`pyro.distributions.TransformedDistribution`: ``rsample`` is differentiable, and
    :class:`pyro.infer.reparam.TransformReparam` moves a sampler to z, where the prior is white.
    Arguments, shapes and errors are those of :class:`NetworkPrior`. Kim et al. 2019 (arXiv
    1811.02155).

    >>> from pyro_sep.models.flowavenet import FloWaveNetConfig
    >>> network = FloWaveNet(FloWaveNetConfig(squeeze=16, flows=1, layers=1, width=8, head_width=8))
    >>> prior = FloWaveNetPrior(network, name="flute", sample_rate=8_000).frame(64).condition(0.1)
    >>> prior.log_prob(prior.rsample((3,))).shape
    torch.Size([3])
    """

    network: FloWaveNet
    has_rsample = True

    def _build(self, time: int, validate_args: bool | None) -> None:
        zero, one = (self.sigma.new_tensor(x).expand(*self.sigma.shape, time) for x in (0.0, 1.0))
        base = Normal(zero, one, validate_args=False).to_event(1)  # they would be laid out
        flow = FlowTransform(self.network, self.sigma)
        TransformedDistribution.__init__(self, base, [flow], validate_args)


class FlowTransform(Transform):
    """The torch transform from a flow's latent to audio at noise levels ``sigma``.

    It has no cache, which would return an old density for audio that was changed in place.
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
        with plain_arithmetic():
            outputs, log_det = function(rows, sigma)
        return outputs.reshape(*shape, -1), log_det.reshape(shape)


def _rows(value: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Size]:
    """Frames ``(row, time)`` and noise levels ``(row,)``, broadcast, and the shape of the rows.

    Frames are cast to the type of the noise levels, which is the network's.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else shown(value)
        raise ValueError(
            f"value: got {got}, expected a tensor of floats, full scale 1; make it one with "
            "torch.as_tensor, and divide integers by their full scale"
        )
    if value.device != sigma.device or value.layout != torch.strided:
        raise ValueError(
            f"value: got a tensor on {value.device} ({value.layout}), expected a dense one on "
            f"{sigma.device}, where the prior is; use value.to({str(sigma.device)!r}), or "
            f"prior.to({str(value.device)!r})"
        )
    if value.ndim < 1:
        raise ValueError("value: got a single number, expected audio (..., time)")
    shape = torch.broadcast_shapes(value.shape[:-1], sigma.shape)
    rows = value.to(sigma.dtype).expand(*shape, value.shape[-1]).reshape(-1, value.shape[-1])
    return rows, sigma.expand(shape).reshape(-1), shape


def _usable(network: Network | Waveform) -> Network | Waveform:
    """A network that gradients can pass: a copy where it was made under ``inference_mode``."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network) if any(map(Tensor.is_inference, tensors)) else network


#: Priors by the family of their network, :data:`pyro_sep.models.registry.FAMILIES`.
PRIORS: dict[str, type[NetworkPrior]] = {"wavenet": WaveNetPrior, "flow": FloWaveNetPrior}
