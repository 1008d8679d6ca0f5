"""From recordings to a folder of results for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_sep.audio import Recording
from pyro_sep.data.tracks import MIXTURE
from pyro_sep.models.train import CHECKPOINT
from pyro_sep.outputs import check_writable, write_separation
from pyro_sep.priors import Priors
from pyro_sep.separation import Separation, check_mixtures, separate
from pyro_sep.stems import StemFiles
from pyro_sep.streams import STEM_MP4


def track_folders(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """By file the folder of its results: OUT/TRACK, its name without suffix or .stem.mp4.

    TRACK/mixture.wav, as in musdb18-HQ, is called after its folder.

    Raises:
        ValueError: two files of one name, or a file that lies in the folder of its own results.
    """
    tracks: dict[str, Path] = {}
    for path in paths:
        suffix = STEM_MP4 if path.name.endswith(STEM_MP4) else path.suffix
        track = path.name.removesuffix(suffix)
        if track == MIXTURE:
            track = path.resolve().parent.name
        if track in tracks:
            raise ValueError(
                f"{path}: got a second track {track!r} after {tracks[track]}, expected "
                "names that differ; rename one, or give it another --out"
            )
        if (out / track).resolve() == path.resolve().parent:
            raise ValueError(
                f"{path}: got it in {out / track}, where its results would go, expected another "
                "folder than its own; give another --out"
            )
        tracks[track] = path
    return {path: out / track for track, path in tracks.items()}


def separate_recording(
    recording: Recording,
    priors: Priors,
    folder: Path,
    files: StemFiles,
    device: torch.device,
    **options: Any,
) -> tuple[Separation, list[str]]:
    """Separate a recording, and write what :func:`write_separation` does.

    A run that was cut off goes on where it was: its checkpoint stays in the folder until all is
    written.

    Args:
        recording: at the priors' rate.
        priors: of the sources, by name.
        folder: of the results, made where it is missing.
        files: which stems.
        device: of the priors.
        options: of :func:`~pyro_sep.separation.separate`.

    Returns:
        The separation, and the names of what was written.

    Raises:
        ValueError: bad audio or settings.
        OSError: the folder cannot be written to.
    """
    check_mixtures(recording.samples[None])
    check_writable(folder)
    checkpoint = folder / CHECKPOINT
    samples = recording.samples.to(device)
    result = separate(samples, priors, checkpoint=checkpoint, **options)
    original = (recording.original, recording.original_rate)
    written = write_separation(result, folder, files, original)
    checkpoint.unlink()
    return result, written
