"""Checkpoints: the whole state of a run in a file, from which a killed run continues exactly."""

import math
import time as clock
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pyro_sep.storage.states import load_state, readable, save_state

KIND = "separation"
SECONDS = 60.0  # at least, between the checkpoints after blocks of draws
DENSITY_ERROR = 1e-5  # relative: another number of threads sums in another order


class Checkpoint:
    """The file of one run.

    Args:
        path: of the file; it need not exist.
        run: what identifies the run, plain values by name.
    """

    def __init__(self, path: str | PathLike[str], run: Mapping[str, Any]) -> None:
        self.path, self.run = Path(path), dict(run)
        self._saved_at = clock.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one was written more than :data:`SECONDS` ago."""
        return clock.monotonic() - self._saved_at > SECONDS

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state of tensors, numbers, and lists and dicts of them, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        save_state(self.path, KIND, {"run": self.run, "state": dict(state)})
        self._saved_at = clock.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, on the CPU, or None where there is no file yet.

        Raises:
            FileNotFoundError: no folder for the file.
            ValueError: a damaged file, or the checkpoint of another run.
        """
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"{self.path}: there is no folder {self.path.parent}; create it first"
            )
        if not self.path.exists():
            return None
        content = load_state(self.path, KIND)
        with readable(self.path, KIND):
            run, state = dict(content["run"]), dict(content["state"])
            names = [
                name for name in self.run | run if not same_run(run.get(name), self.run.get(name))
            ]
            got, expected = (
                ", ".join(" ".join(f"{name} {values.get(name)}".split()) for name in names)
                for values in (run, self.run)
            )
        if names:
            raise ValueError(
                f"{self.path}: got the checkpoint of a run of {got}, expected {expected}; "
                "give the options that it had, or another place, or delete it"
            )
        return state


def same_run(one: Any, other: Any) -> bool:
    """Whether two runs are identified by the same values, floats to rounding."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_run(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=DENSITY_ERROR)
    return bool(one == other)
