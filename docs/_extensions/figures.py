"""Figures of the pages, read from the files that the experiments write.

Files are JSON or CSV and lie in ``docs/results``. A figure is written as ``FILE:PATH:FORMAT``:

    {figure}`toys/four.json:median_improvement_db:.1f`
    {figure}`toys/four.json:mixtures.*.si_sdr@min:.1f`

PATH goes down through keys, separated by dots. In a list a key is a number from 0, or the first
value of the entry; ``*`` takes every entry. A reduction may follow an ``@``: one of
:data:`REDUCTIONS`, or ``above X``, the share above X. FORMAT is Python's. A null is printed as a
dash; in a reduction it is minus infinity, the decibels of a silent estimate.

``{figure-table}`` makes a table with the cells of its option ``header``, separated by semicolons
as all cells are. Every line of its body is a row: labels, and last the ``FILE`` or ``FILE:PATH``
where the option ``values`` finds its figures, every ``{PATH:FORMAT}`` of which is replaced. A place
that ends with ``*`` gives a row for every entry. A row that begins with ``?`` is left out where its
place does not exist. ``{audit-table}`` makes the table of an audit. ``{if-figures}`` shows its body
where a place exists. Any other missing file or key is a warning, which fails the build under
``-W``.
"""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

FOLDER = "results"
REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "count": len,
    "max": np.max,
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "q1": lambda values: np.percentile(values, 25),
    "q3": lambda values: np.percentile(values, 75),
}
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
log = logging.getLogger(__name__)


def read(path: Path) -> Any:
    """What a JSON file holds, or the rows of a CSV file by column."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return [
            {key: as_number(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]


def as_number(text: str) -> float | str | None:
    """The number in a cell of a CSV file, None in an empty one, else its text."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def find(content: Any, path: str) -> Any:
    """The value, or the list of values, at a path."""
    if not path:
        return content
    entries = by_key(content)
    if path == "*" or path.startswith("*."):
        every = content if isinstance(content, list) else content.values()
        return [find(entry, path[2:]) for entry in every]
    # The longest key that begins the path: a key such as "0.01" has a dot of its own.
    for key in sorted(entries, key=len, reverse=True):
        if path == key or path.startswith(f"{key}."):
            return find(entries[key], path[len(key) + 1 :])
    raise LookupError(f"got {path!r}, expected one of {', '.join(entries)}"[:300])


def by_key(content: Any) -> dict[str, Any]:
    """The entries of a mapping or a list; those of a list by number, or else by first value."""
    if isinstance(content, dict):
        return content
    if not isinstance(content, list):
        raise LookupError(f"got {content!r}, expected a mapping or a list")
    numbered = {str(i): entry for i, entry in enumerate(content)}
    rows = [entry for entry in content if isinstance(entry, dict)]
    named = {name: row for row in rows for name in list(row.values())[:1] if isinstance(name, str)}
    return named | numbered


def flat(values: Any) -> list[Any]:
    """The values in nested lists."""
    return [one for part in values for one in flat(part)] if isinstance(values, list) else [values]


def reduce(values: Any, name: str) -> Any:
    """A reduction of all values in nested lists; None where all of them are null."""
    every = flat(values)
    if name == "count":
        return len(every)
    if all(value is None for value in every):
        return None
    numbers = np.array([-np.inf if value is None else value for value in every], float)
    if name.startswith("above "):
        return float((numbers > float(name.removeprefix("above "))).mean())
    if name not in REDUCTIONS:
        raise LookupError(f"got {name!r}, expected above X or one of {', '.join(REDUCTIONS)}")
    return float(REDUCTIONS[name](numbers))


def figure(content: Any, expression: str) -> str:
    """The text of a figure, ``PATH@REDUCTION:FORMAT``."""
    place, _, form = expression.rpartition(":") if ":" in expression else (expression, "", "")
    path, _, reduction = place.partition("@")
    value = find(content, path)
    value = reduce(value, reduction) if reduction else value
    if isinstance(value, dict | list):
        raise LookupError(f"got {len(value)} values at {path!r}, expected one; name a reduction")
    text = "\N{EN DASH}" if value is None else format(value, form)
    return text.replace("%", "\N{NO-BREAK SPACE}%")


def fill(template: str, content: Any) -> str:
    """A cell, each ``{PATH:FORMAT}`` in it replaced by its figure."""
    return PLACEHOLDER.sub(lambda match: figure(content, match[1]), template)


class Files:
    """The result files, as one page reads them."""

    def __init__(self, env: BuildEnvironment) -> None:
        self.env, self.folder = env, Path(env.srcdir) / FOLDER

    def content(self, place: str) -> Any:
        """What there is at ``FILE`` or ``FILE:PATH``; the page is built again when it changes."""
        name, _, path = place.partition(":")
        self.env.note_dependency(str(self.folder / name))
        return find(read(self.folder / name), path)

    def have(self, place: str) -> bool:
        """Whether the file and its key exist."""
        try:
            self.content(place)
        except (OSError, LookupError):
            return False
        return True


class FigureRole(SphinxRole):
    """A figure in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The figure's text."""
        name, _, expression = self.text.partition(":")
        try:
            text = figure(Files(self.env).content(name), expression)
        except (OSError, LookupError, ValueError, TypeError) as error:
            log.warning("figure %s: %s", self.text, error, location=self.get_location())
            text = "?"
        return [nodes.Text(text)], []


class Table(SphinxDirective):
    """A table whose rows :meth:`rows` gives."""

    has_content = True
    option_spec: ClassVar = dict.fromkeys(("header", "values"), directives.unchanged_required)

    def run(self) -> list[nodes.Node]:
        """The table, parsed from Markdown so that labels may have links."""
        try:
            header, rows = self.rows(Files(self.env))
        except (OSError, LookupError, ValueError, TypeError) as error:
            log.warning("%s: %s", self.name, error, location=self.get_location())
            return []
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return self.parse_text_to_nodes(text)

    def rows(self, files: Files) -> tuple[list[str], list[list[str]]]:
        """The cells of the header and of every row."""
        header, values = (self.split(self.options.get(name, "")) for name in ("header", "values"))
        rows = []
        for line in filter(str.strip, self.content):
            *labels, place = self.split(line.strip().removeprefix("?"))
            if line.strip().startswith("?") and not files.have(place):
                continue
            content = files.content(place)
            for entry in content if place.endswith("*") else [content]:
                rows.append(labels + [fill(value, entry) for value in values])
                if len(rows[-1]) != len(header):
                    raise ValueError(f"got {len(rows[-1])} cells, expected {len(header)}: {line}")
        return header, rows

    @staticmethod
    def split(line: str) -> list[str]:
        """Cells between semicolons."""
        return [cell.strip() for cell in line.split(";")] if line.strip() else []


class AuditTable(Table):
    """Of every source the excess under its own prior and the highest under another, by level."""

    has_content = False
    required_arguments = 1
    option_spec: ClassVar = {}

    def rows(self, files: Files) -> tuple[list[str], list[list[str]]]:
        """One row a noise level."""
        content = files.content(self.arguments[0])
        tables = np.array(content["excess[sigma][prior][source]"])
        rows = []
        for sigma, table in zip(content["sigmas"], tables, strict=True):
            own = table.diagonal()
            other = np.where(np.eye(len(table), dtype=bool), -np.inf, table).max(0)
            cells = [f"{a:.3f} ({b:.3f})" for a, b in zip(own, other, strict=True)]
            verdicts = (own > other).all(), content["discriminative"][f"{sigma:g}"]
            rows.append(
                [f"{sigma:g}", *cells, *("yes" if verdict else "no" for verdict in verdicts)]
            )
        return ["sigma", *content["names"], "own prior wins", "discriminative"], rows


class IfFigures(SphinxDirective):
    """What is shown only where its figures exist."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The parsed body, or nothing."""
        if not Files(self.env).have(self.arguments[0]):
            return []
        return self.parse_content_to_nodes(allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role and the directives."""
    app.add_role("figure", FigureRole())
    app.add_directive("figure-table", Table)
    app.add_directive("audit-table", AuditTable)
    app.add_directive("if-figures", IfFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
