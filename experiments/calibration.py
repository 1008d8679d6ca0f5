"""Are the draws calibrated? Simulation-based calibration on the toy waveforms.

    python experiments/calibration.py                                 # the annealed driver
    python experiments/calibration.py --sampler adjusted              # with a Metropolis test
    python experiments/calibration.py --sampler smc --sigma-min 0.3
    python experiments/calibration.py --sampler separate              # as a user meets it

``langevin``, ``adjusted`` and ``smc`` are tested on the law that they claim to draw from; the steps
of the last two pass a Metropolis test. Tones s of the toy prior, noisy sources x = s + sigma_min n
and a mixture m of the annealed likelihood (of x itself where the constraint is exact) have the
joint law whose posterior p(x | m) is that of the last noise level. So the ranks of functions of x
among the draws are uniform where prior and sampler are right. The oracle prior is right; with it
the test is of the sampler, its search included: every draw is of another search.

``separate`` is given clean mixtures of clean tones, and the truth is ranked among the clean draws
of its trace. This tests how far a user can trust their intervals. Draws of one chain depend on each
other, and so do the ranks among them, which is part of the answer.

Per source these functions are ranked: level in dB, centroid in Hz, log prior in nats (of noisy
sources alone: a clean tone has no density) and the audio at three instants. The coverage of the
audio is also given over all its samples, which depend on each other. After Talts et al. 2018
(arXiv 1804.06788). The tones are drawn with --seed; none is of the test split. A run that was cut
off continues.

Printed per function are the coverage of the central intervals and the p-value of uniform ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
import xarray as xr
from _common import (
    Constraint,
    Out,
    PriorSet,
    Results,
    Row,
    Seconds,
    Seed,
    Sources,
    Workers,
    load_set,
    resume,
)
from torch import Tensor

from pyro_sep.checks.arguments import choice
from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, draw_sources
from pyro_sep.diagnostics.sbc import NOMINAL, RankTest, coverage, coverage_error, ranks
from pyro_sep.inference.annealing.draws import MemoryRecorder
from pyro_sep.inference.annealing.driver import anneal
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.annealed import anneal_particles
from pyro_sep.inference.smc.core import systematic
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.models.arithmetic import denormals_flushed
from pyro_sep.priors.base import Priors
from pyro_sep.separation.api import separate_batch
from pyro_sep.separation.presets import default_constraint, resolve_settings
from pyro_sep.trace.dataset import centroid, level_db
from pyro_sep.viz.plots import plot_calibration

PARTICLES = 4  # per draw that is kept: survivors side by side may be siblings
UNSTATED = ("out", "simulations", "workers")  # of the options: what rows do not depend on
SIGNIFICANCE = 0.05  # of all ranks together


class Task(NamedTuple):
    """What a sampler is told beside the mixtures."""

    priors: Priors
    mixing: Mixing
    settings: Annealing
    exact: bool  # whether noisy sources add up to the mixture
    draws: int  # independent ones per mixture
    steps: int | None  # the sampler's own where None

    def posterior(self, mixtures: Tensor) -> AnnealedPosterior:
        """The posterior of the sources of these mixtures."""
        return AnnealedPosterior(mixtures, tuple(self.priors.values()), self.mixing, self.exact)


def langevin(task: Task, mixtures: Tensor, seed: int, adjusted: bool = False) -> Tensor:
    """One draw of each chain of the annealed driver; chains are independent."""
    settings = replace(task.settings, chains=task.draws, draws=1, adjusted=adjusted)
    recorder, generator = MemoryRecorder(), torch.Generator().manual_seed(seed)
    anneal(mixtures, task.posterior, settings, generator, recorder)
    return recorder.draws.noisy[:, :, 0]


def particles(task: Task, mixtures: Tensor, seed: int) -> Tensor:
    """Sequential Monte Carlo: a population per mixture, resampled by its weights."""
    generator, count = torch.Generator().manual_seed(seed), PARTICLES * task.draws
    kept = []
    for mixture in mixtures:
        population = anneal_particles(
            task.posterior(mixture.expand(count, -1)),
            task.settings.sigma_max,
            task.settings.sigma_freeze,
            task.settings.sigma_min,
            generator,
            adjusted=True,
            **({} if task.steps is None else {"steps": task.steps}),
        )
        survivors = systematic(population.log_weight, generator)
        kept.append(population.position[survivors[PARTICLES - 1 :: PARTICLES]])
    return torch.stack(kept)


def separation(task: Task, mixtures: Tensor, seed: int) -> Tensor:
    """Clean draws of all chains of :func:`pyro_sep.separate_batch`."""
    constraint = "exact" if task.exact else "gaussian"
    results = separate_batch(
        mixtures, task.priors, seed=seed, constraint=constraint, settings=task.settings
    )
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
    priors: PriorSet = "toy/oracle",
    sampler: Annotated[str, typer.Option(help=", ".join(SAMPLERS))] = "langevin",
    simulations: Annotated[int, typer.Option(min=1, help="Number of simulations.")] = 64,
    seconds: Seconds = 0.016,
    sources: Sources = "square,saw",
    sigma_max: Annotated[
        float | None, typer.Option(min=0, help="First noise level; by default the driver's.")
    ] = None,
    sigma_min: Annotated[
        float | None, typer.Option(min=0, help="Last noise level; by default the driver's.")
    ] = None,
    constraint: Constraint = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Independent draws per mixture; separate has its own.")
    ] = 7,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Before the draws, of smc per level; by default its own."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Simulations at once.")] = 4,
    seed: Seed = 0,
    out: Out = Path("results/calibration"),
    workers: Workers = None,
) -> None:
    """Simulate, draw, rank, and print whether the ranks are uniform."""
    settings = {key: value for key, value in locals().items() if key not in UNSTATED}
    results = Results(out)
    choice("sampler", sampler, SAMPLERS)
    if constraint == "exact" and sampler in GAUSSIAN:
        raise ValueError(f"constraint: got {constraint!r}, expected gaussian for {sampler}")
    chosen = load_set(priors, sources)
    time = frame_time(chosen.values(), round(seconds * SAMPLE_RATE))
    plan = resolve_settings(chosen, time, sigma_max=sigma_max, sigma_min=sigma_min, warmup=steps)
    mixing = Mixing.mean(len(chosen))
    settings["constraint"] = constraint or (
        "gaussian" if sampler in GAUSSIAN else default_constraint(mixing)
    )
    exact = settings["constraint"] == "exact"
    task = Task(chosen, mixing, plan, exact, draws, steps)
    rows = []
    measure = partial(simulate, task, sampler, time, seed)
    path, items = out / "simulations.json", range(simulations)
    for row in resume(path, settings, items, measure, batch, workers=workers):
        rows.append(row)
        print(f"simulation {len(rows) - 1}: {row['seconds']:.1f} CPU s", flush=True)
    report(rows, list(chosen), settings, results)


@denormals_flushed()
def simulate(
    task: Task, sampler: str, time: int, seed: int, start: int, batch: Sequence[int]
) -> list[Row]:
    """Functions of the truth and of the draws of a batch of simulations."""
    seeds = np.random.SeedSequence((seed, start)).generate_state(2).tolist()
    sigma = None if sampler in CLEAN else task.settings.sigma_min
    truth, mixtures = draw_truth(task, time, len(batch), sigma, seeds[0])
    sources = SAMPLERS[sampler](task, mixtures, seeds[1])
    true, drawn = (functions(task.priors, audio, sigma) for audio in (truth, sources))
    generator = np.random.default_rng(seeds)
    found = np.moveaxis(ranks(truth.numpy(), sources.numpy(), generator), -1, 0)
    covered = coverage(found, sources.shape[1], generator)
    return [
        {
            "true": {name: values[i].tolist() for name, values in true.items()},
            "draws": {name: values[i].tolist() for name, values in drawn.items()},
            "covered": covered[:, i].tolist(),
        }
        for i in range(len(batch))
    ]


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


def report(rows: list[Row], names: list[str], settings: dict[str, Any], results: Results) -> None:
    """Rank, test, draw and print."""
    generator = np.random.default_rng(settings["seed"])
    true, drawn = (
        np.stack([[row[key][name] for row in rows] for name in rows[0][key]], -1).astype(float)
        for key in ("true", "draws")
    )
    count, draws = drawn.shape[:2]
    coords = {"source": names, "function": list(rows[0]["true"])}
    found = xr.DataArray(ranks(true, drawn, generator), coords, ("simulation", *coords))
    covered = xr.DataArray(
        coverage(found.values, draws, generator), {"interval": list(NOMINAL)} | coords
    )
    test = RankTest.simulate(count, draws, generator)
    p_values = found[0].copy(data=test.p_value(found.values))
    lines = [
        {
            "source": source,
            "function": function,
            "coverage": covered.sel(source=source, function=function).values.tolist(),
            "mean_rank": float(found.sel(source=source, function=function).mean()) / draws,
            "p_value": float(p_values.sel(source=source, function=function)),
        }
        for source in names
        for function in coords["function"]
    ]
    audio = np.mean([row["covered"] for row in rows], 0)  # (interval, source)
    everywhere = dict(zip(names, audio.T.tolist(), strict=True))
    verdict, errors = judge(lines), coverage_error(count)
    spent = float(np.mean([row["seconds"] for row in rows]))
    summary = {
        "simulations": count,
        "seconds_per_simulation": spent,
        "ranks_up_to": draws,
        "intervals": list(NOMINAL),
        "coverage_error": errors.tolist(),
        "verdict": verdict,
        "functions": lines,
        "coverage_of_all_audio": everywhere,
    }
    results.json(settings | summary)
    results.png(plot_calibration(found, covered, test), "calibration")
    titles = (f"{p:.0%} +-{error:.0%}" for p, error in zip(NOMINAL, errors, strict=True))
    print(f"share of true values in central intervals of {', '.join(titles)}; p-value of the ranks")
    for row in lines:
        shares = "".join(f"{share:>7.0%}" for share in row["coverage"])
        print(f"{row['source']:<10}{row['function']:<17}{shares}   p {row['p_value']:.3g}")
    for source, shares in everywhere.items():
        print(f"{source:<10}{'all audio':<17}" + "".join(f"{share:>7.0%}" for share in shares))
    print(f"{count} simulations, {spent:.1f} CPU s each: {verdict}")
    results.done()


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
