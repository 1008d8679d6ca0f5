r"""Are two explanations of a mixture both in the draws, as often as they are probable?

    python experiments/modes.py                       # 20 mixtures

A mixture of two sines a third of an octave apart, :math:`m = a_1 s_1 + a_2 s_2` with gains of 0.5
and 0.45: both sources have the same prior, so which of them is the lower tone is open unless an
amplitude is out of the prior's range [0.8, 1]. Under the exact prior the likelihood of the
amplitude of a contribution is normal with variance :math:`2 v / T`, v the variance of the mixture's
noise at the last level, so the probability of either order is

.. math:: P \propto \prod_k \left[ \Phi\left(\frac{a_k - c_k}{\sqrt{2 v / T}}\right)
          - \Phi\left(\frac{0.8 a_k - c_k}{\sqrt{2 v / T}}\right) \right]

with :math:`c_k` the amplitudes of the contributions in that order. Three posteriors are compared
with it: of one chain under the exact prior, which swaps its sources; of chains that may not swap
theirs, and are weighed by a bridge; and of chains under the learned prior, weighed by how often
their searches end in an order. Printed are probabilities that the first source is the lower tone.
A run that was cut off continues.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from _common import Out, Results, Row, Seed, load_set, resume
from scipy.stats import norm
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import AMPLITUDES, FREQUENCIES, SAMPLE_RATE
from pyro_sep.priors.base import Prior
from pyro_sep.separation.api import separate
from pyro_sep.separation.presets import SIGMA_MIN

GAINS, TIME = (0.5, 0.45), 2_048
THIRD = 2 ** (1 / 3)
OPEN = 0.02  # both orders have at least this probability
SEARCH = {"candidates": 2, "replicas": 2, "sigma_min": SIGMA_MIN}
RUNS = {  # priors, and how the sampler is set
    "one chain": ("toy/oracle", {"chains": 1, "draws": 60, "swaps": 2}),
    "bridge": ("toy/oracle", {"chains": 4, "draws": 20, "swaps": 0}),
    "learned": ("toy", {"chains": 8, "draws": 10, "swaps": 2}),
}


def main(
    mixtures: Annotated[int, typer.Option(min=1, help="Number of mixtures.")] = 20,
    seed: Seed = 0,
    out: Out = Path("results/modes"),
) -> None:
    """Separate two tones whose order is open and print the probabilities of the orders."""
    results = Results(out)
    priors = {name: load_set(priors, "sine")["sine"] for name, (priors, _) in RUNS.items()}
    figures = partial(measure, priors, seed)
    rows = []
    for row in resume(out / "mixtures.json", {"seed": seed}, range(mixtures), figures, 1):
        cells = "  ".join(f"{name} {row[name]:.2f}" for name in ("expected", *RUNS))
        print(f"mixture {row['index']}: {cells}", flush=True)
        rows.append(row)
    summary = {name: agreement(rows, name) for name in RUNS}
    results.json({"mixtures": rows, "runs": summary, "settings": {"gains": GAINS, "seed": seed}})
    for name, line in summary.items():
        print(
            f"{name}: both orders in {line['both']} of {len(rows)}, within a factor of two in "
            f"{line['within_two']}"
        )
    results.done()


def measure(priors: dict[str, Prior], seed: int, start: int, batch: Sequence[int]) -> list[Row]:
    """Probability that the first source is the lower tone: expected, and by every posterior."""
    rows = []
    for index in batch:
        mixture, lower, expected = open_mixture(seed, index)
        row: Row = {"index": index, "expected": expected}
        for name, (_, settings) in RUNS.items():
            pair = {"first": priors[name], "second": priors[name]}
            row[name] = share(mixture, lower, pair, seed + index, **(SEARCH | settings))
        rows.append(row)
    return rows


def open_mixture(seed: int, index: int) -> tuple[Tensor, Tensor, float]:
    """A mixture whose order is open, its lower tone ``(time,)``, and the first order's probability.

    Tones are drawn until each order has a probability of at least :data:`OPEN`.
    """
    rng = np.random.default_rng((seed, index))
    while True:
        frequency = rng.uniform(10 * FREQUENCIES[0], FREQUENCIES[1] / THIRD)
        amplitudes = rng.uniform(*AMPLITUDES, 2).tolist()
        expected = probability(amplitudes)
        if OPEN < expected < 1 - OPEN:
            break
    t = torch.arange(TIME, dtype=torch.float64) / SAMPLE_RATE
    phases = rng.uniform(0, 2 * math.pi, 2).tolist()
    tones = [
        torch.sin(2 * math.pi * f * t + phase)
        for f, phase in zip((frequency, THIRD * frequency), phases, strict=True)
    ]
    parts = [g * a * tone for g, a, tone in zip(GAINS, amplitudes, tones, strict=True)]
    return sum(parts, torch.zeros_like(t)).float(), tones[0], expected


def probability(amplitudes: Sequence[float]) -> float:
    """That the first source is the lower tone, of two tones mixed in this order."""
    std = SIGMA_MIN * math.hypot(*GAINS) * math.sqrt(2 / TIME)
    heard = [gain * amplitude for gain, amplitude in zip(GAINS, amplitudes, strict=True)]
    low, high = AMPLITUDES

    def mass(order: Sequence[float]) -> float:
        return math.prod(
            float(norm.cdf((high * g - c) / std) - norm.cdf((low * g - c) / std))
            for g, c in zip(GAINS, order, strict=True)
        )

    one, other = mass(heard), mass(heard[::-1])
    return one / (one + other)


def share(
    mixture: Tensor, lower: Tensor, priors: dict[str, Prior], seed: int, **settings: float
) -> float:
    """Weight of the draws in which the first source is the lower tone."""
    options: dict[str, float] = settings
    trace = separate(mixture, priors, gains=GAINS, seed=seed, **options).trace  # type: ignore[arg-type]
    level = np.abs(trace["posterior"]["sources"].values @ lower.numpy())  # (chain, draw, source)
    return float(trace["modes"]["weight"].values[level[..., 0] > level[..., 1]].sum())


def agreement(rows: Sequence[Row], name: str) -> Row:
    """How often both orders are in the draws, and their probabilities within a factor of two."""
    got, expected = (np.array([row[key] for row in rows]) for key in (name, "expected"))
    both = (got > 0) & (got < 1)
    with np.errstate(divide="ignore"):
        off = np.maximum(
            np.abs(np.log2(got / expected)), np.abs(np.log2((1 - got) / (1 - expected)))
        )
    return {
        "both": int(both.sum()),
        "within_two": int((off < 1).sum()),
        "mean_error": float(np.abs(got - expected).mean()),
    }


if __name__ == "__main__":
    run(main)
