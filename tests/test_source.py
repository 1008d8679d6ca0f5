from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from music import needs_ffmpeg, write_tracks

from pyro_sep.audio import load_audio
from pyro_sep.data import toy
from pyro_sep.data.musdb import MusdbSource
from pyro_sep.data.source import RecordingFolder, ToySource, held_out_audio, open_source

RATE, TIME, COUNT = 16_000, 256, 100


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stereo at 44.1 kHz, mono at 16 kHz, and silence; no two samples are alike."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "violin"
    (folder / "b").mkdir(parents=True)
    stereo = 0.1 * rng.standard_normal((44_100, 2))
    soundfile.write(folder / "a.wav", stereo, 44_100, subtype="FLOAT")
    mono = 0.1 * rng.standard_normal(RATE)
    mono[4 * TIME : 9 * TIME] = 0
    soundfile.write(folder / "b" / "mono.wav", mono, RATE, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE, subtype="FLOAT")
    return folder


def parts(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What should be trained on and what held out, cut by hand."""
    stereo = load_audio(folder / "a.wav", RATE).samples
    mono = load_audio(folder / "b" / "mono.wav", RATE).samples
    assert (len(stereo), len(mono)) == (RATE, RATE)
    cut = 14_400
    frames = cut // TIME * TIME
    kept = 1_600 // TIME * TIME
    training = torch.cat([stereo[:frames], mono[: 4 * TIME], mono[9 * TIME : frames]])
    return training, torch.cat([stereo[cut : cut + kept], mono[cut : cut + kept]])


def places(frame: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    starts = (samples[: len(samples) - len(frame) + 1] == frame[0]).nonzero()[:, 0]
    return starts[[torch.equal(samples[s : s + len(frame)], frame) for s in starts.tolist()]]


def test_crops_are_pieces_of_the_recordings(folder: Path) -> None:
    source = RecordingFolder(folder, RATE, TIME)
    assert (source.name, source.sample_rate) == ("violin", RATE)
    training, _ = parts(folder)
    crops = source.draw(COUNT, TIME, generator())
    assert crops.shape == (COUNT, TIME)
    starts = torch.cat([places(crop, training) for crop in crops])
    assert len(starts) == COUNT  # each crop is there, once
    # Every start is as probable as any other: mean and extremes of a uniform law.
    last = len(training) - TIME
    assert abs(starts.double().mean() / last - 0.5) < 4 / np.sqrt(12 * COUNT)
    assert starts.min() < 0.05 * last
    assert starts.max() > 0.95 * last
    assert torch.equal(source.draw(COUNT, TIME, generator()), crops)
    assert not torch.equal(source.draw(COUNT, TIME, generator(1)), crops)


def test_the_first_and_the_last_sample_can_be_drawn(tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    source = RecordingFolder(tmp_path, RATE, 6)
    crops = source.draw(2_000, 6, generator())  # 85 starts: one is missed by exp(-24)
    training = torch.from_numpy(samples[:90])
    assert torch.equal(crops.unique(dim=0), training.unfold(0, 6, 1).unique(dim=0))


def test_the_stem_of_every_track(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one/bass.wav", "two/bass.flac", "two/drums.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(RATE), RATE)
    source = open_source(f"{tmp_path}:bass", RATE, TIME)
    assert isinstance(source, RecordingFolder)
    assert source.name == "bass"
    kept = 1_600 // TIME * TIME
    bass = [load_audio(tmp_path / n, RATE).samples for n in ("one/bass.wav", "two/bass.flac")]
    expected = torch.cat([samples[14_400 : 14_400 + kept] for samples in bass])
    assert torch.equal(source.held_out(100, TIME).reshape(-1), expected)
    with pytest.raises(ValueError, match=r"no file of the stem voice, expected TRACK/voice\.wav"):
        open_source(f"{tmp_path}:voice", RATE, TIME)


def test_held_out_audio_by_name() -> None:
    audio = held_out_audio(["saw", "sine"], toy.SAMPLE_RATE, 3, TIME)
    assert list(audio) == ["saw", "sine"]
    for name, frames in audio.items():
        assert torch.equal(frames, ToySource(name).held_out(3, TIME))


@needs_ffmpeg
def test_held_out_audio_of_silence(tmp_path: Path) -> None:
    write_tracks(tmp_path)
    heard = held_out_audio(["bass"], RATE, 2, TIME, tmp_path)
    assert torch.equal(heard["bass"], MusdbSource(tmp_path, "bass", RATE, TIME).held_out(2, TIME))
    soundfile.write(tmp_path / "test" / "c" / "bass.wav", np.zeros((2 * RATE, 2)), RATE)
    with pytest.raises(ValueError, match="got no held-out frame of bass that is not silent"):
        held_out_audio(["drums", "bass"], RATE, 2, TIME, tmp_path)


def test_held_out_audio_is_never_drawn(folder: Path) -> None:
    source = RecordingFolder(folder, RATE, TIME)
    training, held_out = parts(folder)
    frames = source.held_out(100, TIME)
    assert torch.equal(frames.reshape(-1), held_out)
    assert torch.equal(source.held_out(3, TIME), frames[:3])
    assert not torch.isin(frames, training).any()
    assert not torch.isin(frames, source.draw(500, TIME, generator())).any()
    assert source.held_out(5, RATE).shape == (0, RATE)


def test_nothing_but_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="got 0 audio samples that are not silent") as caught:
        RecordingFolder(tmp_path, RATE, TIME)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recordings_shorter_than_a_frame(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got 0 .* at least one frame of 20000"):
        RecordingFolder(folder, RATE, 20_000)


def test_a_folder_without_audio(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no audio file"):
        RecordingFolder(tmp_path, RATE, TIME)


@pytest.mark.parametrize("name", toy.WAVEFORMS)
def test_toy_sources(name: str) -> None:
    source = open_source(f"toy:{name}", 44_100, TIME)
    assert isinstance(source, ToySource)
    assert (source.name, source.sample_rate) == (name, toy.SAMPLE_RATE)
    tones = source.draw(7, TIME, generator())
    assert torch.equal(tones, toy.draw_sources(name, 7, TIME, generator())[0])
    held_out = source.held_out(3, TIME)
    index = toy.WAVEFORMS.index(name)
    for i, frame in enumerate(held_out):
        assert torch.equal(frame, toy.toy_mixture("test", i, time=TIME).sources[index])


def test_toy_sources_hold_out_at_most_the_test_split() -> None:
    assert ToySource("saw").held_out(1_600, 2).shape == (1_500, 2)


def test_unknown_sources(folder: Path) -> None:
    assert isinstance(open_source(str(folder), RATE, TIME), RecordingFolder)
    with pytest.raises(ValueError, match="got 'noise', expected one of sine"):
        open_source("toy:noise", RATE, TIME)
    for spec in ("saw", "tuy:saw", str(folder / "none"), str(folder / "a.wav")):
        with pytest.raises(ValueError, match="expected toy:WAVEFORM or a folder") as caught:
            open_source(spec, RATE, TIME)
        assert repr(spec) in str(caught.value)
