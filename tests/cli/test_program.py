import sys
from pathlib import Path

import pytest

from pyro_sep.cli.options import listed, mixing_options, torch_device
from pyro_sep.cli.program import report, run
from pyro_sep.models.train import TrainingDivergedError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (TrainingDivergedError("loss is nan\nat step 3"), 2, "pyro-sep: loss is nan\n"),
        (ValueError("one\ntwo"), 2, "pyro-sep: one\n"),
        (PermissionError(13, "Permission denied", "a"), 2, "Permission denied: 'a'\n"),
    ],
)
def test_a_command_that_fails(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as caught:
        run(fails)
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err.endswith(line)
    assert err.count("\n") <= 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        run(broken)


def test_a_report_names_the_file_once(capsys: pytest.CaptureFixture[str]) -> None:
    report(ValueError("a.wav: got silence"), Path("a.wav"))
    report(ValueError("gains: got 1 for 2 priors\nand more"), Path("a.wav"))
    assert capsys.readouterr().err == (
        "pyro-sep: a.wav: got silence\npyro-sep: a.wav: gains: got 1 for 2 priors\n"
    )


def test_mixing_options() -> None:
    assert mixing_options(None, None) == {}
    assert mixing_options("infer", "infer") == {"gains": "infer", "noise_scale": "infer"}
    assert mixing_options("0.3,1", "0.01") == {"gains": [0.3, 1.0], "noise_scale": 0.01}
    with pytest.raises(ValueError, match="gains: got '1,infer', expected numbers or infer"):
        mixing_options("1,infer", None)
    with pytest.raises(ValueError, match=r"noise_scale: got '0\.1,0\.2', expected a number"):
        mixing_options(None, "0.1,0.2")


def test_a_device_that_computes_nothing() -> None:
    with pytest.raises(ValueError, match=r"device: got 'meta', expected cpu or one that is here"):
        torch_device("meta")


def test_memory_that_is_not_there_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as caught:
        run(fails)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("pyro-sep: MemoryError: it does not fit; take less")


@pytest.mark.parametrize("value", ["a,a", "a,", "", "a, a"])
def test_a_list_names_each_once(value: str) -> None:
    with pytest.raises(ValueError, match=r"stems: got .*, expected names that differ"):
        listed("stems", value)
    assert listed("stems", "bass, drums") == ["bass", "drums"]
