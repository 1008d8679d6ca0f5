"""Train the priors of Frank & Ilse 2020 (arXiv 2011.01761).

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

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from _common import Device, List, MusdbRoot, Only, Out, Results, choose

from pyro_sep.cli.options import torch_device
from pyro_sep.cli.program import run
from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS
from pyro_sep.models.parallel import start_ranks
from pyro_sep.models.registry import FAMILIES
from pyro_sep.models.settings import TrainConfig
from pyro_sep.models.train import SERIAL_SIGMAS, TUNING_SHARE
from pyro_sep.priors import train_prior

MUSDB_RATE = 14_700  # Hz: every third audio sample of 44,100
Family = Literal["wavenet", "flow"]
BATCH: dict[Family, int] = {"flow": 5, "wavenet": 2}  # the paper's
CPU = TrainConfig(steps=300, warmup=20, stairs=5, decay=0.6**5)
PAPER = replace(CPU, steps=150_000, warmup=1, time=16_384, learning_rate=1e-4, ema=0.0)


@dataclass(frozen=True)
class Training:
    """How the priors of one family and source are trained, one for each noise level."""

    family: Family
    size: str
    name: str  # of the source
    source: str
    sample_rate: int
    config: TrainConfig

    @property
    def folder(self) -> str:
        """Folder of the sets: toy mixtures and songs add up in different ways."""
        return f"{self.family}-musdb18" if self.name in STEMS else self.family

    def __str__(self) -> str:
        c = self.config
        return (
            f"{self.family} of size {self.size}, {self.source} at {self.sample_rate} Hz, "
            f"{c.steps} + {len(SERIAL_SIGMAS) - 1} x {max(1, c.steps // TUNING_SHARE)} steps of "
            f"{c.batch} frames of {c.time}"
        )


def main(
    scale: Annotated[
        Literal["cpu", "paper"], typer.Option(help="cpu: toy sizes, minutes; paper: the paper's.")
    ] = "cpu",
    musdb: MusdbRoot = None,
    only: Only = None,
    show: List = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of the first noise level.")
    ] = None,
    device: Device = "cpu",
    out: Out = Path("results/train_priors"),
) -> None:
    """Train the priors, one after the other."""
    results, there = Results(out), trainings(scale, musdb, steps)
    names = choose("only", only, there)
    if show:
        for name in names:
            print(f"{name}: {there[name]}: {out / there[name].folder}/sigma-*")
        return
    ranks, place = start_ranks(torch_device(device))
    for name in names:
        ranks.check(there[name].config.batch)
    for name in names:
        given = {"scale": scale, "only": name, "musdb": musdb, "steps": steps}
        options = " ".join(f"--{key} {value}" for key, value in given.items() if value is not None)
        command = f"python experiments/train_priors.py {options}"
        if ranks.first:
            print(f"{name}: {there[name]}", flush=True)
        training = there[name]
        train_prior(
            training.source,
            out / training.folder,
            family=training.family,
            size=training.size,
            recipe="serial",
            **asdict(training.config),
            sample_rate=training.sample_rate,
            musdb=musdb,
            device=place,
            progress=True,
            ranks=ranks,
            command=command,
        )
    if ranks.first:
        results.done()


def trainings(scale: str, musdb: Path | None, steps: int | None) -> dict[str, Training]:
    """All trainings by name.

    Raises:
        ValueError: no musdb18 in its folder.
    """
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


if __name__ == "__main__":
    run(main)
