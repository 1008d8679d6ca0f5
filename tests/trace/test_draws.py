import numpy as np
import pytest
import xarray as xr

from pyro_sep.trace.draws import (
    ALTERNATIVES,
    alternative_modes,
    best_chain,
    chains_of_mode,
    chosen_draws,
    estimate_draws,
    mode_draws,
    mode_probabilities,
    select_draws,
)


def tree(lp: list[list[float]], modes: xr.Dataset | None = None, **attrs: str) -> xr.DataTree:
    stats = xr.Dataset({"lp": (("chain", "draw"), lp)})
    groups = {"sample_stats": stats} | ({} if modes is None else {"modes": modes})
    made = xr.DataTree.from_dict(groups)
    made.attrs = attrs
    return made


def modes(label: list[list[int]], probability: list[float]) -> xr.Dataset:
    labels = np.array(label)
    counts = np.bincount(labels.ravel(), minlength=len(probability))
    weight = (np.array(probability) / np.maximum(counts, 1))[labels]
    told = {"label": (("chain", "draw"), labels), "weight": (("chain", "draw"), weight)}
    return xr.Dataset(told | {"probability": ("mode", probability)})


def test_without_modes_the_best_chain_has_the_highest_mean_and_no_nan() -> None:
    lp = [[0.0, 9.0], [5.0, 5.0], [100.0, np.nan]]
    assert best_chain(tree(lp)) == 1
    assert estimate_draws(tree(lp)).tolist() == [[1, 0], [1, 1]]
    everywhere = estimate_draws(tree(lp, estimate="mean")).tolist()
    assert everywhere == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert estimate_draws(tree([[np.nan], [np.nan]], estimate="mean")).tolist() == [[0, 0]]
    assert mode_probabilities(tree(lp)) == []
    assert alternative_modes(tree(lp)) == []


def test_the_best_are_draws_of_the_first_mode_in_its_best_chain() -> None:
    told = modes([[1, 1, 1], [0, 1, 0], [0, 0, 0]], [0.7, 0.3])
    there = tree([[9.0, 9, 9], [2, 99, 2], [1, 1, 1]], told)
    assert estimate_draws(there).tolist() == [[1, 0], [1, 2]]
    assert mode_draws(there, 1).tolist() == [[1, 1]]
    assert [chains_of_mode(there, mode) for mode in (0, 1)] == [2, 2]
    assert mode_probabilities(there) == [0.7, 0.3]


def test_the_mean_is_of_draws_as_often_as_they_weigh() -> None:
    told = modes([[0] * 50, [1] * 50], [0.8, 0.2])
    drawn = estimate_draws(tree([[0.0] * 50] * 2, told, estimate="mean"))
    assert len(drawn) == 100
    assert (drawn[:, 0] == 1).sum() == 20
    assert {*np.bincount(drawn[drawn[:, 0] == 0, 1], minlength=50).tolist()} == {1, 2}
    one = chosen_draws(np.zeros((1, 3), int), np.full((1, 3), 1 / 3), np.zeros((1, 3)), "mean")
    assert one.tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize("estimate", ["mode", "mean"])
def test_alternatives_are_probable(estimate: str) -> None:
    told = modes([[0, 1, 2, 3, 4, 5]], [0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    expected = [1, 2, 3, 4][:ALTERNATIVES] if estimate == "mode" else []
    assert alternative_modes(tree([[0.0] * 6], told, estimate=estimate)) == expected
    told = modes([[0, 1]], [0.96, 0.04])
    assert alternative_modes(tree([[0.0] * 2], told, estimate=estimate)) == []


def test_draws_are_those_that_were_named() -> None:
    values = np.arange(24).reshape(2, 3, 4)
    data = xr.DataArray(values, dims=("chain", "draw", "time"))
    picked = select_draws(data, np.array([[0, 2], [1, 0], [1, 0]]))
    assert picked.dims == ("draw", "time")
    assert np.array_equal(picked.values, values[[0, 1, 1], [2, 0, 0]])
