r"""Exchange what two sources explain: a Gibbs move over assignments.

Langevin dynamics cannot carry a tone from one source to another once the noise is low. The exchange
:math:`x_i \to a_j x_j / a_i, \; x_j \to a_i x_i / a_j` leaves the mixture and the volume as they
are, so the posterior odds of the exchange are those of the priors alone, and choosing between the
two by these odds leaves the posterior invariant (heat bath).
"""

from itertools import combinations

import torch
from torch import Tensor


def draw_assignment(
    cross_log_prior: Tensor, generator: torch.Generator | None = None, sweeps: int = 2
) -> Tensor:
    """Which share each source takes: ``(lane, source)``, entry i the index of i's new share.

    Args:
        cross_log_prior: ``(lane, prior, share)``, log density of every share under every prior.
        generator: source of randomness; torch's global one where None.
        sweeps: passes over all pairs of sources.
    """
    lanes, count, _ = cross_log_prior.shape
    device = cross_log_prior.device
    assignment = torch.arange(count, device=device).repeat(lanes, 1)
    lane = torch.arange(lanes, device=device)
    for _ in range(sweeps):
        for i, j in combinations(range(count), 2):
            ours, theirs = assignment[:, i], assignment[:, j]
            log_odds = (
                cross_log_prior[lane, i, theirs]
                + cross_log_prior[lane, j, ours]
                - cross_log_prior[lane, i, ours]
                - cross_log_prior[lane, j, theirs]
            )
            uniform = torch.rand(lanes, generator=generator, device=device)
            exchange = uniform < torch.sigmoid(log_odds)
            swapped = assignment.clone()
            swapped[:, i], swapped[:, j] = theirs, ours
            assignment = torch.where(exchange[:, None], swapped, assignment)
    return assignment


def reassign(sources: Tensor, assignment: Tensor, gains: Tensor) -> Tensor:
    """Sources ``(lane, source, time)`` after the exchange.

    Velocities stay: they are independent of the position.

    Args:
        sources: before it.
        assignment: from :func:`draw_assignment`.
        gains: ``(source, 1)``.
    """
    contributions = sources * gains
    return contributions.gather(1, assignment[..., None].expand_as(contributions)) / gains
