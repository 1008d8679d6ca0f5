import subprocess
import sys
from typing import Any

import pytest
import torch
from test_wavenet import VARIANTS, levels, noise, tiny
from torch import Tensor

from pyro_sep.models import windows
from pyro_sep.models.windows import sum_over_time


def value_and_gradient(network: Any, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = network.log_prob(x, sigma)
    (gradient,) = torch.autograd.grad((value * torch.tensor([1.0, 3.0])).sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("window", [16, 48, 160])
def test_windows_give_the_density_of_the_whole_and_its_gradient(
    changes: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny(**changes)
    x, sigma = noise(2, 331), levels(0.05, 2.0)
    whole = value_and_gradient(network, x, sigma)
    monkeypatch.setattr(windows, "WINDOW", window)
    windowed = value_and_gradient(network, x, sigma)
    for a, b in zip(windowed, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_no_window_is_longer_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 8)
    lengths: list[int] = []

    def terms(x: Tensor) -> Tensor:
        lengths.append(x.shape[-1])
        return x * torch.nn.functional.pad(x, (3, 0))[:, :-3]

    x = noise(1, 20)
    assert sum_over_time(terms, x, 3).item() == pytest.approx(float((x[:, 3:] * x[:, :-3]).sum()))
    assert lengths == [8, 11, 7]


def test_a_past_that_is_too_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    network, sigma, x = tiny(), levels(0.05, 2.0), noise(2, 331)
    whole = network.log_prob(x, sigma)
    monkeypatch.setattr(windows, "WINDOW", 48)
    monkeypatch.setattr(type(network), "receptive_field", property(lambda _: 16))
    assert not torch.allclose(network.log_prob(x, sigma), whole, rtol=1e-10)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_audio() -> None:
    """Ten seconds at 16 kHz and two minutes: the audio itself is 7 MiB more."""
    ten, more = (peak(seconds) for seconds in (10, 120))
    assert more - ten < 120  # at once it would take 5 GB


def peak(seconds: int) -> float:
    """MiB of a gradient of the toy WaveNet in a process of its own."""
    code = f"""
import resource, torch, pyro_sep
prior = pyro_sep.load_priors("toy")["saw"].frame({seconds} * 16_000).condition(0.5)
x = torch.randn(1, {seconds} * 16_000, requires_grad=True)
torch.autograd.grad(prior.log_prob(x).sum(), x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return float(run.stdout)
