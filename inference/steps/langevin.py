r"""Overdamped Langevin dynamics: the proposal, and the unadjusted step.

One step of size eta at temperature tau, from a position z with log density log p:

.. math:: z' = z + \eta \nabla \log p(z) + \sqrt{2 \eta \tau} \, \epsilon,
          \qquad \epsilon \sim \mathcal{N}(0, I)

The step is not adjusted: on a standard normal its stationary variance is :math:`1 / (1 - \eta /
2)` rather than 1, and it diverges unless :math:`\eta \lambda < 2` for the largest curvature lambda
of -log p. Roberts & Tweedie 1996; Welling & Teh 2011 (ICML).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_sep.inference.state import LangevinState, Params, StepInfo, choose, isfinite


def langevin_proposal(
    position: Tensor,
    gradient: Tensor,
    step_size: float | Tensor,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The position after one unadjusted step, by the gradient of the log density.

    All arguments broadcast to the position's shape.
    """
    noise = torch.empty_like(position).normal_(generator=generator)
    scale = torch.as_tensor(2 * step_size * temperature, dtype=position.dtype).sqrt()
    return position + step_size * gradient + scale.to(position.device) * noise


def langevin_step(
    state: LangevinState,
    evaluate: Callable[[Params], LangevinState],
    step_size: float | Params,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[LangevinState, StepInfo]:
    """One step of overdamped Langevin dynamics, without a Metropolis test.

    A chain stays where it is if the density or its gradient is not finite at the new place.

    Args:
        state: before the step.
        evaluate: the state at given sites; its potential is ``(*batch,)``.
        step_size: eta, or eta of every entry by site.
        temperature: tau; 1 samples the density, 0 climbs it.
        generator: source of the noise; torch's global one where None.

    >>> def evaluate(params):
    ...     return LangevinState(params, params["x"].square() / 2, params)
    >>> state, info = langevin_step(evaluate({"x": torch.ones(3)}), evaluate, 0.1)
    >>> state.params["x"].shape, info.diverging.any()
    (torch.Size([3]), tensor(False))
    """
    sizes = step_size if isinstance(step_size, dict) else dict.fromkeys(state.params, step_size)
    proposed = evaluate(
        {
            name: langevin_proposal(
                value, -state.gradient[name], sizes[name], temperature, generator
            )
            for name, value in state.params.items()
        }
    )
    finite = isfinite(proposed.potential, *proposed.gradient.values())
    after = choose(finite, proposed, state)
    return after, StepInfo(finite.to(after.potential.dtype), ~finite, after.potential)
