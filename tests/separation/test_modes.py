import math
from typing import Any

import numpy as np
import pytest
from scripts import load

from pyro_sep import load_priors, separate
from pyro_sep.inference.bridge import MassRatio
from pyro_sep.separation.modes import Group, find_modes

T = np.arange(256)
TONES = np.stack([np.sin(T / 3), np.sin(T / 5), np.sin(T / 7)])


def group(chain: int, count: int, lp: float, order: tuple[int, ...], extra: float = 0.0) -> Group:
    return Group(chain, count, lp, TONES[list(order)] + extra * np.cos(T / 2))


def found(groups: list[Group], compare: Any = None, error: float = 0.0) -> Any:
    return find_modes(groups, TONES.sum(0), compare, error)


def test_chains_that_hold_the_same_are_one_mode() -> None:
    modes = found([group(0, 5, -1, (0, 1, 2)), group(1, 5, -9, (0, 1, 2), 0.2)])
    assert (modes.label, modes.weight, modes.probability) == ([0, 0], [0.5, 0.5], [1.0])
    apart = found([group(0, 5, -1, (0, 1, 2)), group(1, 5, -9, (0, 1, 2), 0.5)])
    assert apart.label == [0, 1]


def test_what_is_not_heard_makes_no_mode() -> None:
    quiet = np.array([[1.0], [1.0], [0.01]])
    one = Group(0, 5, 0, quiet * TONES)
    other = Group(1, 5, 0, quiet * TONES[[0, 1, 0]])
    assert found([one, other]).label == [0, 0]


def test_modes_within_a_chain_weigh_as_it_visits_them() -> None:
    groups = [group(0, 2, -5, (1, 0, 2)), group(0, 6, -5, (0, 1, 2)), group(1, 8, -5, (0, 1, 2))]
    modes = found(groups)
    assert modes.label == [1, 0, 0]
    assert modes.probability == pytest.approx([14 / 16, 2 / 16])
    assert not modes.by_density


def test_chains_that_never_met_count_alike_without_densities() -> None:
    groups = [group(c, 4, -c, order) for c, order in enumerate([(1, 0, 2), (0, 1, 2), (0, 1, 2)])]
    assert found(groups).probability == pytest.approx([2 / 3, 1 / 3])
    tied = found(groups[:2])
    assert tied.label == [0, 1]  # the more probable first
    assert found(groups[1::-1]).label == [1, 0]


def test_a_chain_that_diverged_weighs_nothing() -> None:
    bad = Group(0, 4, math.nan, math.nan * TONES)
    modes = found([bad, group(1, 4, -50, (0, 1, 2))])
    assert modes.label == [1, 0]
    assert modes.weight == [0.0, 1.0]
    assert found([bad]).probability == [1.0]


@pytest.mark.parametrize("log_ratio", [-1.0, 0.5, -400.0])
@pytest.mark.parametrize("error", [0.0, 90.0])
def test_densities_weigh_what_they_can(log_ratio: float, error: float) -> None:
    groups = [group(0, 4, -3, (0, 1, 2)), group(1, 1, -4, (1, 0, 2)), group(1, 3, -4, (2, 1, 0))]
    asked = []

    def compare(one: int, other: int) -> MassRatio:
        asked.append((one, other))
        return MassRatio(log_ratio, 0.1)

    modes = found(groups, compare, error)
    assert asked == [(0, 2)]  # the largest of each, the most probable first
    certain = error == 0 or log_ratio == -400
    assert modes.by_density is certain
    # Chain 1 holds the compared mode in three draws of four.
    mass = math.exp(log_ratio) * 4 / 3 if certain else 1.0
    assert sum(modes.weight[1:]) == pytest.approx(mass / (1 + mass))
    assert sum(modes.weight) == pytest.approx(1)


@pytest.mark.parametrize("swaps", [0, 2], ids=["independent chains", "one chain"])
@pytest.mark.parametrize("index", [0, 5])
def test_both_orders_of_two_tones_are_in_the_draws(index: int, swaps: int) -> None:
    experiment = load("modes")
    mixture, lower, expected = experiment.open_mixture(1, index)
    sine = load_priors("toy/oracle")["sine"]
    budget: dict[str, Any] = experiment.SEARCH | {"swaps": swaps}
    budget |= {"chains": 1, "draws": 60} if swaps else {"chains": 4, "draws": 20}
    priors = {"first": sine, "second": sine}
    trace = separate(mixture, priors, gains=experiment.GAINS, seed=3, **budget).trace
    level = np.abs(trace["posterior"]["sources"].values @ lower.numpy())
    first = level[..., 0] > level[..., 1]
    assert 0 < first.mean() < 1
    label, weight = (trace["modes"][name].values for name in ("label", "weight"))
    assert ((label == label[first][0]) == first).all()
    assert weight.sum() == pytest.approx(1, abs=1e-5)
    share = float(weight[first].sum())
    assert 0.5 < share / expected < 2
    assert 0.5 < (1 - share) / (1 - expected) < 2
    assert trace.attrs["modes_weighed"] == ("frequency" if swaps else "density")
