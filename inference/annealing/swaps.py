"""Swap search: candidates in which two sources are swapped, or another one is present.

Wrong modes are mostly tones that were assigned to the wrong one of two sources. Beside the sources
as they are, the candidates are swaps of two of them, those that the priors' cross log densities
rank best; and, where presence is decided, each source silenced that is present, or present that is
silent. All are noised to the same level and denoised alike; the best by log density is kept, and
searched in another round unless it is the sources as they are.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import AVERAGED, Found, best_of_groups, descend
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import SCREENED, Round


class Candidates(NamedTuple):
    """What to try for every element of the batch, the sources as they are first."""

    assignment: Tensor  # (batch, candidate, source), see draw_assignment
    flipped: Tensor  # (batch, candidate, source), whether presence changes


def rank(found: Found, sigma: float, evaluator: Evaluator) -> Candidates:
    """Swaps that the priors at sigma rank best, and all changes of a presence that is decided."""
    target, device = found.target, found.clean.device
    batch, count = found.clean.shape[:2]
    pairs = torch.tensor([*combinations(range(count), 2)], device=device, dtype=torch.long)
    pairs = pairs.reshape(-1, 2)
    noisy = found.clean + sigma * evaluator.noise(target, found.clean)
    cross = evaluator.cross_log_prior(target, noisy, sigma)
    i, j = pairs.unbind(1)
    gain = cross[:, i, j] + cross[:, j, i] - cross[:, i, i] - cross[:, j, j]
    chosen = pairs[gain.topk(min(SCREENED, len(pairs)), 1).indices]  # (batch, swap, 2)
    same = torch.arange(count, device=device).expand(batch, 1, count)
    swapped = same.expand(batch, chosen.shape[1], count)
    swapped = swapped.scatter(2, chosen, chosen.flip(2))
    flips = torch.eye(count if target.present is not None else 0, count, device=device) > 0
    kept = same.expand(batch, len(flips), count)
    assignment = torch.cat([same, swapped, kept], 1)
    flipped = torch.zeros_like(assignment, dtype=torch.bool)
    flipped[:, assignment.shape[1] - len(flips) :] = flips
    return Candidates(assignment, flipped)


def swap_round(found: Found, held: Round, evaluator: Evaluator) -> tuple[Found, Tensor]:
    """The best candidates after one round, and whether they are other explanations ``(batch,)``."""
    tried = rank(found, held.sigmas[-1], evaluator)
    group, device = tried.assignment.shape[1], found.clean.device
    indices = torch.arange(len(found.clean), device=device).repeat_interleave(group)
    assignment, flipped = tried.assignment.flatten(0, 1), tried.flipped.flatten(0, 1)
    target, clean = found.target.select(indices), found.clean[indices]
    moved = assignment != torch.arange(clean.shape[1], device=device)
    before = target.present
    target, clean = target.reassign(clean, assignment)
    if target.present is not None and before is not None:
        moved = moved & (before | target.present)  # a swap of two silent sources changes nothing
        target, clean = target.flip(clean, flipped)
    changed = (moved | flipped).any(1)
    position = clean + held.sigmas[0] * evaluator.noise(target, clean)
    result = descend(target, position, held.sigmas, evaluator, averaged=AVERAGED)
    best = best_of_groups(result.log_density, group)
    return result.select(best), changed[best]


def swap_search(found: Found, held: Round, evaluator: Evaluator) -> Found:
    """What is found after several rounds: after the first only where the last changed something."""
    indices = torch.arange(len(found.clean), device=found.clean.device)
    for _ in range(held.most):
        if not len(indices):
            break
        better, changed = swap_round(found.select(indices), held, evaluator)
        found = found.update(indices, better)
        indices = indices[changed]
    return found
