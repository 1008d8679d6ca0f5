"""Separates recordings, each into a folder of results."""

import json
import os
import time as clock
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyro_sep.audio.io import Recording
from pyro_sep.audio.streams import STEM_MP4
from pyro_sep.data.tracks import INSIDE, MIXTURE, SUMMARY
from pyro_sep.models.train import CHECKPOINT
from pyro_sep.priors.base import UNSTATED, Priors, treble
from pyro_sep.results.stems import StemFiles
from pyro_sep.results.writer import (
    PICTURE,
    Seconds,
    is_finished,
    own_files,
    write_separation,
)
from pyro_sep.separation.api import Separation, separate
from pyro_sep.separation.inputs import check_mixtures, digest, fingerprints
from pyro_sep.separation.presets import RESOLVED, resolve_estimate, resolve_settings
from pyro_sep.storage.files import check_space, is_same, only_run
from pyro_sep.trace.dataset import TRACE
from pyro_sep.trace.draws import ALTERNATIVES

FLOAT = 4  # bytes
OVERHEAD = 2_000_000  # bytes of formats, the picture and the page
STATES = 3  # of the draws on the disk at once: two checkpoints, the trace


def track_folders(
    paths: Sequence[Path],
    out: Path,
    names: Collection[str] = (),
    attempt: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> dict[Path, Path]:
    """The folder of results of each file: OUT/TRACK, its name without suffix or .stem.mp4.

    TRACK/mixture.wav, as in musdb18-HQ, is called after its folder, as that is given.

    Args:
        paths: of all files that are read.
        out: parent of the folders.
        names: of the files that will be written in each.
        attempt: context that handles the errors of a file; they are raised by default.

    Raises:
        ValueError: a file whose name gives no folder, two files of one name, a file in the folder
            of its own results, or results that would overwrite a file that is read, or that no
            former run left.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        with attempt(path):
            folder = out / _track(path)
            if folder.resolve() == path.resolve().parent:
                raise ValueError(
                    f"{path}: got it in {folder}, where its results would go, expected another "
                    "folder than its own; give another --out"
                )
            _check_name(path, folder, folders)
            _check_free(folder, names, paths)
            folders[path] = folder
    return folders


def _track(path: Path) -> str:
    suffix = STEM_MP4 if path.name.lower().endswith(STEM_MP4) else path.suffix
    track = path.name[: len(path.name) - len(suffix)]
    if track.lower() == MIXTURE:
        track = Path(os.path.abspath(path)).parent.name or track
    if not track or track.startswith(".") or track.lower() in INSIDE:
        raise ValueError(
            f"{path}: got {track!r} as the track's name, expected one for its folder of results; "
            "rename the file"
        )
    return track


def _check_name(path: Path, folder: Path, others: Mapping[Path, Path]) -> None:
    """Raise ValueError for a name that another track has, up to case and encoding of accents."""
    for other, taken in others.items():
        if _folded(taken.name) == _folded(folder.name):
            raise ValueError(
                f"{path}: got a second track {folder.name!r} after {other}, expected names that "
                "differ; rename one, or give it another --out"
            )


def _check_free(folder: Path, names: Iterable[str], inputs: Sequence[Path]) -> None:
    """Raise ValueError where results would overwrite a file that is not of a former run."""
    ours = {*own_files(folder)}
    cut_off = (folder / CHECKPOINT).exists()  # a run that was writing them, and goes on
    inside = {name.partition("/")[0] for name in names if "/" in name}
    for name in (*names, *inside):
        path = folder / name
        if not os.path.lexists(path) or (name in inside and path.is_dir()):
            continue
        if any(is_same(path, other) for other in inputs):
            raise ValueError(
                f"{path}: got an input of this command where results would go, expected another "
                "folder; give another --out"
            )
        if name not in ours and not cut_off:
            raise ValueError(
                f"{path}: got a file that no former run left there, expected none; move it, or "
                "give another --out"
            )


def result_names(sources: Iterable[str], files: StemFiles) -> list[str]:
    """Names of the files that :func:`separate_recording` writes."""
    return [*files.names(sources), TRACE, PICTURE, SUMMARY]


def describe_run(
    recording: Recording,
    priors: Priors,
    files: StemFiles,
    device: torch.device,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The identity of a run: all that determines its results, as plain JSON.

    Args:
        recording: that is separated.
        priors: of the sources.
        files: which stems.
        device: of the priors.
        options: of :func:`~pyro_sep.separate`.
    """
    audio = sha256(recording.original.contiguous().numpy().data)
    audio.update(f"{recording.original_rate} {recording.notes}".encode())
    run = {
        "version": version("pyro-sep"),
        "audio": audio.hexdigest(),
        "options": {key: value for key, value in options.items() if key != "progress"},
        "files": asdict(files),
        "sources": list(priors),
        "treble": [*treble(priors).values()],
        "stated": [[getattr(p, *default) for default in UNSTATED.items()] for p in priors.values()],
    } | fingerprints(priors, recording.samples.to(device))
    plain: dict[str, Any] = json.loads(json.dumps(run, default=_identified))
    return plain


def needed_space(
    recording: Recording, priors: Priors, files: StemFiles, options: Mapping[str, Any]
) -> int:
    """Largest size of results and checkpoints in bytes.

    Args:
        recording: that is separated.
        priors: of the sources, by name.
        files: which stems.
        options: of :func:`~pyro_sep.separate`.

    Raises:
        ValueError: bad settings.
    """
    time, sources = recording.samples.numel(), len(priors)
    settings = resolve_settings(
        priors, time, **{name: options[name] for name in RESOLVED if name in options}
    )
    drawn = settings.chains * settings.draws * (sources + 1) * time
    others = 0 if resolve_estimate(priors, options.get("estimate")) == "mean" else ALTERNATIVES
    stems = (sources * (1 + files.draws + others) + files.residual) * recording.original.numel()
    return FLOAT * (STATES * drawn + stems) + OVERHEAD


def is_separated(
    recording: Recording,
    priors: Priors,
    folder: Path,
    files: StemFiles,
    device: torch.device,
    **options: Any,
) -> bool:
    """Whether all results of this run are there, which :func:`separate_recording` then skips."""
    if (folder / CHECKPOINT).exists() or not (folder / SUMMARY).is_file():
        return False
    return is_finished(folder, describe_run(recording, priors, files, device, options))


def check_recording(recording: Recording, files: StemFiles) -> None:
    """Raise ValueError unless a recording can be separated, and its stems written."""
    samples = torch.atleast_2d(recording.samples)
    check_mixtures(recording.samples[None], len(samples))
    original = (recording.original, recording.original_rate)
    files.check((samples, recording.sample_rate) if files.native else original)


def check_disk(
    recording: Recording,
    priors: Priors,
    folder: Path,
    files: StemFiles,
    options: Mapping[str, Any],
) -> None:
    """Raise OSError where results and checkpoints do not fit on the disk of their folder."""
    needed = needed_space(recording, priors, files, options)
    check_space(folder, needed, "take fewer --draws or chains, or give another --out")


def separate_recording(
    recording: Recording,
    priors: Priors,
    folder: Path,
    files: StemFiles,
    device: torch.device,
    *,
    force: bool = False,
    **options: Any,
) -> tuple[Separation | None, list[str]]:
    """Separate a recording, and write what :func:`write_separation` does.

    A run that was cut off continues from its checkpoint, which stays in the folder until all is
    written. Other runs are locked out of the folder meanwhile. Where all results of the same audio,
    priors and options are there, nothing is done.

    Args:
        recording: at the priors' rate.
        priors: of the sources, by name.
        folder: of the results, made where it is missing.
        files: which stems.
        device: of the priors.
        force: separate again what is finished.
        options: of :func:`~pyro_sep.separate`.

    Returns:
        The separation and the names of what was written; None and no names if all was there.

    Raises:
        ValueError: bad audio or settings.
        OSError: the folder cannot be written to, has too little space, or another run holds it.
    """
    check_recording(recording, files)
    run, checkpoint = describe_run(recording, priors, files, device, options), folder / CHECKPOINT
    with only_run(folder):
        if not force and not checkpoint.exists() and is_finished(folder, run):
            return None, []
        check_disk(recording, priors, folder, files, options)
        resumed, wall, cpu = checkpoint.exists(), clock.perf_counter(), clock.process_time()
        result = separate(recording.samples, priors, checkpoint=checkpoint, **options)
        spent = Seconds(clock.perf_counter() - wall, clock.process_time() - cpu, resumed)
        original = (recording.original, recording.original_rate)
        written = write_separation(result, folder, files, original, run, spent)
        checkpoint.unlink()
    return result, written


def _identified(value: object) -> str:
    """What identifies an option that JSON does not hold, such as initial stems."""
    return digest(value) if isinstance(value, torch.Tensor) else str(value)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
