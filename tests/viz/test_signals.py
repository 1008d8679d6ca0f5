import numpy as np
import pytest

from pyro_sep.viz.signals import mean_and_spread, plot_spectrogram, plot_waveform

RATE = 16_000
TIME = np.arange(4000) / RATE


def test_waveform_shows_extremes_band_and_zoom() -> None:
    draws = np.random.default_rng(0).normal(size=(20, 4000))
    signal, truth = draws.mean(0), np.sin(300 * TIME)
    whole, zoom, deviation = plot_waveform(signal, RATE, 1000, "C0", draws, truth).axes
    quantiles = np.quantile(draws, (0.05, 0.95), axis=0)
    band, extremes, mark = [c.get_paths()[0].vertices[:, 1] for c in whole.collections] + [
        whole.patches[0].get_extents().transformed(whole.transData.inverted())
    ]
    assert (band.min(), band.max()) == pytest.approx((quantiles.min(), quantiles.max()))
    assert (extremes.min(), extremes.max()) == pytest.approx((signal.min(), signal.max()))
    assert (mark.x0, mark.x1) == pytest.approx((1000 / RATE, 1096 / RATE))  # 6 ms
    curves = {str(line.get_label()): line.get_ydata() for line in zoom.lines}
    np.testing.assert_array_equal(curves["estimate"], signal[1000:1096])
    np.testing.assert_array_equal(curves["true"], truth[1000:1096])
    within = zoom.collections[0].get_paths()[0].vertices[:, 1]
    inside = quantiles[:, 1000:1096]
    assert (within.min(), within.max()) == pytest.approx((inside.min(), inside.max()))
    less = deviation.collections[0].get_paths()[0].vertices[:, 1]
    expected = inside - signal[1000:1096]
    assert (less.min(), less.max()) == pytest.approx((expected.min(), expected.max()))
    low, high = deviation.get_ylim()
    assert np.ptp(less) > 0.4 * (high - low)
    assert len(plot_waveform(signal, RATE, 1000, "C0").axes) == 2


@pytest.mark.parametrize("time", [256, 4000, 64_000])
def test_spectrogram_shows_a_tone_at_0_db(time: int) -> None:
    tone = np.sin(2 * np.pi * 2000 * np.arange(time) / RATE)
    image = plot_spectrogram(tone, RATE).axes[0].images[0]
    level = np.asarray(image.get_array())
    assert level.shape[1] > 12
    assert (level.argmax(0) / (len(level) - 1) * RATE / 2 == 2000).all()
    np.testing.assert_allclose(level.max(0), 0, atol=0.01)
    assert image.get_extent() == [0, time / RATE, 0, 8]


def test_spread_is_that_of_the_levels() -> None:
    """Draws that differ in gain alone: mean and standard deviation of the gains in dB."""
    tone = np.sin(2 * np.pi * 2000 * TIME)
    gains = np.array([0.0, -6.0, -3.0, -12.0])
    draws = 10 ** (gains[:, None] / 20) * tone
    mean, spread = mean_and_spread(draws, RATE)
    loud = mean > -60  # below, levels are cut at the floor
    assert loud.any()
    np.testing.assert_allclose(spread[loud], gains.std(), atol=1e-6)
    np.testing.assert_allclose(mean.max(0), gains.mean(), atol=0.01)


def test_spectrogram_of_draws_has_a_panel_for_their_spread() -> None:
    draws = np.random.default_rng(0).normal(size=(6, 4000))
    above, below = (ax for ax in plot_spectrogram(draws.mean(0), RATE, draws).axes if ax.images)
    mean, spread = mean_and_spread(draws, RATE)
    np.testing.assert_array_equal(above.images[0].get_array(), mean)
    np.testing.assert_array_equal(below.images[0].get_array(), spread)
