"""Stems of another separator, from a folder."""

from pathlib import Path

import pytest
import torch

from pyro_sep.audio.io import load_audio, save_audio
from pyro_sep.data.stems import load_stems

NAMES = ("bass", "drums")


def noise(seconds: float, rate: int, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stem in capitals, one in another format, and files that are no stems."""
    save_audio(tmp_path / "Bass.wav", noise(1.0, 44_100), 44_100)
    save_audio(tmp_path / "drums.flac", noise(1.0, 48_000), 48_000)
    save_audio(tmp_path / "vocals.wav", noise(0.5, 8_000), 8_000)
    (tmp_path / "draws").mkdir()
    save_audio(tmp_path / "draws" / "bass.wav", noise(1.0, 8_000), 8_000)
    (tmp_path / "bass.txt").write_text("no audio")
    return tmp_path


def test_stems_are_read_as_their_mixture_is(folder: Path) -> None:
    excerpt = (0.25, 0.5, 2)
    stems = load_stems(folder, NAMES, 16_000, 8_000, *excerpt)
    assert stems.shape == (2, 8_000)
    assert torch.equal(stems[0], load_audio(folder / "Bass.wav", 16_000, *excerpt).samples)
    assert torch.equal(stems[1], load_audio(folder / "drums.flac", 16_000, *excerpt).samples)


@pytest.mark.parametrize("time", [15_998, 16_002])
def test_lengths_may_differ_by_rounding(folder: Path, time: int) -> None:
    stems = load_stems(folder, NAMES, 16_000, time)
    whole = load_stems(folder, NAMES, 16_000, 16_000)
    assert stems.shape == (2, time)
    assert torch.equal(stems[:, :15_998], whole[:, :15_998])
    assert not stems[:, 16_000:].any()


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    def refused(message: str, names: tuple[str, ...] = NAMES, time: int = 16_000) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_stems(folder, names, 16_000, time)
        assert "\n" not in str(caught.value)

    refused(r"got none of the source other, expected one file, other\.wav", ("bass", "other"))
    refused(r"vocals\.wav: got a stem of 8000 audio samples at 16000 Hz, expected", ("vocals",))
    refused(r"Bass\.wav: got a stem of 16000 .* expected 16003 as of its mixture", time=16_003)
    save_audio(folder / "bass.flac", noise(1.0, 8_000), 8_000)
    refused(r"got Bass\.wav, bass\.flac of the source bass, expected one file")
    (folder / "drums.flac").write_bytes(b"no audio")
    refused(r"drums\.flac: got no readable audio", ("drums",))
    with pytest.raises(ValueError, match="got no folder of this name"):
        load_stems(folder / "none", NAMES, 16_000, 16_000)
