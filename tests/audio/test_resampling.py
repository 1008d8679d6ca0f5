import resource

import pytest
import torch
import torchaudio.functional

from pyro_sep.audio.resampling import RATES, resample


def tone(frequency: float, rate: int, time: int) -> torch.Tensor:
    phase = 2 * torch.pi * frequency * torch.arange(time, dtype=torch.float64) / rate
    return (0.5 * torch.sin(phase)).float()


def peak_frequency(samples: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return float(spectrum.argmax()) * rate / len(samples)


@pytest.mark.parametrize("to_rate", [16_000, 22_050, 48_000])
def test_resampling_keeps_the_frequency(to_rate: int) -> None:
    resampled = resample(tone(1000, 44_100, 44_100), 44_100, to_rate, to_rate)
    assert resampled.shape == (to_rate,)
    assert peak_frequency(resampled, to_rate) == pytest.approx(1000, abs=0.5)


def test_resampling_crops_and_pads() -> None:
    samples = torch.ones(2, 3, 100)
    assert torch.equal(resample(samples, 8000, 8000, 60), torch.ones(2, 3, 60))
    padded = resample(samples, 8000, 8000, 130)
    assert torch.equal(padded[..., :100], samples)
    assert padded[..., 100:].shape == (2, 3, 30)
    assert not padded[..., 100:].any()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_between_usual_rates_it_is_torchaudios(rate: int) -> None:
    samples = torch.randn(2, rate // 10, generator=torch.Generator().manual_seed(0))
    for pair in ((rate, 16_000), (16_000, rate)):
        assert torch.equal(resample(samples, *pair), torchaudio.functional.resample(samples, *pair))


@pytest.mark.parametrize("rate", [1_009, 15_991, 22_255, 44_099, 47_951, 767_999])
def test_any_other_rate_in_little_memory(rate: int) -> None:
    """A tone keeps its phase and its length there and back, and no table of GBs is built."""
    frequency, seconds = min(200.0, rate / 20), 0.5
    samples = tone(frequency, rate, int(seconds * rate))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    there = resample(samples, rate, 16_000)
    back = resample(there, 16_000, rate, len(samples))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 200_000  # kB
    assert len(there) == -(-len(samples) * 16_000 // rate)
    inner = slice(len(there) // 10, -len(there) // 10)
    assert torch.allclose(there[inner], tone(frequency, 16_000, len(there))[inner], atol=1e-3)
    inner = slice(len(samples) // 10, -len(samples) // 10)
    assert torch.allclose(back[inner], samples[inner], atol=2e-3)


def test_shape_and_dtype_are_kept() -> None:
    samples = torch.randn(2, 3, 500, dtype=torch.float64)
    assert resample(samples, 44_099, 16_000).shape == (2, 3, 182)
    assert resample(samples, 44_099, 16_000).dtype == torch.float64
    assert torch.allclose(
        resample(samples, 44_099, 16_000)[1, 2], resample(samples[1, 2], 44_099, 16_000)
    )


@pytest.mark.parametrize("rate", [-16_000, 0, 8, RATES[0] - 1, RATES[1] + 1, 2**31])
def test_rates_that_no_audio_has(rate: int) -> None:
    for pair in ((rate, 16_000), (16_000, rate)):
        with pytest.raises(ValueError, match=f"got a sample rate of {rate} Hz, expected 1000 to"):
            resample(torch.zeros(10), *pair)
    with pytest.raises(ValueError, match="time: got -1"):
        resample(torch.zeros(10), 8_000, 8_000, -1)
