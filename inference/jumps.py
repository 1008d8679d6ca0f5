r"""Give the instant between two jumps to the other source: a Metropolis move.

Where two sources jump within an audio sample of each other, the mixture leaves open whose jump was
first. The two orders differ in one sample by a whole jump, which no gradient leads across once it
is many times the noise: a chain that froze in the wrong order stays there. At such an instant t
source i is proposed a value near that of a neighbour, and source j pays for it,

.. math:: x_i'(t) \sim \tfrac{1}{2} \mathcal{N}\bigl(x_i(t - 1), \sigma^2\bigr)
          + \tfrac{1}{2} \mathcal{N}\bigl(x_i(t + 1), \sigma^2\bigr), \qquad
          a_j x_j'(t) = a_j x_j(t) - a_i \bigl(x_i'(t) - x_i(t)\bigr)

so that the mixture stays as it is. The triple (i, j, t) is drawn among those where both sources
change by more than :math:`4 \sigma` from t - 1 to t + 1, n(x) of them. Neither these changes nor
the proposal q depend on :math:`x_i(t)` and :math:`x_j(t)`, so the move goes back as it came, and is
taken with probability

.. math:: \min\left\{1, \frac{p_\sigma(x' \mid m)}{p_\sigma(x \mid m)}
          \frac{n(x)}{n(x')} \frac{q(x_i(t))}{q(x_i'(t))} \right\}

which leaves the posterior invariant. Sources that do not jump have no such instant, and cost
nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.langevin import Evaluation
from pyro_sep.posterior import AnnealedPosterior

JUMP = 4.0  # of sigma: noise alone changes by sigma to 1.4 sigma


class Proposal(NamedTuple):
    """Some lanes after the move.

    Attributes:
        lanes: those that have an instant to move, ``(row,)``.
        position: of them, ``(row, source, time)``.
        log_odds: of the proposal back and the one there, ``(row,)``.
    """

    lanes: Tensor
    position: Tensor
    log_odds: Tensor


def instants(position: Tensor, sigma: float) -> Tensor:
    """Where both of two sources jump: ``(lane, source, source, time - 2)``, from the second sample.

    Args:
        position: noisy sources ``(lane, source, time)``.
        sigma: their noise level.
    """
    jumps = (position[..., 2:] - position[..., :-2]).abs() > JUMP * sigma
    pairs = jumps[:, :, None] & jumps[:, None]
    return pairs & ~torch.eye(position.shape[1], dtype=torch.bool, device=pairs.device)[..., None]


def propose(
    position: Tensor, weights: Tensor, sigma: float, generator: torch.Generator | None = None
) -> Proposal:
    """The move of a random instant in every lane that has one.

    Args:
        position: noisy sources ``(lane, source, time)``.
        weights: gains a_k, ``(source, 1)`` or ``(lane, source, 1)``.
        sigma: noise level.
        generator: source of randomness; torch's global one where None.
    """
    found = instants(position, sigma).flatten(1)
    lanes = found.any(1).nonzero()[:, 0]
    gains = weights.expand(*position.shape[:2], 1)[lanes, :, 0]
    position, found = position[lanes], found[lanes]
    if not len(lanes):
        return Proposal(lanes, position, position.new_empty(0))
    sources, time = position.shape[1:]
    chosen = torch.multinomial(found.to(position), 1, generator=generator)[:, 0]
    pair, t = chosen // (time - 2), chosen % (time - 2) + 1
    i, j = pair // sources, pair % sources
    row = torch.arange(len(lanes), device=position.device)
    neighbours = torch.stack([position[row, i, t - 1], position[row, i, t + 1]])
    side = torch.randint(2, (len(lanes),), generator=generator, device=position.device)
    noise = torch.empty_like(neighbours[0]).normal_(generator=generator)
    old, new = position[row, i, t], neighbours[side, row] + sigma * noise
    moved = position.clone()
    moved[row, i, t] = new
    moved[row, j, t] -= gains[row, i] / gains[row, j] * (new - old)

    def log_proposal(value: Tensor) -> Tensor:
        return torch.logsumexp(-(((value - neighbours) / sigma) ** 2) / 2, 0)

    count, after = (mask.flatten(1).sum(1).log() for mask in (found, instants(moved, sigma)))
    return Proposal(lanes, moved, count - after + log_proposal(old) - log_proposal(new))


def move_jumps(
    target: AnnealedPosterior,
    position: Tensor,
    evaluation: Evaluation,
    sigma: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Evaluation, int]:
    """Try one instant in every lane that has one.

    Args:
        target: posterior of the lanes.
        position: noisy sources ``(lane, source, time)``.
        evaluation: of the target there.
        sigma: noise level.
        generator: source of randomness; torch's global one where None.

    Returns:
        Position and evaluation after the move, and how many lanes were evaluated, twice if taken.
    """
    lanes, moved, log_odds = propose(position, target.mixing.weights(position), sigma, generator)
    if not len(lanes):
        return position, evaluation, 0
    gain = target.take(lanes).log_density(moved, sigma) - evaluation.log_density[lanes]
    uniform = torch.rand(len(lanes), generator=generator, device=position.device)
    taken = uniform.log() < gain + log_odds
    tried, lanes, moved = len(lanes), lanes[taken], moved[taken]
    if not len(lanes):
        return position, evaluation, tried
    new = target.take(lanes).evaluate(moved, sigma)
    parts = zip(evaluation, new, strict=True)
    return (
        position.index_copy(0, lanes, moved),
        Evaluation._make(old.index_copy(0, lanes, part) for old, part in parts),
        tried + len(lanes),
    )
