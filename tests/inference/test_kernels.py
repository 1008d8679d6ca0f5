"""What every kernel for Pyro's MCMC does: those of this project, and Pyro's own beside them."""

import json
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_sep.inference.kernels.base import LangevinKernel
from pyro_sep.inference.kernels.mala import MALA
from pyro_sep.inference.kernels.preconditioned import PreconditionedSGLD
from pyro_sep.inference.kernels.sgld import SGLD
from pyro_sep.inference.state import LangevinState
from pyro_sep.inference.steps.mala import mala_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
    import arviz

Make = Callable[..., MCMCKernel]
OURS: dict[str, Make] = {
    "SGLD": lambda model, **options: SGLD(model, 0.04, **options),
    "PreconditionedSGLD": lambda model, **options: PreconditionedSGLD(model, 0.1, **options),
    "MALA": MALA,
}
KERNELS: dict[str, Make] = {**OURS, "HMC": lambda model: HMC(model, num_steps=4), "NUTS": NUTS}
DATA = torch.tensor([0.7, 1.9, 1.1])
CURVATURE = 1 / 4 + 3 / 0.25  # of the conjugate model's posterior
MEAN = float(DATA.sum()) / 0.25 / CURVATURE

every_kernel = pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
each_of_ours = pytest.mark.parametrize("make", OURS.values(), ids=OURS)


def run(kernel: MCMCKernel, draws: int, warmup: int, *, seed: int = 0, **options: Any) -> MCMC:
    pyro.set_rng_seed(seed)
    mcmc = MCMC(kernel, draws, warmup, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


def conjugate_model() -> None:
    """Three observations of each of ten means: normal posteriors of this CURVATURE and MEAN."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(10), 2.0).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("observed", dist.Normal(mean, 0.5).to_event(1), obs=DATA[:, None].expand(3, 10))


def mixed_model() -> None:
    """A constrained site and a matrix."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("observed", dist.Normal(weights.sum(), scale), obs=torch.tensor(1.3))


def expected_variance(kernel: MCMCKernel) -> float:
    """That of the conjugate posterior, after the bias of an unadjusted step."""
    share = 0.0
    if isinstance(kernel, PreconditionedSGLD):
        share = 0.1 * CURVATURE / (kernel.epsilon + kernel.square["mean"].sqrt())
    elif isinstance(kernel, SGLD):
        share = 0.04 * CURVATURE
    return float((1 / CURVATURE / (1 - torch.as_tensor(share) / 2)).mean())


@every_kernel
def test_a_conjugate_posterior(make: Make) -> None:
    kernel = make(conjugate_model)
    # Draws of NUTS hardly correlate, and cost several gradients each.
    mcmc = run(kernel, *((400, 100) if isinstance(kernel, NUTS) else (1200, 400)))
    draws = mcmc.get_samples()["mean"].double()
    squares = (draws - MEAN).square().mean(1)
    for name, values, expected in (
        ("mean", draws.mean(1), MEAN),
        ("variance", squares, expected_variance(kernel)),
    ):
        size = float(effective_sample_size(values[None], 0, 1))
        error = float(values.std()) / math.sqrt(size)
        print(name, float(values.mean()), expected, error, size)
        assert abs(float(values.mean()) - expected) < 4.5 * error
        assert 4.5 * error < 0.2 * expected  # or it would say nothing


@every_kernel
def test_a_model_of_a_constrained_site_and_a_matrix(make: Make) -> None:
    logs, found = [], []

    def hook(kernel: MCMCKernel, params: dict[str, Tensor], stage: str, step: int) -> None:
        assert params.keys() == {"scale", "weights"}
        logs.append(json.loads(json.dumps(kernel.logging())))
        if stage == "Sample":
            found.append(json.loads(json.dumps(kernel.diagnostics())))

    kernel = make(mixed_model)
    mcmc = run(kernel, 20, 10, hook_fn=hook)
    draws = mcmc.get_samples()
    assert draws["scale"].shape == (20,)
    assert draws["weights"].shape == (20, 2, 3)
    assert (draws["scale"] > 0).all()
    assert len(draws["scale"].unique()) > 5
    assert len(logs) == 30
    assert all("step size" in log for log in logs)
    divergences = mcmc.diagnostics()["divergences"]
    assert divergences.keys() == {"chain 0"}
    assert found[-1]["divergences"] == divergences["chain 0"]
    kernel.cleanup()
    kernel.cleanup()


@every_kernel
def test_the_seed_decides(make: Make) -> None:
    first, again, other = (
        run(make(mixed_model), 10, 5, seed=seed).get_samples()["weights"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_kernel
def test_two_chains_one_after_another(one_after_another: None, make: Make) -> None:
    mcmc = run(make(mixed_model), 10, 5, num_chains=2)
    draws = mcmc.get_samples(group_by_chain=True)["weights"]
    assert draws.shape == (2, 10, 2, 3)
    assert not torch.equal(draws[0], draws[1])
    assert mcmc.diagnostics()["divergences"].keys() == {"chain 0", "chain 1"}


@each_of_ours
def test_the_statistics_of_every_draw(one_after_another: None, make: Make) -> None:
    mcmc = run(make(mixed_model), 10, 5, num_chains=2)
    draws, found = mcmc.get_samples(group_by_chain=True), mcmc.diagnostics()
    names = ["lp", "step_size", "diverging"]
    names += ["acceptance_rate", "energy"] if make is MALA else []
    for chain in (0, 1):
        statistics = {name: found[name][f"chain {chain}"] for name in names}
        assert json.loads(json.dumps(statistics)) == statistics
        assert {len(values) for values in statistics.values()} == {10}
        assert statistics["diverging"] == [False] * 10
        assert statistics["step_size"][-1] == found["step size"][f"chain {chain}"]
        for draw, lp in enumerate(statistics["lp"]):
            sites = {name: values[chain, draw] for name, values in draws.items()}
            law = poutine.trace(poutine.condition(mixed_model, sites)).get_trace()
            log_jacobian = sites["scale"].log()  # of scale = exp(z)
            assert lp == pytest.approx(float(law.log_prob_sum() + log_jacobian), abs=1e-4)
    told = {"divergences", "warmup divergences", "step size"}
    assert found.keys() == {"scale", "weights", *told, *names}


@each_of_ours
def test_setup_resets_everything(make: Make) -> None:
    kernel = make(edge_model)
    chains = []
    for warmup in (15, 15, 0):
        pyro.set_rng_seed(2)
        kernel.setup(warmup)
        assert kernel.diagnostics()["divergences"] == []
        assert kernel.diagnostics()["warmup divergences"] == []
        assert "lp" not in kernel.diagnostics()
        params = kernel.initial_params
        for _ in range(30):
            params = kernel.sample(params)
        chains.append((float(params["x"]), kernel.diagnostics()))
    assert chains[0][1]["divergences"]
    assert chains[0] == chains[1]
    assert [len(found["lp"]) for _, found in chains] == [15, 15, 30]
    if make is OURS["SGLD"]:  # does the same in warm-up and after
        split, whole = chains[0][1], chains[2][1]
        after = [15 + draw for draw in split["divergences"]]
        assert split["warmup divergences"] + after == whole["divergences"]
        assert whole["warmup divergences"] == []


@each_of_ours
def test_statistics_are_let_go_with_the_chain(make: Make) -> None:
    kernel = make(mixed_model)
    kept = run(kernel, 10, 0).diagnostics()["lp"]["chain 0"]
    assert len(kept) == 10
    assert "lp" not in kernel.diagnostics()
    assert pickle.loads(pickle.dumps(kernel.diagnostics())) == kernel.diagnostics()


def edge_model() -> None:
    """A finite density everywhere, but beyond 0.5 of no gradient: it is 0 times infinity."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    beyond = x > 0.5
    pyro.factor("edge", torch.where(beyond, torch.zeros(()), -(0.5 - x).sqrt()))


@each_of_ours
def test_a_step_to_where_there_is_no_gradient_is_a_divergence(make: Make) -> None:
    kernel = make(edge_model, init_strategy=init_to_value(values={"x": torch.tensor(0.3)}))
    beyond = poutine.trace(poutine.condition(edge_model, {"x": torch.tensor(2.0)})).get_trace()
    assert math.isfinite(float(beyond.log_prob_sum()))
    mcmc = run(kernel, 300, 50)
    draws, found = mcmc.get_samples()["x"], mcmc.diagnostics()
    assert draws.isfinite().all()
    assert (draws <= 0.5).all()
    diverging = np.array(found["diverging"]["chain 0"])
    assert 5 < diverging.sum() < 250
    assert found["divergences"]["chain 0"] == diverging.nonzero()[0].tolist()
    stayed = (draws[1:] == draws[:-1]).numpy()
    assert stayed[diverging[1:]].all()
    if make is MALA:
        rate = np.array(found["acceptance_rate"]["chain 0"])
        assert (rate[diverging] == 0).all()
        assert (rate[~diverging] > 0).all()
    else:
        assert (stayed == diverging[1:]).all()


@each_of_ours
@pytest.mark.parametrize("warmup", [0, 1, 50])
def test_arviz_marks_the_draws_that_diverged(
    one_after_another: None, make: Make, warmup: int
) -> None:
    kernel = make(edge_model, init_strategy=init_to_value(values={"x": torch.tensor(0.3)}))
    mcmc = run(kernel, 60, warmup, num_chains=2)
    data, found = arviz.from_pyro(mcmc, log_likelihood=False), mcmc.diagnostics()
    true = [found["diverging"][f"chain {chain}"] for chain in (0, 1)]
    assert data.sample_stats["diverging"].values.tolist() == true
    assert np.sum(true) > 5


def test_the_energy_of_mala_is_that_of_a_leapfrog_step(one_after_another: None) -> None:
    mcmc = run(MALA(conjugate_model), 400, 200, num_chains=2)
    found = mcmc.diagnostics()
    data = arviz.from_pyro(mcmc, log_likelihood=False)
    data.sample_stats["energy"] = (("chain", "draw"), list(found["energy"].values()))
    kinetic = data.sample_stats["energy"].values + list(found["lp"].values())
    # |p|^2 / 2 of ten standard normal momenta: a Gamma law of mean and variance 5.
    assert (kinetic >= 0).all()
    assert abs(kinetic.mean() - 5) < 4.5 * math.sqrt(5 / kinetic.size)
    assert kinetic.var() == pytest.approx(5, rel=0.4)
    assert ((arviz.bfmi(data) > 0.3) & (arviz.bfmi(data) < 2)).all()


def test_the_energy_of_a_step_says_how_likely_it_was_taken() -> None:
    """The acceptance is exp(H - H'): of a step that is taken H' is the energy."""

    def evaluated(params: dict[str, Tensor]) -> LangevinState:
        x = params["x"]
        return LangevinState(
            params, x.square().sum(-1) ** 2, {"x": 4 * x * x.square().sum(-1)[:, None]}
        )

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2_000, 3, generator=generator, dtype=torch.float64)
    before = evaluated({"x": start})
    noise = torch.empty_like(start).normal_(generator=generator.clone_state())
    h = math.sqrt(2 * 0.02)
    half = noise - h / 2 * before.gradient["x"]
    proposed = evaluated({"x": start + h * half})
    momentum = half - h / 2 * proposed.gradient["x"]
    first = before.potential + noise.square().sum(-1) / 2
    last = proposed.potential + momentum.square().sum(-1) / 2
    after, info = mala_step(before, evaluated, h**2 / 2, generator)
    taken = (after.params["x"] != start).any(-1)
    assert 100 < taken.sum() < 1_990
    assert torch.allclose(info.energy, torch.where(taken, last, first))
    assert torch.allclose(info.acceptance_rate, (first - last).exp().clamp(max=1))


WRONG = [True, "0.1", math.nan, math.inf, 0.0, -1.0, [0.1], torch.ones(2), np.float32(-1), 1j]


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (SGLD, "step_size"),
        (MALA, "step_size"),
        (MALA, "target_acceptance"),
        (PreconditionedSGLD, "step_size"),
        (PreconditionedSGLD, "temperature"),
        (PreconditionedSGLD, "decay"),
        (PreconditionedSGLD, "epsilon"),
    ],
)
def test_arguments_of_no_use_are_named_in_a_line(make: Make, name: str, value: Any) -> None:
    options = {"step_size": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected a .*number") as caught:
        make(conjugate_model, **options)
    assert "\n" not in str(caught.value)


@each_of_ours
def test_a_kernel_needs_functions(make: Make) -> None:
    with pytest.raises(ValueError, match=r"^model: got 'model', expected a Pyro model"):
        make("model")
    with pytest.raises(ValueError, match=r"^init_strategy: got 0, expected a function"):
        make(conjugate_model, init_strategy=0)


def test_numbers_of_any_type_are_taken() -> None:
    kernel = MALA(conjugate_model, np.float32(0.5), torch.tensor(0.25))  # type: ignore[arg-type]
    assert (kernel.step_size, kernel.target_acceptance) == (0.5, 0.25)


@pytest.mark.parametrize("value", [-0.1, math.nan, "0.1"])
def test_a_schedule_that_leaves_its_range_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^step_size: got .*, expected a positive number"):
        run(SGLD(conjugate_model, lambda step: 0.1 if step < 3 else value), 5, 0)


@each_of_ours
def test_draws_are_not_one_tensor(make: Make) -> None:
    """A draw keeps its value while the chain goes on."""
    kernel = make(conjugate_model)
    kernel.setup(2)
    assert isinstance(kernel, LangevinKernel)
    params, kept = kernel.initial_params, []
    for _ in range(6):
        params = kernel.sample(params)
        kept.append((params["mean"], params["mean"].clone()))
    assert all(torch.equal(*pair) for pair in kept)
    assert not any(draw.requires_grad for draw, _ in kept)


def test_gradients_are_taken_where_the_caller_takes_none() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    draws = []
    for mode in (torch.enable_grad(), torch.no_grad()):
        pyro.set_rng_seed(0)
        mcmc = MCMC(MALA(model), num_samples=5, warmup_steps=5, disable_progbar=True)
        with mode:
            mcmc.run()
        draws.append(mcmc.get_samples()["x"])
    assert torch.equal(*draws)
