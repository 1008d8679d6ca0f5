"""Tracks: pieces of music whose stems are known, as TRACK/STEM.wav or from elsewhere."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from os import PathLike
from pathlib import Path

import torch
import torchaudio.functional
from torch import Tensor

from pyro_sep.audio import audio_files, read_audio

MIXTURE = "mixture"
RESIDUAL = "residual"  # of a mixture, what none of the stems explains
DRAWS = "draws"  # folder in a separated track; the stems in it are no track
SUBSETS = ("train", "test")
FRAMES = 150  # of a track: Frank & Ilse 2020 (arXiv 2011.01761)

#: Audio ``(channel, time)`` and its rate in Hz.
Audio = tuple[Tensor, int]


@dataclass(frozen=True)
class Track:
    """A piece of music; nothing is read before it is asked for.

    Attributes:
        name: of the track.
        subset: ``"train"``, ``"test"``, or nothing.
        readers: read a stem by its name; ``"mixture"`` is among them where it is known by itself.
        draws: read posterior draws of a stem by its name, where it was separated and there are any.
    """

    name: str
    subset: str
    readers: Mapping[str, Callable[[], Audio]]
    draws: Mapping[str, Sequence[Callable[[], Audio]]] = field(default_factory=dict)

    @property
    def stems(self) -> list[str]:
        """Names of the stems, without the mixture."""
        return [name for name in self.readers if name != MIXTURE]

    def read(self, stem: str) -> Audio:
        """Audio of a stem or of the mixture, as it is stored.

        Raises:
            ValueError: no such stem, or what is there is no audio.
        """
        if stem not in self.readers:
            raise ValueError(
                f"{self.name}: got no stem {stem}, expected one of {', '.join(self.readers)}"
            )
        return self.readers[stem]()

    def mixture(self, stems: Sequence[str] = ()) -> Audio:
        """The sum of the stems that are named; if none are, the track's own mixture.

        A track without a mixture of its own is the sum of all its stems.

        Raises:
            ValueError: stems of different rates or shapes.
        """
        if not stems and MIXTURE in self.readers:
            return self.read(MIXTURE)
        parts = [self.read(stem) for stem in stems or self.stems]
        kinds = {(*samples.shape, rate) for samples, rate in parts}
        if len(kinds) > 1:
            raise ValueError(
                f"{self.name}: got stems of {sorted(kinds)} channels, samples and Hz, expected "
                "one kind; export them alike"
            )
        return reduce(torch.add, (samples for samples, _ in parts)), parts[0][1]


def stems_folder(folder: str | PathLike[str]) -> list[Track]:
    """Tracks of a folder: each subfolder with audio files, one a stem, is a track.

    TRACK/STEM.wav and, as in musdb18-HQ and its results, train/TRACK/STEM.wav and
    test/TRACK/STEM.wav. TRACK/draws/STEM_01.wav and so on are posterior draws of a stem.

    Args:
        folder: searched with its subfolders.

    Raises:
        ValueError: no folder, no audio in it, or two files of one stem.
    """
    files: dict[Path, dict[str, Path]] = defaultdict(dict)
    drawn: dict[Path, dict[str, list[Callable[[], Audio]]]] = defaultdict(lambda: defaultdict(list))
    for path in audio_files(folder):
        if path.parent.name == DRAWS:
            stem, _, _ = path.stem.rpartition("_")
            drawn[path.parent.parent][stem].append(partial(read_audio, path))
            continue
        if path.stem in files[path.parent]:
            raise ValueError(
                f"{path}: got a second file of the stem {path.stem}, expected one; remove it"
            )
        files[path.parent][path.stem] = path
    return [
        Track(
            track.resolve().name,
            track.parent.name if track.parent.name in SUBSETS else "",
            {stem: partial(read_audio, path) for stem, path in stems.items()},
            drawn[track],
        )
        for track, stems in files.items()
    ]


def stem_frames(
    track: Track, stems: Sequence[str], sample_rate: int, time: int, seed: int = 0
) -> Tensor:
    """Frames of a track, mono, silent ones among them.

    Their positions are uniform, and depend on seed, the track's name and length alone: all stems,
    and the mixture, are heard at the same moments.

    Args:
        track: to cut.
        stems: which, in order; ``"mixture"`` too.
        sample_rate: to resample to, in Hz.
        time: audio samples of a frame.
        seed: of the positions.

    Returns:
        ``(frame, stem, time)``, :data:`FRAMES` of them.

    Raises:
        ValueError: a stem that cannot be read, stems of different lengths, or a track that is
            shorter than a frame.
    """
    parts = [
        torchaudio.functional.resample(samples.mean(0), rate, sample_rate)
        for samples, rate in map(track.read, stems)
    ]
    lengths = {len(part) for part in parts}
    if len(lengths) > 1 or min(lengths) < time:
        raise ValueError(
            f"{track.name}: got stems of {sorted(lengths)} audio samples at {sample_rate} Hz, "
            f"expected one length of at least a frame, {time}"
        )
    digest = hashlib.sha256(f"{seed}/{track.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    starts = torch.randint(len(parts[0]) - time + 1, (FRAMES,), generator=generator)
    whole = torch.stack(parts)
    return torch.stack([whole[:, start : start + time] for start in starts.tolist()])
