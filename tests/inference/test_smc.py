"""Sequential Monte Carlo against closed forms: evidence, moments, the weights of far modes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_sep.inference.smc.core import effective_sample_size, smc, systematic

LogDensity = Callable[[Tensor, float], Tensor]
START = 3.0  # std at t = 0


def normal(x: Tensor, mean: float | Tensor, std: float) -> Tensor:
    """Log density of rows with independent entries."""
    return torch.distributions.Normal(mean, std).log_prob(x).sum(-1)


def geometric(target: Callable[[Tensor], Tensor]) -> LogDensity:
    """Path from a broad normal to a target."""
    return lambda x, t: (1 - t) * normal(x, 0.0, START) + t * target(x)


def metropolis(density: LogDensity, generator: torch.Generator, steps: int = 5) -> LogDensity:
    """Random-walk moves, as wide as the density at t."""

    def move(x: Tensor, t: float) -> Tensor:
        width = START ** (1 - t)
        for _ in range(steps):
            proposed = x + width * torch.empty_like(x).normal_(generator=generator)
            ratio = density(proposed, t) - density(x, t)
            uniform = torch.rand(len(x), generator=generator, dtype=x.dtype)
            x = torch.where((uniform.log() < ratio)[:, None], proposed, x)
        return x

    return move


def start(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    return START * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def test_evidence_and_moments_of_a_gaussian_posterior() -> None:
    """Prior N(0, 9), four observations of noise std 1: all in closed form."""
    data = torch.tensor([[1.0, -0.5], [1.4, 0.3], [0.6, 0.1], [1.8, -0.7]], dtype=torch.float64)

    def density(x: Tensor, t: float) -> Tensor:
        return normal(x, 0.0, START) + t * sum(normal(x, row, 1.0) for row in data)

    variance = 1 / (1 / START**2 + len(data))
    mean = variance * data.sum(0)
    covariance = torch.eye(len(data)) + START**2
    law = torch.distributions.MultivariateNormal(
        torch.zeros(len(data), dtype=torch.float64), covariance.double()
    )
    evidence = float(law.log_prob(data.T).sum())
    estimates, means, squares = [], [], []
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        result = smc(
            start(256, 2, generator), density, metropolis(density, generator), generator=generator
        )
        weights = result.log_weight.exp()[:, None]
        estimates.append(result.log_evidence)
        means.append((weights * result.position).sum(0))
        squares.append((weights * (result.position - mean).square()).sum(0))
        assert float(result.log_weight.logsumexp(0)) == pytest.approx(0, abs=1e-12)
        assert result.levels[0] == 0
        assert result.levels[-1] == 1
        assert list(result.levels) == sorted(set(result.levels))
    for values, truth in (
        (torch.tensor(estimates, dtype=torch.float64)[:, None], torch.tensor([evidence])),
        (torch.stack(means), mean),
        (torch.stack(squares), torch.full((2,), variance, dtype=torch.float64)),
    ):
        error = values.std(0) / math.sqrt(len(values))  # of the mean over the runs
        assert bool(((values.mean(0) - truth).abs() < 4 * error + 1e-3).all())
    assert torch.tensor(estimates).std() < 0.3


def test_weights_of_far_modes_are_recovered_where_one_chain_sees_one() -> None:
    share, far = 0.2, 4.0

    def target(x: Tensor) -> Tensor:
        one, other = normal(x, -far, 0.3) + math.log(share), normal(x, far, 0.3)
        return torch.logaddexp(one, other + math.log(1 - share))

    density = geometric(target)
    found, evidence = [], []
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        move = metropolis(density, generator)
        result = smc(start(512, 1, generator), density, move, generator=generator)
        found.append(float(result.log_weight.exp()[result.position[:, 0] < 0].sum()))
        evidence.append(result.log_evidence)
    for values, truth in ((torch.tensor(found), share), (torch.tensor(evidence), 0.0)):
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - truth) < 4 * error + 1e-3
    assert torch.tensor(found).std() < 0.1

    generator = torch.Generator().manual_seed(0)
    chain = torch.full((1, 1), -far, dtype=torch.float64)
    move, visited = metropolis(density, generator, steps=1), []
    for _ in range(500):
        chain = move(chain, 1.0)
        visited.append(float(chain))
    assert max(visited) < 0  # never left the mode of a fifth of the mass


def test_seed_decides() -> None:
    def run() -> Tensor:
        generator = torch.Generator().manual_seed(3)
        density = geometric(lambda x: normal(x, 1.0, 0.5))
        move = metropolis(density, generator)
        return smc(start(32, 1, generator), density, move, generator=generator).position

    assert torch.equal(run(), run())


def test_levels_keep_the_share() -> None:
    """With one step allowed to lose less, there are more levels."""
    density = geometric(lambda x: normal(x, 0.0, 0.1))

    def count(share: float) -> int:
        generator = torch.Generator().manual_seed(0)
        move = metropolis(density, generator)
        result = smc(start(256, 2, generator), density, move, share, generator)
        return len(result.levels)

    assert count(0.99) > 2 * count(0.8)


def test_systematic_takes_each_as_often_as_its_weight() -> None:
    weight = torch.tensor([0.05, 0.5, 0.0, 0.45], dtype=torch.float64).repeat(25) / 25
    generator = torch.Generator().manual_seed(0)
    totals = torch.zeros(100)
    for _ in range(200):
        taken = torch.bincount(systematic(weight.log(), generator), minlength=100)
        assert bool(((taken - 100 * weight).abs() < 1).all())
        totals += taken
    assert bool((totals[2::4] == 0).all())
    expected = 200 * 100 * weight
    fraction = (100 * weight).remainder(1)
    error = (200 * fraction * (1 - fraction)).sqrt()  # Bernoulli in the fractional part
    assert bool(((totals - expected).abs() <= 4.5 * error + 1e-9).all())


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.full((8,), -math.log(8))) == pytest.approx(8)
    assert effective_sample_size(torch.tensor([0.0, -math.inf])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("position", "share", "target", "message"),
    [
        (torch.zeros(1, 2), 0.9, 0.0, "got 1 particles, expected at least 2"),
        (torch.zeros(4, 2), 1.0, 0.0, "share: got 1.0, expected above 0, below 1"),
        (torch.zeros(4, 2), 0.9, math.nan, "not finite at t = 0"),
    ],
)
def test_refuses(position: Tensor, share: float, target: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smc(position, lambda x, _: x.sum(-1) + target, lambda x, _: x, share)


def test_refuses_a_path_with_a_jump() -> None:
    generator = torch.Generator().manual_seed(0)

    def density(x: Tensor, t: float) -> Tensor:
        return normal(x, 0.0, START if t == 0 else 1e-4)

    with pytest.raises(ValueError, match="no step from t = 0 keeps"):
        smc(start(64, 4, generator), density, lambda x, _: x)
