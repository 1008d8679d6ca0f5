import math

import numpy as np
import pytest
import torch

from pyro_sep.data.toy import (
    AMPLITUDES,
    FREQUENCIES,
    SAMPLE_RATE,
    SPLIT_SIZES,
    WAVEFORMS,
    draw_sources,
    toy_mixture,
    waveform,
)

# A float32 sample of magnitude below one is off by half an ulp, and so is a mean of four of them.
FLOAT32 = 2 * torch.finfo(torch.float32).eps

CLOSED_FORMS = {
    "sine": lambda p: np.sin(2 * np.pi * p),
    "saw": lambda p: 2 * (p - np.floor(p)) - 1,
    "square": lambda p: np.where(p - np.floor(p) < 0.5, 1.0, -1.0),
    "triangle": lambda p: 2 / np.pi * np.arcsin(np.sin(2 * np.pi * p)),
}


@pytest.mark.parametrize("name", WAVEFORMS)
def test_waveforms_are_their_closed_forms(name: str) -> None:
    phase = np.random.default_rng(0).uniform(-5, 3000, 10_000)
    values = waveform(name, torch.from_numpy(phase)).numpy()
    # arcsin is ill-conditioned at the peaks: its error there is the root of the sine's.
    tolerance = 1e-6 if name == "triangle" else 1e-11
    np.testing.assert_allclose(values, CLOSED_FORMS[name](phase), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "quarters"),
    [
        ("sine", [0, 1, 0, -1]),
        ("saw", [-1, -0.5, 0, 0.5]),
        ("square", [1, 1, -1, -1]),
        ("triangle", [0, 1, 0, -1]),
    ],
)
def test_waveforms_at_the_quarters_of_a_period(name: str, quarters: list[float]) -> None:
    values = waveform(name, torch.arange(4, dtype=torch.float64) / 4 + 7)
    np.testing.assert_allclose(values.numpy(), quarters, rtol=0, atol=1e-15)


def test_a_square_tone_has_two_values() -> None:
    tones, _ = draw_sources("square", 50, 4_000, torch.Generator().manual_seed(0))
    amplitudes = tones.abs().amax(1, keepdim=True)
    assert torch.equal(tones.abs(), amplitudes.expand_as(tones))  # no band limit, no zero


@pytest.mark.parametrize("name", WAVEFORMS)
def test_tones_are_curves_of_three_parameters(name: str) -> None:
    tones, frequencies = draw_sources(name, 20, SAMPLE_RATE, torch.Generator().manual_seed(3))
    u = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).numpy()
    f, amplitude, phase = 27 + (4186 - 27) * u[:, :1], 0.8 + 0.2 * u[:, 1:2], u[:, 2:]
    np.testing.assert_allclose(frequencies.numpy(), f[:, 0], rtol=1e-14)
    expected = amplitude * CLOSED_FORMS[name](f * np.arange(SAMPLE_RATE) / SAMPLE_RATE + phase)
    # Rounding to float32; in float64 the phase is known to 1e-12 periods.
    np.testing.assert_allclose(tones.numpy(), expected, rtol=0, atol=FLOAT32)


def test_parameters_fill_their_ranges_uniformly() -> None:
    count = 4_000
    tones, frequencies = draw_sources("square", count, 64, torch.Generator().manual_seed(1))
    amplitudes = tones.abs().amax(1).double()
    # The phase in quarters of a period by the first sample's value in a saw of the same draw.
    saws, _ = draw_sources("saw", count, 1, torch.Generator().manual_seed(1))
    phases = (saws[:, 0].double() / amplitudes + 1) / 2
    for values, (low, high) in (
        (frequencies, FREQUENCIES),
        (amplitudes, AMPLITUDES),
        (phases, (0, 1)),
    ):
        unit = ((values - low) / (high - low)).numpy()
        assert unit.min() > -1e-6
        assert unit.max() < 1 + 1e-6
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand.
        ranks = (np.arange(count) + 0.5) / count
        assert np.abs(np.sort(unit) - ranks).max() < 1.95 / math.sqrt(count)
    assert abs(np.corrcoef(frequencies, amplitudes)[0, 1]) < 4 / math.sqrt(count)
    assert abs(np.corrcoef(frequencies, phases)[0, 1]) < 4 / math.sqrt(count)


def test_a_mixture_is_the_mean_of_its_sources() -> None:
    item = toy_mixture("train", 5, time=1000)
    assert item.sources.shape == (4, 1000)
    assert item.mixture.shape == (1000,)
    assert item.frequencies.shape == (4,)
    assert item.mixture.dtype == item.sources.dtype == torch.float32
    quarter = 0.25 * item.sources.double().sum(0)
    assert (item.mixture.double() - quarter).abs().max() < FLOAT32
    pair = toy_mixture("train", 5, ("saw", "sine"), 1000)
    half = 0.5 * pair.sources.double().sum(0)
    assert (pair.mixture.double() - half).abs().max() < FLOAT32


def test_mixtures_are_a_pure_function_of_split_and_index() -> None:
    keys = [(split, index) for split in SPLIT_SIZES for index in (0, 1, 7, 1499)]
    torch.manual_seed(0)
    first = {key: toy_mixture(*key, time=200) for key in keys}
    torch.manual_seed(1)
    for key in reversed(keys):
        again = toy_mixture(*key, time=200)
        assert torch.equal(again.mixture, first[key].mixture)
        assert torch.equal(again.sources, first[key].sources)
        assert torch.equal(again.frequencies, first[key].frequencies)
    frequencies = torch.cat([item.frequencies for item in first.values()])
    assert len(frequencies.unique()) == len(keys) * 4  # splits, indices and waveforms differ


def test_mixtures_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    toy_mixture("test", 0, time=10)
    draw_sources("saw", 2, 10, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_smaller_mixtures_hold_the_same_tones() -> None:
    four = toy_mixture("test", 3)
    assert four.mixture.shape == (16_000,)  # one second
    two = toy_mixture("test", 3, ("square", "saw"), 500)
    rows = [WAVEFORMS.index("square"), WAVEFORMS.index("saw")]
    assert torch.equal(two.sources, four.sources[rows, :500])
    assert torch.equal(two.frequencies, four.frequencies[rows])


def test_split_sizes() -> None:
    assert SPLIT_SIZES == {"train": 5_000, "test": 1_500}
    for split, size in SPLIT_SIZES.items():
        assert toy_mixture(split, size - 1, time=1).mixture.shape == (1,)
        for index in (-1, size):
            with pytest.raises(ValueError, match=f"got {index}, expected 0 to {size - 1}"):
                toy_mixture(split, index, time=1)


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(ValueError, match="got 'valid', expected one of train, test"):
        toy_mixture("valid", 0)
    with pytest.raises(ValueError, match="got none"):
        toy_mixture("test", 0, ())
    for call in (
        lambda: waveform("noise", torch.zeros(1)),
        lambda: draw_sources("noise", 1, 1),
        lambda: toy_mixture("test", 0, ("sine", "noise")),
    ):
        with pytest.raises(ValueError, match="got 'noise', expected one of sine, saw, square"):
            call()
