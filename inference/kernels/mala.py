"""MALA as a kernel for Pyro's MCMC."""

import math
from collections.abc import Callable

from pyro.ops.dual_averaging import DualAveraging

from pyro_sep.checks.arguments import number, positive
from pyro_sep.inference.kernels.base import LangevinKernel
from pyro_sep.inference.kernels.curvature import stable_step_size
from pyro_sep.inference.state import LangevinState, Params, StepInfo
from pyro_sep.inference.steps.mala import OPTIMAL_ACCEPTANCE, mala_step


class MALA(LangevinKernel):
    """Metropolis-adjusted Langevin dynamics on any Pyro model, constrained sites included.

    The step is :func:`~pyro_sep.inference.mala_step`. In warm-up the step size adapts to the target
    acceptance, by dual averaging; the draws after it have the averaged one. A proposal whose
    potential or gradient is not finite is rejected, and counted as a divergence. Statistics of each
    draw are ``acceptance_rate``, ``step_size`` and ``energy``, which ``arviz.bfmi`` and
    ``plot_energy`` read.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: eta of the first step, and of all without a warm-up; where None, 5 % of the
            stability bound of an unadjusted step at the start.
        target_acceptance: share of proposals to accept.
        init_strategy: where a chain starts; Pyro's default where None.

    Raises:
        ValueError: a step size that is not positive, a target not in (0, 1).

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> mcmc = MCMC(
    ...     MALA(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))),
    ...     num_samples=5,
    ...     warmup_steps=5,
    ...     disable_progbar=True,
    ... )
    >>> mcmc.run()
    >>> mcmc.get_samples()["x"].shape
    torch.Size([5])
    """

    recorded = ("acceptance_rate", "energy")

    def __init__(
        self,
        model: Callable[..., object],
        step_size: float | None = None,
        target_acceptance: float = OPTIMAL_ACCEPTANCE,
        init_strategy: Callable[..., object] | None = None,
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

    def _next_step_size(self) -> float:
        return self._eta

    def _advance(self, state: LangevinState, step_size: float) -> tuple[LangevinState, StepInfo]:
        state, info = mala_step(state, self._evaluate, step_size)
        if self._warming_up:
            self._adaptation.step(self.target_acceptance - float(info.acceptance_rate))
            log_step_size, log_average = self._adaptation.get_state()
            last = self._step == self._warmup_steps - 1
            self._eta = math.exp(log_average if last else log_step_size)
        return state, info
