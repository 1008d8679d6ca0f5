"""Where isolated audio of one source comes from: a toy waveform, a folder, a stem of musdb18."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pyro_sep.audio import active_frames, audio_files, load_audio
from pyro_sep.data import toy
from pyro_sep.data.musdb import MusdbSource

LEVEL_FRAMES = 64
HELD_OUT_SHARE = 0.1  # end of every recording, kept from training for the audit


class SourceAudio(Protocol):
    """Clean audio of one source."""

    name: str
    sample_rate: int

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
    out.

    Args:
        folder: searched with its subfolders.
        sample_rate: to resample to, in Hz.
        time: audio samples of the frames by which silence is judged.
        stem: take the files of this name alone, as in FOLDER/TRACK/bass.wav.

    Raises:
        ValueError: no audio in the folder, none of the stem, an unreadable file, or nothing but
            silence.
    """

    def __init__(self, folder: Path, sample_rate: int, time: int, stem: str | None = None) -> None:
        self.name = stem or folder.resolve().name
        self.sample_rate = sample_rate
        paths = [path for path in audio_files(folder) if stem in (None, path.stem)]
        if not paths:
            raise ValueError(
                f"{folder}: got no file of the stem {stem}, expected TRACK/{stem}.wav below it"
            )
        training, held_out = [], []
        for path in paths:
            samples = load_audio(path, sample_rate).samples
            cut = int(len(samples) * (1 - HELD_OUT_SHARE))
            training.append(active_frames(samples[:cut], time).reshape(-1))
            held_out.append(active_frames(samples[cut:], time).reshape(-1))
        self._training, self._held_out = torch.cat(training), torch.cat(held_out)
        if len(self._training) < time:
            raise ValueError(
                f"{folder}: got {len(self._training)} audio samples that are not silent, expected "
                f"at least one frame of {time}; add recordings, or train on shorter frames"
            )

    def draw(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        """Random crops ``(count, time)``."""
        starts = torch.randint(len(self._training) - time + 1, (count,), generator=generator)
        return torch.stack([self._training[start : start + time] for start in starts.tolist()])

    def held_out(self, count: int, time: int) -> Tensor:
        """The first frames ``(frame, time)`` of what was held out."""
        return self._held_out[: len(self._held_out) // time * time].reshape(-1, time)[:count]


def open_source(spec: str, sample_rate: int, time: int, musdb: Path | None = None) -> SourceAudio:
    """A source from its name on the command line.

    Args:
        spec: ``toy:square``; ``musdb:bass``; a folder of recordings; or ``FOLDER:bass``, the
            bass.wav of every track below the folder.
        sample_rate: to resample recordings to, in Hz.
        time: audio samples of the frames by which silence is judged.
        musdb: root of musdb18.

    Raises:
        ValueError: none of these, or what it names cannot be read.
    """
    kind, _, name = spec.partition(":")
    if kind == "toy":
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
    """A source that goes by its name alone: a stem where there is musdb18, else a toy waveform."""
    return f"toy:{name}" if musdb is None else f"musdb:{name}"


def held_out_audio(
    names: Iterable[str], sample_rate: int, count: int, time: int, musdb: Path | None = None
) -> dict[str, Tensor]:
    """Held-out audio ``(frame, time)`` of sources that go by their names alone.

    Raises:
        ValueError: an unknown source, or one that is silent throughout.
    """
    audio = {
        name: open_source(default_spec(name, musdb), sample_rate, time, musdb).held_out(count, time)
        for name in names
    }
    if silent := [name for name, frames in audio.items() if not len(frames)]:
        raise ValueError(
            f"{musdb}: got no held-out frame of {', '.join(silent)} that is not silent, expected "
            "test tracks with it"
        )
    return audio


def training_level(audio: SourceAudio, time: int, seed: int = 0) -> float:
    """RMS of training frames of ``time`` audio samples, full scale 1, to three digits."""
    frames = audio.draw(LEVEL_FRAMES, time, torch.Generator().manual_seed(seed))
    return round(frames.square().mean().sqrt().item(), 3)
