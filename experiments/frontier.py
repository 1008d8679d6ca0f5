"""Quality against cost: how does the search stand beside samplers from the literature?

    python experiments/frontier.py                                   # all of it: hours
    python experiments/frontier.py --methods search,isdm-1 --mixtures 4 --seconds 0.032

All methods separate the same mixtures under the same priors. ``search-1`` to ``search-5`` are
``pyro_sep.separation.api.separate_batch``, from one candidate at twelve levels to the preset
"thorough". ``sgld`` is annealed overdamped Langevin dynamics with a Gaussian mixture. ``isdm`` is
the Dirac sampler of Mariani et al. 2023 (arXiv 2302.02257) with the authors' schedule and churn,
the last source being the one that explains the rest. ``ode`` and ``sde`` are Euler's method for the
probability flow and for the reverse diffusion (Song et al. 2021, arXiv 2011.13456) under the score
of the posterior whose sources add up to the mixture. ``hmc`` is Pyro's, at the last noise level.
All but ``isdm``, which has a schedule of its own between the same ends, walk down geometric levels.

Printed per method are the median improvement of SI-SDR, the shares of sources above 10 and 20 dB,
CPU seconds and evaluations per mixture. An evaluation is a gradient of all sources of one mixture;
those of all chains and candidates count. A run that was cut off continues.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from _common import (
    ALL_WAVEFORMS,
    First,
    Mixtures,
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
    score,
    split,
    stacked,
    summarise,
)
from matplotlib.figure import Figure
from samplers import SAMPLERS, CountedPosterior, overdamped
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, ToyMixture, toy_mixture
from pyro_sep.inference.annealing.schedules import geometric_ladder
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.arithmetic import sampling_arithmetic
from pyro_sep.priors.base import Priors, known_sigmas
from pyro_sep.separation.api import Separation, separate_batch
from pyro_sep.separation.presets import resolve_settings

LEVELS = 22  # of SGLD
MEANS = 20  # of SGLD at most, the last ones, whose mean is the estimate
CHURN = 20.0  # of ISDM, over all steps, as its authors have it
RHO = 7.0  # of its schedule
MARKERS = {"search": "o", "sgld": "s", "isdm": "^", "ode": "v", "sde": "D", "hmc": "P"}


class Found(NamedTuple):
    """What a method makes of some mixtures."""

    sources: Tensor  # (mixture, source, time)
    evaluations: list[float]  # by mixture


class Method(NamedTuple):
    """A sampler ``(items, priors, seed, **budget)`` and its budget."""

    sampler: Callable[..., Found]
    budget: Mapping[str, Any]


def main(
    sources: Sources = ALL_WAVEFORMS,
    seconds: Seconds = 0.128,
    mixtures: Mixtures = 20,
    first: First = 0,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated, search-1 or search; all by default.")
    ] = None,
    priors: PriorSet = "toy",
    seed: Seed = 0,
    out: Out = Path("results/frontier"),
    workers: Workers = None,
) -> None:
    """Run the methods, print the table and draw it."""
    results = Results(out)
    names = choose_methods(methods)
    loaded = load_set(priors, sources)
    time = round(seconds * SAMPLE_RATE)
    items = [toy_mixture("test", first + i, tuple(loaded), time) for i in range(mixtures)]
    run_of = {"sources": list(loaded), "seconds": seconds, "first": first, "priors": priors}
    run_of["seed"] = seed
    rows = {}
    for name in names:
        settings = run_of | {"budget": dict(METHODS[name].budget)}
        figures = partial(measure, METHODS[name], loaded, seed)
        rows[name] = place(
            list(resume(out / f"{name}.json", settings, items, figures, workers=workers))
        )
        print(f"{name:9s} " + "  ".join(f"{key} {value:.4g}" for key, value in rows[name].items()))
        results.json(run_of | {"mixtures": mixtures, "methods": rows})
    title = f"{', '.join(loaded)}; {mixtures} mixtures of {seconds:g} s"
    results.png(draw(rows, title), "frontier")
    results.done()


def choose_methods(names: str | None) -> list[str]:
    """Methods by name, all budgets of one where it has no number.

    Raises:
        ValueError: one that is none.
    """
    if names is None:
        return list(METHODS)
    chosen: dict[str, None] = {}
    for name in split(names):
        found = [method for method in METHODS if name in (method, family(method))]
        if not found:
            raise ValueError(f"methods: got {name!r}, expected some of {', '.join(METHODS)}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def family(method: str) -> str:
    """Its name without the budget's number."""
    return method.partition("-")[0]


def measure(
    method: Method, priors: Priors, seed: int, start: int, items: Sequence[ToyMixture]
) -> list[Row]:
    """The figures of a batch of mixtures."""
    found = method.sampler(items, priors, seed + start, **method.budget)
    return [
        score(sources, item.sources, item.mixture) | {"evaluations": evaluations}
        for item, sources, evaluations in zip(items, *found, strict=True)
    ]


def place(rows: Sequence[Row]) -> dict[str, float]:
    """A method's place on the frontier."""
    keys = ("median_improvement_db", "share_above_10_db", "share_above_20_db", "cpu_seconds")
    figures = summarise(rows)
    evaluations = float(np.mean([row["evaluations"] for row in rows]))
    return {key: figures[key] for key in keys} | {"evaluations": evaluations}


def draw(rows: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Improvement against evaluations, the budgets of a method joined."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    for name in dict.fromkeys(map(family, rows)):
        places = sorted(
            (row["evaluations"], row["median_improvement_db"])
            for method, row in rows.items()
            if family(method) == name
        )
        cost, gain = zip(*places, strict=True)
        ax.plot(cost, gain, marker=MARKERS.get(name, "x"), label=name)
    ax.set(xscale="log", xlabel="gradient evaluations per mixture", title=title)
    ax.set_ylabel("SI-SDR improvement, median / dB")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def search(items: Sequence[ToyMixture], priors: Priors, seed: int, **budget: Any) -> Found:
    """The package's own."""
    return found_by(separate_batch(stacked(items)[0], priors, seed=seed, **budget))


def found_by(results: Sequence[Separation]) -> Found:
    """Sources and gradients of separations."""
    sources = torch.stack([result.sources for result in results])
    return Found(sources, [float(result.trace.attrs["gradients"]) for result in results])


class Start(NamedTuple):
    """What a sampler of this file begins with."""

    target: CountedPosterior
    sigmas: tuple[float, float]  # the first level and the last
    generator: torch.Generator

    def noise(self) -> Tensor:
        """White, of std one ``(mixture, source, frame)``."""
        shape = (len(self.target.mixture), len(self.target.priors), self.target.frame)
        return torch.empty(shape).normal_(generator=self.generator)

    def found(self, sources: Tensor) -> Found:
        """Sources ``(mixture, source, frame)`` and what they have cost by now."""
        count = len(self.target.mixture)
        evaluations = sum(self.target.calls) / count
        return Found(sources[..., : self.target.mixture.shape[-1]], [evaluations] * count)


def start(items: Sequence[ToyMixture], priors: Priors, seed: int, exact: bool) -> Start:
    """A posterior that counts its evaluations, between the ends of the priors' own ladder."""
    mixtures, _ = stacked(items)
    target = CountedPosterior(mixtures, tuple(priors.values()), Mixing.mean(len(priors)), exact)
    plan = resolve_settings(priors, mixtures.shape[-1])
    ends = (plan.sigma_max, plan.sigma_min)
    return Start(target, ends, torch.Generator().manual_seed(seed))


@sampling_arithmetic()
def sgld(items: Sequence[ToyMixture], priors: Priors, seed: int, steps: int) -> Found:
    """Overdamped Langevin dynamics, so many steps at each level; the mean of its last positions.

    Positions count by the clean sources expected from them, which takes no more evaluations.
    """
    begun = start(items, priors, seed, exact=False)
    ladder = geometric_ladder(*begun.sigmas, LEVELS)
    means: list[Tensor] = []
    for sigma, position, evaluation, _ in overdamped(begun.target, ladder, steps, begun.generator):
        if sigma == ladder[-1]:
            means = [*means, begun.target.denoise(position, evaluation, sigma)][-MEANS:]
    return begun.found(torch.stack(means).mean(0))


@sampling_arithmetic()
def reverse(
    items: Sequence[ToyMixture], priors: Priors, seed: int, levels: int, noisy: bool
) -> Found:
    r"""Euler's method down the levels: the reverse diffusion where noisy, else its flow.

    .. math:: x' = x + (\sigma^2 - \sigma'^2) \nabla \log p_\sigma(x)
              + \sqrt{\sigma^2 - \sigma'^2} \, P n, \qquad
              x' = x + \sigma (\sigma - \sigma') \nabla \log p_\sigma(x)

    with P the projection onto the plane of sources that add up to the mixture. The last evaluation
    denoises.
    """
    begun = start(items, priors, seed, exact=True)
    target, sigmas = begun.target, geometric_ladder(*begun.sigmas, levels)
    position = target.start(sigmas[0], begun.generator)
    for sigma, lower in pairwise(sigmas):
        gradient = target.evaluate(position, sigma).gradient
        if noisy:
            fallen = sigma**2 - lower**2
            noise = target.project(begun.noise())
            position = position + fallen * gradient + math.sqrt(fallen) * noise
        else:
            position = position + sigma * (sigma - lower) * gradient
    last = target.evaluate(position, sigmas[-1])
    return begun.found(target.denoise(position, last, sigmas[-1]))


@sampling_arithmetic()
def isdm(
    items: Sequence[ToyMixture], priors: Priors, seed: int, steps: int, rounds: int = 1
) -> Found:
    r"""The Dirac sampler, algorithm 1 of arXiv 2302.02257: the last source is what is left.

    .. math:: x_N = \Bigl(m - \sum_{k<N} a_k x_k\Bigr) / a_N, \qquad
              x_k' = x_k + \hat\sigma (\hat\sigma - \sigma')
              \bigl(\nabla \log p_k(x_k) - \nabla \log p_N(x_N)\bigr)

    for equal gains, where noise has first brought sigma up to :math:`\hat\sigma`, which is not
    above what the priors know. The differences of gradients are those of projected ones. At each
    level there are so many rounds, all but the last of which end with noise of the level again. The
    last evaluation denoises: priors do not know the authors' last level, 1e-4, and a step from a
    higher one to zero would overshoot.
    """
    begun = start(items, priors, seed, exact=True)
    target, sigmas = begun.target, karras_ladder(*begun.sigmas, steps)
    highest = max(sigmas[0], known_sigmas(priors)[1])
    churn = min(CHURN / steps, math.sqrt(2) - 1)
    position = sigmas[0] * begun.noise()
    for sigma, lower in pairwise(sigmas):
        for left in reversed(range(rounds)):
            raised = min((1 + churn) * sigma, highest)
            position = position + math.sqrt(raised**2 - sigma**2) * begun.noise()
            position = with_the_rest(target, position)
            gradient = target.evaluate(position, raised).gradient
            position = position + raised * (raised - lower) * (gradient - gradient[:, -1:])
            if left:
                position = position + math.sqrt(sigma**2 - lower**2) * begun.noise()
    position = with_the_rest(target, position)
    last = target.evaluate(position, sigmas[-1])
    return begun.found(target.denoise(position, last, sigmas[-1]))


def with_the_rest(target: CountedPosterior, sources: Tensor) -> Tensor:
    """The sources ``(mixture, source, frame)``, with what they leave of the mixture as the last."""
    rest = target.mixing.residual(target.mixture, sources) / target.mixing.weights(sources)[-1]
    return torch.cat([sources[:, :-1], (sources[:, -1] + rest)[:, None]], 1)


def karras_ladder(sigma_max: float, sigma_min: float, levels: int) -> tuple[float, ...]:
    """Levels evenly apart in the power 1 / RHO (Karras et al. 2022, arXiv 2206.00364)."""
    ends = np.linspace(sigma_max ** (1 / RHO), sigma_min ** (1 / RHO), levels)
    return tuple((ends**RHO).tolist())


def hmc(items: Sequence[ToyMixture], priors: Priors, seed: int) -> Found:
    """Pyro's, of two chains from the mixture plus noise."""
    return found_by(SAMPLERS["hmc"](items, priors, seed))


SMALL = {"tries": 1, "swaps": 0, "replicas": 0, "cooling": 2, "warmup": 1, "thin": 1}
METHODS = {
    "search-1": Method(search, SMALL | {"candidates": 1, "levels": 12, "draws": 2}),
    "search-2": Method(search, SMALL | {"candidates": 2, "levels": 24, "swaps": 1, "draws": 4}),
    "search-3": Method(search, {"preset": "quick"}),
    "search-4": Method(search, {"preset": "standard"}),
    "search-5": Method(search, {"preset": "thorough"}),
    "sgld-1": Method(sgld, {"steps": 10}),
    "sgld-2": Method(sgld, {"steps": 100}),
    "isdm-1": Method(isdm, {"steps": 40}),
    "isdm-2": Method(isdm, {"steps": 150}),
    "isdm-3": Method(isdm, {"steps": 150, "rounds": 4}),
    "ode-1": Method(reverse, {"levels": 40, "noisy": False}),
    "ode-2": Method(reverse, {"levels": 160, "noisy": False}),
    "ode-3": Method(reverse, {"levels": 640, "noisy": False}),
    "sde-1": Method(reverse, {"levels": 40, "noisy": True}),
    "sde-2": Method(reverse, {"levels": 160, "noisy": True}),
    "sde-3": Method(reverse, {"levels": 640, "noisy": True}),
    "hmc": Method(hmc, {}),
}


if __name__ == "__main__":
    run(main)
