"""The program ``pyro-sep``: its commands, a file each, put together."""

import typer

from pyro_sep.cli.audit import audit
from pyro_sep.cli.calibrate import calibrate
from pyro_sep.cli.diagnose import diagnose
from pyro_sep.cli.evaluate import evaluate
from pyro_sep.cli.program import run
from pyro_sep.cli.report import report
from pyro_sep.cli.separate import separate
from pyro_sep.cli.train import train

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Probabilistic audio source separation with deep generative priors.",
)
for command in (train, audit, separate, diagnose, report, calibrate, evaluate):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    run(app)
