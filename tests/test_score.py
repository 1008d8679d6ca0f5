from functools import partial
from typing import Any

import pytest
import torch
from test_wavenet import HEADS, VARIANTS, levels, noise, tiny
from torch import Tensor

from pyro_sep.mixing import Mixing
from pyro_sep.models import score
from pyro_sep.models.score import log_prob_and_score
from pyro_sep.models.wavenet import CONFIGS, WaveNet
from pyro_sep.posterior import AnnealedPosterior
from pyro_sep.priors import WaveNetPrior

ODD = [  # more layers than tokens, none, taps of one token, hops that divide no window
    {"layers": 5, "hop": 16},
    {"layers": 0},
    {"kernel": 1},
    {"past": 1, "hop": 3, "head_past": 7, "spectra": (9, 16)},
    {"blocks": 3, "width": 5, "components": 1},
]
TIMES = (1, 15, 16, 50)
SIGMA = levels(0.05, 0.4, 2.0)


def by_autograd(network: WaveNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and its gradient by torch's own functions."""
    x = x.detach().requires_grad_()
    value = network._log_prob(x, SIGMA.to(x))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """In float64, relative to the largest number; 1e-12 is 5,000 roundings."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of what is computed by hand, from now on."""
    times: list[int] = []

    def counted(network: Any, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        times.append(x.shape[-1])
        return log_prob_and_score(network, x, sigma)

    monkeypatch.setattr("pyro_sep.models.wavenet.log_prob_and_score", counted)
    return times


@pytest.mark.parametrize("changes", [*VARIANTS, *ODD])
def test_value_and_gradient_are_those_of_autograd(
    changes: dict[str, Any], calls: list[int]
) -> None:
    network = tiny(**changes).eval()
    for time in TIMES:
        x = noise(3, time).requires_grad_()
        value = network.log_prob(x, SIGMA)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        expected = by_autograd(network, x)
        assert_close(value.detach(), expected[0])
        assert_close(gradient, expected[1])
        assert gradient.abs().max() > 0.1
    assert calls == list(TIMES)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", [0.0, 30.0, 1e3])
def test_silence_and_loud_audio(head: str, scale: float) -> None:
    network = tiny(**HEADS[head]).eval()
    x = scale * noise(3, 40)
    for actual, expected in zip(
        log_prob_and_score(network, x, SIGMA), by_autograd(network, x), strict=True
    ):
        assert actual.isfinite().all()
        assert_close(actual, expected, 1e-10)  # loud audio saturates layers: worse conditioned


@pytest.mark.parametrize("block", [1, 3 * 4 * 8, 10 * 3 * 4 * 8])  # a token, one, ten of three rows
def test_blocks_do_not_change_what_is_computed(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = tiny(), noise(3, 50)
    whole = log_prob_and_score(network, x, SIGMA)
    monkeypatch.setattr(score, "BLOCK", block)
    for part, expected in zip(log_prob_and_score(network, x, SIGMA), whole, strict=True):
        assert_close(part, expected)


@pytest.mark.parametrize("changes", [{}, {"spectra": ()}])
def test_going_back_again_gives_the_same(changes: dict[str, Any]) -> None:
    network = tiny(**changes).eval()
    x = noise(3, 50).requires_grad_()
    before = [part.clone() for part in network.state_dict().values()]
    value, weight = network.log_prob(x, SIGMA), levels(0.3, -1.0, 2.0)
    once, again = (torch.autograd.grad(value, x, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert_close(once, weight[:, None] * by_autograd(network, x)[1])
    assert torch.equal(x, noise(3, 50))
    assert all(map(torch.equal, network.state_dict().values(), before))
    for _ in range(2):
        value.sum().backward(retain_graph=True)
    assert_close(x.grad, 2 * by_autograd(network, x)[1])


def test_each_frame_has_its_own_row_of_the_jacobian() -> None:
    network, x = tiny().eval(), noise(3, 20)
    of = partial(network.log_prob, sigma=SIGMA)
    for vectorize in (False, True):
        jacobian = torch.autograd.functional.jacobian(of, x, vectorize=vectorize)
        assert_close(jacobian.sum(1), by_autograd(network, x)[1])


@pytest.mark.parametrize("head", HEADS)
def test_a_second_derivative_is_autograds(head: str, calls: list[int]) -> None:
    network, direction = tiny(**HEADS[head]).eval(), noise(3, 20, seed=2)
    curvatures = []
    for of in (network.log_prob, network._log_prob):
        x = noise(3, 20).requires_grad_()
        (first,) = torch.autograd.grad(of(x, SIGMA).sum(), x, create_graph=True)
        curvatures += torch.autograd.grad((first * direction).sum(), x)
    assert calls == [20]
    assert_close(*curvatures)


def test_what_else_has_a_gradient_goes_by_autograd(calls: list[int]) -> None:
    network, x = tiny().eval(), noise(3, 20)
    network.log_prob(x, SIGMA)  # no gradient
    network.log_prob(x.requires_grad_(), SIGMA.clone().requires_grad_())
    with torch.no_grad():
        network.log_prob(x, SIGMA)
    torch.func.vmap(torch.func.grad(lambda x: network.log_prob(x[None], SIGMA[:1])[0]))(x.detach())
    network.read.bias.requires_grad_()
    network.log_prob(x, SIGMA)
    assert not calls
    network.read.bias.requires_grad_(False)
    network.log_prob(x, SIGMA)
    assert calls


def test_windows_of_long_audio_go_by_hand(calls: list[int]) -> None:
    network = tiny().eval()
    network.window = 60
    x = noise(3, 200).requires_grad_()
    (gradient,) = torch.autograd.grad(network.log_prob(x, SIGMA).sum(), x)
    assert len(calls) > 1
    assert_close(gradient, by_autograd(network, x)[1])


@pytest.mark.parametrize("size", ["toy", "music"])
def test_rounding_in_float32_is_no_more_than_autograds(size: str) -> None:
    torch.manual_seed(0)
    network = WaveNet(CONFIGS[size]).eval().requires_grad_(False)
    torch.nn.init.normal_(network.head_out.weight, std=0.3)
    torch.nn.init.normal_(network.head_out.bias, std=0.3)
    x = network.config.sigma_data * torch.randn(3, 3_000)
    sigma = network.config.sigma_data * SIGMA.float()
    found = log_prob_and_score(network, x, sigma)
    exact = log_prob_and_score(network.double(), x.double(), sigma.double())
    for part, expected, most in zip(found, exact, (8e-7, 5e-6), strict=True):
        assert part.dtype == torch.float32
        assert (part - expected).norm() / expected.norm() < most


def test_a_sampler_takes_its_gradients_by_hand(calls: list[int]) -> None:
    priors = [
        WaveNetPrior(tiny(seed).float(), name=name, sample_rate=16_000)
        for seed, name in enumerate("ab")
    ]
    target = AnnealedPosterior(torch.zeros(3, 20), priors, Mixing((0.5, 0.5), 0.1))
    target.evaluate(torch.randn(3, 2, 20), 0.4)
    assert calls == [20, 20]
