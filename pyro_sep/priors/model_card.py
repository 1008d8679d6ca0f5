"""Trained weights and their page: data, command, time, how well they know the source."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyro_sep.models.train import CHECKPOINT
from pyro_sep.priors.auditing import audit
from pyro_sep.priors.base import NetworkPrior
from pyro_sep.priors.io import save_prior
from pyro_sep.storage.files import atomic_write

COMMAND_OPTIONS = (
    "family",
    "size",
    "recipe",
    "steps",
    "batch",
    "time",
    "learning_rate",
    "score_weight",
    "gain_db",
    "seed",
    "sample_rate",
)


def train_command(source: str, settings: Mapping[str, object]) -> str:
    """The ``pyro-sep train`` of these settings."""
    options = " ".join(f"--{key.replace('_', '-')} {settings[key]}" for key in COMMAND_OPTIONS)
    root = " --musdb ROOT" if source.startswith("musdb:") else ""
    return f"pyro-sep train --source {source}{root} --out DIR {options}"


def check_free(paths: Iterable[Path], run: Path) -> None:
    """Raise ValueError where weights would take the place of others than those of a run.

    Args:
        paths: of the weights.
        run: folder of the run, which is there if it has begun.
    """
    for path in paths:
        for file in (path, path.with_suffix(".md")):
            if file.exists() and not any(run.rglob(CHECKPOINT)):
                raise ValueError(
                    f"{file}: got a file of another run, expected none, or a checkpoint in {run}; "
                    "give another --out"
                )


def save_with_card(
    folder: Path,
    prior: NetworkPrior,
    source: str,
    command: str,
    settings: Mapping[str, object],
    seconds: float,
    held_out: Tensor,
) -> Path:
    """Write NAME.safetensors and its model card, each whole or not at all; where the weights are.

    Args:
        folder: of a set of priors; made where there is none.
        prior: what was trained.
        source: what it was trained on, as named on the command line.
        command: that trains it.
        settings: of the training run.
        seconds: wall time of the run, of its last part where it was resumed.
        held_out: clean audio ``(frame, time)`` for the excess table.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{prior.name}.safetensors"
    save_prior(prior, path)
    rows = ""
    if len(held_out):
        table = audit({prior.name: prior}, {prior.name: held_out})
        pairs = zip(table["sigma"].values, table.values[:, 0, 0], strict=True)
        rows = "".join(f"| {sigma:g} | {excess:.3f} |\n" for sigma, excess in pairs)
    parameters = sum(p.numel() for p in prior.network.parameters())
    text = f"""# Prior of {prior.name}

- Model: {type(prior.network).__name__}, {parameters:,} parameters, `{prior.network.config}`
- Data: isolated audio of this source alone, `{source}`, {prior.sample_rate} Hz
- Command: `{command}`
- Training: `{dict(settings)}`
- Time: {seconds / 60:.0f} minutes of wall time, {torch.get_num_threads()} CPU threads
- Use: noise levels {prior.sigmas[0]:g} to {prior.sigmas[1]:g}, full scale 1

Held-out audio ({len(held_out)} frames of {held_out.shape[-1]} samples), excess in nats per audio
sample over the noise (0 is the ceiling):

| sigma | excess |
|---|---|
{rows}"""
    with atomic_write(path.with_suffix(".md")) as partial:
        partial.write_text(text)
    return path
