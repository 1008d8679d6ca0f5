"""Particles down the ladder, with Gaussian priors: evidence and posterior in closed form."""

import math

import pytest
import torch
from conftest import MakePriors
from torch.distributions import MultivariateNormal, Normal

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.annealed import BRIDGE, _Path, anneal_particles
from pyro_sep.mixing.known import Mixing

GAINS, LEVELS, TIME = (0.6, -0.9), (0.8, 0.3), 6
SIGMA_MAX, SIGMA_MIN = 3.0, 0.1
MIXING = Mixing(GAINS, 0.05)
PARTICLES, RUNS = 128, 12


def mixture(time: int = TIME) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.5 * torch.randn(time, generator=generator, dtype=torch.float64)


def variances() -> torch.Tensor:
    """Of the sources at the last noise level."""
    return torch.tensor([level**2 + SIGMA_MIN**2 for level in LEVELS], dtype=torch.float64)


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("time", [TIME, TIME - 2])  # frames of 8 samples, of which these are heard
def test_evidence_and_posterior(gaussian_priors: MakePriors, time: int, adjusted: bool) -> None:
    heard = mixture(time)
    priors = tuple(gaussian_priors(*LEVELS).values())
    target = AnnealedPosterior(heard.expand(PARTICLES, -1), priors, MIXING)
    gains = torch.tensor(GAINS, dtype=torch.float64)
    own = MIXING.scale_at(SIGMA_MIN) ** 2
    total = float((gains**2 * variances()).sum()) + own
    evidence = float(Normal(0.0, math.sqrt(total)).log_prob(heard).sum())
    covariance = variances().diag() - torch.outer(gains * variances(), gains * variances()) / total
    mean = (gains * variances() / total)[:, None] * heard
    estimates, means, spreads = [], [], []
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(seed)
        result = anneal_particles(
            target, SIGMA_MAX, SIGMA_MAX, SIGMA_MIN, generator, steps=6, adjusted=adjusted
        )
        weight = result.log_weight.exp()[:, None, None]
        estimates.append(result.log_evidence)
        error = result.position[..., :time] - mean
        means.append((weight * error).sum(0))
        spreads.append(torch.einsum("pit,pjt->ij", weight * error, error) / time)
    estimate = torch.tensor(estimates, dtype=torch.float64)
    assert abs(float(estimate.mean()) - evidence) < 4 * float(estimate.std()) / math.sqrt(RUNS)
    assert float(estimate.std()) < 1
    for values, truth in ((torch.stack(means), 0.0), (torch.stack(spreads), covariance)):
        error = values.std(0) / math.sqrt(RUNS)
        # 4.5: the largest of some dozen Student-t's of eleven degrees of freedom.
        assert bool(((values.mean(0) - truth).abs() < 4.5 * error).all())


def test_the_start_is_a_posterior_of_known_evidence(gaussian_priors: MakePriors) -> None:
    """Gaussian priors are their own start: nothing is lost or gained along the bridge."""
    priors = tuple(gaussian_priors(*LEVELS).values())
    target = AnnealedPosterior(mixture().expand(20_000, -1), priors, MIXING)
    generator = torch.Generator().manual_seed(0)
    path = _Path(target, SIGMA_MAX, SIGMA_MAX, SIGMA_MIN, generator, 1, False)
    position = path.draw()
    difference = path.log_density(position, 0.0) - path.log_density(position, BRIDGE)
    assert torch.allclose(difference, torch.zeros_like(difference), atol=1e-9)
    # log q = log density - log Z is the log density of the draws: their entropy says the same.
    flat = position.flatten(1)
    centred = flat - flat.mean(0)
    law = MultivariateNormal(flat.mean(0), centred.T @ centred / (len(flat) - 1))
    entropy = float(law.entropy())
    measured = -float((path.log_density(position, 0.0) - path.log_evidence).mean())
    dimension = flat.shape[1]
    # Std of a mean of chi-squared / 2, and the bias of a fitted covariance.
    tolerance = 5 * math.sqrt(dimension / 2 / len(flat)) + dimension**2 / len(flat)
    assert abs(measured - entropy) < tolerance


def test_seed_decides(gaussian_priors: MakePriors) -> None:
    priors = tuple(gaussian_priors(*LEVELS).values())
    target = AnnealedPosterior(mixture().expand(8, -1), priors, MIXING)

    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return anneal_particles(target, SIGMA_MAX, 1.0, SIGMA_MIN, generator).position

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
