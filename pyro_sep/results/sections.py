"""Long recordings: separated in sections that overlap, whose stems are joined by a cross-fade.

The memory of a separation grows with its audio. A recording that is longer than :data:`LONGEST` is
cut into sections of about :data:`SECTION`. Each is separated by itself, with draws of its own,
and has a folder of results, TRACK/sections/001. Sources are told apart by their priors, so sections
fit together without being matched. The stems of the track are those of its sections: over the
second half of an overlap the later section is faded in, since a prior knows more where it has a
past. The two weights of a fade add up to 1, so stems and residual still add up to the recording.
The trace stays in pieces: draws of two sections are independent.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from pyro_sep.audio.io import FORMATS, audio_length
from pyro_sep.data.tracks import SECTIONS, SUMMARY, separated_channel
from pyro_sep.results.plan import Job, Outcome, failure
from pyro_sep.results.writer import is_finished, own_files, remove_files
from pyro_sep.storage.files import atomic_write, only_run, save_json

LONGEST = 120.0  # seconds of a recording that is separated as one state
SECTION = 60.0  # seconds of a section, or up to a STEP more
OVERLAP = 2.0  # seconds
STEP = 1.0  # seconds: where sections begin, which is at an audio sample at every rate
BLOCK = 1 << 20  # audio samples that are joined at once
RIFF_MAX = 1 << 32  # bytes, beyond which a WAV is an RF64


def jobs_of(
    folders: Mapping[Path, Path],
    start: float,
    duration: float | None,
    attempt: Callable[[Path], AbstractContextManager[object]],
) -> list[Job]:
    """What is to be separated of each recording: all at once, or section by section.

    Args:
        folders: of the results of each file.
        start: of the excerpt in seconds.
        duration: of the excerpt in seconds; to the end where None.
        attempt: context that handles the errors of a file.
    """
    jobs: list[Job] = []
    for path, folder in folders.items():
        with attempt(path):
            whole = Job(path, folder, start, duration)
            if not path.is_file():  # a pipe is read once
                jobs.append(whole)
                continue
            count, rate = audio_length(path)
            first = round(start * rate)
            last = count if duration is None else min(count, first + round(duration * rate))
            if last - first <= LONGEST * rate:
                jobs.append(whole)
                continue
            for number, (begin, end) in enumerate(spans(last - first, rate), start=1):
                place = folder / SECTIONS / f"{number:03d}"
                span = ((first + begin) / rate, (end - begin) / rate)
                jobs.append(Job(path, place, *span, number))
    return jobs


def spans(count: int, rate: int) -> list[tuple[int, int]]:
    """First audio sample and end of each section of so many audio samples."""
    section, overlap = round(SECTION * rate), round(OVERLAP * rate)
    number = math.ceil((count - overlap) / (section - overlap))
    unit = round(STEP * rate)
    step = math.ceil((count - overlap) / number / unit) * unit
    return [(i, min(count, i + step + overlap)) for i in range(0, count - overlap, step)]


def with_tracks(outcomes: Iterator[Outcome], jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The outcomes, and after the last section of a long recording that of the whole of it."""
    tracks = {
        key: list(group)
        for key, group in groupby(jobs, lambda job: None if job.section is None else job.track)
        if key is not None
    }
    owners = {job.folder: track for track, group in tracks.items() for job in group}
    found: dict[Path, dict[Path, Outcome]] = {track: {} for track in tracks}
    for outcome in outcomes:
        yield outcome
        track = owners.get(outcome.folder)
        if track is None:
            continue
        found[track][outcome.folder] = outcome
        if len(found[track]) == len(tracks[track]):
            yield joined(tracks[track], list(found.pop(track).values()))


def joined(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> Outcome:
    """Join the stems of a recording's sections, and write its summary.json.

    Nothing is done where a section failed, or all was joined before.
    """
    whole = Job(jobs[0].path, jobs[0].track)
    if failed := [outcome for outcome in outcomes if outcome.failed]:
        count = f"{len(failed)} of {len(jobs)} sections failed, expected none"
        return failure(whole, ValueError(f"{whole.path}: {count}; start the same command again"))
    try:
        summaries = [json.loads((job.folder / SUMMARY).read_bytes()) for job in jobs]
        return _join(whole, jobs, summaries)
    except (OSError, ValueError) as error:
        return failure(whole, error)


def _join(whole: Job, jobs: Sequence[Job], summaries: Sequence[dict[str, object]]) -> Outcome:
    folder = whole.folder
    pairs = list(zip(jobs, summaries, strict=True))
    run = {"sections": [[job.start, summary["run"]] for job, summary in pairs]}
    listed = summaries[0]["files"]
    assert isinstance(listed, dict)
    names = [name for name in listed if Path(name).suffix[1:] in FORMATS and "/" not in name]
    with only_run(folder):
        if is_finished(folder, run):
            return Outcome(whole.path, folder)
        remove_files(folder, set(own_files(folder)) - {*names, SUMMARY})
        for name in names:
            join_files([(job.start, job.folder / name) for job in jobs], folder / name)
        bad = [job.section for job, summary in pairs if not summary["trusted"]]
        trusted = len(jobs) - len(bad)
        files = {name: (folder / name).stat().st_size for name in names}
        parts = [job.folder.relative_to(folder).as_posix() for job in jobs]
        content = {"trusted": not bad, "sections": parts, "not_trusted": bad, "files": files}
        channels = [*filter(None, (separated_channel(job.folder) for job in jobs))]
        settings = {"channel": channels[0]} if channels else {}
        content |= {"settings": settings, "run": run}
        save_json(content, folder / SUMMARY)
    verdict = f"verdict: {trusted} of {len(jobs)} sections trusted"
    return Outcome(whole.path, folder, (*names, SUMMARY), verdict=verdict)


def join_files(parts: Sequence[tuple[float, Path]], path: Path) -> None:
    """Write one audio file from files that overlap, in little memory, whole or not at all.

    Args:
        parts: start in seconds and file of each, in order.
        path: of the result, of the same format.

    Raises:
        OSError: it cannot be written.
        ValueError: parts of several rates or channels.
    """
    infos = [soundfile.info(file) for _, file in parts]
    rate, channels = infos[0].samplerate, infos[0].channels
    if any((info.samplerate, info.channels) != (rate, channels) for info in infos):
        raise ValueError(f"{path}: got sections of several rates or channels, expected one")
    starts = [round((start - parts[0][0]) * rate) for start, _ in parts]
    ends = [start + info.frames for start, info in zip(starts, infos, strict=True)]
    kind, subtype = path.suffix[1:].upper(), FORMATS[path.suffix[1:]]
    if kind == "WAV" and 4 * channels * ends[-1] > RIFF_MAX // 2:
        kind = "RF64"
    with atomic_write(path) as partial:
        with soundfile.SoundFile(partial, "w", rate, channels, subtype, format=kind) as out:
            tail: NDArray[np.float32] = np.empty((0, channels), np.float32)
            for i, (_, file) in enumerate(parts):
                left = 0 if i + 1 == len(parts) else ends[i] - starts[i + 1]
                with soundfile.SoundFile(file) as part:
                    if len(tail):
                        head = part.read(len(tail), dtype="float32", always_2d=True)
                        fade = np.linspace(-1, 1, len(tail), dtype=np.float32).clip(0)[:, None]
                        out.write(tail * (1 - fade) + head * fade)
                    while (wanted := min(BLOCK, infos[i].frames - left - part.tell())) > 0:
                        out.write(part.read(wanted, dtype="float32", always_2d=True))
                    tail = part.read(left, dtype="float32", always_2d=True)
        if soundfile.info(partial).frames != ends[-1]:  # libsndfile sees no full disk
            raise OSError("no space left on the disk")
