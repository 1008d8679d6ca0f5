import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import NESTED, WAVENET
from test_flowavenet import VARIANTS as FLOWS
from test_flowavenet import tiny as tiny_flow
from test_wavenet import VARIANTS, levels, noise, tiny
from torch import Tensor

from pyro_sep.models import wavenet
from pyro_sep.models.registry import Network, NetworkConfig, build
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.models.windows import in_windows

PAST, FUTURE = 3, 2


def value_and_gradient(log_density: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = log_density(x)
    (gradient,) = torch.autograd.grad((value * torch.tensor([1.0, 3.0])).sum(), x)
    return value.detach(), gradient


def products(x: Tensor) -> Tensor:
    """Of each sample and what is three before and two after it."""
    before = torch.nn.functional.pad(x, (PAST, 0))[:, : x.shape[-1]]
    after = torch.nn.functional.pad(x, (0, FUTURE))[:, FUTURE:]
    return ((1 + before) * x * (2 + after)).sum(-1)


@pytest.mark.parametrize("hop", [1, 4])
@pytest.mark.parametrize("window", [1, 5, 8, 17])
def test_a_sum_of_terms_of_past_and_future(window: int, hop: int) -> None:
    for time in range(1, 70):
        x = noise(2, time)
        whole = value_and_gradient(products, x)
        parts = value_and_gradient(lambda x: in_windows(products, x, window, PAST, FUTURE, hop), x)
        for a, b in zip(parts, whole, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_reach_that_is_too_short_is_seen() -> None:
    x = noise(2, 70)
    for past, future in ((PAST - 1, FUTURE), (PAST, FUTURE - 1)):
        assert not torch.allclose(in_windows(products, x, 8, past, future), products(x), rtol=1e-6)


def test_where_windows_begin_and_how_long_they_are() -> None:
    lengths: list[int] = []

    def log_density(x: Tensor) -> Tensor:
        lengths.append(x.shape[-1])
        return products(x)

    for window, expected in ((8, [12, 16, 16, 11, 8, 8, 8]), (20, [24, 15, 8]), (40, [31])):
        lengths.clear()
        in_windows(log_density, noise(1, 31), window, PAST, FUTURE, 4)
        assert lengths == expected


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("window", [16, 160])
def test_windows_give_a_wavenets_density_and_its_gradient(
    changes: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_windows_agree(tiny(**changes).eval(), noise(2, 731), window, monkeypatch)


@pytest.mark.parametrize("changes", FLOWS)
@pytest.mark.parametrize("window", [16, 112])
def test_windows_give_a_flows_density_and_its_gradient(
    changes: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_windows_agree(tiny_flow(**changes), noise(2, 400), window, monkeypatch)


def test_a_flow_that_sees_farther_than_its_windows_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, x, sigma = tiny_flow(partition="nested"), noise(2, 400), levels(0.05, 2.0)
    whole, network.window = network.log_prob(x, sigma), 16
    monkeypatch.setattr(type(network), "reach", property(lambda _: 8))
    assert not torch.allclose(network.log_prob(x, sigma), whole, rtol=1e-10)


def assert_windows_agree(
    network: Network, x: Tensor, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_density(x: Tensor) -> Tensor:
        return network.log_prob(x, levels(0.05, 2.0))

    whole = value_and_gradient(log_density, x)
    network.window, lengths = window, seen_by(network, monkeypatch)
    windowed = value_and_gradient(log_density, x)
    assert max(lengths) <= x.shape[-1] - window
    for a, b in zip(windowed, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    squares = network.squared_scores(x, levels(0.05, 2.0))
    network.window = x.shape[-1]
    assert torch.allclose(squares, network.squared_scores(x, levels(0.05, 2.0)), rtol=1e-8)


def seen_by(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the audio that a network is given from now on, by either way to its gradient."""
    lengths: list[int] = []
    network.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[-1]))
    with_score = wavenet.log_prob_and_score

    def recorded(network: WaveNet, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(x.shape[-1])
        return with_score(network, x, sigma)

    monkeypatch.setattr(wavenet, "log_prob_and_score", recorded)
    return lengths


@pytest.mark.parametrize("config", [WAVENET, NESTED])
def test_weights_in_training_take_a_gradient_of_the_whole(config: NetworkConfig) -> None:
    network = build(config).double()
    network.window = 16
    x = noise(2, 732).requires_grad_()
    (score,) = torch.autograd.grad(
        network.log_prob(x, levels(0.05, 2.0)).sum(), x, create_graph=True
    )
    score.square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("priors", ["toy", "toy/flow"])
def test_memory_does_not_grow_with_the_audio(priors: str) -> None:
    """Ten seconds at 16 kHz and two minutes: the audio itself is 7 MiB more."""
    ten, more = (peak(priors, seconds) for seconds in (10, 120))
    assert more - ten < 120  # at once it would take 5 GB, or more


def peak(priors: str, seconds: int) -> float:
    """MiB of a gradient of a toy network in a process of its own."""
    code = f"""
import resource, torch, pyro_sep
prior = pyro_sep.load_priors("{priors}")["saw"].frame({seconds} * 16_000).condition(0.5)
x = torch.randn(1, {seconds} * 16_000, requires_grad=True)
torch.autograd.grad(prior.log_prob(x).sum(), x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return float(run.stdout)
