"""States of Markov chains, and what a step reports: every step is ``(state) -> (state, info)``.

States are named tuples of tensors, which no step changes in place. A batch is all chains that move
side by side, each by itself: mixtures, chains and candidates flattened into one axis.
"""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Params = dict[str, Tensor]
State = TypeVar("State")


class Evaluation(NamedTuple):
    """A log density and its gradient at a position."""

    log_density: Tensor  # (batch,), nats
    gradient: Tensor  # (batch, *event)
    parts: Tensor  # (batch, part), terms of the log density that are recorded


class UnderdampedState(NamedTuple):
    """Position and velocity of a batch of chains, and the evaluation at the position.

    >>> x = torch.zeros(3, 2)
    >>> state = UnderdampedState(x, x, Evaluation(x[:, 0], -x, x[:, :1]))
    """

    position: Tensor  # (batch, *event)
    velocity: Tensor  # (batch, *event)
    evaluation: Evaluation


class LangevinState(NamedTuple):
    """Sites of a Pyro model in unconstrained space, and the potential, minus the log density.

    >>> x = torch.ones(3)
    >>> state = LangevinState({"x": x}, x.square() / 2, {"x": x})
    """

    params: Params  # by site, (*batch, *event)
    potential: Tensor  # (*batch,), nats
    gradient: Params  # of the potential, by site, (*batch, *event)


class PreconditionedState(NamedTuple):
    """A :class:`LangevinState` with the running average of its squared gradients.

    >>> x = torch.ones(3)
    >>> state = PreconditionedState({"x": x}, x.square() / 2, {"x": x}, square={"x": x})
    """

    params: Params
    potential: Tensor
    gradient: Params
    square: Params  # V, by site, (*batch, *event)


class StepInfo(NamedTuple):
    """What a step did, for every chain of the batch."""

    acceptance_rate: Tensor  # (*batch,), probability with which the proposal was accepted
    diverging: Tensor  # (*batch,), whether the density or gradient was not finite at the proposal
    energy: Tensor  # (*batch,), nats after the step: the potential, plus |v|^2 / 2 of a momentum v


class Population(NamedTuple):
    """Weighted draws from the target of a Sequential Monte Carlo run."""

    position: Tensor  # (particle, ...)
    log_weight: Tensor  # (particle,), their exponentials add up to 1
    log_evidence: float  # log Z_1 - log Z_0, in nats
    levels: tuple[float, ...]  # t, from 0 to 1


def isfinite(log_density: Tensor, *gradients: Tensor) -> Tensor:
    """Where a log density ``(*batch,)`` and all of its gradients are finite, ``(*batch,)``."""
    finite = log_density.isfinite()
    for gradient in gradients:
        finite = finite & gradient.isfinite().reshape(*finite.shape, -1).all(-1)
    return finite


def choose(accepted: Tensor, new: State, old: State) -> State:
    """The new state where the batch accepted it ``(*batch,)``, the old one elsewhere."""

    def pick(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            event = (1,) * (a.ndim - accepted.ndim)
            return torch.where(accepted.reshape(accepted.shape + event), a, b)
        if isinstance(a, dict):
            return {name: pick(a[name], b[name]) for name in a}
        return type(a)._make(map(pick, a, b))

    chosen: State = pick(new, old)
    return chosen
