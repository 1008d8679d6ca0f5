"""Do the intervals of level, centroid and SI-SDR hold the truth as often as they say?

    python experiments/intervals.py                     # 159 mixtures to learn from, 81 to judge
    python experiments/intervals.py --learn 39 --judge 20

Clean mixtures of clean tones of the toy waveforms are separated as ``pyro_sep.separate`` does it by
default. Judged are two kinds of intervals of 50, 80 and 95 %: those between quantiles of the draws,
of all chains, and those that the errors on the first mixtures give the others,
:mod:`pyro_sep.diagnostics.conformal`. These errors are written to calibration.json in --out, for
``pyro-sep diagnose --calibration``. The tones are drawn with --seed; none is of the test split.
A run that was stopped goes on where it was.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyro_sep.cli.app import run
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
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import separate_batch
from pyro_sep.storage.files import load_figures, save_json

BATCH = 5  # mixtures separated at once


def main(
    learn: Annotated[int, typer.Option(min=39, help="Mixtures to learn the errors from.")] = 159,
    judge: Annotated[int, typer.Option(min=1, help="Mixtures to judge the intervals by.")] = 81,
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "toy",
    sources: Annotated[str, typer.Option(help="Waveforms, comma-separated.")] = "square,saw",
    seconds: Annotated[float, typer.Option(min=0.016, help="Length of a mixture.")] = 0.032,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/intervals"),
) -> None:
    """Separate, learn from the first mixtures, judge by the others."""
    settings = {"priors": priors, "sources": sources, "seconds": seconds, "seed": seed}
    chosen = choose_priors(load_priors(priors), sources)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "mixtures.json"
    rows = load_figures(path, settings)
    left = range(len(rows), learn + judge, BATCH)
    for first in tqdm(left, disable=not sys.stderr.isatty()):
        rows += separate_some(chosen, round(seconds * SAMPLE_RATE), seed, first)
        save_json({"settings": settings, "mixtures": rows}, path)
    calibration = learned(rows[:learn])
    calibration.save(out / "calibration.json")
    table = judged(calibration, rows[learn : learn + judge], seed)
    table.to_csv(out / "summary.csv", index=False)
    print(table.to_string(index=False))
    errors = ", ".join(f"{error:.0%}" for error in coverage_error(judge))
    print(f"Monte Carlo error of a share of 50, 80 and 95 %: {errors}. Results: {out}")


def separate_some(priors: Priors, time: int, seed: int, first: int) -> list[dict[str, Any]]:
    """What is true and what is expected of each source of mixtures from ``first`` on."""
    tones, own = np.random.SeedSequence((seed, first)).generate_state(2).tolist()
    generator = torch.Generator().manual_seed(tones)
    truth: Tensor = torch.stack(
        [draw_sources(name, BATCH, time, generator)[0] for name in priors], 1
    )
    rows: list[dict[str, Any]] = []
    for result in separate_batch(truth.mean(1), priors, seed=own, true_sources=truth):
        true, drawn = actual(result.trace), draws_of(result.trace)
        below = (drawn < true).mean(("chain", "draw"))
        rows.append(
            {
                "true": as_lists(true),
                "expected": as_lists(expected(result.trace)),
                "draws_below": as_lists(below),
                "draws": drawn.sizes["chain"] * drawn.sizes["draw"],
            }
        )
    return [{"kind": kind_of(result.trace)} | rows[0], *rows[1:]]


def as_lists(values: xr.Dataset) -> dict[str, list[float]]:
    """A number per source of every function."""
    return {name: values[name].values.astype(float).tolist() for name in FUNCTIONS}


def as_dataset(rows: list[dict[str, Any]], key: str) -> xr.Dataset:
    """The reverse, of all rows, dims ``(mixture, source)``."""
    values = {name: (("mixture", "source"), [row[key][name] for row in rows]) for name in FUNCTIONS}
    return xr.Dataset(values)


def learned(rows: list[dict[str, Any]]) -> ConformalCalibration:
    """From the errors of these mixtures."""
    kind = rows[0]["kind"]
    errors = as_dataset(rows, "true") - as_dataset(rows, "expected")
    return ConformalCalibration(kind, errors.assign_coords(source=kind["sources"]))


def judged(
    calibration: ConformalCalibration, rows: list[dict[str, Any]], seed: int
) -> pd.DataFrame:
    """Share of the truths in each interval, and the width of the widest."""
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
            shares, width = [], 0.0
            for probability in NOMINAL:
                bounds = calibration.about(center, probability)[name].isel(source=k)
                low, high = (bounds.sel(bound=bound).values for bound in ("low", "high"))
                values = true[name].isel(source=k).values
                shares.append(float(((low <= values) & (values <= high)).mean()))
                width = float((high - low)[0])
            lines.append(
                {
                    "source": source,
                    "function": name,
                    "draws": " ".join(f"{share:.0%}" for share in inside[:, k]),
                    "calibrated": " ".join(f"{share:.0%}" for share in shares),
                    "width of 95 %": f"{width:.3g} {unit}",
                }
            )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    run(main)
