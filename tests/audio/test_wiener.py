import pytest
import torch
from music import excerpt, needs_ffmpeg
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.audio.wiener import wiener_upmix
from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.evaluation.metrics import si_sdr

RATE, TO_RATE, TIME = 16_000, 44_100, 44_100


def band(seed: int, low: float, high: float) -> Tensor:
    """A second of noise of RMS 0.1 between two frequencies, at the higher rate."""
    noise = torch.randn(TIME, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft(noise)
    frequency = torch.fft.rfftfreq(TIME, 1 / TO_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    samples = torch.fft.irfft(spectrum, TIME)
    return 0.1 * samples / samples.square().mean().sqrt()


def mono(channels: Tensor) -> Tensor:
    """At the priors' rate."""
    return resample(channels.mean(-2), TO_RATE, RATE, RATE)


def test_sources_apart_in_frequency_come_back_in_stereo() -> None:
    # A low one to the left, a high one to the right.
    sources = torch.stack([band(0, 100, 1_500), band(1, 2_000, 5_000)])
    true = torch.tensor([[1.0, 0.3], [0.2, 1.0]])[..., None] * sources[:, None]
    recording = true.sum(0)
    stems = wiener_upmix(mono(true), mono(recording), RATE, recording, TO_RATE)
    assert stems.shape == (2, 2, TIME)
    assert si_sdr(stems.flatten(1), true.flatten(1)).min() > 20
    assert (recording - stems.sum(0)).square().mean() < 1e-3 * recording.square().mean()


def test_mixed_down_again_they_are_the_posterior() -> None:
    """Whatever it says, here three noises that have all frequencies in common."""
    recording = torch.stack([band(seed, 100, 12_000) for seed in (1, 2)])
    mixture = mono(recording)
    low = torch.stack([mono(band(seed, 100, 5_000)[None]) for seed in (3, 4)])
    contributions = torch.stack([low[0], low[1], mixture - low.sum(0)])
    stems = wiener_upmix(contributions, mixture, RATE, recording, TO_RATE)
    assert not torch.allclose(stems[:, 0], stems[:, 1], atol=1e-2)
    assert si_sdr(mono(stems)[:2], low).min() > 30


def test_what_no_share_explains_is_left() -> None:
    source, other = band(0, 100, 1_500), band(1, 2_000, 5_000)
    recording = (source + other).expand(2, -1)
    stems = wiener_upmix(mono(source[None, None]), mono(recording), RATE, recording, TO_RATE)
    left = recording - stems.sum(0)
    assert si_sdr(left[0], other) > 20


def test_above_the_band_the_topmost_octave_goes_on() -> None:
    """Of 12 kHz the posterior knows nothing; there plays whoever plays at 5 kHz at that moment."""
    half = torch.arange(TIME) < TIME // 2
    low, high = band(0, 100, 500), band(1, 4_000, 6_000)
    cymbal = band(2, 10_000, 14_000)
    contributions = torch.stack([low + high * half, high * ~half])
    recording = (low + high + cymbal)[None]
    stems = wiener_upmix(mono(contributions[:, None]), mono(recording), RATE, recording, TO_RATE)
    inner = slice(2_048, TIME // 2 - 2_048)  # frames away from the ends and the middle
    outer = slice(TIME // 2 + 2_048, -2_048)
    bright = torch.stack([low + (high + cymbal) * half, (high + cymbal) * ~half])
    for k, part in ((0, inner), (1, outer)):
        assert si_sdr(stems[k, 0, part], bright[k, part]) > 20


def test_treble_rings_on_between_strokes() -> None:
    """In the band a cymbal is heard at its strokes alone, beside a bass; above it goes on."""
    strokes = (torch.arange(TIME) % 11_025) < 2_205  # 50 ms of every 250 ms
    bass, cymbal = band(0, 100, 500), band(2, 10_000, 14_000)
    contributions = torch.stack([bass, band(1, 6_000, 7_500) * strokes])
    recording = (contributions.sum(0) + cymbal)[None]
    stems = wiener_upmix(mono(contributions[:, None]), mono(recording), RATE, recording, TO_RATE)
    true = torch.stack([contributions[0], contributions[1] + cymbal])
    assert si_sdr(stems[:, 0], true).min() > 15


def test_at_the_same_rate_every_frequency_is_known() -> None:
    low, high = band(0, 100, 2_000), band(1, 16_000, 21_000)
    recording = (low + high).expand(2, -1)
    stems = wiener_upmix(torch.stack([low, high]), recording[0], TO_RATE, recording, TO_RATE)
    assert si_sdr(stems[:, 0], torch.stack([low, high])).min() > 30


def test_silence_and_short_recordings() -> None:
    recording = torch.zeros(2, 100)
    stems = wiener_upmix(torch.zeros(3, 36), torch.zeros(36), RATE, recording, TO_RATE)
    assert torch.equal(stems, torch.zeros(3, 2, 100))
    recording = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    mixture = resample(recording.mean(0), TO_RATE, RATE, 36)
    stems = wiener_upmix(mixture[None], mixture, RATE, recording, TO_RATE)
    assert torch.allclose(stems[0], recording, atol=1e-5)


@pytest.mark.parametrize("rate", [1_009, 15_991, 44_099, 767_999])
def test_odd_rates_there_and_back(rate: int) -> None:
    """A tone of the recording is its only share: nothing is left, and no phase has moved."""
    time = rate // 2
    seconds = torch.arange(time, dtype=torch.float64) / rate
    recording = 0.5 * torch.sin(2 * torch.pi * min(rate / 20, 200) * seconds)[None].float()
    mixture = resample(recording[0], rate, RATE)
    stems = wiener_upmix(mixture[None], mixture, RATE, recording, rate)
    assert stems.shape == (1, 1, time)
    assert si_sdr(stems[0], recording).min() > 40


@needs_ffmpeg
def test_the_true_shares_of_a_song() -> None:
    """What of its stereo stems the mono band leaves open; figures of the README."""
    (track,) = musdb_tracks(excerpt())
    true = torch.stack([track.read(stem)[0] for stem in STEMS])
    recording = true.sum(0)
    time = round(recording.shape[-1] * RATE / TO_RATE)
    contributions, mixture = (
        resample(audio.mean(-2), TO_RATE, RATE, time) for audio in (true, recording)
    )
    stems = wiener_upmix(contributions, mixture, RATE, recording, TO_RATE)
    scores = si_sdr(stems.flatten(1), true.flatten(1))
    assert torch.allclose(scores, torch.tensor([20.8, 20.5, 14.6, 14.2]), atol=0.1)


def test_of_two_known_channels_mean_and_difference_are_filtered() -> None:
    torch.manual_seed(0)
    wide = 0.1 * torch.randn(2, 400)
    parts = torch.stack([wide, wide[:1].expand(2, -1)])  # the second is in the centre
    mixture = parts.sum(0)
    recording = 0.1 * torch.randn(2, 400 * TO_RATE // RATE)
    both = wiener_upmix(parts, mixture, RATE, recording, TO_RATE)
    side = (recording[0] - recording[1]) / 2
    assert torch.allclose((both[0, 0] - both[0, 1]) / 2, side, atol=1e-5)
    assert torch.allclose(both[1, 0], both[1, 1], atol=1e-5)


def test_where_all_stand_alike_the_mean_is_that_of_mono() -> None:
    torch.manual_seed(0)
    centred = 0.1 * torch.randn(2, 1, 400).expand(-1, 2, -1)
    recording = 0.1 * torch.randn(2, 400 * TO_RATE // RATE)
    both = wiener_upmix(centred, centred.sum(0), RATE, recording, TO_RATE)
    given = (centred[:, 0], centred[:, 0].sum(0), RATE, recording.mean(0)[None], TO_RATE)
    assert torch.allclose(both.mean(1), wiener_upmix(*given)[:, 0], atol=1e-6)


def test_treble_is_divided_by_where_sources_stand() -> None:
    """Both sound alike below 8 kHz; above, the one in the centre sounds in the first half alone."""
    first = torch.arange(TIME) < TIME // 2
    takes = [band(seed, 100, 7_900) + band(seed + 10, 8_500, 14_000) for seed in (0, 1)]
    centred = band(2, 100, 7_900) + 2 * band(12, 8_500, 14_000) * first
    true = torch.stack([torch.stack(takes), centred.expand(2, -1)])
    known = resample(true, TO_RATE, RATE, RATE)
    stems = wiener_upmix(known, known.sum(0), RATE, true.sum(0), TO_RATE)
    mono = wiener_upmix(
        known.mean(1), known.sum(0).mean(0), RATE, true.sum(0).mean(0)[None], TO_RATE
    )
    gain = si_sdr(stems.mean(1), true.mean(1)) - si_sdr(mono[:, 0], true.mean(1))
    assert gain.min() > 1.5


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0])
def test_two_channels_may_begin_in_silence(seconds: float) -> None:
    true = torch.stack([band(0, 100, 3_000), band(1, 500, 12_000)])[:, None].repeat(1, 2, 1)
    true[1, 1] = band(2, 500, 12_000)
    true[..., : round(seconds * TO_RATE)] = 0
    low = resample(true, TO_RATE, RATE, RATE)
    recording = true.sum(0)
    stems = wiener_upmix(low, low.sum(0), RATE, recording, TO_RATE)
    assert bool(stems.isfinite().all())
    assert (recording - stems.sum(0)).abs().max() < 1e-2
    assert stems[..., : round((seconds - 0.1) * TO_RATE)].abs().max() < 1e-4
