import math
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pyro_sep.audio.io import (
    active_frames,
    load_audio,
    read_audio,
    save_audio,
)
from pyro_sep.audio.resampling import resample
from pyro_sep.storage.files import atomic_write


def tone(frequency: float, rate: int, time: int) -> torch.Tensor:
    phase = 2 * torch.pi * frequency * torch.arange(time, dtype=torch.float64) / rate
    return (0.5 * torch.sin(phase)).float()


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


CONTAINERS = {  # that say, in a header or by a mark at the end, how long they are
    "WAV": "PCM_24",
    "WAVEX": "FLOAT",
    "AIFF": "PCM_16",
    "FLAC": "PCM_16",
    "RF64": "DOUBLE",
    "W64": "PCM_16",
    "AU": "PCM_16",
    "CAF": "PCM_16",
    "OGG": "VORBIS",
    "MP3": "MPEG_LAYER_III",
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_a_file_that_is_cut_off(tmp_path: Path, container: str, share: float) -> None:
    path = tmp_path / "a.audio"
    noise = 0.1 * np.random.default_rng(0).standard_normal((44_100, 2))
    soundfile.write(path, noise, 44_100, format=container, subtype=CONTAINERS[container])
    assert read_audio(path)[0].shape == (2, 44_100)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"cut off, copy it again$|End of file") as caught:
        read_audio(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_opus_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    noise = 0.1 * np.random.default_rng(0).standard_normal(480_000)
    soundfile.write(path, noise, 48_000, format="OGG", subtype="OPUS")
    whole = path.read_bytes()
    assert read_audio(path)[0].shape == (1, 480_000)
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            read_audio(path)


def sized(path: Path, container: str, size: bytes) -> bytes:
    """A file of two channels whose header gives its audio another size."""
    soundfile.write(path, np.full((8_000, 2), 0.25), 8_000, format=container, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    start = {
        "AU": 8,
        "RF64": 28,
        "W64": content.find(b"data") + 16,
        "AIFF": content.find(b"SSND") + 4,
    }.get(container, content.find(b"data") + 4)
    content[start : start + len(size)] = size
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize(
    ("container", "size"),
    [
        ("WAV", (0x7FFFF000).to_bytes(4, "little")),
        ("WAV", (0x80000000).to_bytes(4, "little")),
        ("WAV", b"\xff" * 4),
        ("WAV", bytes(4)),
        ("AU", b"\xff" * 4),
        ("AU", bytes(4)),
        ("AIFF", bytes(4)),
        ("AIFF", b"\xff" * 4),
        ("W64", bytes(8)),
        ("RF64", bytes(8)),
        ("RF64", b"\xff" * 8),
        ("CAF", b"\xff" * 8),
    ],
)
def test_a_size_that_nobody_counted(tmp_path: Path, container: str, size: bytes) -> None:
    """As ffmpeg, sox, GStreamer or a killed recorder write it."""
    sized(tmp_path / "a.audio", container, size)
    samples, _ = read_audio(tmp_path / "a.audio")
    assert samples.shape[-1] in (7_999, 8_000)  # a CAF's size counts four bytes that are no audio
    assert (samples == 0.25).all()
    third = load_audio(tmp_path / "a.audio", 8_000, 0.25, 0.25)
    assert torch.equal(third.original, samples[:, :2_000])


@pytest.mark.parametrize("container", ["WAV", "AU"])
def test_a_size_of_zero_that_is_true(tmp_path: Path, container: str) -> None:
    path = tmp_path / "a.audio"
    soundfile.write(path, np.zeros((0, 2)), 8_000, format=container, subtype="PCM_16")
    for tail in (b"", b"LIST\x04\0\0\0INFO"):
        if container == "WAV":
            path.write_bytes(path.read_bytes() + tail)
        with pytest.raises(ValueError, match="got 0 audio samples"):
            read_audio(path)


def test_huge_sizes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.audio"
    for container, size in (
        ("WAV", (3 * 10**9).to_bytes(4, "little")),
        ("RF64", (2**50).to_bytes(8, "little")),
        ("CAF", (2**60).to_bytes(8, "big")),
        ("AU", (10**9).to_bytes(4, "big")),
    ):
        sized(path, container, size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="cut off"):
            read_audio(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    samples = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0)) - 0.5
    save_audio(path, samples, 44_100)
    whole, _ = read_audio(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read_audio(path)[0], whole)
    assert torch.equal(load_audio(path, 44_100, 1.0, 1.0).original, whole[:, 44_100:88_200])


def mp3(path: Path, bitrates: tuple[float, ...], counted: bool) -> torch.Tensor:
    """Loud noise and silence, of changing rates in bytes a second; the count may be left out."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(88_200).clip(-3, 3)
    signal = np.concatenate([noise * level for level in bitrates])
    soundfile.write(
        path, signal, 44_100, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    content = path.read_bytes()
    if not counted:  # without its first frame, which says how many there are
        second = content.index(content[:2], 4)
        path.write_bytes(content[second:])
    return torch.from_numpy(signal).float()


@pytest.mark.parametrize("levels", [(1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)])
def test_an_mp3_that_does_not_say_how_long_it_is(tmp_path: Path, levels: tuple[float, ...]) -> None:
    signal = mp3(tmp_path / "a.mp3", levels, counted=False)
    samples, _ = read_audio(tmp_path / "a.mp3")
    assert abs(samples.shape[-1] - len(signal)) < 4 * 1_152
    sought = load_audio(tmp_path / "a.mp3", 44_100, 6.0, 0.5)
    assert torch.equal(sought.original, samples[:, 264_600 : 264_600 + 22_050])


def test_a_counted_mp3_is_read_as_it_always_was(tmp_path: Path) -> None:
    signal = mp3(tmp_path / "a.mp3", (0.0, 1.0, 0.0), counted=True)
    whole = soundfile.read(tmp_path / "a.mp3", dtype="float32", always_2d=True)[0].T
    assert whole.shape[-1] == len(signal)
    assert np.array_equal(read_audio(tmp_path / "a.mp3")[0], whole)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "IMA_ADPCM"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", None)],
)
def test_an_excerpt_is_a_piece_of_the_whole(
    tmp_path: Path, suffix: str, subtype: str | None
) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = 0.1 * np.random.default_rng(0).standard_normal((300_000, 2))
    soundfile.write(path, noise, 44_100, subtype=subtype)
    whole, _ = read_audio(path)
    for start, duration in ((0.0, 0.5), (1.234, 0.1), (5.0, None), (6.5, 99.0)):
        first = round(start * 44_100)
        last = None if duration is None else first + round(duration * 44_100)
        recording = load_audio(path, 44_100, start, duration)
        assert torch.equal(recording.original, whole[:, first:last])


def test_an_excerpt_takes_the_memory_of_an_excerpt(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(30):
            file.write(np.full((441_000, 2), 0.1))
    code = (
        "import resource as r, sys; from pyro_sep.audio.io import load_audio\n"
        "before = r.getrusage(r.RUSAGE_SELF).ru_maxrss\n"
        "assert len(load_audio(sys.argv[1], 44_100, 290.0, 1.0).samples) == 44_100\n"
        "sys.exit(r.getrusage(r.RUSAGE_SELF).ru_maxrss - before > 30_000)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 0  # all: 105 MB


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "OGG", "MP3", "CAF"])
def test_pipes(tmp_path: Path, container: str) -> None:
    path, pipe = tmp_path / "a.audio", tmp_path / "pipe"
    noise = 0.1 * np.random.default_rng(0).standard_normal((50_000, 2))
    soundfile.write(path, noise, 44_100, format=container)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    piped, rate = read_audio(pipe)
    writer.join()
    assert rate == 44_100
    assert torch.equal(piped, read_audio(path)[0])


def test_pipes_that_are_cut_off_or_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8_000), 8_000)
    content = (tmp_path / "a.wav").read_bytes()
    for sent, limit, message in (
        (content[:5_000], 10**6, "cut off"),
        (b"", 10**6, "got no readable audio"),
        (content, 10_000, "got a pipe of more than 0 GiB, expected less"),
    ):
        monkeypatch.setattr("pyro_sep.audio.inputs.MAX_PIPE", limit)
        out, into = os.pipe()
        with open(into, "wb") as file:
            file.write(sent)
        with pytest.raises(ValueError, match=message):
            read_audio(f"/dev/fd/{out}")
        os.close(out)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"])
def test_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"^{device}: got a device, expected a file or a pipe"):
        read_audio(device)


@pytest.mark.parametrize(
    "name", [b"caf\xe9.wav", b"a\nb.wav", b"\x1b[2J.wav", b"x" * 251 + b".wav"]
)
def test_names_of_any_bytes(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    with path.open("wb") as file:
        soundfile.write(file, np.full(800, 0.5), 16_000, format="WAV")
    assert (read_audio(path)[0] == 0.5).all()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut off") as caught:
        read_audio(path)
    str(caught.value).removeprefix(str(tmp_path)).encode("ascii")  # prints everywhere
    assert str(caught.value).isprintable()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such file") as missing:
        read_audio(path)
    assert str(missing.value).isprintable()


@pytest.mark.parametrize("rate", [8, 999, 768_001, 2_000_000_000])
def test_rates_that_no_audio_has(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    for read in (read_audio, partial(load_audio, sample_rate=16_000)):
        with pytest.raises(ValueError, match=rf"a\.wav: got a sample rate of {rate} Hz"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16", "PCM_24"])
@pytest.mark.parametrize(("gain", "refused"), [(-1.0, True), (-0.99, False), (-0.9, False)])
def test_channels_that_cancel(tmp_path: Path, subtype: str, gain: float, refused: bool) -> None:
    path, left = tmp_path / "a.wav", tone(440, 16_000, 16_000)
    soundfile.write(path, torch.stack([left, gain * left], 1).numpy(), 16_000, subtype=subtype)
    if refused:
        with pytest.raises(ValueError, match=r"the channels cancel: .* --channel 1, .* side$"):
            load_audio(path, 16_000)
    else:
        said = load_audio(path, 16_000).notes[-1]
        assert "channels cancel" in said
        assert "phase inverted" in said
    for channel, expected, note in (
        (1, left, "took channel 1 of 2"),
        ("2", gain * left, "took channel 2 of 2"),
        ("side", (1 - gain) / 2 * left, "took the side, half the difference of its 2 channels"),
    ):
        recording = load_audio(path, 16_000, channel=channel)
        assert torch.allclose(recording.samples, expected, atol=2**-14)
        assert torch.equal(recording.original[0], recording.samples)
        assert recording.notes == (note,)


def test_channels_that_do_not_cancel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, channels in (
        ("apart", rng.standard_normal((16_000, 2))),
        ("many", rng.standard_normal((16_000, 100))),
        ("one of six", np.eye(6)[0] * rng.standard_normal((16_000, 1))),
        ("silence", np.zeros((16_000, 2))),
        ("gain", rng.standard_normal((16_000, 1)) * [1, -0.7]),
    ):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * channels, 16_000, subtype="FLOAT")
        (note,) = load_audio(tmp_path / f"{name}.wav", 16_000).notes
        assert note.startswith("mixed down"), name


def test_both_channels(tmp_path: Path) -> None:
    channels = 0.1 * torch.randn(2, 4_410)
    soundfile.write(tmp_path / "a.wav", channels.T.numpy(), 44_100, subtype="FLOAT")
    recording = load_audio(tmp_path / "a.wav", 16_000, stereo=True)
    assert torch.equal(recording.samples, resample(channels, 44_100, 16_000))
    assert recording.notes == ("resampled from 44100 Hz to 16000 Hz",)
    for count in (1, 3):
        soundfile.write(tmp_path / "b.wav", np.zeros((100, count)), 16_000)
        with pytest.raises(ValueError, match=f"got {count} channels, expected both of two"):
            load_audio(tmp_path / "b.wav", 16_000, stereo=True)
    with pytest.raises(ValueError, match="got channel 1, expected both of two channels"):
        load_audio(tmp_path / "a.wav", 16_000, channel=1, stereo=True)


def test_channels_that_are_not_there(tmp_path: Path) -> None:
    for count, channels, expected in (
        (1, (0, 2, "side", "left"), "1 to 1; it has 1"),
        (2, (0, 3, -1, "x", ""), "1 to 2 or side; it has 2"),
        (3, (4, "side"), "1 to 3; it has 3"),
    ):
        soundfile.write(tmp_path / "a.wav", np.full((800, count), 0.1), 16_000)
        for channel in channels:
            with pytest.raises(ValueError, match=f"got channel {channel}, expected {expected}$"):
                load_audio(tmp_path / "a.wav", 16_000, channel=channel)


def test_excerpts_without_an_end(tmp_path: Path) -> None:
    save_audio(tmp_path / "a.wav", torch.ones(1000), 1000)
    for duration in (math.inf, 1e300, 1.0, None):
        assert len(load_audio(tmp_path / "a.wav", 1000, 0.0, duration).samples) == 1000
    for start, duration in (
        (math.inf, None),
        (1e300, 1.0),
        (math.nan, None),
        (0.0, math.nan),
        (-math.inf, None),
        (0.0, -math.inf),
        (math.inf, math.inf),
    ):
        with pytest.raises(ValueError, match=r"got an excerpt.* of its 1\.000 s"):
            load_audio(tmp_path / "a.wav", 1000, start, duration)


def test_garbage_of_every_kind(tmp_path: Path) -> None:
    """Each a value of its own or one line, never another exception."""
    rng = np.random.default_rng(0)
    good = {}
    for container in ("WAV", "AIFF", "FLAC", "AU", "CAF", "OGG", "MP3", "W64", "RF64"):
        soundfile.write(
            tmp_path / "good", 0.1 * rng.standard_normal(4_000), 8_000, format=container
        )
        good[container] = (tmp_path / "good").read_bytes()
    for trial in range(20):
        for container, content in good.items():
            changed = bytearray(content)
            for place in rng.integers(0, 120, 4):
                changed[place] = rng.integers(256)
            path = tmp_path / f"{container}-{trial}"
            path.write_bytes(changed)
            with patch_path(), suppress(ValueError):
                assert read_audio(path)[0].isfinite().all()


@contextmanager
def patch_path() -> Iterator[None]:
    """Without ffmpeg, which is slow to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


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
        with atomic_write(path) as temporary:
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
            temporary.write_text("half")
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "new"


def test_files_imports_without_torch() -> None:
    code = "import sys, pyro_sep.storage.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
