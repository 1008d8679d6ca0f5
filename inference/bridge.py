r"""Ratio of the masses of two modes of a density, from draws of each.

A shift by the difference of their centres, :math:`T(x) = x + \mu_B - \mu_A`, carries one mode onto
the other and keeps the volume. With draws of each mode, the ratio of masses :math:`r = Z_B / Z_A`
solves

.. math:: \sum_{x \sim A} \frac{1}{1 + r \, p(x) / p(T x)}
          = \sum_{y \sim B} \frac{1}{1 + p(y) / (r \, p(T^{-1} y))}

the bridge of least variance (Bennett 1976, J. Comput. Phys. 22) between modes that were warped onto
each other (Meng & Schilling 2002, J. Comput. Graph. Stat. 11). Densities of single draws scatter by
tens of nats, which a draw and its shift have in common.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BRACKET = 50.0  # nats beyond the extreme work, where the root must lie
HALVINGS = 60


class MassRatio(NamedTuple):
    """The log ratio of two masses, in nats, and its standard error."""

    log_ratio: float
    error: float


def mass_ratio(
    log_density: Callable[[Tensor], Tensor], one: Tensor, other: Tensor, shift: Tensor
) -> MassRatio:
    r"""Log ratio of the mass of the mode of ``other`` to that of ``one``, see the module.

    The error is to first order, and as if draws were independent. It is infinite where no draw of
    one mode, shifted, comes near the other.

    Args:
        log_density: of positions ``(draw, ...)``, in nats, up to a constant: ``(draw,)``.
        one: draws of the first mode, ``(draw, ...)``.
        other: draws of the second mode, ``(draw, ...)``.
        shift: from the centre of the first mode to that of the second. The error grows with what it
            misses, so means of noisy draws in many dimensions will not do.

    >>> generator = torch.Generator().manual_seed(0)
    >>> draws = torch.randn(2, 500, 1, generator=generator)
    >>> def log_density(x):  # of two normal laws, the second of three times the mass
    ...     parts = torch.stack([-(x[:, 0] ** 2) / 2, math.log(3) - (x[:, 0] - 9) ** 2 / 2])
    ...     return parts.logsumexp(0)
    >>> found = mass_ratio(log_density, draws[0], draws[1] + 9, torch.tensor([9.0]))
    >>> round(math.exp(found.log_ratio), 1), found.error < 0.1
    (3.0, True)
    """
    least = min(len(one), len(other))
    if least < 2:
        return MassRatio(math.nan, math.inf)
    one, other = one[:least], other[:least]
    there = (log_density(one + shift) - log_density(one)).double()
    back = (log_density(other - shift) - log_density(other)).double()
    if not bool(there.isfinite().all() and back.isfinite().all()):
        return MassRatio(math.nan, math.inf)
    work = torch.cat([there, -back])
    low, high = float(work.min()) - BRACKET, float(work.max()) + BRACKET
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = float(((there - middle).sigmoid().sum() - (back + middle).sigmoid().sum()).sign())
        low, high = (middle, high) if above > 0 else (low, middle)
    log_ratio = (low + high) / 2
    parts = ((there - log_ratio).sigmoid(), (back + log_ratio).sigmoid())
    variance = sum(float(part.var() / part.mean() ** 2) / len(part) for part in parts)
    return MassRatio(log_ratio, math.sqrt(variance) if math.isfinite(variance) else math.inf)
