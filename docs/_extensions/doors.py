"""References to names of the package, by whatever path a docstring names them.

Each exported name is documented once, under its shortest path. A reference by another path, such as
``pyro_sep.priors.load_priors`` or, in a docstring of that room, ``load_priors``, links to it there.
A name that exists and is not documented is shown without a link; one that does not exist is a
broken reference, for which ``nitpicky`` fails the build. Signatures are shortened.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from docutils.nodes import Element
from numpy.typing import ArrayLike, NDArray
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import stringify_annotation

PACKAGE = "pyro_sep"


def doors() -> Iterator[str]:
    """The package and its rooms that export names."""
    package = importlib.import_module(PACKAGE)
    yield PACKAGE
    yield from (f"{PACKAGE}.{name}" for name in package.__all__ if is_room(name))


def is_room(name: str) -> bool:
    """Whether what the package exports by this name is a room."""
    module = sys.modules.get(f"{PACKAGE}.{name}") or getattr(sys.modules[PACKAGE], name)
    return hasattr(module, "__path__")


@cache
def documented() -> dict[str, str]:
    """The path under which an exported name is documented, by each of its paths."""
    top = importlib.import_module(PACKAGE)
    paths = {}
    for door in doors():
        for name in importlib.import_module(door).__all__:
            if door == PACKAGE and is_room(name):
                continue
            value = getattr(importlib.import_module(door), name)
            short = f"{PACKAGE}.{name}" if getattr(top, name, None) is value else f"{door}.{name}"
            paths[f"{door}.{name}"] = short
    return paths


def candidates(target: str, door: str | None) -> Iterator[str]:
    """Full paths that a reference may mean, in a docstring of an object of this door."""
    if target.startswith(f"{PACKAGE}."):
        yield target
    elif door:
        room = door if door != PACKAGE else PACKAGE + "."
        yield f"{door}.{target}"
        yield from (f"{name}.{target}" for name in sorted(modules()) if name.startswith(room))


@cache
def modules() -> set[str]:
    """All modules of the package."""
    package = importlib.import_module(PACKAGE)
    found = pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")
    return {module.name for module in found if not module.name.endswith("__main__")}


def exists(path: str) -> bool:
    """Whether a full path leads to an object."""
    try:
        pkgutil.resolve_name(path)
    except (AttributeError, ImportError, ValueError):
        return False
    return True


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """The link, or the text alone of what is not documented; None of what does not exist."""
    if node.get("refdomain") != "py":
        return None
    objects = env.domains["py"].data["objects"]
    for path in candidates(node["reftarget"], node.get("py:module")):
        if not exists(path):
            continue
        parts = path.split(".")
        for end in range(len(parts), 1, -1):
            short = documented().get(".".join(parts[:end]))
            entry = short and objects.get(".".join([short, *parts[end:]]))
            if entry:
                return make_refnode(
                    app.builder, node["refdoc"], entry.docname, entry.node_id, content
                )
        return content
    return None


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    value: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """A signature in which types of NumPy have their names, not their definitions."""
    for name_of, alias in (("ArrayLike", ArrayLike), ("NDArray", NDArray[Any])):
        definition = stringify_annotation(alias, "smart")
        signature = signature and signature.replace(definition, f"~numpy.typing.{name_of}")
    return signature, returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
