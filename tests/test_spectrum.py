import math

import pytest
import torch

from pyro_sep.models.spectrum import BACK, LOBE, SpectralExtrapolator

HOP, EMBEDDING, FRAMES = 16, 4, 200
SIGMA, AMPLITUDE = 0.3, 0.9
BINS = (10.0, 10.25, 10.5, 40.37, 100.5)


def extrapolate(frames: torch.Tensor, sigma: float, log_tau: float | None = None) -> torch.Tensor:
    """What an untrained extrapolator makes of frames ``(frame, W)``: ``(frame, BACK + HOP)``."""
    extrapolator = SpectralExtrapolator(frames.shape[1], HOP, EMBEDDING).double()
    if log_tau is not None:
        torch.nn.init.constant_(extrapolator.threshold.bias, log_tau)
    noise = torch.randn(len(frames), EMBEDDING, dtype=torch.float64)
    power = torch.full((len(frames),), sigma**2, dtype=torch.float64)
    with torch.no_grad():
        return extrapolator(frames[:, None], noise, power)[:, 0]


def tones(window: int, frequency: float) -> torch.Tensor:
    """Tones of random phases, from W samples ago to the end of the hop."""
    phase = 2 * math.pi * torch.rand(FRAMES, 1, dtype=torch.float64)
    n = torch.arange(-window, HOP, dtype=torch.float64)
    return AMPLITUDE * torch.cos(2 * math.pi * frequency / window * n + phase)


def relative_error(window: int, frequency: float, sigma: float, log_tau: float | None) -> float:
    torch.manual_seed(0)
    clean = tones(window, frequency)
    noisy = clean[:, :window] + sigma * torch.randn(FRAMES, window, dtype=torch.float64)
    error = extrapolate(noisy, SIGMA, log_tau)[:, BACK:] - clean[:, window:]
    return float(error.square().mean() / clean.square().mean())


def test_forward_is_the_equation() -> None:
    window, sigma, n = 32, 0.4, torch.arange(-BACK, HOP, dtype=torch.float64)
    torch.manual_seed(0)
    extrapolator = SpectralExtrapolator(window, HOP, EMBEDDING).double().requires_grad_(False)
    extrapolator.continuation.normal_()
    extrapolator.threshold.weight.normal_()
    frames = torch.randn(2, 3, window, dtype=torch.float64)
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    power = torch.full((2,), sigma**2, dtype=torch.float64)
    out = extrapolator(frames, noise, power)
    since, bins = torch.arange(window).double(), torch.arange(window // 2 + 1).double()
    fourier = torch.exp(-2j * math.pi * bins[:, None] * since / window)
    v = torch.complex(*extrapolator.continuation)
    energy = ((extrapolator.analysis * frames).to(v.dtype) @ fourier.T).abs() ** 4 / sigma**4
    padded = torch.nn.functional.pad(energy, (LOBE, LOBE))
    lobe = sum(padded[..., d : d + len(bins)] for d in range(2 * LOBE + 1))
    gate = energy / (lobe + extrapolator.threshold(noise).exp()[:, None])
    tones = torch.exp(2j * math.pi * bins[:, None] * n / window)
    amplitudes = gate * ((v * frames) @ fourier.T)
    expected = (amplitudes @ tones).real
    # The cosines and sines of the continuation were rounded to float32 when it was built.
    rounding = torch.finfo(torch.float32).eps * amplitudes.abs().sum(-1, keepdim=True)
    assert ((out - expected).abs() < rounding).all()
    assert expected.abs().mean() > 1e4 * rounding.mean()


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("frequency", BINS)
def test_a_tone_in_noise_is_continued(window: int, frequency: float) -> None:
    # At the start, the gate is soft: what is certain is that silence, of error 1, is beaten.
    assert relative_error(window, frequency, SIGMA, None) < {256: 0.3, 1024: 0.6}[window]


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("frequency", BINS)
def test_a_strict_gate_leaves_the_error_of_the_linear_continuation(
    window: int, frequency: float
) -> None:
    # sigma^2 sum |v|^2 / 2 against A^2 / 2, where one bin carries the tone; the rest is leakage of
    # the lobes of a low tone and of its image: amplitudes of a tenth, 0.02 in power.
    v = SpectralExtrapolator(window, HOP, EMBEDDING).continuation.detach()
    linear = float((SIGMA / AMPLITUDE) ** 2 * v.square().sum())
    error = relative_error(window, frequency, SIGMA, 8.0)
    assert linear < 0.025
    assert 0.5 * linear < error < 1.5 * linear + 0.03
    assert relative_error(window, frequency, 0.0, 8.0) < 0.025


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("offset", [-0.75, -0.3, 0.0, 0.5, 0.75])
def test_a_bin_reads_the_amplitude_and_phase_of_a_tone_near_it(window: int, offset: float) -> None:
    extrapolator = SpectralExtrapolator(window, HOP, EMBEDDING)
    v = torch.complex(*extrapolator.continuation.double())
    n = torch.arange(-window, 0, dtype=torch.float64)
    phase = 0.7
    tone = AMPLITUDE * torch.cos(2 * math.pi * (50 + offset) / window * n + phase)
    read = (v * tone * torch.exp(-2j * math.pi * 50 * n / window)).sum()
    expected = AMPLITUDE * torch.polar(torch.tensor(1.0), torch.tensor(phase)).to(read.dtype)
    # The ridge costs a twentieth of the response at the edges, the tone's image 1 / (2 pi 100).
    assert abs(read - expected) < 0.1 * AMPLITUDE


@pytest.mark.parametrize("window", [256, 1024])
def test_noise_alone_is_attenuated(window: int) -> None:
    torch.manual_seed(0)
    noise = SIGMA * torch.randn(FRAMES, window, dtype=torch.float64)
    soft = extrapolate(noise, SIGMA)[:, BACK:].square().mean() / SIGMA**2
    hard = extrapolate(noise, SIGMA, 8.0)[:, BACK:].square().mean() / SIGMA**2
    assert soft < 0.25  # 6 dB
    assert hard < 0.01


def test_only_the_ratio_to_the_noise_counts() -> None:
    torch.manual_seed(0)
    frames = tones(256, 20.2)[:, :256] + SIGMA * torch.randn(FRAMES, 256, dtype=torch.float64)
    scaled = extrapolate(3 * frames, 3 * SIGMA)
    assert torch.allclose(scaled, 3 * extrapolate(frames, SIGMA), rtol=1e-10, atol=1e-12)


def test_silence_is_silence() -> None:
    assert not extrapolate(torch.zeros(3, 256, dtype=torch.float64), SIGMA).any()
