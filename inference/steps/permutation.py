r"""Swap what two sources explain: a Gibbs draw of which contribution each source takes.

Langevin dynamics cannot carry a tone from one source to another once the noise is low. The swap
:math:`x_i \to a_j x_j / a_i, \; x_j \to a_i x_i / a_j` leaves the mixture and the volume as they
are, so the posterior odds of the swap are those of the priors alone, and choosing between the two
by these odds leaves the posterior invariant (heat bath).
"""

from itertools import combinations

import torch
from torch import Tensor


def draw_assignment(
    cross_log_prior: Tensor, generator: torch.Generator | None = None, sweeps: int = 2
) -> Tensor:
    """Index of the contribution that each source takes, ``(batch, source)``.

    Args:
        cross_log_prior: log density of every contribution under every prior ``(batch, prior,
            contribution)``.
        generator: source of randomness; torch's global one where None.
        sweeps: passes over all pairs of sources.
    """
    batch, count, _ = cross_log_prior.shape
    device = cross_log_prior.device
    assignment = torch.arange(count, device=device).repeat(batch, 1)
    row = torch.arange(batch, device=device)
    for _ in range(sweeps):
        for i, j in combinations(range(count), 2):
            own, other = assignment[:, i], assignment[:, j]
            log_odds = (
                cross_log_prior[row, i, other]
                + cross_log_prior[row, j, own]
                - cross_log_prior[row, i, own]
                - cross_log_prior[row, j, other]
            )
            uniform = torch.rand(batch, generator=generator, device=device)
            swapped = assignment.clone()
            swapped[:, i], swapped[:, j] = other, own
            accepted = uniform < torch.sigmoid(log_odds)
            assignment = torch.where(accepted[:, None], swapped, assignment)
    return assignment


def reassign(sources: Tensor, assignment: Tensor, gains: Tensor) -> Tensor:
    """Sources ``(batch, source, time)`` after the swaps, with known gains ``(source, 1)``.

    Velocities are independent of the position, and stay.
    """
    contributions = sources * gains
    return contributions.gather(1, assignment[..., None].expand_as(contributions)) / gains
