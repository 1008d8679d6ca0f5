"""What a caller gives to a separation: checked, and converted to tensors."""

from hashlib import sha256
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_sep.checks.arguments import audio, shown
from pyro_sep.data.tracks import check_source_name
from pyro_sep.inference.annealing.settings import MIN_TIME
from pyro_sep.mixing.known import frame_time
from pyro_sep.models.arithmetic import CPU, plain_arithmetic
from pyro_sep.priors.base import Priors, check_priors, device_of
from pyro_sep.priors.stereo import channels_of
from pyro_sep.trace.channels import interleave
from pyro_sep.trace.dataset import FINGERPRINT, TREBLE, plain_attrs

SILENT = 1e-6  # a peak below it is silence
SILENT_DB = -50.0  # of full scale: stems below it are silence
MAX_PEAK = 100.0  # full scale 1; beyond it audio has another scale, such as that of integers
RESERVED = (  # attributes of a trace that say how it was made
    *("seed", "noise_scale", "constraint", "presence", "estimate", "settings", "gradients"),
    *("search_tries", "search_found", "modes_weighed", "places", TREBLE),
)
FINGERPRINT_TIME = 512  # audio samples
Audio = ArrayLike | Tensor
FilePath = str | PathLike[str]


def one_mixture(value: Audio, priors: Priors) -> Tensor:
    """A mixture ``(time,)`` in float32, on the device that it is on.

    It is ``(channel, time)`` where the priors are of two channels.

    Raises:
        ValueError: no audio, another shape, or a device that the priors are not on.
    """
    check_device("mixture", value, priors)
    mixture, channels = audio("mixture", value), channels_of(priors)
    if channels > 1 and (mixture.ndim != 2 or len(mixture) != channels):
        raise ValueError(_of_channels("mixture", mixture, f"({channels}, time)"))
    if mixture.ndim == 1 or channels > 1:
        return mixture
    remedy = "mix it down to mono, or use separate_batch for a mixture a row"
    if mixture.ndim == 2 and 1 in mixture.shape:
        part = "mixture[0]" if len(mixture) == 1 else "mixture[:, 0]"
        remedy = f"use separate({part}, priors), its one channel"
    raise ValueError(f"mixture: got shape {tuple(mixture.shape)}, expected (time,); {remedy}")


def interleaved(value: Tensor, priors: Priors) -> Tensor:
    """Frames ``(..., time)``: mono audio itself, or ``(..., channel, time)`` interleaved."""
    return value if channels_of(priors) == 1 else interleave(value)


def axes(first: str, priors: Priors) -> str:
    """The axes of audio for these priors, as messages name them."""
    return f"({first}, channel, time)" if channels_of(priors) > 1 else f"({first}, time)"


def _of_channels(name: str, value: Tensor, expected: str) -> str:
    return (
        f"{name}: got shape {tuple(value.shape)}, expected {expected}, as the priors are of two "
        "channels; give both, or take the priors without in_stereo"
    )


def check_device(name: str, value: Any, priors: Priors) -> None:
    """Raise ValueError for audio on another device than the priors; from the CPU it is moved."""
    device = device_of(priors)
    if isinstance(value, Tensor) and device is not None and value.device not in (CPU, device):
        raise ValueError(
            f"{name}: got a tensor on {value.device}, expected it on {device}, where the priors "
            f"are; use prior.to({str(value.device)!r}), or {name}.cpu()"
        )


def check_mixtures(mixtures: Tensor, channels: int = 1) -> None:
    """Raise ValueError unless mixtures can be separated.

    Args:
        mixtures: ``(mixture, time)``, or of two channels ``(mixture, channel, time)``.
        channels: that the priors are of.
    """
    shape = tuple(mixtures.shape)
    if channels > 1 and (mixtures.ndim != 3 or shape[1] != channels or not shape[0]):
        raise ValueError(_of_channels("mixtures", mixtures, f"(mixture, {channels}, time)"))
    if channels == 1 and (mixtures.ndim != 2 or not shape[0] or (shape[1] == 1 < shape[0])):
        column = mixtures.ndim == 2 and len(mixtures)
        part = "mixtures[:, 0]" if column else "mixture"
        raise ValueError(
            f"mixtures: got shape {shape}, expected (mixture, time), at least one; use "
            f"separate({part}, priors) for a single one"
        )
    if shape[-1] < MIN_TIME:
        raise ValueError(
            f"mixture: got {shape[-1]} audio samples, expected at least {MIN_TIME}; record a "
            "longer one"
        )
    check_finite("mixture", mixtures)
    peaks = mixtures.abs().flatten(1).amax(-1)
    if bool((peaks < SILENT).any()):
        raise ValueError("mixture: got silence, expected audio with sources in it")
    if bool((peaks > MAX_PEAK).any()):
        raise ValueError(
            f"mixture: got a peak of {float(peaks.max()):g}, expected audio of full scale 1; "
            "divide 16-bit samples by 32768"
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError for audio that is not finite."""
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name}: got NaN or infinity, expected finite audio; export it again")


def checked_sources(name: str, value: Audio, shape: tuple[int, ...], axes: str) -> Tensor:
    """Audio of sources as a tensor on the CPU.

    Raises:
        ValueError: no audio, or another shape than that, whose axes have these names.
    """
    sources = audio(name, value, CPU)
    if tuple(sources.shape) != shape:
        raise ValueError(
            f"{name}: got shape {tuple(sources.shape)}, expected {shape}, that is {axes}"
        )
    return sources


def checked_attrs(attrs: Any) -> dict[str, Any]:
    """Attributes for the traces, of plain types.

    Raises:
        ValueError: a name that the trace itself has, or a value that cannot be stored.
    """
    plain = plain_attrs({} if attrs is None else attrs)
    if taken := [name for name in plain if name in RESERVED or name.startswith(FINGERPRINT)]:
        raise ValueError(
            f"attrs: got {taken[0]!r}, which the trace says of its run itself, expected other "
            "names; rename it"
        )
    return plain


def checked_path(name: str, value: Any) -> Path:
    """A path of that argument.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str | PathLike) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}: got {shown(value)}, expected a path; say where it is to be")
    return Path(value)


def checked_stores(values: Any, count: int) -> list[Path]:
    """Paths of the stores of so many mixtures.

    Raises:
        ValueError: another number of paths, or two that are one, or one within another.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"store: got {shown(values)}, expected a list of paths, one a mixture")
    paths = [checked_path("store", path) for path in values]
    if len(paths) != count:
        raise ValueError(f"store: got {len(paths)} paths, expected {count}, one a mixture")
    places = [path.resolve() for path in paths]
    if len({*places}) < len(places) or any({*place.parents} & {*places} for place in places):
        raise ValueError(
            "store: got a path twice, expected one a mixture, none within another; give another"
        )
    return paths


def check_separable(priors: Priors) -> None:
    """Raise ValueError unless priors can separate: their names are of files, their type float32."""
    check_priors(priors)
    for name, prior in priors.items():
        check_source_name(name)
        network = getattr(getattr(prior, "mono", prior), "network", None)
        dtype = torch.float32 if network is None else next(network.parameters()).dtype
        if dtype != torch.float32:
            raise ValueError(
                f"priors: got weights of {dtype} for {name!r}, expected torch.float32; move them "
                "with prior.to(torch.float32)"
            )


def digest(values: Tensor) -> str:
    """What identifies audio: a hash of its bytes, and its shape."""
    return f"{sha256(values.cpu().numpy().tobytes()).hexdigest()[:12]} {tuple(values.shape)}"


@plain_arithmetic()
def fingerprints(priors: Priors, mixtures: Tensor) -> dict[str, float]:
    """Log density of fixed noise under each prior, by which its priors are known again.

    The noise has one length, whatever that of the mixtures.
    """
    time = frame_time(priors.values(), FINGERPRINT_TIME)
    noise = torch.randn(1, time, generator=torch.Generator().manual_seed(0)).to(mixtures)
    return {
        f"{FINGERPRINT}{name}": float(
            prior.frame(time).condition(prod(prior.sigmas) ** 0.5).log_prob(prior.rms * noise)
        )
        for name, prior in priors.items()
    }
