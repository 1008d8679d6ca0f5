"""What a sampler yields, and where it goes: draws in blocks, so that memory need not hold them all.

A block is some draws of all chains on all mixtures, one after the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_sep.inference.steps.underdamped import UnderdampedState


class Statistics(NamedTuple):
    """Of every chain at every step or draw."""

    lp: Tensor  # (mixture, chain, draw), log posterior of the noisy sources, nats
    log_prior: Tensor  # (mixture, chain, draw, source), nats
    grad_norm: Tensor  # (mixture, chain, draw)
    acceptance_rate: Tensor  # (mixture, chain, draw), 1 where steps are not corrected
    noise_level: Tensor  # (mixture, chain, draw), sigma
    step_size: Tensor  # (mixture, chain, draw)
    energy: Tensor  # (mixture, chain, draw), |v|^2 / 2 - lp, v the velocity, nats


class Draws(NamedTuple):
    """A block of posterior draws."""

    sources: Tensor  # (mixture, chain, draw, source, frame), clean
    means: Tensor  # (mixture, chain, draw, source, frame), expected clean given noisy ones
    noisy: Tensor  # (mixture, chain, draw, source, frame), at the last noise level
    statistics: Statistics
    mixing: dict[str, Tensor]  # of gains and noise what is unknown, (mixture, chain, draw, ...)


class Sink(Protocol):
    """Where draws go."""

    def add(self, draws: Draws, first: int) -> None:
        """Keep a block; ``first`` is the number of its first draw, from 0."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the draws so far: tensors, numbers, lists of them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""


class Collected:
    """A sink that keeps all draws in memory."""

    def __init__(self) -> None:
        self.blocks: list[Draws] = []

    def add(self, draws: Draws, first: int) -> None:
        """Keep a block."""
        self.blocks.append(draws)

    @property
    def draws(self) -> Draws:
        """All of them."""
        sources, means, noisy, statistics, mixing = zip(*self.blocks, strict=True)
        clean, expected = torch.cat(sources, 2), torch.cat(means, 2)
        parts = (torch.cat(part, 2) for part in zip(*statistics, strict=True))
        unknown = {name: torch.cat([block[name] for block in mixing], 2) for name in mixing[0]}
        return Draws(clean, expected, torch.cat(noisy, 2), Statistics._make(parts), unknown)

    def state(self) -> dict[str, Any]:
        """All blocks."""
        return {"blocks": [[*b[:3], list(b.statistics), b.mixing] for b in self.blocks]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.blocks = [
            Draws(clean, means, noisy, Statistics._make(parts), mixing)
            for clean, means, noisy, parts, mixing in state["blocks"]
        ]


class History:
    """Statistics of every lane at every step."""

    def __init__(self) -> None:
        self.steps: list[Statistics] = []

    def add(
        self, state: UnderdampedState, acceptance_rate: Tensor, sigma: float, step_size: float
    ) -> None:
        """Note a step."""
        log_density = state.evaluation.log_density
        self.steps.append(
            Statistics(
                log_density,
                state.evaluation.parts,
                state.evaluation.gradient.flatten(1).norm(dim=1),
                acceptance_rate,
                torch.full_like(log_density, sigma),
                torch.full_like(log_density, step_size),
                state.velocity.square().flatten(1).sum(1) / 2 - log_density,
            )
        )

    def select(self, lanes: Tensor) -> None:
        """Go on with some lanes."""
        self.steps = [Statistics._make(part[lanes] for part in step) for step in self.steps]

    def by_chain(self, mixtures: int, chains: int) -> Statistics:
        """All steps, see :func:`by_chain`."""
        return Statistics._make(
            by_chain(parts, mixtures, chains) for parts in zip(*self.steps, strict=True)
        )

    def state(self) -> list[Tensor]:
        """All steps, ``(step, lane, ...)`` each."""
        return [torch.stack(parts) for parts in zip(*self.steps, strict=True)]

    def restore(self, state: list[Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.steps = [Statistics._make(step) for step in zip(*state, strict=True)]


def by_chain(values: Sequence[Tensor], mixtures: int, chains: int) -> Tensor:
    """Values of all lanes, draw by draw, as ``(mixture, chain, draw, ...)``."""
    stacked = torch.stack(list(values), 1)
    return stacked.reshape(mixtures, chains, *stacked.shape[1:])
