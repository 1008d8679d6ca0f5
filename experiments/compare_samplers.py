"""Every sampler under every prior, on the same mixtures: what each finds, and what it costs.

    python experiments/compare_samplers.py                               # all of them: hours
    python experiments/compare_samplers.py --priors oracle --samplers langevin,mala --mixtures 2

Annealed samplers walk down the ladder of noise levels: underdamped Langevin dynamics with a
Gaussian mixture, and with an exact one, the default of ``pyro_sep.separate``; overdamped Langevin
dynamics, SGLD; the same with a Metropolis test, MALA; and sequential Monte Carlo, these with a
Gaussian mixture. HMC and NUTS are Pyro's, at the last noise level alone, each chain from the
mixture plus noise; for flows NUTS runs in the latent space, where the prior is white.

The improvement of SI-SDR is that of the mean of the best chain, a gradient is one of all sources of
one mixture, and seconds are of the CPU. R-hat and ESS are the worst over level, centroid and log
prior of the sources, of two chains; a population of particles has none. A run that was cut off goes
on where it was.
"""

import sys
import time as clock
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyro
import torch
import typer
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import TransformReparam
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from pyro_sep.cli.app import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.diagnostics.convergence import chain_agreement
from pyro_sep.evaluation.metrics import residual_db, si_sdr, si_sdr_improvement
from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.annealed import anneal_particles
from pyro_sep.inference.smc.core import systematic
from pyro_sep.mixing.known import Counted, Mixing, frame_time, model
from pyro_sep.priors.base import FloWaveNetPrior, Priors, WaveformPrior
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import (
    Separation,
    default_ladder,
    separate_batch,
    separation_from_draws,
)
from pyro_sep.storage.files import load_figures, save_json

Sampler = Callable[[list[ToyMixture], Priors, int], list[Separation]]

BATCH = 5  # mixtures separated at once
CHAINS = 2
EXACT_LEVELS = 40  # of noise under the oracle, which chooses modes all at once
PARTICLES = 16
SHARE = 0.6  # of the particles' effective sample size that a step of the noise level keeps
WARMUP, DRAWS = 30, 30  # of HMC and NUTS
TRAJECTORY = 4.0  # of HMC, in units of sigma
TRAJECTORY_STEPS = 128  # of HMC at most: a step that the oracle's narrow modes allow is far shorter
TREE_DEPTH = 4  # of NUTS: 15 steps at most


def main(
    priors: Annotated[str, typer.Option(help="Families, comma-separated.")] = "oracle,wavenet,flow",
    samplers: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "langevin,exact,sgld,mala,smc,hmc,nuts",
    sources: Annotated[str, typer.Option(help="Waveforms, comma-separated.")] = "square,saw",
    mixtures: Annotated[int, typer.Option(min=1, help="How many test mixtures.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.016)] = 0.064,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/compare_samplers"
    ),
) -> None:
    """Run them and print the table."""
    started = clock.monotonic()
    chosen = samplers.split(",")
    if unknown := [name for name in chosen if name not in SAMPLERS]:
        raise ValueError(f"samplers: got {unknown[0]!r}, expected some of {', '.join(SAMPLERS)}")
    names = tuple(sources.split(","))
    items = [toy_mixture("test", i, names, round(seconds * SAMPLE_RATE)) for i in range(mixtures)]
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    cells = [(family, name) for family in priors.split(",") for name in chosen]
    for family, name in tqdm(cells, disable=not sys.stderr.isatty()):
        loaded = choose_priors(load_priors(f"toy/{family}"), sources)
        path = out / f"{family}-{name}.json"
        rows.append({"prior": family, "sampler": name})
        settings = {"sources": sources, "seconds": seconds, "seed": seed}
        rows[-1] |= summarise(run_cell(SAMPLERS[name], items, loaded, settings, path))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "summary.csv", index=False)
    print(as_markdown(table))
    print(f"{clock.monotonic() - started:.0f} s. Results: {out}")


def run_cell(
    sampler: Sampler,
    items: list[ToyMixture],
    priors: Priors,
    settings: dict[str, Any],
    path: Path,
) -> list[dict[str, Any]]:
    """Figures of every mixture, those that ``path`` already has and the others."""
    rows: list[dict[str, Any]] = load_figures(path, settings)
    for start in range(len(rows), len(items), BATCH):
        batch = items[start : start + BATCH]
        began = clock.process_time()
        results = sampler(batch, priors, settings["seed"] + start)
        seconds = (clock.process_time() - began) / len(batch)
        for item, result in zip(batch, results, strict=True):
            rows.append(score(item, result) | {"seconds": seconds})
        save_json({"settings": settings, "mixtures": rows}, path)
    return rows[: len(items)]


def score(item: ToyMixture, result: Separation) -> dict[str, Any]:
    """Figures of one mixture."""
    count = len(result.names)
    chains = result.trace["posterior"].sizes["chain"]
    agreement = chain_agreement(result.trace) if chains > 1 else None
    return {
        "improvement": si_sdr_improvement(result.sources, item.sources, item.mixture).tolist(),
        "si_sdr": si_sdr(result.sources, item.sources).tolist(),
        "residual_db": float(
            residual_db(result.sources, item.mixture, torch.full((count,), 1 / count))
        ),
        "gradients": result.trace.attrs["gradients"],
        "ess": float(agreement["ess_bulk"].min()) if agreement is not None else None,
        "r_hat": float(agreement["r_hat"].max()) if agreement is not None else None,
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table."""
    gain, sdr = (np.array([row[key] for row in rows]) for key in ("improvement", "si_sdr"))
    quartiles = np.percentile(gain, [25, 75]).round(1)
    known = rows[0]["ess"] is not None
    return {
        "improvement, median dB": round(float(np.median(gain)), 1),
        "quartiles": f"{quartiles[0]} to {quartiles[1]}",
        "above 10 dB": f"{(sdr > 10).mean():.0%}",
        "above 20 dB": f"{(sdr > 20).mean():.0%}",
        "gradients": round(np.mean([row["gradients"] for row in rows])),
        "CPU seconds": round(float(np.mean([row["seconds"] for row in rows])), 1),
        "ESS": round(float(np.median([row["ess"] for row in rows])), 1) if known else "",
        "R-hat": round(float(np.median([row["r_hat"] for row in rows])), 2) if known else "",
        "worst residual dB": round(max(row["residual_db"] for row in rows)),
    }


def as_markdown(table: pd.DataFrame) -> str:
    """The table as the README has it."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def annealed(settings: dict[str, Any]) -> Sampler:
    """The annealed driver at its defaults but for these settings, and the oracle's ladder.

    The mixture is Gaussian where they do not say otherwise.
    """
    options = {"constraint": "gaussian"} | settings

    def sampler(items: list[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
        mixtures = torch.stack([item.mixture for item in items])
        exact = all(isinstance(prior, WaveformPrior) for prior in priors.values())
        ladder = {"levels": EXACT_LEVELS} if exact else {}
        return separate_batch(mixtures, priors, seed=seed, chains=CHAINS, **ladder, **options)

    return sampler


@dataclass(frozen=True)
class CountedPosterior(AnnealedPosterior):
    """One that counts the gradients asked of it."""

    calls: list[int] = field(default_factory=list, kw_only=True)

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """As ever, and counted."""
        self.calls.append(len(sources))
        return super().evaluate(sources, sigma)


def smc(items: list[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
    """Particles down the ladder; draws are those that a last resampling leaves."""
    results, mixing = [], Mixing.mean(len(priors))
    for i, item in enumerate(items):
        generator = torch.Generator().manual_seed(seed + i)
        target = CountedPosterior(
            item.mixture.expand(PARTICLES, -1), tuple(priors.values()), mixing
        )
        ladder = default_ladder(priors, len(item.mixture))
        sigmas = {name: ladder[name] for name in ("sigma_max", "sigma_freeze", "sigma_min")}
        population = anneal_particles(target, generator=generator, share=SHARE, **sigmas)
        kept = population.position[systematic(population.log_weight, generator)]
        attrs = {"gradients": sum(target.calls), "log_evidence": population.log_evidence}
        results.append(
            separation_from_draws(
                kept[None], item.mixture, priors, mixing, ladder["sigma_min"], attrs=attrs
            )
        )
    return results


def from_the_mixture(kernel: Callable[..., HMC]) -> Sampler:
    """A kernel of Pyro's at the last noise level, every chain from the mixture plus noise."""

    def sampler(items: list[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
        return [run_kernel(kernel, item.mixture, priors, seed + i) for i, item in enumerate(items)]

    return sampler


def run_kernel(
    kernel: Callable[..., HMC], mixture: Tensor, priors: Priors, seed: int
) -> Separation:
    """All chains on one mixture."""
    pyro.set_rng_seed(seed)
    mixing, time = Mixing.mean(len(priors)), frame_time(priors.values(), len(mixture))
    sigma = default_ladder(priors, len(mixture))["sigma_min"]
    flows = {  # whose latent NUTS moves in
        name: prior.frame(time).condition(sigma).transforms[0]
        for name, prior in priors.items()
        if isinstance(prior, FloWaveNetPrior) and kernel is nuts
    }
    calls = Counted(lambda: model(mixture, priors, mixing, sigma))
    target = poutine.reparam(calls, dict.fromkeys(flows, TransformReparam()))
    chains = []
    for _ in range(CHAINS):
        start = {}
        for name in priors:
            value = pad(mixture, (0, time - len(mixture)))
            value = value + sigma * torch.randn_like(value)
            if name in flows:
                start[f"{name}_base"] = flows[name].inv(value)
            else:
                start[name] = value
        chain = MCMC(
            kernel(target, sigma, init_strategy=init_to_value(values=start)),
            DRAWS,
            WARMUP,
            disable_progbar=True,
        )
        chain.run()
        draws = chain.get_samples()
        with torch.no_grad():
            audio = [
                flows[name](draws[f"{name}_base"]) if name in flows else draws[name]
                for name in priors
            ]
        chains.append(torch.stack(audio, 1))
    return separation_from_draws(
        torch.stack(chains), mixture, priors, mixing, sigma, attrs={"gradients": calls.count}
    )


class BoundedHMC(HMC):
    """HMC of at most TRAJECTORY_STEPS steps, as a tree of NUTS has its depth."""

    @property
    def num_steps(self) -> int:
        """Of a trajectory."""
        return min(super().num_steps, TRAJECTORY_STEPS)


def hmc(target: Callable[..., Any], sigma: float, **options: Any) -> HMC:
    """Trajectories of one length, in steps whose size adapts."""
    return BoundedHMC(
        target,
        step_size=sigma / 4,
        trajectory_length=TRAJECTORY * sigma,
        adapt_mass_matrix=False,
        **options,
    )


def nuts(target: Callable[..., Any], sigma: float, **options: Any) -> NUTS:
    """Trajectories that end where they turn."""
    return NUTS(target, step_size=sigma / 4, max_tree_depth=TREE_DEPTH, **options)


SAMPLERS: dict[str, Sampler] = {
    "langevin": annealed({}),
    "exact": annealed({"constraint": "exact"}),
    "sgld": annealed({"persistence": 0.0}),
    "mala": annealed({"persistence": 0.0, "adjusted": True}),
    "smc": smc,
    "hmc": from_the_mixture(hmc),
    "nuts": from_the_mixture(nuts),
}


if __name__ == "__main__":
    run(main)
