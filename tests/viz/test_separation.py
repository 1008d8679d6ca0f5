from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from traces import trace_of

from pyro_sep.trace.estimate import estimate_sources
from pyro_sep.viz.separation import plot_separation
from pyro_sep.viz.signals import zoom_start

RATE = 16_000
TIME = np.arange(4000) / RATE
WIDTH = 96  # audio samples of 6 ms
LOUD = 1_500  # where the draws of the trace differ most


def trace(**changes: Any) -> tuple[xr.DataTree, np.ndarray]:
    """Two tones; chain 1 draws them with noise at 0.1, and chain 0, with lower lp, silence.

    The noise is three times as strong in the 6 ms from LOUD on.
    """
    rng = np.random.default_rng(0)
    truth = np.stack([np.sin(2 * np.pi * 437.5 * TIME), 0.5 * np.sign(np.sin(6000 * TIME))])
    scale = np.where((np.arange(4000) >= LOUD) & (np.arange(4000) < LOUD + WIDTH), 0.3, 0.1)
    sources = truth + scale * rng.normal(size=(2, 40, 2, 4000))
    sources[0] = 0
    given = {
        "sources": sources,
        "lp": np.array([[-10.0], [5.0]]) + rng.normal(size=(2, 40)),
        "mixture": truth.mean(0),
        "source_names": ["sine", "square"],
        "sample_rate": RATE,
        "true_sources": truth,
    }
    return trace_of(**given | changes), sources[1]


def curves(ax: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in ax.lines}


def panels(figure: Figure, source: int) -> list[Axes]:
    """Waveform, its deviations, and spectrum of a source."""
    return figure.axes[2 + 3 * source : 5 + 3 * source]


def heights(ax: Axes) -> np.ndarray:
    return np.asarray(ax.collections[0].get_paths()[0].vertices)[:, 1]


def test_it_shows_the_best_chain_where_its_draws_differ_most() -> None:
    tree, best = trace()
    assert zoom_start(tree) == pytest.approx(LOUD, abs=4)
    figure = plot_separation(tree)
    assert len(figure.axes) == 2 + 3 * 2
    for source in (0, 1):
        above, below, _ = panels(figure, source)
        estimate = curves(above)["estimate"]
        first = round(estimate.get_xdata()[0] * RATE / 1000)
        assert first == zoom_start(tree)
        window = slice(first, first + len(estimate.get_xdata()))
        assert window.stop - window.start == WIDTH
        draws = best[:, source, window]
        np.testing.assert_allclose(estimate.get_ydata(), draws.mean(0), atol=1e-6)
        quantiles = np.quantile(draws, (0.05, 0.95), axis=0)
        for ax, shift in ((above, 0), (below, draws.mean(0))):
            band = heights(ax)
            expected = quantiles - shift
            assert (band.min(), band.max()) == pytest.approx((expected.min(), expected.max()))


def test_the_band_is_seen_below_the_waveform() -> None:
    """Its panel has the scale of the band, whatever that of the waveform and the truth."""
    tree, _ = trace()
    for source in (0, 1):
        _, below, _ = panels(plot_separation(tree), source)
        low, high = below.get_ylim()
        assert np.ptp(heights(below)) > 0.4 * (high - low)


def test_one_trace_gives_one_zoom_and_a_legend_of_what_is_drawn() -> None:
    tree, _ = trace()
    figure = plot_separation(tree)
    for source in (0, 1):
        above, _, beside = panels(figure, source)
        texts = [text.get_text() for text in beside.get_legend().get_texts()]
        assert texts == ["true", "estimate", "90 % of draws"]
        drawn = {*curves(above), *(str(part.get_label()) for part in above.collections)}
        assert drawn == set(texts)
    assert all(ax.get_legend() is None for ax in figure.axes[:2])
    without = plot_separation(trace(true_sources=None)[0])
    texts = [text.get_text() for text in panels(without, 0)[2].get_legend().get_texts()]
    assert texts == ["estimate", "90 % of draws"]


def test_it_shows_all_chains_of_a_mean() -> None:
    tree, _ = trace(attrs={"estimate": "mean"})
    estimates = estimate_sources(tree).values
    figure = plot_separation(tree)
    for source in (0, 1):
        estimate = curves(panels(figure, source)[0])["estimate"]
        first = round(estimate.get_xdata()[0] * RATE / 1000)
        window = slice(first, first + len(estimate.get_xdata()))
        np.testing.assert_allclose(estimate.get_ydata(), estimates[source, window], atol=1e-6)


def test_titles_give_si_sdr() -> None:
    figure = plot_separation(trace()[0])
    # Noise of power 0.01 (0.09 in 96 of 4000 samples: 0.0119 in the mean), and the mean of 40 draws
    # leaves a fortieth of it on a sine of power 1 / 2: 32.2 dB, within its Monte Carlo error.
    name, score = panels(figure, 0)[0].get_title(loc="left").split(": SI-SDR ")
    assert name == "sine"
    assert float(score.removesuffix(" dB")) == pytest.approx(32.2, abs=0.3)


def test_spectrum_peaks_at_the_tone_and_at_0_db() -> None:
    true = curves(panels(plot_separation(trace()[0]), 0)[2])["true"]
    frequency, level = true.get_data()
    assert frequency[level.argmax()] == 437.5
    assert level.max() == pytest.approx(0, abs=0.01)


def test_without_truth_or_with_silence() -> None:
    tree, _ = trace(true_sources=None)
    above = panels(plot_separation(tree), 0)[0]
    assert above.get_title(loc="left") == "sine"
    assert list(curves(above)) == ["estimate"]
    silent, _ = trace(true_sources=np.stack([np.zeros(4000), TIME]))
    assert panels(plot_separation(silent), 0)[0].get_title(loc="left") == "sine"


def test_a_single_draw_is_zoomed_where_the_mixture_is_loudest() -> None:
    mixture = np.where(np.arange(4000) // WIDTH == 20, 1.0, 0.1)
    tree, _ = trace(
        sources=np.ones((1, 1, 2, 4000)),
        lp=np.zeros((1, 1)),
        log_prior=np.zeros((1, 1, 2)),
        mixture=mixture,
    )
    assert zoom_start(tree) == 20 * WIDTH
    short, _ = trace(
        sources=np.ones((1, 1, 2, 40)),
        lp=np.zeros((1, 1)),
        log_prior=np.zeros((1, 1, 2)),
        mixture=np.ones(40),
        true_sources=None,
    )
    assert zoom_start(short) == 0
    plot_separation(short)


def test_a_long_mixture_is_drawn_as_spectrograms() -> None:
    """Level and spread of the draws: 0 dB where all are the same, more where they are noise."""
    rng = np.random.default_rng(1)
    tone = np.sin(2 * np.pi * 2000 * np.arange(2 * RATE) / RATE)
    sources = np.stack([np.stack([tone, rng.normal(size=2 * RATE)]) for _ in range(12)])[None]
    tree, _ = trace(
        sources=sources,
        lp=np.zeros((1, 12)),
        log_prior=np.zeros((1, 12, 2)),
        mixture=tone,
        true_sources=None,
        source_names=["tone", "noise"],
    )
    figure = plot_separation(tree)
    level = figure.axes[4].images[0].get_array()
    assert level is not None
    assert np.median(level.argmax(0)) / (len(level) - 1) * RATE / 2 == 2000
    spreads = [np.median(np.asarray(ax.images[0].get_array())) for ax in figure.axes[5:9:3]]
    # The level of noise is that of an exponential variable: 5.57 dB, 5.3 among 12 draws.
    assert spreads[0] == pytest.approx(0, abs=1e-6)
    assert spreads[1] == pytest.approx(5.3, abs=0.4)
    assert len(plot_separation(tree, spectrograms=False).axes) == 2 + 3 * 2
