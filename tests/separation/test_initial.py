"""Separations that begin from the stems of another separator."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_sep import load_priors, separate, separate_batch
from pyro_sep.data.toy import toy_mixture
from pyro_sep.diagnostics.initial import compare_initial
from pyro_sep.diagnostics.verdict import Verdict, diagnose
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.inference.annealing import checkpoint
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import RESTART, Annealing
from pyro_sep.separation.api import Separation
from pyro_sep.separation.cost import estimate_cost
from pyro_sep.separation.initial import NOISED
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.dataset import load_trace, save_trace

NAMES = ("square", "saw")
TIME = 1_024
TRUE = toy_mixture("test", 0, NAMES, TIME).sources / 2
SHORT: dict[str, Any] = {"cooling": 3, "warmup": 2, "draws": 3, "thin": 1}


def bleeding(stems: Tensor) -> Tensor:
    """Each stem with a fifth of the other's."""
    return 0.8 * stems + 0.2 * stems.flip(-2)


def low_passed(stems: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(stems)
    spectrum[..., spectrum.shape[-1] // 2 :] = 0
    return torch.fft.irfft(spectrum, n=stems.shape[-1])


def noisy(stems: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return stems + 0.25 * stems.std() * torch.randn(stems.shape, generator=generator)


STARTS = {"true": TRUE, "bleed": bleeding(TRUE), "low": low_passed(TRUE), "noisy": noisy(TRUE)}


@pytest.fixture(scope="module")
def results() -> dict[str, Separation]:
    """By the kind of start."""
    priors = {name: load_priors("toy")[name] for name in NAMES}
    mixtures = TRUE.sum(0).expand(len(STARTS), -1)
    found = separate_batch(mixtures, priors, initial=torch.stack([*STARTS.values()]), seed=1)
    return dict(zip(STARTS, found, strict=True))


@pytest.mark.parametrize("kind", ["bleed", "low", "noisy"])
def test_degraded_stems_are_mended(results: dict[str, Separation], kind: str) -> None:
    """Gains of ten mixtures: experiments/initial_stems.py, at least 9 dB each."""
    result = results[kind]
    before, after = si_sdr(STARTS[kind], TRUE), si_sdr(result.contributions, TRUE)
    assert (after > before + 6).all()
    moved = compare_initial(result.trace)
    assert moved is not None
    assert moved.preferred == "result"
    assert max(moved.si_sdr.values()) < float(after.min())  # it moved farther than it errs
    assert moved.nats > 1_000


def test_true_stems_stay(results: dict[str, Separation]) -> None:
    moved = compare_initial(results["true"].trace)
    assert moved is not None
    assert min(moved.si_sdr.values()) > 20
    assert moved.preferred != "result"


def test_the_trace_has_the_stems_and_no_search(
    results: dict[str, Separation], tmp_path: Path
) -> None:
    trace = results["bleed"].trace
    assert "search_stats" not in trace.children
    assert not {"search_tries", "search_found"} & trace.attrs.keys()
    constant = trace["constant_data"].to_dataset()
    assert np.array_equal(constant["initial"].values, STARTS["bleed"].numpy())
    save_trace(trace, tmp_path / "trace.nc")
    assert load_trace(tmp_path / "trace.nc").identical(trace)
    assert diagnose(trace).verdict is Verdict.TRUSTED  # a frame of one decision


@pytest.fixture
def wave() -> Tensor:
    """Stems ``(source, time)`` of noise."""
    levels = torch.tensor([[0.15], [0.05]])
    return levels * torch.randn(2, 300, generator=torch.Generator().manual_seed(0))


def test_chains_begin_from_the_stems(
    gaussian_priors: Callable[..., Any], wave: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first evaluation the sources are the stems by their gains, and noise of the level."""
    seen: list[tuple[Tensor, float]] = []
    before = Evaluator.evaluate

    def evaluate(self: Evaluator, target: Any, position: Tensor, sigma: float) -> Any:
        seen.append((position, sigma))
        return before(self, target, position, sigma)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    priors = gaussian_priors(0.3, 0.1)
    settings = resolve_settings(priors, 300, chains=40, **SHORT)
    separate(wave.sum(0), priors, initial=wave, settings=settings, constraint="gaussian")
    position, sigma = seen[0]
    assert sigma == settings.initial_sigmas[0] == settings.sigma_freeze
    error = (position - 2 * wave).square().mean().sqrt()
    assert float(error) == pytest.approx(sigma, rel=3 * (2 * position.numel()) ** -0.5)
    cooling = [level for _, level in seen[1:4]]
    assert sigma > cooling[-1] >= settings.sigma_min


def test_levels_begin_within_the_ladder() -> None:
    levels: dict[str, Any] = {"sigma_max": 1.0, "sigma_min": 0.1, "cooling": 4}
    assert Annealing(sigma_freeze=0.5, **levels).initial_sigmas[0] == RESTART * 0.1
    assert Annealing(sigma_freeze=0.15, **levels).initial_sigmas[0] == 0.15
    assert Annealing(sigma_freeze=0.101, **levels | {"cooling": 1}).initial_sigmas == (0.1,)


def test_gradients_are_those_of_the_chains(
    gaussian_priors: Callable[..., Any], wave: Tensor
) -> None:
    priors = gaussian_priors(0.3, 0.1)
    options = {"initial": wave, "chains": 2, **SHORT}
    spent = separate(wave.sum(0), priors, **options).trace.attrs["gradients"]
    expected = estimate_cost(wave.sum(0), priors, **options).gradients
    assert spent == pytest.approx(expected, abs=1 + NOISED / 3)
    assert spent < separate(wave.sum(0), priors, chains=2, **SHORT).trace.attrs["gradients"] / 2


def test_the_same_seed_gives_the_same_draws(
    gaussian_priors: Callable[..., Any], wave: Tensor
) -> None:
    priors = gaussian_priors(0.3, 0.1)
    one, same, other = (
        separate(wave.sum(0), priors, initial=wave, seed=seed, **SHORT).trace for seed in (1, 1, 2)
    )
    assert one.identical(same)
    assert not one.identical(other)


def test_a_killed_run_continues_to_the_same_draws(
    gaussian_priors: Callable[..., Any],
    wave: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    priors, mixture = gaussian_priors(0.3, 0.1), wave.sum(0)
    options = {"initial": wave, "chains": 2, **SHORT, "draws": 12}
    whole = separate(mixture, priors, **options)
    before, calls = Evaluator.evaluate, 0

    def evaluate(self: Evaluator, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in killed:
            raise KeyboardInterrupt
        return before(self, *arguments, **options)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    killed: tuple[int, ...] = (3, 6, 19)  # while it cools, in the warm-up, within the draws
    place = tmp_path / "run.pt"
    for _ in killed:
        with pytest.raises(KeyboardInterrupt):
            separate(mixture, priors, checkpoint=place, **options)
    killed = ()
    other = options | {"initial": bleeding(wave)}
    with pytest.raises(ValueError, match=r"run\.pt: got the checkpoint of a run of initial \w+ "):
        separate(mixture, priors, checkpoint=place, **other)
    again = separate(mixture, priors, checkpoint=place, **options)
    assert again.trace.identical(whole.trace)
    assert torch.equal(again.sources, whole.sources)


def test_draws_go_to_a_store(
    gaussian_priors: Callable[..., Any], wave: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("zarr")
    priors, options = gaussian_priors(0.3, 0.1), {"initial": wave, **SHORT}
    trace = separate(wave.sum(0), priors, store=tmp_path / "a.zarr", **options).trace
    held = separate(wave.sum(0), priors, **options).trace
    assert compare_initial(trace) == compare_initial(held)


def test_chains_of_one_start_are_nothing_to_compare(
    gaussian_priors: Callable[..., Any], wave: Tensor
) -> None:
    settings = {**SHORT, "draws": 40, "thin": 2}
    options = {"initial": wave, "chains": 2, "estimate": "mean", **settings}
    diagnosis = diagnose(separate(wave.sum(0), gaussian_priors(0.3, 0.1), **options).trace)
    assert diagnosis.verdict is Verdict.ONE_START
    assert diagnosis.reason.endswith("separate without initial stems, and compare")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence": "infer"}, "presence: got 'infer' beside initial stems"),
        ({"gains": "infer"}, "gains: got 'infer' beside initial stems"),
        ({"noise_scale": "infer"}, "noise_scale: got 'infer' beside initial stems"),
        ({"candidates": 3}, "candidates: got 3 beside initial stems"),
        ({"initial": torch.ones(3, 300)}, r"initial: got shape \(3, 300\), expected \(2, 300\)"),
        ({"initial": torch.full((2, 300), math.nan)}, "initial: got NaN or infinity"),
        ({"initial": torch.randn(2, 300)}, "no nearer to the mixture than silence"),
        ({"initial": "stems"}, "initial: got 'stems', expected audio in floats"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gaussian_priors: Callable[..., Any], wave: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        separate(wave.sum(0), gaussian_priors(0.3, 0.1), **{"initial": wave} | SHORT | options)
    assert "\n" not in str(caught.value)


def test_a_comparison_says_which_is_preferred() -> None:
    from pyro_sep.diagnostics.initial import InitialComparison, format_initial

    said = {
        nats: format_initial(InitialComparison({"bass": 3.0}, nats, 10.0))
        for nats in (30.0, -30.0, 19.0, math.nan)
    }
    assert (
        said[30.0] == "SI-SDR to the initial stems: bass 3.0 dB; draws are more probable by 30 nats"
    )
    assert said[-30.0].endswith("the initial stems are more probable than draws, by 30 nats")
    assert said[19.0].endswith("about as probable as draws")


def test_sources_may_rest(gaussian_priors: Callable[..., Any], wave: Tensor) -> None:
    """Of a section in which one rests, and of one in which there is noise alone."""
    mixture = wave[0]
    stems = torch.stack([mixture, 0 * mixture])
    budget: dict[str, Any] = {"gains": (1, 1), "cooling": 2, "warmup": 2, "draws": 3}
    result = separate(mixture, gaussian_priors(0.3, 0.1), initial=stems, **budget)
    comparison = compare_initial(result.trace)
    assert comparison is not None
    assert list(comparison.si_sdr) == ["one"]
    hiss = 1e-5 * torch.randn(len(mixture))
    separate(hiss, gaussian_priors(0.3, 0.1), initial=0 * stems, **budget)
    with pytest.raises(ValueError, match="no nearer to the mixture than silence"):
        separate(mixture, gaussian_priors(0.3, 0.1), initial=0 * stems, **budget)
