"""An error as one line: what a command prints of it."""

from pathlib import Path

from pyro_sep.checks.names import printable

MISTAKES = (ValueError, OSError, FloatingPointError)  # the last of a training that diverged


def one_line(error: BaseException, path: Path | None = None) -> str:
    """The first line of an error, with the file and, of an unforeseen error, the type.

    Args:
        error: of any type.
        path: of the file that it is about.

    >>> one_line(ValueError("gain: got 0, expected 1"), Path("a.wav"))
    'a.wav: gain: got 0, expected 1'
    >>> one_line(KeyError("x"))
    "KeyError: 'x'"
    """
    name = "" if path is None else printable(path)
    text = str(error) if path is None else str(error).replace(str(path), name)
    line = next((line for line in text.splitlines() if line.strip()), "no more is known")
    if not isinstance(error, MISTAKES):
        line = f"{type(error).__name__}: {line}"
    if not line.startswith(name):
        line = f"{name}: {line}"
    return printable(line)
