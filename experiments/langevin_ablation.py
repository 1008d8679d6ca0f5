"""Which fault of the paper's public code breaks separation by itself?

    python experiments/langevin_ablation.py                      # WaveNets, ten mixtures
    python experiments/langevin_ablation.py --priors toy/flow    # and the log-determinant

Dynamics, priors and mixtures are the same throughout. Each line switches on one fault that was
found in github.com/morris-frank/unsupervised-source-separation, the code of Frank & Ilse 2020
(arXiv 2011.01761). Printed are median and quartiles of the improvement of SI-SDR over all sources.
The paper reports that separation failed, without a figure.

======================  ============================================================================
no fault                as ``pyro_sep.separate`` does it under the Gaussian likelihood
paper's ladder          noise levels from 0.359 down, rather than from the level that the frame asks
sign of the likelihood  the chain is pushed away from the mixture, as in the paper's Eq. 3
no likelihood           weight 0, as in the last commit
score of the mean       log prior per audio sample rather than of the frame: T times too small
sum for the mean        the sources' sum is compared with a mixture that is their mean
clamped                 the priors see noisy audio cut off at full scale
no log-determinant      of the flow: the latent's density alone
======================  ============================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _common import (
    Levels,
    Mixtures,
    Out,
    Preset,
    PriorSet,
    Results,
    Seconds,
    Seed,
    Sources,
    bar,
    decibels,
    load_set,
    score,
    stacked,
)
from matplotlib.figure import Figure
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.inference.annealing.draws import MemoryRecorder
from pyro_sep.inference.annealing.driver import anneal
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.priors.networks import FloWaveNetPrior
from pyro_sep.separation.presets import resolve_settings

FAULTS = (
    "no fault",
    "paper's ladder",
    "sign of the likelihood",
    "no likelihood",
    "score of the mean",
    "sum for the mean",
    "clamped",
    "no log-determinant",
)
PAPER_TOP = 0.359  # the paper's highest noise level
RUNAWAY = 1e3  # full scale 1: chains that are pushed away are held there


def main(
    priors: PriorSet = "toy",
    sources: Sources = "square,saw",
    mixtures: Mixtures = 10,
    seconds: Seconds = 0.064,
    preset: Preset = None,
    levels: Levels = None,
    seed: Seed = 0,
    out: Out = Path("results/langevin_ablation"),
) -> None:
    """Separate with each fault and print what it costs."""
    results = Results(out)
    chosen = load_set(priors, sources)
    time = round(seconds * SAMPLE_RATE)
    settings = resolve_settings(chosen, time, preset=preset, levels=levels)
    flows = all(isinstance(prior, FloWaveNetPrior) for prior in chosen.values())
    items = [toy_mixture("test", i, tuple(chosen), time) for i in range(mixtures)]
    gains = {}
    for fault in bar(FAULTS if flows else FAULTS[:-1]):
        gains[fault] = improvements(items, chosen, fault, settings, seed)
        low, median, high = np.percentile(gains[fault], [25, 50, 75])
        print(f"{fault:24s} {median:6.1f} dB ({low:.1f} to {high:.1f})", flush=True)
    table = pd.DataFrame(gains).melt(var_name="fault", value_name="improvement in dB")
    results.csv(table, "langevin_ablation", index=False)
    results.png(draw(gains), "langevin_ablation")
    results.json({"improvement_db": gains, "seconds": results.seconds}, "langevin_ablation")
    print("Paper (2011.01761): separation failed, no figure.")
    results.done()


def improvements(
    items: Sequence[ToyMixture], priors: Priors, fault: str, settings: Annealing, seed: int
) -> list[float]:
    """SI-SDR improvement in dB of every source of every mixture, by the best chain."""
    if fault == "paper's ladder":
        settings = replace(settings, sigma_max=PAPER_TOP, sigma_freeze=PAPER_TOP / 2)
    laws = tuple(WithoutLogDet(p) if fault == "no log-determinant" else p for p in priors.values())
    mixtures, sources = stacked(items)
    recorder = MemoryRecorder()
    anneal(
        mixtures,
        lambda batch: Faulty(batch, laws, Mixing.mean(len(laws)), fault=fault),
        settings,
        torch.Generator().manual_seed(seed),
        recorder,
    )
    draws = recorder.draws
    best = draws.statistics.lp.mean(-1).nan_to_num(nan=-torch.inf).argmax(1)
    means = draws.sources[torch.arange(len(items)), best].mean(1).nan_to_num()
    found = zip(means[..., : mixtures.shape[-1]], sources, mixtures, strict=True)
    return decibels([score(*each) for each in found], "improvement").flatten().tolist()


@dataclass(frozen=True)
class WeightedMixing(Mixing):
    """A mixing whose likelihood has a weight wherever it enters: 1 is right."""

    weight: float = 1.0

    def log_likelihood(self, mixture: Tensor, sources: Tensor, sigma: float) -> Tensor:
        """Weighted."""
        return self.weight * super().log_likelihood(mixture, sources, sigma)

    def score(self, mixture: Tensor, sources: Tensor, sigma: float) -> Tensor:
        """Weighted."""
        return self.weight * super().score(mixture, sources, sigma)

    def condition_on(self, mixture: Tensor, sources: Tensor, scale: float) -> Tensor:
        """Sources, moved by the weight."""
        return sources + self.weight * (super().condition_on(mixture, sources, scale) - sources)


@dataclass(frozen=True)
class Faulty(AnnealedPosterior):
    """The posterior as one of :data:`FAULTS` has it, for the search and for the chain."""

    fault: str = field(kw_only=True)

    def __post_init__(self) -> None:
        count = len(self.priors)
        gains = (1.0 if self.fault == "sum for the mean" else 1 / count,) * count
        weight = {"sign of the likelihood": -1.0, "no likelihood": 0.0}.get(self.fault, 1.0)
        object.__setattr__(self, "mixing", WeightedMixing(gains, weight=weight))

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """Log density, and a gradient with the fault in it."""
        sources = sources.nan_to_num().clamp(-RUNAWAY, RUNAWAY)
        seen = sources.clamp(-1, 1) if self.fault == "clamped" else sources
        found = super().evaluate(seen, sigma)
        prior = found.gradient - self.mixing.score(self.mixture, seen, sigma)
        if self.fault == "score of the mean":
            prior = prior / sources.shape[-1]
        return found._replace(gradient=prior + self.mixing.score(self.mixture, sources, sigma))


@dataclass(frozen=True)
class WithoutLogDet:
    """A flow prior whose density leaves out how the flow stretches space."""

    prior: FloWaveNetPrior

    def __getattr__(self, name: str) -> object:
        return getattr(self.prior, name)

    def condition(self, sigma: float) -> "WithoutLogDet":
        """As that of the prior."""
        return WithoutLogDet(self.prior.condition(sigma))

    def frame(self, time: int) -> "WithoutLogDet":
        """As that of the prior."""
        return WithoutLogDet(self.prior.frame(time))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the latent alone."""
        return self.prior.base_dist.log_prob(self.prior.transforms[0].inv(value))


def draw(gains: dict[str, list[float]]) -> Figure:
    """Every source of every mixture, by fault."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(gains.values()):
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.4, markersize=4)
        axes.plot(np.median(values), row, "|", color="black", markersize=16)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("SI-SDR improvement in dB, each source of each mixture, and the median")
    return figure


if __name__ == "__main__":
    run(main)
