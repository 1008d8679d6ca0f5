import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import MakePriors
from torch import Tensor

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation, UnderdampedState
from pyro_sep.inference.steps.underdamped import init, underdamped_step
from pyro_sep.mixing.known import Mixing

GaussianLaw = Callable[..., tuple[Tensor, Tensor]]
MEAN = torch.tensor([2.0, -1.0, 0.5]).double()
CURVATURES = torch.tensor([0.1, 0.3, 1.0]).double()  # of the largest
GAINS = (0.3, 1.5, 0.7, 1.1, 0.4, 0.9)
LEVELS = (0.2, 0.5, 0.3, 0.1, 0.6, 0.4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """Log density of independent normals with the given curvatures, that counts its calls."""

    def __init__(self, curvatures: Tensor, mean: Tensor) -> None:
        self.curvatures, self.mean, self.calls = curvatures, mean, 0

    def __call__(self, position: Tensor) -> Evaluation:
        self.calls += 1
        gradient = -self.curvatures * (position - self.mean)
        log_density = 0.5 * (gradient * (position - self.mean)).sum(-1)
        return Evaluation(log_density, gradient, log_density[:, None])


def assert_white(unit: Tensor, count: float) -> None:
    """Rows are standard normal and independent, as far as ``count`` independent draws can tell."""
    assert (unit.mean(1).abs() < 4.5 / math.sqrt(count)).all(), unit.mean(1)
    covariance = unit @ unit.T / unit.shape[1]
    error = torch.eye(len(unit)).double() - covariance
    bound = 4.5 * (torch.ones_like(error) + torch.eye(len(unit)).double()).sqrt()
    assert (error.abs() < bound / math.sqrt(count)).all(), error


@pytest.mark.parametrize("persistence", [0.0, 0.9, 0.95])
@pytest.mark.parametrize("bound_share", [0.2, 0.6, 0.93])
def test_the_law_of_a_gaussian_is_exact_at_any_stable_step(
    bound_share: float, persistence: float
) -> None:
    # h^2 lambda is a share of its bound 4.
    batch, curvatures = 20_000, 400 * CURVATURES
    step_size = math.sqrt(4 * bound_share / 400)
    target, noise = Gaussian(curvatures, MEAN), generator()
    state = init(torch.zeros(batch, 3).double(), target, noise)
    for _ in range(400):  # the start is forgotten as persistence^(steps / 2) = e^-10, or faster
        state, _ = underdamped_step(state, target, step_size, persistence, noise)
    assert_white(((state.position - MEAN) * curvatures.sqrt()).T, batch)
    # The velocity's law is not: BAOAB leaves it a variance of 1 - h^2 lambda / 4.
    variance = 1 - step_size**2 * curvatures / 4
    assert_white((state.velocity / variance.sqrt()).T, batch)
    unit = (state.position - MEAN) * curvatures.sqrt()
    assert ((unit * state.velocity).mean(0).abs() < 4.5 / math.sqrt(batch)).all()


def test_beyond_the_bound_it_diverges() -> None:
    target, noise = Gaussian(torch.ones(1).double(), torch.zeros(1).double()), generator()
    state = init(torch.zeros(10, 1).double(), target, noise)
    for _ in range(200):
        state, _ = underdamped_step(state, target, 2.05, 0.9, noise)
    assert (state.position.abs() > 1e3).all()


@pytest.mark.parametrize("persistence", [0.3, 0.9])
def test_it_forgets_at_the_rate_of_the_integrator(persistence: float) -> None:
    """Mean of position and velocity after one step, and the noise that a step adds."""
    step_size, curvature, batch = 0.8, 1.7, 100_000
    target = Gaussian(torch.tensor([curvature]).double(), torch.zeros(1).double())
    start = torch.full((batch, 1), 1.5).double()
    state = UnderdampedState(start, torch.full_like(start, -0.4), target(start))
    after, _ = underdamped_step(state, target, step_size, persistence, generator())
    half = -0.4 - step_size / 2 * curvature * 1.5
    position = 1.5 + step_size / 2 * half * (1 + persistence)
    velocity = persistence * half - step_size / 2 * curvature * position
    noise = math.sqrt(1 - persistence**2)
    spread = (step_size / 2 * noise, noise * (1 - step_size**2 * curvature / 4))
    found = (after.position, after.velocity)
    for value, mean, std in zip(found, (position, velocity), spread, strict=True):
        assert abs(float(value.mean()) - mean) < 4.5 * std / math.sqrt(batch)
        assert abs(float(value.std()) / std - 1) < 4.5 / math.sqrt(2 * batch)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_bound_of_a_mixture_holds_for_any_gains(count: int) -> None:
    """Priors of curvature 1 / sigma^2 at most give a posterior of 2 / sigma^2 at most."""
    for gains in (GAINS[:count], (1.0,) * count, (1 / count,) * count, (1.5,) * count):
        for sigma in (3.0, 0.3, 0.02):
            mixing = Mixing(gains, 1e-3)
            column = torch.tensor(gains).double()
            likelihood = torch.outer(column, column) / mixing.scale_at(sigma) ** 2
            hessian = torch.eye(count).double() / sigma**2 + likelihood
            largest = float(torch.linalg.eigvalsh(hessian)[-1])
            energy = sum(gain**2 for gain in gains)
            curvature = 1 / sigma**2 + energy / (sigma**2 * energy + 1e-6)
            assert largest == pytest.approx(curvature, rel=1e-6)
            assert (math.sqrt(2) * sigma) ** 2 * largest < 4
            assert (0.8 * sigma) ** 2 * largest < 1.28


@pytest.mark.parametrize("persistence", [0.9, 0.95])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_posterior_of_a_mixture_is_exact(
    gaussian_priors: MakePriors, gaussian_posterior: GaussianLaw, count: int, persistence: float
) -> None:
    sigma, batch, time = 0.1, 128, 64
    mixing, noise = Mixing(GAINS[:count], 0.01), generator()
    priors = list(gaussian_priors(*LEVELS[:count]).values())
    mixture = torch.randn(batch, time, generator=noise, dtype=torch.float64)
    target = AnnealedPosterior(mixture, priors, mixing)
    evaluate = partial(target.evaluate, sigma=sigma)
    start = torch.randn(batch, count, time, generator=noise, dtype=torch.float64)
    state = init(start, evaluate, noise)
    pull, covariance = gaussian_posterior(LEVELS[:count], mixing, sigma)
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
    draws = []
    for step in range(1, 701):
        state, _ = underdamped_step(state, evaluate, 0.8 * sigma, persistence, noise)
        if step in (500, 700):
            error = state.position - pull[:, None] * mixture[:, None]
            draws.append((whiten @ error).movedim(1, 0).flatten(1))
    assert_white(torch.cat(draws, 1), 2 * batch * time)


def test_a_step_takes_one_gradient() -> None:
    target, noise = Gaussian(CURVATURES, MEAN), generator()
    state = init(torch.zeros(4, 3).double(), target, noise)
    assert target.calls == 1
    for _ in range(7):
        state, _ = underdamped_step(state, target, 0.5, 0.9, noise)
    assert target.calls == 8
    for kept, fresh in zip(state.evaluation, target(state.position), strict=True):
        assert torch.equal(kept, fresh)


def test_a_velocity_starts_standard_normal() -> None:
    target, start = Gaussian(CURVATURES, MEAN), torch.full((20_000, 3), 7.0).double()
    state = init(start, target, generator())
    assert torch.equal(state.position, start)
    assert_white(state.velocity.T, len(start))


def test_the_generator_decides() -> None:
    def walk(noise: torch.Generator | None) -> UnderdampedState:
        target = Gaussian(CURVATURES, MEAN)
        state = init(torch.zeros(4, 3).double(), target, noise)
        for _ in range(3):
            state, _ = underdamped_step(state, target, 0.5, 0.9, noise)
        return state

    first = walk(generator())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again, other = walk(generator()), walk(generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.position, again.position)
    assert torch.equal(first.velocity, again.velocity)
    assert not torch.equal(first.position, other.position)
    free = walk(None)
    torch.manual_seed(99)
    assert torch.equal(walk(None).position, free.position)
