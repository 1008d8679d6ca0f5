"""Packages of the extras, imported where they are used."""

from importlib import import_module
from typing import Any


def import_optional(module: str, user: object, extra: str, also: str = "") -> Any:
    """A module of an extra's package, or an error that names the pip command.

    Args:
        module: its name.
        user: the option or file that needs it.
        extra: the extra of pyro-sep that installs its package.
        also: how to install a program that it needs too.

    Raises:
        ValueError: it cannot be imported.

    >>> import_optional("math", "gain", "music").sqrt(4)
    2.0
    """
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: stempeg's own, without ffmpeg
        remedy = ", ".join(filter(None, (f"pip install 'pyro-sep[{extra}]'", also)))
        package, reason = module.partition(".")[0], str(error).splitlines()[0]
        raise ValueError(f"{user}: got no {package} ({reason}), expected it; {remedy}") from error
