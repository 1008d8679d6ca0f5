import math

import pytest
import torch

from pyro_sep.evaluation.metrics import residual_db, si_sdr, si_sdr_improvement

TIME = torch.arange(1600, dtype=torch.float64)
SINE = torch.sin(2 * torch.pi * 10 * TIME / 1600)
COSINE = torch.cos(2 * torch.pi * 10 * TIME / 1600)  # orthogonal to the sine, of equal energy


@pytest.mark.parametrize("decibel", [-10.0, 0.0, 37.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_si_sdr_of_orthogonal_noise(decibel: float, dtype: torch.dtype) -> None:
    estimate = -0.3 * (SINE + 10 ** (-decibel / 20) * COSINE) + 5  # scale and offset are free
    score = si_sdr(estimate.to(dtype), (2 * SINE - 1).to(dtype))
    assert score.dtype == dtype
    assert float(score) == pytest.approx(decibel, abs=1e-3)


def test_si_sdr_of_quiet_audio() -> None:
    estimate = (1e-5 * (SINE + 0.1 * COSINE)).float()
    assert float(si_sdr(estimate, (1e-5 * SINE).float())) == pytest.approx(20, abs=1e-3)


def test_si_sdr_broadcasts() -> None:
    estimates = torch.stack([SINE + 0.1 * COSINE, SINE + COSINE, COSINE + 0.1 * SINE])
    scores = si_sdr(estimates[:, None], torch.stack([SINE, COSINE]))
    expected = torch.tensor([[20.0, -20.0], [0.0, 0.0], [-20.0, 20.0]], dtype=torch.float64)
    assert torch.allclose(scores, expected)


def test_si_sdr_of_silence() -> None:
    with pytest.raises(ValueError, match="reference: got silence"):
        si_sdr(SINE, torch.full_like(SINE, 0.1))
    assert si_sdr(torch.zeros(1600), SINE.float()) == -math.inf


def test_si_sdr_needs_equal_lengths() -> None:
    with pytest.raises(ValueError, match="got 1599 audio samples, expected the reference's 1600"):
        si_sdr(SINE[1:], SINE)


def test_si_sdr_improvement() -> None:
    improvement = si_sdr_improvement(SINE + 0.1 * COSINE, SINE, SINE + COSINE)
    assert float(improvement) == pytest.approx(20)


def test_residual_of_minus_40_db() -> None:
    sources = torch.stack([SINE, COSINE])
    gains = torch.tensor([0.5, 0.25], dtype=torch.float64)
    exact = 0.5 * SINE + 0.25 * COSINE
    other = torch.sin(2 * torch.pi * 30 * TIME / 1600)
    other *= 0.01 * exact.norm() / other.norm()
    # The residual is 1 % of the amplitude of what is explained and orthogonal to it.
    expected = 10 * math.log10(1e-4 / (1 + 1e-4))
    mixtures = torch.stack([exact + other, exact])
    residual = residual_db(sources, mixtures, gains)
    assert float(residual[0]) == pytest.approx(expected, abs=1e-9)
    assert float(residual[0]) == pytest.approx(-40, abs=1e-3)
    assert residual[1] < -250
    assert float(residual_db(0 * sources, exact, gains)) == pytest.approx(0)


def test_residual_says_what_is_wrong() -> None:
    sources = torch.stack([SINE, COSINE])
    with pytest.raises(ValueError, match=r"got shape \(2, 1600\), expected .* \(\.\.\., 3, 1600\)"):
        residual_db(sources, SINE, torch.ones(3))
    with pytest.raises(ValueError, match="mixture: got silence"):
        residual_db(sources, 0 * SINE, torch.ones(2))
