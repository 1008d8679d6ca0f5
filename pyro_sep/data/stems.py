"""Stems that another separator wrote, cut and resampled as their mixture was."""

from collections import defaultdict
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.audio.io import load_audio
from pyro_sep.audio.scanning import audio_files
from pyro_sep.checks.names import printable
from pyro_sep.data.tracks import stem_name

ROUNDING = 2  # audio samples by which lengths may differ after two resamplings


def load_stems(
    folder: str | PathLike[str],
    sources: Iterable[str],
    sample_rate: int,
    time: int,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    stereo: bool = False,
) -> Tensor:
    """Stems of a mixture, from a folder with SOURCE.wav or another format for every source.

    They are cut, mixed down and resampled by :func:`pyro_sep.audio.load_audio`, as the mixture was.
    Their rate may be another than the mixture's. Names are compared without regard to capitals, and
    other files in the folder are not read.

    Args:
        folder: of the stems.
        sources: names of the sources, in order.
        sample_rate: in Hz, that of the mixture after :func:`pyro_sep.audio.load_audio`.
        time: audio samples of the mixture at this rate.
        start: of the excerpt, in seconds, as of the mixture.
        duration: of the excerpt in seconds, as of the mixture.
        channel: as of the mixture.
        stereo: as of the mixture.

    Returns:
        ``(source, time)``, full scale 1; ``(source, channel, time)`` where ``stereo``.

    Raises:
        ValueError: no folder; a source without a file, or with two; a stem that is no audio, has
            no such channel, or is of another length than the mixture.
        OSError: a file that cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> from pyro_sep.audio import save_audio
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("bass", "drums"):
    ...         save_audio(f"{folder}/{name}.wav", torch.zeros(2, 441), 44_100)
    ...     load_stems(folder, ["bass", "drums"], 16_000, 160).shape
    torch.Size([2, 160])
    """
    files = _stem_files(Path(folder), list(sources))
    stems = []
    for path in files:
        samples = load_audio(path, sample_rate, start, duration, channel, stereo).samples
        own = samples.shape[-1]
        if abs(own - time) > ROUNDING:
            raise ValueError(
                f"{printable(path)}: got a stem of {own} audio samples at {sample_rate} "
                f"Hz, expected {time} as of its mixture; give the stems of this recording"
            )
        stems.append(F.pad(samples, (0, time - own)))  # or cut
    return torch.stack(stems)


def _stem_files(folder: Path, sources: list[str]) -> list[Path]:
    """The file of each source."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in audio_files(folder):
        if path.parent == folder:
            found[stem_name(path.stem)].append(path)
    for source in sources:
        files = found[stem_name(source)]
        if len(files) != 1:
            got = ", ".join(path.name for path in files) or "none"
            raise ValueError(
                printable(f"{folder}: got {got} of the source {source}, expected one file, ")
                + printable(f"{source}.wav; rename it")
            )
    return [found[stem_name(source)][0] for source in sources]
