"""Every sampler under every prior on the same mixtures: how well does each separate, at what cost?

    python experiments/compare_samplers.py                               # all of them: hours
    python experiments/compare_samplers.py --priors oracle --samplers langevin,mala --mixtures 2

Annealed samplers walk down the ladder of noise levels: underdamped Langevin dynamics with a
Gaussian mixture, and with an exact one, the default of ``pyro_sep.separate``; overdamped Langevin
dynamics, SGLD; the same with a Metropolis test, MALA; and sequential Monte Carlo. SGLD, MALA and
SMC have a Gaussian mixture. HMC and NUTS are Pyro's, at the last noise level alone, each chain from
the mixture plus noise. NUTS moves in the latent space of flows, where the prior is white noise.

Printed is a table: the improvement of SI-SDR by the mean of the best chain, the gradients (one is a
gradient of all sources of one mixture), and CPU seconds. R-hat and ESS are the worst over level,
centroid and log prior of the sources, of two chains; a population of particles has none. A run that
was cut off continues.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from _common import (
    Mixtures,
    Out,
    Results,
    Row,
    Seconds,
    Seed,
    Sources,
    Workers,
    choose,
    load_set,
    resume,
    score_separation,
    summarise,
)
from samplers import SAMPLERS, Sampler

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS, ToyMixture, toy_mixture
from pyro_sep.priors.base import Priors

FAMILIES = ("oracle", "wavenet", "flow")


def main(
    priors: Annotated[str, typer.Option(help="Families, comma-separated.")] = ",".join(FAMILIES),
    samplers: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(SAMPLERS),
    sources: Sources = "square,saw",
    mixtures: Mixtures = 20,
    seconds: Seconds = 0.064,
    seed: Seed = 0,
    out: Out = Path("results/compare_samplers"),
    workers: Workers = None,
) -> None:
    """Run the samplers and print the table."""
    results = Results(out)
    chosen = choose("samplers", samplers, SAMPLERS)
    names = tuple(choose("sources", sources, WAVEFORMS))
    items = [toy_mixture("test", i, names, round(seconds * SAMPLE_RATE)) for i in range(mixtures)]
    settings = {"sources": sources, "seconds": seconds, "seed": seed}
    lines = []
    for family in choose("priors", priors, FAMILIES):
        loaded = load_set(f"toy/{family}", sources)
        for name in chosen:
            figures = partial(measure, SAMPLERS[name], loaded, seed)
            rows = list(
                resume(out / f"{family}-{name}.json", settings, items, figures, workers=workers)
            )
            lines.append({"prior": family, "sampler": name} | line(rows))
            print("  ".join(f"{key} {value}" for key, value in lines[-1].items()), flush=True)
    table = pd.DataFrame(lines)
    results.csv(table, "summary", index=False)
    print(as_markdown(table))
    results.done()


def measure(
    sampler: Sampler, priors: Priors, seed: int, start: int, items: Sequence[ToyMixture]
) -> list[Row]:
    """The figures of a batch of mixtures."""
    found = sampler(items, priors, seed + start)
    rows = [score_separation(item, one) for item, one in zip(items, found, strict=True)]
    if found[0].trace["posterior"].sizes["chain"] == 1:  # particles
        rows = [row | {"ess": None, "r_hat": None} for row in rows]
    return rows


def line(rows: list[Row]) -> dict[str, object]:
    """A line of the table."""
    figures, known = summarise(rows), rows[0]["ess"] is not None
    low, high = np.round(figures["quartiles_improvement_db"], 1)
    return {
        "improvement, median dB": round(figures["median_improvement_db"], 1),
        "quartiles": f"{low} to {high}",
        "above 10 dB": f"{figures['share_above_10_db']:.0%}",
        "above 20 dB": f"{figures['share_above_20_db']:.0%}",
        "gradients": round(np.mean([row["gradients"] for row in rows])),
        "CPU seconds": round(figures["cpu_seconds"], 1),
        "ESS": round(float(np.median([row["ess"] for row in rows])), 1) if known else "",
        "R-hat": round(float(np.median([row["r_hat"] for row in rows])), 2) if known else "",
        "worst residual dB": round(max(row["residual_db"] for row in rows)),
    }


def as_markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    run(main)
