"""Instruments played note by note from recordings: kits of drums, and a bass of a few notes."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from rendering.ffmpeg import RATE, decode
from rendering.levels import Array

RELEASE = 2_205  # audio samples in which a note dies that is let go, 50 ms
KITS = "usr/share/hydrogen/data/drumkits"
#: What an instrument of a kit is called, by what it is, and the General MIDI notes that play it.
DRUMS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "kick": (r"kick|bass ?drum|^bd", (35, 36)),
    "stick": (r"stick|rim", (37,)),
    "clap": (r"clap", (39,)),
    "snare": (r"snare|^sn|^sd", (38, 40)),
    "open": (r"(hat|hh).*(op|semi)|open|ohh", (46,)),
    "pedal": (r"(hat|hh).*(pd|ped|foot)|pedal", (44,)),
    "closed": (r"hat|hh", (42,)),
    "low tom": (r"tom.*(low|lo|3|2)|floor", (41, 43, 45)),
    "tom": (r"tom", (47, 48, 50)),
    "ride": (r"ride", (51, 53, 59)),
    "crash": (r"crash|cymbal|china|splash", (49, 52, 55, 57)),
    "bell": (r"cowbell|agogo", (56, 67, 68)),
}
NEEDED = ("kick", "snare", "closed")  # without which a kit is none
INSTEAD = {"open": "closed", "pedal": "closed", "low tom": "tom", "tom": "low tom"}
INSTEAD |= {"crash": "ride", "ride": "crash", "stick": "snare", "clap": "snare"}

#: The audio of a note ``(time,)`` from its pitch, velocity from 0 to 1, and a random generator.
Instrument = Callable[[int, float, np.random.Generator], Array | None]


class Layer(NamedTuple):
    """A recording of a drum, and the velocities for which it is meant."""

    path: Path
    low: float
    high: float


def play(
    instrument: Instrument,
    notes: np.recarray,
    start: float,
    seconds: float,
    held: bool,
    rng: np.random.Generator,
) -> Array:
    """The notes of an excerpt, ``(time,)``; notes that the instrument lacks are left out.

    Args:
        instrument: that plays them.
        notes: of a song, with times in seconds.
        start: of the excerpt in the song, in seconds.
        seconds: its length.
        held: whether a note ends when it is let go, as that of a bass, or by itself.
        rng: chooses among recordings of one note.
    """
    audio = np.zeros(round(seconds * RATE))
    for on, off, _, pitch, velocity, _ in notes.tolist():
        first = round((on - start) * RATE)
        sound = instrument(int(pitch), velocity / 127, rng)
        if sound is None or not 0 <= first < len(audio):
            continue
        if held:
            sound = _let_go(sound, round((off - on) * RATE))
        sound = sound[: len(audio) - first]
        audio[first : first + len(sound)] += sound * (velocity / 127)
    return audio


def _let_go(sound: Array, time: int) -> Array:
    sound = sound[: time + RELEASE].copy()
    if len(sound) > time:
        sound[time:] *= np.linspace(1, 0, len(sound) - time)
    return sound


def drum_kits(root: Path) -> dict[str, Instrument]:
    """The kits of Debian's hydrogen-drumkits that have kick, snare and hat, by name."""
    kits = {}
    for path in sorted((root / KITS).glob("*/drumkit.xml")):
        drums = _drums(path)
        if all(kind in drums for kind in NEEDED):
            kits[path.parent.name] = _kit(drums)
    return kits


def _drums(path: Path) -> dict[str, list[Layer]]:
    """Recordings of a kit by what they are of; of two snares the first."""
    text = re.sub(r"\sxmlns=\S+?(?=[\s>])", "", path.read_text(errors="replace"), count=1)
    drums: dict[str, list[Layer]] = {}
    for drum in ElementTree.fromstring(text).iter("instrument"):
        name = (drum.findtext("name") or "").lower()
        kind = next((kind for kind, (words, _) in DRUMS.items() if re.search(words, name)), None)
        layers = [
            Layer(
                path.parent / (layer.findtext("filename") or ""),
                float(layer.findtext("min") or 0),
                float(layer.findtext("max") or 1),
            )
            for layer in [*drum.iter("layer"), drum]
            if layer.findtext("filename")
        ]
        layers = [layer for layer in layers if layer.path.is_file()]
        if kind is not None and layers:
            drums.setdefault(kind, layers)
    return drums


def _kit(drums: Mapping[str, Sequence[Layer]]) -> Instrument:
    kinds = {note: kind for kind, (_, notes) in DRUMS.items() for note in notes}
    recordings: dict[Path, Array] = {}

    def strike(pitch: int, velocity: float, rng: np.random.Generator) -> Array | None:
        kind = kinds.get(pitch, "")
        layers = drums.get(kind) or drums.get(INSTEAD.get(kind, ""))
        if not layers:
            return None
        fit = [layer.path for layer in layers if layer.low <= velocity <= layer.high]
        path = fit[rng.integers(len(fit))] if fit else layers[-1].path
        if path not in recordings:
            recordings[path] = decode(path)
        return recordings[path]

    return strike


def pitched(folder: Path) -> Instrument:
    """An instrument of recordings that are called after their notes: ``As1.wav``, ``E2.mp3``.

    A note that was not recorded is the nearest one, faster or slower.

    Raises:
        ValueError: no such recording in the folder.
    """
    paths = {note: path for path in sorted(folder.glob("*.*")) if (note := _note(path.stem))}
    if not paths:
        raise ValueError(f"{folder}: got no recordings of notes, expected As1.wav and the like")
    recordings: dict[int, NDArray[np.float64]] = {}

    def pluck(pitch: int, velocity: float, rng: np.random.Generator) -> Array:
        nearest = min(paths, key=lambda note: abs(note - pitch))
        if nearest not in recordings:
            recordings[nearest] = decode(paths[nearest])
        sound = recordings[nearest]
        places = np.arange(0, len(sound) - 1, 2 ** ((pitch - nearest) / 12))
        return np.interp(places, np.arange(len(sound)), sound)

    return pluck


def _note(name: str) -> int | None:
    """The MIDI note of a name as ``As1``; None where it is no note."""
    match = re.fullmatch(r"([A-G])(s?)(\d)", name)
    if match is None:
        return None
    step = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[match[1]]
    return 12 * (int(match[3]) + 1) + step + bool(match[2])
