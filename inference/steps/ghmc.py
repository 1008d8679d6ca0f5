r"""Generalised Hamiltonian Monte Carlo: underdamped Langevin dynamics whose law is exact.

The velocity is refreshed in part, :math:`v \to \rho v + \sqrt{1 - \rho^2} \, \epsilon`, then one
leapfrog step of size h leads from :math:`(z, v)` to :math:`(z', v')`, which is taken with
probability

.. math:: \min\left(1, e^{H(z, v) - H(z', v')}\right), \qquad H(z, v) = -\log p(z) + \|v\|^2 / 2

Where it is refused the velocity turns back. With persistence rho = 0 this is MALA of step size
:math:`h^2 / 2`. Horowitz 1991, A generalized guided Monte Carlo algorithm (Phys. Lett. B 268).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.steps.underdamped import UnderdampedState, choose, refresh


def adjusted_step(
    state: UnderdampedState,
    evaluate: Callable[[Tensor], Evaluation],
    step_size: float,
    persistence: float,
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[UnderdampedState, Tensor]:
    """One step, of one gradient; every lane takes or refuses its own.

    Args:
        state: before the step.
        evaluate: log density and gradient at a position.
        step_size: h, in units of the position.
        persistence: rho in [0, 1), the share of the velocity that survives a step.
        generator: source of noise and decisions; torch's global one where None.
        project: see :func:`~pyro_sep.inference.steps.underdamped.refresh`.

    Returns:
        The state after it, and the probability ``(lane,)`` with which the step was taken.
    """
    velocity = refresh(state.velocity, persistence, generator, project)
    half = velocity + step_size / 2 * state.evaluation.gradient
    position = state.position + step_size * half
    evaluation = evaluate(position)
    proposed = UnderdampedState(position, half + step_size / 2 * evaluation.gradient, evaluation)
    refused = UnderdampedState(state.position, -velocity, state.evaluation)
    log_ratio = _energy(refused) - _energy(proposed)
    acceptance_rate = log_ratio.nan_to_num(nan=-math.inf).exp().clamp(max=1)
    uniform = torch.empty_like(acceptance_rate).uniform_(generator=generator)
    return choose(uniform < acceptance_rate, proposed, refused), acceptance_rate


def _energy(state: UnderdampedState) -> Tensor:
    """H of every lane, in float64: in float32 its differences drown."""
    kinetic = state.velocity.double().square().flatten(1).sum(1) / 2
    return kinetic - state.evaluation.log_density.double()
