"""Blocks of draws, what records them, and the statistics of steps.

Draws leave a sampler in blocks, so that memory need not hold them all. A block is some draws of all
chains of all mixtures.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_sep.inference.state import UnderdampedState


class Statistics(NamedTuple):
    """Statistics of every chain at every step or draw."""

    lp: Tensor  # (mixture, chain, draw), log posterior of the noisy sources, nats
    log_prior: Tensor  # (mixture, chain, draw, source), nats
    grad_norm: Tensor  # (mixture, chain, draw)
    acceptance_rate: Tensor  # (mixture, chain, draw), 1 where steps are not adjusted
    noise_level: Tensor  # (mixture, chain, draw), sigma
    step_size: Tensor  # (mixture, chain, draw)
    energy: Tensor  # (mixture, chain, draw), |v|^2 / 2 - lp, v the velocity, nats


class Draws(NamedTuple):
    """A block of posterior draws."""

    sources: Tensor  # (mixture, chain, draw, source, frame), clean
    means: Tensor  # (mixture, chain, draw, source, frame), expected clean sources given noisy ones
    noisy: Tensor  # (mixture, chain, draw, source, frame), at the last noise level
    statistics: Statistics
    mixing: dict[str, Tensor]  # unknown gains and noise by name, (mixture, chain, draw, ...)
    assignment: Tensor  # (mixture, chain, draw, source), which source explained, when the draws
    #                     began, what each explains


class Recorder(Protocol):
    """Records blocks of draws."""

    def add(self, draws: Draws, first: int) -> None:
        """Record a block; ``first`` is the number of its first draw, from 0."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the draws so far: tensors, numbers, lists of them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""


class MemoryRecorder:
    """A recorder that keeps all draws in memory."""

    def __init__(self) -> None:
        self.blocks: list[Draws] = []

    def add(self, draws: Draws, first: int) -> None:
        """Record a block."""
        self.blocks.append(draws)

    @property
    def draws(self) -> Draws:
        """All draws as one block."""
        *audio, statistics, mixing, assignment = zip(*self.blocks, strict=True)
        sources, means, noisy = (torch.cat(blocks, 2) for blocks in audio)
        parts = (torch.cat(part, 2) for part in zip(*statistics, strict=True))
        latents = {name: torch.cat([block[name] for block in mixing], 2) for name in mixing[0]}
        orders = torch.cat(assignment, 2)
        return Draws(sources, means, noisy, Statistics._make(parts), latents, orders)

    def state(self) -> dict[str, Any]:
        """All blocks."""
        return {"blocks": [[*b[:3], list(b.statistics), *b[4:]] for b in self.blocks]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.blocks = [
            Draws(sources, means, noisy, Statistics._make(parts), mixing, assignment)
            for sources, means, noisy, parts, mixing, assignment in state["blocks"]
        ]


def statistics(
    state: UnderdampedState, acceptance_rate: Tensor, sigma: float, step_size: float
) -> Statistics:
    """Statistics of the whole batch at one step, ``(batch, ...)`` each."""
    log_density = state.evaluation.log_density
    return Statistics(
        log_density,
        state.evaluation.parts,
        state.evaluation.gradient.flatten(1).norm(dim=1),
        acceptance_rate,
        torch.full_like(log_density, sigma),
        torch.full_like(log_density, step_size),
        state.velocity.square().flatten(1).sum(1) / 2 - log_density,
    )


def history_by_chain(history: Sequence[Statistics], mixtures: int, chains: int) -> Statistics:
    """Statistics of every step, see :func:`by_chain`."""
    columns = zip(*history, strict=True)
    return Statistics._make(by_chain(column, mixtures, chains) for column in columns)


def by_chain(values: Sequence[Tensor], mixtures: int, chains: int) -> Tensor:
    """Values ``(batch, ...)`` of every draw as ``(mixture, chain, draw, ...)``."""
    stacked = torch.stack(list(values), 1)
    return stacked.reshape(mixtures, chains, *stacked.shape[1:])
