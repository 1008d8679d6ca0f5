import sys
from pathlib import Path

import pytest
import torch
from music import RATE, excerpt, needs_ffmpeg

from pyro_sep.audio import load_audio, read_audio
from pyro_sep.streams import read_stream

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


def test_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    path = excerpt()
    for name in [name for name in sys.modules if name.split(".")[0] == "stempeg"]:
        monkeypatch.delitem(sys.modules, name)
    message = r"got no decoder \(.*{}.*\), expected stempeg, ffmpeg and ffprobe; pip install"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(ValueError, match=message.format("ffmpeg or ffprobe")):
            read_audio(path)
        patch.setitem(sys.modules, "stempeg", None)
        with pytest.raises(ValueError, match=message.format("import of stempeg")):
            read_audio(path)
