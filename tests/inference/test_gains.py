import math

import pytest
import torch
from conftest import MakePriors
from torch import Tensor
from torch.distributions import Normal

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation, StepInfo, UnderdampedState
from pyro_sep.inference.steps.gains import JointState, rescale, update
from pyro_sep.mixing.latent import GAIN_RANGE, NOISE_SPREAD, LatentMixing

BATCH, TIME, SIGMA, LEVEL = 2_000, 6, 0.3, 0.6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


SOURCES = 0.6 * normal(2, TIME, seed=4)
TRUTH = torch.tensor([0.4, 1.2]).double()
INSIDE = TRUTH @ SOURCES + 0.1 * normal(TIME, seed=5)
AT_THE_EDGES = torch.tensor([0.05, 2.6]).double() @ SOURCES  # least squares is outside the range


def log_target(mixture: Tensor, gains: Tensor, noise: Tensor) -> Tensor:
    """Gains and noise given SOURCES, by hand; everything of the shape of the grid."""
    own = SIGMA**2 * gains.square().sum(-1)
    scale = (torch.maximum(noise**2, 2 * own) - own).sqrt()[..., None]
    likelihood = Normal(0.0, scale).log_prob(mixture - gains @ SOURCES).sum(-1)
    return likelihood - gains.log().sum(-1) - (noise / NOISE_SPREAD) ** 2 / 2


def moments(values: Tensor, weights: Tensor) -> Tensor:
    """Mean and mean square of weighted values ``(point, ...)``."""
    return torch.stack([weights @ values, weights @ values.square()])


def assert_moments(drawn: Tensor, expected: Tensor) -> None:
    """Independent chains have these moments, by their own errors."""
    powers = torch.stack([drawn, drawn.square()])
    error = powers.std(1) / math.sqrt(drawn.shape[0])
    assert ((powers.mean(1) - expected).abs() / error).max() < 4.5


def unknown(infer_gains: bool, infer_noise: bool, noise_scale: float) -> LatentMixing:
    low, high = GAIN_RANGE
    gains = TRUTH.repeat(BATCH, 1)
    if infer_gains:
        gains = low + (high - low) * torch.rand(BATCH, 2, generator=generator(9)).double()
    noise = torch.full((BATCH,), noise_scale, dtype=torch.float64)
    return LatentMixing(gains, noise, infer_gains, infer_noise)


def run(mixing: LatentMixing, mixture: Tensor, steps: int) -> LatentMixing:
    noise = generator(1)
    for _ in range(steps):
        mixing = update(
            mixing, mixture.expand(BATCH, -1), SOURCES.expand(BATCH, -1, -1), SIGMA, noise
        )
    return mixing


@pytest.mark.parametrize("mixture", [INSIDE, AT_THE_EDGES], ids=["inside", "edges"])
@pytest.mark.parametrize("noise", [0.01, 0.9])
def test_gains_follow_the_law_on_a_grid(mixture: Tensor, noise: float) -> None:
    low, high = GAIN_RANGE
    axis = low + (high - low) * (torch.arange(400).double() + 0.5) / 400
    grid = torch.cartesian_prod(axis, axis)
    weights = log_target(mixture, grid, torch.tensor(noise)).softmax(0)
    drawn = run(unknown(True, False, noise), mixture, 12)
    assert (drawn.gains > low).all()
    assert (drawn.gains < high).all()
    assert (drawn.noise_scale == noise).all()
    assert_moments(drawn.gains, moments(grid, weights))
    both = drawn.gains.prod(-1)
    error = float(both.std()) / math.sqrt(BATCH)
    assert abs(float(both.mean() - weights @ grid.prod(-1))) < 4.5 * error


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_the_noise_follows_the_law_on_a_grid(scale: float) -> None:
    mixture = TRUTH @ SOURCES + scale * normal(TIME, seed=6)
    axis = (torch.arange(4_000).double() + 0.5) / 4_000
    logs = log_target(mixture, TRUTH.expand(4_000, 2), axis)
    drawn = run(unknown(False, True, 0.5), mixture, 25)
    assert torch.equal(drawn.gains, TRUTH.expand(BATCH, -1))
    assert_moments(drawn.noise_scale, moments(axis, logs.softmax(0)))


def test_both_follow_the_law_on_a_grid() -> None:
    low, high = GAIN_RANGE
    axis = low + (high - low) * (torch.arange(60).double() + 0.5) / 60
    noise = (torch.arange(100).double() + 0.5) / 100 * 0.8
    grid = torch.cartesian_prod(axis, axis, noise)
    weights = log_target(INSIDE, grid[:, :2], grid[:, 2]).softmax(0)
    drawn = run(unknown(True, True, 0.5), INSIDE, 15)
    values = torch.cat([drawn.gains, drawn.noise_scale[:, None]], 1)
    assert_moments(values, moments(grid, weights))


def test_chains_are_updated_on_their_own_and_broken_ones_stay() -> None:
    mixing = unknown(True, True, 0.5).select(torch.arange(50))
    sources = SOURCES.repeat(50, 1, 1)
    sources[7] = math.nan
    after = update(mixing, INSIDE.repeat(50, 1), sources, SIGMA, generator(2))
    same = (after.gains == mixing.gains).all(1) & (after.noise_scale == mixing.noise_scale)
    assert same.nonzero().tolist() == [[7]]
    assert after.gains.unique(dim=0).shape == (50, 2)


def rescaled(state: JointState, contributions: Tensor, seed: int) -> tuple[JointState, StepInfo]:
    def evaluate(proposed: AnnealedPosterior, position: Tensor) -> Evaluation:
        return proposed.evaluate(position, SIGMA)

    return rescale(state, evaluate, contributions, generator(seed))


def test_trading_gains_for_amplitudes_leaves_the_posterior(gaussian_priors: MakePriors) -> None:
    # Gain and source of one audio sample, on a grid; draws of it stay draws of it.
    priors = list(gaussian_priors(LEVEL).values())
    low, high = GAIN_RANGE
    gains = low + (high - low) * (torch.arange(500).double() + 0.5) / 500
    values = -4 + 8 * (torch.arange(800).double() + 0.5) / 800
    a, x = torch.cartesian_prod(gains, values).T
    mixture = torch.tensor([0.7]).double()

    def posterior(a: Tensor) -> AnnealedPosterior:
        noise = torch.full_like(a, 1e-3)
        mixing = LatentMixing(a[:, None], noise, True, False)
        return AnnealedPosterior(mixture.expand(len(a), 1), priors, mixing)

    weights = posterior(a).log_density(x[:, None, None], SIGMA).softmax(0)
    chosen = torch.multinomial(weights, BATCH, True, generator=generator(3))
    target, position = posterior(a[chosen]), x[chosen][:, None, None]
    state = UnderdampedState(position, position, target.evaluate(position, SIGMA))
    contributions = torch.full_like(position, 0.5)
    for seed in range(40):
        (target, state), _ = rescaled(JointState(target, state), contributions, seed)
    assert isinstance(target.mixing, LatentMixing)
    drawn = torch.cat([target.mixing.gains, state.position[:, 0]], 1)
    assert_moments(drawn, moments(torch.stack([a, x], 1), weights))
    share = drawn.prod(1)
    error = float(share.std()) / math.sqrt(BATCH)
    assert abs(float(share.mean() - weights @ (a * x))) < 4.5 * error
    assert torch.equal(state.velocity, position)
    moved = (target.mixing.gains[:, 0] / a[chosen]).log()
    assert float(moved.std()) > 0.2
    # What goes with the state is its evaluation there.
    for kept, fresh in zip(state.evaluation, target.evaluate(state.position, SIGMA), strict=True):
        assert torch.allclose(kept, fresh)


def test_a_trade_keeps_shares_and_noise(gaussian_priors: MakePriors) -> None:
    priors = list(gaussian_priors(LEVEL, LEVEL).values())
    mixing = unknown(True, False, 1e-3).select(torch.arange(200))
    target = AnnealedPosterior(INSIDE.repeat(200, 1), priors, mixing)
    contributions = mixing.weights(SOURCES) * SOURCES
    noise = SIGMA * normal(200, 2, TIME, seed=8)
    position = SOURCES + noise
    state = UnderdampedState(position, noise, target.evaluate(position, SIGMA))
    (after, moved), info = rescaled(JointState(target, state), contributions, 0)
    clean = contributions / after.mixing.weights(contributions)
    assert torch.allclose(moved.position, clean + noise, atol=1e-12)
    stayed = (after.mixing.weights(contributions) == mixing.weights(contributions)).all(1)[:, 0]
    assert 0.02 < float(stayed.double().mean()) < 0.98
    assert torch.equal(moved.position[stayed], position[stayed])
    error = 0.5 / math.sqrt(len(stayed))
    taken = 1 - float(stayed.double().mean())
    assert taken == pytest.approx(float(info.acceptance_rate.mean()), abs=4.5 * error)
