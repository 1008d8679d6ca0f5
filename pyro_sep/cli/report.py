"""The command ``pyro-sep report``."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import CalibrationFile
from pyro_sep.cli.program import say


def report(
    trace: Annotated[Path, typer.Argument(help="trace.nc that `pyro-sep separate` wrote.")],
    out: Annotated[Path, typer.Option(help="The page, an HTML file that needs no other file.")],
    calibration: CalibrationFile = None,
) -> None:
    """Write a page to listen to a separation, see its uncertainty, and judge it."""
    from pyro_sep.diagnostics.conformal import ConformalCalibration
    from pyro_sep.storage.files import check_output
    from pyro_sep.trace.dataset import load_trace
    from pyro_sep.viz.report import REPORT_MARK, write_report

    check_output(out, REPORT_MARK, [trace, *([calibration] if calibration else [])])
    known = None if calibration is None else ConformalCalibration.load(calibration)
    write_report(load_trace(trace), out, known)
    say(f"{out}: open it in a browser")
