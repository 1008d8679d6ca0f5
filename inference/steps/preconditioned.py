r"""Preconditioned Langevin dynamics: a step size for every direction, from the gradient's RMS.

One step of size eta at temperature tau, from a position z with log density log p:

.. math:: z' = z + \eta G \nabla \log p(z) + \sqrt{2 \eta \tau G} \, \epsilon, \qquad
          G = \operatorname{diag} \frac{1}{\varepsilon + \sqrt{V}}

V is an exponential average of squared gradients, :math:`V \leftarrow \alpha V + (1 - \alpha)
(\nabla \log p)^2`. While V adapts, a drift :math:`\sum_j \partial_j G_{\cdot j}` is neglected,
which biases the draws; with V constant there is no such bias. On a normal of standard deviation s,
V nears :math:`1 / s^2` and G nears s, so eta is a length: the step is stable where eta < 2 s for
the smallest s.

Li, Chen, Carlson & Carin 2016, Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
Networks (arXiv 1512.07666).
"""

from collections.abc import Callable

import torch

from pyro_sep.inference.state import LangevinState, Params, PreconditionedState, StepInfo
from pyro_sep.inference.steps.langevin import langevin_step


def preconditioned_step(
    state: PreconditionedState,
    evaluate: Callable[[Params], LangevinState],
    step_size: float,
    temperature: float = 1.0,
    epsilon: float = 1e-5,
    decay: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[PreconditionedState, StepInfo]:
    """One step of preconditioned Langevin dynamics, without a Metropolis test.

    Before the step V, the running average of squared gradients, is updated by the state's gradient.
    Arguments are those of :func:`~pyro_sep.inference.langevin_step`, and ``epsilon``, which bounds
    G <= 1 / epsilon, and ``decay``, alpha; V is constant where it is None.

    >>> def evaluate(params):
    ...     return LangevinState(params, params["x"].square() / 2, params)
    >>> start = PreconditionedState(*evaluate({"x": torch.ones(3)}), {"x": torch.ones(3)})
    >>> state, info = preconditioned_step(start, evaluate, 0.1)
    >>> state.params["x"].shape
    torch.Size([3])
    """
    square = state.square
    if decay is not None:
        square = {
            name: mean.lerp(state.gradient[name].square(), 1 - decay)
            for name, mean in square.items()
        }
    sizes = {name: step_size * (1 / (epsilon + mean.sqrt())) for name, mean in square.items()}
    here = LangevinState(state.params, state.potential, state.gradient)
    after, info = langevin_step(here, evaluate, sizes, temperature, generator)
    return PreconditionedState(*after, square), info
