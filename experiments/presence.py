"""Which of the four toy waveforms are present in a mixture of two or three of them?

    python experiments/presence.py                              # 40 mixtures of 0.064 s
    python experiments/presence.py --preset quick               # on a small budget

Every mixture holds 1/4 of each tone that is present. It is separated with all four priors; each
source is silent with prior probability 1/2. Printed are the probabilities of presence, the share of
sources judged right at 1/2, the share of mixtures with all sources right, and the Brier score, the
mean of (probability - truth)^2, which is 1/4 where every probability is 1/2. A run that was cut off
continues.

Frank & Ilse 2020 (arXiv 2011.01761) assume that all sources are present; they have no figure.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    Candidates,
    Chains,
    First,
    Levels,
    Mixtures,
    Out,
    Preset,
    PriorSet,
    Results,
    Row,
    Seconds,
    Seed,
    Tries,
    Workers,
    load_set,
    resume,
)
from matplotlib.figure import Figure
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, toy_mixture
from pyro_sep.priors.base import Priors
from pyro_sep.separation.api import separate_batch
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.draws import best_chain

PRESENT = (2, 3)  # numbers of sources in a mixture


def main(
    mixtures: Mixtures = 40,
    first: First = 0,
    seconds: Seconds = 0.064,
    priors: PriorSet = "toy",
    seed: Seed = 0,
    preset: Preset = None,
    chains: Chains = None,
    candidates: Candidates = None,
    levels: Levels = None,
    tries: Tries = None,
    out: Out = Path("results/presence"),
    workers: Workers = None,
) -> None:
    """Separate mixtures of some of the waveforms and print which are present."""
    results = Results(out)
    loaded = load_set(priors)
    names, time = tuple(loaded), round(seconds * SAMPLE_RATE)
    budget = {"preset": preset, "chains": chains, "candidates": candidates}
    budget |= {"levels": levels, "tries": tries}
    settings = asdict(resolve_settings(loaded, time, **budget))
    settings |= {"first": first, "seconds": seconds, "priors": priors, "seed": seed}
    rows = []
    figures = partial(measure, loaded, time, seed, budget)
    items = range(first, first + mixtures)
    for row in resume(out / "mixtures.json", settings, items, figures, workers=workers):
        print_row(row, names)
        rows.append(row)
    report(rows, names, settings, results)


def subset(index: int, names: Sequence[str]) -> list[str]:
    """The sources in a mixture, a pure function of its index."""
    generator = random.Random(f"presence/{index}")
    return generator.sample(list(names), generator.choice(PRESENT))


def partial_sources(index: int, names: Sequence[str], time: int) -> Tensor:
    """Sources ``(source, time)`` of a test mixture; the absent ones are silent."""
    sources = toy_mixture("test", index, names, time).sources
    held = subset(index, names)
    return sources * torch.tensor([[float(name in held)] for name in names])


def measure(
    priors: Priors,
    time: int,
    seed: int,
    budget: dict[str, Any],
    start: int,
    indices: Sequence[int],
) -> list[Row]:
    """The truth and the probabilities of presence in a batch of mixtures."""
    names = tuple(priors)
    sources = torch.stack([partial_sources(index, names, time) for index in indices])
    found = separate_batch(
        sources.mean(1),
        priors,
        presence="infer",
        seed=seed + indices[0],
        progress=sys.stderr.isatty(),
        **budget,
    )
    return [
        {
            "index": index,
            "present": [name in subset(index, names) for name in names],
            "probability": result.trace["posterior"]["presence"].values.mean(1).tolist(),
            "lp": result.trace["sample_stats"]["lp"].values.mean(1).tolist(),
            "best": best_chain(result.trace),
        }
        for index, result in zip(indices, found, strict=True)
    ]


def judged(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and probability by the best chain, ``(mixture, source)``."""
    best = [row["probability"][row["best"]] for row in rows]
    return np.array([row["present"] for row in rows]), np.array(best)


def print_row(row: Row, names: Sequence[str]) -> None:
    """One line per mixture."""
    ((present,), (probability,)) = judged([row])
    cells = "  ".join(
        f"{name} {value:.2f} ({'present' if truth else 'absent'})"
        for name, truth, value in zip(names, present, probability, strict=True)
    )
    print(f"mixture {row['index']:4d}: {cells}", flush=True)


def report(
    rows: list[Row], names: Sequence[str], settings: dict[str, Any], results: Results
) -> None:
    """Print and write the figures over all mixtures, and their picture."""
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
    results.json(summary)
    indices = [row["index"] for row in rows]
    results.png(draw(indices, names, present, probability), "presence")
    print(
        f"{len(rows)} mixtures: right at 1/2 are {summary['sources_right']:.1%} of the sources "
        f"(of those present {summary['present_found']:.1%}, absent {summary['absent_found']:.1%}), "
        f"all four in {summary['mixtures_right']:.1%} of the mixtures; "
        f"Brier score {summary['brier']:.3f}. Paper (2011.01761): no figure."
    )
    results.done()


def draw(
    indices: list[int], names: Sequence[str], present: np.ndarray, probability: np.ndarray
) -> Figure:
    """The probability of every source in every mixture; a ring marks a source that is present."""
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
