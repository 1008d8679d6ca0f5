"""Moves of jumps, on sources that take one of two values at every instant."""

import math
from itertools import product

import pytest
import scipy.stats
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep import load_priors, separate
from pyro_sep.data.toy import toy_mixture
from pyro_sep.diagnostics import mixture_residual
from pyro_sep.inference.jumps import instants, move_jumps, propose
from pyro_sep.mixing import Mixing
from pyro_sep.posterior import AnnealedPosterior

SIGMA, TIME, LANES = 0.05, 5, 40_000
GAINS = (0.5, 0.8)
SHARE = 0.4  # of a source in the mixture, up or down
UP = (0.6, 0.35)  # probability of it


class Switch(GaussianPrior):
    """High with probability ``up`` and else low, at every instant by itself; plus the noise."""

    def __init__(self, value: float, up: float, time: int = TIME, sigma: float = SIGMA) -> None:
        super().__init__("switch", value, time, sigma)
        self.value, self.up = value, up

    def condition(self, sigma: float) -> "Switch":
        return Switch(self.value, self.up, self.event_shape[0], sigma)

    def frame(self, time: int) -> "Switch":
        return Switch(self.value, self.up, time, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        terms = [
            math.log(weight) - ((value - center) / self.sigma) ** 2 / 2
            for weight, center in ((self.up, self.value), (1 - self.up, -self.value))
        ]
        return torch.stack(terms).logsumexp(0).sum(-1)


def target(lanes: int = LANES) -> AnnealedPosterior:
    """The mixture is silent: one source is high where the other one is low."""
    priors = [Switch(SHARE / gain, up) for gain, up in zip(GAINS, UP, strict=True)]
    silence = torch.zeros(lanes, TIME, dtype=torch.float64)
    return AnnealedPosterior(silence, priors, Mixing(GAINS), exact=True)


def posterior_draws(lanes: int, seed: int) -> tuple[Tensor, float]:
    """Draws of the exact posterior, and the probability that the first source is high."""
    generator = torch.Generator().manual_seed(seed)
    high = UP[0] * (1 - UP[1]) / (UP[0] * (1 - UP[1]) + (1 - UP[0]) * UP[1])
    state = torch.rand(lanes, TIME, generator=generator, dtype=torch.float64) < high
    center = SHARE / GAINS[0] * (2.0 * state - 1)
    # x_2 = -a_1 x_1 / a_2, so that both densities are of x_1.
    std = SIGMA / math.sqrt(1 + (GAINS[0] / GAINS[1]) ** 2)
    noise = torch.randn(lanes, TIME, generator=generator, dtype=torch.float64)
    first = center + std * noise
    return torch.stack([first, -GAINS[0] / GAINS[1] * first], 1), high


def pattern_p_value(position: Tensor, high: float) -> float:
    """Of the counts of all patterns of high and low."""
    powers = 2 ** torch.arange(TIME)
    counts = torch.bincount(((position[:, 0] > 0) * powers).sum(1), minlength=2**TIME)
    law = [
        math.prod(high if bit else 1 - high for bit in reversed(bits))
        for bits in product((0, 1), repeat=TIME)
    ]
    expected = len(position) * torch.tensor(law, dtype=torch.float64)
    assert expected.min() > 50
    return float(scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue)


def test_the_move_leaves_the_posterior_as_it_is() -> None:
    start, high = posterior_draws(LANES, 0)
    assert pattern_p_value(start, high) > 1e-4
    law, generator, position = target(), torch.Generator().manual_seed(1), start
    evaluation = law.evaluate(start, SIGMA)
    for _ in range(4):
        position, evaluation, _ = move_jumps(law, position, evaluation, SIGMA, generator)
    assert pattern_p_value(position, high) > 1e-4
    flipped = ((position[:, 0] > 0) != (start[:, 0] > 0)).any(1).double().mean()
    assert flipped > 0.2
    away = position[:, 0] - SHARE / GAINS[0] * position[:, 0].sign()
    std = SIGMA / math.sqrt(1 + (GAINS[0] / GAINS[1]) ** 2)
    error = math.sqrt(2 / away.numel())  # relative, of a variance
    assert float(away.square().mean()) / std**2 == pytest.approx(1, abs=4.5 * error)


def test_a_wrong_order_is_left() -> None:
    truth = torch.tensor([1.0, 1, -1, -1, -1], dtype=torch.float64)
    wrong = torch.tensor([1.0, 1, 1, -1, -1], dtype=torch.float64)
    value = SHARE / GAINS[0]
    priors = [Switch(value, 0.5), Switch(SHARE / GAINS[1], 0.5)]

    class Knows(Switch):
        def log_prob(self, x: Tensor) -> Tensor:
            return -((x - value * truth) ** 2).sum(-1) / (2 * 0.2**2)

        def frame(self, time: int) -> "Switch":
            return self

        def condition(self, sigma: float) -> "Switch":
            return self

    law = AnnealedPosterior(
        torch.zeros(200, TIME, dtype=torch.float64),
        [Knows(value, 0.5), priors[1]],
        Mixing(GAINS),
        exact=True,
    )
    first = (value * wrong).expand(200, -1)
    position = torch.stack([first, -GAINS[0] / GAINS[1] * first], 1)
    evaluation, generator = law.evaluate(position, SIGMA), torch.Generator().manual_seed(0)
    for _ in range(60):
        position, evaluation, _ = move_jumps(law, position, evaluation, SIGMA, generator)
    right = (position[:, 0].sign() == truth).all(1).double().mean()
    assert right > 0.95


def test_the_mixture_stays_and_the_evaluation_follows() -> None:
    start, _ = posterior_draws(500, 3)
    law = target(500)
    before = law.evaluate(start, SIGMA)
    position, after, evaluated = move_jumps(
        law, start, before, SIGMA, torch.Generator().manual_seed(0)
    )
    mixed = torch.einsum("k,lkt->lt", torch.tensor(GAINS, dtype=torch.float64), position)
    torch.testing.assert_close(mixed, torch.zeros_like(mixed), atol=1e-12, rtol=0)
    for found, expected in zip(after, law.evaluate(position, SIGMA), strict=True):
        torch.testing.assert_close(found, expected)
    changed = int((position != start).flatten(1).any(1).sum())
    tried = int(instants(start, SIGMA).flatten(1).any(1).sum())
    assert 0 < changed < tried
    assert evaluated == tried + changed


def test_an_instant_is_where_both_jump() -> None:
    first = torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0])
    second = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    found = instants(torch.stack([first, second])[None], 0.1)
    assert found.shape == (1, 2, 2, 6)
    assert not found[0].diagonal(dim1=0, dim2=1).any()
    assert found[0, 0, 1].nonzero().flatten().tolist() == [1]  # the sample at index 2
    assert torch.equal(found[0, 0, 1], found[0, 1, 0])


def test_sources_that_do_not_jump_cost_nothing() -> None:
    smooth = torch.linspace(0, 0.1, TIME, dtype=torch.float64).expand(3, 2, TIME)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    law = target(3)
    evaluation = law.evaluate(smooth, SIGMA)
    position, after, evaluated = move_jumps(law, smooth, evaluation, SIGMA, generator)
    assert evaluated == 0
    assert position is smooth
    assert after is evaluation
    assert torch.equal(generator.get_state(), state)
    mixed = torch.cat([smooth, posterior_draws(20, 0)[0]])
    lanes = propose(mixed, torch.tensor(GAINS)[:, None].double(), SIGMA, generator).lanes
    assert lanes.min() >= 3


def test_a_separation_makes_the_moves_it_is_told_to() -> None:
    names = ("square", "saw")
    priors = {name: load_priors("toy/oracle")[name] for name in names}
    mixture = toy_mixture("test", 0, names, 256).mixture
    budget = {
        "levels": 6,
        "steps": 8,
        "chains": 1,
        "explorers": 1,
        "draws": 2,
        "constraint": "exact",
    }
    without = separate(mixture, priors, **budget)
    told = separate(mixture, priors, jumps_every=2, **budget)
    assert told.trace.attrs["gradients"] > without.trace.attrs["gradients"]
    assert mixture_residual(told.trace) < -60
    with pytest.raises(ValueError, match="jumps_every: got -1, expected 0 or more"):
        separate(mixture, priors, jumps_every=-1)
