"""The picture of where independent chains found the same audio, and where not."""

import xarray as xr
from matplotlib.figure import Figure

from pyro_sep.checks.names import literal
from pyro_sep.diagnostics.convergence import AGREEMENT_SECONDS, agreement_over_time


def plot_agreement(tree: xr.DataTree, seconds: float = AGREEMENT_SECONDS) -> Figure:
    """A row per source, a column per window: how far its chains hold the same audio there.

    See :func:`~pyro_sep.diagnostics.agreement_over_time`. 1 is the same audio, 0 has nothing in
    common. Windows in which the source is not heard are blank.

    Args:
        tree: a trace of :func:`pyro_sep.separate` with two chains or more.
        seconds: length of a window.

    Raises:
        ValueError: a trace of a single chain.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> few = {"levels": 6, "candidates": 1, "replicas": 0, "cooling": 1, "chains": 2, "draws": 4}
    >>> tree = separate(0.9 * (torch.arange(512) / 8).sin(), sine, **few).trace
    >>> figure = plot_agreement(tree, 0.008)
    """
    if tree["posterior"].sizes["chain"] < 2:
        raise ValueError("tree: got a trace of one chain, expected two or more to compare")
    table = agreement_over_time(tree, seconds)
    rate = int(tree["constant_data"].to_dataset()["sample_rate"])
    edges = [*table["time"].values.tolist(), tree["posterior"].sizes["time"] / rate]
    count = table.sizes["source"]
    figure = Figure(figsize=(10, 0.9 + 0.3 * count), layout="constrained")
    ax = figure.subplots()
    rows = [k - 0.5 for k in range(count + 1)]
    mesh = ax.pcolormesh(edges, rows, table.values, vmin=0, vmax=1, cmap="viridis")
    ax.invert_yaxis()
    ax.set_yticks(range(count), [literal(str(name)) for name in table["source"].values])
    ax.set_xlabel("time / s")
    figure.colorbar(mesh, ax=ax, label="agreement")
    return figure
