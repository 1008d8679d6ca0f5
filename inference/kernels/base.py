"""What the Langevin kernels for Pyro's MCMC share: a chain's set-up, its counters, its statistics.

A kernel is a pure step, from one :class:`Point` to the next, in the clothes of Pyro's
``MCMCKernel``. Sites live in unconstrained space, as in Pyro's HMC, and the potential is minus the
log density there.
"""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor

from pyro_sep.checks.arguments import shown

Params = dict[str, Tensor]


class Point(NamedTuple):
    """A chain, or lanes of chains, between two steps."""

    params: Params  # by site, (*lane, *event)
    potential: Tensor  # (*lane,), nats
    gradient: Params  # of the potential, by site, (*lane, *event)

    def isfinite(self) -> Tensor:
        """Where the potential and the whole gradient are finite, ``(*lane,)``."""
        finite = self.potential.isfinite()
        for gradient in self.gradient.values():
            finite = finite & gradient.isfinite().reshape(*finite.shape, -1).all(-1)
        return finite


class Transition(NamedTuple):
    """Where a step led, and what it has to say for itself."""

    point: Point
    diverging: bool  # the density or its gradient was not finite at the proposal
    statistics: dict[str, float]  # under ArviZ's names; ``step_size`` is one


def evaluate(potential_fn: Callable[[Params], Tensor], params: Params) -> Point:
    """The point at ``params``, by one gradient of a scalar potential."""
    gradient, potential = potential_grad(potential_fn, params)
    return Point(params, potential, gradient)


class LangevinKernel(MCMCKernel):
    """Base of the kernels: a subclass gives :meth:`_advance`, and :meth:`_prepare` if it needs to.

    Every chain starts anew: ``setup`` resets all counters. Its statistics of each draw after
    warm-up, ``lp`` (log density in unconstrained space, nats), ``diverging`` and those of the
    transition, are lists in ``diagnostics()``, so ``MCMC.diagnostics()`` has them by chain.
    ``divergences`` are the numbers of the draws that diverged, as Pyro's HMC counts them, which
    ``arviz.from_pyro`` marks; it reads no other statistic, so others are put beside them::

        data = arviz.from_pyro(mcmc)
        energy = mcmc.diagnostics()["energy"]  # of MALA
        data.sample_stats["energy"] = (("chain", "draw"), list(energy.values()))
        arviz.bfmi(data)

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a model or a strategy that cannot be called.
    """

    def __init__(
        self, model: Callable[..., Any], init_strategy: Callable[..., Any] | None = None
    ) -> None:
        if not callable(model):
            raise ValueError(f"model: got {shown(model)}, expected a Pyro model, a function")
        if init_strategy is not None and not callable(init_strategy):
            raise ValueError(
                f"init_strategy: got {shown(init_strategy)}, expected a function, such as those of "
                "pyro.infer.autoguide.initialization"
            )
        self.model = model
        self.transforms: dict[str, Any] | None = None
        self._init_strategy = init_strategy
        self._given_params: Params | None = None
        self._initial_params: Params | None = None
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self._step = self._warmup_steps = 0
        self._point: Point | None = None
        self._divergences: list[int] = []
        self._warmup_divergences: list[int] = []
        self._statistics: dict[str, list[float]] = {}
        self._last_lp = self._last_step_size = math.nan

    @abstractmethod
    def _advance(self, point: Point) -> Transition:
        """One step of the chain, the ``self._step``-th from 0."""

    @property
    def _warming_up(self) -> bool:
        return self._step < self._warmup_steps

    @torch.enable_grad()
    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Trace the model, find the start, and reset every counter."""
        self._reset()
        self._warmup_steps = warmup_steps
        strategy = {} if self._init_strategy is None else {"init_strategy": self._init_strategy}
        start, self._potential_fn, self.transforms, self._trace = initialize_model(
            self.model,
            args,
            kwargs,
            transforms=self.transforms,
            initial_params=self._given_params,
            **strategy,
        )
        self._initial_params = start
        self._prepare(start)

    def _prepare(self, start: Params) -> None:
        """Set what depends on the model or the start; nothing here."""

    @property
    def initial_params(self) -> Params | None:
        """Unconstrained start of the next chain."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Params) -> None:
        self._given_params = self._initial_params = params

    @torch.enable_grad()
    def sample(self, params: Params) -> Params:
        """One step from unconstrained ``params`` to new ones."""
        if self._point is None:
            self._point = evaluate(self._potential_fn, params)
        self._point, diverging, statistics = self._advance(self._point)
        self._last_lp = -float(self._point.potential)
        self._last_step_size = statistics["step_size"]
        if diverging and self._warming_up:
            self._warmup_divergences.append(self._step)
        elif diverging:
            self._divergences.append(self._step - self._warmup_steps)
        if not self._warming_up:
            for name, value in {"lp": self._last_lp, "diverging": diverging, **statistics}.items():
                self._statistics.setdefault(name, []).append(value)
        self._step += 1
        return self._point.params

    def logging(self) -> "OrderedDict[str, str]":
        """Step size and log density, for the progress bar."""
        return OrderedDict(
            [("step size", f"{self._last_step_size:.2e}"), ("lp", f"{self._last_lp:.1f}")]
        )

    def diagnostics(self) -> dict[str, Any]:
        """Diverging draws and warm-up steps, each from 0; last step size; lists of each draw's."""
        statistics = {name: list(values) for name, values in self._statistics.items()}
        return {
            "divergences": list(self._divergences),
            "warmup divergences": list(self._warmup_divergences),
            "step size": self._last_step_size,
            **statistics,
        }

    def cleanup(self) -> None:
        """Let go of the chain's point and draws' statistics, which MCMC has; may run twice."""
        self._point = None
        self._statistics = {}
