import ast
import graphlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyro_sep"
WEIGHTS = PACKAGE / "weights"
LINKED = ("models", "inference")


def module_name(path: Path) -> str:
    """As it is imported: the linked folders are part of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("pyro_sep", *parts) if parts[0] in LINKED else parts
    return ".".join(part for part in parts if part != "__init__")


def source_files() -> dict[str, Path]:
    """Every module of the package once, by name."""
    below = [
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in LINKED
    ]
    linked = [path for name in LINKED for path in (ROOT / name).rglob("*.py")]
    return {module_name(path): path for path in sorted(below + linked)}


def imports(path: Path) -> set[str]:
    """Absolute names that a file imports, in its functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


SOURCES = source_files()
GRAPH = {
    name: {used for used in imports(path) if used in SOURCES and used != "pyro_sep"}
    for name, path in SOURCES.items()
    if name != "pyro_sep"  # its imports are lazy
}
#: Data flows from left to right: a room imports from those before it, and from itself.
ROOMS = (
    *("checks", "storage", "progress", "workers", "trace", "audio", "data", "models", "priors"),
    *("mixing", "inference", "separation", "evaluation", "diagnostics", "viz", "results", "cli"),
    "__main__",
)


def room(name: str) -> str:
    """The room of a module of the package."""
    return name.split(".")[1]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code away from the checkout, with nothing of it on the path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )


def test_the_files_were_found() -> None:
    found = {"pyro_sep.models.wavenet", "pyro_sep.inference.annealing.driver", "pyro_sep.data.toy"}
    assert found <= set(SOURCES)
    assert "pyro_sep.inference.annealing.driver" in GRAPH["pyro_sep.separation.api"]
    assert "pyro_sep.results.plan" in GRAPH["pyro_sep.cli.separate"]  # imported inside a function


def test_a_room_imports_from_those_before_it() -> None:
    assert {room(name) for name in GRAPH} == set(ROOMS)
    for name, used in GRAPH.items():
        later = [other for other in used if ROOMS.index(room(other)) > ROOMS.index(room(name))]
        assert not later, f"{name} imports {later}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError


def test_traces_are_read_without_torch(tmp_path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(SOURCES["pyro_sep.trace.dataset"])}
    assert not tops & {"torch", "pyro"}
    code = (
        "import sys, pyro_sep, pyro_sep.trace.dataset, pyro_sep.viz.plots\n"
        "sys.exit(bool({'torch', 'pyro'} & set(sys.modules)))"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_models_and_inference_live_in_the_package_alone(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u\n"
        "assert u.find_spec('models') is None\n"
        "assert u.find_spec('inference') is None\n"
        "import pyro_sep.models, pyro_sep.inference\n"
        "print(pyro_sep.models.__file__, pyro_sep.inference.__file__)"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in LINKED:
        link = PACKAGE / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert link.resolve() == ROOT / name


def stub_names(path: Path) -> list[str]:
    """What a room exports, as its stub says."""
    tree = ast.parse(path.read_text())
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return sorted(alias.name for node in froms for alias in node.names)


DOORS = sorted(
    [*PACKAGE.glob("*.pyi"), *PACKAGE.glob("*/__init__.pyi"), *PACKAGE.glob("*/*/*.pyi")]
)


@pytest.mark.parametrize("stub", DOORS, ids=lambda stub: stub.parent.name)
def test_a_room_exports_what_its_stub_names(stub: Path) -> None:
    name = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
    module, names = importlib.import_module(name), stub_names(stub)
    public = [found for found in dir(module) if not found.startswith("_")]
    assert public == sorted(module.__all__) == names
    for exported in names:
        assert getattr(module, exported).__doc__, f"{name}.{exported}"
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_there_is_no_pile_of_helpers() -> None:
    for path in SOURCES.values():
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), path


def test_weights_ship_with_their_cards() -> None:
    sets = [path for path in WEIGHTS.rglob("*") if path.is_dir()]
    assert {"toy", "toy/wavenet"} <= {path.relative_to(WEIGHTS).as_posix() for path in sets}
    for folder in sets:
        entries = json.loads((folder / "priors.json").read_text())["priors"]
        assert len({Path(entry).name for entry in entries}) == len(entries)
        for entry in entries:  # its own weights, or those of a set below
            assert (folder / f"{entry}.safetensors").resolve().is_relative_to(folder)
        weights = {path.stem: path for path in folder.glob("*.safetensors")}
        assert set(weights) <= set(entries)
        for entry in entries:
            card = (folder / f"{entry}.md").read_text()
            assert Path(entry).name in card
            for word in ("Data", "Command", "Time", "excess"):
                assert word in card, f"{folder / entry}: {word}"
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert 0 < size < 40e6


def test_the_page_on_the_paper_names_what_there_is() -> None:
    page = (ROOT / "docs" / "paper.md").read_text()
    tests = re.findall(r"`([\w/]*test_\w+)::(test_\w+)`", page)
    assert len(tests) > 9  # one at least for each fault
    for file, name in tests:
        assert f"\ndef {name}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{name}"
    for script in re.findall(r"experiments/\w+\.py", page):
        assert (ROOT / script).is_file(), script
    pictures = set(re.findall(r"\]\((paper/\w+\.png)\)", page))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/paper/*")}
    assert pictures == there
    assert 0 < sum((ROOT / "docs" / path).stat().st_size for path in there) < 1.5e6


def test_what_is_promised_is_tested() -> None:
    text = (ROOT / "docs" / "promises.md").read_text()
    named = re.findall(r"`([\w/]*test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 50
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in source, f"{file}::{test}"
