"""Preconditioned SGLD as a kernel for Pyro's MCMC."""

from collections.abc import Callable

from pyro_sep.checks.arguments import number, positive
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.inference.state import LangevinState, Params, PreconditionedState, StepInfo
from pyro_sep.inference.steps.preconditioned import preconditioned_step


class PreconditionedSGLD(SGLD):
    """Preconditioned SGLD on any Pyro model, constrained sites included.

    The step is :func:`~pyro_sep.inference.preconditioned_step`. V adapts in warm-up only, so that
    the draws have the law of a constant preconditioner; without a warm-up V is the square of the
    start's gradient.

    Args:
        model: Pyro model; its continuous latent sites are sampled.
        step_size: eta, a number or a schedule ``step -> eta`` over the steps of one chain.
        temperature: tau; 1 samples the posterior.
        decay: alpha; the average's memory is 1 / (1 - alpha) steps.
        epsilon: bounds the preconditioner, G <= 1 / epsilon.
        init_strategy: where a chain starts; Pyro's default where None.

    Attributes:
        square: V of each site, in unconstrained space; of the last chain once it has ended.

    Raises:
        ValueError: a step size, temperature or epsilon that is not positive, a decay not in (0, 1).

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> kernel = PreconditionedSGLD(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), step_size=0.1)
    >>> MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True).run()
    >>> kernel.square["x"].shape
    torch.Size([])
    """

    def __init__(
        self,
        model: Callable[..., object],
        step_size: float | Callable[[int], float],
        temperature: float = 1.0,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        init_strategy: Callable[..., object] | None = None,
    ) -> None:
        if step_size is None:  # SGLD would derive one, but of another unit
            raise ValueError("step_size: got None, expected a positive number or a schedule")
        self.decay = number("decay", decay, "a number in (0, 1), such as 0.99", 0, 1)
        self.epsilon = positive("epsilon", epsilon)
        super().__init__(model, step_size, temperature, init_strategy)

    def _reset(self) -> None:
        super()._reset()
        self.square: Params = {}

    def _advance(self, state: LangevinState, step_size: float) -> tuple[LangevinState, StepInfo]:
        square = self.square or {name: part.square() for name, part in state.gradient.items()}
        decay = self.decay if self._warming_up else None
        after, info = preconditioned_step(
            PreconditionedState(*state, square),
            self._evaluate,
            step_size,
            self.temperature,
            self.epsilon,
            decay,
        )
        self.square = after.square
        return LangevinState(after.params, after.potential, after.gradient), info
