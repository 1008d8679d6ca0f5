r"""Sequential Monte Carlo along a path of densities: weighted draws, and the evidence.

A population of particles starts as draws from a density of known normalisation, t = 0, and ends
as weighted draws from the target, t = 1. From t to t' the weight of a particle is multiplied by
:math:`w = \gamma_{t'}(x) / \gamma_t(x)`, and

.. math:: \log \frac{Z_1}{Z_0} = \sum_t \log \sum_i W_i w_i

is the log evidence, unbiased before the logarithm where the levels are fixed; W are the weights
before the step, normalised. The next level is the farthest at which the conditional effective
sample size

.. math:: N \, \frac{(\sum_i W_i w_i)^2}{\sum_i W_i w_i^2}

is still a given share of the N particles (Zhou, Johansen & Aston 2016, arXiv 1303.3123). Where the
weights have become uneven, ESS below N / 2, particles are resampled systematically; then steps of a
Markov chain with invariant law :math:`\gamma_{t'}` follow. Modes that lose weight lose their
particles, which a single chain cannot do. Del Moral, Doucet & Jasra 2006 (JRSS B 68, 3).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.state import Population

BISECTIONS = 40
STEP_ERROR = 0.1  # relative, of the distance to the farthest level
RESAMPLE_SHARE = 0.5


def smc(
    position: Tensor,
    log_density: Callable[[Tensor, float], Tensor],
    move: Callable[[Tensor, float], Tensor],
    share: float = 0.9,
    generator: torch.Generator | None = None,
) -> Population:
    """Weighted draws at t = 1 from exact draws at t = 0.

    Args:
        position: exact draws at t = 0, ``(particle, ...)``.
        log_density: of particles at t, ``(particle,)`` in nats, up to a constant of its own.
        move: particles after some steps of a Markov chain with the law at t.
        share: of the particles, the conditional effective sample size that a step keeps.
        generator: source of randomness of resampling; torch's global one where None.

    Raises:
        ValueError: a share outside (0, 1), fewer than two particles, a density that is not finite
            at the start, or a path along which no step keeps the share.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}, expected above 0, below 1")
    count = len(position)
    if count < 2:
        raise ValueError(f"position: got {count} particles, expected at least 2")
    log_weight = torch.full((count,), -math.log(count), dtype=torch.float64, device=position.device)
    levels, log_evidence = [0.0], 0.0
    while levels[-1] < 1:
        level, gain = _next_level(position, log_density, log_weight, levels, share)
        levels.append(level)
        log_weight = log_weight + gain
        step = log_weight.logsumexp(0)
        log_evidence += float(step)
        log_weight = log_weight - step
        if effective_sample_size(log_weight) < RESAMPLE_SHARE * count:
            position = position[systematic(log_weight, generator)]
            log_weight = torch.full_like(log_weight, -math.log(count))
        position = move(position, level)
    return Population(position, log_weight, log_evidence, tuple(levels))


def effective_sample_size(log_weight: Tensor) -> float:
    """Kish's 1 / sum of squared weights, from normalised log weights ``(particle,)``."""
    return float((-(2 * log_weight).logsumexp(0)).exp())


def systematic(log_weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Indices ``(particle,)`` of systematic resampling, each N times its weight often, within one.

    Kitagawa 1996 (JCGS 5, 1).
    """
    count = len(log_weight)
    first = torch.rand((), generator=generator, dtype=torch.float64, device=log_weight.device)
    points = (first + torch.arange(count, device=log_weight.device)) / count
    return torch.searchsorted(log_weight.exp().cumsum(0), points).clamp(max=count - 1)


def _next_level(
    position: Tensor,
    log_density: Callable[[Tensor, float], Tensor],
    log_weight: Tensor,
    levels: list[float],
    share: float,
) -> tuple[float, Tensor]:
    """About the farthest level that keeps the share, and the log weights gained on the way.

    The step is at most twice the last one.
    """
    level = levels[-1]
    here = log_density(position, level).double()
    if not bool(here.isfinite().all()):
        raise ValueError(
            f"log_density: got one that is not finite at t = {level:g}, expected finite ones"
        )
    low, high, best = level, min(1.0, 3 * level - 2 * levels[-2]) if levels[1:] else 1.0, None
    target = high
    for _ in range(BISECTIONS):
        gain = (log_density(position, target).double() - here).nan_to_num(nan=-math.inf)
        total, square = (log_weight + gain).logsumexp(0), (log_weight + 2 * gain).logsumexp(0)
        if float((2 * total - square).exp().nan_to_num(nan=0.0)) >= share:
            low, best = target, gain
        else:
            high = target
        if best is not None and high - low <= STEP_ERROR * (low - level):
            return low, best
        target = (low + high) / 2
    raise ValueError(
        f"log_density: got a path of which no step from t = {level:g} keeps a share of {share:g} "
        "of the particles; expected one that changes smoothly with t"
    )
