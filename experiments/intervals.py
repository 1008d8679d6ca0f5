"""Do intervals of level, centroid and SI-SDR contain the truth as often as they claim?

    python experiments/intervals.py                     # 159 mixtures to learn from, 81 to judge
    python experiments/intervals.py --learn 39 --judge 20

Clean mixtures of clean toy tones are separated as ``pyro_sep.separate`` does it by default. Two
kinds of intervals of 50, 80 and 95 % are judged: those between quantiles of the draws of all
chains, and conformal ones (:mod:`pyro_sep.diagnostics.conformal`), which the errors on the first
mixtures give the others. These errors are written to calibration.json in --out, for ``pyro-sep
diagnose --calibration``, and the shares to summary.json. The tones are drawn with --seed; none is
of the test split.

Printed are the shares of true values inside the intervals, and the width of the conformal 95 %
ones. A run that was cut off continues.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from _common import Out, PriorSet, Results, Row, Seconds, Seed, Sources, Workers, load_set, resume
from numpy.typing import NDArray
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, draw_sources
from pyro_sep.diagnostics.conformal import (
    FUNCTIONS,
    ConformalCalibration,
    actual,
    draws_of,
    expected,
    kind_of,
)
from pyro_sep.diagnostics.sbc import NOMINAL, coverage, coverage_error
from pyro_sep.priors.base import Priors
from pyro_sep.separation.api import separate_batch


def main(
    learn: Annotated[int, typer.Option(min=39, help="Mixtures to learn the errors from.")] = 159,
    judge: Annotated[int, typer.Option(min=1, help="Mixtures to judge the intervals by.")] = 81,
    priors: PriorSet = "toy",
    sources: Sources = "square,saw",
    seconds: Seconds = 0.032,
    seed: Seed = 0,
    out: Out = Path("results/intervals"),
    workers: Workers = None,
) -> None:
    """Separate mixtures, learn from the first ones, judge by the others."""
    results = Results(out)
    settings = {"priors": priors, "sources": sources, "seconds": seconds, "seed": seed}
    chosen = load_set(priors, sources)
    figures = partial(measure, chosen, round(seconds * SAMPLE_RATE), seed)
    rows = list(
        resume(out / "mixtures.json", settings, range(learn + judge), figures, workers=workers)
    )
    calibration = learned(rows[:learn])
    calibration.save(out / "calibration.json")
    lines, errors = judged(calibration, rows[learn:], seed), coverage_error(judge)
    content = {"learned": learn, "judged": judge, "draws": rows[0]["draws"]}
    content |= {"intervals": list(NOMINAL), "coverage_error": errors.tolist()}
    spent = float(np.mean([row["seconds"] for row in rows]))
    results.json(settings | content | {"cpu_seconds": spent, "functions": lines})
    print(pd.DataFrame(map(in_words, lines)).to_string(index=False))
    said = ", ".join(f"{error:.0%}" for error in errors)
    print(f"Monte Carlo error of a share of 50, 80 and 95 %: {said}.")
    results.done()


def measure(priors: Priors, time: int, seed: int, start: int, batch: Sequence[int]) -> list[Row]:
    """The true and the expected figures of each source in a batch of mixtures."""
    tones, own = np.random.SeedSequence((seed, start)).generate_state(2).tolist()
    generator = torch.Generator().manual_seed(tones)
    drawn = [draw_sources(name, len(batch), time, generator)[0] for name in priors]
    truth: Tensor = torch.stack(drawn, 1)
    found = separate_batch(truth.mean(1), priors, seed=own, true_sources=truth)
    rows = [figures_of(result.trace) for result in found]
    if start == 0:  # all are of one kind
        rows[0]["kind"] = kind_of(found[0].trace)
    return rows


def figures_of(trace: xr.DataTree) -> Row:
    """What is true, what is expected, and what share of the draws is below the truth."""
    true, drawn = actual(trace), draws_of(trace)
    return {
        "true": as_lists(true),
        "expected": as_lists(expected(trace)),
        "draws_below": as_lists((drawn < true).mean(("chain", "draw"))),
        "draws": drawn.sizes["chain"] * drawn.sizes["draw"],
    }


def as_lists(values: xr.Dataset) -> dict[str, list[float]]:
    """Every function as a number per source."""
    return {name: values[name].values.astype(float).tolist() for name in FUNCTIONS}


def as_dataset(rows: list[Row], key: str) -> xr.Dataset:
    """Every function of all rows, ``(mixture, source)``."""
    dims = ("mixture", "source")
    return xr.Dataset({name: (dims, [row[key][name] for row in rows]) for name in FUNCTIONS})


def learned(rows: list[Row]) -> ConformalCalibration:
    """The calibration by the errors on these mixtures."""
    kind = rows[0]["kind"]
    errors = as_dataset(rows, "true") - as_dataset(rows, "expected")
    return ConformalCalibration(kind, errors.assign_coords(source=kind["sources"]))


def judged(calibration: ConformalCalibration, rows: list[Row], seed: int) -> list[Row]:
    """Per function and source, shares of the true values inside each interval, and its width."""
    true, center, below = (as_dataset(rows, key) for key in ("true", "expected", "draws_below"))
    true, center = (
        part.assign_coords(source=calibration.kind["sources"]) for part in (true, center)
    )
    draws, generator = rows[0]["draws"], np.random.default_rng(seed)
    lines = []
    for name, (_, unit, _) in FUNCTIONS.items():
        ranks: NDArray[np.int64] = (below[name].values * draws).round().astype(int)
        inside = coverage(ranks, draws, generator)
        for k, source in enumerate(true["source"].values.tolist()):
            shares, widths = [], []
            for probability in NOMINAL:
                bounds = calibration.about(center, probability)[name].isel(source=k)
                low, high = (bounds.sel(bound=bound).values for bound in ("low", "high"))
                values = true[name].isel(source=k).values
                shares.append(float(((low <= values) & (values <= high)).mean()))
                widths.append(float((high - low)[0]))
            line = {"source": source, "function": name, "unit": unit, "widths": widths}
            lines.append(line | {"draws": inside[:, k].tolist(), "calibrated": shares})
    return lines


def in_words(line: Row) -> dict[str, str]:
    """A line of the printed table."""
    shares = {key: " ".join(f"{x:.0%}" for x in line[key]) for key in ("draws", "calibrated")}
    width = {"width of 95 %": f"{line['widths'][-1]:.3g} {line['unit']}"}
    return {"source": line["source"], "function": line["function"]} | shares | width


if __name__ == "__main__":
    run(main)
