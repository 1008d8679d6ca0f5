import itertools
import math
from collections.abc import Callable

import pytest

from pyro_sep.inference.annealing.schedules import (
    START_NATS,
    geometric_ladder,
    polynomial_decay,
    start_level,
    two_rate_ladder,
)


def ratios(ladder: tuple[float, ...]) -> list[float]:
    return [after / before for before, after in itertools.pairwise(ladder)]


@pytest.mark.parametrize("levels", [2, 3, 24])
def test_a_geometric_ladder_falls_by_a_constant_factor(levels: int) -> None:
    ladder = geometric_ladder(4.7, 0.03, levels)
    assert len(ladder) == levels
    assert ladder[0] == 4.7
    assert ladder[-1] == 0.03
    assert ratios(ladder) == pytest.approx([(0.03 / 4.7) ** (1 / (levels - 1))] * (levels - 1))


def test_a_ladder_of_two_rates_has_five_sixths_of_its_levels_down_to_the_turn() -> None:
    ladder = two_rate_ladder(4.0, 0.5, 0.05, 24)
    assert len(ladder) == 24
    assert ladder[0] == 4.0
    assert ladder[19] == 0.5
    assert ladder[-1] == 0.05
    assert ratios(ladder[:20]) == pytest.approx([0.125 ** (1 / 19)] * 19)
    assert ratios(ladder[19:]) == pytest.approx([0.1 ** (1 / 4)] * 4)
    for levels in range(6, 20):
        assert len(two_rate_ladder(4.0, 0.5, 0.05, levels)) == levels


def test_the_start_carries_the_nats_that_decide() -> None:
    for time, level in ((16_384, 0.5), (1_024, 0.07)):
        sigma = start_level(time, level)
        assert time * level**2 / (2 * sigma**2) == pytest.approx(START_NATS)
    assert start_level(16_384, 1.0) == pytest.approx(math.sqrt(8_192 / START_NATS))


def test_polynomial_decay() -> None:
    schedule = polynomial_decay(0.3, 10, 0.75)
    assert schedule(0) == 0.3
    assert schedule(10) == pytest.approx(0.3 / 2**0.75)
    assert schedule(150) == pytest.approx(0.3 / 16**0.75)
    harmonic = polynomial_decay(0.3, 1, 1)
    assert [harmonic(step) for step in range(4)] == pytest.approx([0.3, 0.15, 0.1, 0.075])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: geometric_ladder(1, 2, 5), "got 1 down to 2"),
        (lambda: geometric_ladder(1, 1, 5), "got 1 down to 1"),
        (lambda: geometric_ladder(1, 0, 5), "got 1 down to 0"),
        (lambda: geometric_ladder(math.nan, 0.1, 5), "got nan"),
        (lambda: geometric_ladder(1, 0.1, 1), "levels: got 1,"),
        (lambda: two_rate_ladder(4, 0.5, 0.05, 5), "levels: got 5,"),
        (lambda: two_rate_ladder(4, 5, 0.05, 9), "got 4 down to 5"),
        (lambda: two_rate_ladder(4, 0.05, 0.5, 9), "got 0.05 down to 0.5"),
        (lambda: polynomial_decay(0, 1, 1), "first 0"),
        (lambda: polynomial_decay(1, 0, 1), "offset 0"),
        (lambda: polynomial_decay(1, 1, 0.5), "power 0.5"),
        (lambda: polynomial_decay(1, 1, 1.1), "power 1.1"),
    ],
)
def test_errors_say_what_was_got(build: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        build()
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
