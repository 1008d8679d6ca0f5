import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_sep.inference.kernels.base import LangevinKernel
from pyro_sep.inference.kernels.preconditioned import PreconditionedSGLD
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.inference.state import LangevinState, Params, PreconditionedState
from pyro_sep.inference.steps.preconditioned import preconditioned_step

BATCH = 400
SCALES = torch.tensor([1.0, 100.0])
STEP_SIZE = 0.2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(kernel: LangevinKernel, draws: int, warmup: int, **options: Any) -> MCMC:
    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel, draws, warmup, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


def scaled_model() -> None:
    with pyro.plate("chain", BATCH):
        pyro.sample("x", dist.Normal(torch.zeros(2), SCALES).to_event(1))


def power(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Variances of ``(draw, chain, scale)`` over the model's, and 4.5 of their errors."""
    batch = (draws / SCALES).double().square().mean(0)
    return batch.mean(0), 4.5 * batch.std(0) / math.sqrt(len(batch))


def test_a_badly_scaled_normal() -> None:
    """Both variances where plain SGLD, at a step of the same bias for the small scale, has one."""
    kernel = PreconditionedSGLD(scaled_model, STEP_SIZE, decay=0.999)
    draws = run(kernel, 2_500, 1_500).get_samples()["x"][1_500:]
    plain = run(SGLD(scaled_model, STEP_SIZE), 2_500, 1_500).get_samples()["x"][1_500:]
    share = STEP_SIZE / (kernel.epsilon + kernel.square["x"].sqrt()) / SCALES**2
    biased = (1 / (1 - share / 2)).double().mean(0)  # of unadjusted steps with this G
    found, error = power(draws)
    print("preconditioned", found, biased, error)
    assert ((found - biased).abs() < error).all()
    assert ((found - 1).abs() < error + biased - 1).all()
    found, error = power(plain)
    print("plain", found, error)
    assert abs(float(found[0]) - 1 / (1 - STEP_SIZE / 2)) < error[0]
    assert found[1] + error[1] < 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_step_has_its_known_stationary_law(temperature: float) -> None:
    batch, noise, epsilon = 50_000, generator(), 0.1
    curvatures = torch.tensor([4.0, 1 / 16]).double()
    square = torch.tensor([2.0, 0.01]).double()
    share = 0.5 * curvatures / (epsilon + square.sqrt())

    def evaluate(params: Params) -> LangevinState:
        x = params["x"]
        return LangevinState(params, (curvatures * x**2).sum(1) / 2, {"x": curvatures * x})

    start = evaluate({"x": torch.full((batch, 2), 3.0).double()})
    state = PreconditionedState(*start, {"x": square})
    for _ in range(math.ceil(10 / float(share.min()))):  # (1 - share)^steps < e^-10
        state, _info = preconditioned_step(
            state, evaluate, 0.5, temperature, epsilon, generator=noise
        )
    position = state.params["x"]
    variance = temperature / curvatures / (1 - share / 2)
    assert (position.mean(0).abs() < 4.5 * (variance / batch).sqrt()).all()
    assert ((position.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / batch)).all()


def test_the_average_is_that_of_squared_gradients_and_freezes_after_warm_up() -> None:
    decay, squares, gradients = 0.9, [], []

    def hook(kernel: PreconditionedSGLD, params: dict[str, Tensor], stage: str, step: int) -> None:
        squares.append(kernel.square["x"].clone())
        gradients.append(params["x"] / SCALES**2)

    start = {"x": SCALES * torch.randn(BATCH, 2, generator=generator())}
    kernel = PreconditionedSGLD(scaled_model, STEP_SIZE, decay=decay)
    run(kernel, 5, 20, initial_params=start, hook_fn=hook)
    expected = (start["x"] / SCALES**2).square()
    assert torch.allclose(squares[0], expected)
    for step in range(1, 20):
        expected = decay * expected + (1 - decay) * gradients[step - 1].square()
        assert torch.allclose(squares[step], expected, rtol=1e-4)
    for frozen in squares[20:]:
        assert torch.equal(frozen, squares[19])
    assert torch.equal(kernel.square["x"], squares[19])


@pytest.mark.parametrize(
    ("options", "match", "remedy"),
    [
        ({"step_size": 0}, "step_size: got 0,", "a positive number"),
        ({"step_size": None}, "step_size: got None,", "a positive number or a schedule"),
        ({"temperature": -1.0}, "temperature: got -1.0,", "a positive number"),
        ({"epsilon": 0.0}, "epsilon: got 0.0,", "a positive number"),
        ({"decay": 0.0}, "decay: got 0.0,", "such as 0.99"),
        ({"decay": 1.0}, "decay: got 1.0,", "such as 0.99"),
        ({"decay": math.nan}, "decay: got nan,", "such as 0.99"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], match: str, remedy: str) -> None:
    make: Callable[..., PreconditionedSGLD] = PreconditionedSGLD
    with pytest.raises(ValueError, match=match) as caught:
        make(scaled_model, **{"step_size": 0.1, **options})
    assert remedy in str(caught.value)
