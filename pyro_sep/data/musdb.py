"""musdb18: real music with four stems, as .stem.mp4 files or, musdb18-HQ, as folders of WAVs.

Rafii et al. 2017, The MUSDB18 corpus for music separation (doi 10.5281/zenodo.1117372), read
through the package ``musdb``, which needs ffmpeg. Nothing is ever downloaded.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_sep.audio import active_frames, read_audio
from pyro_sep.data.tracks import MIXTURE, Track, stem_frames
from pyro_sep.streams import STEM_MP4, last_words, read_stream

STEMS = ("bass", "drums", "vocals", "other")


def musdb_tracks(root: Path) -> list[Track]:
    """The tracks of musdb18.

    Args:
        root: a folder with ``train`` and ``test``, or with one of them, which hold .stem.mp4 files
            or folders of WAVs; or a single .stem.mp4, whose subset is ``"test"``.

    Raises:
        ValueError: ffmpeg is missing, there is no such root, no track in it, or a file that
            ffprobe cannot read.
    """
    if not root.exists():
        raise ValueError(f"{root}: expected the root of musdb18; no such folder")
    musdb = _import_musdb()
    import ffmpeg

    try:
        if root.is_file():
            name = root.name.removesuffix(STEM_MP4)
            return [_of_streams(musdb.MultiTrack(str(root), name, subset="test", stem_id=0))]
        streams = [_of_streams(track) for track in musdb.DB(str(root)).tracks]
        folders = [_of_folder(track) for track in musdb.DB(str(root), is_wav=True).tracks]
    except (ffmpeg.Error, LookupError) as error:
        reason = last_words(error) or f"{root}: a file without audio"
        raise ValueError(f"{reason}; got no stems in it, replace the file") from error
    tracks = streams + [track for track in folders if track.stems]
    if not tracks:
        raise ValueError(
            f"{root}: got no track, expected train/*.stem.mp4, train/TRACK/STEM.wav or the same "
            "below test; unpack musdb18 there"
        )
    return tracks


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
        seed: of the positions of the frames.

    Raises:
        ValueError: unknown stem, or as :func:`musdb_tracks`.
    """

    def __init__(self, root: Path, stem: str, sample_rate: int, time: int, seed: int = 0) -> None:
        if stem not in STEMS:
            raise ValueError(f"musdb: got stem {stem!r}, expected one of {', '.join(STEMS)}")
        self.name, self.sample_rate, self.seed = stem, sample_rate, seed
        self._root, self._time, self._tracks = root, max(time, sample_rate), musdb_tracks(root)

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
        frames = stem_frames(track, (self.name,), self.sample_rate, length, self.seed)
        return active_frames(frames[:, 0, :time].reshape(-1), time)


def _import_musdb() -> Any:
    try:
        import musdb
    except RuntimeError as error:  # stempeg's, on import
        raise ValueError(
            "musdb: got no ffmpeg, expected ffmpeg and ffprobe on the path; install them, as by "
            "apt-get install ffmpeg"
        ) from error
    return musdb


def _of_folder(track: Any) -> Track:
    """A folder of WAVs, read by soundfile: it knows its formats and says what is wrong."""
    paths = {stem: Path(track.sources[stem].path) for stem in STEMS if stem in track.sources}
    if Path(track.path).exists():
        paths[MIXTURE] = Path(track.path)
    readers = {stem: partial(read_audio, path) for stem, path in paths.items()}
    return Track(track.name, track.subset, readers)


def _of_streams(track: Any) -> Track:
    # musdb itself decodes to 16 bits, and clips: mixtures go beyond full scale.
    readers = {name: partial(read_stream, Path(track.path), name) for name in (*STEMS, MIXTURE)}
    return Track(track.name, track.subset, readers)
