"""The examples in the docstrings of exported names run as they are written."""

import doctest
import importlib
import inspect
import os
from pathlib import Path

import pytest
from test_repository import DOORS, PACKAGE, stub_names


def exported() -> dict[str, object]:
    """Every exported class and function once, by its full name."""
    found = {}
    for stub in DOORS:
        room = importlib.import_module(".".join(stub.parent.relative_to(PACKAGE.parent).parts))
        for name in stub_names(stub):
            value = getattr(room, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


MODULES = sorted({name.rpartition(".")[0] for name in exported()})


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name), verbose=False)
    assert failed == 0
    assert os.listdir(tmp_path) == []


def test_every_exported_name_has_an_example() -> None:
    assert [name for name, value in exported().items() if ">>>" not in (value.__doc__ or "")] == []
