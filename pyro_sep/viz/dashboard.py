"""ArviZ's pictures of convergence, side by side in one figure."""

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_sep.checks.names import literal
from pyro_sep.trace.dataset import to_arviz

DRAWS_MIN = 4  # of a chain: ArviZ's densities need as many
SIZE = 9  # of text, in points
DPI = 110  # of the parts, where ArviZ makes figures of its own


def plot_diagnostics(tree: xr.DataTree, variable: str = "level_db") -> Figure:
    r"""Trace, rank, forest and energy plots of one variable of the draws, made by ArviZ.

    - **Trace**: densities of the variable, and its values over the draws, a colour per chain.
      Chains that agree lie on each other.
    - **Rank**: histograms of the ranks of a chain's draws among those of all chains. Chains that
      draw from one distribution have uniform ranks (Vehtari et al. 2021, arXiv 1903.08008).
    - **Forest**: median, quartiles and 94 % interval of every chain and source.
    - **Energy**: the distribution of the energy :math:`E = |v|^2 / 2 - \log p(x \mid m)`, with v
      the velocity, beside that of its changes from draw to draw. Where changes are much narrower,
      draws explore slowly (Betancourt 2016, arXiv 1604.00695).

    Args:
        tree: a trace of :func:`pyro_sep.separate`, with 4 draws a chain or more.
        variable: of the posterior, with dims ``(chain, draw, source)``: ``level_db`` (dB re full
            scale), ``centroid`` (Hz), ``log_prior`` (nats), and others where the trace has them.

    Raises:
        ValueError: no such variable, or fewer draws.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> fast = {"levels": 6, "candidates": 1, "replicas": 0, "cooling": 1}
    >>> tree = separate(mixture, sine, chains=2, draws=8, **fast).trace
    >>> figure = plot_diagnostics(tree, "log_prior")
    """
    posterior = tree["posterior"].to_dataset()
    usable = [
        str(name)
        for name, part in posterior.data_vars.items()
        if set(part.dims) == {"chain", "draw", "source"}
    ]
    if variable not in usable:
        raise ValueError(f"variable: got {variable!r}, expected one of {', '.join(usable)}")
    if posterior.sizes["draw"] < DRAWS_MIN:
        raise ValueError(
            f"tree: got {posterior.sizes['draw']} draws a chain, expected {DRAWS_MIN} or more; "
            "separate with more draws"
        )
    energy = "energy" in tree["sample_stats"].to_dataset()
    draw = _by_axes if version("arviz").startswith("0.") else _by_figures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few draws, and of ArviZ 0.23 that 1.0 is coming
        return draw(tree, variable, energy)


def _by_axes(tree: xr.DataTree, variable: str, energy: bool) -> Figure:
    """The plots of ArviZ 0.x, which draws into axes that it is given."""
    import arviz

    data: Any = to_arviz(tree)
    names = tree["posterior"].to_dataset()["source"].values.tolist()
    count = len(names)
    figure = Figure(figsize=(13, 2.6 + 1.9 * count), layout="constrained")
    grid = figure.add_gridspec(count + 1, 6, height_ratios=[*[1.0] * count, 1.4])
    rows = [
        [figure.add_subplot(grid[k, 2 * i : 2 * i + 2]) for i in range(3)] for k in range(count)
    ]
    axes = np.array(rows, dtype=object)
    common: dict[str, Any] = {"var_names": [variable], "show": False}
    arviz.plot_trace(data, compact=False, axes=axes[:, :2], legend=False, **common)
    arviz.plot_rank(data, ax=axes[:, 2], **common)
    for row, name in zip(axes, names, strict=True):
        for ax, what in zip(row, (variable, "draw", "rank among all draws"), strict=True):
            ax.set_title("")
            ax.set_xlabel(what if row[0] is axes[-1, 0] else "", fontsize=SIZE)
            ax.set_ylabel("chain" if ax is row[2] else "", fontsize=SIZE)
            ax.tick_params(labelsize=SIZE)
        row[0].set_title(literal(str(name)), loc="left", weight="bold")
        row[1].locator_params("x", integer=True)
    for ax, title in zip(axes[0, 1:], ("Trace", "Ranks"), strict=True):
        ax.set_title(title, loc="left", weight="bold")
    forest, last = figure.add_subplot(grid[count, :3]), figure.add_subplot(grid[count, 3:])
    arviz.plot_forest(data, ax=forest, textsize=SIZE, **common)
    forest.set_title(f"Forest: {forest.get_title()} of {variable}", loc="left", weight="bold")
    forest.set_title("")
    if energy:
        arviz.plot_energy(data, ax=last, textsize=SIZE, show=False)
        last.set_title("Energy", loc="left", weight="bold")
    else:
        last.set_axis_off()
        last.text(0.5, 0.5, "the trace has no energies", ha="center", transform=last.transAxes)
    return figure


def _by_figures(tree: xr.DataTree, variable: str, energy: bool) -> Figure:
    """The plots of ArviZ 1.x, which makes a figure of its own for each, as images in one."""
    import arviz
    from matplotlib import pyplot

    plots: Any = arviz
    makers = [plots.plot_trace_dist, plots.plot_rank, plots.plot_forest]
    data, images = to_arviz(tree), []
    for make in [*makers, *([plots.plot_energy] if energy else [])]:
        options = {} if make is plots.plot_energy else {"var_names": [variable]}
        made = make(data, backend="matplotlib", **options).viz["figure"].item()
        images.append(_image(made))
        pyplot.close(made)
    heights = [image.shape[0] / image.shape[1] for image in images]
    figure = Figure(figsize=(13, 13 * sum(heights)), layout="constrained")
    for ax, image in zip(
        np.atleast_1d(figure.subplots(len(images), 1, height_ratios=heights)), images, strict=True
    ):
        ax.imshow(image)
        ax.set_axis_off()
    return figure


def _image(figure: Figure) -> Any:
    """The pixels of a figure, ``(height, width, 4)``."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
