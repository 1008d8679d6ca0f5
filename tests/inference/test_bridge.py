import math

import pytest
import torch
from torch import Tensor

from pyro_sep.inference.bridge import mass_ratio

DIM = 400


def draws(count: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, DIM, dtype=torch.float64, generator=generator)


def two_modes(log_ratio: float, centre: float, scale: float) -> object:
    """Log density of a normal law and another one of that scale, centre and log mass."""

    def log_density(x: Tensor) -> Tensor:
        first = -x.square().sum(1) / 2
        second = -((x - centre) / scale).square().sum(1) / 2 - DIM * math.log(scale)
        return torch.logaddexp(first, second + log_ratio)

    return log_density


@pytest.mark.parametrize("scale", [1.0, 1.03])
@pytest.mark.parametrize("log_ratio", [-2.0, 0.0, 1.0])
def test_the_ratio_is_that_of_the_masses(log_ratio: float, scale: float) -> None:
    density = two_modes(log_ratio, 20.0, scale)
    errors = []
    for seed in range(20):
        one, other = draws(200, seed=seed), 20 + draws(300, scale, seed=100 + seed)
        found = mass_ratio(density, one, other, torch.full((DIM,), 20.0).double())
        errors.append((found.log_ratio - log_ratio, found.error))
    off, said = torch.tensor(errors).double().unbind(1)
    if scale == 1:
        assert off.abs().max() < 1e-6
        return
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(20)
    assert 0.6 < float(off.square().mean().sqrt() / said.mean()) < 1.6


def test_a_poor_shift_says_so() -> None:
    density = two_modes(1.0, 20.0, 1.0)
    one, other = draws(40), 20 + draws(40, seed=1)
    shift = other.mean(0) - one.mean(0)  # misses the centres by the noise of the means
    exact = mass_ratio(density, one, other, torch.full((DIM,), 20.0).double())
    assert mass_ratio(density, one, other, shift).error > 0.1 > 1e-6 > exact.error
    far = torch.zeros(DIM, dtype=torch.float64)
    far[0] = 500.0
    lost = mass_ratio(density, one, other, far)
    assert not abs(lost.log_ratio) > 3 * lost.error


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_draws_tell_nothing(count: int) -> None:
    found = mass_ratio(two_modes(0, 1, 1), draws(count), draws(5), torch.zeros(DIM).double())
    assert math.isnan(found.log_ratio)
    assert found.error == math.inf


def test_densities_that_are_not_finite_tell_nothing() -> None:
    found = mass_ratio(lambda x: x[:, 0] * math.nan, draws(9), draws(9), torch.zeros(DIM))
    assert (math.isnan(found.log_ratio), found.error) == (True, math.inf)
