"""Ranks and coverage against a conjugate Gaussian, and the experiment that uses them."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binom, norm
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import draw_sources
from pyro_sep.diagnostics.sbc import NOMINAL, RankTest, coverage, coverage_error, ranks, thin
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors

SIMULATIONS, DRAWS, CELLS = 400, 15, 6
MIXING = Mixing((0.6, -0.9), 0.05)
LEVELS, SIGMA_MIN, TIME = (0.8, 0.3), 0.2, 8
MakePriors = Callable[..., Priors]
Law = Callable[[Sequence[float], Mixing, float], tuple[Tensor, Tensor]]


def conjugate(bias: float = 0.0, width: float = 1.0) -> tuple[NDArray, NDArray]:
    """Truths N(0, 1), data N(truth, 1), and draws of the posterior N(data / 2, 1 / 2), or not."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(SIMULATIONS, CELLS))
    mean = (true + rng.normal(size=true.shape)) / 2
    spread = width * math.sqrt(0.5)
    draws = mean[:, None] + spread * (bias + rng.normal(size=(SIMULATIONS, DRAWS, CELLS)))
    return true, draws


def judged(true: NDArray, draws: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Ranks, p-values and coverage."""
    rng = np.random.default_rng(1)
    found = ranks(true, draws, rng)
    p_values = RankTest.simulate(len(true), draws.shape[1], rng).p_value(found)
    return found, p_values, coverage(found, draws.shape[1], rng)


def expected_coverage(width: float) -> NDArray:
    """Of draws as wide as ``width`` posteriors: ranks are binomial given where the truth is."""
    z = np.linspace(-8, 8, 4001)
    law = binom.pmf(np.arange(DRAWS + 1)[:, None], DRAWS, norm.cdf(z / width)) * norm.pdf(z)
    edges = np.arange(DRAWS + 2) / (DRAWS + 1)
    low, high = ((1 - np.array(NOMINAL)[:, None]) / 2, (1 + np.array(NOMINAL)[:, None]) / 2)
    covered = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return covered.clip(min=0) * (DRAWS + 1) @ law.sum(1) * (z[1] - z[0])


def test_exact_draws_pass() -> None:
    found, p_values, covered = judged(*conjugate())
    assert found.shape == (SIMULATIONS, CELLS)
    assert bool((p_values > 0.001).all())
    assert expected_coverage(1.0) == pytest.approx(NOMINAL)
    error = coverage_error(SIMULATIONS)
    assert bool((abs(covered - np.array(NOMINAL)[:, None]) < 4 * error[:, None]).all())


@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_narrow_and_wide_draws_fail(variance: float) -> None:
    """The truth is outside too often, or not often enough: as often as their width has it."""
    width = math.sqrt(variance)
    _, p_values, covered = judged(*conjugate(width=width))
    assert bool((p_values < 0.05 / CELLS).all())
    expected = expected_coverage(width)
    assert bool((np.sign(expected - NOMINAL) == np.sign(width - 1)).all())
    error = coverage_error(SIMULATIONS, expected)
    assert bool((abs(covered - expected[:, None]) < 4 * error[:, None]).all())
    off = abs(expected - NOMINAL)[1]
    assert off > 0.08  # far beyond 4 errors of their mean
    assert abs(covered[1].mean() - 0.8) > off - 4 * error[1] / math.sqrt(CELLS)


@pytest.mark.parametrize("bias", [0.4, -0.4])
def test_biased_draws_fail(bias: float) -> None:
    found, p_values, _ = judged(*conjugate(bias))
    assert bool((p_values < 0.05 / CELLS).all())
    assert bool((np.sign(DRAWS / 2 - found.mean(0)) == np.sign(bias)).all())


def test_ranks_count_what_is_below() -> None:
    draws = np.array([[[1.0], [4.0], [2.0]], [[5.0], [6.0], [7.0]]])
    found = ranks(np.array([[3.0], [0.0]]), draws, np.random.default_rng(0))
    assert found.tolist() == [[2], [0]]


def test_a_truth_falls_at_random_among_its_equals() -> None:
    draws = np.tile([0.0, 1.0, 1.0, 1.0, 2.0], (4000, 1))
    counts = np.bincount(ranks(np.ones(4000), draws, np.random.default_rng(0)), minlength=6)
    assert counts[[0, 5]].tolist() == [0, 0]
    error = math.sqrt(4000 * 0.25 * 0.75)
    assert bool((abs(counts[1:5] - 1000) < 4 * error).all())


def test_coverage_of_known_ranks() -> None:
    """Each rank of 0 to 99 once: an interval holds p of them, give or take those at its ends."""
    found = np.arange(100)
    covered = coverage(found, 99, np.random.default_rng(0), (0.5, 0.8))
    assert covered == pytest.approx([0.5, 0.8], abs=1e-12)  # whose ends are between ranks
    edges = np.array([0, 99])
    assert coverage(edges, 99, np.random.default_rng(0), (0.5, 0.95)).tolist() == [0, 0]
    assert coverage_error(100, (0.5, 0.8)) == pytest.approx([0.05, 0.04])


def test_coverage_is_nominal_with_few_draws() -> None:
    """Of two draws: the interval of 95 % reaches far into the ranks at both ends."""
    rng = np.random.default_rng(0)
    covered = coverage(rng.integers(0, 3, 40_000), 2, rng)
    assert bool((abs(covered - NOMINAL) < 4 * coverage_error(40_000)).all())


@pytest.mark.parametrize(("simulations", "draws"), [(30, 7), (200, 40)])
def test_bands_are_simultaneous(simulations: int, draws: int) -> None:
    """Uniform ranks stay inside with all of their curve in 95 % of the cases.

    A little more often with few ranks, whose counts are discrete.
    """
    rng, repeats = np.random.default_rng(0), 4000
    test = RankTest.simulate(simulations, draws, rng)
    found = rng.integers(0, draws, (simulations, repeats), endpoint=True)
    curves = test.counts(found) / simulations
    low, high = test.band()
    inside = ((curves >= low) & (curves <= high)).all(1)
    error = math.sqrt(0.05 * 0.95 * (1 / repeats + 1 / len(test.null)))
    assert 0.95 - 4 * error < inside.mean() < 0.965 + 4 * error
    # The curve is outside where, but for the Monte Carlo p-value's own step, p is below 5 %.
    p_values = test.p_value(found)
    assert bool((p_values[inside] > 0.05).all())
    assert bool((p_values[~inside] < 0.0502).all())


def test_bands_hold_the_uniform_and_shrink() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for simulations in (50, 200):
        test = RankTest.simulate(simulations, 7, rng)
        assert test.points == pytest.approx(np.arange(1, 8) / 8)
        low, high = test.band()
        assert bool(((low < test.points) & (test.points < high)).all())
        widths.append((high - low).max())
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.15)


def test_thin_spreads_over_the_chain() -> None:
    assert thin(12, 3).tolist() == [3, 7, 11]
    assert thin(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_refusals() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="count: got 4, expected 1 to 3"):
        thin(3, 4)
    with pytest.raises(ValueError, match=r"draws: got shape \(3, 5\) for a truth of shape \(4,\)"):
        ranks(np.zeros(4), np.zeros((3, 5)), rng)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranks(np.zeros(1), np.full((1, 2), np.nan), rng)
    with pytest.raises(ValueError, match="got 0 simulations of 3 draws"):
        RankTest.simulate(0, 3, rng)
    with pytest.raises(ValueError, match="ranks: got 4, expected 5"):
        RankTest.simulate(5, 3, rng).p_value(np.zeros(4, dtype=int))


@pytest.mark.parametrize("sampler", ["langevin", "adjusted", "smc"])
def test_samplers_give_noisy_draws_of_the_last_level(
    sampler: str, gaussian_priors: MakePriors, gaussian_posterior: Law
) -> None:
    """With Gaussian priors mean and covariance are known; denoised draws would be narrower."""
    script, repeats = load("calibration"), 12
    ladder = {"sigma_max": 3.0, "sigma_freeze": 1.0, "sigma_min": SIGMA_MIN}
    steps = 12 if sampler == "smc" else 80  # from a mode to the law
    task = script.Task(gaussian_priors(*LEVELS), MIXING, ladder, False, 50, steps)
    mixture = torch.randn(TIME, generator=torch.Generator().manual_seed(2))
    draws = script.SAMPLERS[sampler](task, mixture.expand(repeats, -1), 3)
    assert draws.shape == (repeats, 50, 2, TIME)
    pull, covariance = gaussian_posterior(LEVELS, MIXING, SIGMA_MIN)
    off = draws.double() - pull[:, None] * mixture.double()
    means = off.mean(1)
    spreads = torch.einsum("rdit,rdjt->rij", off, off) / (50 * TIME)
    for values, truth in ((means, 0.0), (spreads, covariance)):
        error = values.std(0) / math.sqrt(repeats)
        # 6: the largest of some dozen Student-t's of eleven degrees of freedom.
        assert bool(((values.mean(0) - truth).abs() < 6 * error).all())
    assert float(spreads.mean(0)[1, 1]) > 0.9 * float(covariance[1, 1])


def test_the_truth_has_the_law_of_the_last_level(gaussian_priors: MakePriors) -> None:
    script, names, count, time = load("calibration"), ("square", "sine"), 50, 400
    priors = dict.fromkeys(names, next(iter(gaussian_priors(0.5).values())))
    task = script.Task(priors, MIXING, {}, False, 7, None)
    sources, mixtures = script.draw_truth(task, time, count, SIGMA_MIN, 4)
    generator = torch.Generator().manual_seed(4)
    tones = torch.stack([draw_sources(name, count, time, generator)[0] for name in names], 1)
    noise = torch.cat([sources - tones, (mixtures - MIXING.mix(sources))[:, None]], 1).flatten(2)
    noise = noise.transpose(0, 1).flatten(1)
    scale = torch.tensor([SIGMA_MIN, SIGMA_MIN, MIXING.scale_at(SIGMA_MIN)])
    # Of 20,000 normal numbers each: variances to 1 %, correlations to 0.7 %.
    assert bool(((noise.var(1) / scale**2 - 1).abs() < 0.04).all())
    assert float((noise.corrcoef() - torch.eye(3)).abs().max()) < 0.03
    clean, mixed = script.draw_truth(task, time, count, None, 4)
    assert torch.equal(clean, tones)
    assert torch.equal(mixed, MIXING.mix(tones))
    again, exact = script.draw_truth(task._replace(exact=True), time, count, SIGMA_MIN, 4)
    assert torch.equal(again, sources)
    assert torch.equal(exact, MIXING.mix(sources))


def test_smc_takes_no_exact_mixture(tmp_path: Path) -> None:
    message = "^constraint: got 'exact', expected one of gaussian, exact; smc takes gaussian alone"
    with pytest.raises(ValueError, match=message):
        load("calibration").main(sampler="smc", constraint="exact", out=tmp_path)


def test_functions_of_sources(gaussian_priors: MakePriors) -> None:
    script, priors = load("calibration"), gaussian_priors(*LEVELS)
    sources = torch.randn(3, 5, 2, 64, generator=torch.Generator().manual_seed(0))
    values = script.functions(priors, sources, SIGMA_MIN)
    instants = [name for name in values if name.startswith("audio at ")]
    assert list(values) == ["level_db", "centroid", "log_prior", *instants]
    assert instants == ["audio at 1 ms", "audio at 2 ms", "audio at 3 ms"]
    np.testing.assert_array_equal(values["audio at 2 ms"], sources[..., 32])
    power = sources.square().mean(-1)
    np.testing.assert_allclose(values["level_db"], 10 * power.log10(), atol=1e-4)
    for k, level in enumerate(LEVELS):
        variance = level**2 + SIGMA_MIN**2
        law = torch.distributions.Normal(0.0, math.sqrt(variance))
        expected = law.log_prob(sources[:, :, k]).sum(-1)
        np.testing.assert_allclose(values["log_prior"][..., k], expected, rtol=1e-4)
    assert "log_prior" not in script.functions(priors, sources, None)


def test_the_experiment_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, calls = load("calibration"), []
    sampler = script.SAMPLERS["langevin"]
    monkeypatch.setitem(script.SAMPLERS, "langevin", lambda *a: calls.append(a) or sampler(*a))
    tiny = {"draws": 2, "steps": 1, "batch": 1, "sources": "sine,square", "sigma_min": 0.3}
    script.main(simulations=2, out=tmp_path / "whole", **tiny)
    files = ["simulations_0000_0001.nc", "simulations_0001_0002.nc"]
    names = ["calibration.png", *files, "summary.json"]
    assert sorted(os.listdir(tmp_path / "whole")) == names
    ladder = calls[0][0].ladder
    assert ladder["sigma_min"] == 0.3 < ladder["sigma_freeze"] < ladder["sigma_max"]
    script.main(simulations=1, out=tmp_path / "halves", **tiny)
    assert len(calls) == 3
    script.main(simulations=2, out=tmp_path / "halves", **tiny)
    assert len(calls) == 4  # the first batch was there
    for name in files:
        whole, half = (xr.load_dataset(tmp_path / run / name) for run in ("whole", "halves"))
        assert whole.drop_vars("seconds").identical(half.drop_vars("seconds"))
    assert whole["draws"].dims == ("simulation", "draw", "source", "function")
    assert bool((whole["draws"] != xr.load_dataset(tmp_path / "whole" / files[0])["draws"]).any())
    reports = [
        json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "halves")
    ]
    for summary in reports:
        del summary["seconds_per_simulation"]
    assert reports[0] == reports[1]
    assert reports[0]["simulations"] == 2
    assert {row["source"] for row in reports[0]["functions"]} == {"sine", "square"}
    printed = capsys.readouterr().out
    assert reports[0]["verdict"] in printed
    with pytest.raises(ValueError, match="give another --out"):
        script.main(simulations=2, out=tmp_path / "halves", **(tiny | {"seed": 1}))


def test_the_draws_of_a_trace_are_judged_beside_clean_tones(tmp_path: Path) -> None:
    script = load("calibration")
    script.main(sampler="separate", simulations=1, steps=1, out=tmp_path)
    batch = xr.load_dataset(tmp_path / "simulations_0000_0001.nc")
    assert batch.sizes["draw"] == Annealing.chains * Annealing.draws
    assert "log_prior" not in batch["function"]


def test_all_samples_of_the_audio_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("calibration")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 2, 256, generator=generator)
    scale = torch.tensor([1.0, 0.0])[:, None]  # of the draws: the second source's miss
    draws = scale * torch.randn(4, 30, 2, 256, generator=generator)
    monkeypatch.setattr(script, "draw_truth", lambda *arguments: (truth, truth.sum(1)))
    monkeypatch.setitem(script.SAMPLERS, "separate", lambda *arguments: draws + 1e-6)
    script.main(sampler="separate", simulations=4, out=tmp_path)
    shares = json.loads((tmp_path / "summary.json").read_text())["coverage_of_all_audio"]
    for p, share in zip(NOMINAL, shares["square"], strict=True):
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 1024) ** 0.5)
    assert shares["saw"][:2] == [0, 0]


def test_the_verdict_names_what_is_off() -> None:
    script = load("calibration")
    rows = [
        {"source": "saw", "function": name, "p_value": 0.03} for name in ("level_db", "centroid")
    ]
    assert "least p-value 0.03 of 2" in script.judge(rows)
    rows[1]["p_value"] = 0.02
    assert script.judge(rows) == "not calibrated: saw centroid"


def test_an_unknown_sampler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="sampler: got 'gibbs', expected one of langevin, adjusted, smc"
    ):
        load("calibration").main(sampler="gibbs", out=tmp_path)
