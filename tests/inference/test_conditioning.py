import math

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.conditioning import divide
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.priors.stereo import in_stereo
from pyro_sep.priors.waveform import WaveformPrior
from pyro_sep.separation.api import separate
from pyro_sep.trace.channels import interleave

RATE, SIGMA, TIME = 16_000, 0.1, 8_000
ONES, NONE = torch.ones(2, 1), torch.zeros(())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, time: int = TIME) -> Tensor:
    return (2 * math.pi * frequency / RATE * torch.arange(time)).sin()


def energy(audio: Tensor) -> Tensor:
    return audio.square().sum(-1)


@pytest.mark.parametrize("time", [3, 100, 2_049, 8_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_with_their_gains_they_are_given_all_that_lacks(time: int, channels: int) -> None:
    weights = torch.tensor([[0.6], [-1.1], [0.2]])
    lacking, expected = noise(2, time * channels), noise(2, 3, time * channels, seed=1)
    given = divide(lacking, expected, weights, NONE, SIGMA, RATE, channels)
    assert given.shape == expected.shape
    assert torch.allclose((weights * given).sum(1), lacking, atol=1e-5)
    each = weights.expand(2, 3, 1)  # as unknown gains have them
    assert torch.equal(divide(lacking, expected, each, NONE, SIGMA, RATE, channels), given)


def test_who_sounds_is_given_it() -> None:
    low, high = tone(200), tone(3_000)
    expected = torch.stack([low, high])[None]
    given = divide(0.1 * high[None], expected, ONES, NONE, SIGMA, RATE)[0]
    assert energy(given[1] - 0.1 * high) < 0.01 * energy(0.1 * high)


def test_far_below_the_noise_it_is_divided_by_power() -> None:
    """Of white sources, denoised as they have to be; far above it among all alike."""
    for levels, expected in (((0.01, 0.005), 0.8), ((10.0, 5.0), 0.5)):
        shares = torch.tensor([level**2 / (level**2 + SIGMA**2) for level in levels])
        noisy = torch.stack(
            [
                math.sqrt(level**2 + SIGMA**2) * noise(1, TIME, seed=i)
                for i, level in enumerate(levels)
            ],
            1,
        )
        lacking = noise(1, TIME, seed=2)
        given = divide(lacking, shares[:, None] * noisy, ONES, NONE, SIGMA, RATE)
        share = (given * lacking[:, None]).sum(-1) / energy(lacking)
        assert float(share[0, 0]) == pytest.approx(expected, abs=0.05)


def test_silence_is_given_nothing_and_all_silence_the_same() -> None:
    lacking, zeros = noise(1, TIME), torch.zeros(1, TIME)
    expected = torch.stack([noise(1, TIME, seed=1), zeros], 1)
    given = divide(lacking, expected, ONES, NONE, SIGMA, RATE)
    assert energy(given[0, 1]) < 1e-6 * energy(lacking)[0]
    alike = divide(lacking, torch.zeros(1, 2, TIME), ONES, NONE, SIGMA, RATE)
    assert torch.allclose(alike, lacking[:, None] / 2, atol=1e-5)


def test_noise_of_the_mixture_takes_its_part() -> None:
    """Of two sources that are known no better than by x: by closed form."""
    lacking, expected = noise(3, TIME), 1e3 * noise(3, 2, TIME, seed=1)
    gammas = torch.tensor([0.0, SIGMA, 1e3])
    given = divide(lacking, expected, ONES, gammas, SIGMA, RATE)
    share = (given * lacking[:, None]).sum(-1) / energy(lacking)[:, None]
    expected_share = SIGMA**2 / (2 * SIGMA**2 + gammas.square())
    assert torch.allclose(share, expected_share[:, None].expand(3, 2), atol=1e-3)


def test_what_differs_between_the_channels_is_not_of_the_centre() -> None:
    left, right = noise(1, TIME), noise(1, TIME, seed=1)
    centre = interleave(torch.stack([left, left], -2))
    wide = interleave(torch.stack([left, right], -2))
    lacking = interleave(torch.stack([left, -left], -2))  # a side alone
    given = divide(lacking, torch.stack([centre, wide], 1), ONES, NONE, SIGMA, RATE, channels=2)
    assert energy(given[0, 0]) < 1e-6 * energy(lacking)[0]
    assert torch.allclose(given[:, 1], lacking, atol=1e-4)


def test_sources_that_may_be_silent_have_their_channels() -> None:
    (stereo,) = in_stereo({"sine": WaveformPrior.of("sine")}).values()
    assert SpikeAndSlab(stereo).channels == 2
    assert SpikeAndSlab(stereo.mono).channels == 1


@pytest.mark.parametrize("exact", [True, False])
def test_the_mean_is_nearer_to_the_one_in_closed_form(exact: bool) -> None:
    """White sources, one of them far below the noise: the law of both given x and m is normal."""
    levels, gamma = torch.tensor([0.3, 0.01]), 0.0 if exact else 0.05
    priors = [GaussianPrior(name, float(level)) for name, level in zip("ab", levels, strict=True)]
    clean = levels[:, None] * noise(1, 2, TIME)
    mixture = clean.sum(1) + gamma * noise(1, TIME, seed=1)
    alike = AnnealedPosterior(mixture, priors, Mixing((1.0, 1.0), max(gamma, 1e-3)), exact)
    noisy = alike.tie(clean + SIGMA * noise(1, 2, TIME, seed=2))
    shares = (levels**2 / (levels**2 + SIGMA**2))[:, None]
    rest = (gamma / SIGMA) ** 2
    lacking = mixture[:, None] - (shares * noisy).sum(1, keepdim=True)
    right = shares * noisy + shares / (shares.sum() + rest) * lacking
    errors = []
    for by_spectrum in (False, True):
        target = AnnealedPosterior(mixture, priors, alike.mixing, exact, by_spectrum=by_spectrum)
        at = (noisy, target.evaluate(noisy, SIGMA), SIGMA, torch.Generator().manual_seed(3))
        drawn, mean = target.draw_clean(*at)
        if exact:
            assert torch.allclose(mean.sum(1), mixture, atol=1e-5)
            assert torch.allclose(drawn.sum(1), mixture, atol=1e-5)
        errors.append(float(energy(mean - right).sum()))
    assert errors[1] < 0.1 * errors[0]


def test_recordings_are_divided_by_spectra_and_tones_alike() -> None:
    """The mean of all draws of a song, the mode of tones: the same chain, other clean draws."""
    low, high = 0.4 * tone(200, 1_024), 0.02 * tone(6_000, 1_024)
    priors = {name: WaveformPrior.of(name) for name in ("sine", "saw")}
    settings = Annealing(1.0, 0.5, 0.05, cooling=1, warmup=1, draws=2, swaps=0)
    mode, mean = (
        separate(
            low + high,
            priors,
            initial=torch.stack([low, high]),
            estimate=estimate,
            gains=(1.0, 1.0),
            settings=settings,
        )
        for estimate in ("mode", "mean")
    )
    lps = [result.trace["sample_stats"]["lp"].values for result in (mode, mean)]
    assert lps[0][0, 0] == lps[1][0, 0]  # later ones know of other random numbers
    for result in (mode, mean):
        assert torch.allclose(result.contributions.sum(0), low + high, atol=1e-5)
    assert not torch.allclose(mode.contributions, mean.contributions, atol=1e-3)
