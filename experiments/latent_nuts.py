"""Does NUTS in the latent space of flow priors draw better than SGLD on the audio?

    python experiments/latent_nuts.py

Annealing separates a two-source toy mixture down to its last noise level. There both samplers
continue with the same posterior, chain by chain, for as many gradients. A flow turns the prior into
white noise (:class:`pyro.infer.reparam.TransformReparam`), so NUTS adapts to the likelihood alone.

Printed of each sampler are gradients, CPU seconds, divergences, log posterior, the worst R-hat and
ESS (ArviZ's, of each source's level, centroid and log prior), and the SI-SDR of the clean draws'
mean. Each sampler leaves a trace and a picture in --out.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer
from _common import Out, PriorSet, Results, Seconds, Seed, Sources, load_set, score_separation
from pyro.infer import NUTS
from samplers import CHAINS, PyroChains, pyro_chains

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.priors.networks import FloWaveNetPrior, NetworkPrior
from pyro_sep.separation.api import separate, separation_from_draws
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.dataset import save_trace
from pyro_sep.viz.png import save_figure
from pyro_sep.viz.separation import plot_separation


def main(
    priors: PriorSet = "toy/flow",
    index: Annotated[int, typer.Option(min=0, help="Test mixture.")] = 0,
    seconds: Seconds = 0.128,
    sources: Sources = "square,saw",
    warmup: Annotated[int, typer.Option(min=1, help="Adaptation steps of NUTS.")] = 50,
    draws: Annotated[int, typer.Option(min=4, help="Draws per chain.")] = 50,
    max_tree_depth: Annotated[int, typer.Option(min=1, help="Depth of a tree of NUTS.")] = 5,
    seed: Seed = 0,
    out: Out = Path("results/latent_nuts"),
) -> None:
    """Run both samplers and print their figures side by side."""
    results = Results(out)
    chosen = load_set(priors, sources)
    names = tuple(chosen)
    if other := [name for name in names if not isinstance(chosen[name], FloWaveNetPrior)]:
        raise ValueError(f"priors: got no flow for {other[0]!r}, expected flow priors")
    time = frame_time(chosen.values(), round(seconds * SAMPLE_RATE))
    item = toy_mixture("test", index, names, time)
    progress = sys.stderr.isatty()
    annealed = separate(item.mixture, chosen, seed=seed, progress=progress, chains=CHAINS)
    sigma = resolve_settings(chosen, time).sigma_min
    pyro.set_rng_seed(seed)
    clean = torch.from_numpy(annealed.trace["posterior"]["sources"].values[:, -1])
    starts = clean + sigma * torch.randn(clean.shape)
    chains = partial(
        pyro_chains,
        mixture=item.mixture,
        priors=chosen,
        sigma=sigma,
        starts=starts,
        draws=draws,
        progress=progress,
    )
    nuts = chains(partial(NUTS, max_tree_depth=max_tree_depth), warmup=warmup, latent=names)
    thin = max(1, nuts.gradients // (len(starts) * draws))
    sgld = chains(SGLD, warmup=0, thin=thin)
    rows = {
        "NUTS, latent": report(nuts, item, chosen, sigma, out / "nuts"),
        "SGLD, audio": report(sgld, item, chosen, sigma, out / "sgld"),
    }
    for label, row in rows.items():
        print(f"{label}: " + "  ".join(f"{key} {value}" for key, value in row.items()))
    results.json(rows)
    results.done()


def report(
    chains: PyroChains, item: ToyMixture, priors: dict[str, NetworkPrior], sigma: float, out: Path
) -> dict[str, Any]:
    """Write trace and picture; the figures of the sampler."""
    attrs = {"sigma": sigma, "gradients": chains.gradients, "divergences": chains.divergences}
    mixing, true = Mixing.mean(len(priors)), item.sources
    result = separation_from_draws(
        chains.noisy, item.mixture, priors, mixing, sigma, true_sources=true, attrs=attrs
    )
    trace = result.trace
    out.mkdir(parents=True, exist_ok=True)
    save_trace(trace, out / "trace.nc")
    save_figure(plot_separation(trace), out / "separation.png")
    figures = score_separation(item, result)
    means = torch.from_numpy(trace["posterior"]["sources"].values).mean((0, 1))
    return {
        "gradients": chains.gradients,
        "seconds": round(chains.seconds),
        "divergences": chains.divergences,
        "mean_lp": round(float(trace["sample_stats"]["lp"].mean()), 1),
        "r_hat_worst": round(figures["r_hat"], 2),
        "ess_worst": round(figures["ess"], 1),
        "ess_per_1000_gradients": round(1000 * figures["ess"] / chains.gradients, 2),
        "si_sdr_db": [round(value, 1) for value in si_sdr(means, item.sources).tolist()],
    }


if __name__ == "__main__":
    run(main)
