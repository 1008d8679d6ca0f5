import dataclasses
import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from networks import levels
from torch import Tensor

from pyro_sep.models.wavenet import CONFIGS, Components, WaveNet, WaveNetConfig, _draw

SIZES: dict[str, Any] = {
    "width": 8,
    "blocks": 2,
    "layers": 2,
    "kernel": 2,
    "hop": 4,
    "past": 5,
    "spectra": (16,),
    "components": 5,
    "head_width": 8,
    "head_past": 3,
}
HEADS = {
    "gaussians": {"head": "gaussians"},
    "relative": {"head": "gaussians", "relative": True, "sigma_data": 0.2},
    "categorical": {"head": "categorical"},
}
VARIANTS = [
    pytest.param(
        {**HEADS[head], "hop": hop, "kernel": kernel, "spectra": spectra},
        id=f"{head}-hop{hop}-kernel{kernel}-{'spectra' if spectra else 'plain'}",
    )
    for head, hop, kernel, spectra in itertools.product(HEADS, (1, 4, 16), (2, 3), ((), (16,)))
]
# Float64: what a sum of some hundred terms of order one loses to rounding, with a margin of 100.
ROUNDING = 1e-11
SCALES = (3.0, 10.0, 30.0, 1e3)  # of audio that a network has never heard


def tiny(seed: int = 0, **changes: Any) -> WaveNet:
    """A small network of random weights in float64; the head too, which starts at zero."""
    torch.manual_seed(seed)
    network = WaveNet(WaveNetConfig(**{**SIZES, **changes}))
    torch.nn.init.normal_(network.head_out.weight, std=0.5)
    torch.nn.init.normal_(network.head_out.bias, std=0.3)
    return network.double().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)


def stacked(components: Components) -> Tensor:
    """All parameters of each sample's mixture, ``(batch, time, 3 * component)``."""
    shape = components.log_weight.shape
    return torch.cat([part.expand(shape) for part in components], -1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_causality_and_receptive_field(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    reach = network.receptive_field
    time = reach + 2 * network.config.hop + 3
    x, sigma = noise(time), levels(0.3)
    projection = torch.randn(time, 3 * network.config.components, dtype=torch.float64)

    def read(x: Tensor) -> Tensor:
        return (stacked(network(x[None], sigma))[0] * projection).sum(-1)

    jacobian = torch.autograd.functional.jacobian(read, x, vectorize=True)
    lag = torch.arange(time)[:, None] - torch.arange(time)
    assert (jacobian[lag <= 0] == 0).all()  # neither the sample itself nor what comes after it
    assert (jacobian[lag > reach] == 0).all()
    assert (jacobian[lag == 1] != 0).all()  # the sample before is always seen,
    assert (jacobian[lag == reach] != 0).any()  # the oldest one at one place of the hop


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_prefix_has_the_same_components(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noise(2, 50), levels(0.05, 2.0)
    whole = network(x, sigma)
    for time in (1, 3, 16, 31, 49):
        part = network(x[:, :time], sigma)
        assert part.log_weight.shape == (2, time, 5)
        assert torch.allclose(stacked(part), stacked(whole)[:, :time], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("head", HEADS)
def test_frames_of_a_batch_do_not_mix(head: str) -> None:
    network = tiny(**HEADS[head])
    x, sigma = noise(3, 21), levels(0.02, 0.4, 3.0)
    together = network.log_prob(x, sigma)
    for i in range(3):
        alone = network.log_prob(x[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=ROUNDING)
    assert not torch.allclose(network.log_prob(x, sigma.flip(0)), together)


def test_an_untrained_network_codes_256_bins_evenly() -> None:
    config = WaveNetConfig(**{**SIZES, "head": "categorical", "components": 256})
    network = WaveNet(config).double()
    clean = noise(4, 33).clamp(-1, 1)
    sigma = levels(0.01, 0.1, 1.0, 5.0)
    lengths = network.code_length(clean + sigma[:, None] * noise(4, 33, seed=2), clean, sigma)
    assert torch.allclose(lengths, torch.full_like(lengths, math.log(256)), rtol=1e-12)


def test_a_certain_bin_costs_nothing() -> None:
    network = tiny(head="categorical", components=256)
    network.head_out.weight.zero_()
    network.head_out.bias.zero_()
    network.head_out.bias[77] = 60.0
    value, spread = float(network.centres[77]), float(network.scales[77])
    clean, sigma = torch.full((1, 20), value, dtype=torch.float64), levels(0.2)
    assert float(network.code_length(noise(1, 20), clean, sigma)) < 1e-12  # 255 exp(-60)
    other = clean + float(network.edges[79] - network.edges[77])
    assert float(network.code_length(noise(1, 20), other, sigma)) == pytest.approx(60)
    x = clean + 0.2 * noise(1, 20)  # where no other bin comes near, exp(-60) or not
    law = torch.distributions.Normal(*levels(value, math.hypot(spread, 0.2)))
    assert torch.allclose(network.log_prob(x, sigma), law.log_prob(x).sum(-1), rtol=1e-12)


def test_code_length_reads_the_bin_of_the_clean_sample() -> None:
    network = tiny(head="categorical", components=16)
    edges = network.edges
    for weight in (0.01, 0.99):
        clean = torch.lerp(edges[:-1], edges[1:], weight)[None]
        sigma, noisy = levels(0.3), noise(1, 16)
        log_weight = network(noisy, sigma).log_weight[0]
        expected = -log_weight.diagonal().mean()
        assert torch.allclose(network.code_length(noisy, clean, sigma), expected, rtol=ROUNDING)
    outside = torch.tensor([[-1.5, 1.5]], dtype=torch.float64)
    log_weight = network(noise(1, 2), levels(0.3)).log_weight[0]
    expected = -(log_weight[0, 0] + log_weight[1, -1]) / 2
    assert torch.allclose(network.code_length(noise(1, 2), outside, levels(0.3)), expected)


def test_code_length_of_gaussians_is_the_clean_density() -> None:
    network = tiny()
    clean, sigma = noise(2, 11), levels(0.1, 1.0)
    noisy = clean + sigma[:, None] * noise(2, 11, seed=3)
    lengths = network.code_length(noisy, clean, sigma)
    components = network(noisy, sigma)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=components.log_weight),
        torch.distributions.Normal(components.mean, components.scale),
    )
    assert torch.allclose(lengths, -mixture.log_prob(clean).mean(-1), rtol=ROUNDING)


def grid(limit: float, step: float) -> Tensor:
    return torch.arange(-limit, limit + step / 2, step, dtype=torch.float64)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sigma", [0.03, 0.4, 3.0])
def test_smoothing_is_the_convolution_with_the_noise(head: str, sigma: float) -> None:
    network = tiny(**HEADS[head])
    log_weight, mean, scale = (
        part.expand(1, 1, 5)[0, 0]
        for part in network(torch.zeros(1, 1, dtype=torch.float64), levels(sigma))
    )
    # The rectangle rule of a product of Gaussians is exact to exp(-2 pi^2 (std / step)^2): here at
    # three steps per std of the narrower factor, far below rounding.
    narrow = min(float(scale.min()), sigma)
    step = narrow / 3
    s = grid(float((mean.abs() + 9 * scale).max()), step)
    normal = torch.distributions.Normal(mean, scale)
    clean = (normal.log_prob(s[:, None]) + log_weight).exp().sum(-1)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    kernel = torch.distributions.Normal(s, levels(sigma)).log_prob(x[:, None]).exp()
    smoothed = network.log_prob(x[:, None], levels(sigma).expand(41)).exp()
    assert torch.allclose(kernel @ clean * step, smoothed, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_the_density_of_one_sample_integrates_to_one(head: str, sigma: float) -> None:
    network = tiny(**HEADS[head])
    x = grid(5 + 9 * sigma, sigma / 3)
    density = network.log_prob(x[:, None], levels(sigma).expand(len(x))).exp()
    assert float(density.sum() * sigma / 3) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("hop", [1, 4])
def test_the_density_of_two_samples_integrates_to_one(head: str, hop: int) -> None:
    network = tiny(**HEADS[head], hop=hop)
    sigma = 0.5
    x = grid(6, sigma / 2.5)
    frames = torch.cartesian_prod(x, x)
    log_density = network.log_prob(frames, levels(sigma).expand(len(frames)))
    assert float(log_density.exp().sum() * (sigma / 2.5) ** 2) == pytest.approx(1, abs=1e-8)
    table = log_density.reshape(len(x), len(x))
    assert (table - table.T).abs().max() > 0.1  # the second depends on the first


@pytest.mark.parametrize("head", HEADS)
def test_log_prob_sums_over_time(head: str) -> None:
    network = tiny(**HEADS[head])
    x, sigma = noise(2, 37), levels(0.1, 1.0)
    components = network(x, sigma)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=components.log_weight),
        torch.distributions.Normal(
            components.mean.expand(components.log_weight.shape),
            (components.scale**2 + sigma[:, None, None] ** 2).sqrt(),
        ),
    )
    terms = mixture.log_prob(x)
    assert torch.allclose(network.log_prob(x, sigma), terms.sum(-1), rtol=ROUNDING)
    for time in (1, 10, 36):
        part = network.log_prob(x[:, :time], sigma)
        assert torch.allclose(part, terms[:, :time].sum(-1), rtol=ROUNDING)


def test_log_prob_doubles_with_the_event() -> None:
    network = WaveNet(WaveNetConfig(**SIZES)).double()  # untrained: blind to the past
    x, sigma = noise(1, 9), levels(0.3)
    twice = network.log_prob(torch.cat([x, x], -1), sigma)
    assert torch.allclose(twice, 2 * network.log_prob(x, sigma), rtol=1e-13)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_the_score_is_the_finite_difference(head: str, sigma: float) -> None:
    network = tiny(**HEADS[head])
    x = noise(1, 30).requires_grad_()
    (score,) = torch.autograd.grad(network.log_prob(x, levels(sigma)).sum(), x)
    step = 1e-4 * sigma  # error of order step^2 / sigma^3 and of rounding / step
    shifts = step * torch.eye(30, dtype=torch.float64)
    with torch.no_grad():
        many = levels(sigma).expand(30)
        difference = network.log_prob(x + shifts, many) - network.log_prob(x - shifts, many)
    scale = float(score.abs().max())
    assert scale > 0.1
    assert torch.allclose(
        difference / (2 * step), score[0], rtol=0, atol=1e-6 * scale + 1e-7 / sigma
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_curvature_is_the_finite_difference_of_scores(head: str) -> None:
    network = tiny(**HEADS[head]).eval()
    sigma, direction = levels(0.4), noise(1, 30, seed=2)

    def score(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(network.log_prob(x, sigma).sum(), x, create_graph=True)[0]

    x = noise(1, 30).requires_grad_()
    (first,) = torch.autograd.grad(network.log_prob(x, sigma).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad((first * direction).sum(), x)
    step = 1e-5
    difference = score(x + step * direction) - score(x - step * direction)
    scale = float(curvature.abs().max())
    assert scale > 0.1
    assert torch.allclose(difference / (2 * step), curvature, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("head", HEADS)
def test_a_score_for_each_frame_by_torch_func(head: str) -> None:
    network = tiny(**HEADS[head]).eval()
    x, sigma = noise(3, 30).requires_grad_(), levels(0.05, 0.4, 2.0)
    (scores,) = torch.autograd.grad(network.log_prob(x, sigma).sum(), x)

    def log_prob(frame: Tensor, level: Tensor) -> Tensor:
        return network.log_prob(frame[None], level[None])[0]

    each = torch.func.vmap(torch.func.grad(log_prob))(x.detach(), sigma)
    assert torch.allclose(each, scores, rtol=1e-9, atol=1e-9 * float(scores.abs().max()))


@pytest.mark.parametrize("hop", [1, 4])
def test_a_frame_shorter_than_the_dilation(hop: int) -> None:
    network = tiny(hop=hop, layers=5)  # up to 16 tokens back
    x, sigma = noise(1, 60), levels(0.3)
    whole = stacked(network(x, sigma))
    for time in (1, hop, 3 * hop + 1):
        part = stacked(network(x[:, :time], sigma))
        assert torch.allclose(part, whole[:, :time], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("changes", VARIANTS)
def test_sampling_meets_the_parallel_forward(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    sigma, time = levels(0.05, 0.5, 3.0), 39
    x = network.sample(time, sigma, torch.Generator().manual_seed(5))
    assert x.shape == (3, time)
    components = network(x, sigma)
    generator = torch.Generator().manual_seed(5)
    for t in range(time):
        part = Components(
            components.log_weight[:, t : t + 1],
            *(p if p.ndim == 1 else p[:, t : t + 1] for p in components[1:]),
        )
        drawn = _draw(part, sigma, generator)
        assert torch.allclose(drawn[:, 0], x[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_samples_follow_the_density(head: str) -> None:
    """Probability integral transform: F(x_t | x_<t) of samples is uniform and independent."""
    network = tiny(**HEADS[head], hop=2)
    count, bins, sigma = 20_000, 20, 0.3
    many = levels(sigma).expand(count)
    x = network.sample(3, many, torch.Generator().manual_seed(0))
    log_weight, mean, scale = network(x, many)
    std = (scale.square() + sigma**2).sqrt()
    ranks = (log_weight.exp() * torch.special.ndtr((x[..., None] - mean) / std)).sum(-1)
    for t in range(3):
        counts = torch.histc(ranks[:, t], bins, 0, 1)
        assert counts.sum() == count
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    pairs = (ranks[:, :2] * 5).long().clamp(max=4)
    counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    # It can fail: the law without the noise is another one.
    wrong = (log_weight.exp() * torch.special.ndtr((x[..., None] - mean) / scale)).sum(-1)
    assert scipy.stats.chisquare(torch.histc(wrong[:, 0], bins, 0, 1).numpy()).pvalue < 1e-4


def test_sampling_is_deterministic_by_generator() -> None:
    network = tiny()
    sigma = levels(0.1, 0.1, 2.0)
    draws = [network.sample(10, sigma, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])  # frames of a batch are independent
    state = torch.get_rng_state()
    network.sample(3, sigma, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.sample(10, sigma).isfinite().all()


def test_wide_sigmas_stay_finite() -> None:
    network = tiny().float()
    sigma = torch.tensor([0.01, 5.0])
    x = (1e3 * noise(2, 40)).float().requires_grad_()
    value = network.log_prob(x, sigma)
    (score,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert score.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "logistic"}, "head: got 'logistic', expected one of gaussians, categorical"),
        ({"relative": 1}, "relative: got 1, expected True or False"),
        ({"sigma_min": 0.0}, "expected 0 < sigma_min <= sigma_max, or 0 for both"),
        ({"sigma_min": -1.0, "sigma_max": -1.0}, "got -1.0, -1.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "got 2.0, 1.0"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveNetConfig(**changes)


def test_relative_components_are_in_units_of_the_level() -> None:
    x, sigma = noise(1, 12), levels(0.1)
    plain, relative = (
        tiny(sigma_data=0.2, relative=relative)(x, sigma) for relative in (False, True)
    )
    assert torch.equal(plain.log_weight, relative.log_weight)
    assert torch.allclose(relative.mean, 0.2 * plain.mean)
    assert torch.allclose(relative.scale, 0.2 * plain.scale)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_one_noise_level_is_a_range(sigma: float) -> None:
    config = WaveNetConfig(sigma_min=sigma, sigma_max=sigma)
    assert config.sigma_min == config.sigma_max == sigma
    assert config.multiple == 1


def test_a_config_may_come_from_json() -> None:
    config = WaveNetConfig(spectra=[256, 1024])  # type: ignore[arg-type]
    assert config == CONFIGS["toy"]
    assert config.spectra == (256, 1024)


def test_the_paper_network_has_the_stated_size() -> None:
    with torch.device("meta"):
        network = WaveNet(CONFIGS["paper"])
    assert len(network.dilations) == 30
    assert network.dilations[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert network.dilations[10:20] == network.dilations[:10] == network.dilations[20:]
    assert network.gates[0].weight.shape == (2 * 256, 3 * 256)
    assert network.head_out.weight.shape == (256, 256)
    assert network.receptive_field == 2 * 3 * 1023 + 3


def test_the_toy_network_sees_its_longest_spectrum_and_trunk() -> None:
    network = WaveNet(CONFIGS["toy"])
    assert network.receptive_field == 63 * 16 + 1024 + 15
    assert dataclasses.asdict(network.config)["sigma_max"] == 5.0


@pytest.mark.parametrize("head", HEADS)
def test_normal_scores_are_those_of_the_probability_integral(head: str) -> None:
    network, sigma = tiny(**HEADS[head]).eval(), levels(0.3)
    x = noise(1, 13)
    scores = network.normal_scores(x, sigma)
    assert torch.allclose(scores.square().sum(-1), network.squared_scores(x, sigma))
    # F(x_t) by the trapezoidal rule over the density of the last sample given the others.
    grid = torch.linspace(-9, float(x[0, -1]), 20_001, dtype=torch.float64)
    frames = torch.cat([x[:, :12].expand(len(grid), -1), grid[:, None]], 1)
    past = network.log_prob(x[:, :12], sigma)
    density = (network.log_prob(frames, sigma.expand(len(grid))) - past).exp()
    probability = float(torch.trapezoid(density, grid))
    assert float(scores[0, -1]) == pytest.approx(scipy.stats.norm.ppf(probability), rel=1e-4)


def test_squared_scores_far_out_are_large_and_finite() -> None:
    network = tiny().eval()
    squares = torch.stack(
        [network.squared_scores(scale * torch.ones(1, 8).double(), levels(0.1)) for scale in SCALES]
    )
    assert squares.isfinite().all()
    assert (squares.diff(dim=0) >= 0).all()
    assert float(squares[-1]) > 100 * 8
