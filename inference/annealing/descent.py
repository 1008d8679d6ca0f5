"""Denoise and add noise, level by level: one evaluation each, for a batch of candidates."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import SWAP_EVERY
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.steps.gains import follow
from pyro_sep.inference.steps.permutation import draw_assignment

RECENT = 3  # levels, whose mean log density ranks candidates
AVERAGED = 2  # last levels of a search, whose mean log density compares what was found


class Found(NamedTuple):
    """Clean sources that a search found, for every element of the batch."""

    target: AnnealedPosterior
    clean: Tensor  # (batch, source, frame)
    log_density: Tensor  # (batch,) of noisy ones at the last level, nats

    def select(self, indices: Tensor) -> "Found":
        """The subset of the batch."""
        return Found(self.target.select(indices), self.clean[indices], self.log_density[indices])

    def update(self, indices: Tensor, other: "Found") -> "Found":
        """All of these, with those of another in a subset of the batch."""
        return Found(
            self.target.update(indices, other.target),
            self.clean.index_copy(0, indices, other.clean),
            self.log_density.index_copy(0, indices, other.log_density),
        )


def best_of_groups(log_density: Tensor, group: int, count: int = 1) -> Tensor:
    """Indices of the ``count`` best by log density ``(batch,)`` of every ``group`` side by side."""
    ranked = log_density.nan_to_num(nan=-torch.inf).reshape(-1, group)
    first = torch.arange(len(ranked), device=ranked.device)[:, None] * group
    return (first + ranked.topk(count, dim=1).indices).reshape(-1)


def repeat(target: AnnealedPosterior, count: int) -> AnnealedPosterior:
    """The posterior with every element of the batch ``count`` times, side by side."""
    indices = torch.arange(len(target.mixture), device=target.mixture.device)
    return target.select(indices.repeat_interleave(count))


def descend(
    target: AnnealedPosterior,
    position: Tensor,
    sigmas: Sequence[float],
    evaluator: Evaluator,
    *,
    averaged: int = 1,
    group: int = 1,
    halving: Sequence[tuple[float, int]] = (),
    swap: bool = False,
    given: Tensor | None = None,
    traced: Tensor | None = None,
) -> Found:
    """Denoise and add noise from level to level.

    Args:
        target: posterior of the candidates.
        position: noisy sources ``(batch, source, frame)`` at the first level.
        sigmas: noise levels.
        evaluator: of densities.
        averaged: last levels, over which clean sources and log density are averaged.
        group: candidates of one mixture, side by side.
        halving: levels, falling, and how many candidates of each group continue below them.
        swap: whether sources swap what they explain above ``sigma_freeze``.
        given: clean sources that are held fixed ``(batch, source, frame)``, NaN where they are not.
        traced: to be filled with the log prior of every source at every level, in nats,
            ``(batch, level, source)``; elements that are dropped keep their values below.
    """
    settings, left = evaluator.settings, list(halving)
    recent: list[Tensor] = []
    clean: list[Tensor] = []
    rows = torch.arange(len(position), device=position.device)  # of the batch, those that go on
    for i, sigma in enumerate(sigmas):
        while left and sigma < left[0][0]:
            count = left.pop(0)[1]
            if recent and count < group:
                best = best_of_groups(torch.stack(recent[-RECENT:]).mean(0), group, count)
                target, position, group, recent = target.select(best), position[best], count, []
                rows = rows[best]
                given = None if given is None else given[best]
        if swap and sigma >= settings.sigma_freeze and i % SWAP_EVERY == 0:
            cross = evaluator.cross_log_prior(target, position, sigma)
            assignment = draw_assignment(cross, evaluator.generator)
            target, position = target.reassign(position, assignment)
        evaluation = evaluator.evaluate(target, position, sigma)
        if traced is not None:
            traced[rows, i] = evaluation.parts
        if sigma < settings.sigma_freeze:
            noise = sigma <= settings.sigma_detail
            target, evaluation = follow(
                target, position, evaluation, sigma, evaluator.generator, noise
            )
        denoised = target.denoise(position, evaluation, sigma)
        if given is not None:
            denoised = torch.where(given.isnan(), denoised, given)
        clean = [*clean, denoised][-averaged:]
        recent.append(evaluation.log_density)
        if i + 1 < len(sigmas):
            position = clean[-1] + sigmas[i + 1] * evaluator.noise(target, position)
    return Found(target, torch.stack(clean).mean(0), torch.stack(recent[-averaged:]).mean(0))
