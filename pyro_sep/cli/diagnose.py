"""The command ``pyro-sep diagnose``."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import CalibrationFile
from pyro_sep.cli.program import DOUBTED, say


def diagnose(
    trace: Annotated[Path, typer.Argument(help="trace.nc that `pyro-sep separate` wrote.")],
    calibration: CalibrationFile = None,
) -> None:
    """Say whether the stems of a separation may be trusted: exit code 0 if so, 1 if not."""
    from pyro_sep.diagnostics import verdict
    from pyro_sep.diagnostics.conformal import ConformalCalibration, format_intervals
    from pyro_sep.trace.dataset import load_trace

    tree = load_trace(trace)
    diagnosis = verdict.diagnose(tree)
    if calibration is not None:
        say(format_intervals(ConformalCalibration.load(calibration), tree))
    say(verdict.format_diagnosis(diagnosis))
    if not diagnosis.trusted:
        raise typer.Exit(DOUBTED)
