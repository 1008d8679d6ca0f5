"""Tracks: pieces of music whose stems are known, as TRACK/STEM.wav or from elsewhere."""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pyro_sep.audio.io import read_audio
from pyro_sep.audio.resampling import resample
from pyro_sep.audio.scanning import audio_files
from pyro_sep.checks.names import printable
from pyro_sep.data.seeds import generator_of

MIXTURE = "mixture"
RESIDUAL = "residual"  # of a mixture, what none of the stems explains
DRAWS = "draws"  # folder in a separated track,
ALTERNATIVES = "alternatives"  # and another one:
INSIDE = (DRAWS, ALTERNATIVES)  # the stems in them are no track
SECTIONS = "sections"  # folder in a long separated track, with a folder for each section
SUMMARY = "summary.json"  # of a separated track
NAME_MAX = 200  # bytes of a source's name; a suffix and numbers of draws go with it
SEPARATORS = ("/", os.sep, os.altsep)  # of folders; a backslash is one on some systems
NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's: controls, bytes that are no text, ends of lines
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
        readers: read a stem by its name, see :func:`stem_name`; ``"mixture"`` is among them where
            it is known by itself.
        draws: read posterior draws of a stem by its name, where it was separated and there are any.
        path: of its folder in the one where it was found, ``"train/song"``; else its name.
        channel: of the recording that was separated, by its number from 1, or ``"side"``; the mean
            of all, or both of two, where None.

    >>> Track("song", "test", {"bass": lambda: (torch.zeros(2, 441), 44_100)}).stems
    ['bass']
    """

    name: str
    subset: str
    readers: Mapping[str, Callable[[], Audio]]
    draws: Mapping[str, Sequence[Callable[[], Audio]]] = field(default_factory=dict)
    path: str = ""
    channel: str | None = None

    @property
    def stems(self) -> list[str]:
        """Names of the stems, without the mixture."""
        return [name for name in self.readers if name != MIXTURE]

    def read(self, stem: str) -> Audio:
        """Audio of a stem or of the mixture, as it is stored.

        Raises:
            ValueError: no such stem, or what is there is no audio.
        """
        if stem_name(stem) not in self.readers:
            raise ValueError(
                printable(f"{self.name}: got no stem {stem}, expected one of ")
                + printable(", ".join(self.readers))
            )
        return self.readers[stem_name(stem)]()

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


def stem_name(name: str) -> str:
    """The stem of a file's name without its suffix: ``Bass.wav`` is the stem bass.

    Names are compared without regard to capitals, and é is one letter whether a system writes it as
    one or as two.
    """
    return _composed(name).casefold()


def check_source_name(name: str) -> None:
    """Raise ValueError unless a source may have a name: it becomes that of a file.

    Args:
        name: of the source.
    """
    reason = ""
    if name.lower() in (MIXTURE, RESIDUAL, *INSIDE):
        reason = "it is that of another file of a separated track"
    elif not name or name.startswith(".") or len(os.fsencode(name)) > NAME_MAX:
        reason = f"it is empty, begins with a dot, or is longer than {NAME_MAX} bytes"
    elif any(char in SEPARATORS or unicodedata.category(char) in NO_TEXT for char in name):
        reason = "there is a slash, a control character or what is no UTF-8 in it"
    if reason:
        raise ValueError(
            printable(f"source: got the name {name[:NAME_MAX]!r}, but {reason}; expected another")
        )


def check_source_names(names: Collection[str]) -> None:
    """Raise ValueError unless sources of a set may have these names, and each is another's file."""
    for name in names:
        check_source_name(name)
    often = Counter(map(stem_name, names))
    if alike := [name for name in names if often[stem_name(name)] > 1]:
        raise ValueError(
            printable(
                f"sources: got the names {', '.join(alike)}, expected names that differ in more "
                "than capitals; rename one"
            )
        )


def track_names(folders: Collection[Path], root: Path) -> dict[Path, tuple[str, str]]:
    """Names and paths of tracks by their folders.

    A track is called after its folder, as it is given and not by what a link leads to. Where two
    have one name they are called by their paths, ``ALBUM/song``.

    Args:
        folders: one a track.
        root: that they were found in.
    """
    names = {folder: Path(os.path.abspath(folder)).name or "root" for folder in folders}
    paths = {
        folder: name if folder == root else folder.relative_to(root).as_posix()
        for folder, name in names.items()
    }
    often = Counter(names.values())
    return {
        folder: (paths[folder] if often[name] > 1 else name, paths[folder])
        for folder, name in names.items()
    }


def reference_of(track: Track, references: Sequence[Track]) -> Track | None:
    """The track of the same path, else the only one of the same name; None where there is none.

    ``song`` is ``train/song``, unless there is ``test/song`` too; ``a/song`` is never ``b/song``.
    """
    path = _composed(track.path or track.name)
    same = [known for known in references if _composed(known.path or known.name) == path]
    if not same and "/" not in track.name:
        name = _composed(track.name)
        same = [known for known in references if PurePosixPath(_composed(known.name)).name == name]
    return same[0] if len(same) == 1 else None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def stems_folder(folder: str | PathLike[str]) -> list[Track]:
    """Tracks of a folder: each subfolder with audio files, one a stem, is a track.

    The files are TRACK/STEM.wav or, as in musdb18-HQ, train/TRACK/STEM.wav and
    test/TRACK/STEM.wav. TRACK/draws/STEM_01.wav and so on are posterior draws of a stem. For the
    names see :func:`track_names` and :func:`stem_name`.

    Args:
        folder: searched with its subfolders.

    Raises:
        ValueError: no folder, no audio in it, or two files of one stem.
        OSError: a folder that may not be read.

    >>> from tempfile import TemporaryDirectory
    >>> from pyro_sep.audio import save_audio
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / "song").mkdir()
    ...     save_audio(f"{folder}/song/bass.wav", torch.zeros(441), 44_100)
    ...     [(track.name, track.stems) for track in stems_folder(folder)]
    [('song', ['bass'])]
    """
    return tracks_of(audio_files(folder), Path(folder))


def tracks_of(paths: Iterable[Path], root: Path) -> list[Track]:
    """Tracks of files below a folder, as :func:`stems_folder` finds them.

    Raises:
        ValueError: two files of one stem.
    """
    files: dict[Path, dict[str, Path]] = defaultdict(dict)
    drawn: dict[Path, dict[str, list[Callable[[], Audio]]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        inside = path.parent.name if path.parent != root else ""
        if inside == ALTERNATIVES or is_section(path.parents[inside == DRAWS], root):
            continue
        if inside == DRAWS:
            stem, _, _ = path.stem.rpartition("_")
            drawn[path.parent.parent][stem_name(stem)].append(partial(read_audio, path))
            continue
        stem = stem_name(path.stem)
        if stem in files[path.parent]:
            raise ValueError(
                printable(f"{path}: got a second file of the stem {stem}, beside ")
                + printable(f"{files[path.parent][stem].name}, expected one; remove it")
            )
        files[path.parent][stem] = path
    names = track_names(files, root)
    return [
        Track(
            names[track][0],
            track.parent.name if track.parent.name in SUBSETS else "",
            {stem: partial(read_audio, path) for stem, path in stems.items()},
            drawn[track],
            names[track][1],
            separated_channel(track),
        )
        for track, stems in files.items()
    ]


def is_section(folder: Path, root: Path) -> bool:
    """Whether a folder below another one holds a section of a long separated track: it is no track.

    >>> is_section(Path("out/song/sections/001"), Path("out"))
    True
    """
    *_, holder, name = ("", "", *folder.relative_to(root).parts)
    return holder == SECTIONS and name.isdecimal()


def read_summary(folder: Path) -> dict[str, Any]:
    """What summary.json says of a separated track; empty where there is none."""
    try:
        content = json.loads((folder / SUMMARY).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def separated_channel(folder: Path) -> str | None:
    """The channel of which the track in a folder was separated."""
    settings = read_summary(folder).get("settings")
    found = settings.get("channel") if isinstance(settings, dict) else None
    return found if isinstance(found, str) else None


def left_out(stem: str, names: Sequence[str], total: int) -> tuple[str, ...]:
    """What to say, in a line, of tracks without a stem; nothing where there are none."""
    if not names:
        return ()
    said = f"{len(names)} of {total} tracks have no {stem} and are left out: {', '.join(names)}"
    return (printable(said),)


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
        resample(samples.mean(0), rate, sample_rate) for samples, rate in map(track.read, stems)
    ]
    lengths = {len(part) for part in parts}
    if len(lengths) > 1 or min(lengths) < time:
        raise ValueError(
            f"{track.name}: got stems of {sorted(lengths)} audio samples at {sample_rate} Hz, "
            f"expected one length of at least a frame, {time}"
        )
    generator = generator_of(f"{seed}/{track.name}")
    starts = torch.randint(len(parts[0]) - time + 1, (FRAMES,), generator=generator)
    whole = torch.stack(parts)
    return torch.stack([whole[:, start : start + time] for start in starts.tolist()])
