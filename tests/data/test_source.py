from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pyro_sep.audio.io import load_audio
from pyro_sep.data import toy
from pyro_sep.data.source import RecordingFolder, ToySource, open_source

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
    source = RecordingFolder(folder, RATE, 20_000)  # of 14,400, 14,400 and silence
    assert source.draw(3, 20_000, generator()).shape == (3, 20_000)
    message = r"got recordings that are too short, 43200 audio samples to train on when joined"
    with pytest.raises(ValueError, match=message) as caught:
        RecordingFolder(folder, RATE, 50_000)
    assert "silent" not in str(caught.value)


@pytest.mark.parametrize("length", [150, 1_600, 3_412])
def test_one_shots_are_joined_end_to_end(tmp_path: Path, length: int) -> None:
    rng = np.random.default_rng(0)
    count, time = 60_000 // length, 3_072
    shots = (0.2 * rng.standard_normal((count, length))).astype(np.float32)
    for index, shot in enumerate(shots):
        soundfile.write(tmp_path / f"{index:04d}.wav", shot, RATE, subtype="FLOAT")
    source = RecordingFolder(tmp_path, RATE, time)
    joined = torch.from_numpy(shots.reshape(-1))
    cut = int(len(joined) * 0.9)
    for crop in source.draw(20, time, generator()):
        (start,) = places(crop, joined).tolist()
        assert start + time <= cut
    held_out = source.held_out(10, time)
    assert torch.equal(held_out.reshape(-1), joined[cut : cut + held_out.numel()])
    assert len(held_out)


def numbered(folder: Path, *lengths: int) -> None:
    """Recordings none of whose samples are alike."""
    folder.mkdir(exist_ok=True)
    values = np.linspace(0.1, 0.9, sum(lengths), dtype=np.float32)
    for index, samples in enumerate(np.split(values, np.cumsum(lengths[:-1]))):
        soundfile.write(folder / f"{index:04d}.wav", samples, RATE, subtype="FLOAT")


def test_one_shots_beside_long_recordings(tmp_path: Path) -> None:
    """The frames of the long ones are as they are without the short ones, and come first."""
    numbered(tmp_path / "all", 500, RATE, 800, 2 * RATE)
    numbered(tmp_path / "long", 500, RATE, 800, 2 * RATE)
    for name in ("0000.wav", "0002.wav"):
        (tmp_path / "long" / name).unlink()
    long, both = (RecordingFolder(tmp_path / name, RATE, 1_000) for name in ("long", "all"))
    before, after = long.held_out(99, 1_000), both.held_out(99, 1_000)
    assert torch.equal(after[: len(before)], before)
    drawn = both.draw(3_000, 1_000, generator())
    assert not torch.isin(drawn, after).any()
    assert drawn.min() < 0.1 + 1e-3  # the first one-shot is among them


def test_held_out_parts_shorter_than_a_frame_are_joined(tmp_path: Path) -> None:
    numbered(tmp_path, *[5_000] * 10)  # 4,500 to train on and 500 held out of each
    source = RecordingFolder(tmp_path, RATE, 1_000)
    assert source.held_out(99, 1_000).shape == (5, 1_000)
    assert not torch.isin(source.held_out(99, 1_000), source.draw(500, 1_000, generator())).any()


def test_tracks_without_the_stem_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one/Bass.WAV", "two/bass.flac", "two/drums.wav", "three/drums.wav", "x/y/z.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(RATE), RATE)
    (tmp_path / "two" / "draws").mkdir()
    soundfile.write(tmp_path / "two" / "draws" / "bass_01.wav", rng.standard_normal(9), RATE)
    source = open_source(f"{tmp_path}:BASS", RATE, TIME)
    assert source.notes == ("2 of 4 tracks have no BASS and are left out: three, x/y",)
    assert len(source.held_out(100, TIME)) == 2 * (1_600 // TIME)
    assert open_source(f"{tmp_path}/one", RATE, TIME).notes == ()


def test_recordings_whose_channels_cancel_are_named(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(tmp_path / "good.wav", noise, RATE)
    bad = np.stack([noise, -0.99 * noise], 1)
    soundfile.write(tmp_path / "bad.wav", bad, RATE, subtype="FLOAT")
    (note,) = RecordingFolder(tmp_path, RATE, TIME).notes
    assert note.startswith(f"{tmp_path / 'bad.wav'}: the channels cancel")
    soundfile.write(tmp_path / "bad.wav", np.stack([noise, -noise], 1), RATE)
    with pytest.raises(ValueError, match=r"bad\.wav: got nothing to separate.* cancel"):
        RecordingFolder(tmp_path, RATE, TIME)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_files_that_cannot_be_read_are_named(folder: Path, content: bytes | None) -> None:
    path = folder / "odd.wav"
    if content is None:
        path.symlink_to(folder / "nowhere.wav")
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"odd\.wav: ") as caught:
        RecordingFolder(folder, RATE, TIME)
    assert "\n" not in str(caught.value)


def test_a_folder_without_audio(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no audio file"):
        RecordingFolder(tmp_path, RATE, TIME)


@pytest.mark.parametrize("name", toy.WAVEFORMS)
def test_toy_sources(name: str) -> None:
    with pytest.raises(ValueError, match=f"source: got 44100 Hz for toy:{name}, expected 16000"):
        open_source(f"toy:{name}", 44_100, TIME)
    source = open_source(f"toy:{name}", toy.SAMPLE_RATE, TIME)
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
