"""Train tiny networks, alone or as one of torchrun's processes: ``train_on_ranks.py FOLDER``."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from networks import HALVES, WAVENET

from pyro_sep.data.source import ToySource
from pyro_sep.models import train
from pyro_sep.models.parallel import start_ranks

#: Five frames: the processes have unequal shares, and of the two that are judged by their score.
CONFIG = train.TrainConfig(
    steps=6, batch=5, time=64, warmup=1, learning_rate=1e-3, clip=0.1, score_weight=0.3
)


def main(folder: Path) -> None:
    """One run a family; every step is logged."""
    train.LOG_STEPS = 1
    ranks, device = start_ranks(torch.device("cpu"))
    for name, network in {"wavenet": WAVENET, "halves": HALVES}.items():
        config = CONFIG if name == "halves" else replace(CONFIG, score_weight=0.0)
        source = ToySource("square")
        kept = train.fit(source.draw, folder / name, network, config, device, False, ranks=ranks)
        rank = os.environ.get("RANK", "0")
        torch.save(kept.state_dict(), folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
