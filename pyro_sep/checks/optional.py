"""Packages that not everybody needs, imported where they are used."""

from importlib import import_module
from typing import Any


def import_optional(module: str, user: object, missing: str, expected: str) -> Any:
    """Import a module, or say in one line what is missing.

    Args:
        module: its name.
        user: the option or file that asks for it.
        missing: what there is not.
        expected: what there should be, and what to do.

    Raises:
        ValueError: it cannot be imported.
    """
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: stempeg's own, without ffmpeg
        reason = str(error).splitlines()[0]
        raise ValueError(f"{user}: got no {missing} ({reason}), expected {expected}") from error
