"""The command ``pyro-sep audit``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import Device, MusdbRoot, torch_device
from pyro_sep.cli.program import say
from pyro_sep.models.settings import AUDIT_FRAMES, AUDIT_TIME


def audit(
    priors: Annotated[str, typer.Option(help="Sets that ship or folders, joined by +.")] = "toy",
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=SOURCE, as for train, again for several places; by default toy:NAME or, "
            "with --musdb, musdb:NAME."
        ),
    ] = None,
    musdb: MusdbRoot = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.png.")] = None,
    frames: Annotated[
        int, typer.Option(min=1, help="Held-out frames of each source.")
    ] = AUDIT_FRAMES,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = AUDIT_TIME,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = "cpu",
) -> None:
    """Say whether priors may be used: every prior on every source at every noise level."""
    from pyro_sep.data.source import default_spec, open_sources
    from pyro_sep.priors import auditing
    from pyro_sep.priors.base import sample_rate_of
    from pyro_sep.priors.io import load_priors
    from pyro_sep.storage.files import check_output, only_run
    from pyro_sep.viz.plots import plot_audit
    from pyro_sep.viz.png import save_figure

    if wrong := [entry for entry in source or [] if "=" not in entry]:
        raise ValueError(f"source: got {wrong[0]!r}, expected NAME=SOURCE")
    loaded = load_priors(priors, torch_device(device))
    if not auditing.known_levels(loaded):
        raise ValueError(
            f"priors: got none that all know of the levels {', '.join(map(str, auditing.SIGMAS))}, "
            "expected one; name priors of one range"
        )
    given: dict[str, list[str]] = {}
    for entry in source or []:
        name, place = entry.split("=", 1)
        given.setdefault(name, []).append(place)
    specs = {name: [default_spec(name, musdb)] for name in loaded if name not in given} | given
    rate = sample_rate_of(loaded)
    audio = {
        name: open_sources(spec, rate, time, musdb).held_out(frames, time).to(device)
        for name, spec in specs.items()
    }
    with nullcontext() if out is None else only_run(out):
        if out is not None:
            check_output(out / "audit.json", auditing.UNIT)
            if not (out / "audit.json").exists():
                check_output(out / "audit.png", auditing.UNIT)
        table = auditing.audit(loaded, audio, seed=seed, progress=True)
        say(auditing.format_audit(table))
        if out is not None:
            auditing.save_audit(table, out / "audit.json")
            save_figure(plot_audit(table), out / "audit.png")
