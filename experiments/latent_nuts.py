"""NUTS in the latent space of flow priors beside SGLD on the audio, from the same annealed start.

    python experiments/latent_nuts.py

Annealing separates a two-source toy mixture down to its last noise level; there both samplers go on
with the same posterior, chain by chain, for as many gradients. A flow turns the prior into white
noise (:class:`pyro.infer.reparam.TransformReparam`), so NUTS adapts to the likelihood alone. The
audio is judged after Tweedie's formula, as always; R-hat and ESS are ArviZ's, of each source's
level, centroid and log prior. Each sampler leaves a trace and a picture in --out.
"""

import sys
import time as clock
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyro
import torch
import typer
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import TransformReparam
from torch import Tensor

from pyro_sep.cli.app import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.diagnostics.convergence import chain_agreement
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.mixing.known import Counted, Mixing, frame_time, model
from pyro_sep.priors.base import FloWaveNetPrior, NetworkPrior
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import default_ladder, separate, separation_from_draws
from pyro_sep.storage.files import save_json
from pyro_sep.trace.dataset import save_trace
from pyro_sep.viz.plots import plot_separation, save_figure

CHAINS = 2  # of each sampler, to compare


class Chains(NamedTuple):
    """What a sampler gave."""

    noisy: Tensor  # (chain, draw, source, time)
    gradients: int
    seconds: float
    divergences: int


def main(
    priors: Annotated[str, typer.Option(help="A set of flow priors.")] = "toy/flow",
    index: Annotated[int, typer.Option(min=0, help="Test mixture.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.016)] = 0.128,
    sources: Annotated[str, typer.Option(help="Two waveforms, comma-separated.")] = "square,saw",
    warmup: Annotated[int, typer.Option(min=1, help="Adaptation steps of NUTS.")] = 50,
    draws: Annotated[int, typer.Option(min=4)] = 50,
    max_tree_depth: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/latent_nuts"
    ),
) -> None:
    """Run both samplers and print their figures side by side."""
    started = clock.monotonic()
    chosen = choose_priors(load_priors(priors), sources)
    names = tuple(chosen)
    if other := [name for name in names if not isinstance(chosen[name], FloWaveNetPrior)]:
        raise ValueError(f"priors: got no flow for {other[0]!r}, expected flow priors")
    time = frame_time(chosen.values(), round(seconds * SAMPLE_RATE))
    item = toy_mixture("test", index, names, time)
    progress = sys.stderr.isatty()
    annealed = separate(item.mixture, chosen, seed=seed, progress=progress, chains=CHAINS)
    sigma = default_ladder(chosen, time)["sigma_min"]
    pyro.set_rng_seed(seed)
    clean = torch.from_numpy(annealed.trace["posterior"]["sources"].values[:, -1])
    starts = clean + sigma * torch.randn(clean.shape)

    def audio_model() -> Tensor:
        return model(item.mixture, chosen, Mixing.mean(len(chosen)), sigma)

    nuts = run_nuts(audio_model, chosen, starts, sigma, warmup, draws, max_tree_depth, progress)
    thin = max(1, nuts.gradients // (len(starts) * draws))
    sgld = run_sgld(audio_model, names, starts, draws, thin, progress)
    rows = {
        "NUTS, latent": report(nuts, item, chosen, sigma, out / "nuts"),
        "SGLD, audio": report(sgld, item, chosen, sigma, out / "sgld"),
    }
    for label, row in rows.items():
        print(f"{label}: " + "  ".join(f"{key} {value}" for key, value in row.items()))
    save_json(rows, out / "summary.json")
    print(f"{clock.monotonic() - started:.0f} s. Results: {out}")


def run_nuts(
    audio_model: Callable[[], Tensor],
    priors: dict[str, NetworkPrior],
    starts: Tensor,
    sigma: float,
    warmup: int,
    draws: int,
    max_tree_depth: int,
    progress: bool,
) -> Chains:
    """NUTS on the latents of all sources, each chain from its start."""
    calls = Counted(poutine.reparam(audio_model, dict.fromkeys(priors, TransformReparam())))
    flows = [
        prior.frame(starts.shape[-1]).condition(sigma).transforms[0] for prior in priors.values()
    ]
    kept, divergences, started = [], 0, clock.monotonic()
    for start in starts:
        initial = {
            f"{name}_base": flow.inv(source)
            for name, flow, source in zip(priors, flows, start, strict=True)
        }
        kernel = NUTS(calls, max_tree_depth=max_tree_depth)
        chain = MCMC(kernel, draws, warmup, initial_params=initial, disable_progbar=not progress)
        chain.run()
        latents = chain.get_samples()
        with torch.no_grad():
            kept.append(
                torch.stack(
                    [
                        flow(latents[f"{name}_base"])
                        for name, flow in zip(priors, flows, strict=True)
                    ],
                    1,
                )
            )
        divergences += len(chain.diagnostics()["divergences"]["chain 0"])
    return Chains(torch.stack(kept), calls.count, clock.monotonic() - started, divergences)


def run_sgld(
    audio_model: Callable[[], Tensor],
    names: tuple[str, ...],
    starts: Tensor,
    draws: int,
    thin: int,
    progress: bool,
) -> Chains:
    """SGLD on the audio of all sources, every ``thin``-th step of each chain."""
    calls = Counted(audio_model)
    kept, divergences, started = [], 0, clock.monotonic()
    for start in starts:
        initial = dict(zip(names, start, strict=True))
        chain = MCMC(
            SGLD(calls), draws * thin, 0, initial_params=initial, disable_progbar=not progress
        )
        chain.run()
        samples = chain.get_samples()
        kept.append(torch.stack([samples[name][thin - 1 :: thin] for name in names], 1))
        divergences += len(chain.diagnostics()["divergences"]["chain 0"])
    return Chains(torch.stack(kept), calls.count, clock.monotonic() - started, divergences)


def report(
    chains: Chains, item: ToyMixture, priors: dict[str, NetworkPrior], sigma: float, out: Path
) -> dict[str, Any]:
    """Write trace and picture; figures of the sampler."""
    attrs = {"sigma": sigma, "gradients": chains.gradients, "divergences": chains.divergences}
    mixing, true = Mixing.mean(len(priors)), item.sources
    result = separation_from_draws(
        chains.noisy, item.mixture, priors, mixing, sigma, true_sources=true, attrs=attrs
    )
    trace = result.trace
    out.mkdir(parents=True, exist_ok=True)
    save_trace(trace, out / "trace.nc")
    save_figure(plot_separation(trace), out / "separation.png")
    agreement = chain_agreement(trace)
    ess = float(agreement["ess_bulk"].min())
    means = torch.from_numpy(trace["posterior"]["sources"].values).mean((0, 1))
    scores = si_sdr(means, item.sources)
    return {
        "gradients": chains.gradients,
        "seconds": round(chains.seconds),
        "divergences": chains.divergences,
        "mean_lp": round(float(trace["sample_stats"]["lp"].mean()), 1),
        "r_hat_worst": round(float(agreement["r_hat"].max()), 2),
        "ess_worst": round(ess, 1),
        "ess_per_1000_gradients": round(1000 * ess / chains.gradients, 2),
        "si_sdr_db": [round(value, 1) for value in scores.tolist()],
    }


if __name__ == "__main__":
    run(main)
