"""How a command runs, and what its options may be.

Every mistake of a user is one line on standard error and exit code 2; an interrupt is 130.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer

from pyro_sep.checks.names import printable
from pyro_sep.models.train import TrainingDivergedError

NO_MEMORY = ("allocate memory", "alloc_cpu", "out of memory")  # in what torch says
INTERRUPTED = 130  # exit code, also typer's


def one_of(option: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless an option has one of these values."""
    if value not in choices:
        raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(choices)}")


def listed(option: str, value: str) -> list[str]:
    """Names separated by commas.

    Raises:
        ValueError: a name that is empty or there twice.
    """
    names = [name.strip() for name in value.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{option}: got {value!r}, expected names that differ, by commas")
    return names


def mixing_options(gains: str | None, noise_scale: str | None) -> dict[str, Any]:
    """Gains and noise as :func:`~pyro_sep.separate` takes them."""
    mixing: dict[str, Any] = {}
    if gains is not None:
        mixing["gains"] = _numbers("gains", gains, "numbers or infer")
    if noise_scale is not None:
        scale = _numbers("noise_scale", noise_scale, "a number or infer")
        if len(scale) > 1 and scale != "infer":
            raise ValueError(f"noise_scale: got {noise_scale!r}, expected a number or infer")
        mixing["noise_scale"] = scale if scale == "infer" else scale[0]
    return mixing


def _numbers(option: str, value: str, expected: str) -> Any:
    """A list of numbers, or ``"infer"``."""
    if value.strip() == "infer":
        return "infer"
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"{option}: got {value!r}, expected {expected}") from None


def torch_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: no such device here.
    """
    try:
        torch.zeros(1, device=name).item()  # a device that computes
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: got {name!r}, expected cpu or one that is here ({reason})"
        ) from None
    return torch.device(name)


def run(command: Callable[..., None] | typer.Typer) -> NoReturn:
    """Run a command: a mistake is one line and exit code 2, an interrupt 130."""
    program = command if isinstance(command, typer.Typer) else _single(command)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        program(standalone_mode=True)
    except (ValueError, OSError, MemoryError, TrainingDivergedError) as error:
        report(error)
        sys.exit(2)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        report(MemoryError("it does not fit; take less audio at once, fewer chains or frames"))
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stderr.write("interrupted\n")
        raise
    sys.exit(0)


class Batch:
    """Many files, of which one that fails does not stop the others."""

    def __init__(self) -> None:
        self.failed = False

    @contextmanager
    def file(self, path: Path) -> Iterator[None]:
        """What is done with one file; whatever is wrong with it is reported in one line."""
        try:
            yield
        except Exception as error:
            report(error, path)
            self.failed = True


@contextmanager
def resumable(checkpoint: Path) -> Iterator[None]:
    """Say how an interrupted run goes on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "begins again, nothing was kept yet"
        if checkpoint.exists():
            kept = f"goes on from {checkpoint}"
        say(f"\nthe same command {kept}", err=True)
        raise


def say(text: str, err: bool = False) -> None:
    """Print lines, as text that a terminal does not interpret."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def report(error: Exception, path: Path | None = None) -> None:
    """One line, that names the file where an error does not, and the error where it is no words."""
    name = "" if path is None else printable(path)
    text = str(error) if path is None else str(error).replace(str(path), name)
    line = next((line for line in text.splitlines() if line.strip()), "no more is known")
    if not isinstance(error, ValueError | OSError | TrainingDivergedError):
        line = f"{type(error).__name__}: {line}"
    if not line.startswith(name):
        line = f"{name}: {line}"
    sys.stderr.write(f"pyro-sep: {printable(line)}\n")


def _single(command: Callable[..., None]) -> typer.Typer:
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    return program
