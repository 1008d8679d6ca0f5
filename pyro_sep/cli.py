"""The command line: train and audit priors, separate recordings.

Every mistake of a user is one line on standard error and exit code 2; an interrupt is 130.
"""

import sys
import time as clock
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_sep.models.train import TrainConfig, TrainingDivergedError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Probabilistic audio source separation with deep generative priors.",
)

AUDIT_FRAMES = 32
AUDIT_TIME = 2_048


@app.command()
def train(
    source: Annotated[str, typer.Option(help="toy:WAVEFORM, or a folder of audio of one source.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors and its model card.")],
    size: Annotated[str, typer.Option(help="Network: toy or paper.")] = "toy",
    steps: Annotated[int, typer.Option(min=1)] = TrainConfig.steps,
    batch: Annotated[int, typer.Option(min=1)] = TrainConfig.batch,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = TrainConfig.time,
    learning_rate: Annotated[float, typer.Option(min=0)] = TrainConfig.learning_rate,
    seed: int = 0,
    sample_rate: Annotated[int, typer.Option(min=1)] = 16_000,
    device: str = "cpu",
) -> None:
    """Learn the prior of one source from isolated recordings of it; goes on where it was cut off."""
    from pyro_sep.checkpoints import save_prior
    from pyro_sep.data.source import open_source
    from pyro_sep.model_card import write_card
    from pyro_sep.models.train import fit
    from pyro_sep.models.wavenet import CONFIGS
    from pyro_sep.priors import WaveNetPrior

    if size not in CONFIGS:
        raise ValueError(f"size: got {size!r}, expected one of {', '.join(CONFIGS)}")
    audio = open_source(source, sample_rate, time)
    config = TrainConfig(
        steps=steps, batch=batch, time=time, learning_rate=learning_rate, seed=seed
    )
    level = audio.draw(64, time, torch.Generator().manual_seed(seed)).square().mean().sqrt()
    network_config = replace(CONFIGS[size], sigma_data=round(level.item(), 3))
    out.mkdir(parents=True, exist_ok=True)
    started = clock.monotonic()
    network = fit(audio.draw, out / f"{audio.name}.run", network_config, config, device)
    prior = WaveNetPrior(network.cpu(), name=audio.name, sample_rate=audio.sample_rate)
    path = out / f"{audio.name}.safetensors"
    save_prior(prior, path)
    held_out = audio.held_out(AUDIT_FRAMES, AUDIT_TIME)
    write_card(
        path.with_suffix(".md"), prior, source, asdict(config), clock.monotonic() - started, held_out
    )
    typer.echo(f"{path}: prior of {audio.name}, its model card beside it")


@app.command("audit")
def audit_command(
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder of priors.")] = "toy",
    source: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of held-out audio; toy waveforms by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.png.")] = None,
    frames: Annotated[int, typer.Option(min=1)] = AUDIT_FRAMES,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = AUDIT_TIME,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Say whether priors may be used: every prior on every source at every noise level."""
    from pyro_sep.audit import audit, format_audit, save_audit
    from pyro_sep.checkpoints import load_priors
    from pyro_sep.data.source import open_source
    from pyro_sep.plots import plot_audit, save_figure

    loaded = load_priors(priors, device)
    specs = {name: f"toy:{name}" for name in loaded} | dict(
        entry.split("=", 1) for entry in source or [] if "=" in entry
    )
    rate = next(iter(loaded.values())).sample_rate
    audio = {
        name: open_source(spec, rate, time).held_out(frames, time).to(device)
        for name, spec in specs.items()
    }
    table = audit(loaded, audio, seed=seed, progress=True)
    typer.echo(format_audit(table))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_audit(table, out / "audit.json")
        save_figure(plot_audit(table), out / "audit.png")


def main() -> None:
    """Run the command line."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (ValueError, OSError, TrainingDivergedError) as error:
        sys.stderr.write(f"pyro-sep: {str(error).splitlines()[0]}\n")
        sys.exit(2)
