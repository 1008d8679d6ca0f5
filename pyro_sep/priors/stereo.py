r"""A prior of two channels of one source, made of the prior of its mono audio.

Where a source stands between the loudspeakers tells it apart from others. Two places are known:

- *centre*: both channels have the same audio, as of most basses, drums and singers:
  :math:`(s_l, s_r) = (s, s), \; s \sim p`.
- *wide*: each channel has audio of its own, as of guitars that were played twice, a take for each
  side: :math:`s_l, s_r \sim p`, independent.

At noise level sigma both channels have noise of their own. With the mean :math:`m = (x_l + x_r) /
2` and half the difference :math:`d = (x_l - x_r) / 2`, whose noises are independent and of std
:math:`\sigma / \sqrt 2`, the densities of T audio samples of two channels are

.. math::
    p_\sigma^{\mathrm{wide}}(x) = p_\sigma(x_l) \, p_\sigma(x_r), \qquad
    p_\sigma^{\mathrm{centre}}(x) = 2^{-T} \, p_{\sigma / \sqrt 2}(m)
    \, \mathcal{N}(d; 0, \tfrac{\sigma^2}{2} I)

so the noise of a source in the centre is averaged out, and what differs between the channels cannot
be its.

Audio of two channels is one frame, left and right interleaved, as audio files have it: 2 T audio
samples. Every sampler takes it like any other audio.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Size, Tensor

from pyro_sep.checks.arguments import choice, shown, whole
from pyro_sep.priors.base import (
    ASKED,
    UNSTATED,
    Prior,
    Priors,
    check_level,
    check_priors,
    gain_error,
    misfit,
)
from pyro_sep.trace.channels import CHANNELS, deinterleave, interleave, mean_and_half

Place = Literal["centre", "wide"]
PLACES: tuple[Place, ...] = ("centre", "wide")


class StereoPrior(TorchDistribution):
    """The prior of two channels of a source, plus white noise.

    ``event_shape`` is twice the wrapped prior's, ``batch_shape`` that of ``sigma``.

    Args:
        prior: of the source's mono audio, a Pyro distribution.
        place: ``"centre"`` or ``"wide"``.
        sigma: noise level, scalar or a batch; the lowest that is known where None.

    Raises:
        ValueError: no prior, or one of two channels; another place; a noise level that is not
            known.

    >>> from pyro_sep.priors.waveform import WaveformPrior
    >>> tone = 0.9 * (torch.arange(256) / 8).sin()
    >>> frames = interleave(torch.stack([tone.expand(2, -1), torch.stack([tone, -tone])]))
    >>> prior = StereoPrior(WaveformPrior.of("sine").frame(256), "centre", sigma=0.1)
    >>> same, opposite = prior.log_prob(frames)
    >>> bool(same > opposite)
    True
    """

    arg_constraints = {"sigma": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False
    channels = CHANNELS

    def __init__(self, prior: Prior, place: Place, sigma: float | Tensor | None = None) -> None:
        self.place = cast(Place, choice("place", place, PLACES))
        if isinstance(prior, StereoPrior) or not all(hasattr(prior, part) for part in ASKED):
            got = f"a {type(prior).__name__}"
            raise ValueError(f"prior: got {got}, expected the prior of a source's mono audio")
        self.mono = prior
        level = self.sigmas[0] if sigma is None else sigma
        check_level(level, self.sigmas, prior.name)
        level = level if isinstance(level, float | int) else torch.as_tensor(level)
        self.law = prior.condition(level / self._narrowing)
        own = torch.as_tensor(getattr(self.law, "sigma", level / self._narrowing))
        self.sigma = own * self._narrowing
        self.name, self.sample_rate = prior.name, prior.sample_rate
        self.gain_error = gain_error(prior)
        self.treble = getattr(prior, "treble", ())
        self.is_exact = getattr(prior, "is_exact", False)
        for what, default in UNSTATED.items():
            setattr(self, what, getattr(prior, what, default))
        time = cast(TorchDistribution, prior).event_shape[-1]
        super().__init__(self.sigma.shape, Size([CHANNELS * time]), validate_args=False)

    @property
    def _narrowing(self) -> float:
        """By how much less noise the wrapped prior has to do with."""
        return math.sqrt(CHANNELS) if self.place == "centre" else 1.0

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level of a channel that the prior knows."""
        low, high = self.mono.sigmas
        return low * self._narrowing, high * self._narrowing

    @property
    def rms(self) -> float:
        """RMS of a channel of the clean source, full scale 1."""
        return self.mono.rms

    @property
    def multiple(self) -> int:
        """A frame's audio samples, of both channels, are a multiple of this."""
        return CHANNELS * self.mono.multiple

    def condition(self, sigma: float | Tensor) -> "StereoPrior":
        """The law at noise level ``sigma``."""
        return StereoPrior(self.mono, self.place, sigma)

    def frame(self, time: int) -> "StereoPrior":
        """The law of a frame of ``time`` audio samples, half of them in each channel.

        Raises:
            ValueError: no multiple of :attr:`multiple`.
        """
        expected = f"a positive multiple of {self.multiple}, half of it in each channel"
        if (taken := whole("time", time, expected)) % self.multiple or not taken:
            raise ValueError(f"time: got {taken} audio samples, expected {expected}; pad or crop")
        return StereoPrior(self.mono.frame(time // CHANNELS), self.place, self.sigma)

    def to(self, device: torch.device | str) -> "StereoPrior":
        """The same prior on a device."""
        moved = self.mono.to(device) if hasattr(self.mono, "to") else self.mono
        return StereoPrior(moved, self.place, self.sigma.to(device))

    def in_segments(self, seconds: float) -> "StereoPrior":
        """See :meth:`pyro_sep.priors.NetworkPrior.in_segments`."""
        mono = cast(Any, self.mono).in_segments(seconds)
        return StereoPrior(mono, self.place, self.sigma)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "StereoPrior":
        """The same law over a larger batch."""
        return self.condition(self.sigma.expand(Size(batch_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noisy audio ``sample_shape + batch + (time,)``, left and right interleaved."""
        law = cast(TorchDistribution, self.law)
        one = law.sample(Size(sample_shape))
        if self.place == "wide":
            return interleave(torch.stack([one, law.sample(Size(sample_shape))], -2))
        half = self._half_std(one) * torch.randn_like(one)
        return interleave(torch.stack([one + half, one - half], -2))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time and channels, by the equations above.

        Raises:
            ValueError: no floats, or audio of another length than ``event_shape``.
        """
        left, right = self._channels(value)
        if self.place == "wide":
            return self.law.log_prob(self._takes(left, right)).sum(0)
        mean, half = mean_and_half(left, right)
        noise = Normal(0.0, self._half_std(half), validate_args=False).log_prob(half).sum(-1)
        return self.law.log_prob(mean) + noise - left.shape[-1] * math.log(2)

    def misfit(self, value: Tensor) -> Tensor:
        """How much noisy audio surprises the prior, the mean of both parts, ``log_prob``'s shape.

        See :meth:`pyro_sep.priors.NetworkPrior.misfit`.
        """
        left, right = self._channels(value)
        if self.place == "wide":
            return misfit(self.law, self._takes(left, right)).mean(0)
        mean, half = mean_and_half(left, right)
        return (misfit(self.law, mean) + (half / self._half_std(half)).square().mean(-1)) / 2

    def _channels(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right of a frame."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else shown(value)
            raise ValueError(f"value: got {got}, expected a tensor of floats, full scale 1")
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value: got shape {tuple(value.shape)}, expected (..., {self.event_shape[0]}), "
                f"left and right of {self.name!r} interleaved, as audio files have them"
            )
        left, right = deinterleave(value).unbind(-2)
        return left, right

    def _takes(self, *channels: Tensor) -> Tensor:
        """Both channels ``(2, ..., time)``, each with the batch of noise levels."""
        shape = torch.broadcast_shapes(channels[0].shape[:-1], self.batch_shape)
        return torch.stack([audio.expand(*shape, audio.shape[-1]) for audio in channels])

    def _half_std(self, like: Tensor) -> Tensor:
        """Std of half the difference of the channels of noise, a column."""
        return self.sigma.to(like)[..., None] / math.sqrt(CHANNELS)


def in_stereo(priors: Priors, wide: Iterable[str] = ()) -> dict[str, StereoPrior]:
    """Priors of two channels: those named are wide, the others in the centre.

    Args:
        priors: of the mono audio of sources, by name.
        wide: names of sources.

    Raises:
        ValueError: a name that no prior has; priors that know two channels already.

    >>> from pyro_sep.priors.io import load_priors
    >>> {name: prior.place for name, prior in in_stereo(load_priors("guitar"), ["guitar"]).items()}
    {'guitar': 'wide', 'rest': 'centre'}
    """
    check_priors(priors)
    if isinstance(wide, str) or not isinstance(wide, Iterable):
        raise ValueError(
            f"wide: got {shown(wide)}, expected a list of names of sources, as ['guitar']"
        )
    wide = tuple(wide)
    if unknown := [name for name in wide if name not in [*priors]]:
        raise ValueError(f"wide: got {unknown[0]!r}, expected some of {', '.join(priors)}")
    check_mono(priors)
    return {
        name: StereoPrior(prior, "wide" if name in wide else "centre")
        for name, prior in priors.items()
    }


def check_mono(priors: Priors) -> None:
    """Raise ValueError for priors of two channels."""
    if channels_of(priors) > 1:
        raise ValueError("priors: got some of two channels already, expected those of mono audio")


def channels_of(priors: Priors) -> int:
    """Channels of the audio that priors are of, alike for all: 2 for a :class:`StereoPrior`.

    Raises:
        ValueError: priors that differ in it.
    """
    found = {getattr(prior, "channels", 1) for prior in priors.values()}
    if len(found) > 1:
        raise ValueError("priors: got some of one channel and some of two, expected one of both")
    return int(next(iter(found)))
