"""The adjusted step against laws that an unadjusted one misses."""

import math

import pytest
import torch
from torch import Tensor

from pyro_sep.inference.state import Evaluation, UnderdampedState
from pyro_sep.inference.steps.ghmc import adjusted_step
from pyro_sep.inference.steps.underdamped import init, underdamped_step

BATCH = 20_000
# Of the density exp(-z^4 / 4): E z^2 = 2 Gamma(3/4) / Gamma(1/4), and E z^4 = 1.
SECOND = 2 * math.gamma(0.75) / math.gamma(0.25)


def quartic(z: Tensor) -> Evaluation:
    """Log density -z^4 / 4, whose curvature has no bound."""
    log_density = -(z**4).sum(1) / 4
    return Evaluation(log_density, -(z**3), log_density[:, None])


def start(dimension: int = 2, seed: int = 0) -> tuple[UnderdampedState, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    position = 0.5 * torch.randn(BATCH, dimension, generator=generator, dtype=torch.float64)
    return init(position, quartic, generator), generator


def standard_error(power: int) -> float:
    """Of the mean of z^power over all chains and both coordinates, under the target."""
    moment = {2: SECOND, 4: 1.0, 8: 5.0}  # E z^(k + 4) = (k + 1) E z^k
    return math.sqrt((moment[2 * power] - moment[power] ** 2) / (2 * BATCH))


@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("step_size", [0.4, 0.8])
def test_moments_are_those_of_the_target(persistence: float, step_size: float) -> None:
    state, generator = start()
    rates = []
    for _ in range(int(80 / step_size)):
        state, info = adjusted_step(state, quartic, step_size, persistence, generator)
        rates.append(info.acceptance_rate.mean())
    assert 0.3 < float(torch.stack(rates).mean()) <= 1
    for power, moment in ((2, SECOND), (4, 1.0)):
        error = float((state.position**power).mean()) - moment
        assert abs(error) < 4.5 * standard_error(power)
    assert float(state.velocity.square().mean()) == pytest.approx(1, abs=4.5 / math.sqrt(BATCH))


def test_the_unadjusted_step_misses_them() -> None:
    state, generator = start()
    for _ in range(60):
        state, _ = underdamped_step(state, quartic, 1.0, 0.5, generator)
    error = float(state.position.square().mean()) - SECOND
    assert not abs(error) < 4.5 * standard_error(2)


def test_a_refused_step_turns_the_velocity_back() -> None:
    state, generator = start()
    velocity = state.velocity
    after, info = adjusted_step(state, quartic, 1.9, 1.0, generator)  # nothing is refreshed
    stayed = (after.position == state.position).all(1)
    assert 0.05 < float(stayed.double().mean()) < 0.9
    assert torch.equal(after.velocity[stayed], -velocity[stayed])
    for kept, old in zip(after.evaluation, state.evaluation, strict=True):
        assert torch.equal(kept[stayed], old[stayed])
    taken = ~stayed
    for kept, new in zip(after.evaluation, quartic(after.position), strict=True):
        assert torch.equal(kept[taken], new[taken])
    share = float(taken.double().mean())
    assert share == pytest.approx(
        float(info.acceptance_rate.mean()), abs=4.5 * 0.5 / math.sqrt(BATCH)
    )


def test_a_leapfrog_step_and_its_way_back_have_odds_of_one() -> None:
    """The ratio there times the ratio back is 1: detailed balance, up to the velocity's turn."""
    state, generator = start()
    after, there = adjusted_step(state, quartic, 0.8, 1.0, generator)
    moved = (after.position != state.position).any(1)
    turned = UnderdampedState(after.position, -after.velocity, after.evaluation)
    _, back = adjusted_step(turned, quartic, 0.8, 1.0, generator)
    energies = [s.velocity.square().sum(1) / 2 - s.evaluation.log_density for s in (state, after)]
    odds = (energies[0] - energies[1]).exp()
    assert torch.allclose(
        there.acceptance_rate[moved] / back.acceptance_rate[moved], odds[moved], rtol=1e-9
    )


def test_nowhere_finite_is_refused() -> None:
    def cliff(z: Tensor) -> Evaluation:
        log_density = torch.where(z[:, 0] > 0, torch.nan, -z.square().sum(1) / 2)
        return Evaluation(log_density, -z, log_density[:, None])

    generator = torch.Generator().manual_seed(0)
    state = init(-torch.ones(500, 1).double(), cliff, generator)
    for _ in range(50):
        state, _ = adjusted_step(state, cliff, 1.0, 0.5, generator)
    assert bool((state.position <= 0).all())
    assert bool(state.evaluation.log_density.isfinite().all())


def test_noise_is_projected() -> None:
    state, generator = start()
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def along(z: Tensor) -> Evaluation:
        return quartic(z)._replace(gradient=quartic(z).gradient * first)

    state = init(state.position, along, generator, lambda noise: noise * first)
    after, _ = adjusted_step(state, along, 0.5, 0.5, generator, lambda noise: noise * first)
    assert torch.equal(after.position[:, 1], state.position[:, 1])
    assert not torch.equal(after.position[:, 0], state.position[:, 0])
