"""Which draws of a trace an estimate is of, and what they hold.

A trace of :func:`pyro_sep.separate` tells the mode of every draw, and its weight in the posterior
(group ``modes``). In any other trace every chain is a mode by itself, and all weigh alike.
"""

from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_sep.trace.layout import MODES

Data = TypeVar("Data", xr.Dataset, xr.DataArray)
DRAWS = ("label", "weight")  # of every draw
ALIKE = 0.1  # versions of a source are one whose difference is 10 dB below their mean power
PROBABLE = 0.05  # of an alternative, at least
ALTERNATIVES = 3  # at most
EQUAL = 1e-6  # relative: weights that differ by less are those of draws that count alike


def chosen_draws(
    mode: NDArray[np.integer],
    weight: NDArray[np.floating],
    lp: NDArray[np.floating],
    estimate: str,
) -> NDArray[np.integer]:
    """Chain and number ``(draw, 2)`` of the draws that an estimate is the mean of.

    Args:
        mode: of every draw, 0 is the most probable one, ``(chain, draw)``.
        weight: of every draw ``(chain, draw)``.
        lp: log posterior of every draw ``(chain, draw)``; NaN in a chain that diverged.
        estimate: ``"mode"``, draws of the most probable mode, those of the chain of the highest
            mean log posterior in it; or ``"mean"``, draws of all modes. Where their weights differ,
            there are as many in all as there were, each as often as its weight says.

    >>> mode, weight = np.array([[0, 1, 0, 0]]), np.array([[0.1, 0.7, 0.1, 0.1]])
    >>> chosen_draws(mode, weight, np.zeros((1, 4)), "mode").tolist()
    [[0, 0], [0, 2], [0, 3]]
    >>> chosen_draws(mode, weight, np.zeros((1, 4)), "mean").tolist()
    [[0, 1], [0, 1], [0, 1], [0, 2]]
    """
    if estimate == "mean":
        total = weight.astype(float).cumsum()
        there = np.flatnonzero(weight)
        alike = np.ptp(weight.flat[there]) <= EQUAL * weight.max()
        at = (np.arange(weight.size) + 0.5) / weight.size * total[-1]
        numbers = there if alike else total.searchsorted(at)
    else:
        first = mode == 0
        count = first.sum(1)
        known = np.where(np.isnan(lp), -np.inf, lp).astype(float)
        mean = np.where(first, known, 0).sum(1) / np.maximum(count, 1)
        chain = max(range(len(mode)), key=lambda c: (count[c] > 0, mean[c], -c))
        numbers = chain * mode.shape[1] + np.flatnonzero(first[chain])
    return np.stack(np.divmod(numbers, mode.shape[1]), 1)


def estimate_draws(tree: xr.DataTree) -> NDArray[np.integer]:
    """Chain and number ``(draw, 2)`` of the draws whose mean the estimate of a trace is.

    By its attribute ``estimate``: ``"mode"``, draws of the most probable mode, those of the chain
    of the highest mean log posterior in it; or ``"mean"``, draws of all modes, each as often as its
    weight says.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    >>> lp = xr.Dataset({"lp": (("chain", "draw"), [[-9.0, -8.0], [-3.0, -4.0]])})
    >>> estimate_draws(xr.DataTree.from_dict({"sample_stats": lp})).tolist()
    [[1, 0], [1, 1]]
    """
    return _chosen(tree, tree.attrs.get("estimate", "mode"))


def best_chain(tree: xr.DataTree) -> int:
    """Number of the chain of the highest mean log posterior in the most probable mode.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    >>> lp = xr.Dataset({"lp": (("chain", "draw"), [[-9.0, -8.0], [-3.0, np.nan]])})
    >>> best_chain(xr.DataTree.from_dict({"sample_stats": lp}))
    0
    """
    return int(_chosen(tree, "mode")[0, 0])


def select_draws(data: Data, draws: NDArray[np.integer]) -> Data:
    """Draws of variables, in place of dims ``(chain, draw)`` one dim ``draw``.

    Args:
        data: of a posterior.
        draws: chain and number of each ``(draw, 2)``, by chain, see :func:`estimate_draws`.

    >>> level = xr.DataArray([[1.0, 2.0], [3.0, 4.0]], dims=("chain", "draw"))
    >>> select_draws(level, np.array([[0, 1], [1, 0]])).values
    array([2., 3.])
    """
    parts = [
        data.isel(chain=own[0, 0], draw=own[:, 1]).drop_vars(("chain", "draw"), errors="ignore")
        for own in by_chain(draws)
    ]
    return parts[0] if len(parts) == 1 else xr.concat(parts, "draw")


def by_chain(draws: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Draws ``(draw, 2)``, chain and number of each, chain by chain.

    >>> [own.tolist() for own in by_chain(np.array([[0, 3], [2, 0], [2, 1]]))]
    [[[0, 3]], [[2, 0], [2, 1]]]
    """
    return [draws[draws[:, 0] == chain] for chain in np.unique(draws[:, 0])]


def mode_probabilities(tree: xr.DataTree) -> list[float]:
    """Posterior probability of every mode, falling; empty where the trace does not tell.

    A mode is an explanation of the mixture: which source each of its sounds belongs to.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * np.sin(np.arange(256) / 8)
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> mode_probabilities(tree)
    [1.0]
    """
    if MODES not in tree.children:
        return []
    return [float(p) for p in tree[MODES].to_dataset()["probability"].values]


def alternative_modes(tree: xr.DataTree) -> list[int]:
    """Modes beside that of the estimate ``"mode"`` that are worth a look, by falling probability.

    An estimate that is the mean over all modes has none.
    """
    if tree.attrs.get("estimate", "mode") != "mode":
        return []
    found = enumerate(mode_probabilities(tree))
    return [mode for mode, p in found if mode and p >= PROBABLE][:ALTERNATIVES]


def mode_draws(tree: xr.DataTree, mode: int) -> NDArray[np.integer]:
    """Draws of one mode ``(draw, 2)``, those of the chain of the highest mean log posterior.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
        mode: its number, 0 is the most probable one.

    >>> lp = xr.Dataset({"lp": (("chain", "draw"), [[-9.0, -8.0], [-3.0, -4.0]])})
    >>> mode_draws(xr.DataTree.from_dict({"sample_stats": lp}), 1).tolist()
    [[0, 0], [0, 1]]
    """
    label, weight, lp = _modes(tree)
    return chosen_draws(np.where(label == mode, 0, 1), weight, lp, "mode")


def chains_of_mode(tree: xr.DataTree, mode: int) -> int:
    """Number of the chains that have draws of a mode."""
    return int((_modes(tree)[0] == mode).any(1).sum())


def _chosen(tree: xr.DataTree, estimate: str) -> NDArray[np.integer]:
    return chosen_draws(*_modes(tree), estimate)


def _modes(
    tree: xr.DataTree,
) -> tuple[NDArray[np.integer], NDArray[np.floating], NDArray[np.floating]]:
    """Mode, weight and log posterior of every draw ``(chain, draw)``."""
    lp = tree["sample_stats"].to_dataset()["lp"].transpose("chain", "draw").values
    if MODES in tree.children:
        told = tree[MODES].to_dataset()
        label, weight = (told[name].transpose("chain", "draw").values for name in DRAWS)
        return label, weight, lp
    mean = lp.mean(1)
    sound = np.isfinite(mean)
    best = int(np.where(np.isnan(mean), -np.inf, mean).argmax())
    label = np.ones_like(lp, dtype=int) * (np.arange(len(lp)) != best)[:, None]
    weight = np.ones_like(lp) * (sound if sound.any() else np.arange(len(lp)) == best)[:, None]
    return label, weight, lp
