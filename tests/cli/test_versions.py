import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import pyro_sep
from pyro_sep.cli import versions
from pyro_sep.cli.app import main

NAMES = ["pyro-sep", "python", "torch", "pyro-ppl", "arviz", "platform"]


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pyro-sep", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    printed = dict(line.split(" ", 1) for line in out.splitlines())
    assert list(printed) == NAMES
    assert printed["pyro-sep"] == pyro_sep.__version__
    assert printed["python"] == platform.python_version()
    assert printed["platform"] == platform.platform()
    for name in ("torch", "pyro-ppl", "arviz"):
        assert printed[name] == version(name)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    assert "\narviz is not installed\n" in versions.versions()


def test_the_version_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pyro_sep.__main__ import main\n"
        "sys.argv = ['pyro-sep', '--version']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "print(sorted({'torch', 'pyro', 'arviz', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_the_projects() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert re.search(rf'^version = "{re.escape(pyro_sep.__version__)}"$', text, re.MULTILINE)
