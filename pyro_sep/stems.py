"""Stems as audio files.

A stem is a share: a_k s_k, what its source adds to the mixture, not the source s_k as its prior
knows it, which the trace holds. It has the recording's rate and channels, see
:mod:`pyro_sep.lifting`. Stems and residual add up to the recording: to rounding as 32-bit floats,
more than 120 dB below it, and in a FLAC, where each is rounded to 24 bits, to that.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_sep.audio import FORMATS, save_audio
from pyro_sep.data.tracks import DRAWS, RESIDUAL, Audio
from pyro_sep.lifting import lift
from pyro_sep.separation import Separation
from pyro_sep.trace import estimate_chains


@dataclass(frozen=True)
class StemFiles:
    """Which files to write.

    Attributes:
        suffix: ``"wav"`` or ``"flac"``.
        native: the plain posterior, mono and at the priors' rate, whatever the recording.
        residual: also what no prior explains, the recording less its stems.
        draws: of the estimate's chains, evenly spaced, as many as one has at most; each is written
            beside the mean, which errs less than any.
    """

    suffix: str = "wav"
    native: bool = False
    residual: bool = False
    draws: int = 0


def write_stems(
    result: Separation, folder: Path, files: StemFiles, recording: Audio | None = None
) -> tuple[list[str], int]:
    """Write NAME.wav per source, residual.wav and draws/NAME_01.wav, each whole or not at all.

    Args:
        result: whose stems.
        folder: that is there.
        files: which.
        recording: whose rate and channels they are to have; those of the mixture where None.

    Returns:
        Names of the files, those of draws with their folder, and the stems' rate in Hz.

    Raises:
        ValueError: a FLAC beyond full scale.
        OSError: the folder cannot be written to.
    """
    mixture = torch.from_numpy(result.trace["observed_data"].to_dataset()["mixture"].values)
    if files.native:
        recording = None
    original, rate = recording or (mixture[None], result.sample_rate)

    def as_recorded(shares: Tensor) -> Tensor:
        if recording is None:
            return shares[:, None]
        return lift(shares, mixture, result.sample_rate, original, rate)

    def write(name: str, samples: Tensor) -> str:
        file = f"{name}.{files.suffix}"
        save_audio(folder / file, samples, rate)
        return file

    stems = as_recorded(result.shares)
    written = [write(name, stem) for name, stem in zip(result.names, stems, strict=True)]
    if files.residual:
        written.append(write(RESIDUAL, original - stems.sum(0)))
    if files.draws:
        (folder / DRAWS).mkdir(exist_ok=True)
        for i, shares in enumerate(drawn_shares(result.trace, files.draws), start=1):
            for name, stem in zip(result.names, as_recorded(shares), strict=True):
                written.append(write(f"{DRAWS}/{name}_{i:02d}", stem))
    return written, rate


def stem_files(folder: Path, names: Collection[str]) -> list[Path]:
    """Files in a folder that :func:`write_stems` writes of such sources, in any format."""
    stems = [path for path in folder.iterdir() if path.stem in (*names, RESIDUAL)]
    for path in (folder / DRAWS).glob("*"):
        name, _, number = path.stem.rpartition("_")
        if name in names and number.isdecimal():
            stems.append(path)
    return [path for path in stems if path.suffix[1:] in FORMATS and path.is_file()]


def drawn_shares(trace: xr.DataTree, count: int) -> Iterator[Tensor]:
    """Shares ``(source, time)`` of draws of the estimate's chains, evenly spaced."""
    posterior, chains = trace["posterior"].to_dataset(), estimate_chains(trace)
    last = len(chains) * posterior.sizes["draw"] - 1
    for number in np.unique(np.linspace(0, last, count).round().astype(int)):
        chain, draw = divmod(int(number), posterior.sizes["draw"])
        drawn = posterior.isel(chain=chains[chain], draw=draw)
        known = trace["constant_data"].to_dataset()
        gains = (drawn if "gains" in drawn else known)["gains"].values
        yield torch.from_numpy(gains[:, None] * drawn["sources"].values)
