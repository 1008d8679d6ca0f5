"""The benchmark of gradient rates and of separations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import toy_mixture
from pyro_sep.models.registry import FAMILIES, build
from pyro_sep.priors.base import Priors

benchmark = load("benchmark")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "FRAMES", 1)
    monkeypatch.setattr(benchmark, "TIME", 128)


class Clock:
    """A clock that a call of a network moves on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Network(torch.nn.Module):
    """Its calls take so many seconds, one after the other."""

    def __init__(self, name: str, seconds: list[float], clock: Clock, calls: list[str]) -> None:
        super().__init__()
        self.name, self.seconds, self.clock, self.calls = name, seconds, clock, calls

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert x.shape == (benchmark.FRAMES, benchmark.TIME)
        assert sigma.shape == (benchmark.FRAMES,)
        self.clock.now += self.seconds[self.calls.count(self.name)]
        self.calls.append(self.name)
        return -0.5 * (x.square().sum(-1) / sigma.square())


def test_a_rate_is_that_of_the_fastest_call_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark, "clock", clock)
    networks = {
        "one": Network("one", [1.0, 8.0, 4.0, 5.0], clock, calls),
        "two": Network("two", [0.5, 2.0, 3.0, 16.0], clock, calls),
    }
    rates = benchmark.gradient_rates(networks, 3)
    assert rates == {"one": 128 / 4.0, "two": 128 / 2.0}
    assert calls == ["one", "two"] * 4  # in turns


def test_the_figures_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        benchmark,
        "gradient_rates",
        lambda networks, rounds: {name: 1e5 * (i + 1) for i, name in enumerate(networks)},
    )
    benchmark.main(rounds=2, out=tmp_path / "out")
    _, *lines, results = capsys.readouterr().out.splitlines()
    names = ["pyro_sep toy wavenet", "pyro_sep toy flow", "pyro_sep music wavenet"]
    names += ["plain conv1d WaveNet"]
    assert [line.split(":")[0] for line in lines] == names
    assert "100,000 gradient samples a second, 0.2 times the plain one" in lines[0]
    assert results.endswith(f" s. Results: {tmp_path / 'out'}")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    figures = summary["networks"]
    assert [figures[name]["ratio_to_plain"] for name in names] == [0.25, 0.5, 0.75, 1]
    sizes = [figures[name]["parameters"] for name in names]
    shipped = (("wavenet", "toy"), ("flow", "toy"), ("wavenet", "music"))
    assert sizes[:-1] == [
        benchmark.parameters(build(FAMILIES[family].sizes[size])) for family, size in shipped
    ]
    assert sizes[-1] == pytest.approx(sizes[0], rel=0.1)  # like with like
    assert summary["rounds"] == 2


def test_every_network_is_timed() -> None:
    networks = benchmark.build_networks()
    rates = benchmark.gradient_rates(networks, 1)
    assert rates.keys() == networks.keys()
    assert all(rate > 0 for rate in rates.values())


def test_the_density_of_the_plain_network_integrates_to_one() -> None:
    """Over the last sample, given those before it: only if these do not see it."""
    torch.manual_seed(0)
    plain = benchmark.PlainWaveNet(8, 4).double()
    x, last = torch.randn(1, 16).double(), torch.arange(-30, 30, 0.1, dtype=torch.float64)
    frames = torch.cat([x.expand(len(last), -1), last[:, None]], 1)
    with torch.no_grad():
        before = plain.log_prob(x, torch.ones(1).double())
        density = (plain.log_prob(frames, torch.ones(len(last)).double()) - before).exp()
    assert float(density.sum() * 0.1) == pytest.approx(1, abs=1e-6)


class Failing(torch.nn.Module):
    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nin this file")


class Precise(torch.nn.Module):
    """Notes the arithmetic that it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool, bool]] = []

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        state = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        self.seen.append((*state, torch.is_autocast_enabled("cpu")))
        return -0.5 * x.square().sum(-1) / sigma.square()


def arithmetic() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_every_precision_is_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "FRAMES_ON_GPU", (1, 3))
    monkeypatch.setattr(benchmark, "Compiled", lambda network: network)
    before, network = arithmetic(), Precise()
    rates = benchmark.precision_rates({"good": network, "bad": Failing()}, 2, CPU)
    assert arithmetic() == before
    assert not torch.is_autocast_enabled("cpu")
    states = [("highest", False, False), ("high", True, False), ("highest", False, True)]
    states.append(("highest", False, False))
    assert network.seen == [state for state in states for _ in range(2 * 3)]
    assert list(rates["good"]) == list(benchmark.PRECISIONS)
    assert all(rate > 0 for found in rates["good"].values() for rate in found.values())
    assert rates["bad"] == {precision: {"1": None, "3": None} for precision in benchmark.PRECISIONS}
    assert "bad, TF32, 3 frames: no such kernel\n" in capsys.readouterr().out


def test_a_rate_counts_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "gradient_seconds", lambda log_prob, frames, device: frames / 4)
    rates = benchmark.gradient_rates({"one": Precise()}, 1, 6, CPU)
    assert rates == {"one": 6 * 128 / 1.5}


def test_more_sources_are_the_same_priors_on_other_tones() -> None:
    priors = {name: object() for name in ("sine", "saw", "square")}
    more = benchmark.repeated(priors, 7)
    assert list(more) == ["sine", "saw", "square", "sine_2", "saw_2", "square_2", "sine_3"]
    assert more["sine_3"] is more["sine_2"] is priors["sine"]
    names = list(priors)
    mixture = benchmark.toy_mixture_of(names, 4, 300)
    first, second = (toy_mixture("test", i, names, 300).sources for i in range(2))
    torch.testing.assert_close(mixture, (first.sum(0) + second[0]) / 4)


def test_slopes_are_those_of_powers() -> None:
    assert benchmark.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert benchmark.slope([0.064, 4.0], [5, 5]) == pytest.approx(0, abs=1e-9)


def test_separations_are_timed_along_each_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def seconds(priors: Priors, mixture: Tensor, chains: int) -> float:
        asked.append((len(mixture), len(priors), chains))
        return len(mixture) * len(priors) ** 2 * chains**0.5

    monkeypatch.setattr(benchmark, "separation_seconds", seconds)
    priors: Any = dict.fromkeys(("sine", "saw", "square", "triangle"))
    times = benchmark.separation_times(priors)
    assert len(asked) == len({*asked}) == 7 + 5 + 5 - 2  # the smallest once
    assert times["length"]["values"] == list(benchmark.LENGTHS)
    assert times["length"]["seconds"][-1] == 64_000 * 4
    assert times["length"]["slope"] == pytest.approx(1)
    assert times["sources"]["values"] == [2, 3, 4, 6, 8]
    assert times["sources"]["slope"] == pytest.approx(2)
    assert times["chains"]["values"] == [1, 2, 4, 8, 16]
    assert times["chains"]["slope"] == pytest.approx(0.5)


def test_a_separation_counts_by_its_fastest(
    gaussian_priors: Callable[..., Priors], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark, "clock", clock)
    separate = benchmark.separate_batch

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(separate(*arguments, **options)[0])
        clock.now += [5.0, 3.0][len(calls) - 1]

    monkeypatch.setattr(benchmark, "separate_batch", slow)
    mixture = 0.3 * torch.randn(256, generator=torch.Generator().manual_seed(0))
    assert benchmark.separation_seconds(gaussian_priors(0.5, 0.2), mixture, 3) == 3.0
    assert [call.trace["posterior"].sizes["chain"] for call in calls] == [3, 3]


def test_music_is_timed_on_noise_of_its_level(
    gaussian_priors: Callable[..., Priors], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark, "clock", clock)

    def separate(mixture: Tensor, priors: Priors, **options: Any) -> None:
        calls.append(options)
        clock.now += 30.0 * len(calls)
        assert mixture.shape == (1, 160_000)
        assert float(mixture.std()) == pytest.approx(0.05, rel=0.02)

    monkeypatch.setattr(benchmark, "separate_batch", separate)
    times = benchmark.song_times(gaussian_priors(0.03, 0.04), CPU)
    assert times == {"quick": 3.0, "standard": 6.0}
    assert [call["preset"] for call in calls] == ["quick", "standard"]


def test_what_a_device_does_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rates = {"float32": {"16": 1_000.0, "256": 2_000.0}, "compiled": {"16": None, "256": None}}
    monkeypatch.setattr(
        benchmark, "precision_rates", lambda networks, *_: dict.fromkeys(networks, rates)
    )
    monkeypatch.setattr(benchmark, "song_times", lambda priors, device: {"quick": 0.5})
    monkeypatch.setattr(benchmark, "separation_times", lambda priors: {"of": list(priors)})
    monkeypatch.setattr(benchmark, "torch_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(benchmark, "load_priors", lambda name, device: {name: device})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "a card")
    benchmark.main(rounds=2, separations=True, device="cuda", out=tmp_path)
    printed = capsys.readouterr().out
    head = "pyro_sep toy flow, float32: gradient samples a second: 1,000 of 16 frames, 2,000 of 256"
    assert head in printed
    assert "pyro_sep toy flow, compiled: gradient samples a second: none\n" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["device"] == "a card"
    assert summary["seconds_per_second"] == {"quick": 0.5}
    assert summary["separations"] == {"of": ["toy"]}
    plain = summary["networks"]["plain conv1d WaveNet"]
    assert plain["gradient_samples_per_second"] == rates


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cuda", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        benchmark.run(benchmark.main)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("pyro-sep: device: got 'cuda', expected cpu or one that is here")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()
