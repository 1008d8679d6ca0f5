"""Quality against cost: the search at five budgets, and samplers from the literature beside it.

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

An evaluation is a gradient of all sources of one mixture, those of all chains and candidates; the
seconds are of the CPU. A run that was cut off goes on where it was.
"""

import math
import sys
import time as clock
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from compare_samplers import SAMPLERS, CountedPosterior
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from pyro_sep.cli.app import run
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS, ToyMixture, toy_mixture
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.schedules import geometric_ladder
from pyro_sep.inference.kernels.sgld import langevin_step
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.arithmetic import sampling_arithmetic
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import PRESETS, default_ladder, separate_batch
from pyro_sep.storage.files import load_figures, save_json
from pyro_sep.viz.plots import save_figure

BATCH = 5  # mixtures separated at once
LEVELS = 22  # of SGLD
STEP_SIZE = 0.1  # of SGLD, in units of sigma^2; the stability bound is 1
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
    sources: Annotated[str, typer.Option(help="Waveforms, comma-separated.")] = ",".join(WAVEFORMS),
    seconds: Annotated[float, typer.Option(min=0.016, help="Length.")] = 0.128,
    mixtures: Annotated[int, typer.Option(min=1, help="How many test mixtures.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Index of the first test mixture.")] = 0,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated, search-1 or search; all by default.")
    ] = None,
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "toy",
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("docs/frontier"),
) -> None:
    """Run them, print the table and draw it."""
    names = choose_methods(methods)
    loaded = choose_priors(load_priors(priors), sources)
    time = round(seconds * SAMPLE_RATE)
    items = [toy_mixture("test", first + i, tuple(loaded), time) for i in range(mixtures)]
    run_of = {"sources": list(loaded), "seconds": seconds, "first": first, "priors": priors}
    run_of["seed"] = seed
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in tqdm(names, disable=not sys.stderr.isatty()):
        settings = run_of | {"budget": dict(METHODS[name].budget)}
        figures = run_method(METHODS[name], items, loaded, settings, out / f"{name}.json")
        rows[name] = summarise(figures)
        print(f"{name:9s} " + "  ".join(f"{key} {value:.4g}" for key, value in rows[name].items()))
        save_json(run_of | {"mixtures": mixtures, "methods": rows}, out / "summary.json")
    title = f"{', '.join(loaded)}; {mixtures} mixtures of {seconds:g} s"
    save_figure(draw(rows, title), out / "frontier.png")
    print(f"Results: {out}")


def choose_methods(names: str | None) -> list[str]:
    """Methods by name, all budgets of one where it has no number.

    Raises:
        ValueError: one that is none.
    """
    if names is None:
        return list(METHODS)
    chosen: dict[str, None] = {}
    for name in names.split(","):
        found = [method for method in METHODS if name in (method, family(method))]
        if not found:
            raise ValueError(f"methods: got {name!r}, expected some of {', '.join(METHODS)}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def family(method: str) -> str:
    """Its name without the budget's number."""
    return method.partition("-")[0]


def run_method(
    method: Method,
    items: Sequence[ToyMixture],
    priors: Priors,
    settings: Mapping[str, Any],
    path: Path,
) -> list[dict[str, Any]]:
    """Figures of every mixture, those that ``path`` already has and the others."""
    rows: list[dict[str, Any]] = load_figures(path, settings)
    for start in range(len(rows), len(items), BATCH):
        batch = items[start : start + BATCH]
        began = clock.process_time()
        found = method.sampler(batch, priors, settings["seed"] + start, **method.budget)
        seconds = (clock.process_time() - began) / len(batch)
        for item, sources, evaluations in zip(batch, *found, strict=True):
            rows.append(score(item, sources) | {"evaluations": evaluations, "seconds": seconds})
        save_json({"settings": settings, "mixtures": rows}, path)
    return rows[: len(items)]


def score(item: ToyMixture, sources: Tensor) -> dict[str, list[float]]:
    """How well the sources of one mixture were found, in dB."""
    return {
        "improvement": si_sdr_improvement(sources, item.sources, item.mixture).tolist(),
        "si_sdr": si_sdr(sources, item.sources).tolist(),
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A method's place on the frontier."""
    sdr = np.array([row["si_sdr"] for row in rows])
    return {
        "median_improvement_db": float(np.median([row["improvement"] for row in rows])),
        "share_above_10_db": float((sdr > 10).mean()),
        "share_above_20_db": float((sdr > 20).mean()),
        "evaluations": float(np.mean([row["evaluations"] for row in rows])),
        "cpu_seconds": float(np.mean([row["seconds"] for row in rows])),
    }


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
    mixtures = torch.stack([item.mixture for item in items])
    results = separate_batch(mixtures, priors, seed=seed, **budget)
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
    mixtures = torch.stack([item.mixture for item in items])
    target = CountedPosterior(mixtures, tuple(priors.values()), Mixing.mean(len(priors)), exact)
    ladder = default_ladder(priors, mixtures.shape[-1])
    ends = (ladder["sigma_max"], ladder["sigma_min"])
    return Start(target, ends, torch.Generator().manual_seed(seed))


@sampling_arithmetic()
def sgld(items: Sequence[ToyMixture], priors: Priors, seed: int, steps: int) -> Found:
    """Overdamped Langevin dynamics, so many steps at each level; the mean of its last positions.

    Positions count by the clean sources expected from them, which takes no more evaluations.
    """
    begun = start(items, priors, seed, exact=False)
    target, generator = begun.target, begun.generator
    position = target.start(begun.sigmas[0], generator)
    means: list[Tensor] = []
    for sigma in geometric_ladder(*begun.sigmas, LEVELS):
        means = []
        for _ in range(steps):
            evaluation = target.evaluate(position, sigma)
            means = [*means, target.denoise(position, evaluation, sigma)][-MEANS:]
            position = langevin_step(
                position, evaluation.gradient, STEP_SIZE * sigma**2, generator=generator
            )
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
    highest = max(sigmas[0], min(prior.sigmas[1] for prior in priors.values()))
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
    results = SAMPLERS["hmc"](list(items), priors, seed)
    sources = torch.stack([result.sources for result in results])
    return Found(sources, [float(result.trace.attrs["gradients"]) for result in results])


SMALL: dict[str, Any] = {
    "tries": 1,
    "swaps": 0,
    "replicas": 0,
    "cooling": 2,
    "warmup": 1,
    "thin": 1,
}
METHODS = {
    "search-1": Method(search, SMALL | {"candidates": 1, "levels": 12, "draws": 2}),
    "search-2": Method(search, SMALL | {"candidates": 2, "levels": 24, "swaps": 1, "draws": 4}),
    "search-3": Method(search, PRESETS["quick"]["best"]),
    "search-4": Method(search, PRESETS["standard"]["best"]),
    "search-5": Method(search, PRESETS["thorough"]["best"]),
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
