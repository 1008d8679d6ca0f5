"""The program ``pyro-sep``: its commands, a file each, put together."""

from typing import Annotated

import typer

from pyro_sep.cli.audit import audit
from pyro_sep.cli.calibrate import calibrate
from pyro_sep.cli.diagnose import diagnose
from pyro_sep.cli.evaluate import evaluate
from pyro_sep.cli.program import run, say
from pyro_sep.cli.report import report
from pyro_sep.cli.separate import separate
from pyro_sep.cli.train import train
from pyro_sep.cli.versions import versions

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Probabilistic audio source separation with deep generative priors.",
)
for command in (train, audit, separate, diagnose, report, calibrate, evaluate):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        say(versions())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the versions of pyro-sep, Python, torch, Pyro and ArviZ, and exit.",
        ),
    ] = False,
) -> None:
    """Options of the program itself; ``--version`` exits before a command is looked for."""


def main() -> None:
    """Run the command line."""
    run(app)
