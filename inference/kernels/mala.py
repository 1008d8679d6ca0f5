r"""Metropolis-adjusted Langevin algorithm: a Langevin step as a proposal, so the law is exact.

From x, a Langevin step of size eta proposes y with density q(x, y), the normal of mean :math:`x +
\eta \nabla \log \pi(x)` and variance :math:`2 \eta`, which is taken with probability

.. math:: a(x, y) = \min\left(1, \frac{\pi(y) \, q(y, x)}{\pi(x) \, q(x, y)}\right)

Roberts & Tweedie 1996, Exponential convergence of Langevin distributions and their discrete
approximations (Bernoulli 2). In many dimensions the chain moves fastest where it takes 0.574 of its
proposals: Roberts & Rosenthal 1998, Optimal scaling of discrete approximations to Langevin
diffusions (JRSS B 60).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyro_sep.checks.arguments import number, positive
from pyro_sep.inference.kernels.base import (
    LangevinKernel,
    Params,
    Point,
    Transition,
    evaluate,
)
from pyro_sep.inference.kernels.sgld import langevin_step, stable_step_size

OPTIMAL_ACCEPTANCE = 0.574  # Roberts & Rosenthal 1998


class MalaInfo(NamedTuple):
    """What one step did, for every lane."""

    acceptance_rate: Tensor  # (*lane,), the probability a(x, y)
    diverging: Tensor  # (*lane,), the proposal's density or gradient was not finite
    energy: Tensor  # (*lane,), nats in float64, of where the chain is after the step


def log_ratio(current: Point, proposed: Point, step_size: float) -> Tensor:
    """Logarithm of the Metropolis ratio, ``(*lane,)`` in float64.

    Potentials are differenced in float64: near 4e8, neighbours in float32 are 32 nats apart.
    """
    ratio = current.potential.double() - proposed.potential.double()
    for name, x in current.params.items():
        move = (proposed.params[name] - x).double()
        back = _exponent(-move, proposed.gradient[name], step_size)
        there = _exponent(move, current.gradient[name], step_size)
        ratio = ratio + (back - there).reshape(*ratio.shape, -1).sum(-1)
    return ratio


def _exponent(move: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Terms of log q for a move from where the potential has this gradient."""
    return -(move + step_size * gradient.double()).square() / (4 * step_size)


def _energy(here: Point, there: Point, step_size: float) -> Tensor:
    """Hamiltonian at one end of a step, by the momentum that leads to the other, ``(*lane,)``."""
    energy = here.potential.double()
    for name, x in here.params.items():
        move = (there.params[name] - x).double()
        kinetic = -_exponent(move, here.gradient[name], step_size)
        energy = energy + kinetic.reshape(*energy.shape, -1).sum(-1)
    return energy


def mala_step(
    point: Point,
    evaluate: Callable[[Params], Point],
    step_size: float,
    generator: torch.Generator | None = None,
) -> tuple[Point, MalaInfo]:
    """One step; every lane takes or refuses its own proposal.

    Args:
        point: before the step.
        evaluate: potential, of shape ``(*lane,)``, and gradient at a position.
        step_size: eta.
        generator: source of noise and decisions; torch's global one where None.
    """
    proposed = evaluate(
        {
            name: langevin_step(value, -point.gradient[name], step_size, generator=generator)
            for name, value in point.params.items()
        }
    )
    finite = proposed.isfinite()
    acceptance_rate = log_ratio(point, proposed, step_size).exp().clamp(max=1).where(finite, 0.0)
    accepted = torch.empty_like(acceptance_rate).uniform_(generator=generator) < acceptance_rate
    energy = torch.where(
        accepted, _energy(proposed, point, step_size), _energy(point, proposed, step_size)
    )
    return _choose(accepted, proposed, point), MalaInfo(acceptance_rate, ~finite, energy)


def _choose(accepted: Tensor, proposed: Point, current: Point) -> Point:
    """The proposed point in accepted lanes, the current one in the others."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        lanes = accepted.reshape(accepted.shape + (1,) * (new.ndim - accepted.ndim))
        return torch.where(lanes, new, old)

    return Point(
        {name: choose(new, current.params[name]) for name, new in proposed.params.items()},
        choose(proposed.potential, current.potential),
        {name: choose(new, current.gradient[name]) for name, new in proposed.gradient.items()},
    )


class MALA(LangevinKernel):
    r"""Metropolis-adjusted Langevin dynamics on any Pyro model, constrained sites included.

    In warm-up the step size adapts to the target acceptance, by dual averaging; the draws after it
    have the averaged one. A proposal whose potential or gradient is not finite is refused, and
    counted as a divergence. Statistics of each draw: ``acceptance_rate``, ``step_size`` and
    ``energy``, of the Hamiltonian :math:`U + |p|^2 / 2` of the same step as one leapfrog step of
    length :math:`\sqrt{2 \eta}` whose momentum p is the noise, at the state that the draw is
    (Neal 2011, arXiv 1206.1901, section 5.2); ``arviz.bfmi`` and ``plot_energy`` read it.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: eta of the first step, and of all without a warm-up; where None, 5 % of the
            stability bound of an unadjusted step at the start.
        target_acceptance: share of proposals to take.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a step size that is not positive, a target not in (0, 1).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | None = None,
        target_acceptance: float = OPTIMAL_ACCEPTANCE,
        init_strategy: Callable[..., Any] | None = None,
    ) -> None:
        expected = f"a number in (0, 1), such as {OPTIMAL_ACCEPTANCE}"
        self.step_size = None if step_size is None else positive("step_size", step_size)
        self.target_acceptance = number("target_acceptance", target_acceptance, expected, 0, 1)
        super().__init__(model, init_strategy)

    def _prepare(self, start: Params) -> None:
        self._eta = self.step_size or stable_step_size(self._potential_fn, start)
        # Towards ten times the first step, as in NUTS: a long step costs less to try than a short
        # one (Hoffman & Gelman 2014, arXiv 1111.4246, section 3.2).
        self._adaptation = DualAveraging(prox_center=math.log(10 * self._eta))

    def _advance(self, point: Point) -> Transition:
        step_size = self._eta
        point, info = mala_step(
            point, lambda params: evaluate(self._potential_fn, params), step_size
        )
        acceptance_rate = float(info.acceptance_rate)
        if self._warming_up:
            self._adapt(acceptance_rate)
        statistics = {
            "step_size": step_size,
            "acceptance_rate": acceptance_rate,
            "energy": float(info.energy),
        }
        return Transition(point, bool(info.diverging), statistics)

    def _adapt(self, acceptance_rate: float) -> None:
        self._adaptation.step(self.target_acceptance - acceptance_rate)
        log_step_size, log_average = self._adaptation.get_state()
        last = self._step == self._warmup_steps - 1
        self._eta = math.exp(log_average if last else log_step_size)
