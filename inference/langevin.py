r"""Langevin dynamics: the step, and SGLD as a kernel for Pyro's MCMC.

One step of size eta at temperature tau, from a position z with log density log p:

.. math:: z' = z + \eta \nabla \log p(z) + \sqrt{2 \eta \tau} \, \epsilon,
          \qquad \epsilon \sim \mathcal{N}(0, I)

The step is not corrected: on a standard normal its stationary variance is :math:`1 / (1 - \eta /
2)` rather than 1, and it diverges unless :math:`\eta \lambda < 2` for the largest curvature lambda
of
-log p. Roberts & Tweedie 1996; Welling & Teh 2011 (ICML).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor

#: Share of the stability bound 2 / lambda that a derived step size takes: bias of a variance 5 %.
STABLE_SHARE = 0.05
POWER_ITERATIONS = 20

Params = dict[str, Tensor]


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


class SGLD(MCMCKernel):
    """Stochastic gradient Langevin dynamics on any Pyro model, constrained sites included.

    Sites live in unconstrained space, as in Pyro's HMC. A step whose potential is not finite is
    counted as a divergence and not taken.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: a number, a schedule ``step -> eta`` over the steps of one chain
            (:func:`~pyro_sep.inference.schedules.polynomial_decay`), or None: then 5 % of the
            stability bound, from the largest curvature at the start, found by power iteration.
        temperature: tau, see the module's docstring.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a step size or temperature that is not positive.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | Callable[[int], float] | None = None,
        temperature: float = 1.0,
        init_strategy: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(step_size, int | float) and not step_size > 0:
            raise ValueError(f"step_size: got {step_size}, expected a positive number")
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, expected a positive number")
        self.model = model
        self.transforms: dict[str, Any] | None = None
        self.step_size = step_size
        self.temperature = temperature
        self._init_strategy = init_strategy
        self._given_params: Params | None = None
        self._initial_params: Params | None = None
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self._step = 0
        self._divergences: list[int] = []
        self._gradients: Params | None = None
        self._potential = math.nan
        self._last_step_size = math.nan

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Trace the model, find the start, and reset every counter."""
        self._reset()
        strategy = {} if self._init_strategy is None else {"init_strategy": self._init_strategy}
        initial, self._potential_fn, self.transforms, self._trace = initialize_model(
            self.model,
            args,
            kwargs,
            transforms=self.transforms,
            initial_params=self._given_params,
            **strategy,
        )
        self._initial_params = initial
        self._schedule = self._step_size_schedule(initial)

    def _step_size_schedule(self, initial: Params) -> Callable[[int], float]:
        if callable(self.step_size):
            return self.step_size
        if self.step_size is not None:
            constant = float(self.step_size)
        else:
            constant = 2 * STABLE_SHARE / largest_curvature(self._potential_fn, initial)
        return lambda _: constant

    @property
    def initial_params(self) -> Params | None:
        """Unconstrained start of the next chain."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Params) -> None:
        self._given_params = self._initial_params = params

    def sample(self, params: Params) -> Params:
        """One step from unconstrained ``params`` to new ones."""
        if self._gradients is None:
            self._gradients, potential = potential_grad(self._potential_fn, params)
            self._potential = float(potential)
        step_size = self._last_step_size = self._schedule(self._step)
        proposed = {
            name: langevin_step(value, -self._gradients[name], step_size, self.temperature)
            for name, value in params.items()
        }
        gradients, potential = potential_grad(self._potential_fn, proposed)
        self._step += 1
        if not math.isfinite(float(potential)):
            self._divergences.append(self._step - 1)
            return params
        self._gradients, self._potential = gradients, float(potential)
        return proposed

    def logging(self) -> "OrderedDict[str, str]":
        """Step size and log density, for the progress bar."""
        return OrderedDict(
            [("step size", f"{self._last_step_size:.2e}"), ("lp", f"{-self._potential:.1f}")]
        )

    def diagnostics(self) -> dict[str, Any]:
        """Steps (from 0) that were not taken because the density there was not finite."""
        return {"divergences": list(self._divergences), "step size": self._last_step_size}

    def cleanup(self) -> None:
        """Forget the chain's gradients; may run twice."""
        self._gradients = None


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
