"""Ranks and coverage against a conjugate Gaussian."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from pyro_sep.diagnostics.sbc import NOMINAL, RankTest, coverage, coverage_error, ranks

SIMULATIONS, DRAWS, CELLS = 400, 15, 6


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


def test_refusals() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"draws: got shape \(3, 5\) for a truth of shape \(4,\)"):
        ranks(np.zeros(4), np.zeros((3, 5)), rng)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranks(np.zeros(1), np.full((1, 2), np.nan), rng)
    with pytest.raises(ValueError, match="got 0 simulations of 3 draws"):
        RankTest.simulate(0, 3, rng)
    with pytest.raises(ValueError, match="ranks: got 4, expected 5"):
        RankTest.simulate(5, 3, rng).p_value(np.zeros(4, dtype=int))
