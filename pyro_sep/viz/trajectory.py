"""The picture of a search: how well its candidates fit the priors at every noise level."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_sep.checks.names import literal
from pyro_sep.trace.draws import best_chain
from pyro_sep.trace.layout import SEARCH

LINEAR = 0.1  # nats, within which a logarithmic scale is linear
DEEP = -1.0  # nats: where a curve goes below it, the scale is logarithmic


def plot_trajectory(tree: xr.DataTree, chain: int | None = None, section: int = 0) -> Figure:
    r"""The candidates of a search over the noise levels: of all sources above, of each one below.

    A search goes from the highest noise level, to the left, to the lowest. Shown is the excess of
    a candidate's log prior over that of the noise alone, in nats per audio sample,

    .. math:: \frac{1}{T} \log p_{k,\sigma}(x_k) + \tfrac{1}{2} \log(2 \pi e \sigma^2)
              - \frac{c \, a_k^2}{\sum_j a_j^2}

    for source k at level sigma, T the audio samples of the section, and above its mean over the
    sources; c = 1/2 where sources add up to the mixture exactly, otherwise 0. Zero is audio of
    which the prior knows all but the noise. At high levels the noise hides the sources, and all
    candidates are near zero; on the way down those that explain the mixture wrongly fall behind.
    Where a curve goes below -1 the scale is logarithmic beyond 0.1.

    Grey curves end where a candidate was dropped; coloured ones go on to the end. Swaps of sources
    and refinements, which follow the candidates, are not shown.

    Args:
        tree: a trace of :func:`pyro_sep.separate`.
        chain: number of the chain; None for that of the highest log posterior.
        section: number of the section, of a mixture that was searched in several.

    Raises:
        ValueError: a trace without a search, or no such chain or section.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=2, replicas=0, cooling=1, draws=4).trace
    >>> figure = plot_trajectory(tree)
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['all sources', 'sine']
    """
    if "initial" in tree["constant_data"]:
        raise ValueError(
            "tree: got a trace of chains that began from stems, expected one of a search; separate "
            "the mixture without initial stems"
        )
    if SEARCH not in tree.children:
        raise ValueError(
            f"tree: got a trace without the group {SEARCH}, expected one of pyro_sep.separate of "
            "this version; separate the mixture again"
        )
    search = tree[SEARCH].to_dataset()
    chain = best_chain(tree) if chain is None else chain
    for name, value in (("chain", chain), ("section", section)):
        if not 0 <= value < search.sizes[name]:
            raise ValueError(f"{name}: got {value}, expected 0 to {search.sizes[name] - 1}")
    excess, sigmas = _excess(tree, search, chain, section), search["noise_level"].values
    names = search["source"].values.tolist()
    figure = Figure(figsize=(max(6.0, 3 * len(names)), 6), layout="constrained")
    panels = figure.subplot_mosaic([["all"] * len(names), [*range(len(names))]], sharex=True)
    _curves(panels["all"], sigmas, excess.mean(-1), "0.2")
    panels["all"].set_title("all sources", loc="left", weight="bold")
    for k, name in enumerate(names):
        _curves(panels[k], sigmas, excess[..., k], f"C{k}")
        panels[k].set_title(literal(name), loc="left", weight="bold", color=f"C{k}")
    _describe(panels["all"], tree, search.sizes["section"], section)
    for part in ("all", 0):
        panels[part].set_ylabel("excess /\n(nats per audio sample)")
    for k in range(len(names)):
        panels[k].set_xlabel("noise level sigma")
    return figure


def _excess(
    tree: xr.DataTree, search: xr.Dataset, chain: int, section: int
) -> NDArray[np.floating[Any]]:
    """As in :func:`plot_trajectory`, ``(candidate, level, source)``."""
    found = search["log_prior"].isel(chain=chain, section=section)
    log_prior = found.transpose("candidate", "level", "source").values.astype(float)
    sigmas = search["noise_level"].values.astype(float)
    energy = tree["constant_data"].to_dataset()["gains"].values.astype(float) ** 2
    gained = 0.5 if tree.attrs.get("constraint") == "exact" else 0.0
    floor = 0.5 * np.log(2 * math.pi * math.e * sigmas**2)[:, None]
    return np.asarray(
        log_prior / int(search["length"]) + floor - gained * energy / max(energy.sum(), 1e-30)
    )


def _curves(ax: Axes, sigmas: NDArray[Any], excess: NDArray[Any], color: str) -> None:
    """A curve per candidate ``(candidate, level)``, those that were dropped in grey."""
    for curve in sorted(excess, key=lambda curve: bool(np.isfinite(curve[-1]))):
        known = np.isfinite(curve)
        if known.all():
            ax.plot(sigmas, curve, color=color, linewidth=1.8)
        elif known.any():
            ax.plot(sigmas[known], curve[known], color="0.7", linewidth=1.2)
            ax.plot(sigmas[known][-1], curve[known][-1], color="0.7", marker="x", linestyle="")
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    if np.nanmin(excess, initial=0) < DEEP:
        ax.set_yscale("symlog", linthresh=LINEAR)
    ax.set_xscale("log")
    ax.set_xlim(sigmas.max() * 1.1, sigmas.min() / 1.1)


def _describe(ax: Axes, tree: xr.DataTree, sections: int, section: int) -> None:
    """Mark where it is settled which source explains what, and say what the curves are."""
    settings = json.loads(tree.attrs.get("settings", "{}"))
    if "sigma_freeze" in settings:
        ax.axvline(settings["sigma_freeze"], color="0.5", linewidth=0.8, linestyle="--")
        place, text = ax.get_xaxis_transform(), " sigma_freeze"
        ax.text(settings["sigma_freeze"], 0.04, text, transform=place, color="0.4", fontsize=8)
    where = f", section {section + 1} of {sections}" if sections > 1 else ""
    dropped = (
        ", dropped (grey) or not" if any(line.get_marker() == "x" for line in ax.lines) else ""
    )
    ax.set_title(f"a curve per candidate{dropped}{where}", loc="right", fontsize=9, color="0.4")
