"""How a command runs, and what its options may be.

Every mistake of a user is one line on standard error and exit code 2; an interrupt is 130.
"""

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer

from pyro_sep.models.train import TrainingDivergedError


def one_of(option: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless an option has one of these values."""
    if value not in choices:
        raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(choices)}")


def mixing_options(gains: str | None, noise_scale: str | None) -> dict[str, Any]:
    """Gains and noise as :func:`~pyro_sep.separation.separate` takes them."""
    mixing: dict[str, Any] = {}
    if gains is not None:
        mixing["gains"] = gains if gains == "infer" else _numbers("gains", gains)
    if noise_scale is not None:
        known = noise_scale != "infer"
        mixing["noise_scale"] = _numbers("noise_scale", noise_scale)[0] if known else noise_scale
    return mixing


def _numbers(option: str, value: str) -> list[float]:
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"{option}: got {value!r}, expected numbers or infer") from None


def torch_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: no such device here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: got {name!r}, expected cpu or one that is here ({reason})"
        ) from None
    return torch.device(name)


def run(command: Callable[..., None] | typer.Typer) -> NoReturn:
    """Run a command: a mistake is one line and exit code 2, an interrupt 130."""
    program = command if isinstance(command, typer.Typer) else _single(command)
    try:
        program(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (ValueError, OSError, TrainingDivergedError) as error:
        report(error)
        sys.exit(2)
    sys.exit(0)


def report(error: Exception, path: Path | None = None) -> None:
    """One line, that names the file where an error does not."""
    line = str(error).splitlines()[0]
    if path is not None and not line.startswith(str(path)):
        line = f"{path}: {line}"
    sys.stderr.write(f"pyro-sep: {line}\n")


def _single(command: Callable[..., None]) -> typer.Typer:
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    return program
