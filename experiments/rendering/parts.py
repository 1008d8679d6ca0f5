"""Which lines of a score are bass, drums, vocals and other, and which excerpts have all of them.

As in Slakh (Manilow et al. 2019, arXiv 1909.08494) the General MIDI program of a line says what it
is. Scores have no singers: the vocals are the line that is most like a song.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from rendering.scores import Song

STEMS = ("bass", "drums", "other", "vocals")
LEAST = {"bass": 0.5, "drums": 0.6, "other": 0.5, "vocals": 0.4}  # coverage of an excerpt
HOP = 5.0  # seconds between the starts of excerpts that are tried
NOTES = 40  # that an excerpt has at least
LOW = 52  # MIDI note, highest median of a line that is taken for the bass
REPEAT = 16  # notes in a row that are the same bars again

# General MIDI programs, from 0
DRUM_CHANNEL = 9
PERCUSSIVE = (112, 113, 115, 116, 117, 118, 119)
BASSES = range(32, 40)
CHOIRS = (52, 53, 54, 85, 91)
LEADS = (22, 40, 41, *range(56, 85), 110)


class Excerpt(NamedTuple):
    """Some seconds of a song.

    Attributes:
        start: in the song, in seconds.
        seconds: its length.
        fitness: how well it can be sung and how little of it is silent.
        notes: by stem.
        singer: channel of the vocals.
    """

    start: float
    seconds: float
    fitness: float
    notes: dict[str, np.recarray]
    singer: int

    @property
    def stop(self) -> float:
        """Its end in the song, in seconds."""
        return self.start + self.seconds


def coverage(notes: np.recarray, start: float, stop: float) -> float:
    """Share of the half seconds of an excerpt in which notes sound."""
    heard = np.zeros(round((stop - start) / 0.5), bool)
    for on, off in zip(notes.on, notes.off, strict=True):
        first, end = (on - start) / 0.5, (max(off, on + 0.1) - start) / 0.5
        heard[max(0, int(first)) : int(np.ceil(end))] = True
    return float(heard.mean())


def song_likeness(line: np.recarray, program: int, start: float, stop: float) -> float:
    """How much a line is like a song: steady, one note at a time, neither fast nor short.

    Zero where nobody could sing it.
    """
    covered = coverage(line, start, stop)
    length = np.median(np.minimum(line.off, stop) - np.maximum(line.on, start))
    times = [np.arange(on, off, 0.05) for on, off in zip(line.on, line.off, strict=True)]
    at_once = np.histogram(np.concatenate(times), np.arange(start, stop, 0.05))[0]
    if covered < LEAST["vocals"] or not at_once.any():
        return 0.0
    voices = at_once[at_once > 0].mean()
    in_range = 50 <= np.median(line.pitch) <= 88
    if voices > 2.0 or not in_range or length < 0.12 or len(np.unique(line.pitch)) < 4:
        return 0.0
    kind = 1.6 if program in CHOIRS else 1.3 if program in LEADS else 1.0
    slow = min(1.0, 4.0 * (stop - start) / len(line))
    return float(kind * covered / voices**2 * slow * min(1.0, length / 0.25))


def split(notes: np.recarray, start: float, seconds: float) -> Excerpt | None:
    """Split the notes of an excerpt over the stems; None if one of them would be nearly empty.

    Drums are channel 10 and percussive programs. Bass is the programs 33 to 40, or where they are
    missing the lowest line. A line is a program of a channel.
    """
    stop = start + seconds
    notes = notes[(notes.on < stop) & (notes.off > start)]
    if len(notes) < NOTES:
        return None
    drums = (notes.channel == DRUM_CHANNEL) | np.isin(notes.program, PERCUSSIVE)
    bass = ~drums & np.isin(notes.program, BASSES)
    rest = notes[~drums & ~bass]
    lines = {
        key: ~drums & ~bass & (notes.channel == key[0]) & (notes.program == key[1])
        for key in sorted(set(zip(rest.channel, rest.program, strict=True)))
    }
    if coverage(notes[bass], start, stop) < LEAST["bass"]:
        low = [
            (np.median(notes[mask].pitch), key)
            for key, mask in lines.items()
            if coverage(notes[mask], start, stop) > LEAST["bass"]
        ]
        if not low or min(low)[0] > LOW:
            return None
        bass = bass | lines.pop(min(low)[1])
    likeness = {key: song_likeness(notes[mask], key[1], start, stop) for key, mask in lines.items()}
    song = max(likeness, key=lambda key: likeness[key], default=None)
    if song is None or not likeness[song]:
        return None
    vocals = lines.pop(song)
    parts = {"bass": bass, "drums": drums, "other": ~(bass | drums | vocals), "vocals": vocals}
    covered = {stem: coverage(notes[mask], start, stop) for stem, mask in parts.items()}
    if any(covered[stem] < LEAST[stem] for stem in STEMS):
        return None
    by_stem = {stem: notes[mask] for stem, mask in parts.items()}
    fitness = likeness[song] * min(covered.values())
    return Excerpt(start, seconds, fitness, by_stem, int(song[0]))


@cache
def excerpts(song: Song, seconds: float) -> tuple[Excerpt, ...]:
    """Those that have all stems and neither overlap nor repeat one another, the best first."""
    end = song.notes.off.max(initial=0)
    starts = np.arange(0, max(end - seconds, 0), HOP).tolist()
    found = [split(song.notes, start, seconds) for start in starts]
    kept: list[Excerpt] = []
    heard: set[bytes] = set()
    for this in sorted(filter(None, found), key=lambda this: (-this.fitness, this.start)):
        if all(abs(this.start - other.start) >= seconds for other in kept):
            tune = _shingles(song.notes, this.start, this.stop)
            if len(tune - heard) >= 0.5 * len(tune):
                kept.append(this)
                heard |= tune
    return tuple(kept)


def _shingles(notes: np.recarray, start: float, stop: float) -> set[bytes]:
    """Every run of pitches of an excerpt, without its drums."""
    notes = notes[(notes.channel != DRUM_CHANNEL) & (notes.on >= start) & (notes.on < stop)]
    order = np.lexsort((notes.pitch, notes.on.round(2)))
    pitches = notes.pitch[order].astype(np.uint8).tobytes()
    return {pitches[first : first + REPEAT] for first in range(len(pitches) - REPEAT)}
