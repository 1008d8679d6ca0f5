"""Which files a folder holds, for all commands alike."""

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import soundfile

#: Suffixes of audio beside the formats that libsndfile lists. The last line is ffmpeg's; .mp4 is
#: not among them: it is a film, or the mixture and the stems in one file.
SUFFIXES = {"aif", "aifc", "oga", "opus"} | {"aac", "ape", "m4a", "tta", "wma", "wv"}
RAW = {"raw"}  # has no header: its rate and sample format are unknown
ARCHIVE = "__MACOSX"  # folder of a zip of macOS, with a copy of every name and no audio


def files_below(folder: str | PathLike[str]) -> list[Path]:
    """The files in a folder and all below it, sorted, without those that systems put there.

    Names that begin with a dot, as macOS writes ``._bass.wav`` beside ``bass.wav``, and
    ``__MACOSX`` are left out. Links are followed, and a folder is entered once, however many lead
    to it. A link to nothing is among the files, so that whoever reads it says so.

    Args:
        folder: where to look.

    Raises:
        ValueError: not a folder.
        OSError: a folder that may not be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: got no folder of this name, expected one; no such folder")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders, linked = [folder], list[Path]()
    while folders or linked:  # a folder's own name goes before a link to it
        current = folders.pop() if folders else linked.pop(0)
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in _entries(current):
            if path.is_dir():
                (linked if path.is_symlink() else folders).append(path)
            elif path.is_file() or not path.exists():
                found.append(path)
    return sorted(found)


def audio_files(folder: str | PathLike[str]) -> list[Path]:
    """The audio files of :func:`files_below`, by suffix, in capitals or not.

    Args:
        folder: where to look.

    Raises:
        ValueError: not a folder, or no audio file in it.
        OSError: a folder that may not be read.
    """
    formats = {name.lower() for name in soundfile.available_formats()} - RAW | SUFFIXES
    found = [path for path in files_below(folder) if path.suffix.lower()[1:] in formats]
    if not found:
        raise ValueError(f"{folder}: got no audio file, expected WAV, FLAC, OGG or MP3 in it")
    return found


def _entries(folder: Path) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):
        if not name.startswith(".") and name != ARCHIVE:
            yield folder / name
