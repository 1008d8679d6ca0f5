"""SGLD as a kernel for Pyro's MCMC."""

from collections.abc import Callable

from pyro_sep.checks.arguments import positive
from pyro_sep.inference.kernels.base import LangevinKernel
from pyro_sep.inference.kernels.curvature import stable_step_size
from pyro_sep.inference.state import LangevinState, Params, StepInfo
from pyro_sep.inference.steps.langevin import langevin_step


class SGLD(LangevinKernel):
    """Stochastic gradient Langevin dynamics on any Pyro model, constrained sites included.

    The step is :func:`~pyro_sep.inference.langevin_step`. A step to where the potential or its
    gradient is not finite is counted as a divergence and not made. There is no ``energy`` among the
    statistics: the step has no momentum.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: a number, a schedule ``step -> eta`` over the steps of one chain
            (:func:`~pyro_sep.inference.polynomial_decay`), or None: then 5 % of the
            stability bound, from the largest curvature at the start, found by power iteration.
        temperature: tau; 1 samples the posterior.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a step size, of a schedule too, or a temperature that is not positive.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> kernel = SGLD(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), step_size=0.1)
    >>> mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples()["x"].shape
    torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., object],
        step_size: float | Callable[[int], float] | None = None,
        temperature: float = 1.0,
        init_strategy: Callable[..., object] | None = None,
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

    def _next_step_size(self) -> float:
        return positive("step_size", self._schedule(self._step))

    def _advance(self, state: LangevinState, step_size: float) -> tuple[LangevinState, StepInfo]:
        return langevin_step(state, self._evaluate, step_size, self.temperature)
