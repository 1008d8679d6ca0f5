"""All experiments in order, with steps of two lines in their place."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import EXPERIMENTS, load

from pyro_sep.cli.program import run

SCRIPTS = {
    "first": "import sys; print('first:', *sys.argv[1:])",
    "second": "import sys; sys.stderr.write('no luck\\n'); sys.exit(3)",
    "third": "import pathlib, sys; pathlib.Path(sys.argv[-1]).mkdir(); print('third')",
}


@pytest.fixture
def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with three steps of which the second fails."""
    module = load("run_all")
    for name, code in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(code)
    steps = (
        module.Step("first", cpu="--size 'a b'", paper="--size 9"),
        module.Step("second"),
        module.Step("third"),
    )
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "STEPS", steps)
    return module


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: object) -> Any:
    monkeypatch.setattr(sys, "argv", ["run_all.py", *map(str, options)])
    with pytest.raises(SystemExit) as exit_:
        run(module.main)
    return exit_.value.code


def states(out: Path) -> dict[str, str]:
    steps = json.loads((out / "summary.json").read_text())["steps"]
    assert all(step["seconds"] > 0 for step in steps)
    return {step["name"]: step["state"] for step in steps}


def test_a_failure_stops_nothing_else(
    everything: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert call(everything, monkeypatch, "--out", out) == 1
    assert states(out) == {"first": "done", "second": "failed", "third": "done"}
    assert (out / "first.log").read_text() == f"first: --size a b --out {out / 'first'}\n"
    assert (out / "second.log").read_text() == "no luck\n"
    assert (out / "third").is_dir()
    assert sorted(path.name for path in out.glob("*.done")) == ["first.done", "third.done"]
    printed = capsys.readouterr().out
    assert "[2/3] " in printed
    assert "failed: second; why is in " in printed


def test_what_is_done_is_not_done_again(
    everything: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    call(everything, monkeypatch, "--out", out)
    (tmp_path / "second.py").write_text("print('now')")
    assert not call(everything, monkeypatch, "--out", out)  # the third would fail a second time
    assert states(out) == {"first": "skipped", "second": "done", "third": "skipped"}
    # Another command of the same step is not done.
    assert not call(everything, monkeypatch, "--out", out, "--scale", "paper", "--only", "first")
    assert states(out) == {"first": "done"}
    assert (out / "first.log").read_text() == f"first: --size 9 --out {out / 'first'}\n"
    # A step that fails is not done any more, though its command once was.
    (tmp_path / "first.py").write_text("raise SystemExit(1)")
    assert call(everything, monkeypatch, "--out", out, "--only", "first") == 1
    assert not (out / "first.done").exists()


def test_it_can_be_listed(
    everything: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert not call(everything, monkeypatch, "--out", out, "--only", "third,first", "--list")
    third, first = capsys.readouterr().out.splitlines()
    assert third.endswith(f"third.py --out {out / 'third'}")
    assert first.endswith(f"first.py --size 'a b' --out {out / 'first'}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "first,fourth"), "only: got 'fourth', expected some of first, second, third"),
        (("--scale", "gpu"), "scale: got 'gpu', expected one of cpu, paper"),
    ],
)
def test_mistakes_are_one_line(
    everything: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert call(everything, monkeypatch, *options) == 2
    assert capsys.readouterr().err == f"pyro-sep: {message}\n"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_step_is_an_experiment_with_such_options(scale: str, tmp_path: Path) -> None:
    """Typer parses what each step is given, and nothing is run."""
    import typer

    for step in load("run_all").STEPS:
        words = load("run_all").command(step, scale, tmp_path / "out")
        assert words[1] == str(EXPERIMENTS / f"{step.name}.py")
        app = typer.Typer()
        app.command()(load(step.name).main)
        parsed = typer.main.get_command(app).make_context(step.name, words[2:])
        assert parsed.params["out"] == tmp_path / "out" / step.name
