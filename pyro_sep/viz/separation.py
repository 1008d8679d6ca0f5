"""The picture of a separation: waveforms and spectra of tones, spectrograms of recordings."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mlab import psd
from numpy.typing import NDArray

from pyro_sep.checks.names import literal
from pyro_sep.trace.estimate import estimate_channels
from pyro_sep.viz.signals import (
    FLOOR_DB,
    TAILS,
    ZOOM,
    draw_band,
    draw_deviation,
    draw_envelope,
    draw_level,
    draw_spread,
    levels,
    mean_and_spread,
    source_draws,
    true_source,
    zoom_start,
    zoom_window,
)

LONG = 1.0  # seconds: a longer mixture is drawn as spectrograms
SPECTRUM_TIME = 2048  # audio samples per periodogram: 8 Hz apart at 16 kHz, about a pixel each

Curve = tuple[NDArray[Any], str, str, float]  # signal (time,), colour, label, line width


def plot_separation(tree: xr.DataTree, spectrograms: bool | None = None) -> Figure:
    """The mixture and, a row each, its sources with the uncertainty of their draws.

    Waveforms and spectra: to the left the few milliseconds in which draws differ most, with a band
    that holds 90 % of the draws at each instant, and below it the same less the estimate, on a
    scale of its own; to the right the spectrum. Spectrograms: to the left the
    whole waveform, then the mean level of the draws, then the standard deviation of their level,
    both in dB, see :func:`pyro_sep.viz.plot_spectrogram`.

    Estimates are :func:`pyro_sep.trace.estimate_sources`. Titles give their SI-SDR where the true
    source is known and not silent.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
        spectrograms: whether to draw them; None for mixtures longer than a second.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> figure = plot_separation(tree)
    """
    rate = int(tree["constant_data"].to_dataset()["sample_rate"])
    if spectrograms is None:
        spectrograms = tree["observed_data"].sizes["time"] > LONG * rate
    return (_spectrogram_figure if spectrograms else _waveform_figure)(tree, rate)


def _waveform_figure(tree: xr.DataTree, rate: int) -> Figure:
    names = tree["posterior"].to_dataset()["source"].values.tolist()
    mixture = tree["observed_data"].to_dataset()["mixture"].values
    window = zoom_window(zoom_start(tree), len(mixture), rate)
    channels = estimate_channels(tree)
    estimates = channels.mean("channel").values
    figure = Figure(figsize=(11, 1.2 + 2.5 * (1 + len(names))), layout="constrained")
    heights = [2.0, *[3.0, 1.4] * len(names)]  # below each waveform the deviation of its draws
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _waveforms(left, rate, window, (mixture, "0.3", "mixture", 1.3))
    _spectra(right, rate, (mixture, "0.3", "mixture", 1.3))
    left.set_title("Mixture", loc="left", weight="bold")
    right.set_title("Spectrum", loc="left", weight="bold")
    for k, name in enumerate(names):
        rows = slice(2 * k + 1, 2 * k + 3)
        above = figure.add_subplot(grid[rows.start, 0], sharex=left)
        below = figure.add_subplot(grid[rows.start + 1, 0], sharex=left)
        beside = figure.add_subplot(grid[rows, 1], sharex=right)
        draws, true = source_draws(tree, k), true_source(tree, k)
        reference = None if true is None else true.mean(0)
        title = literal(name) + _score(channels.values[k], true)
        above.set_title(title, loc="left", weight="bold", color=f"C{k}")
        axes = above, below, beside
        _source_panels(axes, f"C{k}", rate, window, estimates[k], draws, reference)
    for ax in figure.axes[:-2]:
        ax.tick_params(labelbottom=False)
    left.set_xlim(*_milliseconds(window, rate)[[0, -1]])
    below.set_xlabel(f"time / ms (the {1000 * ZOOM:.0f} ms in which the draws differ most)")
    beside.set_xlabel("frequency / Hz")
    return figure


def _source_panels(
    axes: tuple[Axes, Axes, Axes],
    color: str,
    rate: int,
    window: slice,
    estimate: NDArray[Any],
    draws: NDArray[Any],
    reference: NDArray[Any] | None,
) -> None:
    """Waveform and band of a source; the same less the estimate, magnified; and its spectrum."""
    above, below, beside = axes
    x = _milliseconds(window, rate)
    curves: list[Curve] = [(estimate, color, "estimate", 1.3)]
    if reference is not None:
        curves.insert(0, (reference, "0.75", "true", 3.5))  # wide: seen behind the estimate
    low, high = np.quantile(draws[:, window], TAILS, axis=0)
    _waveforms(above, rate, window, *curves)
    draw_band(above, x, low, high, color)
    off = None if reference is None else (reference - estimate)[window]
    bounds = low - estimate[window], high - estimate[window]
    draw_deviation(below, x, *bounds, color, off)
    _spectra(beside, rate, *curves)
    handles, labels = above.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.98)}
    beside.legend(handles, labels, **place, ncols=len(labels), frameon=False)


def _spectrogram_figure(tree: xr.DataTree, rate: int) -> Figure:
    names = tree["posterior"].to_dataset()["source"].values.tolist()
    mixture = tree["observed_data"].to_dataset()["mixture"].values
    time, channels = len(mixture), estimate_channels(tree)
    estimates = channels.mean("channel").values
    figure = Figure(figsize=(13, 1.4 + 2.1 * (1 + len(names))), layout="constrained")
    axes = figure.subplots(1 + len(names), 3, sharex=True, squeeze=False)
    draw_envelope(axes[0, 0], rate, mixture, mixture, "0.3")
    level = draw_level(axes[0, 1], levels(mixture, rate), time, rate)
    axes[0, 2].set_axis_off()
    axes[0, 0].set_title("Mixture", loc="left", weight="bold")
    for k, name in enumerate(names):
        draws, color = source_draws(tree, k), f"C{k}"
        estimate = estimates[k]
        low, high = np.quantile(draws, TAILS, axis=0)
        draw_envelope(axes[k + 1, 0], rate, low, high, color, alpha=0.35)
        draw_envelope(axes[k + 1, 0], rate, estimate, estimate, color)
        mean, spread = mean_and_spread(draws, rate)
        draw_level(axes[k + 1, 1], mean, time, rate)
        shown = draw_spread(axes[k + 1, 2], mean, spread, time, rate)
        title = literal(name) + _score(channels.values[k], true_source(tree, k))
        axes[k + 1, 0].set_title(title, loc="left", weight="bold", color=color)
    for ax in axes[:, 0]:
        ax.set(ylabel="amplitude", xlim=(0, time / rate))
    axes[0, 1].set_title("Level (of sources: mean over draws)", loc="left", weight="bold")
    axes[1, 2].set_title("Spread of the level over draws", loc="left", weight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("time / s")
    bars: dict[str, Any] = {"location": "bottom", "shrink": 0.9, "aspect": 40, "pad": 0.01}
    figure.colorbar(level, ax=axes[:, 1].tolist(), label="dB re full scale", **bars)
    label = "standard deviation / dB: 0 where all draws agree"
    figure.colorbar(shown, ax=axes[:, 2].tolist(), label=label, extend="max", **bars)
    return figure


def _milliseconds(window: slice, rate: int) -> NDArray[Any]:
    return 1000 * np.arange(window.start, window.stop) / rate


def _waveforms(ax: Axes, rate: int, window: slice, *curves: Curve) -> None:
    for signal, color, label, width in curves:
        x = _milliseconds(window, rate)
        ax.plot(x, signal[window], color=color, label=label, linewidth=width)
    ax.margins(x=0)
    ax.set_ylabel("amplitude")


def _spectra(ax: Axes, rate: int, *curves: Curve) -> None:
    """Mean Hann periodograms (Welch's method); a sine of amplitude 1 on a bin peaks at 0 dB."""
    for signal, color, label, width in curves:
        size = min(SPECTRUM_TIME, len(signal))
        power, frequency = psd(signal, NFFT=size, Fs=rate, noverlap=size // 2, scale_by_freq=False)
        level = 10 * np.log10(np.maximum(2 * np.asarray(power), 10 ** (FLOOR_DB / 10)))
        ax.plot(frequency, level, color=color, label=label, linewidth=width)
    ax.set(ylim=(FLOOR_DB, 6), xlim=(0, rate / 2), ylabel="dB re full scale")


def _score(estimate: NDArray[Any], reference: NDArray[Any] | None) -> str:
    """The SI-SDR for a title, of all channels, where there is a true source that is not silent."""
    if reference is None or np.ptp(reference) == 0:
        return ""
    import torch  # here alone, so that a trace without truth is drawn without torch

    from pyro_sep.evaluation.metrics import si_sdr

    score = float(si_sdr(torch.from_numpy(estimate.ravel()), torch.from_numpy(reference.ravel())))
    return f": SI-SDR {score:.1f} dB"
