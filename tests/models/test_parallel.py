"""Several processes train as one does, and one of them writes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from scripts import EXPERIMENTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from pyro_sep.models.parallel import Ranks, start_ranks
from pyro_sep.models.train import CHECKPOINT, SERIAL_SIGMAS
from pyro_sep.priors.io import load_priors

CPU = torch.device("cpu")
TESTS = Path(__file__).parent.parent


def ranks(rank: int, size: int) -> Ranks:
    """One of several processes, whose others have losses and gradients of 10 each."""
    fabric = SimpleNamespace(
        global_rank=rank,
        world_size=size,
        is_global_zero=rank == 0,
        all_reduce=lambda flat, reduce_op: flat + 10 * (size - 1),
    )
    return Ranks(cast(Any, fabric))


def test_alone_is_no_distributed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone, device = start_ranks(CPU)
    assert (alone, device) == (Ranks(), CPU)
    assert alone.first
    alone.check(1)
    assert list(range(5))[alone.share(3)] == [0, 1, 2]
    parameter = nn.Parameter(torch.tensor(3.0))
    loss = parameter.square()
    loss.backward()
    assert alone.add(loss, [parameter]) == 9
    assert parameter.grad == 6


@pytest.mark.parametrize(("frames", "size"), [(5, 2), (5, 3), (2, 2), (1, 3)])
def test_each_frame_is_of_one_process(frames: int, size: int) -> None:
    batch = list(range(7))
    shares = [batch[ranks(rank, size).share(frames)] for rank in range(size)]
    assert sorted(frame for share in shares for frame in share) == batch[:frames]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [ranks(rank, size).first for rank in range(size)] == [True] + [False] * (size - 1)


def test_losses_and_gradients_are_added() -> None:
    a, unused, b = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,), ()))
    loss = (2 * a).sum() + 3 * b
    loss.backward()
    total = ranks(1, 3).add(loss, [a, unused, b])
    assert total == 15 + 20
    assert not total.requires_grad
    assert torch.equal(a.grad, torch.full((2, 3), 22.0))
    assert b.grad == 23
    assert unused.grad is None


def test_every_process_has_a_frame() -> None:
    ranks(0, 3).check(3)
    with pytest.raises(ValueError, match=r"^batch: got 2 frames for 3 proc") as error:
        ranks(0, 3).check(2)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(
        ValueError,
        match=r"^torchrun of 2 processes: got no lightning.*pip install 'pyro-sep\[train\]'$",
    ):
        start_ranks(CPU)


def torchrun(processes: int, *command: str | Path) -> str:
    """Run a script as several processes; what they printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run)).Reload()
    return [event.value for event in events.Scalars("loss")]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    folders = {size: tmp_path / str(size) for size in (1, 2)}
    for size, folder in folders.items():
        folder.mkdir()
        torchrun(size, TESTS / "train_on_ranks.py", folder)
    for family in ("wavenet", "halves"):
        one, two = (losses(folder / family) for folder in folders.values())
        assert len(one) == len(two) == 6
        # Rounding of float32; a process that kept to its own frames would be off by tenths.
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert abs(one[-1] - one[0]) > 1e-2
        alone = torch.load(folders[1] / f"{family}-0.pt")
        kept = [torch.load(folders[2] / f"{family}-{rank}.pt") for rank in range(2)]
        for key, value in alone.items():
            assert torch.equal(kept[0][key], kept[1][key]), key
            # Adam's first steps have the size of the learning rate whatever the gradient.
            assert torch.allclose(kept[0][key].double(), value.double(), rtol=1e-3, atol=1e-4), key
        assert [path.name for path in (folders[2] / family).glob("*.pt")] == [CHECKPOINT]
        assert len(list((folders[2] / family).glob("events.*"))) == 1


@pytest.mark.slow
def test_the_papers_priors_are_trained_by_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    script, out = EXPERIMENTS / "train_priors.py", tmp_path / "out"
    printed = torchrun(2, script, "--steps", "3", "--only", "flow-sine", "--out", out)
    assert printed.count("flow-sine: ") == 1
    assert sorted(os.listdir(out)) == ["flow"]
    for sigma in SERIAL_SIGMAS:
        folder = out / "flow" / f"sigma-{sigma:g}"
        assert sorted(os.listdir(folder)) == ["priors.json", "sine.md", "sine.safetensors"]
        assert load_priors(folder)["sine"].sigmas == (sigma, sigma)
        state = torch.load(out / "flow" / "sine.run" / folder.name / CHECKPOINT)
        assert state["step"] == (3 if sigma == 0 else 1)
        assert state["settings"]["train"]["stairs"] == 5
