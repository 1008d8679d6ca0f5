import pickle
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine import trace
from torch import Tensor

from pyro_sep.checkpoints import load_prior, save_prior
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors import WaveNetPrior

CONFIG = WaveNetConfig(
    width=8, layers=2, hop=4, past=4, spectra=(8,), components=4, head_width=8, head_past=2
)


def make_prior(trained: bool = True, seed: int = 0, **arguments: Any) -> WaveNetPrior:
    torch.manual_seed(seed)
    network = WaveNet(CONFIG)
    if trained:
        torch.nn.init.normal_(network.head_out.weight, std=0.5)
    return WaveNetPrior(
        network.double(), **{"name": "saw", "sample_rate": 16_000, "time": 6, **arguments}
    )


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_shapes_of_one_law() -> None:
    prior = make_prior()
    assert isinstance(prior, dist.TorchDistribution)
    assert (prior.batch_shape, prior.event_shape, prior.event_dim) == ((), (6,), 1)
    assert prior.sample().shape == (6,)
    assert prior.sample(torch.Size((3, 2))).shape == (3, 2, 6)
    assert prior(sample_shape=(5,)).shape == (5, 6)
    assert prior.log_prob(noise(7, 2, 6)).shape == (7, 2)
    assert prior.frame(11).event_shape == (11,)
    assert prior.frame(11).log_prob(noise(11)).shape == ()
    assert prior.event_shape == (6,)


def test_shapes_of_a_batch() -> None:
    prior = make_prior().condition(torch.tensor([[0.1], [2.0]]))
    assert (prior.batch_shape, prior.event_shape) == ((2, 1), (6,))
    assert prior.sample(torch.Size((4,))).shape == (4, 2, 1, 6)
    wide = prior.expand(torch.Size((5, 2, 3)))
    assert isinstance(wide, WaveNetPrior)
    assert (wide.batch_shape, wide.event_shape) == ((5, 2, 3), (6,))
    assert wide.sample().shape == (5, 2, 3, 6)
    assert torch.equal(wide.sigma[3, :, 1:2], prior.sigma)
    assert prior.expand_by([4]).batch_shape == (4, 2, 1)
    assert prior.to_event(1).event_shape == (1, 6)
    with pytest.raises(RuntimeError):
        prior.expand(torch.Size((3, 3)))


def test_condition_sets_the_noise_level() -> None:
    prior = make_prior()
    assert float(prior.sigma) == prior.sigmas[0] == CONFIG.sigma_min
    assert prior.sigmas == (0.01, 5.0)
    assert prior.level == CONFIG.sigma_data
    loud = prior.condition(0.7)
    assert float(loud.sigma) == 0.7
    assert loud.sigma.dtype == torch.float64  # the network's
    assert (loud.name, loud.sample_rate, loud.event_shape) == ("saw", 16_000, (6,))
    assert float(prior.sigma) == 0.01  # a new law; the old one is as it was
    x = noise(2, 6)
    assert torch.equal(loud.log_prob(x), prior.network.log_prob(x, loud.sigma.expand(2)))
    batch = prior.condition(torch.tensor([0.7, 2.0], dtype=torch.float64)).log_prob(x)
    assert torch.allclose(batch[0], loud.log_prob(x[0]), rtol=1e-12)
    assert torch.allclose(batch[1], prior.condition(2.0).log_prob(x[1]), rtol=1e-12)


def test_the_noise_widens_the_samples() -> None:
    # An untrained law is iid: variance of four equal components, and of the noise.
    prior, count = make_prior(trained=False, time=10), 400
    clean = prior.network(torch.zeros(1, 1).double(), torch.ones(1).double())
    variance = float((clean.mean**2 + clean.scale**2).mean())
    for sigma in (0.1, 2.0):
        torch.manual_seed(0)
        x = prior.condition(sigma).sample(torch.Size((count,)))
        expected = variance + sigma**2
        # The kurtosis of such a mixture is below that of a Gaussian: std of a variance.
        error = expected * (2 / x.numel()) ** 0.5
        assert float(x.square().mean()) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 0.009, 5.1, float("nan"), [0.1, 6.0]])
def test_unknown_noise_levels(sigma: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.01 to 5, .* prior of 'saw'"):
        make_prior().condition(torch.tensor(sigma))


def test_the_ends_of_the_range_are_known_in_float32() -> None:
    prior = make_prior()
    for sigma in prior.sigmas:
        assert prior.condition(torch.tensor(sigma)).log_prob(noise(6)).isfinite()


@pytest.mark.parametrize("time", [0, -3])
def test_an_event_has_audio(time: int) -> None:
    with pytest.raises(ValueError, match=f"time: got {time}, expected at least one"):
        make_prior().frame(time)


def test_log_prob_broadcasts() -> None:
    sigmas = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    prior = make_prior().condition(sigmas)
    x = noise(4, 1, 6)
    table = prior.log_prob(x)
    assert table.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            alone = prior.condition(sigmas[j]).log_prob(x[i, 0])
            assert torch.allclose(table[i, j], alone, rtol=1e-12)
    assert torch.allclose(prior.log_prob(x[0, 0]), table[0], rtol=1e-12)


def test_log_prob_has_the_gradient_of_its_value_alone() -> None:
    prior = make_prior().condition(0.3)
    assert not any(p.requires_grad for p in prior.network.parameters())
    assert not prior.network.training
    x = noise(6).requires_grad_()
    prior.log_prob(x).backward()
    assert x.grad is not None
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    slope = (prior.log_prob(x.detach() + step) - prior.log_prob(x.detach() - step)) / 2e-5
    # Error of order step^2 / sigma^3 and of rounding / step.
    assert torch.allclose(slope, x.grad, rtol=1e-6, atol=1e-7)
    assert not prior.sample().requires_grad


def test_values_outside_the_support_are_refused() -> None:
    prior = make_prior(validate_args=True)
    bad = noise(6)
    bad[3] = float("nan")
    for law in (prior, prior.condition(0.3), prior.expand(torch.Size((2,)))):
        with pytest.raises(ValueError, match="support"):
            law.log_prob(bad)
        with pytest.raises(ValueError, match="size"):
            law.log_prob(noise(5))
    assert prior.log_prob(noise(6)).isfinite()


def test_in_a_plate() -> None:
    prior = make_prior()
    sigmas = torch.tensor([0.2, 1.0], dtype=torch.float64)

    def model() -> Tensor:
        with pyro.plate("source", 2), pyro.plate("frame", 3):
            return pyro.sample("x", prior.condition(sigmas))

    pyro.set_rng_seed(0)
    recorded = trace(model).get_trace()
    x = recorded.nodes["x"]["value"]
    assert x.shape == (3, 2, 6)
    expected = sum(prior.condition(sigmas[k]).log_prob(x[:, k]).sum() for k in range(2))
    assert torch.allclose(recorded.log_prob_sum(), expected, rtol=1e-12)


def test_in_predictive() -> None:
    prior = make_prior().condition(0.3)

    def model() -> Tensor:
        return pyro.sample("mixture", dist.Delta(pyro.sample("x", prior).sum(-1)))

    for parallel in (False, True):
        draws = Predictive(model, num_samples=5, parallel=parallel)()
        assert draws["x"].shape == (5, 6)
        assert torch.allclose(draws["mixture"].reshape(5), draws["x"].sum(-1))
        assert len(draws["x"][:, 0].unique()) == 5


def test_nuts_samples_an_untrained_prior() -> None:
    # Untrained, its eight samples are iid mixtures, of known mean and variance.
    prior = make_prior(trained=False, time=8).condition(1.0)
    clean = prior.network(torch.zeros(1, 1).double(), torch.ones(1).double())
    variance = float((clean.mean**2 + clean.scale**2).mean()) + 1

    def model() -> Tensor:
        return pyro.sample("x", prior)

    pyro.set_rng_seed(0)
    start = torch.full((8,), 0.5, dtype=torch.float64)
    kernel = NUTS(model, init_strategy=init_to_value(values={"x": start}), max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=150, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"].numpy()
    assert x.shape == (150, 8)
    for draws, expected in ((x, 0.0), (x**2, variance)):
        sizes = [arviz.ess(draws[None, :, i]) for i in range(8)]
        error = draws.std() / np.sqrt(sum(min(size, 150) for size in sizes))
        assert min(sizes) > 10
        assert abs(draws.mean() - expected) < 4 * error


def test_nuts_sees_the_density_of_a_trained_prior() -> None:
    prior = make_prior(time=4).condition(0.5)
    start = noise(4)

    def model() -> Tensor:
        return pyro.sample("x", prior)

    pyro.set_rng_seed(0)
    kernel = NUTS(model, init_strategy=init_to_value(values={"x": start}))
    kernel.setup(warmup_steps=2)
    assert torch.equal(kernel.initial_params["x"], start)  # the support is the whole space
    assert torch.allclose(kernel.potential_fn({"x": start}), -prior.log_prob(start), rtol=1e-12)
    params = kernel.initial_params
    for _ in range(5):
        params = kernel.sample(params)
        assert prior.log_prob(params["x"]).isfinite()
    assert (params["x"] != start).all()


def test_pickling() -> None:
    prior = make_prior().condition(torch.tensor([0.2, 1.0]))
    copy = pickle.loads(pickle.dumps(prior))
    assert (copy.name, copy.sample_rate) == ("saw", 16_000)
    assert (copy.batch_shape, copy.event_shape) == ((2,), (6,))
    assert torch.equal(copy.log_prob(noise(2, 6)), prior.log_prob(noise(2, 6)))


def test_saving_keeps_the_density(tmp_path: Path) -> None:
    prior = make_prior().to(torch.float32)
    save_prior(prior, tmp_path / "saw.safetensors")
    torch.manual_seed(99)
    loaded = load_prior(tmp_path / "saw.safetensors").frame(6).condition(0.3)
    assert loaded.network.config == CONFIG
    assert (loaded.name, loaded.sample_rate) == ("saw", 16_000)
    x = noise(3, 6).float()
    assert torch.equal(loaded.log_prob(x), prior.condition(0.3).log_prob(x))
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_to_moves_the_noise_level_with_the_network() -> None:
    prior = make_prior().condition(0.3)
    single = prior.to(torch.float32)
    assert single.sigma.dtype == torch.float32
    assert single.sample().dtype == torch.float32
    assert float(single.sigma) == pytest.approx(0.3, rel=1e-7)
