"""What does a separation cost? Gradient rates of the priors, and times of whole separations.

    OMP_NUM_THREADS=1 python experiments/benchmark.py
    OMP_NUM_THREADS=1 python experiments/benchmark.py --separations
    python experiments/benchmark.py --device cuda --out results/benchmark_cuda

A rate is the number of audio samples per second for which a prior computes the gradient of its log
density, which decides the cost of a sampler. Beside it is the rate of a plain WaveNet of 1-d
convolutions in the paper's layout (3 blocks of 10 layers, kernel 3, one step of the trunk per audio
sample) with as many parameters as the toy WaveNet. The ratio of the two rates depends less on the
machine than the rates do. The networks take turns, and the fastest call of each counts, so that
other load on the machine changes little.

With ``--separations`` whole separations of toy mixtures are timed on a small budget, without swaps
or further searches, against the length of the audio, the number of sources (past four, the same
priors under other names) and the number of chains, while the other two have their smallest value.
The slope is that of a line through the logarithms, 1 where time is proportional.

On a GPU the rates are those of float32, TF32, bfloat16 under autocast and compiled float32, each
for as many frames as a posterior evaluates at once and for many more. The seconds per second of
four stems are measured too, at two presets, on white noise of the level of music: time depends on
the audio only where searches fail.
"""

import math
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from _common import Device, Out, Results
from torch import Tensor, nn

from pyro_sep.cli.options import torch_device
from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, toy_mixture
from pyro_sep.inference.posterior import CHUNK
from pyro_sep.models.arithmetic import denormals_flushed
from pyro_sep.models.registry import FAMILIES, build
from pyro_sep.priors.base import Prior, Priors, sample_rate_of
from pyro_sep.priors.io import load_priors
from pyro_sep.separation.api import separate_batch

FRAMES, TIME = 8, 2_048
FRAMES_ON_GPU = (CHUNK // TIME, 16 * CHUNK // TIME)
SIZES = {"toy": ("wavenet", "flow"), "music": ("wavenet",)}  # the families that ship, by size
PLAIN = "plain conv1d WaveNet"
PRECISIONS = ("float32", "TF32", "bfloat16", "compiled")
LENGTHS = (0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 4.0)  # seconds
SOURCES = (2, 3, 4, 6, 8)
CHAINS = (1, 2, 4, 8, 16)
SMALL: dict[str, Any] = {"tries": 1, "candidates": 1, "levels": 12, "swaps": 0, "replicas": 0}
SMALL |= {"cooling": 2, "warmup": 1, "draws": 2, "thin": 1}
REPEATS = 2  # of a separation, whose fastest counts
SONG_SECONDS = 10.0
SONG_PRESETS = ("quick", "standard")


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
        """Smoothed log density ``(batch,)``."""
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
    """The number of learned parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def gradient_rates(
    networks: Mapping[str, Any],
    rounds: int,
    frames: int | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Audio samples per second whose log density gradient each network computes, by name."""
    frames = FRAMES if frames is None else frames
    seconds = dict.fromkeys(networks, math.inf)
    for measured in (False, *[True] * rounds):  # the first round is not counted
        for name, network in networks.items():
            taken = gradient_seconds(network.log_prob, frames, device)
            if measured:
                seconds[name] = min(seconds[name], taken)
    return {name: frames * TIME / least for name, least in seconds.items()}


def gradient_seconds(
    log_prob: Callable[[Tensor, Tensor], Tensor], frames: int, device: torch.device | None
) -> float:
    """Seconds that one call takes for a log density and its gradient."""
    x = torch.randn(frames, TIME, device=device, requires_grad=True)
    sigma = torch.full((frames,), 0.3, device=device)
    float(x.detach().sum())  # waits for a GPU, as below
    started = clock.perf_counter()
    (gradient,) = torch.autograd.grad(log_prob(x, sigma).sum(), x)
    float(gradient.sum())
    return clock.perf_counter() - started


class Compiled:
    """A network whose density torch.compile compiles at its first call."""

    def __init__(self, network: Any) -> None:
        self.log_prob = torch.compile(network.log_prob, dynamic=False)


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Products of matrices and convolutions in one of :data:`PRECISIONS`, then as before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    is_tf32 = precision == "TF32"
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = is_tf32
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    try:
        with autocast:
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def precision_rates(
    networks: Mapping[str, Any], rounds: int, device: torch.device
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Gradient rates by network, precision and number of frames; None where it does not run."""
    rates: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, network in networks.items():
        rates[name] = {precision: {} for precision in PRECISIONS}
        for precision in PRECISIONS:
            timed = Compiled(network) if precision == "compiled" else network
            for frames in FRAMES_ON_GPU:
                rate = None
                try:
                    with arithmetic(precision, device):
                        rate = gradient_rates({name: timed}, rounds, frames, device)[name]
                except Exception as error:  # compilers fail in ways of their own
                    reason = str(error).strip().partition("\n")[0]
                    print(f"{name}, {precision}, {frames} frames: {reason}")
                rates[name][precision][str(frames)] = rate
    return rates


def build_networks(device: torch.device | None = None) -> dict[str, nn.Module]:
    """Untrained networks by name; the plain one last."""
    networks: dict[str, nn.Module] = {
        f"pyro_sep {size} {family}": build(FAMILIES[family].sizes[size]).eval()
        for size, families in SIZES.items()
        for family in families
    }
    width = math.sqrt(parameters(networks["pyro_sep toy wavenet"]) / 240)
    networks[PLAIN] = PlainWaveNet(round(width), 8)
    return {name: network.requires_grad_(False).to(device) for name, network in networks.items()}


def repeated(priors: Priors, count: int) -> dict[str, Prior]:
    """``count`` priors; past the last one they repeat under other names."""
    names = [name for _, name in zip(range(count), cycle(priors), strict=False)]
    turns = [i // len(priors) + 1 for i in range(count)]
    return {
        name if turn == 1 else f"{name}_{turn}": priors[name]
        for name, turn in zip(names, turns, strict=True)
    }


def toy_mixture_of(names: Sequence[str], count: int, time: int) -> Tensor:
    """The mean of ``count`` test tones ``(time,)``; repeated priors have other tones."""
    tones: list[Tensor] = []
    while len(tones) < count:
        tones += toy_mixture("test", len(tones) // len(names), names, time).sources
    return torch.stack(tones[:count]).mean(0)


def separation_seconds(priors: Priors, mixture: Tensor, chains: int) -> float:
    """Seconds of one whole separation on a small budget, the fastest of several."""
    seconds = []
    for _ in range(REPEATS):
        started = clock.perf_counter()
        separate_batch(mixture[None], priors, chains=chains, **SMALL)
        seconds.append(clock.perf_counter() - started)
    return min(seconds)


def separation_times(priors: Priors) -> dict[str, dict[str, Any]]:
    """Time of separations against length, sources and chains: values, seconds and slope of each."""
    names = list(priors)
    smallest = (LENGTHS[0], SOURCES[0], CHAINS[0])
    sweeps = {
        "length": [(length, *smallest[1:]) for length in LENGTHS],
        "sources": [(smallest[0], count, smallest[2]) for count in SOURCES],
        "chains": [(*smallest[:2], chains) for chains in CHAINS],
    }
    seconds: dict[tuple[float, int, int], float] = {}
    times = {}
    for column, (sweep, sizes) in enumerate(sweeps.items()):
        for size in sizes:
            if size not in seconds:
                length, count, chains = size
                mixture = toy_mixture_of(names, count, round(length * SAMPLE_RATE))
                seconds[size] = separation_seconds(repeated(priors, count), mixture, chains)
        values = [size[column] for size in sizes]
        taken = [seconds[size] for size in sizes]
        times[sweep] = {"values": values, "seconds": taken, "slope": slope(values, taken)}
        print(f"{sweep}: time grows as its power {times[sweep]['slope']:.2f}")
        print("  ".join(f"{x:g}: {y:.2f} s" for x, y in zip(values, taken, strict=True)))
    return times


def slope(values: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def song_times(priors: Priors, device: torch.device) -> dict[str, float]:
    """Seconds that a second of audio takes, by preset."""
    rate = sample_rate_of(priors)
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([prior.rms for prior in priors.values()])
    noise = torch.randn(1, round(SONG_SECONDS * rate), generator=generator)
    mixture = (levels.square().sum().sqrt() * noise).to(device)
    times = {}
    for preset in SONG_PRESETS:
        started = clock.perf_counter()
        separate_batch(mixture, priors, preset=preset)
        times[preset] = (clock.perf_counter() - started) / SONG_SECONDS
        print(f"{len(priors)} stems, {preset}: {times[preset]:.1f} s a second of audio")
    return times


def measure_networks(rounds: int) -> dict[str, Any]:
    """Parameters and rates of every network on the CPU, beside the plain one."""
    networks = build_networks()
    print(f"{torch.get_num_threads()} threads, {FRAMES} frames of {TIME} samples, float32")
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
    return {"frames": FRAMES, "time": TIME, "dtype": "float32", "networks": figures}


def measure_device(rounds: int, device: torch.device) -> dict[str, Any]:
    """Rates by precision of every network there, and what music takes."""
    networks = build_networks(device)
    rates = precision_rates(networks, rounds, device)
    for name, precisions in rates.items():
        for precision, by_frames in precisions.items():
            said = [f"{rate:,.0f} of {frames} frames" for frames, rate in by_frames.items() if rate]
            print(f"{name}, {precision}: gradient samples a second: {', '.join(said) or 'none'}")
    figures = {
        name: {"parameters": parameters(networks[name]), "gradient_samples_per_second": found}
        for name, found in rates.items()
    }
    songs = song_times(load_priors("music", device), device)
    return {"time": TIME, "networks": figures, "seconds_per_second": songs}


@denormals_flushed()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each network, in turns.")] = 20,
    separations: Annotated[bool, typer.Option(help="Time whole separations too.")] = False,
    device: Device = "cpu",
    out: Out = Path("results/benchmark"),
) -> None:
    """Print the figures, and write them to OUT/summary.json."""
    results = Results(out)
    place = torch_device(device)
    torch.manual_seed(0)
    is_cpu = place.type == "cpu"
    found = measure_networks(rounds) if is_cpu else measure_device(rounds, place)
    if separations:
        found["separations"] = separation_times(load_priors("toy", place))
    settings = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds}
    if not is_cpu:
        settings["device"] = torch.cuda.get_device_name(place)
    results.json(settings | found)
    results.done()


if __name__ == "__main__":
    run(main)
