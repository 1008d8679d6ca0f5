r"""Underdamped Langevin dynamics: a velocity that persists from step to step.

.. math:: dz = v \, dt, \qquad dv = \nabla \log p(z) \, dt - \gamma v \, dt + \sqrt{2 \gamma} \, dW

in the BAOAB splitting: half a kick, half a drift, the exact partial refreshment
:math:`v \to \rho v + \sqrt{1 - \rho^2} \, \epsilon` with persistence :math:`\rho = e^{-\gamma h}`,
half a drift, half a kick. One gradient a step. On a Gaussian target the law of z is exact at any
stable step size h, :math:`h^2 \lambda < 4` for the largest curvature lambda. Leimkuhler & Matthews
2013 (arXiv 1203.5428).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.state import Evaluation, StepInfo, UnderdampedState, isfinite


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
    """The velocity after a partial refreshment, by noise that is projected first."""
    noise = torch.empty_like(velocity).normal_(generator=generator)
    if project is not None:
        noise = project(noise)
    return persistence * velocity + math.sqrt(1 - persistence**2) * noise


def energy(state: UnderdampedState) -> Tensor:
    """H of every chain ``(batch,)``, in float64: its differences are lost to float32's rounding."""
    kinetic = state.velocity.double().square().flatten(1).sum(1) / 2
    return kinetic - state.evaluation.log_density.double()


def underdamped_step(
    state: UnderdampedState,
    evaluate: Callable[[Tensor], Evaluation],
    step_size: float,
    persistence: float,
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[UnderdampedState, StepInfo]:
    """One step of underdamped Langevin dynamics (the BAOAB splitting), without a Metropolis test.

    Args:
        state: before the step.
        evaluate: log density and gradient at a position.
        step_size: h, in units of the position.
        persistence: rho in [0, 1), see the module's docstring.
        generator: source of the noise; torch's global one where None.
        project: of the noise, orthogonally onto the space in which a constrained chain moves.

    >>> def evaluate(x):
    ...     return Evaluation(-x.square().sum(1) / 2, -x, x)
    >>> state, info = underdamped_step(init(torch.zeros(3, 2), evaluate), evaluate, 0.5, 0.9)
    >>> state.position.shape, info.acceptance_rate
    (torch.Size([3, 2]), tensor([1., 1., 1.]))
    """
    velocity = state.velocity + step_size / 2 * state.evaluation.gradient
    position = state.position + step_size / 2 * velocity
    velocity = refresh(velocity, persistence, generator, project)
    position = position + step_size / 2 * velocity
    evaluation = evaluate(position)
    velocity = velocity + step_size / 2 * evaluation.gradient
    state = UnderdampedState(position, velocity, evaluation)
    finite = isfinite(*evaluation[:2])
    return state, StepInfo(torch.ones_like(evaluation.log_density), ~finite, energy(state))
