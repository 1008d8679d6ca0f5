import json
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from conftest import MakePriors
from pyro.infer import MCMC, Predictive
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_sep.inference.annealing.schedules import polynomial_decay
from pyro_sep.inference.kernels.curvature import STABLE_SHARE, largest_curvature
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.inference.steps.langevin import langevin_proposal
from pyro_sep.mixing.known import Mixing
from pyro_sep.mixing.known import model as mixture_model

GaussianLaw = Callable[..., tuple[Tensor, Tensor]]
BATCH = 400
DATA = torch.tensor([0.7, 1.9, 1.1])
SQUARES = 0.7**2 + 1.9**2 + 1.1**2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def biased(curvature: float, step_size: float) -> float:
    """Variance of unadjusted Langevin dynamics on a normal of this curvature."""
    return 1 / curvature / (1 - step_size * curvature / 2)


def run(kernel: SGLD, draws: int, warmup: int, *args: Any, **options: Any) -> MCMC:
    pyro.set_rng_seed(options.pop("seed", 0))
    mcmc = MCMC(kernel, draws, warmup, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


def assert_mean(values: Tensor, expected: float, sigmas: float = 4.5) -> None:
    """The mean of ``(draw, chain)``, by the error that its independent chains show."""
    batch = values.double().mean(0)
    error = float(batch.std()) / math.sqrt(len(batch))
    assert abs(float(batch.mean()) - expected) < sigmas * error, (batch.mean(), expected, error)


def normal_model(data: Tensor) -> None:
    """Posterior of every chain: precision 1 / 4 + 3 / 0.25, mean the data's sum / 0.25 over it."""
    with pyro.plate("chain", BATCH):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data)):
            pyro.sample("observed", dist.Normal(mean, 0.5), obs=data[:, None].expand(-1, BATCH))


NORMAL_CURVATURE = 1 / 4 + 3 / 0.25
NORMAL_MEAN = float(DATA.sum()) / 0.25 / NORMAL_CURVATURE


def standard_model() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


@pytest.mark.parametrize(("step_size", "temperature"), [(0.05, 1.0), (0.5, 1.0), (1.2, 0.25)])
def test_a_step_has_its_known_stationary_law(step_size: float, temperature: float) -> None:
    batch, noise = 100_000, generator()
    position = torch.full((batch,), 3.0).double()
    for _ in range(math.ceil(10 / min(step_size, 0.8))):  # |1 - eta|^steps < e^-10
        position = langevin_proposal(position, 1.0 - position, step_size, temperature, noise)
    variance = temperature / (1 - step_size / 2)
    assert abs(float(position.mean()) - 1) < 4.5 * math.sqrt(variance / batch)
    assert abs(float(position.var()) / variance - 1) < 4.5 * math.sqrt(2 / batch)
    unit = (position - 1) / math.sqrt(variance)
    assert scipy.stats.kstest(unit.numpy(), "norm").pvalue > 1e-4


def test_a_step_goes_up_the_gradient() -> None:
    position, gradient = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 4.0]])
    climbed = langevin_proposal(position, gradient, 0.1, temperature=0.0)
    assert torch.allclose(climbed, torch.tensor([[1.05, -1.6]]))
    sizes = torch.tensor([[0.1, 0.2]])
    climbed = langevin_proposal(position, gradient, sizes, temperature=0.0)
    assert torch.allclose(climbed, torch.tensor([[1.05, -1.2]]))
    position = torch.tensor([4.0]).double()
    for _ in range(100):
        position = langevin_proposal(position, -2 * (position - 1.5), 0.2, temperature=0.0)
    assert float(position) == pytest.approx(1.5, abs=1e-12)


def test_every_chain_has_noise_of_its_step_size() -> None:
    batch = 100_000
    sizes = torch.tensor([[0.02], [0.5]]).double()
    zeros = torch.zeros(2, batch).double()
    moved = langevin_proposal(zeros, zeros, sizes, 2.0, generator())
    assert ((moved.var(1) / (4 * sizes[:, 0]) - 1).abs() < 4.5 * math.sqrt(2 / batch)).all()
    assert abs(float(torch.corrcoef(moved)[0, 1])) < 4.5 / math.sqrt(batch)


def test_the_generator_decides() -> None:
    zeros = torch.zeros(10)
    first = langevin_proposal(zeros, zeros, 0.1, generator=generator())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(langevin_proposal(zeros, zeros, 0.1, generator=generator()), first)
    assert not torch.equal(langevin_proposal(zeros, zeros, 0.1, generator=generator(1)), first)
    assert torch.equal(torch.get_rng_state(), before)
    free = langevin_proposal(zeros, zeros, 0.1)
    torch.manual_seed(99)
    assert torch.equal(langevin_proposal(zeros, zeros, 0.1), free)


@pytest.mark.parametrize(
    ("step_size", "temperature"),
    [(None, 1.0), (0.5 / NORMAL_CURVATURE, 1.0), (0.5 / NORMAL_CURVATURE, 0.3)],
)
def test_two_chains_on_a_conjugate_model(
    one_after_another: None, step_size: float | None, temperature: float
) -> None:
    kernel = SGLD(normal_model, step_size, temperature)
    mcmc = run(kernel, 150, 100, DATA, num_chains=2)
    draws = mcmc.get_samples(group_by_chain=True)["mean"]
    assert draws.shape == (2, 150, BATCH)
    used = mcmc.diagnostics()["step size"]
    if step_size is None:
        step_size = 2 * STABLE_SHARE / NORMAL_CURVATURE
    assert used["chain 0"] == used["chain 1"] == pytest.approx(step_size, rel=1e-4)
    variance = temperature * biased(NORMAL_CURVATURE, step_size)
    for chain in draws:
        assert_mean(chain, NORMAL_MEAN)
        assert_mean((chain - NORMAL_MEAN).square(), variance)
    # Chains of their own: different starts, different noise.
    unit = (draws - NORMAL_MEAN) / math.sqrt(variance)
    across = (unit[0] * unit[1]).double().mean(0)
    assert abs(float(across.mean())) < 4.5 * float(across.std()) / math.sqrt(BATCH)
    if step_size < 0.1:
        assert float((draws[0, 0] - draws[1, 0]).abs().min()) > 0


def test_every_chain_has_a_start_of_its_own(one_after_another: None) -> None:
    starts: list[float] = []

    def hook(kernel: SGLD, params: dict[str, Tensor], stage: str, step: int) -> None:
        if step == 0:
            starts.append(float(params["x"][0]))

    run(SGLD(standard_model, 1e-12), 1, 0, num_chains=3, hook_fn=hook)
    assert len(starts) == 3
    assert min(abs(a - b) for a, b in combinations(starts, 2)) > 1e-3


def test_given_starts_are_taken(one_after_another: None) -> None:
    given = {"x": torch.arange(6.0).reshape(2, 3)}
    mcmc = run(SGLD(standard_model, 1e-12), 1, 0, num_chains=2, initial_params=given)
    drawn = mcmc.get_samples(group_by_chain=True)["x"][:, 0]
    assert torch.allclose(drawn, given["x"], atol=1e-4)


def grid_law(log_density: Callable[[Tensor], Tensor], step_size: float, grid: Tensor) -> Tensor:
    """Stationary law of unadjusted Langevin dynamics in one dimension, by its kernel on a grid."""
    points = grid.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(points).sum(), points)
    distance = grid - (grid + step_size * gradient)[:, None]
    kernel = (-distance.square() / (4 * step_size)).softmax(1)
    law = log_density(grid).softmax(0)
    for _ in range(2_000):
        law = law @ kernel
    return law


def gamma_model() -> None:
    """Of a rate with prior Gamma(3, 2), 4 events seen: Gamma(7, 3)."""
    with pyro.plate("chain", BATCH):
        rate = pyro.sample("site", dist.Gamma(3.0, 2.0))
        pyro.sample("observed", dist.Poisson(rate), obs=torch.full((BATCH,), 4.0))


def scale_model() -> None:
    with pyro.plate("chain", BATCH):
        scale = pyro.sample("site", dist.HalfNormal(1.0))
        with pyro.plate("data", 3):
            pyro.sample("observed", dist.Normal(0.0, scale), obs=DATA[:, None].expand(-1, BATCH))


@pytest.mark.parametrize(
    ("model", "log_density", "step_size"),
    [
        (gamma_model, lambda z: 7 * z - 3 * z.exp(), 0.03),
        (
            scale_model,
            # HalfNormal prior, three normal factors, and the Jacobian of s = exp(z).
            lambda z: -(2 * z).exp() / 2 - 3 * z - SQUARES * (-2 * z).exp() / 2 + z,
            0.03,
        ),
    ],
    ids=["gamma", "scale"],
)
def test_a_constrained_site(
    model: Callable[[], None], log_density: Callable[[Tensor], Tensor], step_size: float
) -> None:
    # Pyro's own start can be where the density is too steep for this step.
    start = init_to_value(values={"site": torch.ones(BATCH)})
    mcmc = run(SGLD(model, step_size, init_strategy=start), 300, 100)
    assert mcmc.diagnostics()["divergences"]["chain 0"] == []
    draws = mcmc.get_samples()["site"]
    assert (draws > 0).all()
    grid = torch.linspace(-3, 3, 1_201).double()
    law, exact = grid_law(log_density, step_size, grid), log_density(grid).softmax(0)
    for moment in (lambda z: z, lambda z: z.exp(), lambda z: z.square(), lambda z: (2 * z).exp()):
        expected = float(law @ moment(grid))
        assert_mean(moment(draws.log()), expected)
        # The step's bias is small, and known: the law is that of the model.
        assert expected == pytest.approx(float(exact @ moment(grid)), rel=0.06, abs=0.02)
    if model is gamma_model:
        assert float(exact @ grid.exp()) == pytest.approx(7 / 3, rel=1e-6)
        assert float(draws.mean()) == pytest.approx(7 / 3, rel=0.04)


def test_the_derived_step_is_stable_on_an_ill_conditioned_model() -> None:
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    curvatures = torch.tensor([1.0, 20.0])
    precision = turn.T @ torch.diag(curvatures) @ turn

    def model() -> None:
        with pyro.plate("chain", BATCH):
            pyro.sample("x", dist.MultivariateNormal(torch.ones(2), precision_matrix=precision))

    mcmc = run(SGLD(model), 400, 1_000)  # the slow direction forgets in 200 steps
    step_size = mcmc.diagnostics()["step size"]["chain 0"]
    assert step_size == pytest.approx(0.1 / 20, rel=1e-3)
    assert mcmc.diagnostics()["divergences"]["chain 0"] == []
    error = (mcmc.get_samples()["x"] - 1) @ turn.T
    for k, curvature in enumerate(curvatures.tolist()):
        assert_mean(error[..., k], 0)
        assert_mean(error[..., k].square(), biased(curvature, step_size))
    assert_mean(error[..., 0] * error[..., 1], 0)


def test_the_largest_curvature_of_a_gaussian_is_exact() -> None:
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator()).double()).Q
    for top in (7.0, -7.0):  # a saddle's bound is the same
        precision = basis @ torch.diag(torch.tensor([top, 2.0, 1.0, 0.5, -0.1]).double()) @ basis.T

        def potential(params: dict[str, Tensor], precision: Tensor = precision) -> Tensor:
            z = torch.cat([params["a"].flatten(), params["b"].flatten()])
            return z @ precision @ z / 2 + 3 * z.sum()

        params = {"a": torch.ones(2, 1).double(), "b": torch.zeros(3).double()}
        assert largest_curvature(potential, params) == pytest.approx(7, rel=1e-9)
        assert not params["a"].requires_grad


@pytest.mark.parametrize(
    "potential",
    [
        lambda params: 0 * params["a"].sum(),
        lambda params: 2 * params["a"].sum(),
        lambda params: params["a"].abs().sum(),
        lambda params: params["a"].log().square().sum(),
        lambda params: math.inf * params["a"].square().sum(),
    ],
    ids=["zero", "linear", "corner", "nan", "infinite"],
)
def test_no_step_size_from_a_density_without_curvature(
    potential: Callable[[dict[str, Tensor]], Tensor],
) -> None:
    with pytest.raises(ValueError, match="flat or not finite at the start") as caught:
        largest_curvature(potential, {"a": -torch.ones(3)})
    assert "\n" not in str(caught.value)


def test_a_model_without_curvature_asks_for_a_step_size() -> None:
    def model() -> None:
        pyro.sample("x", dist.Laplace(0.0, 1.0))

    with pytest.raises(ValueError, match="no step size can be derived; give one"):
        run(SGLD(model), 1, 0)


def test_a_schedule_runs_over_the_steps_of_every_chain(one_after_another: None) -> None:
    schedule = polynomial_decay(0.3, 4, 0.75)
    used: list[float] = []

    def hook(kernel: SGLD, params: dict[str, Tensor], stage: str, step: int) -> None:
        used.append(kernel.diagnostics()["step size"])

    run(SGLD(standard_model, schedule), 6, 5, num_chains=2, hook_fn=hook)
    assert used == [schedule(step) for step in range(11)] * 2


def test_a_decaying_step_forgets_its_bias() -> None:
    schedule = polynomial_decay(0.8 / NORMAL_CURVATURE, 5, 1.0)
    draws = run(SGLD(normal_model, schedule), 100, 300, DATA).get_samples()["mean"]
    last = schedule(400)
    assert last * NORMAL_CURVATURE < 0.01
    assert_mean(draws, NORMAL_MEAN)
    assert_mean((draws - NORMAL_MEAN).square(), 1 / NORMAL_CURVATURE)


def edge_model() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("edge", -(0.5 - x).sqrt())  # beyond, neither density nor gradient


def test_a_step_over_the_edge_is_counted_and_not_taken(one_after_another: None) -> None:
    kernel = SGLD(edge_model, 0.3)
    mcmc = run(kernel, 200, 50, num_chains=2, initial_params={"x": torch.tensor([-1.0, -0.5])})
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert (draws <= 0.5).all()
    divergences = mcmc.diagnostics()["divergences"]
    for chain in (0, 1):
        found = divergences[f"chain {chain}"]
        assert max(found) < 200  # counted anew in every chain, from its first draw
        stayed = (draws[chain, 1:] == draws[chain, :-1]).nonzero()[:, 0] + 1
        assert [draw for draw in found if draw] == stayed.tolist()
        assert 20 < len(stayed) < 120
        assert mcmc.diagnostics()["warmup divergences"][f"chain {chain}"]
    assert divergences["chain 0"] != divergences["chain 1"]


def test_a_huge_step_is_a_divergence() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("quartic", -(x**4))

    mcmc = run(SGLD(model, 50.0), 30, 0)
    assert len(mcmc.diagnostics()["divergences"]["chain 0"]) > 10
    assert mcmc.get_samples()["x"].isfinite().all()


def test_what_the_kernel_reports() -> None:
    logs: list[dict[str, str]] = []

    def hook(kernel: SGLD, params: dict[str, Tensor], stage: str, step: int) -> None:
        logs.append(json.loads(json.dumps(kernel.logging())))
        lp = float(dist.Normal(0.0, 1.0).log_prob(params["x"]).sum())
        assert float(logs[-1]["lp"]) == pytest.approx(lp, abs=0.051)

    kernel = SGLD(standard_model, 0.25)
    assert json.loads(json.dumps(kernel.logging())).keys() == {"step size", "lp"}
    assert kernel.diagnostics()["divergences"] == []
    run(kernel, 5, 3, hook_fn=hook)
    assert len(logs) == 8
    assert float(logs[-1]["step size"]) == 0.25
    told = {"divergences": [], "warmup divergences": [], "step size": 0.25}
    assert json.loads(json.dumps(kernel.diagnostics())) == told
    kernel.cleanup()
    kernel.cleanup()
    # And it runs again.
    assert run(kernel, 4, 0).get_samples()["x"].shape == (4, 3)


def test_a_step_takes_one_gradient() -> None:
    calls = 0

    def model() -> None:
        nonlocal calls
        calls += 1
        standard_model()

    kernel = SGLD(model, 0.1)
    pyro.set_rng_seed(0)
    kernel.setup(0)
    params = kernel.sample(kernel.initial_params)
    calls = 0
    for _ in range(7):
        params = kernel.sample(params)
    assert calls == 7


def test_the_seed_decides() -> None:
    draws = [
        run(SGLD(normal_model, 0.01), 5, 2, DATA, seed=seed).get_samples()["mean"]
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_draws_predict() -> None:
    def model(data: Tensor | None) -> None:
        with pyro.plate("chain", BATCH):
            mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
            with pyro.plate("data", 3):
                obs = None if data is None else data[:, None].expand(-1, BATCH)
                pyro.sample("observed", dist.Normal(mean, 0.5), obs=obs)

    step_size = 0.5 / NORMAL_CURVATURE
    mcmc = run(SGLD(model, step_size), 100, 40, DATA)
    predicted = Predictive(model, mcmc.get_samples())(None)["observed"]
    assert predicted.shape == (100, 3, BATCH)
    variance = biased(NORMAL_CURVATURE, step_size) + 0.25
    for observed in predicted.movedim(1, 0):
        assert_mean(observed, NORMAL_MEAN)
        assert_mean((observed - NORMAL_MEAN).square(), variance)


@pytest.mark.parametrize("gains", [(0.3, 1.5), (1.2, 0.4, 0.8)])
def test_the_posterior_of_a_mixture(
    gaussian_priors: MakePriors, gaussian_posterior: GaussianLaw, gains: tuple[float, ...]
) -> None:
    """The chain's average and power have the law of an AR(1) process around the closed form."""
    levels, sigma, time, draws = (0.2, 0.5, 0.4)[: len(gains)], 0.3, 64, 600
    mixing = Mixing(gains, 0.05)
    mixture = torch.randn(time, generator=generator())
    pull, covariance = gaussian_posterior(levels, mixing, sigma)
    spreads, directions = torch.linalg.eigh(covariance)  # variances, smallest first
    step_size = 0.4 * float(spreads[0])
    kernel = SGLD(mixture_model, step_size)
    mcmc = run(kernel, draws, 200, mixture, gaussian_priors(*levels), mixing, sigma)
    kept = mcmc.get_samples()
    sources = torch.stack([kept[name] for name in gaussian_priors(*levels)], 1).double()
    error = directions.T @ (sources - pull[:, None] * mixture)  # (draw, direction, time)
    variance = torch.tensor([biased(1 / float(s), step_size) for s in spreads]).double()
    memory = (1 - step_size / spreads).numpy()
    lags = np.arange(1, draws)
    long = 1 + 2 * ((1 - lags / draws) * memory[:, None] ** lags).sum(1)
    unit = error.mean(0) / (variance * torch.tensor(long) / draws).sqrt()[:, None]
    square = float(unit.square().sum())
    assert 1e-5 < scipy.stats.chi2(unit.numel()).cdf(square) < 1 - 1e-5
    power = error.square().mean((0, 2)) / variance
    count = draws * time * (1 - memory**2) / (1 + memory**2)
    assert (np.abs(power.numpy() - 1) < 4.5 * np.sqrt(2 / count)).all(), power


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"step_size": 0}, "step_size: got 0,"),
        ({"step_size": -0.1}, "step_size: got -0.1,"),
        ({"step_size": math.nan}, "step_size: got nan,"),
        ({"temperature": 0.0}, "temperature: got 0.0,"),
        ({"temperature": math.nan}, "temperature: got nan,"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        SGLD(standard_model, **options)
    assert "expected a positive number" in str(caught.value)
    assert "\n" not in str(caught.value)
