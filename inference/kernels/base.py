"""What the Langevin kernels for Pyro's MCMC share: a chain's set-up, its counters, its statistics.

A kernel runs a pure step behind the interface of Pyro's ``MCMCKernel``. Sites live in unconstrained
space, as in Pyro's HMC, and the potential is minus the log density there.
"""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad

from pyro_sep.checks.arguments import shown
from pyro_sep.inference.state import LangevinState, Params, StepInfo


class LangevinKernel(MCMCKernel):
    """Base of the kernels: a subclass has a step size and makes steps.

    ``setup`` resets all counters, so chains are independent. The statistics of each draw after
    warm-up, ``lp`` (log density in unconstrained space, nats), ``step_size``, ``diverging`` and
    those that :attr:`recorded` names, are lists in ``diagnostics()``, so ``MCMC.diagnostics()`` has
    them by chain. ``divergences`` are the numbers of the draws that diverged, as Pyro's HMC counts
    them, which ``arviz.from_pyro`` marks; it reads no other statistic, so others are added by
    hand::

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

    #: Fields of :class:`~pyro_sep.inference.state.StepInfo` among the statistics.
    recorded: tuple[str, ...] = ()

    def __init__(
        self, model: Callable[..., object], init_strategy: Callable[..., object] | None = None
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
        self._state: LangevinState | None = None
        self._divergences: list[int] = []  # numbers of steps
        self._statistics: dict[str, list[float]] = {}
        self._last_lp = self._last_step_size = math.nan

    @abstractmethod
    def _advance(self, state: LangevinState, step_size: float) -> tuple[LangevinState, StepInfo]:
        """One step of the chain, the ``self._step``-th from 0."""

    @abstractmethod
    def _next_step_size(self) -> float:
        """Size of the next step."""

    def _evaluate(self, params: Params) -> LangevinState:
        """The state at ``params``, by one gradient."""
        gradient, potential = potential_grad(self._potential_fn, params)
        return LangevinState(params, potential, gradient)

    @property
    def _warming_up(self) -> bool:
        return self._step < self._warmup_steps

    @torch.enable_grad()
    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Trace the model, find the start, and reset every counter."""
        self._reset()
        self._warmup_steps = warmup_steps
        strategy = {"init_strategy": self._init_strategy} if self._init_strategy else {}
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
        """Set what depends on the model or the start."""

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
        state = self._evaluate(params) if self._state is None else self._state
        self._last_step_size = self._next_step_size()
        self._state, info = self._advance(state, self._last_step_size)
        self._last_lp, diverging = -float(self._state.potential), bool(info.diverging)
        if diverging:
            self._divergences.append(self._step)
        if not self._warming_up:
            found = {"lp": self._last_lp, "diverging": diverging, "step_size": self._last_step_size}
            found |= {name: float(getattr(info, name)) for name in self.recorded}
            for name, value in found.items():
                self._statistics.setdefault(name, []).append(value)
        self._step += 1
        return self._state.params

    def logging(self) -> "OrderedDict[str, str]":
        """Step size and log density, for the progress bar."""
        size, lp = f"{self._last_step_size:.2e}", f"{self._last_lp:.1f}"
        return OrderedDict({"step size": size, "lp": lp})

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of diverging draws and warm-up steps, last step size, statistics of each draw."""
        warmup, found = self._warmup_steps, self._divergences
        return {
            "divergences": [step - warmup for step in found if step >= warmup],
            "warmup divergences": [step for step in found if step < warmup],
            "step size": self._last_step_size,
            **{name: list(values) for name, values in self._statistics.items()},
        }

    def cleanup(self) -> None:
        """Release the chain's state and the draws' statistics, which MCMC has copied."""
        self._state = None
        self._statistics = {}
