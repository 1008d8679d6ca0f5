"""Separate mixtures of the toy test split and say how well it went.

    python experiments/separate_toy.py                                  # one mixture of 0.25 s
    python experiments/separate_toy.py --mixtures 20 --seconds 0.128    # figures of the README
    python experiments/separate_toy.py --sources square,saw --mixtures 20 --seconds 0.128
    python experiments/separate_toy.py --family flow --mixtures 20 --seconds 0.128
    python experiments/separate_toy.py --paper --mixtures 5 --seconds 0.128

With --paper it is the paper's Algorithm 1 with the signs, the gain and the noise that are meant:
one chain from white noise of the first level, overdamped Langevin dynamics at the paper's five
levels, and no search for modes.

Frank & Ilse 2020 (arXiv 2011.01761) report that separation failed for every source; they give no
SI-SDR. Per mixture the results are a trace, WAV files and a picture, in --out; of a single one also
a page to listen to, report.html.
"""

import sys
import time as clock
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from pyro_sep.cli.app import one_of, run, torch_device
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS, ToyMixture, toy_mixture
from pyro_sep.diagnostics.convergence import chain_agreement, diagnose, format_verdict
from pyro_sep.evaluation.metrics import residual_db, si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.schedules import MIN_LEVELS
from pyro_sep.inference.kernels.sgld import langevin_step
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.results.writer import REPORT, write_separation
from pyro_sep.separation.api import PRESETS, Separation, separate_batch, separation_from_draws
from pyro_sep.storage.files import save_json
from pyro_sep.viz.report import write_report

BATCH = 5  # mixtures separated at once
PAPER_SIGMAS = (0.359, 0.129, 0.077, 0.027, 0.01)
PAPER_STEPS = 100  # at each of them, as in Song & Ermon 2019
PAPER_STEP_SIZE = 0.1  # in units of sigma^2; the stability bound is 1
PAPER_DRAWS = 20  # the last ones


def main(
    mixtures: Annotated[int, typer.Option(min=1, help="How many test mixtures.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.016, max=3_600, help="Length; the paper's is 1.")
    ] = 0.25,
    sources: Annotated[str, typer.Option(help="Waveforms, comma-separated.")] = ",".join(WAVEFORMS),
    first: Annotated[int, typer.Option(min=0, help="Index of the first test mixture.")] = 0,
    seed: int = 0,
    preset: Annotated[str, typer.Option(help=f"Budget: {', '.join(PRESETS)}.")] = "standard",
    chains: Annotated[int | None, typer.Option(min=1, help="Else the preset's.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Of a search; else the preset's.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=MIN_LEVELS, help="Noise levels; else the preset's.")
    ] = None,
    constraint: Annotated[
        str | None, typer.Option(help="gaussian or exact; by default as separate has it.")
    ] = None,
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "toy",
    family: Annotated[
        str | None, typer.Option(help="Of the set's priors: wavenet, flow, oracle.")
    ] = None,
    paper: Annotated[bool, typer.Option(help="The paper's Algorithm 1, as it is meant.")] = False,
    device: str = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/separate_toy"
    ),
) -> None:
    """Separate mixtures of the toy test split and say how well it went."""
    loaded = load_priors(priors if family is None else f"{priors}/{family}", torch_device(device))
    chosen = choose_priors(loaded, sources)
    names = tuple(chosen)
    time = round(seconds * SAMPLE_RATE)
    items = [toy_mixture("test", first + i, names, time) for i in range(mixtures)]
    one_of("preset", preset, PRESETS)
    budget = {"chains": chains, "candidates": candidates, "levels": levels}
    options = {name: value for name, value in budget.items() if value is not None}
    options |= {"preset": preset, "constraint": constraint}
    started = clock.monotonic()
    rows = []
    for start in range(0, mixtures, BATCH):
        batch = items[start : start + BATCH]
        separate = algorithm_1 if paper else partial(separate_batch, **options)
        results = separate(
            torch.stack([item.mixture for item in batch]).to(device),
            chosen,
            seed=seed + first + start,
            true_sources=torch.stack([item.sources for item in batch]),
            progress=sys.stderr.isatty(),
            attrs={"data": f"toy test mixtures from index {first + start}"},
        )
        for i, (item, result) in enumerate(zip(batch, results, strict=True), start=start):
            folder = out / f"mixture_{first + i:04d}"
            write_separation(result, folder)
            rows.append(score(first + i, item, result))
            print_row(rows[-1], names)
            if mixtures == 1:
                write_report(result.trace, folder / REPORT)
                print(f"{folder / REPORT}: open it in a browser")
                print(format_verdict(diagnose(result.trace)), flush=True)
    summarise(rows, names, clock.monotonic() - started, out / "summary.json")


def algorithm_1(
    mixtures: Tensor,
    priors: Priors,
    *,
    seed: int,
    true_sources: Tensor,
    progress: bool,
    attrs: dict[str, Any],
) -> list[Separation]:
    """The last draws of the paper's chain on every mixture."""
    generator = torch.Generator(mixtures.device).manual_seed(seed)
    mixing = Mixing.mean(len(priors))
    target = AnnealedPosterior(mixtures, tuple(priors.values()), mixing)
    position, draws = target.start(PAPER_SIGMAS[0], generator), []
    for sigma in tqdm(PAPER_SIGMAS, disable=not progress):
        for _ in range(PAPER_STEPS):
            gradient = target.evaluate(position, sigma).gradient
            position = langevin_step(
                position, gradient, PAPER_STEP_SIZE * sigma**2, generator=generator
            )
            draws = [*draws, position][-PAPER_DRAWS:]
    noisy = torch.stack(draws, 1)[:, None]  # (mixture, chain, draw, source, time)
    attrs = attrs | {"seed": seed, "gradients": PAPER_STEPS * len(PAPER_SIGMAS)}
    return [
        separation_from_draws(
            noisy[i], mixture, priors, mixing, sigma, true_sources=true_sources[i], attrs=attrs
        )
        for i, mixture in enumerate(mixtures)
    ]


def score(index: int, item: ToyMixture, result: Separation) -> dict[str, Any]:
    """Figures of one mixture."""
    agreement = chain_agreement(result.trace)
    gains = torch.full((len(result.names),), 1 / len(result.names))
    return {
        "index": index,
        "frequency": [round(f, 1) for f in item.frequencies.tolist()],
        "si_sdr": si_sdr(result.sources, item.sources).tolist(),
        "improvement": si_sdr_improvement(result.sources, item.sources, item.mixture).tolist(),
        "residual_db": float(residual_db(result.sources, item.mixture, gains)),
        "r_hat": float(agreement["r_hat"].max()),
        "ess_bulk": float(agreement["ess_bulk"].min()),
        "gradients": int(result.trace.attrs["gradients"]),
    }


def print_row(row: dict[str, Any], names: tuple[str, ...]) -> None:
    """One line per mixture."""
    cells = "  ".join(
        f"{name} {sdr:6.1f} ({gain:+5.1f})"
        for name, sdr, gain in zip(names, row["si_sdr"], row["improvement"], strict=True)
    )
    print(
        f"mixture {row['index']:4d}: SI-SDR (improvement) in dB: {cells}  residual "
        f"{row['residual_db']:.0f} dB  R-hat {row['r_hat']:.2f}  ESS {row['ess_bulk']:.0f}",
        flush=True,
    )


def summarise(
    rows: list[dict[str, Any]], names: tuple[str, ...], seconds: float, path: Path
) -> None:
    """Distribution over mixtures, printed and written."""
    sdr = np.array([row["si_sdr"] for row in rows])
    gain = np.array([row["improvement"] for row in rows])
    summary = {
        "median_improvement_db": float(np.median(gain)),
        "mean_improvement_db": float(gain.mean()),
        "quartiles_improvement_db": np.percentile(gain, [25, 75]).tolist(),
        "median_si_sdr_db": float(np.median(sdr)),
        "share_above_10_db": float((sdr > 10).mean()),
        "share_above_20_db": float((sdr > 20).mean()),
        "median_improvement_per_source_db": dict(
            zip(names, np.median(gain, 0).tolist(), strict=True)
        ),
        "worst_residual_db": max(row["residual_db"] for row in rows),
        "seconds": seconds,
        "seconds_per_mixture": seconds / len(rows),
        "cpu_seconds_per_mixture": clock.process_time() / len(rows),
        "mixtures": rows,
    }
    save_json(summary, path)
    low, high = summary["quartiles_improvement_db"]
    print(
        f"{len(rows)} mixtures in {seconds:.0f} s: SI-SDR improvement median "
        f"{summary['median_improvement_db']:.1f} dB (quartiles {low:.1f}, {high:.1f}), mean "
        f"{summary['mean_improvement_db']:.1f} dB; SI-SDR median "
        f"{summary['median_si_sdr_db']:.1f} dB, above 10 dB in "
        f"{summary['share_above_10_db']:.0%} of the sources, above 20 dB in "
        f"{summary['share_above_20_db']:.0%}; worst residual "
        f"{summary['worst_residual_db']:.0f} dB. "
        "Paper (2011.01761): separation failed, no figure.\n"
        f"Results: {path.parent}"
    )


if __name__ == "__main__":
    run(main)
