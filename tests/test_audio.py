import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from pyro_sep.audio import (
    active_frames,
    audio_files,
    load_audio,
    mu_law_bins,
    read_audio,
    resample,
    save_audio,
)
from pyro_sep.files import written_whole


def tone(frequency: float, rate: int, time: int) -> torch.Tensor:
    phase = 2 * torch.pi * frequency * torch.arange(time, dtype=torch.float64) / rate
    return (0.5 * torch.sin(phase)).float()


def peak_frequency(samples: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return float(spectrum.argmax()) * rate / len(samples)


def test_round_trip_is_exact_beyond_full_scale(tmp_path: Path) -> None:
    samples = 3 * torch.randn(1001, generator=torch.Generator().manual_seed(0))
    save_audio(tmp_path / "a.wav", samples, 16_000)
    recording = load_audio(tmp_path / "a.wav", 16_000)
    assert torch.equal(recording.samples, samples)
    assert torch.equal(recording.original, samples[None])
    assert (recording.sample_rate, recording.original_rate, recording.notes) == (16_000, 16_000, ())
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"


@pytest.mark.parametrize(("suffix", "step"), [("wav", 0.0), ("flac", 2.0**-23)])
def test_stereo_is_written(tmp_path: Path, suffix: str, step: float) -> None:
    samples = torch.rand(2, 1001, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / f"a.{suffix}"
    save_audio(path, samples, 44_100)
    written, rate = read_audio(path)
    assert rate == 44_100
    assert (written - samples).abs().max() <= step


def test_excerpts(tmp_path: Path) -> None:
    samples = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    save_audio(tmp_path / "a.wav", samples, 1000)
    for start, duration, kept in (
        (0.2, 0.3, slice(200, 500)),
        (0.9, None, slice(900, None)),
        (0.9, 5.0, slice(900, None)),
    ):
        recording = load_audio(tmp_path / "a.wav", 1000, start, duration)
        assert torch.equal(recording.samples, samples[kept])
        assert torch.equal(recording.original[0], samples[kept])
        (note,) = recording.notes
        assert note == f"cut to {len(samples[kept]) / 1000:.3f} s from {start:.3f} s on"
    assert load_audio(tmp_path / "a.wav", 1000, 0.0, 1.0).notes == ()
    for start, duration in ((1.0, None), (2.0, 0.1), (0.5, 0.0), (-0.1, None)):
        with pytest.raises(ValueError, match=r"a\.wav: got an excerpt.* of its 1\.000 s"):
            load_audio(tmp_path / "a.wav", 1000, start, duration)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff"])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_formats(tmp_path: Path, suffix: str, rate: int) -> None:
    channels = torch.stack([tone(440, rate, rate), tone(1000, rate, rate)])
    soundfile.write(tmp_path / f"a.{suffix}", channels.T.numpy(), rate)
    read, got = read_audio(tmp_path / f"a.{suffix}")
    assert (got, read.shape) == (rate, (2, rate))
    error = (read - channels).square().mean().sqrt()  # of tones of RMS 0.35
    assert error < (0.03 if suffix == "mp3" else 2**-15)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(440, 44_100, 44_100).numpy(), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = "got no readable audio" if suffix == "flac" else "the file is cut off, copy it again"
    with pytest.raises(ValueError, match=message) as caught:
        read_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_that_came_through_a_pipe(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 8_000, 8_000).numpy(), 8_000)
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert read_audio(path)[0].shape == (1, 8_000)


def test_stereo_is_mixed_down_and_resampled(tmp_path: Path) -> None:
    left, right = tone(440, 44_100, 44_100), tone(1000, 44_100, 44_100)
    soundfile.write(
        tmp_path / "a.wav", torch.stack([left, right], 1).numpy(), 44_100, subtype="FLOAT"
    )
    recording = load_audio(tmp_path / "a.wav", 16_000)
    expected = (tone(440, 16_000, 16_000) + tone(1000, 16_000, 16_000)) / 2
    assert recording.samples.dtype == torch.float32
    # Away from the ends, where the resampling kernel meets the zeros outside.
    assert torch.allclose(recording.samples[200:-200], expected[200:-200], atol=2e-3)
    assert recording.original_rate == 44_100
    assert torch.equal(recording.original, torch.stack([left, right]))
    assert recording.notes == (
        "mixed down from 2 channels",
        "resampled from 44100 Hz to 16000 Hz",
    )


@pytest.mark.parametrize("to_rate", [16_000, 22_050, 48_000])
def test_resampling_keeps_the_frequency(to_rate: int) -> None:
    resampled = resample(tone(1000, 44_100, 44_100), 44_100, to_rate, to_rate)
    assert resampled.shape == (to_rate,)
    assert peak_frequency(resampled, to_rate) == pytest.approx(1000, abs=0.5)


def test_resampling_crops_and_pads() -> None:
    samples = torch.ones(2, 3, 100)
    assert torch.equal(resample(samples, 8000, 8000, 60), torch.ones(2, 3, 60))
    padded = resample(samples, 8000, 8000, 130)
    assert torch.equal(padded[..., :100], samples)
    assert padded[..., 100:].shape == (2, 3, 30)
    assert not padded[..., 100:].any()


def write_bad(folder: Path, case: str) -> Path:
    path = folder / f"{case}.wav"
    good = np.zeros(1000, dtype=np.float32)
    if case == "text":
        path.write_text("this is no audio\n" * 50)
    elif case == "zero":
        path.touch()
    elif case == "folder":
        path.mkdir()
    elif case == "raw":
        path = folder / "a.raw"
        path.write_bytes(b"1234")
    else:
        good[10] = {"nan": np.nan, "infinity": -np.inf}.get(case, 0)
        soundfile.write(path, good[:0] if case == "empty" else good, 16_000, subtype="FLOAT")
        if case == "header":
            path.write_bytes(path.read_bytes()[:20])
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("text", "got no readable audio"),
        ("zero", "got no readable audio"),
        ("header", "got no readable audio"),
        ("raw", "got no readable audio"),
        ("folder", "got a folder"),
        ("empty", "got 0 audio samples"),
        ("nan", "got NaN or infinity"),
        ("infinity", "got NaN or infinity"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, case: str, message: str) -> None:
    path = write_bad(tmp_path, case)
    with pytest.raises(ValueError, match=message) as caught:
        load_audio(path, 16_000)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.wav: no such file"):
        load_audio(tmp_path / "none.wav", 16_000)


def test_unwritable_audio_is_refused(tmp_path: Path) -> None:
    samples = torch.zeros(10)
    with pytest.raises(ValueError, match=r"expected '\.wav' or '\.flac'"):
        save_audio(tmp_path / "a.mp3", samples, 16_000)
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 10\), expected \(time,\) or"):
        save_audio(tmp_path / "a.wav", samples[None, None], 16_000)
    with pytest.raises(ValueError, match=r"got a peak of 1\.2, expected at most 1 in a FLAC"):
        save_audio(tmp_path / "a.flac", samples - 1.2, 16_000)
    with pytest.raises(ValueError, match="NaN or infinity"):
        save_audio(tmp_path / "a.wav", samples / 0, 16_000)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_audio(tmp_path / "none" / "a.wav", samples, 16_000)
    (tmp_path / "d.wav").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save_audio(tmp_path / "d.wav", samples, 16_000)
    assert os.listdir(tmp_path) == ["d.wav"]


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    save_audio(path, torch.ones(10), 16_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"a\.wav: could not be written"):
            save_audio(path, torch.ones(100_000), 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.wav"]
    assert torch.equal(load_audio(path, 16_000).samples, torch.ones(10))


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_written_whole_leaves_nothing_behind(
    tmp_path: Path, exception: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with written_whole(path) as temporary:
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
            temporary.write_text("half")
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "new"


def test_files_imports_without_torch() -> None:
    code = "import sys, pyro_sep.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_audio_files_are_sorted_and_found_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.wav").mkdir()
    for name in ("z.WAV", "b/a.flac", "a.mp3", "notes.txt", "x.raw", "wav"):
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in audio_files(tmp_path)]
    assert found == ["a.mp3", "b/a.flac", "z.WAV"]


def test_audio_files_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        audio_files(tmp_path / "none")
    with pytest.raises(ValueError, match="got no audio file"):
        audio_files(tmp_path)


def test_silent_frames_are_skipped() -> None:
    # Levels -59, -61, 0 dB and silence; the last three samples fill no frame.
    amplitudes = torch.tensor([10 ** (-59 / 20), 10 ** (-61 / 20), 1.0, 0.0])
    samples = torch.cat([amplitudes.repeat_interleave(8), torch.ones(3)])
    frames = active_frames(samples, 8)
    assert torch.equal(frames, amplitudes[[0, 2], None].expand(2, 8))
    assert active_frames(samples, 8, -62).shape == (3, 8)
    assert active_frames(samples, 100).shape == (0, 100)
    with pytest.raises(ValueError, match="at least 1"):
        active_frames(samples, 0)
    with pytest.raises(ValueError, match="expected \\(time,\\)"):
        active_frames(samples[None], 8)


@pytest.mark.parametrize("bins", [2, 3, 255, 256])
def test_mu_law_cells(bins: int) -> None:
    edges, centres, widths = mu_law_bins(bins)
    assert (edges.shape, centres.shape, widths.shape) == ((bins + 1,), (bins,), (bins,))
    assert edges[0] == -1
    assert edges[-1] == 1
    assert (widths > 0).all()
    assert widths.sum() == pytest.approx(2, abs=1e-5)
    # The quantiser sends a cell's inside, just off its edges, to the cell.
    codes = torch.arange(bins)
    for weight in (0.01, 0.5, 0.99):
        inside = torch.lerp(edges[:-1], edges[1:], weight)
        assert torch.equal(torchaudio.functional.mu_law_encoding(inside, bins), codes)
    assert torch.equal(torchaudio.functional.mu_law_encoding(centres, bins), codes)


def test_mu_law_needs_two_bins() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        mu_law_bins(1)
