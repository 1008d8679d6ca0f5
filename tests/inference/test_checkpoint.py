import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_sep.inference.annealing import checkpoint
from pyro_sep.inference.annealing.checkpoint import Checkpoint
from pyro_sep.storage.states import save_state

RUN = {"seed": 3, "step_size": 0.7, "gains": (0.5, 0.5), "prior of oboe": -1234.5, "stores": False}
STATE = {
    "number": 7,
    "share": 0.1 + 0.2,
    "position": torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0)),
    "history": [torch.arange(4.0), [torch.ones(2, dtype=torch.float64), 5]],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Checkpoint(tmp_path / "run.pt", RUN).save(STATE)
    return tmp_path / "run.pt"


def test_a_state_comes_back_as_it_was(path: Path) -> None:
    state = Checkpoint(path, RUN).load()
    assert state is not None
    assert (state["number"], state["share"]) == (7, 0.1 + 0.2)
    assert torch.equal(state["position"], STATE["position"])
    first, (second, number) = state["history"]
    assert torch.equal(first, torch.arange(4.0))
    assert (second.dtype, number) == (torch.float64, 5)


def test_there_is_nothing_at_first(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "run.pt", RUN).load() is None
    with pytest.raises(FileNotFoundError, match=r"none/run\.pt: there is no folder"):
        Checkpoint(tmp_path / "none" / "run.pt", RUN).load()


@pytest.mark.parametrize(
    ("change", "got", "expected"),
    [
        ({"seed": 4}, "seed 3", "seed 4"),
        ({"step_size": 0.71}, "step_size 0.7", "step_size 0.71"),
        ({"gains": (0.5, 0.6)}, r"gains \(0.5, 0.5\)", r"gains \(0.5, 0.6\)"),
        ({"stores": True}, "stores False", "stores True"),
        ({"prior of oboe": -1235.0}, "prior of oboe -1234.5", "prior of oboe -1235.0"),
        ({"prior of oboe": math.nan}, "prior of oboe -1234.5", "prior of oboe nan"),
        ({"prior of harp": 1.0}, "prior of harp None", "prior of harp 1.0"),
        ({"seed": 1, "stores": True}, "seed 3, stores False", "seed 1, stores True"),
    ],
)
def test_another_run_is_refused(
    path: Path, change: dict[str, Any], got: str, expected: str
) -> None:
    before = path.read_bytes()
    message = (
        rf"run\.pt: got the checkpoint of a run of {got}, expected {expected}; give the options"
    )
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(path, RUN | change).load()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_density_may_differ_by_its_rounding(path: Path) -> None:
    assert Checkpoint(path, RUN | {"prior of oboe": -1234.5 * (1 + 1e-6)}).load() is not None


def damage(path: Path, case: str) -> None:
    whole = path.read_bytes()
    middle = whole.index(STATE["position"].numpy().tobytes()) + 100
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    contents = {"empty": b"", "text": b"text\n" * 99, "half": whole[: len(whole) // 2]}
    path.write_bytes(contents.get(case, flipped))
    if case == "weights":
        torch.save({"weight": torch.ones(2)}, path)


@pytest.mark.parametrize("case", ["empty", "text", "half", "flipped", "weights"])
def test_a_damaged_file_is_refused(path: Path, case: str) -> None:
    damage(path, case)
    with pytest.raises(ValueError, match=r"run\.pt: got no readable checkpoint") as caught:
        Checkpoint(path, RUN).load()
    assert "\n" not in str(caught.value)


def test_it_is_written_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def interrupted(temporary: Path, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(path, RUN).save(STATE)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["run.pt"]


def test_it_is_due_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    monkeypatch.setattr(checkpoint, "clock", clock)
    own = Checkpoint(tmp_path / "run.pt", RUN)
    now[0] = 159.0
    assert not own.due
    now[0] = 161.0
    assert own.due
    own.save(STATE)
    assert not own.due


def test_another_version_is_refused(path: Path) -> None:
    torch.save({"run": RUN, "state": STATE}, path)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"run\.pt: got no readable checkpoint \(it is cut off, dam"
    ):
        Checkpoint(path, RUN).load()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [{}, {"run": RUN}, {"run": None, "state": {}}, {"run": RUN, "state": 3}]
)
def test_a_checkpoint_without_its_parts_is_refused(path: Path, content: dict[str, Any]) -> None:
    save_state(path, checkpoint.KIND, content)
    with pytest.raises(ValueError, match=r"run\.pt: got no readable checkpoint") as caught:
        Checkpoint(path, RUN).load()
    assert "\n" not in str(caught.value)
