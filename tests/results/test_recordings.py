import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_sep.audio.io import load_audio, read_audio, save_audio
from pyro_sep.results import recordings
from pyro_sep.results.recordings import separate_recording, track_folders
from pyro_sep.results.stems import StemFiles

BUDGET = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "cooling": 1, "draws": 3}
CPU = torch.device("cpu")


def test_a_folder_per_track(tmp_path: Path) -> None:
    tracks = {"a/song.wav": "song", "tune.1.mp3": "tune.1", "b/A - B. 2.stem.mp4": "A - B. 2"}
    tracks["test/C - D/mixture.wav"] = "C - D"
    paths = [Path(path) for path in tracks]
    folders = track_folders(paths, tmp_path)
    assert folders == {Path(path): tmp_path / track for path, track in tracks.items()}
    message = r"^b/song\.flac: got a second track 'song' after a/song\.wav, expected names"
    with pytest.raises(ValueError, match=message):
        track_folders([*paths, Path("b/song.flac")], tmp_path)
    with pytest.raises(
        ValueError, match=r"mixture\.wav: got it in \S*C, where its results would go"
    ):
        track_folders([tmp_path / "C" / "mixture.wav"], tmp_path)
    with pytest.raises(ValueError, match=r"^song\.stem\.mp4: got a second track 'song' after"):
        track_folders([*paths, Path("song.stem.mp4")], tmp_path)


def test_shares_add_up_and_the_checkpoint_goes_last(
    gaussian_priors: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    save_audio(tmp_path / "a.wav", 0.3 * torch.randn(2, 3_000, generator=generator), 48_000)
    recording = load_audio(tmp_path / "a.wav", 16_000)
    arguments = (recording, gaussian_priors(0.3, 0.1), tmp_path / "out" / "a")
    files = StemFiles(residual=True, native=True)

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(recordings, "write_separation", full)
        with pytest.raises(OSError, match="no space left"):
            separate_recording(*arguments, files, CPU, **BUDGET)
    assert os.listdir(tmp_path / "out" / "a") == ["checkpoint.pt"]
    result, written = separate_recording(*arguments, files, CPU, **BUDGET)
    assert sorted(os.listdir(tmp_path / "out" / "a")) == sorted(written)
    seconds = json.loads((tmp_path / "out" / "a" / "summary.json").read_text())["seconds"]
    assert seconds["resumed"]  # the separation itself was done before
    separate_recording(*arguments, files, CPU, force=True, **BUDGET)
    whole = json.loads((tmp_path / "out" / "a" / "summary.json").read_text())["seconds"]
    assert not whole["resumed"]
    assert 0 < seconds["wall"] < whole["wall"]
    assert 0 < seconds["cpu"] < whole["cpu"]
    # The mean of two sources: each adds half of itself.
    assert torch.allclose(result.contributions, result.sources / 2)
    for name, share in zip(("one", "two"), result.contributions, strict=True):
        assert torch.equal(read_audio(tmp_path / "out" / "a" / f"{name}.wav")[0][0], share)


def test_nothing_is_made_for_audio_that_cannot_be_separated(
    gaussian_priors: Callable, tmp_path: Path
) -> None:
    save_audio(tmp_path / "a.wav", torch.zeros(1_000), 16_000)
    recording = load_audio(tmp_path / "a.wav", 16_000)
    with pytest.raises(ValueError, match="got silence"):
        separate_recording(recording, gaussian_priors(0.3), tmp_path / "out", StemFiles(), CPU)
    assert not (tmp_path / "out").exists()
