"""What a separation takes is known before it is begun."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyro_sep
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation
from pyro_sep.priors.base import Priors
from pyro_sep.separation import cost
from pyro_sep.separation.api import separate
from pyro_sep.separation.cost import Cost, estimate_cost

SMALL: dict[str, Any] = {
    "candidates": 1,
    "levels": 6,
    "swaps": 0,
    "replicas": 0,
    "tries": 1,
    "cooling": 1,
    "warmup": 1,
    "draws": 2,
}


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def priors(gaussian_priors: Callable[..., Priors]) -> Priors:
    return gaussian_priors(0.3, 0.1)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every source's audio sample takes a microsecond."""
    monkeypatch.setattr(cost, "_seconds_per_sample", lambda *_: 1e-6)


def test_gradients_are_those_of_the_run(priors: Priors) -> None:
    mixture = noise(600)
    for options in ({}, {"chains": 2}, {"estimate": "mean", "candidates": 3}):
        own = SMALL | options
        expected = separate(mixture, priors, **own).trace.attrs["gradients"]
        assert estimate_cost(mixture, priors, **own).gradients == pytest.approx(expected, rel=0.25)


@pytest.mark.usefixtures("steady")
def test_time_is_linear_in_what_is_done(priors: Priors) -> None:
    one = estimate_cost(noise(1_000), priors, **SMALL)
    assert one.seconds == pytest.approx(one.gradients * 2 * 1_000 * 1e-6)
    twice = estimate_cost(noise(2, 1_000), priors, **SMALL)
    assert twice.gradients == one.gradients
    assert twice.seconds == pytest.approx(2 * one.seconds)
    chains = estimate_cost(noise(1_000), priors, **SMALL | {"chains": 3})
    assert chains.seconds == pytest.approx(3 * one.seconds)
    long = estimate_cost(noise(90_000), priors, **SMALL)
    assert 90 < long.seconds / one.seconds < 90 * 8 / 7  # sections overlap, chains do not
    costs = [estimate_cost(noise(1_000), priors, preset=p).seconds for p in ("quick", "thorough")]
    assert costs[0] < costs[1]


@pytest.mark.usefixtures("steady")
def test_memory_is_that_of_the_draws_and_a_constant(priors: Priors) -> None:
    few, many = (
        estimate_cost(noise(1_000), priors, **SMALL | {"draws": draws}) for draws in (100, 1_100)
    )
    assert many.memory - few.memory == 1_000 * (2 * 2 + 1) * 1_000 * 4
    assert few.memory > cost.PROGRAM


def test_little_is_evaluated(priors: Priors, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the audio is and however much would be drawn of it."""
    sizes: list[int] = []
    own = AnnealedPosterior.evaluate

    def evaluate(self: AnnealedPosterior, x: torch.Tensor, sigma: float) -> Evaluation:
        sizes.append(x.numel())
        return own(self, x, sigma)

    monkeypatch.setattr(AnnealedPosterior, "evaluate", evaluate)
    for estimate in ("mode", "mean"):
        sizes.clear()
        estimate_cost(noise(400_000), priors, preset="thorough", estimate=estimate)
        assert len(sizes) == 5
        assert max(sizes) <= 2 * cost.PIECE * cost.LARGER


def test_it_is_said_in_words() -> None:
    assert str(Cost(720.0, 640_000_000, 1.0)) == "about 12 min and 0.6 GB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "preset: got 'slow', expected one of quick, standard, thorough"),
        ({"estimate": "median"}, "estimate: got 'median', expected one of"),
        ({"gains": (1.0,)}, "gains: got 1 for 2 priors"),
        ({"drawz": 3}, "drawz: got an unknown option, expected .* draws"),
    ],
)
def test_bad_settings_are_named(priors: Priors, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        estimate_cost(noise(600), priors, **options)
    with pytest.raises(ValueError, match=r"^mixture: got silence"):
        estimate_cost(torch.zeros(600), priors)


def test_unknown_gains_and_presence_are_taken(priors: Priors) -> None:
    for options in ({"gains": "infer"}, {"presence": "infer"}, {"noise_scale": "infer"}):
        found = pyro_sep.estimate_cost(noise(600), priors, **SMALL, **options)
        assert found.seconds > 0


@pytest.mark.usefixtures("steady")
def test_of_means_it_is_exact_and_knows_the_constraint(priors: Priors) -> None:
    mixture, found = noise(1_000), []
    for constraint in ("gaussian", "exact"):
        own = SMALL | {"estimate": "mean", "constraint": constraint, "draws": 8, "chains": 1}
        expected = separate(mixture, priors, **own).trace.attrs["gradients"]
        found.append(estimate_cost(mixture, priors, **own).gradients)
        assert found[-1] == pytest.approx(expected, abs=1)
    assert found[1] == found[0] + 8  # what a clean draw lacks of its mixture takes another one
