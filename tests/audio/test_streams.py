import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from music import RATE, excerpt, needs_ffmpeg

from pyro_sep.audio.io import load_audio, read_audio
from pyro_sep.audio.streams import read_stream

pytestmark = needs_ffmpeg


def test_a_stem_mp4_is_read_as_any_file_is() -> None:
    whole, rate = read_audio(excerpt())
    assert (whole.shape, whole.dtype, rate) == ((2, 268_288), torch.float32, RATE)
    assert torch.equal(whole, read_stream(excerpt(), "mixture")[0])
    assert not torch.equal(whole, read_stream(excerpt(), "drums")[0])
    recording = load_audio(excerpt(), 16_000, 2.0, 0.5)
    assert torch.equal(recording.original, whole[:, 2 * RATE : 2 * RATE + RATE // 2])
    assert (len(recording.samples), recording.original_rate) == (8_000, RATE)


@pytest.mark.parametrize("content", [b"", b"This is no audio.\n"])
def test_no_audio(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "song.stem.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="got no readable audio of mixture") as caught:
        read_audio(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.stem\.mp4: no such file"):
        read_audio(tmp_path / "none.stem.mp4")


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "song.stem.mp4"
    path.write_bytes(excerpt().read_bytes()[:500_000])  # its index comes first
    with pytest.raises(ValueError, match=r"samples of mixture, expected 268288; .* cut off"):
        read_audio(path)


@pytest.mark.parametrize("name", ["song.stem.mp4", "song.m4a"])
def test_no_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(excerpt().read_bytes())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"ffmpeg.*; .*apt-get install ffmpeg$") as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: got no ")
    assert "\n" not in str(caught.value)


def encode(path: Path, *options: str) -> np.ndarray:
    """A second of stereo noise, by ffmpeg."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((RATE, 2)).astype(np.float32)
    soundfile.write(path.parent / "noise.wav", noise, RATE, subtype="FLOAT")
    source = ("-i", path.parent / "noise.wav")
    subprocess.run(["ffmpeg", "-v", "error", *source, *options, f"file:{path}"], check=True)
    return noise.T


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("a.m4a", ("-c:a", "aac", "-b:a", "256k"), 0.05),
        ("a.m4a", ("-c:a", "alac"), 1e-4),
        ("a.wv", (), 1e-4),
        ("a.tta", (), 1e-4),
        ("a.mka", ("-c:a", "pcm_f32le"), 0.0),
        ("a.wma", ("-b:a", "320k"), None),  # both have samples of padding before the first
        ("a.aac", ("-b:a", "256k"), None),
    ],
)
def test_formats_that_libsndfile_lacks(
    tmp_path: Path, name: str, options: tuple[str, ...], error: float | None
) -> None:
    path = tmp_path / name
    noise = encode(path, *options)
    whole, rate = read_audio(path)
    assert rate == RATE
    assert abs(whole.shape[-1] - RATE) < 4_097
    if error is not None:
        inner = slice(4_096, 36_864)
        difference = whole[:, inner] - torch.from_numpy(noise)[:, inner]
        assert difference.square().mean().sqrt() <= error
    part = load_audio(path, RATE, 0.25, 0.5)
    assert torch.equal(part.original, whole[:, RATE // 4 : RATE // 4 + RATE // 2])


@pytest.mark.parametrize("name", ["a.m4a", "a.wma", "a.wv", "a.mka"])
def test_such_formats_cut_off(tmp_path: Path, name: str) -> None:
    options = ("-movflags", "faststart") if name == "a.m4a" else ()
    encode(tmp_path / name, *options)
    content = (tmp_path / name).read_bytes()
    for share in (0.0, 0.01, 0.5, 0.75):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"got no readable audio|cut off, copy it") as caught:
            read_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_files_end_to_end_are_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile reads the first of them and says nothing."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    for audio_format in ("MP3", "OGG"):
        path = tmp_path / f"a.{audio_format}"
        soundfile.write(path, noise, RATE, format=audio_format)
        path.write_bytes(2 * path.read_bytes())
        assert abs(read_audio(path)[0].shape[-1] - 2 * len(noise)) < 4_000
        with monkeypatch.context() as patch:
            patch.setenv("PATH", "")
            with pytest.raises(ValueError, match="several files end to end"):
                read_audio(path)


@pytest.mark.parametrize(
    "name", ["http:/127.0.0.1:9/{}", "concat:good{}", "-x{}", "file:good{}", "pipe:0{}", "%d{}"]
)
@pytest.mark.parametrize("suffix", [".stem.mp4", ".m4a"])
def test_a_name_is_a_local_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name.format(suffix))
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"good{suffix}").write_bytes(excerpt().read_bytes())
    path.write_bytes(b"no audio")
    with pytest.raises(ValueError, match="got no readable audio"):
        read_audio(path)
    path.write_bytes(excerpt().read_bytes())
    assert torch.equal(read_audio(path)[0], read_audio(excerpt())[0])


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.wav\n",
        b"<SMIL><audio src='other.wav'/></SMIL>",
        np.random.default_rng(0).bytes(300_000),
    ],
)
def test_what_leads_elsewhere_or_nowhere_is_no_audio(tmp_path: Path, content: bytes) -> None:
    soundfile.write(tmp_path / "other.wav", np.full(RATE, 0.1), RATE)
    for name in ("a.wav", "a.m4a", "a.m3u8", "a.mp3"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="got no readable audio"):
            read_audio(tmp_path / name)


def test_a_stem_mp4_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "song.stem.mp4"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(excerpt().read_bytes()))
    writer.start()
    assert torch.equal(read_audio(pipe)[0], read_audio(excerpt())[0])
    writer.join()


@pytest.mark.parametrize(
    ("name", "codec"), [("a.voc", "pcm_s16le"), ("a.wav", "libmp3lame"), ("a.flac", "flac")]
)
def test_what_libsndfile_misreads_is_read_by_ffmpeg(tmp_path: Path, name: str, codec: str) -> None:
    generator = np.random.default_rng(0)
    audio = 0.1 * generator.standard_normal((48_000, 2))
    soundfile.write(tmp_path / "true.wav", audio, 44_100, "PCM_16")
    path = tmp_path / name
    whole = tmp_path / f"whole{path.suffix}"
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "true.wav", "-c:a", codec, whole]
    subprocess.run(command, check=True)
    tag = b"TAG" + bytes(125) if path.suffix == ".flac" else b""
    path.write_bytes(whole.read_bytes() + tag)
    channels, rate = read_audio(path)
    assert (rate, len(channels)) == (44_100, 2)
    assert 0 <= channels.shape[-1] - 48_000 < 3_000  # an encoder of MP3 adds some at both ends
    if codec != "libmp3lame":
        assert torch.equal(channels, read_audio(tmp_path / "true.wav")[0])


def test_a_tagged_flac_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    audio = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    soundfile.write(path, audio, 44_100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"TAG" + bytes(125))
    with pytest.raises(ValueError, match=r"a\.flac: got .*cut off"):
        read_audio(path)
