"""Pictures of audits and calibrations, drawn without pyplot's global state, and their files."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_sep.checks.names import literal
from pyro_sep.diagnostics.sbc import RankTest, coverage_error


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
