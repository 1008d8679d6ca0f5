import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import MakePriors
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import Normal

from pyro_sep.inference.kernels.mala import MALA
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import NOISE_SCALE, Mixing, model
from pyro_sep.mixing.latent import (
    GAIN_RANGE,
    NOISE_SPREAD,
    LatentMixing,
    LogUniform,
    draw_mixing,
    known_mixing,
    start_mixing,
)

GAINS = torch.tensor([[0.3, 1.5], [0.8, 0.4], [2.0, 1.9]]).double()
NOISE = torch.tensor([0.01, 0.9, 0.2]).double()
LATENT = LatentMixing(GAINS, NOISE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_of_the_sources_counts_as_noise_of_the_mixture() -> None:
    own = 0.04 * GAINS.square().sum(-1)
    total = LATENT.scale_at(0.2)[:, 0] ** 2 + own
    assert torch.allclose(total[[0, 2]], 2 * own[[0, 2]])  # below the floor
    assert float(total[1]) == pytest.approx(0.81)
    assert torch.allclose(LATENT.scale_at(0.0)[:, 0], NOISE)


def test_every_row_of_the_batch_is_a_mixing_of_its_own() -> None:
    mixture, sources = normal(3, 5, seed=1), normal(3, 2, 8)
    conditioned = LATENT.condition_on(mixture, sources, 0.3)
    score = LATENT.score(mixture, sources, 0.3)
    value = LATENT.log_likelihood(mixture, sources, 0.3)
    for row in range(3):
        known = Mixing(tuple(GAINS[row].tolist()), float(NOISE[row]))
        assert torch.allclose(LATENT.mix(sources)[row], known.mix(sources[row]))
        expected = known.condition_on(mixture[row], sources[row], 0.3)
        assert torch.allclose(conditioned[row], expected)
        scale = float(LATENT.scale_at(0.3)[row])
        residual = known.residual(mixture[row], sources[row])
        assert torch.allclose(score[row], GAINS[row][:, None] * residual / scale**2)
        by_hand = Normal(0.0, scale).log_prob(residual[:5]).sum()
        assert float(value[row]) == pytest.approx(float(by_hand))
    some = LATENT.select(torch.tensor([2, 0]))
    assert torch.equal(some.gains, GAINS[[2, 0]])
    assert torch.equal(some.noise_scale, NOISE[[2, 0]])
    assert LATENT.mix(sources.float()).dtype == torch.float32


def test_an_exchange_of_sources_takes_unknown_gains_along(gaussian_priors: MakePriors) -> None:
    priors, sources = list(gaussian_priors(0.5, 0.2).values()), normal(3, 2, 5)
    order = torch.tensor([[1, 0], [0, 1], [1, 0]])
    for latent in (LATENT, LatentMixing(GAINS[:1].repeat(3, 1), NOISE, False)):
        target = AnnealedPosterior(normal(3, 5, seed=1), priors, latent)
        after, moved = target.reassign(sources, order)
        assert torch.allclose(after.mixing.mix(moved), latent.mix(sources))
        assert torch.equal(after.mixing.scale_at(0.1), latent.scale_at(0.1))
        # The odds of the exchange are those of the whole density.
        cross = target.cross_log_prior(sources, 0.1)
        odds = cross[:, 0, 1] + cross[:, 1, 0] - cross[:, 0, 0] - cross[:, 1, 1]
        gained = after.log_density(moved, 0.1) - target.log_density(sources, 0.1)
        assert torch.allclose(gained[[0, 2]], odds[[0, 2]])
        assert torch.equal(moved[1], sources[1])


def test_the_posterior_with_other_gains_is_that_of_those_gains(gaussian_priors: MakePriors) -> None:
    priors, sources = list(gaussian_priors(0.5, 0.2).values()), normal(3, 2, 5)
    target = AnnealedPosterior(normal(3, 5, seed=1), priors, LATENT)
    other = LatentMixing(GAINS.flip(0), NOISE.flip(0))
    after, evaluation = target.remix(other, sources, target.evaluate(sources, 0.2), 0.2)
    assert after.mixing is other
    for got, expected in zip(evaluation, after.evaluate(sources, 0.2), strict=True):
        assert torch.allclose(got, expected)
    leaf = sources.clone().requires_grad_()
    mixed = other.log_likelihood(target.mixture, leaf, 0.2).sum()
    prior = sum(p.frame(5).condition(0.2).log_prob(leaf[:, k]).sum() for k, p in enumerate(priors))
    (gradient,) = torch.autograd.grad(mixed + prior, leaf)
    assert torch.allclose(evaluation.gradient, gradient)


def test_the_prior_is_log_uniform_and_half_normal() -> None:
    low, high = GAIN_RANGE
    law = LogUniform(torch.tensor([low]), torch.tensor([high]))
    pyro.set_rng_seed(0)
    drawn = law.sample((20_000,)).log()
    middle, width = math.log(low * high) / 2, math.log(high / low)
    assert abs(float(drawn.mean()) - middle) < 4.5 * width / math.sqrt(12 * 20_000)
    assert float(drawn.min()) >= math.log(low) - 1e-6
    assert float(law.log_prob(torch.tensor([0.5]))) == pytest.approx(-math.log(0.5 * width))
    expected = -GAINS.log().sum(-1) - (NOISE / NOISE_SPREAD) ** 2 / 2
    assert torch.allclose(LATENT.log_prior(), expected)
    outside = LatentMixing(torch.tensor([[0.1, 1.0]]), torch.ones(1))
    assert outside.log_prior().item() == -math.inf
    assert LatentMixing(GAINS, NOISE, False, False).log_prior().abs().max() == 0


def test_lanes_start_with_gains_of_the_power_of_their_mixture(gaussian_priors: MakePriors) -> None:
    priors, mixture = gaussian_priors(0.5, 0.2), 0.3 * normal(3, 50)
    latent = start_mixing(mixture, priors, Mixing.mean(2), True, True)
    power = mixture.square().mean(-1)
    assert torch.allclose((latent.gains**2).sum(-1), power / 0.145)
    assert (latent.noise_scale == NOISE_SPREAD).all()
    known = start_mixing(mixture, priors, Mixing((0.4, -3.0), 0.2), False, True)
    assert torch.equal(known.gains, torch.tensor([[0.4, -3.0]] * 3, dtype=torch.float64))
    assert (known.noise_scale == NOISE_SPREAD).all()


SIGMA = 1e-3  # what the priors of a Pyro model without a level have
PAIR = torch.tensor([0.9, -0.4])


def assert_mean(drawn: Tensor, expected: Tensor) -> None:
    """A chain has this mean, by its own error."""
    values = drawn.reshape(1, -1, 1)
    error = float(values.std() / effective_sample_size(values).sqrt())
    assert error < 0.2 * float(values.std())
    assert abs(float(values.mean() - expected)) < 4.5 * error


@pytest.mark.parametrize(
    ("kernel", "count"), [(MALA, 2_000), pytest.param(NUTS, 300, marks=pytest.mark.slow)]
)
def test_mcmc_draws_from_the_law_on_a_grid(
    gaussian_priors: MakePriors, kernel: Any, count: int
) -> None:
    def draw(*infer: Any, level: float, sigma: float | None) -> Any:
        priors = gaussian_priors(level)
        pyro.set_rng_seed(1)
        joint = kernel(lambda: model(PAIR, priors, draw_mixing(priors, *infer), sigma))
        mcmc = MCMC(joint, num_samples=count, warmup_steps=100, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples()

    # An audio sample is normal; of its variance the source has a^2 level^2.
    low, high = GAIN_RANGE
    a = low + (high - low) * (torch.arange(2_000) + 0.5) / 2_000
    scale = (a**2 * (0.25 + 2 * 0.09)).sqrt()[:, None]
    weights = (Normal(0.0, scale).log_prob(PAIR).sum(-1) - a.log()).softmax(0)
    drawn = draw("infer", 0.01, level=0.5, sigma=0.3)
    assert_mean(drawn["gains"], weights @ a)
    gamma = (torch.arange(2_000) + 0.5) / 2_000
    scale = (0.25 * (0.01 + SIGMA**2) + gamma**2).sqrt()[:, None]
    logs = Normal(0.0, scale).log_prob(PAIR).sum(-1) - (gamma / NOISE_SPREAD) ** 2 / 2
    drawn = draw((0.5,), "infer", level=0.1, sigma=None)
    assert_mean(drawn["noise_scale"], logs.softmax(0) @ gamma)


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_the_model_has_the_density_of_the_posterior(
    gaussian_priors: MakePriors, sigma: float | None
) -> None:
    priors, mixture, sources = gaussian_priors(0.5, 0.2), normal(6, seed=1), normal(2, 6)

    def joint() -> None:
        model(mixture, priors, draw_mixing(priors, "infer", "infer"), sigma)

    values = dict(zip(priors, sources, strict=True))
    values |= {"gains": GAINS[1], "noise_scale": NOISE[1]}
    trace = poutine.trace(poutine.condition(joint, values)).get_trace()
    assert list(trace.observation_nodes) == ["gains", "noise_scale", *priors, "mixture"]
    latent = LatentMixing(GAINS[1:2], NOISE[1:2])
    target = AnnealedPosterior(mixture[None], list(priors.values()), latent)
    expected = float(target.log_density(sources[None], sigma or SIGMA))
    if sigma is None:
        scales = [float(latent.scale_at(s)) for s in (0.0, SIGMA)]
        residual = latent.residual(mixture[None], sources[None])
        zero, own = (Normal(0.0, s).log_prob(residual).sum() for s in scales)
        expected += float(zero - own)
    width = math.log(GAIN_RANGE[1] / GAIN_RANGE[0])
    expected -= 2 * math.log(width) + math.log(NOISE_SPREAD * math.sqrt(math.pi / 2))
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-6)


def test_what_is_plausible_has_no_site(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.2)
    trace = poutine.trace(draw_mixing).get_trace(priors, (0.4, 1.3), "infer")
    assert list(trace.stochastic_nodes) == ["noise_scale"]
    trace = poutine.trace(draw_mixing).get_trace(priors, "infer", 0.2)
    assert list(trace.stochastic_nodes) == ["gains"]
    assert float(trace.nodes["_RETURN"]["value"].noise_scale) == pytest.approx(0.2)


def test_known_numbers(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.2)
    assert known_mixing(priors, None, "infer") == Mixing((0.5, 0.5), NOISE_SCALE)
    assert known_mixing(priors, np.array([0.5, 2.0]), 0.3) == Mixing((0.5, 2.0), 0.3)
    for gains, noise_scale, match in (
        ("guess", 0.1, "gains: got 'guess', expected numbers or 'infer'"),
        (None, "guess", "noise_scale: got 'guess', expected"),
        ((1.0,), 0.1, "gains: got 1 for 2 priors"),
    ):
        with pytest.raises(ValueError, match=match):
            known_mixing(priors, gains, noise_scale)  # type: ignore[arg-type]
