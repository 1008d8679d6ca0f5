"""How a command runs: a user's mistake is one line and exit code 2, an interrupt is code 130."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, cast

import typer

from pyro_sep.checks.errors import MISTAKES, one_line
from pyro_sep.checks.names import printable

#: All errors of usage; typer exports only classes below it.
USAGE = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])
NO_MEMORY = ("allocate memory", "alloc_cpu", "out of memory")  # in torch's messages
ABORTED, MISTAKEN, INTERRUPTED = 1, 2, 130  # exit codes, also typer's
DOUBTED = 1  # exit code of a verdict that says no


def run(command: Callable[..., None] | typer.Typer) -> NoReturn:
    """Run a command and exit: with code 2 and one line after a mistake, 130 after an interrupt."""
    program = command if isinstance(command, typer.Typer) else _single(command)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program(standalone_mode=False)
    except USAGE as error:
        of = "" if error.ctx is None else f"; see {error.ctx.command_path} --help"
        report(ValueError(f"{error.format_message().rstrip('.')}{of}"))
        sys.exit(MISTAKEN)
    except typer.Abort:
        sys.stderr.write("aborted\n")
        sys.exit(ABORTED)
    except (*MISTAKES, MemoryError) as error:
        report(error)
        sys.exit(MISTAKEN)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        report(MemoryError("it does not fit; take less audio at once, fewer chains or frames"))
        sys.exit(MISTAKEN)
    if code == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    sys.exit(code)


class Batch:
    """Many files: one that fails is reported, and does not stop the others."""

    def __init__(self) -> None:
        self.failed = 0

    @contextmanager
    def file(self, path: Path) -> Iterator[None]:
        """The work on one file; an error in it is reported in one line."""
        try:
            yield
        except Exception as error:
            report(error, path)
            self.failed += 1

    def fail(self, line: str) -> None:
        """Report the error of a file, and count it."""
        sys.stderr.write(f"pyro-sep: {line}\n")
        self.failed += 1

    def end(self) -> None:
        """Exit with code 2 if a file failed."""
        if self.failed:
            raise typer.Exit(MISTAKEN)


def say(text: str, err: bool = False) -> None:
    """Print lines, as text that a terminal does not interpret."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def report(error: Exception, path: Path | None = None) -> None:
    """Print an error as one line, which names the file and, of an unforeseen error, the type."""
    sys.stderr.write(f"pyro-sep: {one_line(error, path)}\n")


def _single(command: Callable[..., None]) -> typer.Typer:
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    return program
