r"""Pictures of one signal: its waveform, a magnified part of it, and its spectrogram.

Posterior draws show how uncertain a signal is. In a waveform a band holds 90 % of them at each
instant. A spectrogram has their mean level in every cell, and beside it the standard deviation of
that level over the draws, in dB. Where draws share nothing but their mean power, their levels are
those of an exponential variable, whose standard deviation is

.. math:: \frac{10}{\log 10} \, \frac{\pi}{\sqrt 6} = 5.6 \ \mathrm{dB}

so 0 is a cell in which all draws agree, and 6 dB or more one whose content the draws leave open.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.mlab import specgram
from numpy.typing import NDArray

from pyro_sep.trace.dataset import in_channels
from pyro_sep.trace.draws import estimate_draws, select_draws

ZOOM = 0.006  # seconds: between two and three periods of 440 Hz
FLOOR_DB = -90.0  # the lowest level that a spectrum shows
SPECTROGRAM_TIME = 512  # audio samples per frame: 31 Hz and 32 ms at 16 kHz
COLUMNS = 600  # of a picture as wide as a column of a page, in pixels
TAILS = (0.05, 0.95)  # between which the band of the draws is
BAND = "90 % of draws"  # its name in legends
SPREAD_MAX_DB = 10.0  # of the colour scale, beyond which draws differ altogether
SPREAD_RANGE_DB = 60.0  # below the loudest cell, where the spread is no longer shown,
FADE_DB = 25.0  # and above that the range in which it fades


def source_draws(
    tree: xr.DataTree, source: int, chosen: NDArray[np.integer] | None = None
) -> NDArray[np.floating]:
    """Draws of one source, ``(draw, time)``; no others are read.

    What is not finite, in a chain that diverged, is silence.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
        source: its number.
        chosen: chain and number of each ``(draw, 2)``; None for those that the estimate is of.
    """
    sources = tree["posterior"].to_dataset()["sources"].isel(source=source)
    drawn = select_draws(sources, estimate_draws(tree) if chosen is None else chosen)
    return np.nan_to_num(drawn.transpose("draw", "time").values, posinf=0, neginf=0)


def channel_draws(
    tree: xr.DataTree, source: int, chosen: NDArray[np.integer]
) -> NDArray[np.floating]:
    """As :func:`source_draws`, of all channels: ``(draw, channel, time)``."""
    posterior = tree["posterior"].to_dataset().isel(source=source)
    drawn = in_channels(select_draws(posterior, chosen), "sources")
    return np.nan_to_num(drawn.transpose("draw", "channel", "time").values, posinf=0, neginf=0)


def true_source(tree: xr.DataTree, source: int) -> NDArray[np.floating] | None:
    """The true audio of one source, ``(channel, time)``; None where it is not known."""
    constant = tree["constant_data"].to_dataset()
    if "true_sources" not in constant:
        return None
    return np.asarray(in_channels(constant, "true_sources").values[source])


def zoom_start(tree: xr.DataTree) -> int:
    r"""The audio sample at which the stretch of :data:`ZOOM` begins that pictures magnify.

    It is where draws differ most, by the variance of each source over its draws in units of the
    source's power; where they do not differ, as of a single draw, where the mixture is loudest.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
    """
    mixture = tree["observed_data"].to_dataset()["mixture"].values.astype(float)
    spread = np.zeros(len(mixture))
    for source in range(tree["posterior"].sizes["source"]):
        draws = source_draws(tree, source).astype(float)
        spread += draws.var(0) / max(np.square(draws).mean(), np.finfo(float).tiny)
    rate = int(tree["constant_data"].to_dataset()["sample_rate"])
    width = max(round(ZOOM * rate), 2)
    if len(mixture) <= width:
        return 0
    measure = spread if spread.any() else mixture**2
    total = np.concatenate(([0.0], np.cumsum(measure)))
    return int((total[width:] - total[:-width]).argmax())


def zoom_window(start: int, time: int, rate: int) -> slice:
    """The audio samples of the zoom that begins at ``start``, of a signal of ``time`` samples."""
    return slice(start, min(start + max(round(ZOOM * rate), 2), time))


def plot_waveform(
    signal: NDArray[np.floating],
    rate: int,
    start: int,
    color: str,
    draws: NDArray[np.floating] | None = None,
    reference: NDArray[np.floating] | None = None,
) -> Figure:
    """A whole signal above, as its extremes per pixel, and a :data:`ZOOM` of it below.

    With draws there is a third panel: the zoom less the signal, on a scale of its own.

    Args:
        signal: ``(time,)``.
        rate: in Hz.
        start: the audio sample that the zoom begins at; it is marked above.
        color: of the signal.
        draws: ``(draw, time)``; a band holds 90 % of them at each instant.
        reference: the true signal ``(time,)``, where it is known.

    >>> figure = plot_waveform(np.random.default_rng(0).standard_normal(4_000), 16_000, 0, "C0")
    """
    figure = Figure(figsize=(5, 3.6 if draws is None else 4.4), layout="constrained")
    heights = [2, 2] if draws is None else [2, 2, 1]
    whole, zoom, *deviation = figure.subplots(len(heights), 1, height_ratios=heights)
    window = zoom_window(start, len(signal), rate)
    seconds = np.arange(window.start, window.stop) / rate
    if reference is not None:
        zoom.plot(seconds, reference[window], color="0.6", linewidth=3.5, label="true")
    if draws is not None:
        low, high = np.quantile(draws, TAILS, axis=0)
        draw_envelope(whole, rate, low, high, color, alpha=0.35)
        draw_band(zoom, seconds, low[window], high[window], color)
        off = None if reference is None else (reference - signal)[window]
        bounds = (low - signal)[window], (high - signal)[window]
        draw_deviation(deviation[0], seconds, *bounds, color, off)
    draw_envelope(whole, rate, signal, signal, color)
    zoom.plot(seconds, signal[window], color=color, linewidth=1.2, label="estimate")
    whole.axvspan(window.start / rate, window.stop / rate, color="0.5", alpha=0.5, linewidth=0)
    for ax in (whole, zoom):
        ax.margins(x=0)
        ax.set_ylabel("amplitude")
    last = figure.axes[-1]
    for ax in figure.axes[1:]:
        ax.set_xlim(seconds[0], seconds[-1])
        ax.locator_params("x", nbins=6)
        ax.tick_params(labelbottom=ax is last)
    last.set_xlabel("time / s")
    if draws is not None:
        handles, labels = zoom.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def plot_spectrogram(
    signal: NDArray[np.floating], rate: int, draws: NDArray[np.floating] | None = None
) -> Figure:
    r"""Levels of Hann frames in dB, where a sine of amplitude 1 on a bin has 0.

    With draws there are two panels: above the mean of their levels, below the standard deviation
    of their levels, both in dB,

    .. math:: \bar L = \frac{1}{D} \sum_d L_d, \qquad
              \sqrt{\frac{1}{D} \sum_d (L_d - \bar L)^2}, \qquad L_d = 20 \log_{10} |S_d|

    S the short-time spectrum of a draw. The spread fades where the mean level is low, and is
    blank where it is :data:`SPREAD_RANGE_DB` below that of the loudest cell.

    Args:
        signal: ``(time,)``; what is shown where there are no draws.
        rate: in Hz.
        draws: ``(draw, time)``.

    >>> rng = np.random.default_rng(0)
    >>> figure = plot_spectrogram(rng.standard_normal(4_000), 16_000)
    >>> len(figure.axes)  # the picture, and its colour bar
    2
    >>> draws = rng.standard_normal((5, 4_000))
    >>> len(plot_spectrogram(draws.mean(0), 16_000, draws).axes)
    4
    """
    figure = Figure(figsize=(5, 3.6 if draws is None else 4.4), layout="constrained")
    if draws is None:
        ax = figure.subplots()
        figure.colorbar(draw_level(ax, levels(signal, rate), len(signal), rate), label="level / dB")
    else:
        above, below = figure.subplots(2, 1, sharex=True)
        mean, spread = mean_and_spread(draws, rate)
        image = draw_level(above, mean, len(signal), rate)
        figure.colorbar(image, ax=above, label="level / dB")
        image = draw_spread(below, mean, spread, len(signal), rate)
        figure.colorbar(image, ax=below, label="spread / dB", extend="max")
        ax = below
    ax.set_xlabel("time / s")
    return figure


def levels(signal: NDArray[np.floating], rate: int) -> NDArray[np.floating]:
    """Levels of Hann frames of a signal ``(time,)``, ``(frequency, frame)`` in dB."""
    size = min(SPECTROGRAM_TIME, len(signal) // 4)
    hop = min(max(len(signal) // COLUMNS, 1), size // 2)
    power, _, _ = specgram(signal, NFFT=size, Fs=rate, noverlap=size - hop, scale_by_freq=False)
    return 10 * np.log10(np.maximum(2 * np.asarray(power), 10 ** (FLOOR_DB / 10)))


def mean_and_spread(
    draws: Iterable[NDArray[np.floating]], rate: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and standard deviation over draws of :func:`levels`; one draw at a time is in memory."""
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for draw in draws:  # Welford's update
        count += 1
        level = levels(draw, rate)
        off = level - mean
        mean = mean + off / count
        squares = squares + off * (level - mean)
    return mean, np.sqrt(squares / max(count, 1))


def draw_level(ax: Axes, level: NDArray[np.floating], time: int, rate: int) -> AxesImage:
    """Draw levels ``(frequency, frame)`` of a signal of ``time`` audio samples."""
    return _image(ax, level, time, rate, cmap="magma", vmin=FLOOR_DB, vmax=0)


def draw_spread(
    ax: Axes, mean: NDArray[np.floating], spread: NDArray[np.floating], time: int, rate: int
) -> AxesImage:
    """Draw the spread of levels; it fades where the mean level is far below the loudest."""
    above = (mean - mean.max() + SPREAD_RANGE_DB) / FADE_DB
    scale = {"cmap": "viridis", "vmin": 0, "vmax": SPREAD_MAX_DB}
    return _image(ax, spread, time, rate, alpha=np.clip(above, 0, 1), **scale)


def draw_envelope(
    ax: Axes,
    rate: int,
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    color: str,
    alpha: float = 1,
) -> None:
    """Fill between the lowest and the highest value at each pixel."""
    first = np.unique(np.linspace(0, len(low), COLUMNS, endpoint=False).astype(int))
    extremes = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    ax.fill_between(first / rate, *extremes, color=color, alpha=alpha, linewidth=0.5)


def draw_band(
    ax: Axes,
    x: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    color: str,
) -> None:
    """Fill the band of the draws."""
    ax.fill_between(x, low, high, color=color, alpha=0.35, linewidth=0, label=BAND)


def draw_deviation(
    ax: Axes,
    x: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    color: str,
    reference: NDArray[np.floating] | None,
) -> None:
    """Draw the band of the draws less the estimate, and the true signal less the estimate.

    The scale is that of the band; the truth may be far outside.
    """
    if reference is not None:
        ax.plot(x, reference, color="0.6", linewidth=1.5)
    draw_band(ax, x, low, high, color)
    ax.axhline(0, color=color, linewidth=1)
    widest = max(float(np.max(high - low)), 1e-6)
    ax.set_ylim(-0.8 * widest, 0.8 * widest)
    ax.set_ylabel("less\nestimate")


def _image(ax: Axes, values: NDArray[np.floating], time: int, rate: int, **scale: Any) -> AxesImage:
    ax.set_ylabel("frequency / kHz")
    extent = (0, time / rate, 0, rate / 2000)
    return ax.imshow(values, origin="lower", aspect="auto", extent=extent, **scale)
