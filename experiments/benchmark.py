"""How many audio samples a second a prior gives its gradient for: what decides a sampler's cost.

    OMP_NUM_THREADS=1 python experiments/benchmark.py

Beside it stands a plain WaveNet of 1-d convolutions in the paper's layout (3 blocks of 10 layers,
kernel 3, every audio sample a step of the trunk) with as many parameters as the toy WaveNet; the
ratio of the two rates depends less on the machine than they do. The networks take turns, and the
fastest call of each counts, so that what else the machine does at the time changes little.
"""

import math
import time as clock
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from pyro_sep.cli import run
from pyro_sep.files import save_json
from pyro_sep.models.family import FAMILIES, build

LANES, TIME = 8, 2_048
SIZES = {"toy": ("wavenet", "flow"), "music": ("wavenet",)}  # the families that ship, by size
PLAIN = "plain conv1d WaveNet"


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
        terms = torch.logsumexp(exponent, 1)
        return terms.sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def gradient_rates(networks: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Audio samples per second whose log density gradient each network computes, by name."""
    seconds = dict.fromkeys(networks, math.inf)
    for measured in (False, *[True] * rounds):  # the first round is not counted
        for name, network in networks.items():
            taken = gradient_seconds(network.log_prob)
            if measured:
                seconds[name] = min(seconds[name], taken)
    return {name: LANES * TIME / least for name, least in seconds.items()}


def gradient_seconds(log_prob: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Seconds that one call takes for a log density and its gradient."""
    x = torch.randn(LANES, TIME, requires_grad=True)
    sigma = torch.full((LANES,), 0.3)
    started = clock.perf_counter()
    torch.autograd.grad(log_prob(x, sigma).sum(), x)
    return clock.perf_counter() - started


def build_networks() -> dict[str, nn.Module]:
    """Untrained networks by what they are called; the plain one last."""
    networks: dict[str, nn.Module] = {
        f"pyro_sep {size} {family}": build(FAMILIES[family].sizes[size]).eval()
        for size, families in SIZES.items()
        for family in families
    }
    width = math.sqrt(parameters(networks["pyro_sep toy wavenet"]) / 240)
    networks[PLAIN] = PlainWaveNet(round(width), 8)
    return {name: network.requires_grad_(False) for name, network in networks.items()}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each network, in turns.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/benchmark"),
) -> None:
    """Print the rates, and write them to OUT/summary.json."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    networks = build_networks()
    print(f"{torch.get_num_threads()} threads, {LANES} frames of {TIME} samples, float32")
    rates = gradient_rates(networks, rounds)
    figures = {
        name: {
            "parameters": parameters(network),
            "gradient_samples_per_second": rates[name],
            "ratio_to_plain": rates[name] / rates[PLAIN],
        }
        for name, network in networks.items()
    }
    for name, figure in figures.items():
        print(
            f"{name}: {figure['parameters']:9,} parameters, {rates[name]:9,.0f} gradient samples "
            f"a second, {figure['ratio_to_plain']:.1f} times the plain one"
        )
    out.mkdir(parents=True, exist_ok=True)
    settings = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds}
    frames = {"frames": LANES, "time": TIME, "dtype": "float32"}
    save_json(settings | frames | {"networks": figures}, out / "summary.json")
    print(f"Results: {out}")


if __name__ == "__main__":
    run(main)
