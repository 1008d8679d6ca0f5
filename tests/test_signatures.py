"""Exported classes and functions say which types they take and give."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

import pytest
from test_doctests import exported

EXPORTED = exported()


def annotations(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Parameters, results and fields of what is public, with their annotations."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.ClassDef():
                yield from annotations(node)
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                yield name, node.annotation
            case ast.FunctionDef(name=name) if name == "__init__" or not name.startswith("_"):
                known = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                known += [more for more in (node.args.vararg, node.args.kwarg) if more]
                yield from (
                    (f"{name}({one.arg})", one.annotation)
                    for one in known
                    if one.arg not in ("self", "cls")
                )
                yield f"{name} ->", node.returns


def vague(source: str) -> list[str]:
    """What has no type, or one with ``Any`` in it."""
    return [
        name
        for name, annotation in annotations(ast.parse(textwrap.dedent(source)))
        if annotation is None or "Any" in {getattr(n, "id", None) for n in ast.walk(annotation)}
    ]


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_types_are_said(name: str) -> None:
    assert vague(inspect.getsource(EXPORTED[name])) == []


def test_the_test_sees_what_is_vague() -> None:
    loose = "class A:\n    x: Any\n    def f(self, y, *args: int) -> dict[str, Any]: ..."
    assert vague(loose) == ["x", "f(y)", "f ->"]
