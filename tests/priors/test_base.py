"""What every prior over a source has to be: one test for all families of networks."""

import copy
import functools
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from networks import HALVES, NESTED, WAVENET, levels, random_network
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine import trace
from torch import Tensor

from pyro_sep.models.registry import FAMILIES, NetworkConfig, build, family_of
from pyro_sep.models.waveform import Waveform, WaveformConfig
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.priors.io import load_prior, save_prior
from pyro_sep.priors.networks import PRIORS, FloWaveNetPrior, NetworkPrior, WaveNetPrior
from pyro_sep.priors.waveform import WaveformPrior

TIME = 8
CONFIGS: dict[str, NetworkConfig] = {"wavenet": WAVENET, "nested": NESTED, "halves": HALVES}
ORACLE = "oracle"  # no family: nothing in it is learned
#: Of the same families, with frames of two audio samples.
PAIRS: dict[str, NetworkConfig] = {
    "wavenet": WAVENET,
    "nested": replace(NESTED, squeeze=2, flows=1),
    "halves": replace(HALVES, blocks=1),
}
#: Of the same families, without noise.
CLEAN = {name: replace(config, sigma_min=0.0, sigma_max=0.0) for name, config in CONFIGS.items()}

MakePrior = Callable[..., NetworkPrior]
learned = pytest.mark.parametrize("make", CONFIGS, indirect=True)


def prior_of(config: NetworkConfig, **arguments: object) -> NetworkPrior:
    network = copy.deepcopy(random_network(config))
    settings = {"name": "saw", "sample_rate": 16_000, "time": TIME} | arguments
    return PRIORS[family_of(config)](network, **settings)  # type: ignore[arg-type]


def oracle_of(**arguments: object) -> NetworkPrior:
    settings = {"name": "saw", "sample_rate": 16_000, "time": TIME} | arguments
    network = Waveform(WaveformConfig("saw")).double()
    return WaveformPrior(network, **settings)  # type: ignore[arg-type]


@pytest.fixture(params=[*CONFIGS, ORACLE])
def make(request: pytest.FixtureRequest) -> MakePrior:
    """Priors of one network, each with a copy of it."""
    if request.param == ORACLE:
        return oracle_of
    return functools.partial(prior_of, CONFIGS[request.param])


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_every_family_has_a_prior() -> None:
    assert PRIORS.keys() == FAMILIES.keys()
    assert list(PRIORS.values()) == [WaveNetPrior, FloWaveNetPrior]
    assert not WaveNetPrior.has_rsample
    assert FloWaveNetPrior.has_rsample


def test_shapes_of_one_law(make: MakePrior) -> None:
    prior = make()
    assert isinstance(prior, dist.TorchDistribution)
    assert (prior.batch_shape, prior.event_shape, prior.event_dim) == ((), (TIME,), 1)
    assert prior.support.event_dim == 1
    assert prior.sample().shape == (TIME,)
    assert prior.sample(torch.Size((3, 2))).shape == (3, 2, TIME)
    assert prior(sample_shape=(5,)).shape == (5, TIME)
    assert prior.log_prob(noise(7, 2, TIME)).shape == (7, 2)
    assert prior.frame(12).event_shape == (12,)
    assert prior.frame(12).log_prob(noise(12)).shape == ()
    assert prior.frame(12).sample().shape == (12,)
    assert prior.event_shape == (TIME,)


def test_shapes_of_a_batch(make: MakePrior) -> None:
    prior = make().condition(torch.tensor([[0.1], [2.0]]))
    assert (prior.batch_shape, prior.event_shape) == ((2, 1), (TIME,))
    assert prior.sample(torch.Size((4,))).shape == (4, 2, 1, TIME)
    assert prior.log_prob(noise(4, 2, 1, TIME)).shape == (4, 2, 1)
    wide = prior.expand(torch.Size((5, 2, 3)))
    assert type(wide) is type(prior)
    assert (wide.batch_shape, wide.event_shape) == ((5, 2, 3), (TIME,))
    assert wide.sample().shape == (5, 2, 3, TIME)
    assert torch.equal(wide.sigma[3, :, 1:2], prior.sigma)
    assert prior.expand_by([4]).batch_shape == (4, 2, 1)
    assert prior.to_event(1).event_shape == (1, TIME)
    assert prior.frame(12).batch_shape == (2, 1)
    with pytest.raises(RuntimeError):
        prior.expand(torch.Size((3, 3)))


def test_condition_sets_the_noise_level(make: MakePrior) -> None:
    prior = make()
    assert float(prior.sigma) == prior.sigmas[0] == prior.network.config.sigma_min
    assert prior.sigmas == (0.01, 50.0 if isinstance(prior, WaveformPrior) else 5.0)
    assert prior.rms == prior.network.config.sigma_data
    assert prior.multiple == prior.network.config.multiple
    loud = prior.condition(0.7)
    assert float(loud.sigma) == 0.7
    assert loud.sigma.dtype == torch.float64  # the network's
    assert type(loud) is type(prior)
    assert (loud.name, loud.sample_rate, loud.event_shape) == ("saw", 16_000, (TIME,))
    assert loud.network is prior.network
    assert float(prior.sigma) == 0.01  # a new law; the old one is as it was
    x = noise(2, TIME)
    assert torch.equal(loud.log_prob(x), prior.network.log_prob(x, loud.sigma.expand(2)))
    batch = prior.condition(levels(0.7, 2.0)).log_prob(x)
    assert torch.allclose(batch[0], loud.log_prob(x[0]), rtol=1e-12)
    assert torch.allclose(batch[1], prior.condition(2.0).log_prob(x[1]), rtol=1e-12)


@learned
def test_misfit_is_one_of_what_a_prior_draws(make: MakePrior) -> None:
    torch.manual_seed(2)
    prior = make(time=32).condition(levels(0.3, 1.0))
    misfit = prior.misfit(prior.sample(torch.Size((200,))))
    assert misfit.shape == (200, 2)
    error = math.sqrt(2 / (32 * 200))
    assert (misfit.mean(0) - 1).abs().max() < 4 * error
    assert misfit.std(0).numpy() == pytest.approx(math.sqrt(2 / 32), rel=0.2)
    strange = prior.misfit(prior.sample() + 5)
    assert (strange > 2).all()


def test_misfit_of_the_true_prior_is_not_known() -> None:
    misfit = oracle_of().misfit(noise(3, TIME))
    assert misfit.shape == (3,)
    assert misfit.isnan().all()


@pytest.mark.parametrize("sigma", [0.0, -1.0, 0.009, 50.1, float("nan"), [0.1, 60.0]])
def test_unknown_noise_levels(make: MakePrior, sigma: float | list[float]) -> None:
    match = r"^sigma: got .*, expected 0\.01 to 50?, .* prior of 'saw' knows; "
    match += r"use prior\.condition\(0\.01\), or another level of these$"
    with pytest.raises(ValueError, match=match) as caught:
        make().condition(torch.tensor(sigma))
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_range_are_known_in_float32(make: MakePrior) -> None:
    prior = make()
    for sigma in prior.sigmas:
        assert prior.condition(torch.tensor(sigma)).log_prob(noise(TIME)).isfinite()


@pytest.mark.parametrize("sigma", [0.0, 0.129])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_of_one_noise_level(name: str, sigma: float) -> None:
    prior = prior_of(replace(CONFIGS[name], sigma_min=sigma, sigma_max=sigma))
    assert prior.sigmas == (sigma, sigma)
    assert float(prior.sigma) == sigma
    for dtype in (torch.float32, torch.float64):
        assert float(prior.condition(torch.tensor(sigma, dtype=dtype)).sigma) == pytest.approx(
            sigma, rel=1e-6
        )
    with pytest.raises(ValueError, match=f"expected {sigma:g} to {sigma:g}, the noise level"):
        prior.condition(0.2)


@pytest.mark.parametrize(
    "name",
    [
        "wavenet",
        "nested",
        "halves",
    ],
)
def test_audio_without_noise_has_a_density(name: str) -> None:
    prior = prior_of(CLEAN[name])
    x = noise(2, TIME).requires_grad_()
    value = prior.log_prob(x)
    (score,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert score.isfinite().all()
    assert prior.log_prob(torch.zeros(TIME).double()).isfinite()  # digital silence
    assert prior.sample().isfinite().all()


def test_an_event_is_a_multiple(make: MakePrior) -> None:
    prior = make()
    bad = [0, -prior.multiple, *range(TIME + 1, TIME + prior.multiple)]
    for time in bad:
        match = (
            f"^time: got {time} audio samples, expected a positive multiple of {prior.multiple} "
            "for the prior of 'saw'; "
        )
        with pytest.raises(ValueError, match=match) as caught:
            prior.frame(time)
        assert "\n" not in str(caught.value)
    assert prior.frame(TIME + prior.multiple).event_shape == (TIME + prior.multiple,)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(WAVENET, id="1"),
        pytest.param(NESTED, id="4"),
        pytest.param(replace(NESTED, squeeze=48), id="48"),
    ],
)
def test_by_default_an_event_is_near_a_second(config: NetworkConfig) -> None:
    prior = PRIORS[family_of(config)](build(config), name="saw", sample_rate=16_000)
    (time,) = prior.event_shape
    assert abs(time - 16_000) < config.multiple
    assert time % config.multiple == 0


def test_log_prob_broadcasts(make: MakePrior) -> None:
    sigmas = levels(0.1, 0.5, 2.0)
    prior = make().condition(sigmas)
    x = noise(4, 1, TIME)
    table = prior.log_prob(x)
    assert table.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            alone = prior.condition(sigmas[j]).log_prob(x[i, 0])
            assert torch.allclose(table[i, j], alone, rtol=1e-11)
    assert torch.allclose(prior.log_prob(x[0, 0]), table[0], rtol=1e-11)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_log_prob_has_the_gradient_of_its_value_alone(make: MakePrior, sigma: float) -> None:
    prior = make().condition(sigma)
    assert not any(p.requires_grad for p in prior.network.parameters())
    assert not prior.network.training
    x = noise(TIME).requires_grad_()
    prior.log_prob(x).backward()
    assert x.grad is not None
    step = 1e-4 * sigma
    nudges = step * torch.eye(TIME, dtype=torch.float64)
    above, below = (prior.log_prob(x.detach() + sign * nudges) for sign in (1, -1))
    # Error of order step^2 / sigma^3 = 1e-8 / sigma, and of rounding / step.
    assert torch.allclose((above - below) / (2 * step), x.grad, rtol=1e-6, atol=1e-6 / sigma)
    assert x.grad.norm() > 0.1
    assert not prior.sample().requires_grad


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_density_integrates_to_one(name: str, sigma: float) -> None:
    prior = prior_of(PAIRS[name], time=2, sigma=sigma)
    reach = 8 * float(prior.sample(torch.Size((1_000,))).abs().quantile(0.9))
    axis, step = np.linspace(-reach, reach, 301, retstep=True)
    grid = torch.cartesian_prod(*[torch.from_numpy(axis)] * 2)
    density = prior.log_prob(grid).exp()
    # A smooth density's sum over a grid is exact; kinks of a network cost an order of step^2.
    assert float(density.sum()) * float(step) ** 2 == pytest.approx(1, abs=1e-3)


def test_draws_follow_the_density(make: MakePrior) -> None:
    """For a Gaussian q in the midst of p: E_p[h q / p] = E_q[h], for h of order 0, 1 and 2."""
    prior = make(time=4, sigma=1.0)
    count = 3_000 if isinstance(prior, WaveformPrior) else 10_000  # the oracle's are slow
    torch.manual_seed(0)
    first, second = prior.sample(torch.Size((2, count))).unbind()
    mean, std = first.mean(0), 0.6 * first.std(0)
    q = torch.distributions.Normal(mean, std)
    weight = (q.log_prob(second).sum(-1) - prior.log_prob(second)).exp()
    u = (second - mean) / std
    pairs = torch.tensor([(i, j) for i in range(4) for j in range(i + 1)]).T
    moments = torch.cat([torch.ones(count, 1), u, u[:, pairs[0]] * u[:, pairs[1]]], 1)
    expected = torch.cat([torch.ones(1), torch.zeros(4), (pairs[0] == pairs[1]).double()])
    terms = weight[:, None] * moments
    error = terms.std(0) / math.sqrt(count)
    assert float(error.max()) < 0.1
    assert ((terms.mean(0) - expected).abs() < 4.5 * error).all()


def test_each_row_is_drawn_at_its_own_noise_level(make: MakePrior) -> None:
    prior, count = make(time=4), 2_000
    sigmas = levels(0.1, 3.0)
    torch.manual_seed(0)
    together = prior.condition(sigmas).sample(torch.Size((count,)))
    alone = torch.stack([prior.condition(s).sample(torch.Size((count,))) for s in sigmas], 1)
    power, expected = (x.square().mean(-1) for x in (together, alone))
    error = (power.var(0) + expected.var(0)).sqrt() / math.sqrt(count)
    assert ((power.mean(0) - expected.mean(0)).abs() < 4 * error).all()
    assert float(power[:, 1].mean()) > 4 * float(power[:, 0].mean())


def test_values_outside_the_support_are_refused(make: MakePrior) -> None:
    prior = make(validate_args=True)
    bad = noise(TIME)
    bad[3] = float("nan")
    for law in (prior, prior.condition(0.3), prior.expand(torch.Size((2,)))):
        with pytest.raises(ValueError, match="support"):
            law.log_prob(bad)
        expected = r"^value: got 4 audio samples, expected 8, .*; use prior\.frame\(4\)$"
        with pytest.raises(ValueError, match=expected):
            law.log_prob(noise(TIME - 4))
    assert prior.log_prob(noise(TIME)).isfinite()


def test_a_value_changed_in_place_has_its_new_density(make: MakePrior) -> None:
    prior = make().condition(0.5)
    torch.manual_seed(0)
    for x in (noise(3, TIME), prior.sample(torch.Size((3,)))):
        before = prior.log_prob(x)
        assert torch.equal(prior.log_prob(x), before)
        x.mul_(0.5).add_(0.2)
        assert torch.equal(prior.log_prob(x), prior.log_prob(x.clone()))
        assert not torch.allclose(prior.log_prob(x), before, rtol=1e-3)


def test_in_a_plate(make: MakePrior) -> None:
    prior = make()
    sigmas = levels(0.2, 1.0)

    def model() -> Tensor:
        with pyro.plate("source", 2), pyro.plate("frame", 3):
            return pyro.sample("x", prior.condition(sigmas))

    pyro.set_rng_seed(0)
    recorded = trace(model).get_trace()
    x = recorded.nodes["x"]["value"]
    assert x.shape == (3, 2, TIME)
    assert len(x.flatten().unique()) == x.numel()
    expected = sum(prior.condition(sigmas[k]).log_prob(x[:, k]).sum() for k in range(2))
    assert torch.allclose(recorded.log_prob_sum(), expected, rtol=1e-11)


def test_in_predictive(make: MakePrior) -> None:
    prior = make().condition(0.3)

    def model() -> Tensor:
        return pyro.sample("mixture", dist.Delta(pyro.sample("x", prior).sum(-1)))

    for parallel in (False, True):
        draws = Predictive(model, num_samples=5, parallel=parallel)()
        assert draws["x"].shape == (5, TIME)
        assert torch.allclose(draws["mixture"].reshape(5), draws["x"].sum(-1))
        assert len(draws["x"][:, 0].unique()) == 5


def test_nuts_sees_the_density(make: MakePrior) -> None:
    prior = make(time=4).condition(0.5)
    start = noise(4)

    def model() -> Tensor:
        return pyro.sample("x", prior)

    pyro.set_rng_seed(0)
    kernel = NUTS(model, init_strategy=init_to_value(values={"x": start}))
    kernel.setup(warmup_steps=2)
    assert torch.equal(kernel.initial_params["x"], start)  # the support is the whole space
    assert torch.allclose(kernel.potential_fn({"x": start}), -prior.log_prob(start), rtol=1e-12)
    params = kernel.initial_params
    for _ in range(3):
        params = kernel.sample(params)
        assert prior.log_prob(params["x"]).isfinite()
    assert (params["x"] != start).all()


def test_nuts_draws_what_the_prior_draws(make: MakePrior) -> None:
    prior = make(time=4).condition(1.0)

    def model() -> Tensor:
        return pyro.sample("x", prior)

    pyro.set_rng_seed(0)
    direct = prior.sample(torch.Size((20_000,))).numpy()
    kernel = NUTS(model, init_strategy=init_to_value(values={"x": noise(4)}), max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=120, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"].numpy()
    assert x.shape == (120, 4)
    for draws, expected in ((x, direct), (x**2, direct**2)):
        sizes = np.array([min(float(arviz.ess(draws[None, :, i])), 120) for i in range(4)])
        error = draws.std(0) / np.sqrt(sizes)
        assert sizes.min() > 5
        assert (np.abs(draws.mean(0) - expected.mean(0)) < 4 * error).all()


def test_pickling(make: MakePrior) -> None:
    prior = make().condition(torch.tensor([0.2, 1.0]))
    pickled = pickle.loads(pickle.dumps(prior))
    assert type(pickled) is type(prior)
    assert (pickled.name, pickled.sample_rate) == ("saw", 16_000)
    assert (pickled.batch_shape, pickled.event_shape) == ((2,), (TIME,))
    assert torch.equal(pickled.log_prob(noise(2, TIME)), prior.log_prob(noise(2, TIME)))
    draws = []
    for law in (prior, pickled):
        torch.manual_seed(3)
        draws.append(law.sample())
    assert torch.equal(*draws)


@learned
def test_a_copy_has_weights_of_its_own(make: MakePrior) -> None:
    prior = make().condition(0.5)
    x = noise(TIME)
    before = prior.log_prob(x)
    copied = copy.deepcopy(prior)
    assert torch.equal(copied.log_prob(x), before)
    for parameter in copied.network.parameters():
        parameter.mul_(1.5)
    assert torch.equal(prior.log_prob(x), before)
    changed = copied.log_prob(x)
    assert not torch.allclose(changed, before, rtol=1e-3)
    assert torch.equal(copied.condition(0.5).log_prob(x), changed)
    torch.manual_seed(0)
    first = copied.sample()
    torch.manual_seed(0)
    assert torch.equal(copied.condition(0.5).sample(), first)  # drawn by the weights it has now


@learned
def test_saving_keeps_the_density(make: MakePrior, tmp_path: Path) -> None:
    prior = make().to(torch.float32)
    save_prior(prior, tmp_path / "saw.safetensors")
    torch.manual_seed(99)
    loaded = load_prior(tmp_path / "saw.safetensors").frame(TIME).condition(0.3)
    assert type(loaded) is type(prior)
    assert loaded.network.config == prior.network.config
    assert (loaded.name, loaded.sample_rate) == ("saw", 16_000)
    x = noise(3, TIME).float()
    assert torch.equal(loaded.log_prob(x), prior.condition(0.3).log_prob(x))
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_to_moves_the_noise_level_with_the_network(make: MakePrior) -> None:
    prior = make().condition(0.3)
    x = noise(TIME)
    before = prior.log_prob(x)
    single = prior.to(torch.float32)
    assert type(single) is type(prior)
    assert single.sigma.dtype == torch.float32
    assert single.sample().dtype == torch.float32
    assert float(single.sigma) == pytest.approx(0.3, rel=1e-7)
    value = single.log_prob(x.float())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(before), abs=1e-3)
    double = single.to(torch.float64)
    assert double.sample().dtype == torch.float64
    assert double.log_prob(x).dtype == torch.float64


@learned
def test_segments_give_the_density_of_the_whole(make: MakePrior) -> None:
    prior = make(time=512, sigma=0.3)
    x = torch.randn(3, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, lengths = prior.log_prob(x), []
    prior.network.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[-1]))
    in_parts = prior.in_segments(64 / prior.sample_rate)
    assert torch.allclose(in_parts.log_prob(x), whole, rtol=1e-10)
    assert max(lengths) < 256
    assert (in_parts.event_shape, in_parts.sigma) == (prior.event_shape, prior.sigma)


@learned
def test_segments_are_at_least_an_audio_sample(make: MakePrior) -> None:
    for seconds in (0.0, -1.0, math.nan, math.inf, 0.9 / 16_000):
        with pytest.raises(ValueError, match=r"^segment: got .* s, expected at least 1 / 16000 s"):
            make().in_segments(seconds)


def test_a_true_prior_hears_a_frame_at_once() -> None:
    with pytest.raises(ValueError, match="segment: got 1 s for the true prior of 'saw', expected"):
        oracle_of().in_segments(1.0)


def test_the_noise_widens_the_samples_of_a_wavenet() -> None:
    # An untrained law is iid: variance of four equal components, and of the noise.
    torch.manual_seed(0)
    network, count = WaveNet(WAVENET).double(), 400
    prior = WaveNetPrior(network, name="saw", sample_rate=16_000, time=10)
    clean = network(torch.zeros(1, 1).double(), torch.ones(1).double())
    variance = float((clean.mean**2 + clean.scale**2).mean())
    for sigma in (0.1, 2.0):
        torch.manual_seed(0)
        x = prior.condition(sigma).sample(torch.Size((count,)))
        expected = variance + sigma**2
        # The kurtosis of such a mixture is below that of a Gaussian: std of a variance.
        error = expected * (2 / x.numel()) ** 0.5
        assert float(x.square().mean()) == pytest.approx(expected, abs=4 * error)


@pytest.fixture(params=["float32", "float64"])
def either(request: pytest.FixtureRequest, make: MakePrior) -> NetworkPrior:
    """A prior of each type of floats."""
    return make().to(getattr(torch, request.param)).condition(0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_audio_of_any_type_of_floats_has_a_density(
    either: NetworkPrior, dtype: torch.dtype
) -> None:
    own = either.sigma.dtype
    x = noise(3, TIME).to(dtype).requires_grad_()
    y = x.detach().to(own).requires_grad_()
    value, expected = either.log_prob(x), either.log_prob(y)
    assert value.dtype == own
    assert torch.equal(value, expected)
    (score,), (expected_score,) = (
        torch.autograd.grad(log_prob.sum(), at) for log_prob, at in ((value, x), (expected, y))
    )
    assert score.dtype == dtype
    assert torch.equal(score, expected_score.to(dtype))
    assert torch.equal(either.misfit(x).nan_to_num(), either.misfit(y).nan_to_num())


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "float64": functools.partial(default, torch.float64),
    "bfloat16": functools.partial(default, torch.bfloat16),
    "meta": functools.partial(torch.device, "meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_the_caller_has_set_changes_no_density(make: MakePrior, mode: str) -> None:
    prior, x = make().to(torch.float32), noise(3, TIME).float()

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        law = prior.frame(TIME).condition(0.3)
        found = [law.log_prob(x), law.misfit(x).nan_to_num(), law.sample(torch.Size((2,)))]
        if isinstance(law, FloWaveNetPrior):
            found += [law.transforms[0].inv(x), law.transforms[0].log_abs_det_jacobian(x, x)]
        return found

    expected = run()
    with MODES[mode]():
        found = run()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_a_true_prior_is_the_same_wherever_it_is_made(mode: str) -> None:
    x, expected = noise(TIME), WaveformPrior.of("saw").frame(TIME)
    with MODES[mode]():
        prior = WaveformPrior.of("saw").frame(TIME)
    assert prior.sigma.dtype == torch.float32
    assert torch.equal(prior.log_prob(x), expected.log_prob(x))


def test_a_law_of_inference_mode_has_gradients_outside_of_it(make: MakePrior) -> None:
    expected = make().condition(0.3).log_prob(noise(TIME))
    with torch.inference_mode():
        made = make()
        conditioned = make().condition(levels(0.3)[0])
    for law in (made.condition(0.3), conditioned):
        x = noise(TIME).requires_grad_()
        value = law.log_prob(x)
        (score,) = torch.autograd.grad(value, x)
        assert torch.equal(value, expected)
        assert score.isfinite().all()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.ones(TIME, dtype=torch.int16), "torch.int16"),
        (torch.ones(TIME, dtype=torch.bool), "torch.bool"),
        (torch.ones(TIME, dtype=torch.complex64), "torch.complex64"),
        (np.ones(TIME), r"an array of shape \(8,\)"),
        ([0.1] * TIME, r"\[0.1, 0.1"),
        (None, "None"),
        (torch.tensor(0.1), "a single number"),
        (torch.ones(TIME, device="meta"), "a tensor on meta"),
        (torch.eye(TIME).to_sparse(), r"a tensor on cpu \(torch.sparse_coo"),
    ],
)
def test_what_has_no_density_is_said_in_a_line(make: MakePrior, value: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"^value: got {got}.*, expected") as caught:
        make().log_prob(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sigma", ["0.3", True, [0.3, "a"], 1j, object(), {}, math.inf], ids=type)
def test_a_noise_level_of_no_use_is_named_in_a_line(make: MakePrior, sigma: Any) -> None:
    with pytest.raises(ValueError, match=r"^sigma: got .*, expected 0\.01 to 50?, ") as caught:
        make().condition(sigma)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sigma", [np.float32(0.3), np.array([0.3, 0.4]), [0.3, 0.4]], ids=type)
def test_a_noise_level_of_any_type(make: MakePrior, sigma: Any) -> None:
    assert make().condition(sigma).batch_shape == np.shape(sigma)


@pytest.mark.parametrize("time", ["8", True, 8.0, [8], math.nan, 2**40, 10**30], ids=str)
def test_a_length_of_no_use_is_named_in_a_line(make: MakePrior, time: Any) -> None:
    with pytest.raises(ValueError, match=r"^time: got .*, expected a positive multiple") as caught:
        make().frame(time)
    assert "\n" not in str(caught.value)


def test_a_length_of_any_type_of_integers(make: MakePrior) -> None:
    assert make().frame(np.int64(TIME)).event_shape == (TIME,)  # type: ignore[arg-type]
    assert type(make().frame(np.int64(TIME)).event_shape[0]) is int  # type: ignore[arg-type]
    assert make().frame(2**30).event_shape == (2**30,)  # no memory is taken for it


@pytest.mark.parametrize("change", [{"name": 3}, {"name": ""}, {"sample_rate": 0.5}])
def test_a_prior_has_a_name_and_a_rate(make: MakePrior, change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name}: got"):
        make(**change)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda law: pickle.loads(pickle.dumps(law))])
def test_a_copy_is_the_same_law(make: MakePrior, copied: Callable[[Any], Any]) -> None:
    law = make().condition(levels(0.3, 1.0))
    other = copied(law)
    assert torch.equal(other.log_prob(noise(2, TIME)), law.log_prob(noise(2, TIME)))
    assert (other.name, other.batch_shape) == (law.name, law.batch_shape)
    assert other.network is not law.network
