"""Gain errors of denoised sources, and the clean draws that are corrected for them."""

import math
from dataclasses import replace
from typing import Any, Self

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_sep.inference.gain_errors import fit_gain_errors
from pyro_sep.inference.posterior import REFITS, TANGENTS, AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import gain_error
from pyro_sep.priors.io import load_priors
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.priors.waveform import WaveformPrior

BATCH, TIME, SIGMA = 20_000, 32, 0.1
STD = (0.05, 0.02, 0.0)
TONES = [(2 * math.pi * (torch.arange(TIME).double() + 0.5) * k / TIME).sin() for k in (3, 5)]
TRUE, CLAIMED = (0.9, 0.8), (0.93, 0.79)  # amplitudes of two tones, and those of their priors


class SureOfItsGain(GaussianPrior):
    """A tone of one shape, and of an amplitude that the prior is sure of and gets wrong."""

    gain_error = 0.05

    def __init__(self, k: int, sigma: float = SIGMA) -> None:
        super().__init__(f"tone {k}", 1e-4, TIME, sigma)
        self.k = k

    def condition(self, sigma: float) -> Self:
        return type(self)(self.k, sigma)

    def frame(self, time: int) -> Self:
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - CLAIMED[self.k] * TONES[self.k])


def test_gain_errors_are_a_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(3, TIME, generator=generator, dtype=torch.float64)
    residual = torch.randn(TIME, generator=generator, dtype=torch.float64)
    std = torch.tensor(STD, dtype=torch.float64)
    batch = (shapes.expand(BATCH, -1, -1), residual.expand(BATCH, -1))
    errors = fit_gain_errors(*batch, std)
    some = shapes[:2]  # the third has no error
    covariance = torch.linalg.inv(some @ some.T + torch.diag(std[:2] ** -2))
    mean = covariance @ some @ residual
    assert torch.allclose(errors.mean[0, :2], mean, rtol=1e-9)
    drawn = errors.draw(generator)
    assert not drawn[:, 2].any()
    off = drawn[:, :2] - mean
    deviation = off.mean(0) / (covariance.diagonal() / BATCH).sqrt()
    assert deviation.abs().max() < 4.5
    law = MultivariateNormal(torch.zeros(2).double(), covariance)
    spread = (torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2) / BATCH
    assert ((off.T @ off / BATCH - law.covariance_matrix) / spread.sqrt()).abs().max() < 4.5


@pytest.mark.parametrize("exact", [False, True])
def test_the_mixture_tells_the_gains_that_priors_get_wrong(exact: bool) -> None:
    gains, gamma, size = (0.6, -1.1), 0.05, math.sqrt(TIME / 2)  # norm of a tone
    mixing, priors = Mixing(gains, gamma), [SureOfItsGain(0), SureOfItsGain(1)]
    true = torch.stack([a * tone for a, tone in zip(TRUE, TONES, strict=True)])
    target = AnnealedPosterior(mixing.mix(true).expand(BATCH, -1), priors, mixing, exact)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(BATCH, 2, TIME, generator=generator, dtype=torch.float64)
    noisy = target.tie(true + SIGMA * noise)
    drawn, mean = target.draw_clean(noisy, target.evaluate(noisy, SIGMA), SIGMA, generator)
    energy = SIGMA**2 * mixing.gain_energy
    for k, (gain, tone) in enumerate(zip(gains, TONES, strict=True)):
        precision = (gain * CLAIMED[k] * size) ** 2 / (energy + gamma**2)
        weight = precision / (precision + SureOfItsGain.gain_error**-2)
        fitted = CLAIMED[k] + weight * (TRUE[k] - CLAIMED[k])
        std = CLAIMED[k] * math.sqrt(weight / precision)
        # What is left of the mixture is divided among the sources.
        left = 1 - SIGMA**2 * gain**2 / (energy + (0 if exact else gamma**2))
        expected = TRUE[k] + left * (fitted - TRUE[k])
        amplitude = (drawn[:, k] * tone).sum(-1) / size**2
        middle = (mean[:, k] * tone).sum(-1) / size**2
        assert torch.allclose(middle, torch.tensor(expected).double(), rtol=1e-4)
        assert abs(float(amplitude.mean()) - expected) < 4.5 * left * std / math.sqrt(BATCH)
        assert float(amplitude.std()) == pytest.approx(left * std, rel=4.5 / math.sqrt(2 * BATCH))
        assert abs(expected - TRUE[k]) < 2 * left * std < abs(CLAIMED[k] - TRUE[k]) + left * std
        assert abs(expected - TRUE[k]) < 0.7 * abs(CLAIMED[k] - TRUE[k])


def test_only_priors_that_err_in_gains_cost_more() -> None:
    sure, exact = SureOfItsGain(0), WaveformPrior.of("sine")

    def gradients(*priors: Any, exact: bool = False, by_spectrum: bool = False) -> int:
        target = AnnealedPosterior(torch.ones(1, 256), priors, Mixing.mean(len(priors)), exact)
        return replace(target, by_spectrum=by_spectrum).clean_gradients

    assert gradients(exact, GaussianPrior("white", 1.0)) == TANGENTS
    assert gradients(exact, sure) == TANGENTS + REFITS
    assert gradients(SpikeAndSlab(sure)) == TANGENTS + REFITS
    assert gradients(exact, exact=True) == gradients(exact, by_spectrum=True) == TANGENTS
    assert gradients(exact, exact=True, by_spectrum=True) == TANGENTS + 1


def test_wavenets_of_tones_state_a_gain_error() -> None:
    stated = {
        name: gain_error(next(iter(load_priors(name).values())))
        for name in ("toy", "toy/wavenet", "toy/flow", "toy/oracle", "music")
    }
    assert {name for name, error in stated.items() if error > 0} == {"toy", "toy/wavenet"}
