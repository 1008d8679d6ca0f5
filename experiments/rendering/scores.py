"""Scores that Debian packages ship: songs, their notes, and excerpts as MIDI.

A package holds MIDI files, or Doom's WAD archives of them. It may be installed, or only unpacked,
into a folder with the others or into one of its own.
"""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_sep.checks.optional import import_optional

BEAT = 480  # ticks, half a second of an excerpt
HELD = 4.0  # seconds that a note sounds which no note-off ends
FIELDS = ("on", "off", "channel", "pitch", "velocity", "program")
NOTE = np.dtype([(name, float) for name in FIELDS])
DATA_ENTRY = (6, 38, 98, 99, 100, 101)  # controllers that make sense in sequence only
BANK_SELECT = (0, 32)
CHANNEL_MODE = 120  # and above: all notes off, and the like

#: Seconds, and a ``mido.Message`` of a channel.
Event = tuple[float, Any]


class Package(NamedTuple):
    """Where a Debian package keeps its scores, and whose they are."""

    pattern: str
    licence: str
    artist: str


PACKAGES = {
    "openttd-openmsx": Package(
        "usr/share/games/openttd/baseset/openmsx/*.mid", "GPL-2.0", "OpenMSX"
    ),
    "freedoom": Package("usr/share/games/doom/freedoom[12].wad", "BSD-3-Clause", "Freedoom"),
    "planetblupi-music-midi": Package(
        "usr/share/planetblupi/music/*.mid", "GPL-3.0+", "Planet Blupi"
    ),
}


@dataclass(frozen=True, eq=False)
class Song:
    """A MIDI score; it is read when it is asked for.

    Attributes:
        package: that ships it.
        file: of the package.
        title: in the file.
        data: the bytes of a MIDI file.
    """

    package: str
    file: str
    title: str
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Artist and title, as musdb18 names its tracks."""
        if self.file.endswith(".wad"):  # lumps of music are D_TITLE
            title = f"{Path(self.file).stem} {self.title[2:]}"
        else:
            title = self.title.replace("-", " ").replace("_", " ").title()
        return f"{PACKAGES[self.package].artist} - {title}"

    @cached_property
    def sha256(self) -> str:
        """Digest of its bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def events(self) -> list[Event]:
        """Its channel messages, in order.

        Raises:
            ValueError: no MIDI, or no mido to read it.
        """
        mido = import_mido()
        seconds, events = 0.0, []
        try:
            for message in mido.MidiFile(file=BytesIO(self.data)):
                seconds += message.time
                if not message.is_meta and hasattr(message, "channel"):
                    events.append((seconds, message))
        except (EOFError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.file}: got no MIDI in {self.title} ({error}), expected a score; install "
                f"{self.package} anew"
            ) from error
        return events

    @cached_property
    def notes(self) -> np.recarray:
        """Its notes as records: on and off in seconds, channel, pitch, velocity, program."""
        programs, rows = [0] * 16, []
        sounding: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for seconds, message in self.events:
            if message.type == "program_change":
                programs[message.channel] = message.program
            if message.type not in ("note_on", "note_off"):
                continue
            channel, pitch = message.channel, message.note
            if message.type == "note_on" and message.velocity:
                sounding[channel, pitch].append(len(rows))
                program = programs[channel]
                rows.append([seconds, seconds + HELD, channel, pitch, message.velocity, program])
            elif sounding[channel, pitch]:
                rows[sounding[channel, pitch].pop(0)][1] = seconds
        return np.array([tuple(row) for row in rows], NOTE).view(np.recarray)


def import_mido() -> Any:
    """The package that reads and writes MIDI.

    Raises:
        ValueError: it is not installed.
    """
    return import_optional("mido", "scores", "music")


def package_files(root: Path, package: str, pattern: str) -> list[Path]:
    """Files of a package that is installed or unpacked below ``root``, or in ``root/package``."""
    return sorted(root.glob(pattern)) or sorted((root / package).glob(pattern))


def find_songs(root: Path, packages: Sequence[str]) -> list[Song]:
    """All songs of some packages, each once.

    Raises:
        ValueError: there is none.
    """
    songs: dict[str, Song] = {}
    for package in packages:
        for path in package_files(root, package, PACKAGES[package].pattern):
            for title, data in _scores(path):
                song = Song(package, path.name, title, data)
                songs.setdefault(song.sha256, song)
    if not songs:
        raise ValueError(
            f"{root}: got no scores, expected those of {', '.join(packages)}; install one of these "
            "Debian packages, or give the folder where it is unpacked as --root"
        )
    return list(songs.values())


def _scores(path: Path) -> Iterator[tuple[str, bytes]]:
    """Titles and bytes of the MIDI files in a WAD, or of the one that this is."""
    data = path.read_bytes()
    if path.suffix != ".wad":
        yield path.stem, data
        return
    count, directory = struct.unpack_from("<ii", data, 4)
    for entry in range(directory, directory + 16 * count, 16):
        start, size, name = struct.unpack_from("<ii8s", data, entry)
        if data[start : start + 4] == b"MThd":
            yield name.rstrip(b"\0").decode("ascii"), data[start : start + size]


def as_midi(
    song: Song,
    notes: np.recarray,
    start: float,
    stop: float,
    instead: tuple[int, int] | None = None,
) -> Any:
    """Some notes of a song as MIDI, with programs and controllers as the song has them there.

    Args:
        song: whose channel messages these are.
        notes: what is to be heard.
        start: of the excerpt in the song, in seconds.
        stop: its end.
        instead: a channel and the program that it is to have, whatever the song says.

    Returns:
        A ``mido.MidiFile``.
    """
    mido = import_mido()
    # (tick, order of those at one tick, message)
    queue: list[tuple[int, int, Any]] = []

    def put(seconds: float, order: int, message: Any) -> None:
        queue.append((max(0, round((seconds - start) * 2 * BEAT)), order, message))

    if instead is not None:
        put(start, 0, mido.Message("program_change", channel=instead[0], program=instead[1]))
    before: dict[Any, Any] = {}  # the last message of each kind, in order
    for index, (seconds, message) in enumerate(song.events):
        if seconds >= stop:
            break
        kind, channel = message.type, message.channel
        control = message.control if kind == "control_change" else -1
        if kind in ("note_on", "note_off", "polytouch") or control >= CHANNEL_MODE:
            continue
        chooses = kind == "program_change" or control in BANK_SELECT
        if instead is not None and channel == instead[0] and chooses:
            continue
        if seconds >= start:
            put(seconds, 1, message)
        else:
            key = index if control in DATA_ENTRY else (kind, channel, control)
            before.pop(key, None)
            before[key] = message
    for message in before.values():
        put(start, 0, message)
    for on, off, channel, pitch, velocity, _ in notes.tolist():
        on, off = max(on, start), min(off, stop + 0.5)
        if on < stop and off > start:
            line = {"channel": int(channel), "note": int(pitch)}
            put(on, 3, mido.Message("note_on", velocity=int(velocity), **line))
            put(max(off, on + 0.01), 2, mido.Message("note_off", velocity=0, **line))
    track, last = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)]), 0
    for tick, _, message in sorted(queue, key=lambda entry: entry[:2]):
        track.append(message.copy(time=tick - last))
        last = tick
    end = int((stop - start + 1) * 2 * BEAT)
    track.append(mido.MetaMessage("end_of_track", time=max(0, end - last)))
    return mido.MidiFile(type=0, ticks_per_beat=BEAT, tracks=[track])
