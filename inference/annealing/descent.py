"""Denoise and renoise, level by level: one evaluation each, for many candidates side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import EXCHANGE_EVERY, Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.steps.permutation import draw_assignment

RECENT = 3  # levels, whose mean log density says which candidates are best


class Found(NamedTuple):
    """Clean sources of every lane."""

    target: AnnealedPosterior  # of the lanes
    clean: Tensor  # (lane, source, frame)
    log_density: Tensor  # (lane,) of noisy ones at the last level, nats

    def select(self, lanes: Tensor) -> "Found":
        """Those of some lanes."""
        return Found(self.target.select(lanes), self.clean[lanes], self.log_density[lanes])

    def update(self, lanes: Tensor, other: "Found") -> "Found":
        """With those of another in some lanes."""
        return Found(
            self.target.update(lanes, other.target),
            self.clean.index_copy(0, lanes, other.clean),
            self.log_density.index_copy(0, lanes, other.log_density),
        )


class Given(NamedTuple):
    """Audio that is known already, at some moments of a frame."""

    clean: Tensor  # (lane, source, frame)
    where: Tensor  # (frame,), whether it is known there

    def hold(self, clean: Tensor) -> Tensor:
        """Clean sources with what is known in its place."""
        return torch.where(self.where, self.clean, clean)

    def select(self, lanes: Tensor) -> "Given":
        """That of some lanes."""
        return Given(self.clean[lanes], self.where)


def best_lanes(log_density: Tensor, group: int, count: int = 1) -> Tensor:
    """Lanes of the best of every group, by log density: ``(lane * count / group,)``.

    Args:
        log_density: ``(lane,)``, those of a group side by side.
        group: its size.
        count: how many of it.
    """
    ranked = log_density.nan_to_num(nan=-torch.inf).reshape(-1, group)
    first = torch.arange(len(ranked), device=ranked.device)[:, None] * group
    return (first + ranked.topk(count, dim=1).indices).reshape(-1)


def repeat(target: AnnealedPosterior, count: int) -> AnnealedPosterior:
    """The posterior with every lane ``count`` times, side by side."""
    lanes = torch.arange(len(target.mixture), device=target.mixture.device)
    return target.select(lanes.repeat_interleave(count))


def descend(
    target: AnnealedPosterior,
    position: Tensor,
    sigmas: Sequence[float],
    settings: Annealing,
    evaluator: Evaluator,
    *,
    averaged: int = 1,
    group: int = 1,
    halving: Sequence[tuple[float, int]] = (),
    exchange: bool = False,
    given: "Given | None" = None,
) -> Found:
    """Denoise and renoise from level to level.

    Args:
        target: posterior of the lanes.
        position: noisy sources ``(lane, source, frame)`` at the first level.
        sigmas: levels.
        settings: of the run.
        evaluator: of densities.
        averaged: levels, the last ones, over which clean sources and log density are averaged.
        group: candidates of one mixture, side by side.
        halving: levels, falling, and how many candidates of each go on below them.
        exchange: whether sources exchange what they explain, while it is open who explains what.
        given: audio of candidates that is known already.
    """
    left = list(halving)
    recent: list[Tensor] = []
    clean: list[Tensor] = []
    for i, sigma in enumerate(sigmas):
        while left and sigma < left[0][0]:
            count = left.pop(0)[1]
            if recent and count < group:
                best = best_lanes(torch.stack(recent[-RECENT:]).mean(0), group, count)
                target, position, group, recent = target.select(best), position[best], count, []
                given = given and given.select(best)
        if exchange and sigma >= settings.sigma_freeze and i % EXCHANGE_EVERY == 0:
            cross = evaluator.cross_log_prior(target, position, sigma)
            assignment = draw_assignment(cross, evaluator.generator)
            target, position = target.reassign(position, assignment)
        evaluation = evaluator.evaluate(target, position, sigma)
        if sigma < settings.sigma_freeze:
            noise = sigma <= settings.sigma_detail
            target, evaluation = evaluator.follow(target, position, evaluation, sigma, noise)
        denoised = target.denoise(position, evaluation, sigma)
        if given is not None:
            denoised = given.hold(denoised)
        clean = [*clean, denoised][-averaged:]
        recent.append(evaluation.log_density)
        if i + 1 < len(sigmas):
            position = clean[-1] + sigmas[i + 1] * evaluator.noise(target, position)
    return Found(target, torch.stack(clean).mean(0), torch.stack(recent[-averaged:]).mean(0))
