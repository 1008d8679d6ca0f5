"""Model cards: what a prior was trained on, how, and how well it knows held-out audio."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_sep.models.train import CHECKPOINT
from pyro_sep.priors.auditing import audit
from pyro_sep.priors.io import add_to_set
from pyro_sep.priors.networks import NetworkPrior
from pyro_sep.progress import duration
from pyro_sep.storage.files import atomic_write

COMMAND_OPTIONS = (
    "init",
    "family",
    "size",
    "recipe",
    "steps",
    "batch",
    "time",
    "learning_rate",
    "score_weight",
    "gain_db",
    "sigma_min",
    "sigma_max",
    "seed",
    "sample_rate",
)


def train_command(sources: Sequence[str], settings: Mapping[str, object]) -> str:
    """The ``pyro-sep train`` command of these settings."""
    options = " ".join(
        f"--{key.replace('_', '-')} {settings[key]}" for key in COMMAND_OPTIONS if key in settings
    )
    places = " ".join(f"--source {source}" for source in sources)
    root = " --musdb ROOT" if any(source.startswith("musdb:") for source in sources) else ""
    return f"pyro-sep train {places}{root} --out DIR {options}"


def check_free(paths: Iterable[Path], run: Path) -> None:
    """Raise ValueError where weights or a card would overwrite those of another run.

    Args:
        paths: of the weights.
        run: folder of the run; its checkpoints show that the weights are its own.
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
    sources: Sequence[str],
    command: str,
    settings: Mapping[str, object],
    seconds: float,
    held_out: Tensor,
) -> None:
    """Add a prior to a set, with its model card; each file is written whole or not at all.

    Args:
        folder: of the set; made where it is missing.
        prior: that was trained.
        sources: where its training audio is, as :func:`~pyro_sep.priors.train_prior` takes it.
        command: that trains it.
        settings: of the training run.
        seconds: wall time of the run, of its last part where it was resumed.
        held_out: clean audio ``(frame, time)`` for the excess table.
    """
    path = add_to_set(folder, prior)
    rows = ""
    if len(held_out):
        table = audit({prior.name: prior}, {prior.name: held_out})
        pairs = zip(table["sigma"].values, table.values[:, 0, 0], strict=True)
        rows = "".join(f"| {sigma:g} | {excess:.3f} |\n" for sigma, excess in pairs)
    places = ", ".join(f"`{source}`" for source in sources)
    parameters = sum(p.numel() for p in prior.network.parameters())
    above = ", ".join(f"{ratio:.3g}" for ratio in prior.treble) or "not known"
    above = f"above {prior.sample_rate // 2} Hz, by half octaves: {above}"
    text = f"""# Prior of {prior.name}

- Model: {type(prior.network).__name__}, {parameters:,} parameters, `{prior.network.config}`
- Data: isolated audio of this source alone, {places}, {prior.sample_rate} Hz
- Command: `{command}`
- Training: `{dict(settings)}`
- Time: {duration(seconds)} of wall time, {torch.get_num_threads()} CPU threads
- Treble: power per hertz {above}, times that of the octave below
- Use: noise levels {prior.sigmas[0]:g} to {prior.sigmas[1]:g}, full scale 1

Held-out audio ({len(held_out)} frames of {held_out.shape[-1]} samples), excess in nats per audio
sample over the noise (0 is the ceiling):

| sigma | excess |
|---|---|
{rows}"""
    with atomic_write(path.with_suffix(".md")) as partial:
        partial.write_text(text)
