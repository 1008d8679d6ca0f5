"""Pictures of separations, audits and calibrations, drawn without pyplot's global state."""

import warnings
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.mlab import psd, specgram
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pyro_sep.checks.names import literal
from pyro_sep.diagnostics.sbc import RankTest, coverage_error
from pyro_sep.storage.files import atomic_write
from pyro_sep.trace.dataset import estimate_chains

ZOOM = 0.009  # seconds: four periods of 440 Hz
SPECTRUM_TIME = 2048  # audio samples per periodogram: 8 Hz apart at 16 kHz, about a pixel each
FLOOR_DB = -90.0  # the lowest level that a spectrum shows
SPECTROGRAM_TIME = 512  # audio samples per frame: 31 Hz and 32 ms at 16 kHz
COLUMNS = 600  # of a picture as wide as a column of a page, in pixels

Curve = tuple[NDArray[Any], str, str, float]  # signal (time,), colour, label, line width


def plot_separation(tree: xr.DataTree) -> Figure:
    """The mixture and, a row each, its sources: waveform to the left, spectrum to the right.

    An estimate is the mean of the draws of its chains,
    :func:`pyro_sep.trace.dataset.chosen_chains`; its band holds 90 % of them at each instant.
    Titles give its SI-SDR where the true source is known and not silent.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> figure = plot_separation(tree)
    """
    posterior, constant = tree["posterior"].to_dataset(), tree["constant_data"].to_dataset()
    drawn = posterior["sources"].isel(chain=estimate_chains(tree))
    draws = drawn.stack(any=("chain", "draw")).transpose("source", "any", "time").values
    names = [str(name) for name in posterior["source"].values]
    true = constant.get("true_sources")
    mixture = tree["observed_data"].to_dataset()["mixture"].values
    rate = int(constant["sample_rate"])
    figure = Figure(figsize=(11, 1.2 + 2.1 * (1 + len(names))), layout="constrained")
    axes = figure.subplots(1 + len(names), 2, sharex="col", squeeze=False)
    _waveforms(axes[0, 0], rate, (mixture, "0.3", "mixture", 1.3))
    _spectra(axes[0, 1], rate, (mixture, "0.3", "mixture", 1.3))
    axes[0, 0].set_title("Mixture", loc="left", weight="bold")
    for k, name in enumerate(names):
        curves: list[Curve] = [(draws[k].mean(0), f"C{k}", "estimate", 1.3)]
        reference = None if true is None else true.values[k]
        if reference is not None:
            curves.insert(0, (reference, "0.75", "true", 3.5))  # wide: seen behind the estimate
        _waveforms(axes[k + 1, 0], rate, *curves)
        _band(axes[k + 1, 0], rate, draws[k], f"C{k}")
        _spectra(axes[k + 1, 1], rate, *curves)
        title = literal(name) + _score(draws[k].mean(0), reference)
        axes[k + 1, 0].set_title(title, loc="left", weight="bold", color=f"C{k}")
    for left, right in axes:  # above the right one, where no title is in the way
        handles, labels = left.get_legend_handles_labels()
        right.legend(
            handles, labels, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, frameon=False
        )
    axes[0, 1].set_title("Spectrum", loc="left", weight="bold")
    axes[-1, 0].set_xlabel("time / ms")
    axes[-1, 1].set_xlabel("frequency / Hz")
    return figure


def plot_waveform(
    signal: NDArray[Any],
    rate: int,
    start: int,
    color: str,
    draws: NDArray[Any] | None = None,
    reference: NDArray[Any] | None = None,
) -> Figure:
    """A whole signal above, as its extremes per pixel, and a :data:`ZOOM` of it below.

    Args:
        signal: ``(time,)``.
        rate: in Hz.
        start: the audio sample that the zoom begins at; it is marked above.
        color: of the signal.
        draws: ``(draw, time)``; a band holds 90 % of them at each instant.
        reference: the true signal ``(time,)``, where it is known.

    >>> figure = plot_waveform(np.random.default_rng(0).standard_normal(4_000), 16_000, 0, "C0")
    """
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    whole, zoom = figure.subplots(2, 1)
    time = len(signal)
    window = slice(start, min(start + round(ZOOM * rate), time))
    if reference is not None:
        zoom.plot(*_seconds(reference, rate, window), color="0.6", linewidth=3.5, label="true")
    if draws is not None:
        band = np.quantile(draws, (0.05, 0.95), axis=0)
        _envelope(whole, rate, band[0], band[1], color, alpha=0.35)
        seconds, low = _seconds(band[0], rate, window)
        zoom.fill_between(
            seconds, low, band[1, window], color=color, alpha=0.35, lw=0, label="90 % of draws"
        )
    _envelope(whole, rate, signal, signal, color)
    zoom.plot(*_seconds(signal, rate, window), color=color, linewidth=1.2, label="estimate")
    whole.axvspan(window.start / rate, window.stop / rate, color="0.5", alpha=0.5, linewidth=0)
    for ax in (whole, zoom):
        ax.margins(x=0)
        ax.set_ylabel("amplitude")
    zoom.locator_params("x", nbins=6)
    zoom.set_xlabel("time / s")
    if draws is not None:
        zoom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.4), ncols=3, frameon=False)
    return figure


def plot_spectrogram(signal: NDArray[Any], rate: int) -> Figure:
    """Levels of Hann frames in dB, where a sine of amplitude 1 on a bin has 0.

    Args:
        signal: ``(time,)``.
        rate: in Hz.

    >>> figure = plot_spectrogram(np.random.default_rng(0).standard_normal(4_000), 16_000)
    >>> len(figure.axes) > 0
    True
    """
    size = min(SPECTROGRAM_TIME, len(signal) // 4)
    hop = min(max(len(signal) // COLUMNS, 1), size // 2)
    power, _, _ = specgram(signal, NFFT=size, Fs=rate, noverlap=size - hop, scale_by_freq=False)
    level = 10 * np.log10(np.maximum(2 * np.asarray(power), 10 ** (FLOOR_DB / 10)))
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(0, len(signal) / rate, 0, rate / 2000),
        cmap="magma",
        vmin=FLOOR_DB,
        vmax=0,
    )
    ax.set(xlabel="time / s", ylabel="frequency / kHz")
    figure.colorbar(image, ax=ax, label="dB re full scale")
    return figure


def plot_audit(table: xr.DataArray) -> Figure:
    """A heatmap per noise level of how ill each prior fits each source.

    A framed cell is a prior on its own source. Blue is below the noise alone, red above it;
    one colour scale, logarithmic beyond 0.1 nats, serves all heatmaps.

    Args:
        table: excess nats per audio sample, dims ``sigma``, ``prior`` and ``source``.

    >>> coords = {"sigma": [0.1], "prior": ["sine"], "source": ["sine"]}
    >>> figure = plot_audit(xr.DataArray([[[-0.2]]], coords, ("sigma", "prior", "source")))
    """
    table = table.transpose("sigma", "prior", "source")
    count, priors, sources = table.shape
    columns = min(count, 4)
    rows = -(-count // columns)
    size = (1.4 + columns * (1 + 0.8 * sources), 0.6 + rows * (1 + 0.6 * priors))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    finite = np.abs(table.values[np.isfinite(table.values)])
    limit = max(float(finite.max(initial=0)), 0.2)
    norm = SymLogNorm(linthresh=0.1, vmin=-limit, vmax=limit)
    for ax, panel in zip(axes, table, strict=False):
        _heatmap(ax, panel, norm)
    for ax in axes[count:]:
        ax.set_axis_off()
    mappable = ScalarMappable(norm, "RdBu_r")
    figure.colorbar(mappable, ax=axes.tolist(), label="excess / (nats per audio sample)")
    return figure


def plot_calibration(ranks: xr.DataArray, covered: xr.DataArray, test: RankTest) -> Figure:
    """A row per source: distribution function of the ranks to the left, coverage to the right.

    To the left uniform ranks are 0, and 95 % of them stay within the grey band with all of their
    curve. To the right calibrated draws are on the diagonal; the grey band is two standard errors.

    Args:
        ranks: of the truth among the draws, dims ``simulation``, ``source`` and ``function``.
        covered: share of the truths in each interval, dims ``interval``, ``source``, ``function``.
        test: of these ranks.

    >>> generator = np.random.default_rng(0)
    >>> sources = {"source": ["sine"], "function": ["level"]}
    >>> ranks = xr.DataArray(
    ...     generator.integers(0, 10, (20, 1, 1)), sources, ("simulation", "source", "function")
    ... )
    >>> covered = xr.DataArray(
    ...     [[[0.5]], [[0.9]]], {"interval": [0.5, 0.9], **sources}, ("interval", *ranks.dims[1:])
    ... )
    >>> figure = plot_calibration(ranks, covered, RankTest.simulate(20, 9, generator))
    """
    names = ranks["source"].values.tolist()
    points, nominal = test.points, covered["interval"].values
    low, high = test.band()
    error = 2 * coverage_error(test.simulations, nominal.tolist())
    figure = Figure(figsize=(11, 0.6 + 3 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, sharex="col", sharey="col", squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        left.fill_between(points, low - points, high - points, color="0.88", label="95 % band")
        lower, upper = np.clip([nominal - error, nominal + error], 0, 1)
        right.fill_between(nominal, lower, upper, color="0.88")
        right.plot(nominal, nominal, color="0.5", linewidth=1)
        for function in ranks["function"].values.tolist():
            cell = {"source": name, "function": function}
            share = test.counts(ranks.sel(cell).values) / test.simulations
            left.plot(points, share - points, marker=".", label=function)
            right.plot(nominal, covered.sel(cell).values, marker="o", label=function)
        left.axhline(0, color="0.5", linewidth=1)
        left.set_title(literal(name), loc="left", weight="bold")
        left.set_ylabel("rank ECDF less uniform")
        right.set_ylabel("share of truths inside")
    axes[0, 0].set_xlim(0, 1)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    axes[-1, 0].set_xlabel("rank / (draws + 1)")
    axes[-1, 1].set_xlabel("central interval")
    return figure


def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: the figure.
        path: where to; ``.png`` is the usual suffix.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a name: a box stands for it
        figure.savefig(temporary, format="png", dpi=150)


def _window(time: int, rate: int) -> slice:
    """The audio samples of the zoom, about the middle of the frame."""
    width = min(time, max(round(ZOOM * rate), 2))
    return slice((time - width) // 2, (time - width) // 2 + width)


def _seconds(signal: NDArray[Any], rate: int, window: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """The instants of a window, and the signal at them."""
    return np.arange(window.start, window.stop) / rate, signal[window]


def _envelope(
    ax: Axes, rate: int, low: NDArray[Any], high: NDArray[Any], color: str, alpha: float = 1
) -> None:
    """Between the lowest and the highest value at each pixel."""
    first = np.unique(np.linspace(0, len(low), COLUMNS, endpoint=False).astype(int))
    extremes = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    ax.fill_between(first / rate, *extremes, color=color, alpha=alpha, linewidth=0.5)


def _waveforms(ax: Axes, rate: int, *curves: Curve) -> None:
    for signal, color, label, width in curves:
        window = _window(len(signal), rate)
        milliseconds = 1000 * np.arange(len(signal))[window] / rate
        ax.plot(milliseconds, signal[window], color=color, label=label, linewidth=width)
    ax.margins(x=0)
    ax.set_ylabel("amplitude")


def _band(ax: Axes, rate: int, draws: NDArray[Any], color: str) -> None:
    window = _window(draws.shape[-1], rate)
    low, high = np.quantile(draws[:, window], (0.05, 0.95), axis=0)
    milliseconds = 1000 * np.arange(draws.shape[-1])[window] / rate
    ax.fill_between(
        milliseconds, low, high, color=color, alpha=0.3, linewidth=0, label="90 % of draws"
    )


def _spectra(ax: Axes, rate: int, *curves: Curve) -> None:
    """Mean Hann periodograms (Welch's method); a sine of amplitude 1 on a bin peaks at 0 dB."""
    for signal, color, label, width in curves:
        size = min(SPECTRUM_TIME, len(signal))
        power, frequency = psd(signal, NFFT=size, Fs=rate, noverlap=size // 2, scale_by_freq=False)
        level = 10 * np.log10(np.maximum(2 * np.asarray(power), 10 ** (FLOOR_DB / 10)))
        ax.plot(frequency, level, color=color, label=label, linewidth=width)
    ax.set(ylim=(FLOOR_DB, 6), xlim=(0, rate / 2), ylabel="dB re full scale")


def _score(estimate: NDArray[Any], reference: NDArray[Any] | None) -> str:
    """The SI-SDR for a title, where there is a true source that is not silent."""
    if reference is None or np.ptp(reference) == 0:
        return ""
    import torch  # here alone, so that a trace without truth is drawn without torch

    from pyro_sep.evaluation.metrics import si_sdr

    score = float(si_sdr(torch.from_numpy(estimate), torch.from_numpy(reference)))
    return f": SI-SDR {score:.1f} dB"


def _heatmap(ax: Axes, panel: xr.DataArray, norm: SymLogNorm) -> None:
    ax.imshow(panel.values, cmap="RdBu_r", norm=norm, aspect="auto")
    priors, sources = panel["prior"].values.tolist(), panel["source"].values.tolist()
    for (row, column), value in np.ndenumerate(panel.values):
        shade = abs(float(norm(value)) - 0.5) if np.isfinite(value) else 0
        ax.text(
            column,
            row,
            f"{value:z.2f}",
            ha="center",
            va="center",
            color="w" if shade > 0.35 else "k",
        )
        if priors[row] == sources[column]:
            ax.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, lw=2.5))
    ax.set_xticks(range(len(sources)), [literal(name) for name in sources])
    ax.set_yticks(range(len(priors)), [literal(name) for name in priors])
    ax.set(title=f"sigma = {float(panel['sigma']):.3g}", xlabel="source", ylabel="prior")
