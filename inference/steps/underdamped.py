r"""Underdamped Langevin dynamics: momentum carries a chain along ridges that diffusion creeps on.

.. math:: dz = v \, dt, \qquad dv = \nabla \log p(z) \, dt - \gamma v \, dt + \sqrt{2 \gamma} \, dW

in the BAOAB splitting: half a kick, half a drift, the exact partial refreshment
:math:`v \to \rho v + \sqrt{1 - \rho^2} \, \epsilon` with persistence :math:`\rho = e^{-\gamma h}`,
half a drift, half a kick. One gradient a step. On a Gaussian target the law of z is exact at any
stable step size h, :math:`h^2 \lambda < 4` for the largest curvature lambda. Leimkuhler & Matthews
2013 (arXiv 1203.5428).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.kernels.sgld import Evaluation


class UnderdampedState(NamedTuple):
    """A chain, or lanes of chains, between two steps."""

    position: Tensor
    velocity: Tensor
    evaluation: Evaluation  # at the position


def init(
    position: Tensor,
    evaluate: Callable[[Tensor], Evaluation],
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> UnderdampedState:
    """A state with a velocity from its stationary law, standard normal."""
    velocity = refresh(torch.zeros_like(position), 0.0, generator, project)
    return UnderdampedState(position, velocity, evaluate(position))


def refresh(
    velocity: Tensor,
    persistence: float,
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A velocity of which a share survives.

    Args:
        velocity: before it.
        persistence: rho in [0, 1), the share.
        generator: source of the noise; torch's global one where None.
        project: of the noise, orthogonally onto the space in which a constrained chain moves.
    """
    noise = torch.empty_like(velocity).normal_(generator=generator)
    if project is not None:
        noise = project(noise)
    return persistence * velocity + math.sqrt(1 - persistence**2) * noise


def choose(taken: Tensor, new: UnderdampedState, old: UnderdampedState) -> UnderdampedState:
    """The new state in the lanes ``(lane,)`` that took it, the old one in the others."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(taken.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return UnderdampedState(
        pick(new.position, old.position),
        pick(new.velocity, old.velocity),
        Evaluation._make(map(pick, new.evaluation, old.evaluation)),
    )


def underdamped_step(
    state: UnderdampedState,
    evaluate: Callable[[Tensor], Evaluation],
    step_size: float,
    persistence: float,
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> UnderdampedState:
    """One BAOAB step.

    Args:
        state: before the step.
        evaluate: log density and gradient at a position.
        step_size: h, in units of the position.
        persistence: rho in [0, 1), the share of the velocity that survives a step.
        generator: source of the noise; torch's global one where None.
        project: see :func:`refresh`.
    """
    velocity = state.velocity + step_size / 2 * state.evaluation.gradient
    position = state.position + step_size / 2 * velocity
    velocity = refresh(velocity, persistence, generator, project)
    position = position + step_size / 2 * velocity
    evaluation = evaluate(position)
    return UnderdampedState(position, velocity + step_size / 2 * evaluation.gradient, evaluation)
