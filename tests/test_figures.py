"""The site's extension that reads figures from result files, and the files that the pages name."""

import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sphinx")
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS / "results"
PAGES = [*sorted(RESULTS.glob("*.md")), RESULTS.parent / "scale.md"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "_extensions" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load()
CONTENT = {
    "median": 12.3456,
    "share": 0.84,
    "0.01": {"deep": "here"},
    "nothing": None,
    "table": [{"method": "a", "x": 1.0}, {"method": "b", "x": 3.0}],
    "mixtures": [{"gain": [1.0, 2.0]}, {"gain": [3.0, None]}],
    "silent": [{"ess": None}, {"ess": None}],
}


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("median:.1f", "12.3"),
        ("share:.0%", "84\N{NO-BREAK SPACE}%"),
        ("0.01.deep", "here"),
        ("nothing:.1f", "\N{EN DASH}"),
        ("table.1.x:.0f", "3"),
        ("table.a.x:.0f", "1"),
        ("table.*.x@mean:.1f", "2.0"),
        ("table@count", "2"),
        ("mixtures.*.gain@count", "4"),
        ("mixtures.*.gain@min", "-inf"),
        ("mixtures.*.gain@median:.1f", "1.5"),
        ("mixtures.*.gain.0@q1:.2f", "1.50"),
        ("mixtures.*.gain@above 1:.0%", "50\N{NO-BREAK SPACE}%"),
        ("silent.*.ess@median:.1f", "\N{EN DASH}"),
    ],
)
def test_a_figure_is_found_reduced_and_formatted(expression: str, text: str) -> None:
    assert figures.figure(CONTENT, expression) == text


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mean:.1f", "got 'mean', expected one of median, share"),
        ("median.deeper", "got 12.3456, expected a mapping or a list"),
        ("table.c.x", "got 'c.x', expected one of a, b, 0, 1"),
        ("table.*.x:.1f", "got 2 values at 'table.*.x', expected one; name a reduction"),
        ("table.*.x@middle", "got 'middle', expected above X or one of count"),
    ],
)
def test_what_is_not_there_is_an_error(expression: str, message: str) -> None:
    with pytest.raises(LookupError, match=re.escape(message)):
        figures.figure(CONTENT, expression)


def build(folder: Path, page: str) -> tuple[str, str]:
    """The text of a page, and the warnings of its build."""
    folder.mkdir(exist_ok=True)
    (folder / "conf.py").write_text(
        f"import sys; sys.path.insert(0, {str(DOCS / '_extensions')!r})\n"
        "extensions = ['figures', 'myst_parser']\nmyst_enable_extensions = ['colon_fence']\n"
    )
    (folder / "index.md").write_text(page)
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "a.json").write_text(json.dumps(CONTENT))
    (folder / "results" / "a.csv").write_text("stem,dB\nbass,1.5\ndrums,\n")
    warnings, out = io.StringIO(), folder / "out"
    with docutils_namespace():
        app = Sphinx(folder, folder, out, out / "trees", "text", status=None, warning=warnings)
        app.build()
    return (out / "index.txt").read_text(), warnings.getvalue()


PAGE = """# Page

Gain {figure}`a.json:median:.1f` dB, {figure}`a.csv:bass.dB:.2f` dB.

:::{figure-table}
:header: name; middle
:values: {x:.1f} dB

**first**; a.json:table.a
? second; a.json:table.b
? third; a.json:table.c
? fourth; b.json
:::

:::{figure-table}
:header: stem; dB
:values: {stem}; {dB:.1f}

a.csv:*
:::

:::{if-figures} b.json
Never shown.
:::

:::{if-figures} a.json:share
## Shown

It is {figure}`a.json:share:.0%`.
:::
"""


def test_a_page_shows_the_figures_of_its_files(tmp_path: Path) -> None:
    text, warnings = build(tmp_path / "site", PAGE)
    assert not warnings
    assert "Gain 12.3 dB, 1.50 dB." in text
    assert "It is 84\N{NO-BREAK SPACE}%." in text
    assert "Never" not in text
    lines = [line for line in text.splitlines() if "|" in line and "=" not in line]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines]
    rows = [["name", "middle"], ["**first**", "1.0 dB"], ["second", "3.0 dB"]]
    assert cells == [*rows, ["stem", "dB"], ["bass", "1.5"], ["drums", "\N{EN DASH}"]]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            "{figure}`b.json:median`",
            "index.md:3: WARNING: figure b.json:median: [Errno 2] No such file",
        ),
        ("{figure}`a.json:mean:.1f`", "got 'mean', expected one of median"),
        ("{figure}`a.json:median:.1q`", "Unknown format code 'q'"),
        (
            ":::{figure-table}\n:header: name; x\n:values: {x}\n\none; a.json:table.c\n:::",
            "figure-table: got 'c', expected one of a, b, 0, 1",
        ),
        (
            ":::{figure-table}\n:header: name\n:values: {x}\n\none; a.json:table.a\n:::",
            "got 2 cells, expected 1",
        ),
    ],
)
def test_a_missing_figure_is_a_warning(tmp_path: Path, page: str, message: str) -> None:
    assert message in build(tmp_path / "site", f"# Page\n\n{page}\n")[1]


def test_an_audit_is_shown_by_source(tmp_path: Path) -> None:
    audit = {
        "sigmas": [0.5],
        "names": ["a", "b"],
        "excess[sigma][prior][source]": [[[-0.1, -0.15], [-0.3, -0.2]]],
        "discriminative": {"0.5": False},
    }
    (tmp_path / "site" / "results").mkdir(parents=True)
    (tmp_path / "site" / "results" / "audit.json").write_text(json.dumps(audit))
    text, warnings = build(tmp_path / "site", "# Page\n\n:::{audit-table} audit.json\n:::\n")
    assert not warnings
    *_, row = [line for line in text.splitlines() if "|" in line]
    cells = ["0.5", "-0.100 (-0.300)", "-0.200 (-0.150)", "no", "no"]
    assert re.split(r"\s*\|\s*", row.strip("| ")) == cells


def test_every_result_file_is_shown_and_free_of_local_paths() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path not in PAGES]
    assert len(files) > 30
    for path in files:
        assert path.relative_to(RESULTS).as_posix() in pages, f"{path}: on no page"
        if path.suffix in (".json", ".csv"):
            assert not re.search(r"/(tmp|home|work|Users)/", path.read_text()), path
            assert path.stat().st_size < 150_000, path


def test_the_commands_on_the_pages_name_scripts_that_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"experiments/\w+\.py", page.read_text()):
            assert (DOCS.parent / script).is_file(), f"{page.name}: {script}"
