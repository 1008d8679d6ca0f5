r"""Metropolis-adjusted Langevin algorithm: a Langevin step as a proposal, so the law is exact.

From x, a Langevin step of size eta proposes y with density q(x, y), the normal of mean :math:`x +
\eta \nabla \log \pi(x)` and variance :math:`2 \eta`, which is accepted with probability

.. math:: a(x, y) = \min\left(1, \frac{\pi(y) \, q(y, x)}{\pi(x) \, q(x, y)}\right)

Roberts & Tweedie 1996, Exponential convergence of Langevin distributions and their discrete
approximations (Bernoulli 2). In many dimensions the chain moves fastest where it accepts 0.574 of
its proposals: Roberts & Rosenthal 1998, Optimal scaling of discrete approximations to Langevin
diffusions (JRSS B 60).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.state import LangevinState, Params, StepInfo, choose, isfinite
from pyro_sep.inference.steps.langevin import langevin_proposal

OPTIMAL_ACCEPTANCE = 0.574  # Roberts & Rosenthal 1998


def mala_step(
    state: LangevinState,
    evaluate: Callable[[Params], LangevinState],
    step_size: float,
    generator: torch.Generator | None = None,
) -> tuple[LangevinState, StepInfo]:
    r"""One step of the Metropolis-adjusted Langevin algorithm, for every chain of a batch.

    The energy is the Hamiltonian :math:`U + |p|^2 / 2` of the same step as one leapfrog step of
    length :math:`\sqrt{2 \eta}` whose momentum p is the noise, in float64, at the state after the
    step (Neal 2011, arXiv 1206.1901, section 5.2).

    Arguments are those of :func:`~pyro_sep.inference.langevin_step`.

    >>> def evaluate(params):
    ...     return LangevinState(params, params["x"].square() / 2, params)
    >>> state, info = mala_step(evaluate({"x": torch.ones(3)}), evaluate, 0.1)
    >>> bool((info.acceptance_rate > 0.5).all())
    True
    """
    proposed = evaluate(
        {
            name: langevin_proposal(value, -state.gradient[name], step_size, generator=generator)
            for name, value in state.params.items()
        }
    )
    finite = isfinite(proposed.potential, *proposed.gradient.values())
    acceptance_rate = log_ratio(state, proposed, step_size).exp().clamp(max=1).where(finite, 0.0)
    accepted = torch.empty_like(acceptance_rate).uniform_(generator=generator) < acceptance_rate
    energy = torch.where(
        accepted, _energy(proposed, state, step_size), _energy(state, proposed, step_size)
    )
    return choose(accepted, proposed, state), StepInfo(acceptance_rate, ~finite, energy)


def log_ratio(current: LangevinState, proposed: LangevinState, step_size: float) -> Tensor:
    """Logarithm of the Metropolis ratio, ``(*batch,)`` in float64.

    Potentials are differenced in float64: near 4e8, neighbours in float32 are 32 nats apart.
    """
    ratio = current.potential.double() - proposed.potential.double()
    for name, x in current.params.items():
        move = (proposed.params[name] - x).double()
        back = _log_proposal(-move, proposed.gradient[name], step_size)
        there = _log_proposal(move, current.gradient[name], step_size)
        ratio = ratio + (back - there).reshape(*ratio.shape, -1).sum(-1)
    return ratio


def _log_proposal(move: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Terms of log q for a move from where the potential has this gradient."""
    return -(move + step_size * gradient.double()).square() / (4 * step_size)


def _energy(here: LangevinState, there: LangevinState, step_size: float) -> Tensor:
    """Hamiltonian at one end of a step, by the momentum that leads to the other, ``(*batch,)``."""
    energy = here.potential.double()
    for name, x in here.params.items():
        move = (there.params[name] - x).double()
        kinetic = -_log_proposal(move, here.gradient[name], step_size)
        energy = energy + kinetic.reshape(*energy.shape, -1).sum(-1)
    return energy
