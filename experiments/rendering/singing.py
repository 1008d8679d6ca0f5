"""A recorded voice that sings a melody: syllables through the WORLD vocoder.

WORLD (Morise, Yokomori & Ozawa 2016, doi 10.1587/transinf.2015EDP7457; package ``pyworld``)
parts speech into pitch, spectral envelope and aperiodicity. A note takes envelope and aperiodicity
of some syllable, its vowel held as long as the note, and a pitch of its own that glides and has
vibrato. The syllables are those of the Debian package klettres-data (GPL-2+), one speaker a
language.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from rendering.scores import package_files
from rendering.seeds import generator

RATE = 44_100  # Hz
HOP = 0.005  # seconds between frames
LANGUAGES = ("it", "es", "pt_BR", "cs", "lt", "ru", "fr", "de", "hu", "tn", "nds", "da")
SYLLABLES = 24  # of a voice, or a few more
CONSONANT = 24  # frames at most
VOICED = 20  # frames that a syllable has at least
LONGEST = 6.0  # seconds of a note
SHORTEST = 8  # frames of a note
SILENT = 1e-12  # power of a frame between notes

Array = NDArray[np.float64]


class Syllable(NamedTuple):
    """What WORLD hears in a syllable, ``(frame, bin)``; its vowel begins at frame ``onset``.

    A vowel that begins too softly to be kept has a negative onset: a note then starts with as many
    of its last frames, as negative indices count.
    """

    envelope: Array
    aperiodicity: Array
    onset: int


class Voice(NamedTuple):
    """Syllables of a speaker, and the median of their pitch as a MIDI note."""

    syllables: list[Syllable]
    pitch: float


class Note(NamedTuple):
    """A note of a melody, in seconds from the start of the excerpt."""

    on: float
    off: float
    pitch: float
    velocity: float


def import_pyworld() -> Any:
    """The vocoder.

    Raises:
        ValueError: it is not installed, or setuptools is without its pkg_resources.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources is deprecated
            import pyworld
    except ImportError as error:
        raise ValueError(
            f"pyworld: cannot be imported ({error}), expected it for voices that sing; "
            "pip install pyworld 'setuptools<81', or give --vocals choir"
        ) from error
    return pyworld


def recordings(root: Path, language: str) -> list[Path]:
    """Recorded syllables of one speaker.

    Raises:
        ValueError: there are none.
    """
    files = package_files(root, "klettres-data", f"usr/share/klettres/{language}/syllab/*.ogg")
    if not files:
        raise ValueError(
            f"{root}: got no syllables in {language!r}, expected those of the Debian package "
            "klettres-data; install it, unpack it into --root, or give --vocals choir"
        )
    return files


@cache
def voice(root: Path, language: str) -> Voice:
    """The voice of a speaker.

    Raises:
        ValueError: no pyworld, or no recordings.
    """
    files = recordings(root, language)
    syllables, pitches = [], []
    for path in files[:: max(1, len(files) // SYLLABLES)]:
        samples, rate = soundfile.read(path, always_2d=True)
        samples = np.ascontiguousarray(samples.mean(1))
        if rate != RATE or np.abs(samples).max() < 0.01:
            continue
        # WORLD gives NaN for exact zeros.
        samples = samples + 1e-5 * generator(language, path.name).standard_normal(len(samples))
        if (heard := analyse(samples)) is not None:
            syllables.append(heard[0])
            pitches.append(heard[1])
    return Voice(syllables, 69 + 12 * np.log2(np.median(pitches) / 440))


def analyse(samples: Array) -> tuple[Syllable, float] | None:
    """A syllable of vowel power 1 and its pitch in Hz; None without a vowel of some length."""
    world = import_pyworld()
    pitch, times = world.dio(samples, RATE, f0_floor=70, f0_ceil=500)
    pitch = world.stonemask(samples, pitch, times, RATE)
    voiced = np.flatnonzero(pitch > 0)
    if len(voiced) < VOICED:
        return None
    vowel = max(np.split(voiced, np.flatnonzero(np.diff(voiced) > 3) + 1), key=len)
    start, end = vowel[0], vowel[-1] + 1
    if end - start < VOICED:
        return None
    envelope = world.cheaptrick(samples, pitch, times, RATE, f0_floor=71.0)
    aperiodicity = world.d4c(samples, pitch, times, RATE)
    power = envelope.sum(1)
    loudest = power[start:end].max()
    loud = np.flatnonzero(power > 1e-3 * loudest)
    first, last = max(loud[0], start - CONSONANT), min(end, loud[-1] + 1)
    envelope, aperiodicity = envelope[first:last], aperiodicity[first:last]
    if last - start < 16 or not np.isfinite([envelope.sum(), aperiodicity.sum()]).all():
        return None
    syllable = Syllable(envelope / loudest, aperiodicity, start - first)
    return syllable, float(np.median(pitch[start:last]))


def melody(notes: np.recarray, start: float, seconds: float) -> list[Note]:
    """The highest line of some notes, one at a time."""
    line: list[Note] = []
    for on, off, _, pitch, velocity, _ in notes[np.lexsort((-notes.pitch, notes.on))].tolist():
        note = Note(on - start, off - start, pitch, velocity)
        if line and note.on - line[-1].on < 0.03:  # lower notes of a chord
            continue
        if line and note.on < line[-1].off:
            if pitch < line[-1].pitch - 7 and line[-1].off - note.on > 0.3:
                continue  # an inner note under a held one
            line[-1] = line[-1]._replace(off=note.on)
        line.append(note)
    return [
        note for note in line if note.off - note.on > 0.05 and note.off > 0 and note.on < seconds
    ]


def frames_of(syllable: Syllable, lead: int, length: int) -> NDArray[np.int64]:
    """Which frames of a syllable make a vowel of some length and the consonant before it."""
    onset, vowel = syllable.onset, len(syllable.envelope) - syllable.onset
    if length <= vowel:
        frames = np.linspace(0, vowel - 1, length)
    else:  # hold the middle of the vowel, keep its ends natural
        third = vowel // 3
        held = np.linspace(third, vowel - third - 1, length - 2 * third)
        frames = np.concatenate([np.arange(third), held, np.arange(vowel - third, vowel)])
    return np.concatenate([np.arange(onset - lead, onset), onset + frames]).astype(int)


def intonation(note: Note, before: Note | None, time: Array, rng: np.random.Generator) -> Array:
    """Pitch of a sung note, in MIDI notes, at times from its start; it glides from one before."""
    pitch = np.full(len(time), note.pitch)
    if before is not None:
        pitch += (before.pitch - note.pitch) * np.exp(-np.maximum(time, 0) / 0.025)
    vibrato = 0.35 * np.clip((time - 0.2) / 0.3, 0, 1) * np.sin(2 * np.pi * 5.6 * time)
    return pitch + (vibrato + 0.08 * rng.standard_normal())


def sing(
    singer: Voice, notes: np.recarray, start: float, seconds: float, rng: np.random.Generator
) -> Array:
    """A melody in someone's voice and a small room.

    Args:
        singer: whose voice.
        notes: of the vocals, in seconds of the song.
        start: of the excerpt in the song.
        seconds: its length.
        rng: chooses syllables, and how far a note is out of tune.

    Returns:
        Stereo audio ``(time, channel)`` at 44.1 kHz.
    """
    line = melody(notes, start, seconds)
    octaves = round((singer.pitch + 4 - np.median([note.pitch for note in line])) / 12)
    line = [note._replace(pitch=note.pitch + 12 * octaves) for note in line]
    count = int(seconds / HOP) + 1
    bins = singer.syllables[0].envelope.shape[1]
    envelope, aperiodicity = np.full((count, bins), SILENT), np.ones((count, bins))
    hertz = np.zeros(count)
    before: Note | None = None
    for note in line:
        syllable = singer.syllables[rng.integers(len(singer.syllables))]
        note = note._replace(off=min(note.off, note.on + LONGEST))
        first = round(note.on / HOP)
        length = round(note.off / HOP) - first
        if length < SHORTEST:
            continue
        rest = np.inf if before is None else max(0, note.on - before.off)
        lead = min(syllable.onset, int(min(rest, CONSONANT * HOP) / HOP)) if rest > 0 else 0
        frames = frames_of(syllable, lead, length)
        at = np.arange(first - lead, first - lead + len(frames))
        pitch = intonation(note, before if rest < 0.1 else None, (at - first) * HOP, rng)
        fade_in, fade_out = (np.arange(len(at)) + 1) / 3, (len(at) - np.arange(len(at))) / 8
        gain = (0.35 + 0.65 * note.velocity / 127) * np.clip(np.minimum(fade_in, fade_out), 0, 1)
        ok = (at >= 0) & (at < count)
        at, frames = at[ok], frames[ok]
        envelope[at] = syllable.envelope[frames] * (gain[ok] ** 2)[:, None] + SILENT
        aperiodicity[at] = syllable.aperiodicity[frames]
        tuned = 440 * 2 ** ((pitch[ok] - 69) / 12)
        hertz[at] = np.where(frames >= syllable.onset, tuned, 0)
        before = note
    dry = import_pyworld().synthesize(hertz, envelope, aperiodicity, RATE, 1000 * HOP)
    time = round(seconds * RATE)
    return in_room(np.pad(dry[:time], (0, max(0, time - len(dry)))), rng)


def in_room(dry: Array, rng: np.random.Generator) -> Array:
    """Mono audio ``(time,)`` with an echo, different left and right: ``(time, channel)``."""
    decay = np.exp(-7 * (np.arange(int(0.9 * RATE)) / RATE))
    echo = rng.standard_normal((len(decay), 2)) * decay[:, None]
    echo *= 0.22 / np.sqrt((echo**2).sum(0))
    wet = [dry + fftconvolve(dry, echo[:, channel])[: len(dry)] for channel in (0, 1)]
    return np.stack(wet, 1)
