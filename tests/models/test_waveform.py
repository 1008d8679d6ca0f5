"""The exact density of a toy tone against brute force, and its search on real frames."""

import math

import pytest
import torch
from torch import Tensor

from pyro_sep.data.toy import (
    AMPLITUDES,
    FREQUENCIES,
    SAMPLE_RATE,
    WAVEFORMS,
    draw_sources,
    waveform,
)
from pyro_sep.models.waveform import Waveform, WaveformConfig
from pyro_sep.priors.waveform import WaveformPrior


def noisy(name: str, count: int, time: int, sigma: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean tones and what noise makes of them, in float64."""
    generator = torch.Generator().manual_seed(seed)
    clean = draw_sources(name, count, time, generator)[0].double()
    return clean, clean + sigma * torch.empty_like(clean).normal_(generator=generator)


def white(x: Tensor, sigma: float, mean: Tensor | float = 0.0) -> Tensor:
    return torch.distributions.Normal(mean, sigma).log_prob(x).sum(-1)


def brute_force(name: str, x: Tensor, sigma: float) -> Tensor:
    """Midpoint rule on a plain grid of frequency, phase and amplitude."""
    counts = (10_000, 64, 12)
    f, phi, a = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts)
    f = FREQUENCIES[0] + (FREQUENCIES[1] - FREQUENCIES[0]) * f[:, None]
    a = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * a[:, None, None]
    # Any origin of time will do: the phase is uniform.
    cycles = f / SAMPLE_RATE * (torch.arange(x.shape[-1]) - x.shape[-1] / 2)
    total = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    for phase in phi:
        waves = waveform(name, cycles + phase)
        ratio = (a * (x @ waves.T) - a**2 * waves.square().sum(1) / 2) / sigma**2
        total = torch.logaddexp(total, ratio.logsumexp((0, 2)))
    return white(x, sigma) + total - math.log(math.prod(counts))


@pytest.mark.parametrize("name", WAVEFORMS)
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_density_is_the_integral(name: str, sigma: float) -> None:
    _, x = noisy(name, 6, 32, sigma)
    density = WaveformPrior.of(name).frame(32).condition(sigma).log_prob(x)
    # A third of a nat in 32 audio samples: harmonics that the coarse grid leaves out.
    assert (density - brute_force(name, x, sigma)).abs().max() < 0.3


def test_a_smooth_tone_has_no_harmonics_to_leave_out() -> None:
    _, x = noisy("sine", 8, 32, 1.0, seed=1)
    density = WaveformPrior.of("sine").frame(32).condition(1.0).log_prob(x)
    assert (density - brute_force("sine", x, 1.0)).abs().max() < 0.06


@pytest.mark.parametrize("name", WAVEFORMS)
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_finds_the_tone_and_denoises_it(name: str, sigma: float) -> None:
    """The density is that of the best tones: it misses the truth by the volume of the parameters.

    Three parameters, each known to a share of its range: some nats each, up to ten in all at
    sigma 1, 26 where the noise is low. A lost tone would miss hundreds.
    """
    clean, x = noisy(name, 4, 2048, sigma)
    prior = WaveformPrior.of(name).frame(2048).condition(sigma)
    x.requires_grad_()
    density = prior.log_prob(x)
    (score,) = torch.autograd.grad(density.sum(), x)
    volume = density.detach() - white(x.detach(), sigma, clean)
    assert -30 < float(volume.min()) <= float(volume.max()) < 0
    denoised = x.detach() + sigma**2 * score
    error = (denoised - clean).square().sum(-1)
    # Three parameters of unit error each leave about 3 sigma^2; jumps are a little worse.
    assert float(error.max()) < 20 * 3 * sigma**2


def test_tells_every_waveform_from_the_others() -> None:
    sigma = 0.359
    for name in WAVEFORMS:
        _, x = noisy(name, 2, 1024, sigma, seed=3)
        scores = {
            other: WaveformPrior.of(other).frame(1024).condition(sigma).log_prob(x).mean()
            for other in WAVEFORMS
        }
        assert max(scores, key=lambda other: float(scores[other])) == name


def test_level_is_that_of_the_tones() -> None:
    for name in WAVEFORMS:
        tones = draw_sources(name, 400, 4000, torch.Generator().manual_seed(0))[0]
        assert WaveformPrior.of(name).rms == pytest.approx(
            float(tones.square().mean().sqrt()), rel=0.01
        )


def test_noise_levels_of_a_batch_do_not_touch_each_other() -> None:
    network = Waveform(WaveformConfig("square"))
    _, x = noisy("square", 4, 64, 0.5)
    sigma = torch.tensor([0.1, 1.0, 0.1, 0.5], dtype=torch.float64)
    together = network.log_prob(x, sigma)
    alone = torch.cat([network.log_prob(x[i : i + 1], sigma[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-9)


def test_rows_of_a_group_do_not_touch_each_other() -> None:
    network = Waveform(WaveformConfig("saw"))
    _, x = noisy("saw", 40, 64, 0.5)  # more than are done together
    sigma = torch.full((40,), 0.5, dtype=torch.float64)
    alone = torch.cat([network.log_prob(x[i : i + 1], sigma[:1]) for i in range(40)])
    assert torch.allclose(network.log_prob(x, sigma), alone, rtol=1e-9)


@pytest.mark.parametrize("name", WAVEFORMS)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 3.0])
def test_float32_is_enough(name: str, sigma: float) -> None:
    """Value and score of the same audio in both types, the search included."""
    _, x = noisy(name, 4, 1024, sigma, seed=2)
    single = x.float()
    values, scores = [], []
    for audio in (single, single.double()):
        audio.requires_grad_()
        value = WaveformPrior.of(name).frame(1024).condition(sigma).log_prob(audio)
        scores.append(torch.autograd.grad(value.sum(), audio)[0])
        values.append(value.detach())
    # An ulp of the value, some thousands of nats, is 2e-4.
    assert (values[0] - values[1]).abs().max() < 2e-3
    assert (scores[0] - scores[1]).norm() < 1e-3 * scores[1].norm()


@pytest.mark.parametrize("name", WAVEFORMS)
def test_waves_are_those_of_the_toy_sources(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    frequency, phase = torch.rand(2, 1, 50, dtype=torch.float64, generator=generator)
    frequency = FREQUENCIES[0] + (FREQUENCIES[1] - FREQUENCIES[0]) * frequency
    waves = Waveform(WaveformConfig(name))._waves(frequency, phase, 333)
    turns = frequency[..., None] / SAMPLE_RATE * (torch.arange(333) - 166) + phase[..., None]
    # The phase of the last sample is known to 166 half steps of 2^-32: nothing but a jump sees it.
    clear = (2 * turns - (2 * turns).round()).abs() > 1e-6
    assert clear.double().mean() > 0.999
    assert (waves - waveform(name, turns))[clear].abs().max() < 1e-6


def test_refuses_an_unknown_waveform() -> None:
    with pytest.raises(ValueError, match="waveform: got 'piano', expected one of sine"):
        WaveformPrior.of("piano")
