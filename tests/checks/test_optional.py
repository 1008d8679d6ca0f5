import math
import sys
from pathlib import Path

import pytest
from music import excerpt, needs_ffmpeg
from networks import WAVENET

from pyro_sep.checks.optional import import_optional
from pyro_sep.data.musdb import musdb_tracks
from pyro_sep.data.source import ToySource
from pyro_sep.models.settings import TrainConfig
from pyro_sep.models.train import fit
from pyro_sep.trace.dataset import load_trace
from pyro_sep.trace.zarr_store import TraceStore


def test_a_module_that_is_there() -> None:
    assert import_optional("math", "pi", "music") is math


def test_what_is_missing_is_said_in_a_line() -> None:
    message = r"^stft: got no organ \(No module named 'organ'\), expected it; pip install 'pyro-sep"
    with pytest.raises(ValueError, match=message + r"\[music\]', build one$"):
        import_optional("organ.pipes", "stft", "music", "build one")


def test_the_extra_of_a_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "a.zarr").mkdir()
    for use in (lambda path: TraceStore(path, 1), load_trace):
        with pytest.raises(ValueError, match=r"got no zarr .* pip install 'pyro-sep\[zarr\]'$"):
            use(tmp_path / "a.zarr")


def test_the_extra_of_training_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"got no tensorboard .* pip install 'pyro-sep\[train\]'$"):
        fit(ToySource("saw").draw, tmp_path / "run", WAVENET, TrainConfig(time=64))
    assert not (tmp_path / "run").exists()


@needs_ffmpeg
@pytest.mark.parametrize("module", ["musdb", "ffmpeg"])
def test_the_extra_of_music_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = excerpt()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"got no {module} .* pip install 'pyro-sep\[music\]'$"):
        musdb_tracks(path)
