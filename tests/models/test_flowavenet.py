import copy
import dataclasses
import itertools
import json
import math
import pickle
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from networks import levels, noise, randomise
from nflows.transforms import ActNorm, Permutation, Transform
from nflows.transforms.coupling import CouplingTransform
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_sep.models.couplings import COUPLINGS
from pyro_sep.models.flowavenet import (
    CONFIGS,
    DilatedConditioner,
    FloWaveNet,
    FloWaveNetConfig,
    Precondition,
    Squeeze,
)

SIZES: dict[str, dict[str, Any]] = {
    "halves": {"blocks": 2, "squeeze": 2, "flows": 2, "layers": 1, "kernel": 3, "spectra": ()},
    "nested": {
        "squeeze": 8,
        "flows": 2,
        "layers": 1,
        "spectra": (16,),
        "head_width": 6,
        "head_reach": 3,
    },
}
BOTH = {"width": 6, "components": 3}
PARTITIONS = list(SIZES)
VARIANTS = [
    pytest.param({"partition": partition, "coupling": coupling}, id=f"{partition}-{coupling}")
    for partition, coupling in itertools.product(PARTITIONS, COUPLINGS)
]
TIME = 24
SIGMAS = (0.05, 0.4, 3.0)
ROUNDING = 1e-11
LIMITS = ", expected 0 < sigma_min <= sigma_max, or 0 for both"


def config_of(**changes: Any) -> FloWaveNetConfig:
    sizes = SIZES[changes["partition"]]
    return FloWaveNetConfig(**{**BOTH, **sizes, **changes})


def tiny(seed: int = 0, **changes: Any) -> FloWaveNet:
    """A small flow in float64, evaluating, all of whose weights are random."""
    torch.manual_seed(seed)
    network = FloWaveNet(config_of(**changes))
    randomise(network, 0.2)
    return network.double().eval().requires_grad_(False)


def noisy(time: int = TIME, sigmas: tuple[float, ...] = SIGMAS) -> tuple[Tensor, Tensor]:
    """Frames of the RMS that such noise and sources have, and their noise levels."""
    sigma = levels(*sigmas)
    return (0.55**2 + sigma.square()).sqrt()[:, None] * noise(len(sigmas), time), sigma


def steps(network: FloWaveNet) -> list[Transform]:
    return list(network.transform._transforms)


def of_kind(network: FloWaveNet, kind: type) -> list[Any]:
    return [step for step in steps(network) if isinstance(step, kind)]


def log_volume(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Log |det| of each frame's Jacobian, of outputs that frames of a batch do not share."""
    rows = [
        torch.autograd.grad(row.sum(), inputs, retain_graph=True)[0].flatten(1)
        for row in outputs.flatten(1).T
    ]
    return cast(Tensor, torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet)


@pytest.mark.parametrize("changes", VARIANTS)
def test_round_trip(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noisy()
    z, log_det = network(x, sigma)
    assert z.shape == x.shape
    assert log_det.shape == sigma.shape
    scaled = x / (0.55**2 + sigma.square()).sqrt()[:, None]
    assert not torch.allclose(z.sort().values, scaled.sort().values, atol=0.1)
    back, log_det_back = network.inverse(z, sigma)
    assert (back - x).abs().max() < 1e-9
    assert torch.allclose(log_det_back, -log_det, rtol=0, atol=1e-9)
    latent = noise(*x.shape, seed=2)
    x, log_det_back = network.inverse(latent, sigma)
    again, log_det = network(x, sigma)
    assert (again - latent).abs().max() < 1e-9
    assert torch.allclose(log_det_back, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", VARIANTS)
def test_round_trip_in_float32(changes: dict[str, Any]) -> None:
    network = tiny(**changes).float()
    x, sigma = (part.float() for part in noisy())
    z, log_det = network(x, sigma)
    back, log_det_back = network.inverse(z, sigma)
    assert z.dtype == log_det.dtype == back.dtype == log_det_back.dtype == torch.float32
    assert (back - x).abs().max() < 1e-4
    assert (log_det_back + log_det).abs().max() < 1e-4


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_step_is_a_bijection(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noisy()
    hidden = x[:, None, None]
    for step in steps(network):
        inputs = hidden.detach().requires_grad_()
        outputs, log_det = step(inputs, sigma)
        assert torch.allclose(log_volume(outputs, inputs), log_det, rtol=0, atol=1e-9)
        back, log_det_back = step.inverse(outputs, sigma)
        assert (back - inputs).abs().max() < 1e-9
        assert torch.allclose(log_det_back, -log_det, rtol=0, atol=1e-9)
        hidden = outputs
    assert torch.equal(hidden.flatten(1), network(x, sigma)[0])


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_log_determinant_is_the_jacobians(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noisy()
    x.requires_grad_()
    z, log_det = network(x, sigma)
    assert torch.allclose(log_volume(z, x), log_det, rtol=0, atol=1e-9)
    latent = noise(*x.shape, seed=2).requires_grad_()
    x, log_det = network.inverse(latent, sigma)
    assert torch.allclose(log_volume(x, latent), log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", VARIANTS)
def test_log_prob_is_that_of_the_latent(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noisy()
    z, log_det = network(x, sigma)
    expected = Normal(x.new_zeros(()), 1).log_prob(z).sum(-1) + log_det
    assert torch.allclose(network.log_prob(x, sigma), expected, rtol=ROUNDING)
    assert torch.allclose(network.code_length(x, x, sigma), -expected / TIME, rtol=ROUNDING)
    other = network.code_length(x, torch.zeros_like(x), sigma)  # whatever the clean frame
    assert torch.allclose(other, -expected / TIME, rtol=ROUNDING)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_density_of_two_samples_integrates_to_one(changes: dict[str, Any]) -> None:
    halves = changes["partition"] == "halves"
    network = tiny(**changes, **{"squeeze": 2, "blocks": 1, "flows": 2 if halves else 1})
    sigma = 0.5
    # Smooth laws: the rectangle rule is exact to exp(-2 pi^2 (std / step)^2). At the knots of a
    # spline the slope of the density jumps, which leaves an error of order step^2.
    step = 0.04 if changes["coupling"] == "spline" else 0.15
    x = torch.arange(-6, 6 + step / 2, step, dtype=torch.float64)
    frames = torch.cartesian_prod(x, x)
    log_density = network.log_prob(frames, levels(sigma).expand(len(frames)))
    tolerance = step**2 / 4 if changes["coupling"] == "spline" else 1e-6
    assert float(log_density.exp().sum() * step**2) == pytest.approx(1, abs=tolerance)
    table = log_density.reshape(len(x), len(x))
    mixed = table[1:, 1:] - table[1:, :-1] - table[:-1, 1:] + table[:-1, :-1]
    assert (mixed / step**2).abs().max() > 0.01  # the two samples depend on each other


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_score_is_the_finite_difference(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    for sigma in SIGMAS:
        x, level = noisy(sigmas=(sigma,))
        x.requires_grad_()
        (score,) = torch.autograd.grad(network.log_prob(x, level).sum(), x)
        step = 1e-5  # error of order step^2 and of rounding / step
        shifts = step * torch.eye(TIME, dtype=torch.float64)
        with torch.no_grad():
            many = level.expand(TIME)
            difference = network.log_prob(x + shifts, many) - network.log_prob(x - shifts, many)
        scale = float(score.abs().max())
        assert scale > 0.1
        assert torch.allclose(difference / (2 * step), score[0], rtol=0, atol=1e-6 * (1 + scale))


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_gradient_by_the_weights_is_the_finite_difference(changes: dict[str, Any]) -> None:
    network = tiny(**changes).requires_grad_(True)
    x, sigma = noisy()
    weights = list(network.parameters())
    loss = network.code_length(x, x, sigma).sum()
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(loss, weights))
    assert all(part.any() for part in torch.autograd.grad(network.log_prob(x, sigma)[0], weights))
    start = nn.utils.parameters_to_vector(weights).detach()
    step = 1e-5
    for seed in range(4):
        direction = noise(len(start), seed=seed)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * step * direction, weights)
            values.append(network.code_length(x, x, sigma).sum().item())
        expected = (values[0] - values[1]) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("changes", VARIANTS)
def test_frames_of_a_batch_do_not_mix(changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    x, sigma = noisy()
    together = network.log_prob(x, sigma)
    for i in range(len(x)):
        alone = network.log_prob(x[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=ROUNDING)
    # Told of the noise level, apart from the scale of the input and its volume.
    one = torch.ones_like(sigma)
    scale = ((0.55**2 + sigma.square()) / (0.55**2 + 1)).sqrt()
    other = network.log_prob(x / scale[:, None], one) - TIME * scale.log()
    assert ((other - together).abs() > 1e-3).all()


@pytest.mark.parametrize("partition", PARTITIONS)
def test_log_prob_reads_what_its_input_holds_now(partition: str) -> None:
    network = tiny(partition=partition)
    x, sigma = noisy()
    first, kept = network.log_prob(x, sigma), x.clone()
    assert torch.equal(x, kept)
    fresh = noise(*x.shape, seed=5)
    x.copy_(fresh)
    expected = network.log_prob(fresh, sigma)
    assert torch.equal(network.log_prob(x, sigma), expected)
    assert torch.equal(network.log_prob(kept, sigma), first)
    assert not torch.allclose(first, expected)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("coupling", ["affine", "mixture"])
def test_a_shifted_frame_has_a_shifted_score(partition: str, coupling: str) -> None:
    network = tiny(partition=partition, coupling=coupling)
    shift = network.config.multiple
    edge = 2 * (network.reach + shift)  # a latent sees what is near, a score what sees it
    time = 2 * edge + 5 * shift
    sound = 0.6 * noise(1, time + shift)

    def score(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(network.log_prob(x, levels(0.2)).sum(), x)[0]

    early, late = score(sound[:, :-shift])[:, shift:], score(sound[:, shift:])[:, :-shift]
    inner = slice(edge, time - shift - edge)
    assert torch.allclose(early[:, inner], late[:, inner], rtol=0, atol=1e-10)
    assert early[:, inner].abs().max() > 0.1
    assert not torch.allclose(early[:, :shift], late[:, :shift], atol=1e-4)  # but at the edges,
    assert not torch.allclose(early[:, -shift:], late[:, -shift:], atol=1e-4)
    odd = score(sound[:, 1 : 1 - shift])[:, shift - 1 : -1]  # and not by part of a token
    assert not torch.allclose(odd[:, inner], early[:, inner], atol=1e-2)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_halves_untrained_are_white_noise(coupling: str) -> None:
    network = FloWaveNet(config_of(partition="halves", coupling=coupling)).double().eval()
    x, sigma = noisy()
    std = (0.55**2 + sigma.square()).sqrt()[:, None]
    expected = Normal(torch.zeros_like(std), std).log_prob(x).sum(-1)
    assert torch.allclose(network.log_prob(x, sigma), expected, rtol=1e-12)


@pytest.mark.parametrize("coupling", ["affine", "mixture"])
def test_nested_smooths_each_law_by_the_noise(coupling: str) -> None:
    """The first coupling's law of a sample, given the known ones, is convolved with the noise."""
    network = tiny(partition="nested", coupling=coupling, flows=1)
    step = of_kind(network, CouplingTransform)[0]
    raw: list[Tensor] = []
    network.interpolator.register_forward_hook(lambda _, inputs, out: raw.append(out))
    sigma = levels(0.3, 2.0)
    params = step.transform_net(noise(2, 4, 1, 3), sigma)
    variance = sigma.square() / (0.55**2 + sigma.square())
    parts = params[:, :, 0].unflatten(1, (4, -1)).movedim(2, -1)
    for frame in range(2):
        expected = COUPLINGS[network.config.coupling].smooth(
            raw[0][frame].movedim(1, -1), variance[frame : frame + 1]
        )
        assert torch.allclose(parts[frame], expected, rtol=1e-13)


def test_precondition_has_unit_variance() -> None:
    step, sigma = Precondition(0.55), levels(0.01, 0.3, 5.0)
    x = 0.55 * noise(3, 1, 1, 40_000) + sigma[:, None, None, None] * noise(3, 1, 1, 40_000, seed=2)
    scaled, log_det = step(x, sigma)
    # The relative error of a variance has a std of sqrt(2 / 40000), 0.007.
    assert torch.allclose(scaled.var((1, 2, 3)), torch.ones(3, dtype=torch.float64), atol=0.03)
    assert torch.allclose(log_det, -20_000 * (0.55**2 + sigma.square()).log())


def test_squeeze_by_hand() -> None:
    x = torch.arange(8.0)[None, None, None]
    once, log_det = Squeeze(2)(x)
    assert once.tolist() == [[[[0, 2, 4, 6]], [[1, 3, 5, 7]]]]
    assert log_det.tolist() == [0]
    twice, _ = Squeeze(2)(once)  # of pairs: the even ones, then the odd ones
    assert twice.tolist() == [[[[0, 4]], [[1, 5]], [[2, 6]], [[3, 7]]]]
    assert Squeeze(4)(x)[0].tolist() == [[[[0, 4]], [[1, 5]], [[2, 6]], [[3, 7]]]]
    assert torch.equal(Squeeze(2).inverse(twice)[0], once)
    assert torch.equal(Squeeze(2).inverse(once)[0], x)


def seen(network: FloWaveNet, time: int) -> list[tuple[CouplingTransform, Tensor]]:
    """Couplings, and which audio sample each of their inputs is ``(channel, token)``.

    Of a flow that leaves its input as it is.
    """
    inputs: list[tuple[CouplingTransform, Tensor]] = []
    for step in of_kind(network, CouplingTransform):
        step.register_forward_pre_hook(
            lambda step, args: inputs.append((step, args[0][0, :, 0].round().long()))
        )
    network(torch.arange(time, dtype=torch.float64)[None], levels(0.0))
    return inputs


def test_halves_are_even_and_odd_in_time_at_every_block() -> None:
    config = config_of(
        partition="halves", blocks=3, coupling="affine", sigma_data=1.0, sigma_min=0.0, sigma_max=0
    )
    inputs = seen(FloWaveNet(config).double().eval(), 32)
    assert len(inputs) == 6
    for index, (step, samples) in enumerate(inputs):
        block, flow = divmod(index, 2)
        place = samples >> block  # in time at the block, of which a step is 2^block samples
        assert (place[step.identity_features] % 2 == flow).all()  # the halves change places
        assert (place[step.transform_features] % 2 == 1 - flow).all()
        assert len(step.identity_features) == len(step.transform_features) == 2**block
        # Tokens in their order, each of 2^(block + 1) samples.
        assert (samples >> (block + 1) == torch.arange(32 >> (block + 1))).all()


def test_nested_couplings_map_half_of_what_is_left() -> None:
    config = config_of(partition="nested", coupling="affine", sigma_data=1.0)
    network = FloWaveNet(config).double()
    stages = network.interpolator.stages
    known: list[Tensor] = []
    network.interpolator.register_forward_pre_hook(lambda _, args: known.append(args[0][0]))
    mapped = []
    for (step, samples), stage in zip(seen(network, 32), stages, strict=True):
        mapped.append(samples[step.transform_features])
        assert mapped[-1].tolist() == [[p, p + 8, p + 16, p + 24] for p in stage.predicted]
    for values, stage in zip(known, stages, strict=True):  # as they were before any coupling
        assert values.long().tolist() == [[p, p + 8, p + 16, p + 24] for p in stage.known]
    assert [len(places) for places in mapped] == [4, 2]
    assert not set(mapped[0].flatten().tolist()) & set(mapped[1].flatten().tolist())


def test_halves_change_places() -> None:
    swaps = of_kind(tiny(partition="halves"), Permutation)
    assert len(swaps) == 4  # two a block
    for swap, half in zip(swaps, (1, 1, 2, 2), strict=True):
        swapped, _ = swap(torch.arange(2 * half)[None, :, None, None])
        assert swapped.flatten().tolist() == [*range(half, 2 * half), *range(half)]


def test_act_norm_starts_with_the_first_training_batch() -> None:
    torch.manual_seed(0)
    network = FloWaveNet(config_of(partition="halves", coupling="affine")).double()
    norms = of_kind(network, ActNorm)
    x, sigma = noisy()
    network.eval()
    before = copy.deepcopy(network.state_dict())
    untouched = network.log_prob(3 * x, sigma)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(norm.initialized for norm in norms)
    std = (0.55**2 + sigma.square()).sqrt()[:, None]
    assert torch.allclose(network(x, sigma)[0].sort().values, (x / std).sort().values)

    network.train()
    outputs: list[Tensor] = []
    hooks = [norm.register_forward_hook(lambda *args: outputs.append(args[2])) for norm in norms]
    network.log_prob(3 * x + 1, sigma)
    assert all(norm.initialized for norm in norms)
    assert len(outputs) == len(norms) == 4
    for out, _ in cast(Any, outputs):
        assert torch.allclose(out.mean((0, 2, 3)), out.new_zeros(()), atol=1e-12)
        assert torch.allclose(out.std((0, 2, 3)), out.new_ones(()), rtol=1e-12)
    for hook in hooks:
        hook.remove()

    after = copy.deepcopy(network.state_dict())
    training = network.log_prob(x, sigma)  # a second batch is normalised as the first was
    network.eval()
    assert torch.equal(network.log_prob(x, sigma), training)
    network.inverse(x, sigma)
    for name, value in network.state_dict().items():
        assert torch.equal(value, after[name])
    assert not torch.allclose(network.log_prob(3 * x, sigma), untouched)
    for norm in norms:  # still what an optimizer has
        assert any(norm.shift is parameter for parameter in network.parameters())
        assert norm.shift.requires_grad
        assert norm.log_scale.requires_grad


def test_a_flow_saved_after_training_evaluates_alike() -> None:
    torch.manual_seed(0)
    network = FloWaveNet(config_of(partition="halves")).double()
    x, sigma = noisy()
    network.log_prob(2 * x, sigma)
    other = FloWaveNet(network.config).double()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.log_prob(x, sigma), network.log_prob(x, sigma))  # both in training


@pytest.mark.parametrize("changes", VARIANTS)
def test_clean_audio_has_no_noise(changes: dict[str, Any]) -> None:
    network = tiny(**changes, sigma_min=0.0, sigma_max=0.0).float()
    x = 0.3 * noise(2, TIME).float()
    x[1] = 0  # digital silence
    x.requires_grad_()
    value = network.log_prob(x, torch.zeros(2))
    (score,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert score.isfinite().all()
    back, _ = network.inverse(network(x, torch.zeros(2))[0], torch.zeros(2))
    assert (back - x).abs().max() < 1e-4


@pytest.mark.parametrize("changes", VARIANTS)
def test_wide_inputs_stay_finite(changes: dict[str, Any]) -> None:
    network = tiny(**changes).float()
    x = (100 * noise(2, TIME)).float().requires_grad_()
    value = network.log_prob(x, torch.tensor([0.01, 5.0]))
    (score,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert score.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "thirds"}, "partition: got 'thirds', expected one of halves, nested"),
        (
            {"coupling": "logistic"},
            "coupling: got 'logistic', expected one of affine, spline, mixture",
        ),
        ({"blocks": 2}, "blocks: got 2, expected 1 with the nested partition"),
        (
            {"sigma_min": 2.0, "sigma_max": 1.0},
            "sigma_min, sigma_max: got 2.0, 1.0" + LIMITS,
        ),
        (
            {"sigma_min": 0.0, "sigma_max": 1.0},
            "sigma_min, sigma_max: got 0.0, 1.0" + LIMITS,
        ),
        (
            {"sigma_min": -1.0, "sigma_max": 1.0},
            "sigma_min, sigma_max: got -1.0, 1.0" + LIMITS,
        ),
        (
            {"sigma_min": math.nan, "sigma_max": 1.0},
            "sigma_min, sigma_max: got nan, 1.0" + LIMITS,
        ),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message, below
        FloWaveNetConfig(**changes)
    assert str(caught.value) == message


def test_one_noise_level_or_none_is_a_config() -> None:
    for sigma in (0.0, 0.3):
        config = FloWaveNetConfig(sigma_min=sigma, sigma_max=sigma)
        assert config.sigma_min == config.sigma_max == sigma


def test_a_nested_squeeze_halves_as_often_as_there_are_flows() -> None:
    with pytest.raises(ValueError, match="squeeze: got 24, expected a multiple of 16"):
        FloWaveNetConfig(squeeze=24, flows=4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_json(name: str) -> None:
    text = json.dumps(dataclasses.asdict(CONFIGS[name]))
    config = FloWaveNetConfig(**json.loads(text))
    assert config == CONFIGS[name]
    assert isinstance(config.spectra, tuple)
    assert hash(config) == hash(CONFIGS[name])


@pytest.mark.parametrize(
    ("name", "multiple"), [("toy", 64), ("toy-deep", 64), ("paper", 16), ("paper-musdb18", 256)]
)
def test_named_sizes_build_and_run(name: str, multiple: int) -> None:
    config = CONFIGS[name]
    assert config.multiple == multiple
    torch.manual_seed(0)
    network = FloWaveNet(config).eval()
    with torch.no_grad():
        value = network.log_prob(0.5 * torch.randn(1, 2 * multiple), torch.tensor([0.1]))
    assert value.shape == (1,)
    assert value.isfinite().all()
    assert "paper" not in name or len(of_kind(network, ActNorm)) == config.blocks * config.flows


@pytest.mark.parametrize(("name", "blocks", "width"), [("paper", 4, 32), ("paper-musdb18", 8, 48)])
def test_the_paper_flow_has_the_stated_size(name: str, blocks: int, width: int) -> None:
    config = CONFIGS[name]
    assert (config.blocks, config.flows, config.layers) == (blocks, 6, 10)
    assert (config.kernel, config.width) == (3, width)
    assert (config.partition, config.coupling, config.squeeze) == ("halves", "affine", 2)
    network = FloWaveNet(dataclasses.replace(config, blocks=2))
    couplings = of_kind(network, CouplingTransform)
    assert len(couplings) == len(of_kind(network, ActNorm)) == 2 * 6
    for step in couplings:
        reader = step.transform_net
        assert isinstance(reader, DilatedConditioner)
        gates = cast("list[nn.Conv1d]", list(reader.gates))
        assert [gate.dilation for gate in gates] == [(2**layer,) for layer in range(10)]
        assert {gate.weight.shape for gate in gates} == {(2 * width, width, 3)}


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_conditioner_sees_both_sides(kernel: int) -> None:
    torch.manual_seed(0)
    reader = DilatedConditioner(2, 4, 5, 2, kernel).double().requires_grad_(False)
    nn.init.normal_(reader.out.weight)
    x, tokens = noise(1, 2, 1, 31), 31

    def read(x: Tensor) -> Tensor:
        return reader(x, levels(0.3)).sum((0, 1, 2))

    jacobian = torch.autograd.functional.jacobian(read, x).abs().sum((1, 2, 3))
    away = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs()
    reach = (kernel // 2) * (1 + 1 + 2)
    assert (jacobian[away > reach] == 0).all()
    assert (jacobian[away <= reach] != 0).all()
    assert not torch.allclose(reader(x, levels(0.3)), reader(x, levels(0.6)), atol=1e-3)


def test_a_conditioner_starts_at_the_identity() -> None:
    reader = DilatedConditioner(2, 4, 5, 2, 3)
    out = reader(torch.randn(3, 2, 1, 7), torch.tensor([0.1, 1.0, 5.0]))
    assert out.shape == (3, 4, 1, 7)
    assert not out.any()


@pytest.mark.parametrize(
    "partition",
    [
        "halves",
        "nested",
    ],
)
def test_the_weights_are_kept_once(partition: str) -> None:
    network = tiny(partition=partition)
    state = network.state_dict()
    places = [value.data_ptr() for value in state.values()]
    assert len(set(places)) == len(places)
    parameters = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    assert set(parameters) <= set(state)
    if partition == "nested":
        assert all(name.startswith("interpolator.") for name in parameters)
    x, sigma = noisy()
    value = network.log_prob(x, sigma)
    other = tiny(seed=1, partition=partition)
    assert not torch.allclose(other.log_prob(x, sigma), value)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    assert torch.equal(other.log_prob(x, sigma), value)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_has_weights_of_its_own(partition: str, way: str) -> None:
    network = tiny(partition=partition)
    other = copy.deepcopy(network) if way == "deepcopy" else pickle.loads(pickle.dumps(network))
    x, sigma = noisy()
    before = network.log_prob(x, sigma)
    assert torch.equal(other.log_prob(x, sigma), before)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    assert torch.equal(network.log_prob(x, sigma), before)
    assert ((other.log_prob(x, sigma) - before).abs() > 1e-3).all()
    expected = tiny(partition=partition)
    expected.load_state_dict(other.state_dict())
    assert torch.equal(expected.log_prob(x, sigma), other.log_prob(x, sigma))
    # Trained and moved as one.
    loss = other.requires_grad_(True).code_length(x, x, sigma).sum()
    assert all(part.any() for part in torch.autograd.grad(loss, list(other.parameters())))
    single = other.float()
    assert single.log_prob(x.float(), sigma.float()).dtype == torch.float32
