"""The command ``pyro-sep train``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pyro_sep.cli.options import Device, MusdbRoot, torch_device
from pyro_sep.cli.program import say
from pyro_sep.models.settings import TrainConfig


def train(
    source: Annotated[
        list[str],
        typer.Option(
            help="toy:WAVEFORM, a folder of audio of one source, FOLDER:STEM, musdb:STEM. May be "
            "given again, with a weight as in FOLDER:0.3; the first names the source."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors and its model card.")],
    init: Annotated[
        str | None,
        typer.Option(
            help="Begin from a trained prior: a set that ships or a folder, or SET:NAME for the "
            "prior of another source."
        ),
    ] = None,
    family: Annotated[
        Literal["wavenet", "flow"] | None,
        typer.Option(help="Family of networks; wavenet, or that of --init."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="toy, toy-deep, music, music-4k or paper; by default toy, or --init's."),
    ] = None,
    recipe: Annotated[
        Literal["conditional", "serial"],
        typer.Option(help="conditional: one network, all noise levels; serial: one per level."),
    ] = "conditional",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = TrainConfig.steps,
    batch: Annotated[int, typer.Option(min=1, help="Frames per step.")] = TrainConfig.batch,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = TrainConfig.time,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Peak of the schedule.")
    ] = TrainConfig.learning_rate,
    score_weight: Annotated[
        float | None,
        typer.Option(
            min=0, help="Weight of score matching; by default 0.3 for a conditional flow, else 0."
        ),
    ] = None,
    gain_db: Annotated[
        float, typer.Option(min=0, help="Random gain of the frames, up to plus or minus this.")
    ] = TrainConfig.gain_db,
    sigma_min: Annotated[
        float | None,
        typer.Option(help="Lowest noise level to learn; that of the size, or of --init."),
    ] = None,
    sigma_max: Annotated[
        float | None,
        typer.Option(help="Highest noise level to learn; that of the size, or of --init."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, frames and noise.")] = TrainConfig.seed,
    sample_rate: Annotated[int, typer.Option(help="Of the prior, in Hz.")] = 16_000,
    musdb: MusdbRoot = None,
    device: Device = "cpu",
) -> None:
    """Train the prior of a source on isolated recordings; a run that was cut off goes on."""
    from pyro_sep.priors.training import train_prior

    trained = train_prior(
        source,
        out,
        init=init,
        family=family,
        size=size,
        recipe=recipe,
        steps=steps,
        batch=batch,
        time=time,
        learning_rate=learning_rate,
        score_weight=score_weight,
        gain_db=gain_db,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        seed=seed,
        sample_rate=sample_rate,
        musdb=musdb,
        device=torch_device(device),
        progress=True,
    )
    levels = trained if isinstance(trained, dict) else {None: trained}
    for sigma, prior in levels.items():
        folder = out if sigma is None else out / f"sigma-{sigma:g}"
        path = folder / f"{prior.name}.safetensors"
        say(f"{path}: prior of {prior.name}, its model card beside it")
