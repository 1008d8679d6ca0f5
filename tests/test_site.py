"""The pages of the site name what there is: exported names, commands, options, files."""

import importlib
import inspect
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import typer
from scripts import EXPERIMENTS, load
from test_repository import DOORS, PACKAGE, ROOT, stub_names

import pyro_sep
from pyro_sep.cli.app import app

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
TARGET = re.compile(r"^\.\. (?:auto\w+|py:data):: (pyro_sep[\w.]+)$", re.M)
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<!`)\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def short_paths() -> dict[str, str]:
    """The path under which each exported name is documented, by its path in its room."""
    paths = {}
    for stub in DOORS:
        room = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
        module = importlib.import_module(room)
        for name in stub_names(stub):
            value = getattr(module, name)
            if not inspect.ismodule(value):
                at_top = getattr(pyro_sep, name, None) is value
                paths[f"{room}.{name}"] = f"pyro_sep.{name}" if at_top else f"{room}.{name}"
    return paths


def test_every_exported_name_has_one_place_on_the_pages() -> None:
    targets = Counter(
        target
        for page in (DOCS / "api").glob("*.md")
        for target in TARGET.findall(page.read_text())
    )
    assert {name for name, count in targets.items() if count > 1} == set()
    expected = set(short_paths().values())
    assert len(expected) > 80
    assert expected - set(targets) == set()
    assert {name for name in targets if name in short_paths()} - expected == set()


def test_other_names_on_the_pages_exist() -> None:
    for page in (DOCS / "api").glob("*.md"):
        for target in TARGET.findall(page.read_text()):
            module, _, name = target.rpartition(".")
            try:
                importlib.import_module(target)
            except ImportError:
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {target}"


def test_references_find_a_name_by_any_of_its_paths() -> None:
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("doors", DOCS / "_extensions" / "doors.py")
    assert spec is not None
    assert spec.loader is not None
    doors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(doors)
    assert doors.documented() == short_paths()
    found = doors.candidates("load_priors", "pyro_sep.priors")
    assert next(filter(doors.exists, found)) == "pyro_sep.priors.load_priors"
    assert not any(map(doors.exists, doors.candidates("load_prior_s", "pyro_sep.priors")))


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a page's shell blocks that runs a program of this project."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\$\(", line):
                words = shlex.split(part.replace('"', " ").replace("'", " "), comments=True)
                starts = [i for i, word in enumerate(words) if is_program(word)]
                found += [words[starts[0] :]] if starts else []
    return found


def is_program(word: str) -> bool:
    """Whether a word is the command line, or an experiment."""
    return Path(word).name == "pyro-sep" or word.startswith("experiments/")


def options_of(words: list[str]) -> set[str]:
    """The options that the program of a command has."""
    if words[0].startswith("experiments/"):
        alone = typer.Typer()
        alone.command()(load(Path(words[0]).stem).main)
        command = typer.main.get_command(alone)
    else:
        program = typer.main.get_command(app)
        subcommands = program.commands  # type: ignore[attr-defined]
        command = subcommands.get(words[1], program)
    named = {option for parameter in command.params for option in parameter.opts}
    return named | {option for p in command.params for option in p.secondary_opts} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_the_options_that_pages_give_them(page: Path) -> None:
    for words in commands(page):
        if words[0].startswith("experiments/"):
            assert (EXPERIMENTS / Path(words[0]).name).is_file(), words
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given - options_of(words) == set(), words


def test_links_in_the_repository_lead_to_files() -> None:
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    targets = [target for name in names for target in LINK.findall((ROOT / name).read_text())]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_how_to_page_is_in_the_index() -> None:
    index = (DOCS / "how-to" / "index.md").read_text()
    for page in (DOCS / "how-to").glob("*.md"):
        if page.stem != "index":
            assert f"{{doc}}`{page.stem}`" in index
            assert f"\n{page.stem}\n" in index
            text = page.read_text()
            assert re.match(r"# .+\n\n```", text), f"{page.name} begins with the command"
            assert "\n## What can go wrong\n" in text
