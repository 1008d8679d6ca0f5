"""Train every prior of Frank & Ilse 2020 (arXiv 2011.01761), by its name.

    python experiments/train_priors.py --list
    python experiments/train_priors.py --only flow-sine,wavenet-sine       # toy sizes: minutes
    python experiments/train_priors.py --scale paper --device cuda --musdb ROOT
    torchrun --nproc-per-node 4 experiments/train_priors.py --scale paper --device cuda

Both families learn each toy waveform, and with --musdb each stem of musdb18 too. Section 5.2: a
network is trained without noise for 150,000 steps, then tuned to one noise level after another,
20,000 to 40,000 steps each, 30,000 here; Adam at 1e-4, which decays by 0.6 in five steps; 5 frames
of 16,384 audio samples in a batch for a flow, 2 for a WaveNet. Networks are those of Table 2. When
the rate falls and the 14,700 Hz of the stems are taken from the public code,
github.com/morris-frank/unsupervised-source-separation.

A run that was cut off goes on where it was. Every noise level is a set that ``load_priors`` reads:
OUT/FAMILY/sigma-LEVEL, a prior and its model card for each source. Processes that torchrun starts
share each batch; they need ``pip install 'pyro-sep[train]'``.
"""

import time as clock
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_sep.cli.app import AUDIT_FRAMES, AUDIT_TIME, MusdbRoot, run, torch_device
from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.data.source import SourceAudio, open_source, training_rms
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS
from pyro_sep.models.parallel import Ranks, start_ranks
from pyro_sep.models.registry import FAMILIES, Network
from pyro_sep.models.train import SERIAL_SIGMAS, TUNING_SHARE, TrainConfig, fit_serially
from pyro_sep.priors.base import PRIORS
from pyro_sep.priors.model_card import save_with_card

MUSDB_RATE = 14_700  # Hz: every third audio sample of 44,100
BATCH = {"flow": 5, "wavenet": 2}  # the paper's
CPU = TrainConfig(steps=300, warmup=20, stairs=5, decay=0.6**5)
PAPER = replace(CPU, steps=150_000, warmup=1, time=16_384, learning_rate=1e-4, ema=0.0)


@dataclass(frozen=True)
class Training:
    """How the priors of one family and source come about, one for every noise level."""

    family: str
    size: str
    name: str  # of the source
    source: str
    sample_rate: int
    config: TrainConfig

    def __str__(self) -> str:
        c = self.config
        return (
            f"{self.family} of size {self.size}, {self.source} at {self.sample_rate} Hz, "
            f"{c.steps} + {len(SERIAL_SIGMAS) - 1} x {max(1, c.steps // TUNING_SHARE)} steps of "
            f"{c.batch} frames of {c.time}"
        )


def main(
    scale: Annotated[str, typer.Option(help="cpu: toy sizes, minutes; paper: the paper's.")] = (
        "cpu"
    ),
    musdb: MusdbRoot = None,
    only: Annotated[str | None, typer.Option(help="Names, comma-separated.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Say what there is, and end.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the first level.")] = None,
    device: str = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the runs and sets of priors.")] = Path(
        "results/train_priors"
    ),
) -> None:
    """Train them, one after the other."""
    there = trainings(scale, musdb, steps)
    names = list(there) if only is None else only.split(",")
    if unknown := [name for name in names if name not in there]:
        raise ValueError(f"only: got {unknown[0]!r}, expected some of {', '.join(there)}")
    if show:
        for name in names:
            print(f"{name}: {there[name]}: {out / there[name].family}/sigma-*")
        return
    started = clock.monotonic()
    ranks, place = start_ranks(torch_device(device))
    for name in names:
        ranks.check(there[name].config.batch)
    for name in names:
        given = {"scale": scale, "only": name, "musdb": musdb, "steps": steps}
        options = " ".join(f"--{key} {value}" for key, value in given.items() if value is not None)
        command = f"python experiments/train_priors.py {options}"
        if ranks.first:
            print(f"{name}: {there[name]}", flush=True)
        train(there[name], musdb, out / there[name].family, command, ranks, place)
    if ranks.first:
        print(f"{clock.monotonic() - started:.0f} s. Results: {out}")


def trainings(scale: str, musdb: Path | None, steps: int | None) -> dict[str, Training]:
    """What there is to train, by name.

    Raises:
        ValueError: no such scale, or no musdb18.
    """
    if scale not in ("cpu", "paper"):
        raise ValueError(f"scale: got {scale!r}, expected cpu or paper")
    sources = {name: (f"toy:{name}", SAMPLE_RATE) for name in WAVEFORMS}
    if musdb is not None:
        musdb_tracks(musdb)  # before hours of training
        for stem in STEMS:
            sources[stem] = (f"musdb:{stem}", MUSDB_RATE)
    result = {}
    for family in BATCH:
        for name, (source, rate) in sources.items():
            config = CPU if scale == "cpu" else replace(PAPER, batch=BATCH[family])
            if steps is not None:
                config = replace(config, steps=steps)
            size = "toy" if scale == "cpu" else "paper"
            if name in STEMS and f"{size}-musdb18" in FAMILIES[family].sizes:
                size = f"{size}-musdb18"
            result[f"{family}-{name}"] = Training(family, size, name, source, rate, config)
    return result


def train(
    training: Training,
    musdb: Path | None,
    out: Path,
    command: str,
    ranks: Ranks,
    device: torch.device,
) -> None:
    """Train or go on; the first process writes the priors of all noise levels."""
    started, config = clock.monotonic(), training.config
    audio = open_source(training.source, training.sample_rate, config.time, musdb)
    size = FAMILIES[training.family].sizes[training.size]
    size = replace(size, sigma_data=training_rms(audio, config.time, config.seed))
    networks = fit_serially(
        audio.draw, out / f"{training.name}.run", size, config, device, ranks=ranks
    )
    if ranks.first:
        write(networks, training, audio, out, command, clock.monotonic() - started)


def write(
    networks: Mapping[float, Network],
    training: Training,
    audio: SourceAudio,
    out: Path,
    command: str,
    seconds: float,
) -> None:
    """A prior and its card for every noise level."""
    held_out = audio.held_out(AUDIT_FRAMES, AUDIT_TIME)
    settings = {"family": training.family, "size": training.size} | asdict(training.config)
    for sigma, network in networks.items():
        prior = PRIORS[training.family](
            network.cpu(), name=training.name, sample_rate=training.sample_rate
        )
        folder = out / f"sigma-{sigma:g}"
        save_with_card(folder, prior, training.source, command, settings, seconds, held_out)


if __name__ == "__main__":
    run(main)
