import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from networks import HALVES, randomise
from torch import Tensor

from pyro_sep.data.toy import draw_sources
from pyro_sep.models import train
from pyro_sep.models.flowavenet import FloWaveNetConfig
from pyro_sep.models.registry import Network, NetworkConfig, build
from pyro_sep.models.settings import TrainConfig, schedule
from pyro_sep.models.soundness import TOLERATED, Losses
from pyro_sep.models.train import (
    CHECKPOINT,
    SERIAL_SIGMAS,
    TUNING_SHARE,
    TrainingDivergedError,
    draw_batch,
    fit,
    fit_serially,
    score_loss,
)
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.storage.states import load_state, save_state

NETWORK = WaveNetConfig(
    width=8, layers=2, hop=16, past=16, spectra=(32,), components=4, head_width=8, head_past=4
)
CATEGORICAL = dataclasses.replace(NETWORK, head="categorical", components=64)
NESTED = FloWaveNetConfig(
    squeeze=8,
    flows=2,
    components=2,
    layers=2,
    width=8,
    spectra=(32,),
    head_width=8,
    head_reach=4,
)
FAMILIES: dict[str, NetworkConfig] = {"wavenet": NETWORK, "nested": NESTED, "halves": HALVES}
SHORT = TrainConfig(steps=12, batch=2, time=64, warmup=3, seed=4)


def square(count: int, time: int, generator: torch.Generator) -> Tensor:
    return draw_sources("square", count, time, generator)[0]


def silence(count: int, time: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(count, time)


class StopsAtDraw:
    """A source that is killed, or gives NaN, at its k-th draw."""

    def __init__(self, k: int, nan: bool = False) -> None:
        self.k, self.nan, self.draws = k, nan, 0

    def __call__(self, count: int, time: int, generator: torch.Generator) -> Tensor:
        self.draws += 1
        if self.draws < self.k:
            return square(count, time, generator)
        if self.nan:
            return torch.full((count, time), math.nan)
        raise KeyboardInterrupt


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Write a checkpoint every so many steps: a clock that ticks once per look."""

    def set_interval(steps: int) -> None:
        ticks = iter(range(10_000))
        clock = type("Clock", (), {"monotonic": staticmethod(lambda: float(next(ticks)))})
        monkeypatch.setattr(train, "clock", clock)
        # The look that stamps the checkpoint is a tick of its own.
        monkeypatch.setattr(train, "CHECKPOINT_SECONDS", steps - 0.5)

    return set_interval


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / CHECKPOINT, weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Bitwise equality of nested states."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_the_noise_is_normal_and_never_clamped() -> None:
    config = TrainConfig(batch=64, time=8_000)
    clean, noisy, sigma = draw_batch(square, NETWORK, config, torch.Generator().manual_seed(0))
    assert clean.shape == noisy.shape == (64, 8_000)
    assert sigma.shape == (64,)
    # Rounding of noisy - clean, for values up to ten at the lowest level of 0.01.
    unit = ((noisy.double() - clean.double()) / sigma.double()[:, None]).flatten()
    count = unit.numel()
    assert abs(float(unit.mean())) < 4 / math.sqrt(count)
    assert abs(float(unit.square().mean()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float(unit.pow(4).mean()) - 3) < 4 * math.sqrt(96 / count)  # Var[n^4] = 105 - 9
    tail = float((unit.abs() > 3).double().mean())
    expected = math.erfc(3 / math.sqrt(2))
    assert abs(tail - expected) < 4 * math.sqrt(expected / count)
    # Its std is the frame's own sigma, whatever the level: a clamp to full scale would show.
    per_frame = unit.reshape(64, -1).std(1)
    assert ((per_frame - 1).abs() < 5 / math.sqrt(2 * 8_000)).all()
    loud = noisy[sigma > 2]
    assert len(loud) > 5
    assert loud.abs().max() > 6
    # Fresh noise: neither repeated over frames nor correlated with the audio.
    frames = unit.reshape(64, -1)
    assert (torch.corrcoef(frames) - torch.eye(64)).abs().max() < 5.5 / math.sqrt(8_000)
    assert abs(float((unit * clean.flatten().double()).mean())) < 4 / math.sqrt(count)


def test_sigma_is_log_uniform_over_the_whole_range() -> None:
    config = TrainConfig(batch=6, time=1)
    generator = torch.Generator().manual_seed(0)
    batches = [draw_batch(silence, NETWORK, config, generator)[2] for _ in range(2_000)]
    low, high = math.log(NETWORK.sigma_min), math.log(NETWORK.sigma_max)
    unit = (torch.stack(batches).double().log() - low) / (high - low)
    assert unit.min() > -1e-6
    assert unit.min() < 0.001
    assert 0.999 < unit.max() < 1 + 1e-6
    # Stratified: each sixth of the range once per batch; one free offset per batch.
    assert ((unit * 6).long().clamp(0, 5).sort(1).values == torch.arange(6)).all()
    offset = (unit[:, 0] * 6).remainder(1)
    assert scipy.stats.kstest(offset.numpy(), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(unit[:, 3].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.359])
def test_at_one_noise_level(sigma: float) -> None:
    config = TrainConfig(batch=16, time=4_000)
    network = dataclasses.replace(NETWORK, sigma_min=sigma, sigma_max=sigma)
    clean, noisy, sigmas = draw_batch(square, network, config, torch.Generator().manual_seed(0))
    assert torch.equal(sigmas, torch.full((16,), sigma))
    if sigma == 0:
        assert torch.equal(noisy, clean)
    else:
        unit = (noisy.double() - clean.double()) / sigma
        assert abs(float(unit.square().mean()) - 1) < 4 * math.sqrt(2 / unit.numel())
        assert abs(float(unit.mean())) < 4 / math.sqrt(unit.numel())
    # The frames are those of any other noise level.
    other = draw_batch(square, NETWORK, config, torch.Generator().manual_seed(0))[0]
    assert torch.equal(clean, other)


def test_random_gains_are_uniform_in_decibels() -> None:
    def ones(count: int, time: int, generator: torch.Generator) -> Tensor:
        return torch.ones(count, time)

    config = dataclasses.replace(SHORT, batch=2_000, time=4, gain_db=6.0)
    clean, noisy, sigma = draw_batch(ones, NETWORK, config, torch.Generator().manual_seed(0))
    assert (clean == clean[:, :1]).all()  # one gain a frame
    decibels = 20 * clean[:, 0].double().log10()
    assert scipy.stats.kstest((decibels.numpy() + 6) / 12, "uniform").pvalue > 1e-3
    assert ((noisy - clean) / sigma[:, None]).std() == pytest.approx(1, abs=0.05)


def test_batches_follow_their_generator_alone() -> None:
    first = draw_batch(square, NETWORK, SHORT, torch.Generator().manual_seed(7))
    torch.manual_seed(99)
    assert_same(draw_batch(square, NETWORK, SHORT, torch.Generator().manual_seed(7)), first)
    assert not torch.equal(
        draw_batch(square, NETWORK, SHORT, torch.Generator().manual_seed(8))[1], first[1]
    )


def test_schedule() -> None:
    config = TrainConfig(steps=1_000, learning_rate=0.1, warmup=100, decay=0.02)
    rates = [schedule(step, config) for step in range(1_001)]
    assert rates[0] == pytest.approx(0.1 / 100)
    assert rates[49] == pytest.approx(0.05, rel=0.01)  # the cosine has begun, by pi^2 / 4 / 400
    assert rates[500] == pytest.approx(0.1 * (1 + 0.02) / 2)
    assert rates[1_000] == pytest.approx(0.1 * 0.02)
    peak = rates.index(max(rates))
    assert peak == 99
    slopes = [after - before for before, after in itertools.pairwise(rates)]
    assert min(slopes[:peak]) > 0
    assert max(slopes[peak:]) < 0


def test_stairs() -> None:
    config = TrainConfig(steps=1_000, learning_rate=0.1, warmup=1, decay=0.6**5, stairs=5)
    rates = [schedule(step, config) for step in range(1_001)]
    falls = [step for step in range(1, 1_001) if rates[step] < rates[step - 1]]
    assert falls == [360, 520, 680, 840, 1_000]
    for count, step in enumerate([0, *falls]):
        assert rates[step] == pytest.approx(0.1 * 0.6**count)
    assert len(set(rates)) == 6
    once = dataclasses.replace(config, stairs=1, decay=0.5, warmup=100)
    assert schedule(49, once) == pytest.approx(0.05)
    assert [schedule(step, once) for step in (359, 360, 1_000)] == [0.1, 0.05, 0.05]


@pytest.mark.parametrize(
    ("network", "least"),
    [
        # Nats per sample. A square has two values, each known to a bit given the past; a flow's
        # code length holds the noise too, which nothing predicts.
        pytest.param(NETWORK, 0.5, id="gaussians"),
        pytest.param(CATEGORICAL, 0.5, id="categorical"),
        pytest.param(NESTED, 0.1, id="nested"),
        pytest.param(HALVES, 0.1, id="halves"),
    ],
)
def test_training_reduces_the_loss(tmp_path: Path, network: NetworkConfig, least: float) -> None:
    config = TrainConfig(steps=250, batch=4, time=128, learning_rate=5e-3, warmup=20)
    trained = fit(square, tmp_path / "run", network, config, progress=False)
    assert not trained.training
    assert not any(p.requires_grad for p in trained.parameters())
    many = dataclasses.replace(config, batch=128)
    clean, noisy, sigma = draw_batch(square, network, many, torch.Generator().manual_seed(123))
    torch.manual_seed(config.seed)
    before = build(network).eval().code_length(noisy, clean, sigma).detach()
    gain = before - trained.code_length(noisy, clean, sigma)
    error = float(gain.std()) / math.sqrt(128)
    if network == CATEGORICAL:
        assert torch.allclose(before, torch.full_like(before, math.log(64)))
    assert float(gain.mean()) > 5 * error
    assert float(gain.mean()) > least


def test_training_fits_what_has_no_uncertainty(tmp_path: Path) -> None:
    config = TrainConfig(steps=250, batch=2, time=32, learning_rate=2e-2, warmup=5)
    network = dataclasses.replace(CATEGORICAL, spectra=())
    trained = fit(silence, tmp_path, network, config, progress=False)
    clean, noisy, sigma = draw_batch(silence, network, config, torch.Generator().manual_seed(1))
    assert float(trained.code_length(noisy, clean, sigma).max()) < 0.05  # of log 64 = 4.16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("interval", "killed_at"), [(1, 8), (5, 9), (5, 3)])
def test_a_killed_run_goes_on_exactly(
    tmp_path: Path, every: Callable[[int], None], interval: int, killed_at: int, family: str
) -> None:
    network = FAMILIES[family]
    torch.manual_seed(0)
    whole = fit(square, tmp_path / "whole", network, SHORT, progress=False)
    every(interval)
    with pytest.raises(KeyboardInterrupt):
        fit(StopsAtDraw(killed_at), tmp_path / "cut", network, SHORT, progress=False)
    reached = (killed_at - 1) // interval * interval
    assert (tmp_path / "cut" / CHECKPOINT).exists() == (reached > 0)
    if reached:
        assert state(tmp_path / "cut")["step"] == reached
    torch.manual_seed(77)  # another process: its global generator is elsewhere
    source = StopsAtDraw(100)
    resumed = fit(source, tmp_path / "cut", network, SHORT, progress=False)
    assert source.draws == SHORT.steps - reached
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert_same(state(tmp_path / "cut"), state(tmp_path / "whole"))


def initialized(network: torch.nn.Module | dict[str, Tensor]) -> list[bool]:
    """Whether each ActNorm has seen its first batch."""
    entries = network if isinstance(network, dict) else network.state_dict()
    return [bool(value) for key, value in entries.items() if key.endswith("initialized")]


def test_the_averaged_network_knows_that_it_was_normalised(tmp_path: Path) -> None:
    assert initialized(build(HALVES)) == [False] * 4
    config = dataclasses.replace(SHORT, steps=1)
    kept = fit(square, tmp_path, HALVES, config, progress=False)
    for part in (kept, state(tmp_path)["network"], state(tmp_path)["average"]):
        assert initialized(part) == [True] * 4
    # So a batch of quite another level leaves it as it is, were it trained on.
    before = {key: value.clone() for key, value in kept.state_dict().items()}
    kept.train()(10 * square(2, 64, torch.Generator()), torch.full((2,), 5.0))
    assert_same(dict(kept.state_dict()), before)


@pytest.mark.parametrize(("network", "time"), [(NESTED, 60), (HALVES, 66)])
def test_frames_that_the_network_cannot_take(
    tmp_path: Path, network: NetworkConfig, time: int
) -> None:
    config = dataclasses.replace(SHORT, time=time)
    message = f"^time: got {time} audio samples per frame, expected a multiple of "
    with pytest.raises(ValueError, match=f"{message}{network.multiple} ") as caught:
        fit(square, tmp_path / "run", network, config, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert fit(square, tmp_path / "run", NETWORK, config, progress=False)  # any time will do


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_run_may_start_from_other_weights(tmp_path: Path, family: str) -> None:
    network, still = FAMILIES[family], dataclasses.replace(SHORT, learning_rate=0.0)
    first = fit(square, tmp_path / "first", network, SHORT, progress=False)
    second = fit(square, tmp_path / "second", network, still, progress=False, start=first)
    assert_same(dict(second.state_dict()), dict(first.state_dict()))
    assert second is not first
    weights = next(first.parameters()).clone()
    third = fit(square, tmp_path / "third", network, SHORT, progress=False, start=first)
    assert not torch.equal(next(third.parameters()), weights)
    assert torch.equal(next(first.parameters()), weights)


def test_the_score_is_judged_by_the_noise_that_was_added() -> None:
    """Untrained, halves are white audio of level r: their score is -x / (r^2 + sigma^2)."""
    network = build(HALVES).eval()
    config = TrainConfig(batch=8, time=64)
    clean, noisy, sigma = draw_batch(square, HALVES, config, torch.Generator().manual_seed(0))
    variance = HALVES.sigma_data**2 + sigma.square()[:, None]
    noise = (noisy - clean) / sigma[:, None]
    expected = 0.5 * (noise - sigma[:, None] * noisy / variance).square().mean(1)
    loss = score_loss(network, noisy, clean, sigma)
    assert loss.shape == (8,)
    assert torch.allclose(loss, expected, rtol=1e-3, atol=1e-5)
    assert not noisy.requires_grad


def random(config: NetworkConfig) -> torch.nn.Module:
    """What starts at zero is random too."""
    torch.manual_seed(0)
    network = build(config).eval()
    randomise(network)
    return network.double()


@pytest.mark.parametrize(
    ("family", "coupling"),
    [
        ("nested", "affine"),
        ("nested", "spline"),
        ("nested", "mixture"),
        ("halves", "affine"),
        ("halves", "spline"),
        ("halves", "mixture"),
    ],
)
def test_the_judged_score_has_the_gradient_of_the_weights(family: str, coupling: str) -> None:
    """The second derivatives of a coupling, by finite differences of its first ones."""
    network = random(dataclasses.replace(FAMILIES[family], coupling=coupling))
    clean = square(3, 32, torch.Generator().manual_seed(0)).double()
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    noise = torch.randn(3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy, step = clean + sigma[:, None] * noise, 1e-6
    parameters = list(network.parameters())
    loss = score_loss(network, noisy, clean, sigma).mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum(
        float((gradient * direction).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    losses = []
    for shift in (step, -2 * step):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(shift * direction)
        losses.append(float(score_loss(network, noisy, clean, sigma).mean().detach()))
    # Error of order step^2 and of rounding / step; kinks of a ReLU cost an order of the step.
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_frames_judged_by_their_score_know_it_better(tmp_path: Path) -> None:
    """Over four seeds: one short run says little, its rounding decides."""
    config = TrainConfig(steps=150, batch=6, time=64, learning_rate=1e-2, warmup=5)
    many = dataclasses.replace(config, batch=128)
    clean, noisy, sigma = draw_batch(square, HALVES, many, torch.Generator().manual_seed(123))

    def loss(network: Network) -> Tensor:
        return score_loss(network, noisy, clean, sigma).detach()

    def trained(weight: float) -> Tensor:
        runs = [dataclasses.replace(config, score_weight=weight, seed=seed) for seed in range(4)]
        folders = [tmp_path / f"{weight}-{run.seed}" for run in runs]
        return torch.stack(
            [
                loss(fit(square, folder, HALVES, run, progress=False))
                for folder, run in zip(folders, runs, strict=True)
            ]
        ).mean(0)

    before, without, best = loss(build(HALVES).eval()), trained(0.0), trained(10.0)
    gain = before - best
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(128)
    assert float(best.mean()) < float(without.mean())


def test_a_killed_run_with_its_score_goes_on_exactly(
    tmp_path: Path, every: Callable[[int], None]
) -> None:
    config = dataclasses.replace(SHORT, score_weight=0.3)
    whole = fit(square, tmp_path / "whole", NESTED, config, progress=False)
    every(1)
    with pytest.raises(KeyboardInterrupt):
        fit(StopsAtDraw(8), tmp_path / "cut", NESTED, config, progress=False)
    resumed = fit(square, tmp_path / "cut", NESTED, config, progress=False)
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    with pytest.raises(ValueError, match="got a run of another config"):
        fit(square, tmp_path / "whole", NESTED, SHORT, progress=False)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    first = fit(square, tmp_path, NETWORK, SHORT, progress=False)
    source = StopsAtDraw(1)
    again = fit(source, tmp_path, NETWORK, SHORT, progress=False)
    assert source.draws == 0
    assert_same(dict(again.state_dict()), dict(first.state_dict()))
    assert state(tmp_path)["step"] == SHORT.steps


def test_the_seed_decides(tmp_path: Path) -> None:
    runs = [
        fit(
            square,
            tmp_path / str(i),
            NETWORK,
            dataclasses.replace(SHORT, seed=seed),
            progress=False,
        )
        for i, seed in enumerate((0, 0, 1))
    ]
    states = [dict(run.state_dict()) for run in runs]
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["read.weight"], states[2]["read.weight"])


def test_the_kept_weights_are_an_average_of_the_trained_ones(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, steps=1, warmup=1)
    kept = fit(square, tmp_path, NETWORK, config, progress=False)
    torch.manual_seed(config.seed)
    start = WaveNet(NETWORK).state_dict()
    end, averaged = state(tmp_path)["network"], state(tmp_path)["average"]
    decay = 1 / 11  # of the first step, below the final one
    for key, value in averaged.items():
        expected = decay * start[key].double() + (1 - decay) * end[key].double()
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(value, kept.state_dict()[key])
    assert not torch.equal(end["head_out.bias"], start["head_out.bias"])


def test_divergence_keeps_the_last_good_checkpoint(
    tmp_path: Path, every: Callable[[int], None]
) -> None:
    every(1)
    with pytest.raises(TrainingDivergedError, match=r"loss is nan .* at step 5") as caught:
        fit(StopsAtDraw(6, nan=True), tmp_path, NETWORK, SHORT, progress=False)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = state(tmp_path)
    assert kept["step"] == 5
    for part in ("network", "average"):
        assert all(value.isfinite().all() for value in kept[part].values())


def test_a_gradient_without_bound_is_divergence_too(
    tmp_path: Path, every: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class RootAtZero(WaveNet):
        calls = 0

        def code_length(self, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
            RootAtZero.calls += 1  # by a step, and by a look at what it led to
            lengths = super().code_length(noisy, clean, sigma)
            if RootAtZero.calls < 7:
                return lengths
            return lengths + (self.read.bias - self.read.bias.detach()).sum().sqrt()  # 0, slope inf

    monkeypatch.setattr(train, "build", RootAtZero)
    every(1)
    with pytest.raises(TrainingDivergedError, match="norm inf at step 3"):
        fit(square, tmp_path, NETWORK, SHORT, progress=False)
    kept = state(tmp_path)
    assert kept["step"] == 3
    assert all(value.isfinite().all() for value in kept["network"].values())


@pytest.mark.parametrize("rate", [1e5, 1e12, 1e30])
@pytest.mark.parametrize("interval", [1, 1_000])
def test_a_run_that_diverges_goes_on_with_a_smaller_rate(
    tmp_path: Path,
    every: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    rate: float,
    interval: int,
) -> None:
    every(interval)
    config = dataclasses.replace(SHORT, steps=30, learning_rate=rate)
    with pytest.raises(
        TrainingDivergedError, match=f"smaller than {re.escape(f'{rate:g}')}"
    ) as got:
        fit(square, tmp_path, NETWORK, config, progress=False)
    kept = state(tmp_path)
    assert f"of step {kept['step']}, is kept in {tmp_path / CHECKPOINT}" in str(got.value)
    for part in ("network", "average"):
        assert all(bool((value.abs() < 1e3).all()) for value in kept[part].values())
    smaller = dataclasses.replace(config, learning_rate=1e-3)
    capsys.readouterr()
    trained = fit(square, tmp_path, NETWORK, smaller, progress=False)
    said = capsys.readouterr().err
    assert f"goes on from step {kept['step']} with the learning rate 0.001 in place of" in said
    assert all(weight.isfinite().all() for weight in trained.parameters())
    assert state(tmp_path)["step"] == 30
    with pytest.raises(ValueError, match="got a run of another config"):  # a larger one again
        fit(square, tmp_path, NETWORK, config, progress=False)


def test_the_last_sound_state_draws_its_batch_again(
    tmp_path: Path, every: Callable[[int], None]
) -> None:
    """What goes on from it is the run without the fault."""
    whole = fit(square, tmp_path / "whole", NETWORK, SHORT, progress=False)
    every(1_000)
    with pytest.raises(TrainingDivergedError):
        fit(StopsAtDraw(6, nan=True), tmp_path / "cut", NETWORK, SHORT, progress=False)
    assert state(tmp_path / "cut")["step"] == 4  # the loss of 5 was not finite
    again = fit(square, tmp_path / "cut", NETWORK, SHORT, progress=False)
    assert_same(dict(again.state_dict()), dict(whole.state_dict()))


def test_without_a_sound_state_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="is not written, since no state was sound"):
        fit(StopsAtDraw(1, nan=True), tmp_path, NETWORK, SHORT, progress=False)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_run_does_not_get_used_to_growing_worse() -> None:
    losses = Losses([1.0] * 5)
    assert losses.add(1.0 + TOLERATED)
    assert not any(losses.add(loss) for loss in [5.0] * 50 + [math.inf, math.nan])
    assert losses.add(-300.0)
    assert Losses().add(1e6)  # of a first loss there is nothing to compare it with
    assert not Losses().add(math.nan)


def change(run: Path, **parts: Any) -> None:
    save_state(run / CHECKPOINT, train.KIND, load_state(run / CHECKPOINT, train.KIND) | parts)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("step", -1),
        ("step", 13),
        ("step", "5"),
        ("generator", torch.zeros(5, dtype=torch.uint8)),
        ("generator", None),
        ("losses", ["text"]),
        ("losses", None),
        ("network", {}),
        ("network", "text"),
        ("average", {"read.weight": torch.ones(2)}),
        ("optimizer", {}),
        ("optimizer", {"state": {0: {"step": 1}}, "param_groups": []}),
        ("optimizer", {"state": {99: {}}, "param_groups": []}),
        ("settings", None),
        ("settings", {"train": {"learning_rate": "fast"}}),
    ],
    ids=str,
)
def test_a_part_that_is_not_what_it_should_be(tmp_path: Path, part: str, value: Any) -> None:
    fit(square, tmp_path, NETWORK, SHORT, progress=False)
    change(tmp_path, **{part: value})
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: got no readable check") as caught:
        fit(square, tmp_path, NETWORK, SHORT, progress=False)
    assert "\n" not in str(caught.value)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e11])
@pytest.mark.parametrize("part", ["network", "average"])
def test_weights_that_are_not_sound_are_not_taken_up(
    tmp_path: Path, part: str, value: float
) -> None:
    fit(square, tmp_path, NETWORK, SHORT, progress=False)
    weights = load_state(tmp_path / CHECKPOINT, train.KIND)[part]
    weights["read.bias"][3] = value
    change(tmp_path, **{part: weights})
    with pytest.raises(ValueError, match=rf"{part} read\.bias is not finite"):
        fit(square, tmp_path, NETWORK, SHORT, progress=False)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / CHECKPOINT, "separation", {"run": {}})
    with pytest.raises(ValueError, match=r"of the format 'pyro_sep\.separation\.2'"):
        fit(square, tmp_path, NETWORK, SHORT, progress=False)


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (dataclasses.replace(NETWORK, width=16), SHORT),
        (dataclasses.replace(NETWORK, sigma_data=0.3), SHORT),
        (NESTED, SHORT),
        (NETWORK, dataclasses.replace(SHORT, steps=20)),
        (NETWORK, dataclasses.replace(SHORT, seed=5)),
    ],
)
def test_a_folder_holds_one_run(
    tmp_path: Path, network: NetworkConfig, config: TrainConfig
) -> None:
    fit(square, tmp_path, NETWORK, SHORT, progress=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="got a run of another config") as caught:
        fit(square, tmp_path, network, config, progress=False)
    assert str(tmp_path / CHECKPOINT) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoints_are_written_whole(
    tmp_path: Path, every: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    every(1)
    replace, saves = os.replace, []

    def interrupted(temporary: Path, path: Path) -> None:
        saves.append(path)
        if len(saves) == 4:
            raise KeyboardInterrupt
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(square, tmp_path, NETWORK, SHORT, progress=False)
    assert state(tmp_path)["step"] == 3
    left = [name for name in os.listdir(tmp_path) if not name.startswith("events.")]
    assert left == [CHECKPOINT]


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_trained_one_after_the_other(tmp_path: Path, family: str) -> None:
    network, sigmas = FAMILIES[family], (0.05, 0.2, 0.1)
    networks = fit_serially(square, tmp_path, network, SHORT, progress=False, sigmas=sigmas)
    assert list(networks) == list(sigmas)
    assert sorted(os.listdir(tmp_path)) == ["sigma-0.05", "sigma-0.1", "sigma-0.2"]
    for sigma, trained in networks.items():
        expected = dataclasses.replace(network, sigma_min=sigma, sigma_max=sigma)
        assert trained.config == expected
        assert not trained.training
        assert not any(p.requires_grad for p in trained.parameters())
        kept = state(tmp_path / f"sigma-{sigma:g}")
        assert kept["step"] == (12 if sigma == 0.05 else 12 // TUNING_SHARE)
        assert_same(dict(trained.state_dict()), dict(kept["average"]))
    # Each level by itself is what fit makes of the one before.
    start = None
    for sigma, trained in networks.items():
        level = dataclasses.replace(network, sigma_min=sigma, sigma_max=sigma)
        steps = SHORT.steps if start is None else SHORT.steps // TUNING_SHARE
        config = dataclasses.replace(SHORT, steps=steps)
        alone = fit(square, tmp_path / f"alone-{sigma}", level, config, progress=False, start=start)
        assert_same(dict(alone.state_dict()), dict(trained.state_dict()))
        start = alone


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_start_from_the_last_ones_weights(tmp_path: Path, family: str) -> None:
    still = dataclasses.replace(SHORT, steps=1, learning_rate=0.0)
    sigmas = (0.1, 0.3, 1.0)
    networks = fit_serially(
        square, tmp_path, FAMILIES[family], still, progress=False, sigmas=sigmas
    )
    first, *later = networks.values()
    for trained in later:
        assert_same(dict(trained.state_dict()), dict(first.state_dict()))
        assert trained is not first


def test_a_level_takes_a_step_at_least(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, steps=3)
    fit_serially(square, tmp_path, NESTED, config, progress=False, sigmas=(0.1, 0.2))
    assert state(tmp_path / "sigma-0.2")["step"] == 1


@pytest.mark.parametrize(
    "family",
    [
        "wavenet",
        "nested",
        "halves",
    ],
)
def test_the_papers_levels_begin_without_noise(tmp_path: Path, family: str) -> None:
    assert SERIAL_SIGMAS == (0.0, 0.01, 0.027, 0.077, 0.129, 0.359)
    config = dataclasses.replace(SHORT, steps=5)
    networks = fit_serially(square, tmp_path, FAMILIES[family], config, progress=False)
    assert tuple(networks) == SERIAL_SIGMAS
    assert len(os.listdir(tmp_path)) == len(SERIAL_SIGMAS)
    assert (tmp_path / "sigma-0").is_dir()
    clean = square(3, 64, torch.Generator().manual_seed(0))
    for sigma, trained in networks.items():
        assert trained.log_prob(clean, torch.full((3,), sigma)).isfinite().all()


@pytest.mark.parametrize("killed_at", [8, 14])  # in the first level, and in the second
def test_a_killed_schedule_goes_on_exactly(
    tmp_path: Path, every: Callable[[int], None], killed_at: int
) -> None:
    def run(source: train.Source, folder: str) -> list[Any]:
        networks = fit_serially(
            source, tmp_path / folder, HALVES, SHORT, progress=False, sigmas=(0.1, 0.2, 0.3)
        )
        return [dict(network.state_dict()) for network in networks.values()]

    whole = run(square, "whole")
    every(1)
    with pytest.raises(KeyboardInterrupt):
        run(StopsAtDraw(killed_at), "cut")
    torch.manual_seed(77)
    source = StopsAtDraw(100)
    assert_same(run(source, "cut"), whole)
    assert source.draws == 12 + 2 + 2 - (killed_at - 1)


def test_a_score_is_not_matched_without_noise(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, score_weight=0.3)
    with pytest.raises(ValueError, match=r"score_weight: got 0\.3 at noise level 0"):
        fit_serially(square, tmp_path / "run", FAMILIES["nested"], config, progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("warmup", 0), ("stairs", -1), ("ema", 1), ("decay", 0), ("clip", 0)]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got {value}, expected "):
        dataclasses.replace(SHORT, **{name: value})
