"""Sources in each other's place: the candidates that mend a tone in the wrong hands.

Wrong modes are mostly two tones exchanged. Beside the sources as they are, exchanges of two of them
are candidates, those that the priors' cross log densities rank best; and, where it is decided which
sources are present, every source silenced that is, or woken that is not. All are noised again to
the same level and go down alike; the best by log density goes on, into another round where it is
not the sources as they are.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found, best_lanes, descend
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import SCREENED, Annealing, Round


class Candidates(NamedTuple):
    """What to try in every lane, the sources as they are first."""

    assignment: Tensor  # (lane, candidate, source), see draw_assignment
    flipped: Tensor  # (lane, candidate, source), whether presence changes


def rank(found: Found, sigma: float, evaluator: Evaluator) -> Candidates:
    """Exchanges that the priors rank best, and all changes of a presence that is decided.

    Args:
        found: clean sources.
        sigma: level at which densities are compared.
        evaluator: of densities.
    """
    target, device = found.target, found.clean.device
    lanes, count = found.clean.shape[:2]
    pairs = torch.tensor([*combinations(range(count), 2)], device=device, dtype=torch.long).reshape(
        -1, 2
    )
    noisy = found.clean + sigma * evaluator.noise(target, found.clean)
    cross = evaluator.cross_log_prior(target, noisy, sigma)
    i, j = pairs.unbind(1)
    gain = cross[:, i, j] + cross[:, j, i] - cross[:, i, i] - cross[:, j, j]
    chosen = pairs[gain.topk(min(SCREENED, len(pairs)), 1).indices]  # (lane, exchange, 2)
    same = torch.arange(count, device=device).expand(lanes, 1, count)
    swapped = same.expand(lanes, chosen.shape[1], count)
    swapped = swapped.scatter(2, chosen, chosen.flip(2))
    flips = torch.eye(count if target.present is not None else 0, count, device=device) > 0
    kept = same.expand(lanes, len(flips), count)
    assignment = torch.cat([same, swapped, kept], 1)
    flipped = torch.zeros_like(assignment, dtype=torch.bool)
    flipped[:, assignment.shape[1] - len(flips) :] = flips
    return Candidates(assignment, flipped)


def swap(
    found: Found, held: Round, settings: Annealing, evaluator: Evaluator
) -> tuple[Found, Tensor]:
    """One round in every lane: what is best, and whether it is another explanation ``(lane,)``."""
    tried = rank(found, held.sigmas[-1], evaluator)
    group, device = tried.assignment.shape[1], found.clean.device
    lanes = torch.arange(len(found.clean), device=device).repeat_interleave(group)
    assignment, flipped = tried.assignment.flatten(0, 1), tried.flipped.flatten(0, 1)
    target, clean = found.target.select(lanes), found.clean[lanes]
    moved = assignment != torch.arange(clean.shape[1], device=device)
    before = target.present
    target, clean = target.reassign(clean, assignment)
    if target.present is not None and before is not None:
        moved = moved & (before | target.present)  # silence for silence is no change
        target, clean = target.flip(clean, flipped)
    changed = (moved | flipped).any(1)
    position = clean + held.sigmas[0] * evaluator.noise(target, clean)
    result = descend(target, position, held.sigmas, settings, evaluator, averaged=held.averaged)
    best = best_lanes(result.log_density, group)
    return result.select(best), changed[best]


def mend(found: Found, held: Round, settings: Annealing, evaluator: Evaluator) -> Found:
    """Rounds, the first in all lanes, others where the last one has changed something."""
    open_lanes = torch.arange(len(found.clean), device=found.clean.device)
    for _ in range(held.most):
        if not len(open_lanes):
            break
        better, changed = swap(found.select(open_lanes), held, settings, evaluator)
        found = found.update(open_lanes, better)
        open_lanes = open_lanes[changed]
    return found
