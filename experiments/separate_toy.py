"""How well are mixtures of the toy test split separated?

    python experiments/separate_toy.py                                  # one mixture of 0.25 s
    python experiments/separate_toy.py --first 1000 --mixtures 50 --seconds 0.128  # docs/results
    python experiments/separate_toy.py --sources square,saw --mixtures 20 --seconds 0.128
    python experiments/separate_toy.py --family flow --mixtures 20 --seconds 0.128
    python experiments/separate_toy.py --paper --mixtures 5 --seconds 0.128

With --paper the paper's Algorithm 1 separates, with the signs, the gain and the noise that are
meant: one chain from white noise of the first level, overdamped Langevin dynamics at the paper's
five levels, and no search for modes.

Printed are SI-SDR, its improvement, what the sources leave of the mixture, R-hat and ESS of every
mixture, and their distribution. Frank & Ilse 2020 (arXiv 2011.01761) report that separation failed
for every source; they give no SI-SDR. Every mixture has a trace, WAV files and a picture in --out,
and a single one also a page to listen to, report.html. A run that was cut off continues.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from _common import (
    ALL_WAVEFORMS,
    Candidates,
    Chains,
    Constraint,
    Device,
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
    Sources,
    decibels,
    load_set,
    resume,
    score_separation,
    stacked,
    summarise,
    summarise_verdicts,
)
from samplers import overdamped
from torch import Tensor

from pyro_sep.cli.options import torch_device
from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.diagnostics.verdict import diagnose, format_verdict
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.results.writer import REPORT, write_separation
from pyro_sep.separation.api import Separation, separate_batch, separation_from_draws
from pyro_sep.trace.dataset import TRACE, load_trace
from pyro_sep.viz.report import write_report

PAPER_SIGMAS = (0.359, 0.129, 0.077, 0.027, 0.01)
PAPER_STEPS = 100  # at each of them, as in Song & Ermon 2019
PAPER_DRAWS = 20  # the last ones


def main(
    mixtures: Mixtures = 1,
    seconds: Seconds = 0.25,
    sources: Sources = ALL_WAVEFORMS,
    first: First = 0,
    seed: Seed = 0,
    preset: Preset = None,
    chains: Chains = None,
    candidates: Candidates = None,
    levels: Levels = None,
    constraint: Constraint = None,
    priors: PriorSet = "toy",
    family: Annotated[
        str | None, typer.Option(help="Of the set's priors: wavenet, flow, oracle.")
    ] = None,
    paper: Annotated[bool, typer.Option(help="The paper's Algorithm 1, as it is meant.")] = False,
    device: Device = "cpu",
    out: Out = Path("results/separate_toy"),
) -> None:
    """Separate mixtures of the toy test split and print how well it went."""
    results = Results(out)
    folder = priors if family is None else f"{priors}/{family}"
    chosen = load_set(folder, sources, device=torch_device(device))
    names, time = tuple(chosen), round(seconds * SAMPLE_RATE)
    items = [toy_mixture("test", first + i, names, time) for i in range(mixtures)]
    budget = {"preset": preset, "chains": chains, "candidates": candidates, "levels": levels}
    separate = partial(
        separate_batch, constraint=constraint, progress=sys.stderr.isatty(), **budget
    )
    folders = [out / f"mixture_{first + i:04d}" for i in range(mixtures)]

    def measure(start: int, batch: Sequence[ToyMixture]) -> list[Row]:
        mixed, true = stacked(batch)
        found = (algorithm_1 if paper else separate)(
            mixed,
            chosen,
            seed=seed + first + start,
            true_sources=true,
            attrs={"data": f"toy test mixtures from index {first + start}"},
        )
        rows = []
        for i, (item, result) in enumerate(zip(batch, found, strict=True), start):
            write_separation(result, folders[i])
            frequencies = [round(f, 1) for f in item.frequencies.tolist()]
            row = {"index": first + i, "frequency": frequencies}
            rows.append(row | score_separation(item, result))
        return rows

    settings = budget | {"priors": folder, "sources": list(names), "seconds": seconds}
    settings |= {"constraint": constraint, "paper": paper, "first": first, "seed": seed}
    rows = []
    for row in resume(out / "mixtures.json", settings, items, measure):
        print_row(row, names)
        rows.append(row)
    if mixtures == 1:
        trace = load_trace(folders[0] / TRACE)
        write_report(trace, folders[0] / REPORT)
        print(f"{folders[0] / REPORT}: open it in a browser")
        print(format_verdict(diagnose(trace)), flush=True)
    report(rows, names, results)


def algorithm_1(
    mixtures: Tensor,
    priors: Priors,
    *,
    seed: int,
    true_sources: Tensor,
    attrs: dict[str, Any],
) -> list[Separation]:
    """The last draws of the paper's chain on every mixture."""
    generator = torch.Generator(mixtures.device).manual_seed(seed)
    mixing = Mixing.mean(len(priors))
    target = AnnealedPosterior(mixtures, tuple(priors.values()), mixing)
    draws: list[Tensor] = []
    for *_, position in overdamped(target, PAPER_SIGMAS, PAPER_STEPS, generator):
        draws = [*draws, position][-PAPER_DRAWS:]
    sigma = PAPER_SIGMAS[-1]
    noisy = torch.stack(draws, 1)[:, None]  # (mixture, chain, draw, source, time)
    attrs = attrs | {"seed": seed, "gradients": PAPER_STEPS * len(PAPER_SIGMAS)}
    return [
        separation_from_draws(
            noisy[i], mixture, priors, mixing, sigma, true_sources=true_sources[i], attrs=attrs
        )
        for i, mixture in enumerate(mixtures)
    ]


def print_row(row: Row, names: Sequence[str]) -> None:
    """One line per mixture."""
    cells = "  ".join(
        f"{name} {sdr:6.1f} ({gain:+5.1f})"
        for name, sdr, gain in zip(names, row["si_sdr"], row["improvement"], strict=True)
    )
    print(
        f"mixture {row['index']:4d}: SI-SDR (improvement) in dB: {cells}  residual "
        f"{row['residual_db']:.0f} dB",
        flush=True,
    )


def report(rows: Sequence[Row], names: Sequence[str], results: Results) -> None:
    """Print and write the distribution over mixtures."""
    gains = np.median(decibels(rows, "improvement"), 0).tolist()
    summary = (
        summarise(rows)
        | summarise_verdicts(rows)
        | {
            "median_improvement_per_source_db": dict(zip(names, gains, strict=True)),
            "worst_residual_db": max(row["residual_db"] for row in rows),
            "seconds": results.seconds,
            "mixtures": rows,
        }
    )
    results.json(summary)
    low, high = summary["quartiles_improvement_db"]
    count = "1 mixture" if len(rows) == 1 else f"{len(rows)} mixtures"
    print(
        f"{count}, {summary['cpu_seconds']:.0f} CPU s each: SI-SDR improvement median "
        f"{summary['median_improvement_db']:.1f} dB (quartiles {low:.1f}, {high:.1f}), mean "
        f"{summary['mean_improvement_db']:.1f} dB; SI-SDR median "
        f"{summary['median_si_sdr_db']:.1f} dB, above 10 dB in "
        f"{summary['share_above_10_db']:.0%} of the sources, above 20 dB in "
        f"{summary['share_above_20_db']:.0%}; worst residual "
        f"{summary['worst_residual_db']:.0f} dB; {summary['share_trusted']:.0%} of the verdicts "
        f"are trusted, {summary['trusted_wrong']} of them wrongly. "
        "Paper (2011.01761): separation failed, no figure."
    )
    results.done()


if __name__ == "__main__":
    run(main)
