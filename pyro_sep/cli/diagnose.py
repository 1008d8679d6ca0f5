"""The command ``pyro-sep diagnose``."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import CalibrationFile
from pyro_sep.cli.program import say


def diagnose(
    trace: Annotated[Path, typer.Argument(help="trace.nc that `pyro-sep separate` wrote.")],
    calibration: CalibrationFile = None,
) -> None:
    """Say whether a separation may be trusted: chains, draws, priors and mixture."""
    from pyro_sep.diagnostics import convergence
    from pyro_sep.diagnostics.conformal import ConformalCalibration, format_intervals
    from pyro_sep.trace.dataset import load_trace

    tree = load_trace(trace)
    say(convergence.format_diagnosis(convergence.diagnose(tree)))
    if calibration is not None:
        say(format_intervals(ConformalCalibration.load(calibration), tree))
