r"""Langevin dynamics: the step, and SGLD as a kernel for Pyro's MCMC.

One step of size eta at temperature tau, from a position z with log density log p:

.. math:: z' = z + \eta \nabla \log p(z) + \sqrt{2 \eta \tau} \, \epsilon,
          \qquad \epsilon \sim \mathcal{N}(0, I)

The step is not corrected: on a standard normal its stationary variance is :math:`1 / (1 - \eta /
2)` rather than 1, and it diverges unless :math:`\eta \lambda < 2` for the largest curvature lambda
of -log p. Roberts & Tweedie 1996; Welling & Teh 2011 (ICML).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_sep.checks.arguments import positive
from pyro_sep.inference.kernels.base import (
    LangevinKernel,
    Params,
    Point,
    Transition,
    evaluate,
)

#: Share of the stability bound 2 / lambda that a derived step size takes: bias of a variance 5 %.
STABLE_SHARE = 0.05
POWER_ITERATIONS = 20


class Evaluation(NamedTuple):
    """A log density at a position, for lanes of chains."""

    log_density: Tensor  # (lane,), nats
    gradient: Tensor  # (lane, *event)
    parts: Tensor  # (lane, part): terms of the log density worth keeping


def langevin_step(
    position: Tensor,
    gradient: Tensor,
    step_size: float | Tensor,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One unadjusted step; everything has the shape of ``position`` or broadcasts to it.

    Args:
        position: any shape.
        gradient: of the log density at the position.
        step_size: eta.
        temperature: tau; 1 samples the density, 0 climbs it.
        generator: source of the noise; torch's global one where None.
    """
    noise = torch.empty_like(position).normal_(generator=generator)
    scale = torch.as_tensor(2 * step_size * temperature, dtype=position.dtype).sqrt()
    return position + step_size * gradient + scale.to(position.device) * noise


class SGLD(LangevinKernel):
    """Stochastic gradient Langevin dynamics on any Pyro model, constrained sites included.

    A step to where the potential or its gradient is not finite is counted as a divergence and not
    taken. There is no ``energy`` among its statistics: it has no momentum.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: a number, a schedule ``step -> eta`` over the steps of one chain
            (:func:`~pyro_sep.inference.polynomial_decay`), or None: then 5 % of the
            stability bound, from the largest curvature at the start, found by power iteration.
        temperature: tau, see the module's docstring.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a step size, of a schedule too, or a temperature that is not positive.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | Callable[[int], float] | None = None,
        temperature: float = 1.0,
        init_strategy: Callable[..., Any] | None = None,
    ) -> None:
        if step_size is not None and not callable(step_size):
            step_size = positive("step_size", step_size)
        self.step_size = step_size
        self.temperature = positive("temperature", temperature)
        super().__init__(model, init_strategy)

    def _prepare(self, start: Params) -> None:
        if callable(self.step_size):
            self._schedule = self.step_size
        else:
            constant = float(self.step_size or stable_step_size(self._potential_fn, start))
            self._schedule = lambda _: constant

    def _advance(self, point: Point) -> Transition:
        step_size = positive("step_size", self._schedule(self._step))
        proposed = evaluate(self._potential_fn, self._propose(point, step_size))
        diverging = not bool(proposed.isfinite())
        return Transition(point if diverging else proposed, diverging, {"step_size": step_size})

    def _propose(self, point: Point, step_size: float) -> Params:
        return {
            name: langevin_step(value, -point.gradient[name], step_size, self.temperature)
            for name, value in point.params.items()
        }


def stable_step_size(potential_fn: Callable[[Params], Tensor], params: Params) -> float:
    """:data:`STABLE_SHARE` of the stability bound 2 / lambda of a step at ``params``.

    Raises:
        ValueError: the potential is flat or not finite there.
    """
    return 2 * STABLE_SHARE / largest_curvature(potential_fn, params)


def largest_curvature(potential_fn: Callable[[Params], Tensor], params: Params) -> float:
    """Largest absolute eigenvalue of a potential's Hessian, by power iteration.

    Args:
        potential_fn: scalar function of named tensors, twice differentiable.
        params: where.

    Raises:
        ValueError: the potential is flat or not finite there.
    """
    names = list(params)
    point = [params[name].detach().requires_grad_() for name in names]
    gradients = torch.autograd.grad(
        potential_fn(dict(zip(names, point, strict=True))), point, create_graph=True
    )
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator).to(p) for p in point]
    curvature = 0.0
    for _ in range(POWER_ITERATIONS):
        norm = math.sqrt(sum(float(d.square().sum()) for d in direction))
        if not (math.isfinite(norm) and norm > 0):
            raise ValueError(
                "step_size: got None, but the density is flat or not finite at the start, so no "
                "step size can be derived; give one"
            )
        direction = [d / norm for d in direction]
        along = torch.stack(
            [(g * d).sum() for g, d in zip(gradients, direction, strict=True)]
        ).sum()
        if along.requires_grad:
            image = torch.autograd.grad(along, point, retain_graph=True, materialize_grads=True)
        else:  # a linear density: its gradient is a constant
            image = tuple(torch.zeros_like(p) for p in point)
        curvature = math.sqrt(sum(float(i.square().sum()) for i in image))
        direction = list(image)
    if not (math.isfinite(curvature) and curvature > 0):
        raise ValueError(
            f"step_size: got None, but the largest curvature at the start is {curvature}, so no "
            "step size can be derived; give one"
        )
    return curvature
