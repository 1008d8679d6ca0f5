"""Mixtures of two or three of the four toy waveforms: which are there?

    python experiments/presence.py                              # 40 mixtures of 0.064 s
    python experiments/presence.py --preset quick                  # on a small budget

Every mixture holds 1/4 of each tone that is present, and is separated with all four priors, each
source silent with probability 1/2 beforehand. Printed are the probabilities of presence, the share
of sources judged right at 1/2, that of mixtures wholly right, and the Brier score, the mean of
(probability - truth)^2, which is 1/4 for one who says 1/2 to everything. A batch leaves its figures
in --out, from where a run that was cut off goes on.

Frank & Ilse 2020 (arXiv 2011.01761) hold all sources present; they have no figure.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from pyro_sep.cli.app import one_of, run
from pyro_sep.data.toy import SAMPLE_RATE, toy_mixture
from pyro_sep.inference.annealing.schedules import MIN_LEVELS
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import load_priors
from pyro_sep.separation.api import PRESETS, separate_batch
from pyro_sep.storage.files import load_figures, save_json
from pyro_sep.trace.dataset import best_chain
from pyro_sep.viz.plots import save_figure

BATCH = 5  # mixtures separated at once
PRESENT = (2, 3)  # how many sources a mixture holds


def main(
    mixtures: Annotated[int, typer.Option(min=1, help="How many test mixtures.")] = 40,
    first: Annotated[int, typer.Option(min=0, help="Index of the first test mixture.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.016, help="Length of a mixture.")] = 0.064,
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "toy",
    seed: int = 0,
    preset: Annotated[str, typer.Option(help=f"Budget: {', '.join(PRESETS)}.")] = "standard",
    chains: Annotated[int | None, typer.Option(min=1, help="Else the preset's.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Of a search; else the preset's.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=MIN_LEVELS, help="Noise levels; else the preset's.")
    ] = None,
    tries: Annotated[
        int | None, typer.Option(min=1, help="Searches at most; else the preset's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/presence"),
) -> None:
    """Separate mixtures of some of the waveforms and say which are there."""
    loaded = load_priors(priors)
    names, time = tuple(loaded), round(seconds * SAMPLE_RATE)
    one_of("preset", preset, PRESETS)
    given = {"chains": chains, "candidates": candidates, "levels": levels, "tries": tries}
    own = {name: value for name, value in given.items() if value is not None}
    budget = PRESETS[preset]["best"] | own
    settings = budget | {"seconds": seconds, "priors": priors, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(first, first + mixtures, BATCH):
        indices = range(start, min(start + BATCH, first + mixtures))
        path = out / f"batch_{indices[0]:04d}_{len(indices)}.json"
        batch = load_figures(path, settings)
        if not batch:
            batch = infer(indices, loaded, time, seed=seed + start, **budget)
            save_json({"settings": settings, "mixtures": batch}, path)
        for row in batch:
            print_row(row, names)
        rows += batch
    summarise(rows, names, settings, out)


def subset(index: int, names: Sequence[str]) -> list[str]:
    """The sources that a mixture holds, a pure function of its index."""
    generator = random.Random(f"presence/{index}")
    return generator.sample(list(names), generator.choice(PRESENT))


def partial_sources(index: int, names: Sequence[str], time: int) -> Tensor:
    """Sources ``(source, time)`` of a test mixture; what it does not hold is silence."""
    sources = toy_mixture("test", index, names, time).sources
    held = subset(index, names)
    return sources * torch.tensor([[float(name in held)] for name in names])


def infer(
    indices: Sequence[int], priors: Priors, time: int, **options: Any
) -> list[dict[str, Any]]:
    """The truth and the probabilities of presence in some mixtures, separated at once."""
    names = tuple(priors)
    sources = torch.stack([partial_sources(index, names, time) for index in indices])
    results = separate_batch(
        sources.mean(1), priors, presence="infer", progress=sys.stderr.isatty(), **options
    )
    return [
        {
            "index": index,
            "present": [name in subset(index, names) for name in names],
            "probability": result.trace["posterior"]["presence"].values.mean(1).tolist(),
            "lp": result.trace["sample_stats"]["lp"].values.mean(1).tolist(),
            "best": best_chain(result.trace),
        }
        for index, result in zip(indices, results, strict=True)
    ]


def judged(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Truths and probabilities by the best chain, ``(mixture, source)``."""
    best = [row["probability"][row["best"]] for row in rows]
    return np.array([row["present"] for row in rows]), np.array(best)


def print_row(row: dict[str, Any], names: Sequence[str]) -> None:
    """One line per mixture."""
    ((present,), (probability,)) = judged([row])
    cells = "  ".join(
        f"{name} {value:.2f} ({'present' if truth else 'absent'})"
        for name, truth, value in zip(names, present, probability, strict=True)
    )
    print(f"mixture {row['index']:4d}: {cells}", flush=True)


def summarise(
    rows: list[dict[str, Any]], names: Sequence[str], settings: dict[str, Any], out: Path
) -> None:
    """Figures over all mixtures and their picture, printed and written."""
    present, probability = judged(rows)
    right = present == (probability > 0.5)
    summary = {
        "sources_right": float(right.mean()),
        "sources_right_by_name": dict(zip(names, right.mean(0).tolist(), strict=True)),
        "present_found": float(right[present].mean()),
        "absent_found": float(right[~present].mean()),
        "mixtures_right": float(right.all(1).mean()),
        "brier": float(np.square(probability - present).mean()),
        "settings": settings,
        "mixtures": rows,
    }
    save_json(summary, out / "summary.json")
    indices = [row["index"] for row in rows]
    save_figure(draw(indices, names, present, probability), out / "presence.png")
    print(
        f"{len(rows)} mixtures: right at 1/2 are {summary['sources_right']:.1%} of the sources "
        f"(of those present {summary['present_found']:.1%}, absent {summary['absent_found']:.1%}), "
        f"all four in {summary['mixtures_right']:.1%} of the mixtures; "
        f"Brier score {summary['brier']:.3f}. Paper (2011.01761): no figure.\nResults: {out}"
    )


def draw(
    indices: list[int], names: Sequence[str], present: np.ndarray, probability: np.ndarray
) -> Figure:
    """The probability of every source in every mixture; a ring is a source that is there."""
    figure = Figure(figsize=(2 + 0.25 * len(indices), 1 + 0.4 * len(names)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(probability.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.scatter(*np.nonzero(present), 60, facecolors="none", edgecolors="C1", linewidths=2)
    ax.set_xticks(range(len(indices)), [str(index) for index in indices], rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="test mixture", title="Ring: the source is present")
    figure.colorbar(image, ax=ax, label="probability of presence")
    return figure


if __name__ == "__main__":
    run(main)
