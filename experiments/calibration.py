"""Are the draws calibrated? Simulation-based calibration on the toy waveforms.

    python experiments/calibration.py                                 # the annealed driver
    python experiments/calibration.py --sampler adjusted             # its steps tested
    python experiments/calibration.py --sampler smc --sigma-min 0.3
    python experiments/calibration.py --sampler separate              # as a user meets it

``langevin``, ``adjusted`` and ``smc``, both of whose steps pass a Metropolis test, are tested on
the law that they claim to draw from. Tones s of the toy prior, noisy sources x = s + sigma_min n
and a mixture m of the annealed likelihood (or, where the constraint is exact, of x itself) have the
joint law whose posterior p(x | m) is that of the last noise level, so that the ranks of functions
of x among the draws are uniform where prior and sampler are right. With the oracle the prior is
right, and the test is of the sampler, its search included: each draw is of another search.

``separate`` is given clean mixtures of clean tones, and the truth is sought among the clean draws
of its trace: how far a user can trust their intervals. Draws of one chain depend on each other, and
so do the ranks among them, which is part of the answer.

Per source these functions are ranked: level in dB, centroid in Hz, log prior in nats (of noisy
sources alone: a clean tone has no density) and the audio at three instants; the coverage of the
audio is also that of all its samples, which depend on each other. After Talts et al. 2018
(arXiv 1804.06788). Batches of simulations are files in --out, and a run that was stopped goes on.
The tones are drawn with --seed; none is of the test split.
"""

import json
import time as clock
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
import xarray as xr
from torch import Tensor

from pyro_sep.cli.app import run
from pyro_sep.data.toy import SAMPLE_RATE, draw_sources
from pyro_sep.diagnostics.sbc import NOMINAL, RankTest, coverage, coverage_error, ranks, thin
from pyro_sep.inference.annealing.draws import Collected
from pyro_sep.inference.annealing.driver import anneal
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.annealed import anneal_particles
from pyro_sep.inference.smc.core import systematic
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import (
    CONSTRAINTS,
    default_constraint,
    default_ladder,
    separate_batch,
)
from pyro_sep.storage.files import atomic_write_bytes, save_json
from pyro_sep.trace.dataset import centroid, level_db
from pyro_sep.viz.plots import plot_calibration, save_figure

SIGMAS = ("sigma_max", "sigma_freeze", "sigma_min")
PARTICLES = 4  # per draw that is kept: survivors side by side may be siblings
SIGNIFICANCE = 0.05  # of all ranks together


class Task(NamedTuple):
    """What a sampler is told beside the mixtures."""

    priors: Priors
    mixing: Mixing
    ladder: dict[str, float]  # of default_ladder
    exact: bool  # whether noisy sources add up to the mixture
    draws: int  # independent ones per mixture
    steps: int | None  # the sampler's own where None


def langevin(task: Task, mixtures: Tensor, seed: int, **annealing: Any) -> Tensor:
    """The annealed driver, a draw of each chain: chains share nothing."""
    chains = {"chains": task.draws, "draws": 1} | warmup(task)
    settings = Annealing(**(task.ladder | chains | annealing))
    sink = Collected()
    anneal(
        mixtures,
        lambda lanes: AnnealedPosterior(
            lanes, tuple(task.priors.values()), task.mixing, task.exact
        ),
        settings,
        torch.Generator().manual_seed(seed),
        sink,
    )
    return sink.draws.noisy[:, :, 0]


def warmup(task: Task) -> dict[str, int]:
    """Steps of a chain at the last level before its draws, where they are given."""
    return {} if task.steps is None else {"warmup": task.steps}


def particles(task: Task, mixtures: Tensor, seed: int) -> Tensor:
    """Sequential Monte Carlo: a population per mixture, resampled by its weights."""
    generator, count = torch.Generator().manual_seed(seed), PARTICLES * task.draws
    kept = []
    for mixture in mixtures:
        lanes = mixture.expand(count, -1)
        target = AnnealedPosterior(lanes, tuple(task.priors.values()), task.mixing)
        sigmas = {name: value for name, value in task.ladder.items() if name in SIGMAS}
        steps = {} if task.steps is None else {"steps": task.steps}
        population = anneal_particles(target, **sigmas, **steps, generator=generator, adjusted=True)
        survivors = systematic(population.log_weight, generator)
        kept.append(population.position[survivors[thin(count, task.draws)]])
    return torch.stack(kept)


def separation(task: Task, mixtures: Tensor, seed: int) -> Tensor:
    """Clean draws of all chains of :func:`pyro_sep.separate_batch`."""
    constraint = "exact" if task.exact else "gaussian"
    options = {"constraint": constraint} | task.ladder | warmup(task)
    results = separate_batch(mixtures, task.priors, seed=seed, **options)
    draws = [torch.from_numpy(result.trace["posterior"]["sources"].values) for result in results]
    return torch.stack(draws).flatten(1, 2)


#: Draws ``(mixture, draw, source, time)`` of mixtures ``(mixture, time)`` and a seed: noisy ones at
#: sigma_min, clean ones of the samplers in CLEAN.
SAMPLERS: dict[str, Callable[[Task, Tensor, int], Tensor]] = {
    "langevin": langevin,
    "adjusted": partial(langevin, adjusted=True),
    "smc": particles,
    "separate": separation,
}
CLEAN = ("separate",)
GAUSSIAN = ("smc",)  # whose path has no exact mixture


def main(
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "toy/oracle",
    sampler: Annotated[str, typer.Option(help=", ".join(SAMPLERS))] = "langevin",
    simulations: Annotated[int, typer.Option(min=1)] = 64,
    seconds: Annotated[float, typer.Option(min=0.016)] = 0.016,
    sources: Annotated[str, typer.Option(help="Waveforms, comma-separated.")] = "square,saw",
    sigma_max: Annotated[
        float | None, typer.Option(min=0, help="First noise level; the driver's own by default.")
    ] = None,
    sigma_min: Annotated[
        float | None, typer.Option(min=0, help="Last noise level; the driver's own by default.")
    ] = None,
    constraint: Annotated[
        str | None, typer.Option(help="gaussian or exact; by default as separate has it.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Independent draws per mixture; separate has its own.")
    ] = 7,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Before the draws, of smc per level; its own by default."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Simulations at once.")] = 4,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/calibration"
    ),
) -> None:
    """Simulate, draw, rank, and say whether the ranks are uniform."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: got {sampler!r}, expected one of {', '.join(SAMPLERS)}")
    if constraint not in (None, *CONSTRAINTS) or (constraint == "exact" and sampler in GAUSSIAN):
        raise ValueError(
            f"constraint: got {constraint!r}, expected one of {', '.join(CONSTRAINTS)}; "
            f"{', '.join(GAUSSIAN)} takes gaussian alone"
        )
    settings = {key: value for key, value in locals().items() if key not in ("out", "simulations")}
    torch.set_flush_denormal(True)  # gradients near zero are ten times slower otherwise
    chosen = choose_priors(load_priors(priors), sources)
    time = frame_time(chosen.values(), round(seconds * SAMPLE_RATE))
    ends = {"sigma_max": sigma_max, "sigma_min": sigma_min}
    given = {name: sigma for name, sigma in ends.items() if sigma is not None}
    ladder = default_ladder(chosen, time) | given
    mixing = Mixing.mean(len(chosen))
    own = "gaussian" if sampler in GAUSSIAN else default_constraint(mixing)
    settings["constraint"] = constraint or own
    task = Task(chosen, mixing, ladder, settings["constraint"] == "exact", draws, steps)
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, simulations, batch):
        count = min(batch, simulations - first)
        path = out / f"simulations_{first:04d}_{first + count:04d}.nc"
        if not path.exists():
            seeds = np.random.SeedSequence((seed, first)).generate_state(2).tolist()
            save_batch(simulate(task, sampler, time, count, seeds), settings, path)
        parts.append(load_batch(path, settings))
        spent = float(parts[-1]["seconds"].mean())
        print(f"simulations {first} to {first + count - 1}: {spent:.1f} s each", flush=True)
    report(xr.concat(parts, "simulation"), settings, out)


def simulate(task: Task, sampler: str, time: int, count: int, seeds: list[int]) -> xr.Dataset:
    """Functions of the truth and of the draws of ``count`` simulations."""
    started = clock.monotonic()
    sigma = None if sampler in CLEAN else task.ladder["sigma_min"]
    truth, mixtures = draw_truth(task, time, count, sigma, seeds[0])
    sources = SAMPLERS[sampler](task, mixtures, seeds[1])
    true, drawn = (functions(task.priors, audio, sigma) for audio in (truth, sources))
    generator = np.random.default_rng(seeds)
    found = np.moveaxis(ranks(truth.numpy(), sources.numpy(), generator), -1, 0)
    covered = coverage(found, sources.shape[1], generator)
    dims = ("simulation", "source", "function")
    return xr.Dataset(
        {
            "true": (dims, np.stack(list(true.values()), -1)),
            "draws": (("simulation", "draw", *dims[1:]), np.stack(list(drawn.values()), -1)),
            "covered": (("interval", *dims[:2]), covered),
            "seconds": ("simulation", np.full(count, (clock.monotonic() - started) / count)),
        },
        {"source": list(task.priors), "function": list(true)},
    )


def draw_truth(
    task: Task, time: int, count: int, sigma: float | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Sources ``(simulation, source, time)`` and mixtures ``(simulation, time)``.

    Args:
        task: its priors are named after their waveforms.
        time: audio samples.
        count: simulations.
        sigma: noise level of the sources; where None they and their mixtures are clean.
        seed: of all randomness.
    """
    generator = torch.Generator().manual_seed(seed)
    tones = [draw_sources(name, count, time, generator)[0] for name in task.priors]
    sources = torch.stack(tones, 1)
    if sigma is None:
        return sources, task.mixing.mix(sources)
    sources = sources + sigma * torch.randn(sources.shape, generator=generator)
    scale = 0.0 if task.exact else task.mixing.scale_at(sigma)
    noise = torch.randn(count, time, generator=generator)
    return sources, task.mixing.mix(sources) + scale * noise


def functions(priors: Priors, sources: Tensor, sigma: float | None) -> dict[str, Any]:
    """Scalars ``(..., source)`` of sources ``(..., source, time)``.

    Args:
        priors: of the sources.
        sources: clean or noisy ones.
        sigma: noise level of noisy ones, whose log priors are among the scalars.
    """
    audio, time = sources.numpy(), sources.shape[-1]
    values: dict[str, Any] = {"level_db": level_db(audio), "centroid": centroid(audio, SAMPLE_RATE)}
    if sigma is not None:
        values["log_prior"] = np.stack(
            [
                prior.frame(time).condition(sigma).log_prob(sources[..., k, :]).numpy()
                for k, prior in enumerate(priors.values())
            ],
            -1,
        )
    for instant in (time // 4, time // 2, 3 * time // 4):
        values[f"audio at {1000 * instant / SAMPLE_RATE:g} ms"] = audio[..., instant]
    return values


def save_batch(batch: xr.Dataset, settings: dict[str, Any], path: Path) -> None:
    """Write a batch, whole or not at all."""
    atomic_write_bytes(
        path, batch.assign_attrs(settings=json.dumps(settings)).to_netcdf(engine="h5netcdf")
    )


def load_batch(path: Path, settings: dict[str, Any]) -> xr.Dataset:
    """Read a batch.

    Raises:
        ValueError: it was made with other settings.
    """
    batch = xr.load_dataset(path, engine="h5netcdf")
    if batch.attrs["settings"] != json.dumps(settings):
        raise ValueError(
            f"{path}: got a batch of {batch.attrs['settings']}, expected {json.dumps(settings)}; "
            "give another --out"
        )
    return batch


def report(batches: xr.Dataset, settings: dict[str, Any], out: Path) -> None:
    """Rank, test, draw and print."""
    generator = np.random.default_rng(settings["seed"])
    count, draws = batches.sizes["simulation"], batches.sizes["draw"]
    true, drawn = batches["true"], batches["draws"]
    found = true.copy(data=ranks(true.values, drawn.values, generator))
    covered = xr.DataArray(
        coverage(found.values, draws, generator),
        {"interval": list(NOMINAL), "source": true["source"], "function": true["function"]},
        ("interval", "source", "function"),
    )
    test = RankTest.simulate(count, draws, generator)
    p_values = true[0].copy(data=test.p_value(found.values))
    rows = [
        {
            "source": source,
            "function": function,
            "coverage": covered.sel(source=source, function=function).values.tolist(),
            "mean_rank": float(found.sel(source=source, function=function).mean()) / draws,
            "p_value": float(p_values.sel(source=source, function=function)),
        }
        for source in true["source"].values.tolist()
        for function in true["function"].values.tolist()
    ]
    audio = batches["covered"].mean("simulation")
    everywhere = {name: audio.sel(source=name).values.tolist() for name in batches["source"].values}
    verdict, errors = judge(rows), coverage_error(count)
    spent = float(batches["seconds"].mean())
    summary = {
        "simulations": count,
        "seconds_per_simulation": spent,
        "ranks_up_to": draws,
        "intervals": list(NOMINAL),
        "coverage_error": errors.tolist(),
        "verdict": verdict,
        "functions": rows,
        "coverage_of_all_audio": everywhere,
    }
    save_json(settings | summary, out / "summary.json")
    save_figure(plot_calibration(found, covered, test), out / "calibration.png")
    titles = (f"{p:.0%} +-{error:.0%}" for p, error in zip(NOMINAL, errors, strict=True))
    print(f"share of truths inside central intervals of {', '.join(titles)}; p-value of the ranks")
    for row in rows:
        shares = "".join(f"{share:>7.0%}" for share in row["coverage"])
        print(f"{row['source']:<10}{row['function']:<17}{shares}   p {row['p_value']:.3g}")
    for source, shares in everywhere.items():
        print(f"{source:<10}{'all audio':<17}" + "".join(f"{share:>7.0%}" for share in shares))
    print(f"{count} simulations, {spent:.1f} s each: {verdict}\nResults: {out}")


def judge(rows: list[dict[str, Any]]) -> str:
    """In words, which ranks are not uniform, by Bonferroni's bound on all p-values."""
    off = [row for row in rows if row["p_value"] * len(rows) < SIGNIFICANCE]
    if not off:
        least = min(row["p_value"] for row in rows)
        return f"nothing speaks against calibration (least p-value {least:.2g} of {len(rows)})"
    names = ", ".join(f"{row['source']} {row['function']}" for row in off)
    return f"not calibrated: {names}"


if __name__ == "__main__":
    run(main)
