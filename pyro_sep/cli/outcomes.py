"""What `pyro-sep separate` says of a recording, and asks before long work."""

import sys
from typing import TYPE_CHECKING

import typer

from pyro_sep.checks.names import printable
from pyro_sep.cli.program import say
from pyro_sep.progress import duration as in_words

if TYPE_CHECKING:
    from pyro_sep.results.plan import Outcome

LONG = 3_600.0  # seconds; the command asks before it takes longer
BEFORE = "separated before with these settings; --force does it anew"


def say_outcome(outcome: "Outcome") -> None:
    """Say what was written, which sources are there, and whether to trust it."""
    from pyro_sep.results.writer import REPORT
    from pyro_sep.separation.inputs import SILENT_DB

    folder = printable(outcome.folder)
    stems = [name for name in outcome.written if name != REPORT]
    say(f"{folder}: {', '.join(stems) or BEFORE}")
    if outcome.presence is not None:
        cells = ", ".join(f"{name} {value:.2f}" for name, value in outcome.presence.items())
        say(f"{folder}: probability of presence: {cells}")
    if outcome.silent:
        cells = ", ".join(f"{name} for {value:.3g} s" for name, value in outcome.silent.items())
        say(f"{folder}: written as silence, being below {SILENT_DB:g} dB of full scale: {cells}")
    if outcome.initial:
        say(f"{folder}: {outcome.initial}")
    if REPORT in outcome.written:
        say(f"{outcome.folder / REPORT}: open it in a browser")
    if outcome.expected:
        say(f"{folder}: expected SI-SDR {outcome.expected}")
    if outcome.verdict:
        say(f"{folder}: {outcome.verdict}")


def confirm_long(seconds: float) -> None:
    """Ask before work of hours where a user can answer; elsewhere warn."""
    if seconds <= LONG:
        return
    about = f"all of it takes about {in_words(seconds)}"
    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"{about}; go on?", abort=True, err=True)
    else:
        remedy = "interrupt it and take a smaller --preset, or --duration of an excerpt"
        say(f"{about}; if that is too long, {remedy}", err=True)
