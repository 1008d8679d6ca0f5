"""Stems as audio files.

A stem is a contribution a_k s_k, the part of the mixture that its source is, and not the source s_k
itself, which is in the trace. It has the recording's rate and channels, see
:mod:`pyro_sep.audio.wiener`. Stems and residual add up to the recording: to rounding as 32-bit
floats, more than 120 dB below it, and in a FLAC, where each is rounded to 24 bits, to that.

A stem that is nearly silent for a second or more, see :func:`heard_windows`, is written as silence
there: what the posterior leaves is the uncertainty of the others. The residual then holds it. It is
judged as it would be written: a stem may live above the band of its prior alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_sep.audio.io import check_peak, encoded, save_audio
from pyro_sep.audio.wiener import wiener_upmix
from pyro_sep.data.tracks import ALTERNATIVES, DRAWS, RESIDUAL, Audio
from pyro_sep.separation.api import Separation
from pyro_sep.separation.inputs import SILENT_DB
from pyro_sep.trace.channels import SIDE, left_and_right
from pyro_sep.trace.dataset import CHANNEL_TIME, in_channels, level_db, treble_of
from pyro_sep.trace.draws import ALTERNATIVES as MOST
from pyro_sep.trace.draws import alternative_modes, estimate_draws, mode_draws, select_draws

BELOW_DB = -30.0  # of the mixture, where that is quiet
WINDOW = 1.0  # seconds that are silent or not
FADE = 0.01  # seconds, within what is silent


@dataclass(frozen=True)
class StemFiles:
    """Which files to write.

    Attributes:
        suffix: ``"wav"`` or ``"flac"``.
        native: the plain posterior, of the channels and at the rate of the priors, whatever the
            recording.
        residual: also the recording less its stems, which no prior explains.
        draws: number of draws that are written beside the mean, evenly spaced over those that the
            estimate is of, at most those of one chain. Their errors are larger than the mean's.

    >>> StemFiles(suffix="flac", residual=True).names(["bass"])[:2]
    ['bass.flac', 'residual.flac']
    """

    suffix: str = "wav"
    native: bool = False
    residual: bool = False
    draws: int = 0

    def names(self, sources: Iterable[str]) -> list[str]:
        """Of the files that there may be of these sources, with their folders."""
        sources = list(sources)
        stems = [*sources, RESIDUAL] if self.residual else sources
        inside = [
            inside_name(folder, name, i)
            for folder, most in ((ALTERNATIVES, MOST), (DRAWS, self.draws))
            for i in range(1, most + 1)
            for name in sources
        ]
        return [f"{name}.{self.suffix}" for name in (*stems, *inside)]

    def check(self, recording: Audio) -> None:
        """Raise ValueError where a recording, and so its stems, do not fit into such files."""
        samples, rate = recording
        encoded(samples[:, :1].clamp(-1, 1), rate, self.suffix)
        peak = float(samples.abs().max())
        if self.suffix == "flac" and peak > 1:
            raise ValueError(
                f"format: got a recording with a peak of {peak:.3g} for FLAC, which ends at full "
                "scale, 1, expected wav; use --format wav"
            )


class Written(NamedTuple):
    """What was written of a separation.

    Attributes:
        names: of the files, with their folders.
        rate: of the stems, in Hz.
        silent: for how many seconds each stem is silence, of those that are somewhere.
    """

    names: list[str]
    rate: int
    silent: dict[str, float]


def write_stems(
    result: Separation, folder: Path, files: StemFiles, recording: Audio | None = None
) -> Written:
    """Write NAME.wav per source, residual.wav and draws/NAME_01.wav, each whole or not at all.

    Where the posterior has another explanation of some probability, its stems too:
    alternatives/NAME_01.wav, see :func:`pyro_sep.trace.draws.alternative_modes`.

    Args:
        result: whose stems.
        folder: that is there.
        files: which.
        recording: whose rate and channels they are to have; those of the mixture where None.

    Raises:
        ValueError: a FLAC beyond full scale, or a recording of other channels than were separated;
            then nothing is written.
        OSError: the folder cannot be written to.
    """
    observed = in_channels(result.trace["observed_data"].to_dataset(), "mixture")
    mixture = torch.from_numpy(observed.values)
    recording = None if files.native else recording
    separated = mixture.shape[-2]
    if recording is not None and separated > 1 and len(recording[0]) != separated:
        raise ValueError(
            f"recording: got {len(recording[0])} channels, expected the {separated} that were "
            "separated; give the same recording"
        )
    original, rate = recording or (mixture, result.sample_rate)
    treble = treble_of(result.trace)

    def as_recorded(contributions: Tensor) -> Tensor:
        if recording is None:
            return contributions
        mono = contributions.shape[1] == 1
        pair = (contributions[:, 0], mixture[0]) if mono else (contributions, mixture)
        return wiener_upmix(*pair, result.sample_rate, *recording, treble)

    stems = as_recorded(torch.stack(left_and_right(result.contributions, result.side), 1).cpu())
    heard = heard_windows(stems, original, rate)
    if not heard.all():
        stems = stems * _gates(heard, stems.shape[-1], rate)[:, None]
    audio = partial(_named, result, files, stems, original, as_recorded)
    if files.suffix == "flac":  # all are checked before the first is written
        for name, samples in audio():
            check_peak(folder / name, samples)
    written = []
    for name, samples in audio():
        (folder / name).parent.mkdir(exist_ok=True)
        save_audio(folder / name, samples, rate)
        written.append(name)
    lengths = np.diff(_edges(stems.shape[-1], rate)) / rate
    silent = zip(result.names, (~heard @ lengths).tolist(), strict=True)
    return Written(written, rate, {name: round(value, 3) for name, value in silent if value})


def heard_windows(stems: Tensor, original: Tensor, rate: int) -> NDArray[np.bool_]:
    """Whether each stem is heard in each second ``(source, window)``; the last one may be longer.

    It is where its mean power is above -50 dB of full scale, or within 30 dB of the recording's, of
    all channels together.

    Args:
        stems: ``(source, channel, time)``.
        original: the recording ``(channel, time)``.
        rate: of both, in Hz.
    """
    bound = np.minimum(SILENT_DB, _levels(original.cpu().numpy(), rate) + BELOW_DB)
    return ~(_levels(stems.numpy(), rate) < bound)


def _edges(time: int, rate: int) -> NDArray[np.integer]:
    """First audio sample of each window, and the end."""
    width = round(WINDOW * rate)
    return np.append(np.arange(max(1, time // width)) * width, time)


def _levels(samples: NDArray[np.floating], rate: int) -> NDArray[np.floating]:
    """Levels in dB of all windows of audio ``(..., channel, time)``, ``(..., window)``."""
    edges = _edges(samples.shape[-1], rate)
    return np.stack([level_db(samples[..., a:b], CHANNEL_TIME) for a, b in pairwise(edges)], -1)


def _gates(heard: NDArray[np.bool_], time: int, rate: int) -> Tensor:
    """1 where each stem is heard, 0 where it is silent ``(source, time)``, with fades between."""
    inner, seconds = _edges(time, rate)[1:-1] / rate, np.arange(time) / rate
    gates = np.ones((len(heard), time), np.float32)
    for gate, row in zip(gates, heard, strict=True):
        before, after = row[:-1], row[1:]
        starts = inner - np.where(after & ~before, FADE, 0)  # of what is heard: it is whole
        knots = np.stack([starts, starts + FADE], 1).ravel()
        if len(knots):
            gate[:] = np.interp(seconds, knots, np.stack([before, after], 1).ravel())
        else:
            gate[:] = row[0]
    return torch.from_numpy(gates)


def inside_name(folder: str, source: str, number: int) -> str:
    """Of a draw or an alternative of a source, counted from 1, without suffix."""
    return f"{folder}/{source}_{number:02d}"


def _named(
    result: Separation,
    files: StemFiles,
    stems: Tensor,
    original: Tensor,
    as_recorded: Callable[[Tensor], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Names of files and what goes into each, ``(channel, time)``."""
    for name, stem in zip(result.names, stems, strict=True):
        yield f"{name}.{files.suffix}", stem
    if files.residual:
        yield f"{RESIDUAL}.{files.suffix}", original - stems.sum(0)
    drawn = drawn_contributions(result.trace, files.draws)
    others = (mode_contributions(result.trace, m) for m in alternative_modes(result.trace))
    for inside, versions in ((ALTERNATIVES, others), (DRAWS, drawn)):
        for i, contributions in enumerate(versions, start=1):
            for name, stem in zip(result.names, as_recorded(contributions), strict=True):
                yield f"{inside_name(inside, name, i)}.{files.suffix}", stem


def mode_contributions(trace: xr.DataTree, mode: int) -> Tensor:
    """Mean contributions ``(source, channel, time)`` of the draws of a mode."""
    return _contributions(trace, mode_draws(trace, mode)).mean(0)


def drawn_contributions(trace: xr.DataTree, count: int) -> Iterator[Tensor]:
    """Contributions ``(source, channel, time)`` of draws that the estimate is of, evenly spaced."""
    draws = estimate_draws(trace)
    for number in np.unique(np.linspace(0, len(draws) - 1, count).round().astype(int)):
        yield _contributions(trace, draws[[number]])[0]


def _contributions(trace: xr.DataTree, draws: NDArray[np.integer]) -> Tensor:
    """Contributions ``(draw, source, channel, time)`` of these draws."""
    drawn = select_draws(trace["posterior"].to_dataset(), draws)
    known = trace["constant_data"].to_dataset()
    gains = (drawn if "gains" in drawn else known)["gains"]
    axes = ("draw", "source", "time")
    heard = {
        name: (gains * drawn[name]).transpose(*axes) for name in ("sources", SIDE) if name in drawn
    }
    return torch.from_numpy(in_channels(xr.Dataset(heard), "sources").values)
