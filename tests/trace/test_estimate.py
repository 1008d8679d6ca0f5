import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from traces import trace_of

from pyro_sep.trace.estimate import estimate_sources, shrunk_mean

RATE = 16_000
TIME = 8_000
INSIDE = slice(2_000, 6_000)  # away from where audio begins and ends


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trace(sources: NDArray[np.floating], estimate: str, lp: NDArray[np.floating]) -> xr.DataTree:
    """A trace of draws ``(chain, draw, source, time)``."""
    names, attrs = ("flute", "harp"), {"estimate": estimate}
    return trace_of(
        sources, lp=lp, gains=(0.5, -2.0), source_names=names, sample_rate=RATE, attrs=attrs
    )


@pytest.mark.parametrize("time", [1, 300, 2_048, TIME])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_contributions_add_up_to_what_the_means_add_up_to(time: int, count: int) -> None:
    chains = noise(time, count, 3, time)
    found = shrunk_mean(chains, RATE)
    assert found.dtype == np.float32
    assert found.sum(0) == pytest.approx(chains.mean(0).sum(0), abs=1e-5)
    assert np.abs(found - chains.mean(0)).max() > 1e-3  # that of each is shrunk


def test_what_chains_agree_on_is_not_changed() -> None:
    one = noise(0, 2, TIME)
    assert shrunk_mean(np.stack([one] * 3), RATE) == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("rate", [1, RATE, 10**6])
def test_silence_stays_silence(rate: int) -> None:
    assert not shrunk_mean(np.zeros((2, 3, TIME), np.float32), rate).any()


def test_a_tone_of_which_two_chains_give_a_half_and_all_to_a_source() -> None:
    r"""The equations by hand: shares 1 and 1/2 of the tone to one source, 0 and 1/2 to the other.

    Means 3/4 and 1/4, variance of both 1/16, so w = 1 - (2/16) / (9/16) = 7/9 and, as 1 - 2 < 0,
    w = 0. Levels are as sqrt(5) to 1.
    """
    tone = np.sin(2 * np.pi * 1_000 * np.arange(TIME) / RATE)
    found = shrunk_mean(np.array([[1, 0], [0.5, 0.5]])[..., None] * tone, RATE)
    share = np.array([5**0.5, 1]) / (5**0.5 + 1)
    shrunk = np.array([7 / 9 * 3 / 4, 0]) + np.array([2 / 9, 1]) * share
    expected = shrunk + share * (1 - shrunk.sum())
    assert found[:, INSIDE] == pytest.approx(expected[:, None] * tone[INSIDE], abs=1e-5)


@pytest.mark.parametrize(("rate", "size"), [(8_000, 1_024), (16_000, 2_048), (44_100, 4_096)])
def test_what_is_said_of_a_moment_reaches_no_farther_than_a_transform(rate: int, size: int) -> None:
    chains = noise(1, 2, 2, TIME)
    moved = chains.copy()
    moved[0, 0, 4_000] += 1
    changed = np.flatnonzero(np.abs(shrunk_mean(moved, rate) - shrunk_mean(chains, rate)).max(0))
    assert 4_000 - size < changed[0] < 4_000 - size / 4
    assert 4_000 + size / 4 < changed[-1] < 4_000 + size


@pytest.mark.parametrize("count", [2, 4])
def test_it_errs_less_than_the_mean(count: int) -> None:
    """Sources of low and of high frequencies, of which each chain confuses some."""
    true = noise(2, 2, TIME)
    spectrum = np.fft.rfft(true)
    spectrum[0, 1_000:] = spectrum[1, :1_000] = 0
    true = np.fft.irfft(spectrum).astype(np.float32)
    confused = 0.5 * noise(3, count, 1, TIME)
    chains = true + np.concatenate([confused, -confused], 1)
    plain, shrunk = (
        np.square(found - true).mean(-1).sum()
        for found in (chains.mean(0), shrunk_mean(chains, RATE))
    )
    assert shrunk < 0.9 * plain


def test_the_estimate_of_a_trace_is_that_of_the_means_of_its_chains() -> None:
    draws = noise(4, 3, 5, 2, TIME)
    draws[2, 3] = np.nan
    lp = np.array([[0.0] * 5, [1.0] * 5, [np.nan] * 5])
    found = estimate_sources(trace(draws, "mean", lp))
    gains = np.array([0.5, -2.0])[:, None]
    expected = shrunk_mean(gains * draws[:2].mean(1), RATE) / gains
    assert found.values == pytest.approx(expected, abs=1e-5)
    assert found["source"].values.tolist() == ["flute", "harp"]


def test_the_estimate_of_one_mode_is_the_mean_of_its_draws() -> None:
    draws = noise(5, 2, 5, 2, 300)
    found = estimate_sources(trace(draws, "mode", np.array([[0.0] * 5, [1.0] * 5])))
    assert found.values == pytest.approx(draws[1].mean(0), abs=1e-6)


def test_where_all_chains_diverged_there_is_silence() -> None:
    draws = np.full((2, 3, 2, 300), np.nan)
    assert not estimate_sources(trace(draws, "mean", np.full((2, 3), np.nan))).values.any()
