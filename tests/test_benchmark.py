"""The benchmark of gradient rates."""

import json
from pathlib import Path

import pytest
import torch
from scripts import load
from torch import Tensor

from pyro_sep.models.family import FAMILIES, build

benchmark = load("benchmark")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LANES", 1)
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
        assert x.shape == (benchmark.LANES, benchmark.TIME)
        assert sigma.shape == (benchmark.LANES,)
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
    assert results == f"Results: {tmp_path / 'out'}"
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
