import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from traces import trace_of

from pyro_sep.trace.dataset import load_trace, save_trace
from pyro_sep.viz.trajectory import plot_trajectory

SIGMAS = np.array([2.0, 1.0, 0.5, 0.1, 0.1], np.float32)
LENGTH = 64
GAINS = np.array([0.5, 0.25])


def trace(constraint: str = "exact", **changes: Any) -> xr.DataTree:
    """Two chains of two sections and three candidates; candidate 1 is dropped below sigma 1."""
    entropy = 0.5 * np.log(2 * math.pi * math.e * SIGMAS**2)
    excess = np.random.default_rng(0).normal(size=(2, 2, 3, 5, 2)).astype(np.float32) / 10 - 0.2
    log_prior = LENGTH * (excess - entropy[:, None])
    log_prior[:, :, 1, 2:] = np.nan
    given = {
        "sources": np.zeros((2, 4, 2, 100)),
        "lp": np.array([[0.0], [1.0]]) + np.zeros((2, 4)),
        "gains": GAINS,
        "source_names": ["oboe", "flute"],
        "attrs": {"constraint": constraint, "settings": {"sigma_freeze": 0.7}},
        "search_stats": {"log_prior": log_prior, "noise_level": SIGMAS, "length": LENGTH},
    }
    return trace_of(**given | changes)


def expected(tree: xr.DataTree, chain: int, section: int, gained: float) -> np.ndarray:
    search = tree["search_stats"].to_dataset()
    log_prior = search["log_prior"].values[chain, section].astype(float)
    noise = 0.5 * np.log(2 * math.pi * math.e * SIGMAS.astype(float) ** 2)[:, None]
    return np.asarray(log_prior / LENGTH + noise - gained * GAINS**2 / (GAINS**2).sum())


@pytest.mark.parametrize(("constraint", "gained"), [("exact", 0.5), ("gaussian", 0.0)])
def test_it_shows_the_excess_of_every_candidate(constraint: str, gained: float) -> None:
    tree = trace(constraint)
    figure = plot_trajectory(tree, section=1)
    excess = expected(tree, 1, 1, gained)  # of the best chain
    everyone = [excess.mean(-1), excess[..., 0], excess[..., 1]]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["all sources", "oboe", "flute"]
    for ax, values in zip(figure.axes, everyone, strict=True):
        curves = [line for line in ax.lines if len(line.get_xdata()) in (2, 5)]
        curves = [line for line in curves if line.get_linestyle() == "-"]
        drawn = {len(line.get_ydata()): [] for line in curves}
        for line in curves:
            drawn[len(line.get_ydata())].append(line.get_ydata())
        np.testing.assert_allclose(sorted(map(tuple, drawn[5])), sorted(map(tuple, values[[0, 2]])))
        np.testing.assert_allclose(drawn[2][0], values[1, :2])  # until it was dropped
        assert ax.get_xlim()[0] > 2 > 0.1 > ax.get_xlim()[1]  # from high to low noise


def test_its_scale_is_logarithmic_where_candidates_fall_far() -> None:
    tree = trace()
    assert {ax.get_yscale() for ax in plot_trajectory(tree).axes} == {"linear"}
    search = tree["search_stats"].to_dataset()
    search["log_prior"][:, :, 0, -1, 1] -= 10 * LENGTH
    tree["search_stats"] = xr.DataTree(search)
    assert [ax.get_yscale() for ax in plot_trajectory(tree).axes] == ["symlog", "linear", "symlog"]


def test_it_is_drawn_from_a_file(tmp_path: Any) -> None:
    tree = trace()
    save_trace(tree, tmp_path / "trace.nc")
    assert load_trace(tmp_path / "trace.nc").identical(tree)
    plot_trajectory(load_trace(tmp_path / "trace.nc"), chain=0)


def test_what_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"without the group search_stats.*separate the mixture"):
        plot_trajectory(trace(search_stats=None))
    with pytest.raises(ValueError, match="chains that began from stems, expected one of a search"):
        plot_trajectory(trace(initial=np.ones((2, 100)), initial_lp=np.zeros(3)))
    for wrong in ({"chain": 2}, {"section": 2}, {"chain": -1}):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            plot_trajectory(trace(), **wrong)
