import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.infer import MCMC
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_sep.inference.kernels.curvature import STABLE_SHARE
from pyro_sep.inference.kernels.mala import MALA
from pyro_sep.inference.state import LangevinState, Params, StepInfo
from pyro_sep.inference.steps.langevin import langevin_proposal
from pyro_sep.inference.steps.mala import log_ratio, mala_step

BATCH = 20_000
OFFSET = 4e8  # in float32, neighbours there are 32 apart


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(potential: Callable[[Params], Tensor]) -> Callable[[Params], LangevinState]:
    """Evaluates a batch of chains with this potential, which maps sites to ``(batch,)``."""

    def evaluate(params: Params) -> LangevinState:
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        energy = potential(params)
        gradients = torch.autograd.grad(energy.sum(), list(params.values()))
        detached = {name: value.detach() for name, value in params.items()}
        return LangevinState(detached, energy.detach(), dict(zip(params, gradients, strict=True)))

    return evaluate


def normal(params: Params) -> Tensor:
    """Independent normals: a of mean 1 and variance 1, b of mean 0 and variances 1 and 1 / 2."""
    curvatures = torch.tensor([1.0, 2.0]).to(params["b"])
    return (params["a"] - 1).square() / 2 + (curvatures * params["b"].square()).sum(-1) / 2


def log_gamma(params: Params) -> Tensor:
    """Logarithm of a Gamma(3, 1): skew, of mean digamma(3) and variance trigamma(3)."""
    return params["a"].exp() - 3 * params["a"]


def starts(batch: int, dtype: torch.dtype = torch.float64) -> Params:
    noise = generator(7)
    a = torch.randn(batch, generator=noise, dtype=torch.float64)
    b = torch.randn(batch, 2, generator=noise, dtype=torch.float64)
    return {"a": a.to(dtype), "b": b.to(dtype)}


def assert_law(values: Tensor, mean: float, variance: float) -> None:
    """Independent chains, by their own errors."""
    for drawn, expected in ((values, mean), ((values - mean).square(), variance)):
        error = float(drawn.std()) / math.sqrt(len(drawn))
        assert abs(float(drawn.mean()) - expected) < 4.5 * error, (drawn.mean(), expected, error)


def test_the_law_is_exact_where_an_unadjusted_step_is_biased() -> None:
    step_size, noise = 0.6, generator()
    evaluate = points(normal)
    point = evaluate({name: 3 + value for name, value in starts(BATCH).items()})
    unadjusted = point.params["a"]
    for _ in range(80):
        point, _ = mala_step(point, evaluate, step_size, noise)
        unadjusted = langevin_proposal(unadjusted, 1 - unadjusted, step_size, generator=noise)
    assert_law(point.params["a"], 1, 1)
    assert_law(point.params["b"][:, 0], 0, 1)
    assert_law(point.params["b"][:, 1], 0, 0.5)
    assert scipy.stats.kstest((point.params["a"] - 1).numpy(), "norm").pvalue > 1e-4
    assert_law(unadjusted, 1, 1 / (1 - step_size / 2))
    with pytest.raises(AssertionError):
        assert_law(unadjusted, 1, 1)


def test_the_law_of_a_skew_density_is_exact() -> None:
    noise, evaluate = generator(), points(log_gamma)
    point = evaluate({"a": starts(BATCH)["a"]})
    for _ in range(80):
        point, _ = mala_step(point, evaluate, 0.5, noise)
    assert_law(point.params["a"], scipy.special.digamma(3), float(scipy.special.polygamma(1, 3)))


def test_detailed_balance() -> None:
    step_size = 0.3

    def potential(params: Params) -> Tensor:
        return params["a"] ** 4 / 4 + (params["a"][:, None] * params["b"]).exp().sum(-1)

    def log_proposal(x: LangevinState, y: LangevinState) -> Tensor:
        """Log q(x, y)."""
        moves = []
        for name, value in x.params.items():
            law = dist.Normal(value - step_size * x.gradient[name], math.sqrt(2 * step_size))
            moves.append(law.log_prob(y.params[name]).reshape(len(value), -1).sum(-1))
        return torch.stack(moves).sum(0)

    evaluate = points(potential)
    x = evaluate(starts(1_000))
    y = evaluate({name: value.flip(0) for name, value in x.params.items()})
    there, back = (log_ratio(*pair, step_size).clamp(max=0) for pair in ((x, y), (y, x)))
    forward = -x.potential + log_proposal(x, y) + there
    backward = -y.potential + log_proposal(y, x) + back
    assert torch.allclose(forward, backward, rtol=1e-12, atol=1e-9)
    assert ((there < 0) ^ (back < 0)).all()  # exactly one of two moves is sure
    assert 100 < int((there < 0).sum()) < 900


def test_a_chain_moves_whole_or_not_at_all() -> None:
    evaluate = points(normal)
    before = evaluate(starts(BATCH))
    after, info = mala_step(before, evaluate, 0.8, generator())
    moved = after.params["a"] != before.params["a"]
    assert torch.equal(moved, (after.params["b"] != before.params["b"]).all(-1))
    assert torch.equal(moved, (after.params["b"] != before.params["b"]).any(-1))
    again = evaluate(after.params)
    assert torch.equal(after.potential, again.potential)
    assert all(torch.equal(after.gradient[name], again.gradient[name]) for name in "ab")
    rate = info.acceptance_rate
    error = (rate * (1 - rate)).sum().sqrt()
    assert abs(float(moved.sum() - rate.sum())) < 4.5 * float(error)
    assert moved[rate == 1].all()
    assert 0.2 < float(rate.mean()) < 0.9
    assert not info.diverging.any()


def test_a_large_energy_decides_nothing() -> None:
    """The position is float32, and so is the gradient; the potential is float64."""

    def double(params: Params) -> Tensor:
        return normal({name: value.double() for name, value in params.items()})

    def run(potential: Callable[[Params], Tensor]) -> tuple[LangevinState, StepInfo]:
        evaluate = points(potential)
        point = evaluate(starts(BATCH, torch.float32))
        return mala_step(point, evaluate, 0.8, generator())

    point, info = run(double)
    far, far_info = run(lambda params: double(params) - OFFSET)
    assert point.params["a"].dtype == torch.float32
    assert point.potential.dtype == info.acceptance_rate.dtype == torch.float64
    # Energies near 4e8 are 6e-8 apart in float64.
    assert torch.allclose(info.acceptance_rate, far_info.acceptance_rate, rtol=1e-6, atol=0)
    assert torch.equal(point.params["a"], far.params["a"])


def standard_model(dimensions: int, offset: float = 0.0) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(dimensions), 1.0).to_event(1))
    pyro.factor("offset", torch.tensor(offset, dtype=torch.float64))


def run(kernel: MALA, draws: int, warmup: int, *args: Any, seed: int = 0, **options: Any) -> MCMC:
    pyro.set_rng_seed(seed)
    mcmc = MCMC(kernel, draws, warmup, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


def test_a_large_energy_leaves_a_chain_alone() -> None:
    chains = [run(MALA(standard_model, 0.3), 200, 0, 5, offset) for offset in (0.0, OFFSET)]
    near, far = (chain.get_samples()["x"] for chain in chains)
    assert near.dtype == torch.float32
    assert torch.equal(near, far)
    assert 10 < len(near.unique(dim=0)) < 200
    near_lp, far_lp = (np.array(chain.diagnostics()["lp"]["chain 0"]) for chain in chains)
    assert far_lp - OFFSET == pytest.approx(near_lp, abs=1e-6)


@pytest.mark.parametrize("target", [0.574, 0.8])
def test_the_acceptance_reaches_its_target(target: float) -> None:
    """Within the error that chains show, and a bias: warm-up's average is that of log step sizes.

    There acceptance a(log eta) averages to the target while log eta still varies, so at the mean of
    log eta it exceeds the target by -a'' / 2 of that variance. In many dimensions a = 2 Phi(-y), y
    proportional to eta^1.5 (Roberts & Rosenthal 1998), hence a'' = -4.5 phi(y) y (1 - y^2).
    """
    rates, variances = [], []
    for seed in range(8):
        log_sizes: list[float] = []

        def hook(
            kernel: MALA, params: Params, stage: str, step: int, log_sizes: list[float] = log_sizes
        ) -> None:
            log_sizes.append(math.log(kernel.diagnostics()["step size"]))

        kernel = MALA(standard_model, target_acceptance=target)
        mcmc = run(kernel, 500, 500, 20, seed=seed, hook_fn=hook)
        found = mcmc.diagnostics()
        rates.append(np.mean(found["acceptance_rate"]["chain 0"]))
        (step_size,) = set(found["step_size"]["chain 0"])
        assert step_size == found["step size"]["chain 0"]
        average = 0.0
        for t, log_size in enumerate(log_sizes[1:500], 1):
            average += t**-0.75 * (log_size - average)  # Hoffman & Gelman 2014, kappa = 0.75
        # The last term, seen in no step, is within 2 nats of the average.
        assert math.log(step_size) == pytest.approx(average, abs=2 * 500**-0.75)
        variances.append(np.var(log_sizes[250:500]))
    y = -scipy.stats.norm.ppf(target / 2)
    bias = 4.5 * scipy.stats.norm.pdf(y) * y * (1 - y**2) / 2 * np.mean(variances)
    error = 4.5 * np.std(rates, ddof=1) / math.sqrt(len(rates))
    print(f"target {target}: {np.mean(rates):.3f}, error {error:.3f}, bias {bias:.3f}")
    assert -error < np.mean(rates) - target < bias + error


def test_without_warm_up_the_first_step_stays() -> None:
    found = run(MALA(standard_model, 0.25), 5, 0, 3).diagnostics()
    assert found["step_size"]["chain 0"] == [0.25] * 5
    found = run(MALA(standard_model), 5, 0, 3).diagnostics()  # curvature 1
    assert found["step_size"]["chain 0"] == pytest.approx([2 * STABLE_SHARE] * 5)


def eight_schools(data: Tensor, errors: Tensor) -> None:
    """Rubin 1981 without centring; priors of posteriordb."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(data)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("observed", dist.Normal(mu + tau * effect, errors), obs=data)


def eight_schools_law(data: Tensor, errors: Tensor) -> dict[str, tuple[float, float]]:
    """First two moments of mu and tau, by quadrature over tau: mu and the effects are normal."""
    tau = torch.linspace(0, 30, 30_001).double().square()[1:]  # dense near 0, up to 900
    variance = errors.double().square() + tau[:, None].square()
    precision = 1 / 25 + (1 / variance).sum(1)
    mean = (data / variance).sum(1) / precision
    log_law = (
        -(variance.log() + data.square() / variance).sum(1) / 2
        + precision * mean.square() / 2
        - precision.log() / 2
        - (1 + tau.square() / 25).log()
        + tau.log() / 2  # d tau = 2 sqrt(tau) d sqrt(tau)
    )
    law = log_law.softmax(0)
    return {
        "mu": (float(law @ mean), float(law @ (mean.square() + 1 / precision))),
        "tau": (float(law @ tau), float(law @ tau.square())),
    }


def test_eight_schools() -> None:
    data = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    law = eight_schools_law(data, errors)
    # posteriordb, eight_schools-eight_schools_noncentered: mean and its Monte Carlo error.
    assert abs(law["mu"][0] - 4.41051833695493) < 4.5 * 0.0330374705950917
    assert abs(law["tau"][0] - 3.60205952364059) < 4.5 * 0.0318615135640706
    kernel = MALA(eight_schools)
    mcmc = run(kernel, 8_000, 1_000, data, errors)
    # All of mcmc.diagnostics() would take half a gigabyte for as many draws.
    assert kernel.diagnostics()["divergences"] == []
    for name, moments in law.items():
        draws = mcmc.get_samples()[name].double()
        for power, expected in enumerate(moments, 1):
            values = draws**power
            size = effective_sample_size(values[None], 0, 1)
            error = float(values.std() / size.sqrt())
            print(f"{name}^{power}: {float(values.mean()):.2f}, {expected:.2f}, error {error:.2f}")
            assert size > 100
            assert abs(float(values.mean()) - expected) < 4.5 * error


def test_the_generator_decides() -> None:
    evaluate = points(normal)
    point = evaluate(starts(50))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first, again, other = (mala_step(point, evaluate, 0.5, generator(s))[0] for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.params["a"], again.params["a"])
    assert not torch.equal(first.params["a"], other.params["a"])


@pytest.mark.parametrize(
    ("options", "match", "remedy"),
    [
        ({"step_size": 0}, "step_size: got 0,", "a positive number"),
        ({"step_size": math.nan}, "step_size: got nan,", "a positive number"),
        ({"target_acceptance": 0.0}, "target_acceptance: got 0.0,", "such as 0.574"),
        ({"target_acceptance": 1.0}, "target_acceptance: got 1.0,", "such as 0.574"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], match: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        MALA(standard_model, **options)
    assert remedy in str(caught.value)
