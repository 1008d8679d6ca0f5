"""How much a source sounds above the band of its prior."""

import itertools
from pathlib import Path

import pytest
import torch
from music import write_tracks
from torch import Tensor

from pyro_sep import load_priors, separate
from pyro_sep.audio.io import read_audio, save_audio
from pyro_sep.audio.treble import HALVES, half_octaves, measure, ratios
from pyro_sep.audio.wiener import wiener_upmix
from pyro_sep.data.source import open_source, open_sources
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors.networks import WaveNetPrior
from pyro_sep.priors.training import train_prior
from pyro_sep.results.stems import StemFiles, write_stems
from pyro_sep.trace.dataset import TREBLE, load_trace, save_trace, treble_of

RATE, LOW = 44_100, 4_000


def shaped(slope: float, seconds: float = 20.0, rate: int = RATE, seed: int = 0) -> Tensor:
    """Noise of power f^slope per hertz."""
    noise = torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft(noise)
    frequency = torch.fft.rfftfreq(len(noise), 1 / rate).clamp(min=20.0)
    found = torch.fft.irfft(spectrum * frequency ** (slope / 2), len(noise))
    return 0.1 * found / found.std()


def mean_power(slope: float, low: float, high: float) -> float:
    if slope == -1:
        return float(torch.log(torch.tensor(high / low))) / (high - low)
    return (high ** (slope + 1) - low ** (slope + 1)) / (slope + 1) / (high - low)


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0])
def test_ratios_are_those_of_the_spectrum(slope: float) -> None:
    found = ratios(measure(shaped(slope), RATE, LOW))
    assert len(found) == 6  # 2 to 16 kHz; to 22.6 kHz there is no room
    edges = [1_900, *(2_000 * 2 ** (half / 2) for half in range(1, 7))]  # 5 % below is no band
    top = mean_power(slope, 950, 1_900)
    wanted = [mean_power(slope, *pair) / top for pair in itertools.pairwise(edges)]
    assert found == pytest.approx(wanted, rel=0.03)  # edges are of whole bins, noise is by chance


def test_recordings_of_a_low_rate_say_less() -> None:
    """Their energies add up, and a half octave counts where a recording has all of it."""
    assert ratios(measure(shaped(0.0, rate=LOW), LOW, LOW)) == ()
    dull, bright = measure(shaped(-2.0), RATE, LOW), measure(shaped(0.0, rate=8_000), 8_000, LOW)
    assert len(ratios(bright)) == 1  # 2 to 2.8 kHz
    both = ratios(dull + bright)
    assert ratios(dull)[0] < both[0] < ratios(bright)[0]
    assert both[1:] == ratios(dull)[1:]


def test_every_bin_is_in_a_half_octave() -> None:
    place = half_octaves(LOW, RATE)
    frequency = torch.fft.rfftfreq(4_096, 1 / RATE)
    above = frequency > LOW / 2
    assert (place[~above] == 0).all()
    edge = LOW / 2 * 2 ** (place[above] / 2)
    assert (frequency[above] >= 0.999 * edge).all()
    assert (frequency[above] < 1.001 * 2**0.5 * edge).all()


def test_a_source_without_treble_is_given_none() -> None:
    """Both play at all moments; that of a cymbal alone goes on above the band."""
    bass, cymbal = shaped(0.0, 2.0, LOW, 1), shaped(0.0, 2.0, RATE, 2)
    low = torch.fft.irfft(torch.fft.rfft(bass), len(cymbal)) * len(cymbal) / len(bass)
    recording = low + cymbal
    below = torch.fft.irfft(torch.fft.rfft(cymbal)[: len(bass) // 2 + 1], len(bass))
    below *= len(bass) / len(cymbal)
    parts, mixture = torch.stack([bass, below]), bass + below
    known = wiener_upmix(parts, mixture, LOW, recording[None], RATE, [(0.0,), (1.0,)])[:, 0]
    flat = wiener_upmix(parts, mixture, LOW, recording[None], RATE)[:, 0]
    assert si_sdr(known[1], cymbal) > si_sdr(flat[1], cymbal) + 5
    assert si_sdr(known[0], low) > si_sdr(flat[0], low) + 5
    unknown = wiener_upmix(parts, mixture, LOW, recording[None], RATE, [(), (1.0,)])[:, 0]
    assert torch.equal(unknown, flat)


def test_a_source_is_measured_where_it_is_read(tmp_path: Path) -> None:
    """Per second of what is trained on, the last tenth left out; places by their weights."""
    bright, dull = shaped(0.0, 5.0), shaped(-2.0, 10.0)
    for name, audio in (("a", bright), ("b", dull)):
        (tmp_path / name).mkdir()
        audio = audio.clone()
        audio[int(0.9 * len(audio)) :] = torch.randn(len(audio) - int(0.9 * len(audio)))
        save_audio(tmp_path / name / "x.wav", audio, RATE)
    one, other = (open_source(str(tmp_path / name), LOW, 256).energies for name in "ab")
    first = measure(bright[: int(0.9 * len(bright))], RATE, LOW)
    torch.testing.assert_close(one, first / 4.5, rtol=1e-3, atol=0)
    places = [f"{tmp_path / 'a'}:0.5", str(tmp_path / "b")]
    torch.testing.assert_close(open_sources(places, LOW, 256).energies, 0.5 * one + other)
    prior = train_prior(
        places, tmp_path / "out", steps=1, batch=1, time=64, size="toy", sample_rate=LOW
    )
    assert isinstance(prior, WaveNetPrior)
    assert prior.treble == ratios(0.5 * one + other)
    assert len(prior.treble) == 6
    assert "- Treble: power per hertz above 2000 Hz" in (tmp_path / "out" / "a.md").read_text()


def test_a_folder_is_not_measured_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as to read the recordings, and audits do not need it."""
    save_audio(tmp_path / "x.wav", shaped(0.0, 1.0), RATE)
    with monkeypatch.context() as patched:
        patched.delattr("pyro_sep.audio.treble.measure")
        source = open_source(str(tmp_path), LOW, 256)
    assert len(ratios(source.energies)) == 6


def test_a_stem_of_musdb_is_measured_on_training_tracks(tmp_path: Path) -> None:
    write_tracks(tmp_path)
    stems = [tmp_path / "train" / track / "drums.wav" for track in "ab"]
    wanted = sum(measure(read_audio(path)[0].mean(0), RATE, LOW) for path in stems) / 3.0
    found = open_source("musdb:drums", LOW, 256, tmp_path).energies
    torch.testing.assert_close(found, wanted)
    both = open_sources(["musdb:drums", f"{tmp_path / 'test' / 'c'}:0.5"], LOW, 256, tmp_path)
    assert (both.energies > found)[:, :6].all()


def test_tones_have_no_treble() -> None:
    assert ratios(open_source("toy:saw", 16_000, 256).energies) == ()
    assert all(prior.treble == () for prior in load_priors("toy").values())


def test_stems_have_the_treble_of_their_priors(tmp_path: Path) -> None:
    """From the priors through the trace to the files; a trace that says nothing leaves it flat."""
    config = WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=2, sigma_data=0.1)
    torch.manual_seed(0)
    network = WaveNet(config)
    priors = {
        name: WaveNetPrior(network, name=name, sample_rate=LOW, treble=ratios)
        for name, ratios in (("bass", (0.0,)), ("drums", (1.0, 0.5)))
    }
    recording = shaped(0.0, 0.5)
    mixture = torch.fft.irfft(torch.fft.rfft(recording)[:1_001], 2_000) * 2_000 / len(recording)
    options = {"levels": 6, "candidates": 1, "cooling": 2, "warmup": 1, "draws": 2, "chains": 1}
    result = separate(mixture, priors, **options)
    save_trace(result.trace, tmp_path / "trace.nc")
    assert treble_of(load_trace(tmp_path / "trace.nc")) == [(0.0,), (1.0, 0.5)]
    write_stems(result, tmp_path, StemFiles(), (recording[None], RATE))

    def treble(name: str) -> float:
        spectrum = torch.fft.rfft(read_audio(tmp_path / f"{name}.wav")[0][0]).abs().square()
        return float(spectrum[len(spectrum) // 4 :].sum())

    assert treble("bass") < 1e-3 * treble("drums")
    for strange in ("[]", "{", '{"bass": [-1]}', '{"bass": 3}', '{"bass": ["x"]}', "null"):
        result.trace.attrs[TREBLE] = strange
        assert treble_of(result.trace) == [(), ()]
    with pytest.raises(ValueError, match="expected at most 8 numbers of 0 or more"):
        WaveNetPrior(network, name="bass", sample_rate=LOW, treble=[1.0] * (HALVES + 1))
