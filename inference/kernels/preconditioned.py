r"""Preconditioned SGLD: a step of its own length in every direction, from the gradient's RMS.

One step of size eta at temperature tau, from a position z with log density log p:

.. math:: z' = z + \eta G \nabla \log p(z) + \sqrt{2 \eta \tau G} \, \epsilon, \qquad
          G = \operatorname{diag} \frac{1}{\varepsilon + \sqrt{V}}

V is an exponential average of squared gradients, :math:`V \leftarrow \alpha V + (1 - \alpha)
(\nabla \log p)^2`. Where G moves with z, the chain needs a drift :math:`\Gamma = \sum_j \partial_j
G_{\cdot j}` that is dropped in practice, at the price of a bias. Here V adapts in warm-up only and
is frozen afterwards: the draws are those of Langevin dynamics with a constant preconditioner, whose
law is that of the model but for the bias of an unadjusted step. On a normal of standard deviation
s, V nears :math:`1 / s^2` and G nears s, so eta is a length: the step is stable where eta < 2 s for
the smallest s.

Li, Chen, Carlson & Carin 2016, Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
Networks (arXiv 1512.07666).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_sep.checks.arguments import number, positive
from pyro_sep.inference.kernels.base import Params, Point, Transition
from pyro_sep.inference.kernels.sgld import SGLD, langevin_step


def preconditioned_step(
    position: Tensor,
    gradient: Tensor,
    square: Tensor,
    step_size: float,
    temperature: float = 1.0,
    epsilon: float = 1e-5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One unadjusted step; everything has the shape of ``position`` or broadcasts to it.

    Args:
        position: any shape.
        gradient: of the log density at the position.
        square: V, the averaged square of the gradient.
        step_size: eta, in units of the position.
        temperature: tau; 1 samples the density, 0 climbs it.
        epsilon: bounds the preconditioner, G <= 1 / epsilon.
        generator: source of the noise; torch's global one where None.
    """
    preconditioner = 1 / (epsilon + square.sqrt())
    return langevin_step(position, gradient, step_size * preconditioner, temperature, generator)


class PreconditionedSGLD(SGLD):
    """Preconditioned SGLD on any Pyro model, constrained sites included.

    It needs a warm-up: without one V is the square of the start's gradient.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: eta, a number or a schedule ``step -> eta`` over the steps of one chain.
        temperature: tau, see the module's docstring.
        decay: alpha; the average's memory is 1 / (1 - alpha) steps.
        epsilon: bounds the preconditioner, G <= 1 / epsilon.
        init_strategy: where a chain starts; Pyro's default where None.

    Attributes:
        square: V of each site, in unconstrained space; of the last chain once it has ended.

    Raises:
        ValueError: a step size, temperature or epsilon that is not positive, a decay not in (0, 1).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | Callable[[int], float],
        temperature: float = 1.0,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        init_strategy: Callable[..., Any] | None = None,
    ) -> None:
        if step_size is None:  # which SGLD would derive, but of the wrong unit
            raise ValueError("step_size: got None, expected a positive number or a schedule")
        self.decay = number("decay", decay, "a number in (0, 1), such as 0.99", 0, 1)
        self.epsilon = positive("epsilon", epsilon)
        super().__init__(model, step_size, temperature, init_strategy)

    def _reset(self) -> None:
        super()._reset()
        self.square: Params = {}

    def _advance(self, point: Point) -> Transition:
        squares = {name: gradient.square() for name, gradient in point.gradient.items()}
        if not self.square:
            self.square = squares
        elif self._warming_up:
            self.square = {
                name: square.lerp(squares[name], 1 - self.decay)
                for name, square in self.square.items()
            }
        return super()._advance(point)

    def _propose(self, point: Point, step_size: float) -> Params:
        return {
            name: preconditioned_step(
                value,
                -point.gradient[name],
                self.square[name],
                step_size,
                self.temperature,
                self.epsilon,
            )
            for name, value in point.params.items()
        }
