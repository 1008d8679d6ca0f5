"""Where isolated audio of one source comes from: a toy waveform, a folder, a stem of musdb18."""

import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pyro_sep.audio.io import active_frames, load_audio, read_audio
from pyro_sep.audio.scanning import audio_files
from pyro_sep.audio.treble import mean_energies
from pyro_sep.checks.names import printable
from pyro_sep.data import toy
from pyro_sep.data.musdb import MusdbSource
from pyro_sep.data.tracks import INSIDE, left_out, stem_name

RMS_FRAMES = 64
ROUNDED = 1 << 10  # steps of full scale
RMS_MAX = 100.0  # RMS from which on samples are no audio of full scale 1
HELD_OUT_SHARE = 0.1  # end of every recording, kept from training for the audit


class SourceAudio(Protocol):
    """Clean audio of one source.

    >>> source = open_source("toy:sine", sample_rate=16_000, time=256)
    >>> source.name, source.held_out(2, 256).shape
    ('sine', torch.Size([2, 256]))
    """

    name: str
    sample_rate: int
    notes: tuple[str, ...]  # what is to be said of it, a line each

    @property
    def energies(self) -> Tensor:
        """Mean of :func:`pyro_sep.audio.treble.measure` per second of what is trained on."""

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Fresh training frames ``(count, time)``."""

    def held_out(self, count: int, time: int) -> Tensor:
        """At most ``count`` frames ``(frame, time)`` that training never sees."""


class ToySource:
    """Endless tones of one waveform; its held-out frames are the test split's, from index 0.

    Args:
        name: one of :data:`pyro_sep.data.toy.WAVEFORMS`.

    Raises:
        ValueError: unknown waveform.
    """

    sample_rate = toy.SAMPLE_RATE
    notes: tuple[str, ...] = ()
    energies = mean_energies([], sample_rate)  # nothing is above the band

    def __init__(self, name: str) -> None:
        toy.waveform(name, torch.zeros(1))
        self.name = name

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Fresh tones ``(count, time)``."""
        return toy.draw_sources(self.name, count, time, generator)[0]

    def held_out(self, count: int, time: int) -> Tensor:
        """Tones of the test mixtures 0 to ``count - 1``, of which there are 1,500."""
        indices = range(min(count, toy.SPLIT_SIZES["test"]))
        frames = [toy.toy_mixture("test", i, (self.name,), time).sources[0] for i in indices]
        return torch.stack(frames)


class RecordingFolder:
    """Recordings of one instrument, any rate and channel count, in a folder.

    Resampled and mixed down; silent frames are skipped; the last tenth of every recording is held
    out. Recordings shorter than a frame, as one-shots of a drum, are joined end to end to one, and
    so are held-out parts.

    Args:
        folder: searched with its subfolders.
        sample_rate: to resample to, in Hz.
        time: audio samples of the frames by which silence is judged.
        stem: take the files of this name alone, as in FOLDER/TRACK/bass.wav. Capitals do not
            matter; tracks without it are left out.

    Attributes:
        notes: which tracks were left out, and which recordings' channels cancel, a line each.

    Raises:
        ValueError: no audio in the folder, none of the stem, an unreadable file, nothing but
            silence, or less than a frame.
        OSError: a file or folder that may not be read.
    """

    def __init__(self, folder: Path, sample_rate: int, time: int, stem: str | None = None) -> None:
        self.name = stem or Path(os.path.abspath(folder)).name
        self.sample_rate = sample_rate
        self.notes: tuple[str, ...] = ()
        paths = audio_files(folder)
        if stem is not None:
            paths, self.notes = _of_stem(folder, paths, stem)
        self._paths, recordings = paths, []
        for path in paths:
            recording = load_audio(path, sample_rate)
            recordings.append(recording.samples)
            self.notes += tuple(
                f"{printable(path)}: {note}" for note in recording.notes if "cancel" in note
            )
        whole = _joined(recordings, time, lambda recording: _split(recording)[0])
        training, held_out = zip(*map(_split, whole), strict=True)
        self._training = _heard(training, time)
        self._held_out = _heard(_joined(held_out, time), time)
        if (longest := max(map(len, training))) < time:
            raise ValueError(
                f"{printable(folder)}: got recordings that are too short, {longest} audio samples "
                f"to train on when joined, expected at least one frame of {time}; add recordings, "
                "or train on shorter frames"
            )
        if len(self._training) < time:
            raise ValueError(
                f"{printable(folder)}: got {len(self._training)} audio samples that are not "
                f"silent, expected at least one frame of {time}; add recordings, or train on "
                "shorter frames"
            )

    @cached_property
    def energies(self) -> Tensor:
        """Mean of :func:`pyro_sep.audio.treble.measure` per second; files are read once more."""
        read = map(read_audio, self._paths)
        heard = ((_split(samples.mean(0))[0], rate) for samples, rate in read)
        return mean_energies(heard, self.sample_rate)

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Random crops ``(count, time)``."""
        starts = torch.randint(len(self._training) - time + 1, (count,), generator=generator)
        return torch.stack([self._training[start : start + time] for start in starts.tolist()])

    def held_out(self, count: int, time: int) -> Tensor:
        """The first frames ``(frame, time)`` of what was held out."""
        return self._held_out[: len(self._held_out) // time * time].reshape(-1, time)[:count]


def _of_stem(folder: Path, paths: Sequence[Path], stem: str) -> tuple[list[Path], tuple[str, ...]]:
    """The files of a stem, and what to say of the tracks that lack it."""
    found = [path for path in paths if stem_name(path.stem) == stem_name(stem)]
    if not found:
        raise ValueError(
            printable(f"{folder}: got no file of the stem {stem}, expected ")
            + printable(f"TRACK/{stem}.wav below it")
        )
    tracks = dict.fromkeys(path.parent for path in paths if path.parent.name not in INSIDE)
    having = {path.parent for path in found}
    without = [track.relative_to(folder).as_posix() for track in tracks if track not in having]
    return found, left_out(stem, without, len(tracks))


def _split(recording: Tensor) -> tuple[Tensor, Tensor]:
    """What is trained on, and what is held out."""
    cut = int(len(recording) * (1 - HELD_OUT_SHARE))
    return recording[:cut], recording[cut:]


def _joined(
    parts: Sequence[Tensor], time: int, judged: Callable[[Tensor], Tensor] = lambda part: part
) -> list[Tensor]:
    """Parts, those of which less than a frame counts joined end to end to one, which is last."""
    short = [part for part in parts if len(judged(part)) < time]
    long = [part for part in parts if len(judged(part)) >= time]
    return [*long, torch.cat(short)] if short else long


def _heard(parts: Sequence[Tensor], time: int) -> Tensor:
    """Frames of parts that are not silent, end to end."""
    return torch.cat([active_frames(part, time).reshape(-1) for part in parts])


class MixedSource:
    r"""Audio of one source from several places, the law of its frames a mixture of theirs.

    .. math:: p(s) = \sum_i w_i \, p_i(s) \Big/ \sum_i w_i

    Args:
        parts: audio and its weight; the source is called after the first.

    Attributes:
        notes: those of all parts.

    >>> source = MixedSource([(ToySource("sine"), 1.0), (ToySource("saw"), 0.5)])
    >>> source.name, source.held_out(3, 256).shape
    ('sine', torch.Size([3, 256]))
    """

    def __init__(self, parts: Sequence[tuple[SourceAudio, float]]) -> None:
        self._parts = [audio for audio, _ in parts]
        self._weights = torch.tensor([weight for _, weight in parts])
        self.name, self.sample_rate = self._parts[0].name, self._parts[0].sample_rate
        self.notes = tuple(note for audio in self._parts for note in audio.notes)

    @property
    def energies(self) -> Tensor:
        """Those of all places, by their weights."""
        pairs = zip(self._parts, self._weights, strict=True)
        return torch.stack([weight * audio.energies for audio, weight in pairs]).sum(0)

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Fresh training frames ``(count, time)``, the place of each by lot."""
        which = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        frames = torch.empty(count, time)
        for place, audio in enumerate(self._parts):
            mine = which == place
            if mine.any():
                frames[mine] = audio.draw(int(mine.sum()), time, generator)
        return frames

    def held_out(self, count: int, time: int) -> Tensor:
        """At most ``count`` frames ``(frame, time)``, from each place its share."""
        bounds = (self._weights.cumsum(0) / self._weights.sum() * count).round().long().tolist()
        shares = [end - start for start, end in zip([0, *bounds], bounds, strict=False)]
        pairs = zip(self._parts, shares, strict=True)
        return torch.cat([audio.held_out(share, time) for audio, share in pairs if share])


def open_sources(
    specs: str | Sequence[str], sample_rate: int, time: int, musdb: Path | None = None
) -> SourceAudio:
    """One source from one or several places, each with its weight: ``B:0.3``.

    Args:
        specs: as :func:`open_source` takes them; a number after the last colon is a weight, else
            1.
        sample_rate: to resample recordings to, in Hz.
        time: audio samples of the frames by which silence is judged.
        musdb: root of musdb18.

    Raises:
        ValueError: as :func:`open_source`; none, or a weight that is not above 0.

    >>> open_sources(["toy:saw", "toy:sine:0.3"], sample_rate=16_000, time=256).name
    'saw'
    """
    weighed = [_weighed(spec) for spec in ([specs] if isinstance(specs, str) else specs)]
    if not weighed:
        raise ValueError("source: got none, expected at least one")
    parts = [(open_source(spec, sample_rate, time, musdb), weight) for spec, weight in weighed]
    return parts[0][0] if len(parts) == 1 else MixedSource(parts)


def _weighed(spec: str) -> tuple[str, float]:
    """A place and its weight."""
    place, _, last = spec.rpartition(":")
    if not place or Path(spec).is_dir():
        return spec, 1.0
    try:
        weight = float(last)
    except ValueError:
        return spec, 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"source: got the weight {last} in {spec!r}, expected a number above 0")
    return place, weight


def open_source(spec: str, sample_rate: int, time: int, musdb: Path | None = None) -> SourceAudio:
    """A source from its name on the command line.

    Args:
        spec: ``toy:square``; ``musdb:bass``; a folder of recordings; or ``FOLDER:bass``, the
            bass.wav of every track below the folder.
        sample_rate: to resample recordings to, in Hz.
        time: audio samples of the frames by which silence is judged.
        musdb: root of musdb18.

    Raises:
        ValueError: none of these, what it names cannot be read, or a tone at another rate.

    >>> open_source("toy:saw", sample_rate=16_000, time=256).name
    'saw'
    """
    if not spec.strip():
        raise ValueError("source: got no name, expected toy:WAVEFORM, a folder, or FOLDER:STEM")
    kind, _, name = spec.partition(":")
    if kind == "toy":
        if sample_rate != toy.SAMPLE_RATE:
            raise ValueError(
                f"source: got {sample_rate} Hz for {spec}, expected {toy.SAMPLE_RATE}, its own rate"
            )
        return ToySource(name)
    if kind == "musdb":
        if musdb is None:
            raise ValueError(f"source: got {spec!r} without musdb18; give its root as --musdb ROOT")
        return MusdbSource(musdb, name, sample_rate, time)
    if Path(spec).is_dir():
        return RecordingFolder(Path(spec), sample_rate, time)
    folder, _, stem = spec.rpartition(":")
    if folder and Path(folder).is_dir():
        return RecordingFolder(Path(folder), sample_rate, time, stem)
    raise ValueError(
        f"source: got {spec!r}, expected toy:WAVEFORM or a folder of audio files, FOLDER:STEM or "
        "musdb:STEM"
    )


def default_spec(name: str, musdb: Path | None) -> str:
    """The recordings that a prior's name alone stands for: a stem of musdb18, or a toy waveform.

    Raises:
        ValueError: another name, without musdb18.
    """
    if musdb is not None:
        return f"musdb:{name}"
    if name not in toy.WAVEFORMS:
        raise ValueError(
            f"source: got no recordings for the prior {name!r}, expected a folder of them; give "
            f"--source {name}=FOLDER"
        )
    return f"toy:{name}"


def fingerprint(audio: SourceAudio, time: int, seed: int = 0) -> str:
    """By what audio is known again: a training frame, rounded as other machines round it."""
    frame = audio.draw(1, time, torch.Generator().manual_seed(seed)).double()
    return sha256((frame * ROUNDED).round().numpy().tobytes()).hexdigest()[:16]


def training_rms(audio: SourceAudio, time: int, seed: int = 0) -> float:
    """RMS of training frames of ``time`` audio samples, full scale 1, to three decimals.

    Of audio that is too quiet for these, to three digits.
    """
    frames = audio.draw(RMS_FRAMES, time, torch.Generator().manual_seed(seed))
    rms = frames.square().mean().sqrt().item()
    if rms > RMS_MAX:
        raise ValueError(
            f"source: got recordings of an RMS of {rms:.3g}, expected full scale 1; divide the "
            "samples by the largest number of their format"
        )
    return round(rms, 3) or float(f"{rms:.3g}")
