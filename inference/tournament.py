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
) -> tuple[AnnealedPosterior, Tensor, int]:
    """The candidates of every lane, side by side, noised to the first level of the tournament.

    Args:
        target: posterior of the lanes.
        position: ``(lane, source, frame)``, at the last level of the tournament.
        tournament: to be held.
        generator: source of randomness.

    Returns:
        Posterior and position of the candidates, and how many there are of a lane.
    """
    decided, sigma = target.present is not None, tournament.sigmas[-1]
    orders, flips = candidates(len(target.priors), flip=decided)
    lanes = torch.arange(len(position), device=position.device).repeat_interleave(len(orders))
    count, target, position = len(position), target.take(lanes), position[lanes]
    assignment = torch.tensor(orders, device=position.device).repeat(count, 1)
    target, position = target.reassign(position, assignment)
    if decided:
        flipped = torch.tensor(flips, device=position.device).repeat(count, 1)
        target, position = target.flip(position, flipped, sigma, generator)
    noise = target.project(torch.empty_like(position).normal_(generator=generator))
    position = position + (tournament.sigmas[0] ** 2 - sigma**2) ** 0.5 * noise
    return target, position, len(orders)
