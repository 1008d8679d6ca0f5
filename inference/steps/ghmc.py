r"""Generalised Hamiltonian Monte Carlo: underdamped Langevin dynamics with a Metropolis test.

The velocity is refreshed in part, :math:`v \to \rho v + \sqrt{1 - \rho^2} \, \epsilon`, then one
leapfrog step of size h leads from :math:`(z, v)` to :math:`(z', v')`, which is accepted with
probability

.. math:: \min\left(1, e^{H(z, v) - H(z', v')}\right), \qquad H(z, v) = -\log p(z) + \|v\|^2 / 2

Where it is rejected the velocity is reversed. With persistence rho = 0 this is MALA of step size
:math:`h^2 / 2`. Horowitz 1991, A generalized guided Monte Carlo algorithm (Phys. Lett. B 268).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.state import Evaluation, StepInfo, UnderdampedState, choose, isfinite
from pyro_sep.inference.steps.underdamped import energy, refresh


def adjusted_step(
    state: UnderdampedState,
    evaluate: Callable[[Tensor], Evaluation],
    step_size: float,
    persistence: float,
    generator: torch.Generator | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[UnderdampedState, StepInfo]:
    """One Metropolis-adjusted step of underdamped Langevin dynamics (generalised HMC).

    It takes one gradient. Every chain of the batch accepts or rejects its own proposal, so the
    density is sampled exactly; where a proposal is rejected the velocity is reversed. Arguments are
    those of :func:`~pyro_sep.inference.underdamped_step`.

    >>> from pyro_sep.inference.steps.underdamped import init
    >>> def evaluate(x):
    ...     return Evaluation(-x.square().sum(1) / 2, -x, x)
    >>> state, info = adjusted_step(init(torch.zeros(3, 2), evaluate), evaluate, 0.1, 0.9)
    >>> bool((info.acceptance_rate > 0.9).all())
    True
    """
    velocity = refresh(state.velocity, persistence, generator, project)
    half = velocity + step_size / 2 * state.evaluation.gradient
    position = state.position + step_size * half
    evaluation = evaluate(position)
    proposed = UnderdampedState(position, half + step_size / 2 * evaluation.gradient, evaluation)
    rejected = UnderdampedState(state.position, -velocity, state.evaluation)
    before, after = energy(rejected), energy(proposed)
    acceptance_rate = (before - after).nan_to_num(nan=-math.inf).exp().clamp(max=1)
    accepted = torch.empty_like(acceptance_rate).uniform_(generator=generator) < acceptance_rate
    info = StepInfo(
        acceptance_rate, ~isfinite(*evaluation[:2]), torch.where(accepted, after, before)
    )
    return choose(accepted, proposed, rejected), info
