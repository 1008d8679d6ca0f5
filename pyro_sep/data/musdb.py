"""musdb18: real music with four stems, as .stem.mp4 files or, musdb18-HQ, as folders of WAVs.

Rafii et al. 2017, The MUSDB18 corpus for music separation (doi 10.5281/zenodo.1117372). Tracks of
.stem.mp4 files are those of the package ``musdb``, which needs ffmpeg. Nothing is ever downloaded.
"""

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pyro_sep.audio.io import active_frames
from pyro_sep.audio.scanning import files_below
from pyro_sep.audio.streams import STEM_MP4, missing_program, read_stream
from pyro_sep.audio.treble import mean_energies
from pyro_sep.checks.names import printable
from pyro_sep.checks.optional import import_optional
from pyro_sep.data.tracks import (
    MIXTURE,
    SUBSETS,
    Track,
    left_out,
    stem_frames,
    track_names,
    tracks_of,
)

MEASURED = 10  # tracks by which it is known what a stem has above the band
STEMS = ("bass", "drums", "vocals", "other")


def musdb_tracks(root: Path) -> list[Track]:
    """The tracks of musdb18; no audio is read before it is asked for.

    Args:
        root: a folder with ``train`` and ``test``, or with one of them, which hold .stem.mp4 files
            or folders of WAVs; or a single .stem.mp4, whose subset is ``"test"``. A track that is
            there in both forms is read from its WAVs.

    Raises:
        ValueError: there is no such root, no track in it, no ffmpeg for a .stem.mp4, or one that
            ffprobe cannot read.
        OSError: a folder that may not be read.

    >>> musdb_tracks(Path("no such folder"))
    Traceback (most recent call last):
    ValueError: no such folder: expected the root of musdb18; no such folder
    """
    if not root.exists():
        raise ValueError(f"{printable(root)}: expected the root of musdb18; no such folder")
    if root.is_file():
        return [_of_streams(root, _bare(root).name, "test")]
    files = files_below(root)
    streams = {_bare(path): path for path in files if path.name.lower().endswith(STEM_MP4)}
    tracks = {}
    for bare, (name, place) in track_names(streams, root).items():
        tracks[place] = _of_streams(streams[bare], name, bare.parent.name, place)
    for track in tracks_of([path for path in files if path.suffix.lower() == ".wav"], root):
        if set(STEMS) & set(track.stems):
            tracks[track.path] = _of_folder(track)
    found = [
        track
        for subset in SUBSETS
        for place, track in tracks.items()
        if PurePosixPath(place).parent.name == subset
    ]
    if not found:
        raise ValueError(
            f"{printable(root)}: got no track, expected train/*.stem.mp4, train/TRACK/STEM.wav or "
            "the same below test; unpack musdb18 there"
        )
    return found


class MusdbSource:
    """One stem of all tracks of musdb18: frames of a second, 150 a track, mono.

    Training frames are those of the training tracks that are not silent, crops of them where
    shorter ones are asked for; held-out audio is the test tracks'. Tracks are read when they are
    needed; the training frames of one stem of the whole of musdb18 take 1 GB at 16 kHz.

    Args:
        root: see :func:`musdb_tracks`.
        stem: one of :data:`STEMS`.
        sample_rate: to resample to, in Hz.
        time: audio samples of a frame, where it is longer than a second.

    Attributes:
        notes: which tracks lack the stem and are left out, a line.

    Raises:
        ValueError: unknown stem, or as :func:`musdb_tracks`.
    """

    def __init__(self, root: Path, stem: str, sample_rate: int, time: int) -> None:
        if stem not in STEMS:
            raise ValueError(f"musdb: got stem {stem!r}, expected one of {', '.join(STEMS)}")
        self.name, self.sample_rate = stem, sample_rate
        tracks = musdb_tracks(root)
        self._root, self._time = root, max(time, sample_rate)
        self._tracks = [track for track in tracks if stem in track.stems]
        without = [track.name for track in tracks if stem not in track.stems]
        self.notes = left_out(stem, without, len(tracks))

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Random crops ``(count, time)`` of the training frames.

        Raises:
            ValueError: there are no training frames, or only shorter ones.
        """
        frames = self._training
        if time > frames.shape[-1]:
            raise ValueError(f"time: got {time}, expected at most {frames.shape[-1]} audio samples")
        which = torch.randint(len(frames), (count,), generator=generator)
        starts = torch.randint(frames.shape[-1] - time + 1, (count,), generator=generator)
        pairs = zip(which.tolist(), starts.tolist(), strict=True)
        return torch.stack([frames[frame, start : start + time] for frame, start in pairs])

    @cached_property
    def energies(self) -> Tensor:
        """Mean of :func:`pyro_sep.audio.treble.measure` per second of the first training tracks."""
        tracks = [track for track in self._tracks if track.subset == "train"][:MEASURED]
        read = (track.read(self.name) for track in tracks)
        return mean_energies(((samples.mean(0), rate) for samples, rate in read), self.sample_rate)

    def held_out(self, count: int, time: int) -> Tensor:
        """At most ``count`` test frames ``(frame, time)``, from as many tracks as possible."""
        tracks = [track for track in self._tracks if track.subset == "test"]
        found = [torch.empty(0, time)]
        for left, track in zip(range(len(tracks), 0, -1), tracks, strict=True):
            share = -(-(count - sum(map(len, found))) // left)
            if share < 1:
                break
            found.append(self._frames(track, time)[:share])
        return torch.cat(found)

    @cached_property
    def _training(self) -> Tensor:
        tracks = [track for track in self._tracks if track.subset == "train"]
        frames = [self._frames(track, self._time) for track in tracks]
        if not sum(map(len, frames)):
            raise ValueError(
                f"{self._root}: got no training frame of {self.name} that is not silent, expected "
                "tracks below train"
            )
        return torch.cat(frames)

    def _frames(self, track: Track, time: int) -> Tensor:
        """The first ``time`` audio samples of its frames, where they are not silent."""
        length = max(time, self._time)
        frames = stem_frames(track, (self.name,), self.sample_rate, length)
        return active_frames(frames[:, 0, :time].reshape(-1), time)


def _bare(path: Path) -> Path:
    """A .stem.mp4 without this suffix."""
    is_stems = path.name.lower().endswith(STEM_MP4)
    return path.with_name(path.name[: -len(STEM_MP4)]) if is_stems else path


def _of_folder(track: Track) -> Track:
    known = {name: track.readers[name] for name in (*STEMS, MIXTURE) if name in track.readers}
    return replace(track, readers=known, draws={})


def _of_streams(path: Path, name: str, subset: str, place: str = "") -> Track:
    track = _multitrack(path, name, subset)
    # musdb itself decodes to 16 bits, and clips: mixtures go beyond full scale.
    readers = {stem: partial(read_stream, path, stem) for stem in (*STEMS, MIXTURE)}
    return Track(track.name, track.subset, readers, path=place)


def _multitrack(path: Path, name: str, subset: str) -> Any:
    """A .stem.mp4 as a track of musdb, by its whole path: neither an option nor an address."""
    if missing_program() is not None:
        raise ValueError(
            f"{printable(path)}: got no ffmpeg, expected ffmpeg and ffprobe on the path; install "
            "them, as by apt-get install ffmpeg"
        )
    ffmpeg, musdb = (
        import_optional(name, printable(path), "music") for name in ("ffmpeg", "musdb")
    )
    try:
        return musdb.MultiTrack(str(path.absolute()), name, subset=subset, stem_id=0)
    except (ffmpeg.Error, LookupError) as error:
        raise ValueError(
            f"{printable(path)}: got no stems in it, expected five streams of audio; replace the "
            "file"
        ) from error
