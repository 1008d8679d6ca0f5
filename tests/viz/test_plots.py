import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_sep.diagnostics.sbc import RankTest
from pyro_sep.trace.dataset import build_trace
from pyro_sep.viz.plots import (
    plot_audit,
    plot_calibration,
    plot_separation,
    plot_spectrogram,
    plot_waveform,
    save_figure,
)

RATE = 16_000
TIME = np.arange(4000) / RATE


def trace(**changes: Any) -> tuple[xr.DataTree, np.ndarray]:
    """Two tones; chain 1 draws them with noise at 0.1, and chain 0, with lower lp, silence."""
    rng = np.random.default_rng(0)
    truth = np.stack([np.sin(2 * np.pi * 437.5 * TIME), 0.5 * np.sign(np.sin(6000 * TIME))])
    sources = truth + 0.1 * rng.normal(size=(2, 40, 2, 4000))
    sources[0] = 0
    lp = np.array([[-10.0], [5.0]]) + rng.normal(size=(2, 40))
    given = {
        "sources": sources,
        "lp": lp,
        "log_prior": np.zeros((2, 40, 2)),
        "stats": {},
        "warmup_stats": {},
        "mixture": truth.mean(0),
        "gains": np.array([0.5, 0.5]),
        "source_names": ["sine", "square"],
        "sample_rate": RATE,
        "true_sources": truth,
        "attrs": {},
        **changes,
    }
    return build_trace(**given), sources[1]


def lines(figure: Figure, row: int, column: int) -> dict[str, Any]:
    ax = figure.axes[2 * row + column]
    return {str(line.get_label()): line for line in ax.lines}


def test_separation_shows_the_best_chain() -> None:
    tree, best = trace()
    figure = plot_separation(tree)
    assert len(figure.axes) == 6
    for row in (1, 2):
        estimate = lines(figure, row, 0)["estimate"]
        first = round(estimate.get_xdata()[0] * RATE / 1000)
        window = slice(first, first + len(estimate.get_xdata()))
        assert window.stop - window.start == 144  # 9 ms
        assert (window.start + window.stop) / 2 == 2000
        np.testing.assert_allclose(
            estimate.get_ydata(), best[:, row - 1, window].mean(0), atol=1e-6
        )
        band = figure.axes[2 * row].collections[0].get_paths()[0].vertices[:, 1]
        quantiles = np.quantile(best[:, row - 1, window], (0.05, 0.95), axis=0)
        assert (band.min(), band.max()) == pytest.approx((quantiles.min(), quantiles.max()))


def test_separation_shows_all_chains_of_a_mean() -> None:
    tree, _ = trace(attrs={"estimate": "mean"})
    draws = tree["posterior"]["sources"].values
    figure = plot_separation(tree)
    for row in (1, 2):
        estimate = lines(figure, row, 0)["estimate"]
        first = round(estimate.get_xdata()[0] * RATE / 1000)
        window = slice(first, first + len(estimate.get_xdata()))
        expected = draws[:, :, row - 1, window].mean((0, 1))
        np.testing.assert_allclose(estimate.get_ydata(), expected, atol=1e-6)


def test_separation_titles_give_si_sdr() -> None:
    figure = plot_separation(trace()[0])
    # The mean of 40 draws leaves noise of power 0.01 / 40 on a sine of power 1 / 2: 33.0 dB, within
    # its Monte Carlo error (4000 samples: 0.1 dB).
    name, score = figure.axes[2].get_title(loc="left").split(": SI-SDR ")
    assert name == "sine"
    assert float(score.removesuffix(" dB")) == pytest.approx(33.0, abs=0.3)


def test_spectrum_peaks_at_the_tone_and_at_0_db() -> None:
    true = lines(plot_separation(trace()[0]), 1, 1)["true"]
    frequency, level = true.get_data()
    assert frequency[level.argmax()] == 437.5
    assert level.max() == pytest.approx(0, abs=0.01)


def test_separation_without_truth_or_with_silence() -> None:
    tree, _ = trace(true_sources=None)
    figure = plot_separation(tree)
    assert figure.axes[2].get_title(loc="left") == "sine"
    assert list(lines(figure, 1, 0)) == ["estimate"]
    silent, _ = trace(true_sources=np.stack([np.zeros(4000), TIME]))
    assert plot_separation(silent).axes[2].get_title(loc="left") == "sine"


def test_waveform_shows_extremes_band_and_zoom() -> None:
    draws = np.random.default_rng(0).normal(size=(20, 4000))
    signal, truth = draws.mean(0), np.sin(300 * TIME)
    whole, zoom = plot_waveform(signal, RATE, 1000, "C0", draws, truth).axes
    quantiles = np.quantile(draws, (0.05, 0.95), axis=0)
    band, extremes, mark = [c.get_paths()[0].vertices[:, 1] for c in whole.collections] + [
        whole.patches[0].get_extents().transformed(whole.transData.inverted())
    ]
    assert (band.min(), band.max()) == pytest.approx((quantiles.min(), quantiles.max()))
    assert (extremes.min(), extremes.max()) == pytest.approx((signal.min(), signal.max()))
    assert (mark.x0, mark.x1) == pytest.approx((1000 / RATE, 1144 / RATE))  # 9 ms
    curves = {str(line.get_label()): line.get_ydata() for line in zoom.lines}
    np.testing.assert_array_equal(curves["estimate"], signal[1000:1144])
    np.testing.assert_array_equal(curves["true"], truth[1000:1144])
    within = zoom.collections[0].get_paths()[0].vertices[:, 1]
    inside = quantiles[:, 1000:1144]
    assert (within.min(), within.max()) == pytest.approx((inside.min(), inside.max()))


@pytest.mark.parametrize("time", [256, 4000, 64_000])
def test_spectrogram_shows_a_tone_at_0_db(time: int) -> None:
    tone = np.sin(2 * np.pi * 2000 * np.arange(time) / RATE)
    image = plot_spectrogram(tone, RATE).axes[0].images[0]
    level = np.asarray(image.get_array())
    assert level.shape[1] > 12
    assert (level.argmax(0) / (len(level) - 1) * RATE / 2 == 2000).all()
    np.testing.assert_allclose(level.max(0), 0, atol=0.01)
    assert image.get_extent() == [0, time / RATE, 0, 8]


def audit() -> xr.DataArray:
    values = np.array([[[0.0, 3.25], [0.5, -0.02]], [[-0.001, 12.5], [np.inf, 0.01]]])
    names = ["sine", "square"]
    coords = {"sigma": [0.1, 0.01], "prior": names, "source": names}
    return xr.DataArray(values, coords, ("sigma", "prior", "source"))


def test_audit_writes_each_cell_and_frames_the_diagonal() -> None:
    figure = plot_audit(audit().transpose("source", "sigma", "prior"))
    panels = figure.axes[:2]
    assert [ax.get_title() for ax in panels] == ["sigma = 0.1", "sigma = 0.01"]
    texts = {t.get_position(): t.get_text() for t in panels[0].texts}
    assert texts == {(0, 0): "0.00", (1, 0): "3.25", (0, 1): "0.50", (1, 1): "-0.02"}
    assert [t.get_text() for t in panels[1].texts] == ["0.00", "12.50", "inf", "0.01"]
    for ax in panels:
        frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        assert [(round(f.get_x()), round(f.get_y())) for f in frames] == [(0, 0), (1, 1)]


def test_audit_hides_spare_panels() -> None:
    table = audit().isel(sigma=[0] * 5)
    figure = plot_audit(table.assign_coords(sigma=[5.0, 4.0, 3.0, 2.0, 1.0]))
    assert [bool(ax.axison) for ax in figure.axes[:8]] == [True] * 5 + [False] * 3


def test_save_figure(tmp_path: Path) -> None:
    save_figure(plot_audit(audit()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_figure(Figure(), tmp_path / "none" / "a.png")


def test_imports_without_torch_and_pyplot() -> None:
    code = (
        "import sys, pyro_sep.viz.plots;"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_calibration_shows_ranks_and_coverage() -> None:
    rng = np.random.default_rng(0)
    test = RankTest.simulate(60, 4, rng)
    names = {"source": ["saw", "sine"], "function": ["level_db", "centroid", "log_prior"]}
    ranks = xr.DataArray(rng.integers(0, 5, (60, 2, 3)), names, ("simulation", *names))
    covered = xr.DataArray(
        rng.random((3, 2, 3)), {"interval": [0.5, 0.8, 0.95], **names}, ("interval", *names)
    )
    figure = plot_calibration(ranks, covered, test)
    assert len(figure.axes) == 4
    low, high = test.band()
    for k, name in enumerate(names["source"]):
        left, right = figure.axes[2 * k : 2 * k + 2]
        assert left.get_title(loc="left") == name
        curves = {str(line.get_label()): line.get_ydata() for line in left.lines}
        shares = {str(line.get_label()): line.get_ydata() for line in right.lines}
        for j, function in enumerate(names["function"]):
            below = [(ranks.values[:, k, j] <= i).mean() - (i + 1) / 5 for i in range(4)]
            np.testing.assert_allclose(curves[function], below, atol=1e-12)
            np.testing.assert_array_equal(shares[function], covered.values[:, k, j])
        corners = left.collections[0].get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx((low - test.points).min())
        assert corners.max() == pytest.approx((high - test.points).max())
