import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from baselines import (
    HOP,
    SIZE,
    check_stems,
    hpss,
    ideal_ratio_mask,
    learn_dictionary,
    low_pass,
    nmf,
)
from torch import Tensor

from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement

RATE, TIME = 16_000, 32_000
STEMS = ("bass", "drums")
FOUR = ("bass", "drums", "vocals", "other")


def tone(frequency: float, time: int = TIME) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(time) / RATE)


def clicks(seed: int) -> Tensor:
    """Bursts of noise that die away within milliseconds, five a second."""
    noise = torch.randn(TIME, generator=torch.Generator().manual_seed(seed))
    since = (torch.arange(TIME) + 997) % (RATE // 5)
    return noise * torch.exp(-since / 40)


def hum(frequency: float, seed: int) -> Tensor:
    """Overtones of fixed levels, as loud as noise of a few hertz says."""
    generator = torch.Generator().manual_seed(seed)
    envelope = torch.rand(TIME // 2_000 + 1, generator=generator).repeat_interleave(2_000)[:TIME]
    return (0.1 + envelope) * sum(tone(k * frequency) / k for k in range(1, 8))


@pytest.fixture
def music() -> Tensor:
    """A sine of the bass and the clicks of drums, ``(stem, time)``."""
    return torch.stack([0.3 * tone(80), clicks(0)])


def test_the_low_pass_parts_at_its_cutoff() -> None:
    sources = torch.stack([tone(100), tone(1_000)])
    parts = low_pass(sources.sum(0), STEMS, RATE)
    # An octave below the cutoff there and back leave 1 / (1 + 2^-8) of the amplitude.
    inside = slice(4_000, -4_000)
    torch.testing.assert_close(
        parts[0, inside], sources[0, inside] / (1 + 2**-8), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(parts.sum(0), sources.sum(0))
    assert torch.equal(low_pass(sources.sum(0), ("drums", "bass"), RATE), parts.flip(0))


def test_hpss_tells_clicks_from_tones(music: Tensor) -> None:
    mixture = music.sum(0)
    parts = hpss(mixture, STEMS, RATE)
    assert bool((si_sdr_improvement(parts, music, mixture) > 10).all())
    torch.testing.assert_close(parts.sum(0), mixture, atol=1e-5, rtol=0)
    assert torch.equal(hpss(mixture, ("drums", "vocals"), RATE), parts.flip(0))


def test_hpss_of_four_stems(music: Tensor) -> None:
    voice = 0.3 * tone(700)
    mixture = music.sum(0) + voice
    parts = dict(zip(FOUR, hpss(mixture, FOUR, RATE), strict=True))
    assert torch.equal(parts["vocals"], parts["other"])
    for stem, source in (("bass", music[0]), ("drums", music[1]), ("vocals", voice)):
        assert si_sdr_improvement(parts[stem], source, mixture) > 10, stem
    once = parts["bass"] + parts["drums"] + parts["vocals"]
    torch.testing.assert_close(once, mixture, atol=1e-5, rtol=0)
    three = hpss(mixture, ("vocals", "drums", "other"), RATE)
    torch.testing.assert_close(three[0], parts["bass"] + parts["vocals"], atol=1e-6, rtol=0)
    assert torch.equal(three[0], three[2])


def test_nmf_separates_stationary_spectra() -> None:
    frequencies = {"bass": 110.0, "drums": 173.0}
    dictionaries = {
        stem: learn_dictionary(torch.stack([hum(f, seed) for seed in (0, 1)]), 3)
        for stem, f in frequencies.items()
    }
    sources = torch.stack([hum(f, 10 + seed) for seed, f in enumerate(frequencies.values())])
    mixture = sources.sum(0)
    parts = nmf(mixture, dictionaries)
    assert bool((si_sdr_improvement(parts, sources, mixture) > 15).all())
    torch.testing.assert_close(parts.sum(0), mixture, atol=1e-4, rtol=0)
    swapped = nmf(mixture, dict(reversed(dictionaries.items())))
    torch.testing.assert_close(swapped, parts.flip(0), atol=1e-2, rtol=0)


def test_a_dictionary_holds_the_spectra_that_there_are() -> None:
    frames = torch.stack([tone(500, 8_000), 2 * tone(2_000, 8_000)])
    spectra = learn_dictionary(frames, 2)
    assert spectra.shape == (2, SIZE // 2 + 1)
    assert spectra.min() >= 0
    assert sorted(spectra.argmax(1)) == [500 * SIZE // RATE, 2_000 * SIZE // RATE]
    np.testing.assert_array_equal(learn_dictionary(frames, 2), spectra)
    assert not np.array_equal(learn_dictionary(frames, 2, seed=1), spectra)


def test_the_ideal_mask_is_wiener_s(music: Tensor) -> None:
    mixture = music.sum(0)
    parts = ideal_ratio_mask(mixture, music)
    torch.testing.assert_close(parts.sum(0), mixture, atol=1e-5, rtol=0)
    # Of proportional sources all bins have one ratio, here 1 to 9 in power.
    same = ideal_ratio_mask(4 * music[1], torch.stack([music[1], 3 * music[1]]))
    torch.testing.assert_close(same[0], 0.4 * music[1], atol=1e-5, rtol=0)
    silent = ideal_ratio_mask(mixture, torch.zeros_like(music))
    torch.testing.assert_close(silent, (mixture / 2).expand(2, -1), atol=1e-5, rtol=0)


def test_nothing_surpasses_the_ideal_mask() -> None:
    """Where frequencies overlap: a bass with overtones, and drums that reach below the cutoff."""

    def play(seed: int) -> Tensor:
        return torch.stack([0.3 * hum(80, seed), clicks(seed) + 0.1 * hum(61, 7 + seed)])

    train, sources = torch.stack([play(1), play(2)]), play(3)
    mixture = sources.sum(0)
    dictionaries = {stem: learn_dictionary(train[:, k], 4) for k, stem in enumerate(STEMS)}
    methods = {
        "low-pass": partial(low_pass, mixture, STEMS, RATE),
        "hpss": partial(hpss, mixture, STEMS, RATE),
        "nmf": partial(nmf, mixture, dictionaries),
    }
    ceiling = si_sdr(ideal_ratio_mask(mixture, sources), sources)
    for name, method in methods.items():
        found = si_sdr(method(), sources)
        assert bool((found < ceiling).all()), name
        assert float((found - si_sdr(mixture, sources)).mean()) > 1, name


@pytest.mark.parametrize("time", [HOP + 1, 2 * HOP, 10 * HOP])
def test_mixtures_shorter_than_a_filter(music: Tensor, time: int) -> None:
    short = music[:, :time]
    mixture = short.sum(0)
    for parts in (ideal_ratio_mask(mixture, short), hpss(mixture, STEMS, RATE)):
        torch.testing.assert_close(parts.sum(0), mixture, atol=1e-5, rtol=0)


def test_stems_that_a_method_cannot_know() -> None:
    mixture = tone(100)
    with pytest.raises(ValueError, match="low-pass: got stems bass, vocals, expected bass and dru"):
        low_pass(mixture, ("bass", "vocals"), RATE)
    with pytest.raises(ValueError, match="low-pass: got stems bass, drums, vocals, other, "):
        low_pass(mixture, FOUR, RATE)
    for stems in (("bass", "vocals"), ("drums",)):
        with pytest.raises(ValueError, match=r"^hpss: got stems .* expected drums and at least"):
            hpss(mixture, stems, RATE)
    for method in ("mixture", "nmf", "mask", "posterior"):
        check_stems(method, ("vocals", "other"))


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("librosa", "sklearn.decomposition"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"^hpss: got no librosa .* pip install 'pyro-sep\[mus"):
        hpss(tone(100), STEMS, RATE)
    with pytest.raises(ValueError, match=r"^nmf: got no sklearn .* pip install 'pyro-sep\[mus"):
        learn_dictionary(tone(100)[None])
