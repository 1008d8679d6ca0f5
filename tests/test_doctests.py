"""The examples in the docstrings of exported names run as they are written."""

import doctest
import importlib
import inspect
import os
import re
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


def test_every_exported_name_is_in_an_example() -> None:
    parser = doctest.DocTestParser()
    found = {name: parser.get_examples(value.__doc__ or "") for name, value in exported().items()}
    words = re.findall(r"\w+", " ".join(e.source for parts in found.values() for e in parts))
    missing = [name for name in found if not found[name]]
    assert [name for name in missing if name.rpartition(".")[2] not in words] == []
