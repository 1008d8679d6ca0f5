import itertools
import math
from typing import Any

import pytest
import torch
from networks import levels, noise, randomise
from torch import Tensor

from pyro_sep.models.interpolator import Interpolator, Stage, _aliasing, _around, nested_stages

SIZE, OUTPUTS, TOKENS = 8, 5, 40
SIZES: dict[str, Any] = {
    "width": 6,
    "layers": 2,
    "spectra": (16,),
    "head_width": 6,
    "head_reach": 3,
}
# What decides how far a prediction sees, and whether the reach is met exactly.
REACHES = [
    pytest.param({}, 3 + 1, True, id="window16"),
    pytest.param({"spectra": (16, 32)}, 3 + 2, True, id="windows16-32"),
    pytest.param({"spectra": (40,), "layers": 1}, 1 + 2, True, id="window40"),
    pytest.param({"spectra": (8,), "head_reach": 2}, 3 + 1, False, id="window8"),
    pytest.param({"spectra": (), "layers": 3, "head_reach": 5}, 7 + 1, False, id="plain"),
    pytest.param({"spectra": (), "layers": 0, "head_reach": 20}, 3, True, id="head-alone"),
    pytest.param({"spectra": (28,)}, 3 + 2, True, id="window28"),
    pytest.param(
        {"spectra": (25,)}, 3 + 2, True, id="window25"
    ),  # 8 samples before a token, 9 after
]
ROUNDING = 1e-12


def tiny(
    stages: list[Stage] | None = None, seed: int = 0, size: int = SIZE, **changes: Any
) -> Interpolator:
    """A small network in float64, all of whose weights are random."""
    torch.manual_seed(seed)
    stages = nested_stages(size, 2) if stages is None else stages
    network = Interpolator(stages, size, OUTPUTS, **{**SIZES, **changes})
    randomise(network, 0.3)
    for spectrum in network.spectra:
        torch.nn.init.normal_(spectrum.thresholds.weight, std=0.3)
    return network.double().requires_grad_(False)


@pytest.mark.parametrize(("size", "count"), [(2, 1), (8, 2), (16, 4), (64, 5), (24, 3), (12, 2)])
def test_stages_are_nested(size: int, count: int) -> None:
    stages = nested_stages(size, count)
    assert len(stages) == count
    everything = list(range(size))
    for index, stage in enumerate(stages):
        assert stage.known == sorted(stage.known)
        assert stage.predicted == sorted(stage.predicted)
        assert len(stage.known) == len(stage.predicted) == size >> (index + 1)
        assert sorted(stage.known + stage.predicted) == everything
        everything = stage.known


def test_stages_are_always_the_same() -> None:
    torch.manual_seed(0)
    first = nested_stages(32, 3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert nested_stages(32, 3) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_stages_are_less_regular_than_every_other_position() -> None:
    """Under a regular mask a tone has an alias as strong as itself: 1 at each stage."""
    stages = nested_stages(64, 5)
    order = [place for stage in reversed(stages) for place in stage.predicted]
    order = stages[-1].known + order
    assert sorted(order) == list(range(64))
    strongest = []
    for stage in stages:
        mask = torch.zeros(64, dtype=torch.float64).index_fill(0, torch.tensor(stage.known), 1)
        strongest.append(float(torch.fft.rfft(mask)[1:].abs().max() / mask.sum()))
    assert strongest == sorted(strongest)  # fewer known samples, stronger aliases
    assert strongest[0] < 0.4
    assert sum(strongest) == pytest.approx(_aliasing(order, 5), rel=1e-12)
    regular = sorted(range(64), key=lambda place: int(f"{place:06b}"[::-1], 2))
    assert _aliasing(regular, 5) == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "count", "multiple"), [(12, 3, 8), (4, 3, 8), (63, 1, 2), (1, 1, 2), (0, 2, 4)]
)
def test_bad_sizes(size: int, count: int, multiple: int) -> None:
    message = f"^size: got {size} positions, expected a multiple of {multiple}$"
    with pytest.raises(ValueError, match=message):
        nested_stages(size, count)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("tokens", [1, 7])
def test_shapes(stage: int, tokens: int) -> None:
    network = tiny()
    known = noise(3, len(network.stages[stage].known), tokens)
    out = network(known, stage, levels(0.1, 0.5, 2.0), levels(0.1, 0.3, 0.9))
    assert out.shape == (3, len(network.stages[stage].predicted), OUTPUTS, tokens)
    assert out.dtype == torch.float64
    assert out.isfinite().all()


def test_an_untrained_network_says_nothing() -> None:
    network = Interpolator(nested_stages(SIZE, 2), SIZE, OUTPUTS, **SIZES).double()
    assert not network(noise(1, 4, 9), 0, levels(0.1), levels(0.1)).any()


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(("changes", "reach", "exact"), REACHES)
def test_a_prediction_sees_as_far_as_the_reach(
    stage: int, changes: dict[str, Any], reach: int, exact: bool
) -> None:
    network = tiny(**changes)
    known = noise(len(network.stages[stage].known), TOKENS)
    weights = noise(len(network.stages[stage].predicted), OUTPUTS, seed=2)

    def read(known: Tensor) -> Tensor:
        out = network(known[None], stage, levels(0.3), levels(0.4))[0]
        return torch.einsum("pot,po->t", out, weights)

    jacobian = torch.autograd.functional.jacobian(read, known).abs().amax(1)
    away = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs()
    assert network.reach == reach
    assert (jacobian[away > reach] == 0).all()
    assert (jacobian[away < reach] != 0).all()
    if exact:
        assert (jacobian[away == reach] != 0).any()


@pytest.mark.parametrize("stage", [0, 1])
def test_all_known_samples_of_the_token_count(stage: int) -> None:
    network = tiny()
    known = noise(len(network.stages[stage].known), 3)

    def read(known: Tensor) -> Tensor:
        return network(known[None], stage, levels(0.3), levels(0.4))[0]

    jacobian = torch.autograd.functional.jacobian(read, known)
    assert (jacobian != 0).all()


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("changes", [case.values[0] for case in REACHES if not case.marks])
def test_a_shifted_input_has_a_shifted_output(stage: int, changes: dict[str, Any]) -> None:
    network = tiny(**changes)
    sound = noise(1, len(network.stages[stage].known), TOKENS + 1)
    early, late = (
        network(part, stage, levels(0.3), levels(0.4)) for part in (sound[..., :-1], sound[..., 1:])
    )
    inner = slice(network.reach, TOKENS - network.reach - 1)
    assert torch.allclose(
        early[..., 1:][..., inner], late[..., :-1][..., inner], rtol=0, atol=ROUNDING
    )
    assert not torch.allclose(early[..., inner], late[..., inner], rtol=0, atol=1e-3)
    assert not torch.allclose(early[..., 1:], late[..., :-1], rtol=0, atol=1e-6)  # but at the edges


def test_the_stage_matters_where_the_positions_do_not() -> None:
    first = nested_stages(SIZE, 1)[0]
    network = tiny([first, first, Stage(first.predicted, first.known)])
    known = noise(1, 4, 6)
    same, again, other = (network(known, i, levels(0.3), levels(0.4)) for i in range(3))
    assert (same - again).abs().max() > 1e-3
    assert (same - other).abs().max() > 1e-3


@pytest.mark.parametrize("stage", [0, 1])
def test_the_noise_level_and_its_power_matter(stage: int) -> None:
    network = tiny()
    known = noise(1, len(network.stages[stage].known), 6)
    base = network(known, stage, levels(0.3), levels(0.4))
    assert (network(known, stage, levels(0.6), levels(0.4)) - base).abs().max() > 1e-3
    # The power is the spectra's, which compare with it.
    assert (network(known, stage, levels(0.3), levels(4.0)) - base).abs().max() > 1e-5
    plain = tiny(spectra=())
    assert torch.equal(*(plain(known, stage, levels(0.3), levels(p)) for p in (0.4, 4.0)))


@pytest.mark.parametrize("stage", [0, 1])
def test_frames_of_a_batch_do_not_mix(stage: int) -> None:
    network = tiny()
    known = noise(3, len(network.stages[stage].known), 6)
    sigma, power = levels(0.02, 0.4, 3.0), levels(0.1, 0.5, 0.9)
    together = network(known, stage, sigma, power)
    for i in range(3):
        alone = network(known[i : i + 1], stage, sigma[i : i + 1], power[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=0, atol=ROUNDING)


def test_predictions_are_placed_by_their_position() -> None:
    """A shift by one sample shifts the positions, where the network is nothing but the head.

    The same known samples, seen from a place one further to the right.
    """
    changes = {"spectra": (), "layers": 0, "head_reach": 6}
    known, predicted = [1, 2, 5], [3, 4]
    here = tiny([Stage(known, predicted)], **changes)
    there = tiny([Stage([k + 1 for k in known], [p + 1 for p in predicted])], **changes)
    there.load_state_dict(here.state_dict())
    for network in (here, there):  # which alone knows the place
        network.head_trunk.weight.zero_()
        network.head_trunk.bias.zero_()
    samples = noise(1, 3, 9)
    one, two = (net(samples, 0, levels(0.3), levels(0.4)) for net in (here, there))
    assert torch.allclose(one[..., 1:-1], two[..., 1:-1], rtol=0, atol=ROUNDING)
    assert not torch.allclose(one[:, 0], one[:, 1], rtol=0, atol=1e-3)


def test_the_spectra_reach_the_predicted_positions() -> None:
    """One tone, interpolated: what the head is handed is the tone at the predicted positions."""
    size, window, sigma = 64, 512, 0.05
    stages = nested_stages(size, 1)
    network = tiny(stages, size=size, spectra=(window,), layers=0)
    for name, parameter in network.named_parameters():
        if "spectra" not in name:
            parameter.zero_()
    torch.nn.init.zeros_(network.spectra[0].thresholds.weight)
    network.spectra[0].thresholds.bias[1] = 4.0  # against the images
    small = 1e-4  # two silus near their origin make a quarter of it
    network.head_local.weight[0, -1] = small
    network.head_hidden.weight[0, 0] = 1
    network.head_out.weight[0, 0] = 4 / small
    time = torch.arange(size * 16, dtype=torch.float64)
    tone = torch.cos(2 * math.pi * 11.3 / window * time + 0.4).unflatten(0, (16, size)).T
    out = network(tone[None, stages[0].known], 0, levels(sigma), levels(sigma**2))[0, :, 0]
    expected = tone[stages[0].predicted]
    inner = slice(4, -4)
    error = (out - expected)[:, inner].square().mean() / expected[:, inner].square().mean()
    assert error < 0.3  # 2 where it is another place's


@pytest.mark.parametrize(("window", "hop"), [(7, 1), (16, 8), (12, 8), (13, 8), (8, 8), (32, 8)])
def test_frames_are_centred_on_their_hop(window: int, hop: int) -> None:
    audio = torch.arange(1.0, 1 + 6 * hop)[None]
    frames = _around(audio, window, hop)
    assert frames.shape == (1, 6, window)
    side = (window - hop) // 2
    for token, place in itertools.product(range(6), range(window)):
        index = token * hop + place - side
        expected = float(audio[0, index]) if 0 <= index < 6 * hop else 0.0
        assert float(frames[0, token, place]) == expected
