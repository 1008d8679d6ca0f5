r"""Priors over the audio of one source, as Pyro distributions.

A prior is conditioned on a noise level: ``prior.condition(sigma)`` is the law of
:math:`x = s + \sigma n`, with s a clean source and n standard normal noise. Its ``log_prob`` is a
log density over the whole event, summed over time, in nats.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, Self, get_args

import torch
from torch import Tensor

from pyro_sep.checks.arguments import choice, shown

MixingRule = Literal["sum", "mean"]  # a mixture is the sum of its sources, or their mean
Estimate = Literal["mode", "mean"]  # the mean of the most probable mode, or of all draws

#: What a prior states of its set where it has no attribute of this name: that of recordings.
UNSTATED = {"mixing": "sum", "estimate": "mean"}
CHOICES = {"mixing": get_args(MixingRule), "estimate": get_args(Estimate)}


class Prior(Protocol):
    """What a separation needs of a prior. Every family of priors has it.

    A prior may also have the attributes ``mixing`` and ``estimate`` (see :func:`stated`),
    ``is_exact`` (true where nothing of it is learned), ``gain_error`` (see :func:`gain_error`),
    ``treble`` (see :mod:`pyro_sep.audio.treble`) and the method ``misfit``.

    >>> from pyro_sep.priors.waveform import WaveformPrior
    >>> prior: Prior = WaveformPrior.of("sine")
    >>> prior.frame(256).condition(0.1).log_prob(torch.zeros(256)).isfinite()
    tensor(True)
    """

    name: str
    sample_rate: int

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the prior knows."""

    @property
    def rms(self) -> float:
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
ASKED = (*Prior.__annotations__, *(name for name in vars(Prior) if not name.startswith("_")))


def within(level: Any, bounds: tuple[float, float]) -> Any:
    """Whether a noise level, a number or a tensor, is within those that are known, to rounding."""
    low, high = bounds
    return (level >= low * 0.9999) & (level <= high * 1.0001)


def known_sigmas(priors: Priors) -> tuple[float, float]:
    """Lowest and highest noise level that all priors know."""
    low, high = zip(*(prior.sigmas for prior in priors.values()), strict=True)
    return max(low), min(high)


def check_level(sigma: Any, bounds: tuple[float, float], name: str) -> None:
    """Raise ValueError unless a noise level, or all of a batch, is one that a prior knows."""
    try:
        levels = torch.as_tensor(sigma, device=getattr(sigma, "device", "cpu"))
        known = not isinstance(sigma, bool) and bool(within(levels, bounds).all())
    except (TypeError, ValueError, RuntimeError):
        known = False
    if not known:
        low, high = bounds
        got = sigma.tolist() if isinstance(sigma, Tensor) and not sigma.is_meta else sigma
        raise ValueError(
            f"sigma: got {shown(got)}, expected {low:g} to {high:g}, the noise levels that the "
            f"prior of {name!r} knows; use prior.condition({low:g}), or another level of these"
        )


def check_priors(priors: Any) -> None:
    """Raise ValueError unless these are priors by source name, of one device and sample rate."""
    expected = 'priors by source name, as load_priors("toy") gives them'
    if isinstance(priors, str):
        raise ValueError(f"priors: got {shown(priors)}, expected {expected}; load them first")
    if not isinstance(priors, Mapping) or not priors:
        got = "none" if isinstance(priors, Mapping) else f"a {type(priors).__name__}"
        raise ValueError(f"priors: got {got}, expected {expected}")
    for name, prior in priors.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"priors: got the name {shown(name)}, expected {expected}")
        if isinstance(prior, type):
            raise ValueError(f"priors: got a class for {name!r}, expected {expected}")
        if not all(hasattr(prior, part) for part in ASKED):
            got = type(prior).__name__
            raise ValueError(f"priors: got a {got} for {name!r}, expected {expected}")
    if len(devices := {str(device) for device in map(_device, priors.values()) if device}) > 1:
        raise ValueError(
            f"priors: got some on {', '.join(sorted(devices))}, expected one device; move them "
            "with prior.to(device)"
        )
    if len(rates := {prior.sample_rate for prior in priors.values()}) > 1:
        raise ValueError(f"priors: got sample rates {sorted(rates)} in Hz, expected one")


def stated(priors: Priors, what: Literal["mixing", "estimate"], remedy: str) -> str:
    """The ``mixing`` or ``estimate`` that a set of priors states, the same for all of its priors.

    Args:
        priors: by source name.
        what: ``"mixing"``, whether a mixture is the ``"sum"`` of its sources or their ``"mean"``;
            or ``"estimate"``, ``"mode"`` or ``"mean"``, see :func:`pyro_sep.separate`.
        remedy: what to do where the priors disagree.

    Raises:
        ValueError: priors that disagree, such as those of two sets.
    """
    values = {
        name: choice(what, getattr(prior, what, UNSTATED[what]), CHOICES[what])
        for name, prior in priors.items()
    }
    if len({*values.values()}) > 1:
        listed = ", ".join(f"{value!r} for {name}" for name, value in values.items())
        raise ValueError(f"priors: got {what} {listed}, expected one of all; {remedy}")
    return next(iter(values.values()))


def device_of(priors: Priors) -> torch.device | None:
    """Where the networks of priors are; None where they compute wherever their audio is."""
    return next(filter(None, map(_device, priors.values())), None)


def sample_rate_of(priors: Priors) -> int:
    """The one sample rate of the audio of priors, in Hz."""
    return next(iter(priors.values())).sample_rate


def _device(prior: Prior) -> torch.device | None:
    sigma = getattr(prior, "sigma", None)
    return sigma.device if isinstance(sigma, Tensor) else None


def misfit(prior: Prior, value: Tensor) -> Tensor:
    """The prior's own ``misfit`` of noisy audio, ``log_prob``'s shape; NaN where it has none."""
    own: Callable[[Tensor], Tensor] | None = getattr(prior, "misfit", None)
    return torch.full_like(value[..., 0], math.nan) if own is None else own(value)


def gain_error(prior: Prior) -> float:
    """Std of the relative errors that a prior makes in the amplitude of its source; 0 if unstated.

    Draws of clean sources are corrected for them, see :mod:`pyro_sep.inference.gain_errors`.
    """
    error: float = getattr(prior, "gain_error", 0.0)
    return error


def treble(priors: Priors) -> dict[str, tuple[float, ...]]:
    """What priors say of their sources above the band, by name; nothing if unstated.

    See :mod:`pyro_sep.audio.treble`.
    """
    return {name: getattr(prior, "treble", ()) for name, prior in priors.items()}
