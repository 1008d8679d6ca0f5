"""How many audio samples a second a prior gives its gradient for: what decides a sampler's cost.

    python experiments/benchmark.py

Beside it stands a plain WaveNet of 1-d convolutions in the paper's layout (3 blocks of 10 layers,
kernel 3, every audio sample a step of the trunk) with as many parameters.
"""

import math
import time as clock
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_sep.models.family import FAMILIES, build

LANES, TIME = 8, 2_048
SECONDS = 5.0


class PlainWaveNet(nn.Module):
    """Causal dilated conv1d stack with the Gaussian head; for timing only."""

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.dilations = [2**i for _ in range(3) for i in range(10)]
        self.read = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, dilation=d) for d in self.dilations
        )
        self.mixes = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in self.dilations)
        self.out = nn.Conv1d(width, 3 * components, 1)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Smoothed log density ``(lane,)``."""
        hidden = self.read(F.pad(x[:, None, :-1], (1, 0)))
        skips = torch.zeros_like(hidden)
        for gate, mix, dilation in zip(self.gates, self.mixes, self.dilations, strict=True):
            signal, opening = gate(F.pad(hidden, (2 * dilation, 0))).chunk(2, 1)
            residual, skip = mix(signal.tanh() * opening.sigmoid()).chunk(2, 1)
            hidden, skips = hidden + residual, skips + skip
        logits, mean, spread = self.out(F.silu(skips)).chunk(3, 1)
        variance = F.softplus(spread).square() + sigma.square()[:, None, None]
        deviation = (x[:, None] - mean).square() / variance
        exponent = logits.log_softmax(1) - 0.5 * (deviation + variance.log())
        return torch.logsumexp(exponent, 1).sum(-1)


def parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def gradient_rate(log_prob: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Audio samples per second whose log density gradient is computed."""
    x = torch.randn(LANES, TIME, requires_grad=True)
    sigma = torch.full((LANES,), 0.3)
    torch.autograd.grad(log_prob(x, sigma).sum(), x)
    calls, started = 0, clock.perf_counter()
    while clock.perf_counter() - started < SECONDS:
        torch.autograd.grad(log_prob(x, sigma).sum(), x)
        calls += 1
    return calls * LANES * TIME / (clock.perf_counter() - started)


def main() -> None:
    """Print the rates."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    networks = {
        f"pyro_sep toy {family}": build(FAMILIES[family].sizes["toy"]).requires_grad_(False)
        for family in FAMILIES
    }
    size = parameters(networks["pyro_sep toy wavenet"])
    plain = PlainWaveNet(round(math.sqrt(size / 240)), 8).requires_grad_(False)
    print(f"{torch.get_num_threads()} threads, {LANES} frames of {TIME} samples, float32")
    for name, module in {**networks, "plain conv1d WaveNet": plain}.items():
        rate = gradient_rate(module.log_prob)
        print(f"{name}: {parameters(module):9,} parameters, {rate:9,.0f} gradient samples a second")


if __name__ == "__main__":
    main()
