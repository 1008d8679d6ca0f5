"""Who else might explain the mixture: the candidates of a tournament.

Beside the sources as they are, every exchange of two of them is a candidate; and where it is
decided which are present, every source silenced that is, or woken that is not. All are noised
again to the same level, just as far as what they differ in can still change, so that none is ahead
when they are annealed alike.
"""

from itertools import combinations

import torch
from torch import Tensor

from pyro_sep.inference.settings import Tournament
from pyro_sep.posterior import AnnealedPosterior


def candidates(count: int, flip: bool) -> tuple[list[list[int]], list[list[bool]]]:
    """Orders of ``count`` sources, and which of them are flipped; the first leaves all as it is."""
    identity = list(range(count))
    orders, flips = [identity], [[False] * count]
    for i, j in combinations(identity, 2):
        order = identity.copy()
        order[i], order[j] = j, i
        orders.append(order)
        flips.append(flips[0])
    if flip:
        orders += [identity] * count
        flips += [[i == k for i in identity] for k in identity]
    return orders, flips


def enter(
    target: AnnealedPosterior,
    position: Tensor,
    tournament: Tournament,
    generator: torch.Generator,
) -> tuple[AnnealedPosterior, Tensor, Tensor]:
    """The candidates of every lane, side by side, noised to the first level of the tournament.

    Args:
        target: posterior of the lanes.
        position: ``(lane, source, frame)``, at the last level of the tournament.
        tournament: to be held.
        generator: source of randomness.

    Returns:
        Posterior and position of the candidates, and whether each ``(candidate,)`` is another
        explanation than that of its lane: an exchange of silence for silence is not.
    """
    present, sigma = target.present, tournament.sigmas[-1]
    orders, flips = candidates(len(target.priors), flip=present is not None)
    count, device = len(position), position.device
    lanes = torch.arange(count, device=device).repeat_interleave(len(orders))
    assignment, flipped = (
        torch.tensor(rows, device=device).repeat(count, 1) for rows in (orders, flips)
    )
    target, position = target.take(lanes), position[lanes]
    moved = assignment != torch.arange(len(target.priors), device=device)
    target, position = target.reassign(position, assignment)
    if target.present is not None and present is not None:
        moved = moved & (present[lanes] | target.present)
        target, position = target.flip(position, flipped, sigma, generator)
    changed = (moved | flipped).any(1)
    noise = target.project(torch.empty_like(position).normal_(generator=generator))
    position = position + (tournament.sigmas[0] ** 2 - sigma**2) ** 0.5 * noise
    return target, position, changed
