import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from traces import trace_of

from pyro_sep.audio.io import read_audio
from pyro_sep.audio.resampling import resample
from pyro_sep.data.tracks import ALTERNATIVES, Audio, stems_folder
from pyro_sep.results import stems
from pyro_sep.results.stems import StemFiles, drawn_contributions, write_stems
from pyro_sep.separation.api import Separation
from pyro_sep.trace.dataset import TREBLE
from pyro_sep.trace.draws import mode_draws, select_draws

RATE, TIME, NAMES, GAINS, CHAINS, DRAWS = 16_000, 4_000, ("oboe", "flute"), (0.7, -0.4), 2, 8
BEST = 1  # chain


def make_result(inferred: bool = False) -> Separation:
    """Draws about two tones that explain most of a noisy mixture; the second chain is the best."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    t = torch.arange(TIME) / RATE
    tones = 0.5 * torch.stack([torch.sin(2 * torch.pi * f * t) for f in (300.0, 900.0)])
    sources = tones + 0.01 * normal(CHAINS, DRAWS, 2, TIME)
    gains = torch.tensor(GAINS)
    drawn_gains = gains + 0.1 * normal(CHAINS, DRAWS, 2)
    trace = trace_of(
        sources.numpy(),
        lp=(normal(CHAINS, DRAWS) + 10.0 * torch.arange(CHAINS)[:, None]).numpy(),
        log_prior=normal(CHAINS, DRAWS, 2).numpy(),
        mixture=(gains @ tones + 0.05 * normal(TIME)).numpy(),
        gains=drawn_gains.numpy() if inferred else GAINS,
        source_names=NAMES,
        sample_rate=RATE,
    )
    mean = sources[BEST].mean(0)
    return Separation(mean, NAMES, RATE, trace, gains[:, None] * mean)


def recorded(result: Separation, channels: int, rate: int) -> Audio:
    """A recording whose mono mixture is the result's, with some noise above its band."""
    mixture = torch.from_numpy(result.trace["observed_data"]["mixture"].values)
    time = TIME * rate // RATE
    mono = resample(mixture, RATE, rate, time)
    side = 0.05 * torch.randn(channels, time, generator=torch.Generator().manual_seed(1))
    return mono + (side if rate > RATE or channels > 1 else 0 * side), rate


@pytest.fixture(scope="module")
def result() -> Separation:
    return make_result()


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(
    ("channels", "rate"),
    [(1, 8_000), (1, 16_000), (1, 44_100), (2, 8_000), (2, 16_000), (2, 44_100), (1, 48_000)],
)
def test_stems_and_residual_add_up_to_the_recording(
    result: Separation, tmp_path: Path, channels: int, rate: int, suffix: str
) -> None:
    recording, _ = recorded(result, channels, rate)
    files = StemFiles(suffix, residual=True)
    written, got, _ = write_stems(result, tmp_path, files, (recording, rate))
    assert written == [f"{name}.{suffix}" for name in (*NAMES, "residual")]
    assert got == rate
    parts = [read_audio(tmp_path / name) for name in written]
    assert {part_rate for _, part_rate in parts} == {rate}
    total = torch.stack([samples for samples, _ in parts]).double().sum(0)
    assert total.shape == recording.shape
    error = (total - recording.double()).square().mean() / recording.double().square().mean()
    assert 10 * error.clamp(min=1e-30).log10() < (-110 if suffix == "flac" else -130)


@pytest.mark.parametrize(("channels", "rate"), [(1, 16_000), (2, 44_100)])
def test_native_stems_are_the_posterior(
    result: Separation, tmp_path: Path, channels: int, rate: int
) -> None:
    files = StemFiles(native=True, residual=True)
    _, got, _ = write_stems(result, tmp_path, files, recorded(result, channels, rate))
    assert got == RATE
    for name, share in zip(NAMES, result.contributions, strict=True):
        assert torch.equal(read_audio(tmp_path / f"{name}.wav")[0], share[None])
    mixture = torch.from_numpy(result.trace["observed_data"]["mixture"].values)
    residual, _ = read_audio(tmp_path / "residual.wav")
    assert torch.allclose(residual[0], mixture - result.contributions.sum(0), atol=1e-7)


def test_a_mono_recording_within_the_band_has_the_posterior(
    result: Separation, tmp_path: Path
) -> None:
    """As native ones are, but at the recording's rate; at a lower one but for the topmost band."""
    for rate, error in ((RATE, 1e-6), (8_000, 1e-3)):
        write_stems(result, tmp_path, StemFiles(), recorded(result, 1, rate))
        for name, share in zip(NAMES, result.contributions, strict=True):
            expected = resample(share, RATE, rate, TIME * rate // RATE)
            assert torch.allclose(read_audio(tmp_path / f"{name}.wav")[0], expected, atol=error)


@pytest.mark.parametrize("inferred", [False, True])
def test_draws_are_shares_of_the_best_chain(inferred: bool) -> None:
    trace = make_result(inferred).trace
    posterior = trace["posterior"].to_dataset()
    drawn = list(drawn_contributions(trace, 3))
    for contributions, number in zip(drawn, (0, 4, 7), strict=True):
        gains = posterior["gains"].values[BEST, number] if inferred else np.array(GAINS)
        expected = gains[:, None] * posterior["sources"].values[BEST, number]
        assert np.allclose(contributions[:, 0].numpy(), expected, atol=1e-6)
    assert len(list(drawn_contributions(trace, 100))) == DRAWS


def test_draws_are_of_all_chains_that_the_estimate_is_of() -> None:
    trace = make_result(False).trace
    trace.attrs["estimate"] = "mean"
    sources = trace["posterior"]["sources"].values
    assert sources.shape[:2] == (2, DRAWS)
    first, last = drawn_contributions(trace, 2)
    gains = np.array(GAINS)[:, None]
    assert np.allclose(first[:, 0].numpy(), gains * sources[0, 0], atol=1e-6)
    assert np.allclose(last[:, 0].numpy(), gains * sources[1, -1], atol=1e-6)


def stereo_result() -> Separation:
    """One tone in both channels, another one in the left alone."""
    t = torch.arange(TIME) / RATE
    oboe, flute = 0.5 * torch.stack([torch.sin(2 * torch.pi * f * t) for f in (300.0, 900.0)])
    channels = torch.stack([torch.stack([oboe, oboe]), torch.stack([flute, 0 * flute])])
    frames = channels.mT.flatten(1)
    trace = trace_of(
        frames.expand(1, DRAWS, 2, 2 * TIME),
        mixture=frames.sum(0),
        gains=(1.0, 1.0),
        source_names=NAMES,
        sample_rate=RATE,
        channels=2,
    )
    mid, side = channels.mean(1), (channels[:, 0] - channels[:, 1]) / 2
    return Separation(mid, NAMES, RATE, trace, mid, side=side)


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_stems_of_two_channels_are_the_posterior_in_each(tmp_path: Path, rate: int) -> None:
    result = stereo_result()
    mid, side = result.contributions, result.side
    assert side is not None
    true = torch.stack([mid + side, mid - side], 1)
    recording = resample(true.sum(0), RATE, rate)
    files = StemFiles(residual=True, draws=1)
    written, *_ = write_stems(result, tmp_path, files, (recording, rate))
    assert "draws/flute_01.wav" in written
    for name, channels in zip(NAMES, true, strict=True):
        expected = resample(channels, RATE, rate)
        for path in (tmp_path / f"{name}.wav", tmp_path / "draws" / f"{name}_01.wav"):
            assert torch.allclose(read_audio(path)[0], expected, atol=2e-3)
    assert float(read_audio(tmp_path / "residual.wav")[0].abs().max()) < 2e-3
    write_stems(result, tmp_path, StemFiles(native=True), (recording, rate))
    assert torch.allclose(read_audio(tmp_path / "flute.wav")[0], true[1], atol=1e-6)


def test_draws_are_written_beside_the_stems(result: Separation, tmp_path: Path) -> None:
    folder = tmp_path / "song"
    folder.mkdir()
    recording = recorded(result, 2, 44_100)
    written, *_ = write_stems(result, folder, StemFiles(draws=2), recording)
    drawn = [f"draws/{name}_{i}.wav" for i in ("01", "02") for name in ("oboe", "flute")]
    assert written == ["oboe.wav", "flute.wav", *drawn]
    names = [f"{name}_{i}.wav" for name in ("flute", "oboe") for i in ("01", "02")]
    assert sorted(os.listdir(folder / "draws")) == names
    first, second = (read_audio(folder / "draws" / name)[0] for name in names[:2])
    assert first.shape == recording[0].shape
    assert not torch.equal(first, second)
    (track,) = stems_folder(tmp_path)  # as evaluate sees it
    assert (track.name, sorted(track.stems)) == ("song", ["flute", "oboe"])


@pytest.mark.parametrize("files", [StemFiles(), StemFiles("flac", True, True, 3)])
def test_the_names_of_the_files_are_known_beforehand(
    result: Separation, tmp_path: Path, files: StemFiles
) -> None:
    written, *_ = write_stems(result, tmp_path, files)
    others = [name for name in files.names(NAMES) if name.startswith(ALTERNATIVES)]
    assert sorted([*written, *others]) == sorted(files.names(NAMES))
    assert all((tmp_path / name).is_file() for name in written)


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ((1.5 * torch.ones(1, 8), 44_100), "a peak of 1.5 for FLAC"),
        ((torch.zeros(9, 8), 44_100), "9 channels at 44100 Hz for FLAC"),
        ((torch.zeros(2, 8), 96_001), "2 channels at 96001 Hz for FLAC"),
    ],
)
def test_what_no_flac_can_hold_is_known_beforehand(recording: Audio, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StemFiles("flac").check(recording)
    StemFiles("wav").check(recording)


def test_a_loud_draw_leaves_no_stem_behind(result: Separation, tmp_path: Path) -> None:
    trace = result.trace.copy(deep=True)
    trace["posterior"]["sources"][BEST, -1, 1, 7] = 40.0
    loud = Separation(result.sources, NAMES, RATE, trace, result.contributions)
    with pytest.raises(ValueError, match=r"draws/flute_02\.flac: got a peak of 16"):
        write_stems(loud, tmp_path, StemFiles("flac", draws=2))
    assert os.listdir(tmp_path) == []


def test_a_flac_holds_nothing_beyond_full_scale(result: Separation, tmp_path: Path) -> None:
    loud = Separation(result.sources, NAMES, RATE, result.trace, 4 * result.contributions)
    with pytest.raises(ValueError, match=r"oboe\.flac: got a peak of 1\.4.*; use WAV"):
        write_stems(loud, tmp_path, StemFiles("flac"))
    assert os.listdir(tmp_path) == []


def with_modes(probability: list[float], label: list[list[int]]) -> Separation:
    result = make_result()
    weight = np.array(probability)[np.array(label)] / DRAWS
    modes = {"label": np.array(label), "weight": weight, "probability": probability}
    told = {name: (("chain", "draw"), modes[name]) for name in ("label", "weight")}
    result.trace["modes"] = xr.Dataset(told | {"probability": ("mode", probability)})
    return result


def test_another_explanation_has_its_stems(tmp_path: Path) -> None:
    folder = tmp_path / "track"
    folder.mkdir()
    half = [[0] * 4 + [1] * 4] * CHAINS
    result = with_modes([0.6, 0.37, 0.03], half)
    written, *_ = write_stems(result, folder, StemFiles())
    others = [name for name in written if name.startswith(f"{ALTERNATIVES}/")]
    assert others == [f"alternatives/{name}_01.wav" for name in NAMES]
    drawn = select_draws(result.trace["posterior"].to_dataset(), mode_draws(result.trace, 1))
    for k, name in enumerate(NAMES):
        stem = read_audio(folder / f"alternatives/{name}_01.wav")[0][0]
        expected = GAINS[k] * drawn["sources"].values[:, k].mean(0)
        assert drawn.sizes["draw"] == 4
        assert np.allclose(stem, expected, atol=1e-6)
    # They are no track, and nothing is written of what is improbable.
    assert [track.name for track in stems_folder(tmp_path)] == [folder.name]
    lone, *_ = write_stems(with_modes([0.97, 0.03], half), tmp_path, StemFiles())
    assert not any(name.startswith(ALTERNATIVES) for name in lone)


@pytest.mark.parametrize(
    ("mixture_db", "stem_db", "silent"),
    [(-6.0, -45.0, False), (-6.0, -55.0, True), (-40.0, -60.0, False), (-40.0, -75.0, True)],
)
def test_stems_that_are_written_as_silence(
    result: Separation, tmp_path: Path, mixture_db: float, stem_db: float, silent: bool
) -> None:
    def at(samples: Tensor, decibels: float) -> Tensor:
        return samples * 10 ** (decibels / 20) / samples.square().mean().sqrt()

    tree = result.trace.copy()
    mixture = at(torch.from_numpy(tree["observed_data"]["mixture"].values), mixture_db)
    tree["observed_data"] = (
        tree["observed_data"].to_dataset().assign(mixture=("time", mixture.numpy()))
    )
    quiet = at(result.contributions[1], stem_db)
    stems = torch.stack([mixture - quiet, quiet])
    changed = replace(result, trace=tree, contributions=stems)
    written, _, rests = write_stems(changed, tmp_path, StemFiles(residual=True))
    assert rests == ({"flute": TIME / RATE} if silent else {})
    oboe, flute, residual = (read_audio(tmp_path / name)[0][0] for name in written)
    assert bool((flute == 0).all()) is silent
    torch.testing.assert_close(oboe + flute + residual, mixture)


@pytest.mark.parametrize("treble_db", [-20.0, -60.0])
def test_a_stem_may_live_above_the_band_of_its_prior(
    result: Separation, tmp_path: Path, treble_db: float
) -> None:
    """Within the band it is at -80 dB; all that is above is its own, by what priors say."""
    rate, quiet = 4 * RATE, 1e-4 * result.contributions[1] / result.contributions[1].std()
    mixture = result.contributions[0] + quiet
    tree = result.trace.copy()
    tree["observed_data"] = (
        tree["observed_data"].to_dataset().assign(mixture=("time", mixture.numpy()))
    )
    tree.attrs[TREBLE] = json.dumps({"oboe": [0.0], "flute": [1.0, 1.0]})
    hiss = torch.fft.rfft(torch.randn(4 * TIME, generator=torch.Generator().manual_seed(0)))
    hiss[: 4 * TIME // 6] = 0  # below 10.7 kHz
    hiss = torch.fft.irfft(hiss, 4 * TIME)
    hiss *= 10 ** (treble_db / 20) / hiss.std()
    recording = resample(mixture, RATE, rate, 4 * TIME) + hiss
    changed = replace(result, trace=tree, contributions=torch.stack([mixture - quiet, quiet]))
    rests = write_stems(changed, tmp_path, StemFiles(), (recording[None], rate)).silent
    flute = read_audio(tmp_path / "flute.wav")[0][0]
    if treble_db < -50:
        assert rests == {"flute": TIME / RATE}
        assert float(flute.abs().max()) == 0
    else:
        assert rests == {}
        assert float((flute - hiss).std()) < 0.3 * float(hiss.std())


def test_silence_for_a_while(
    result: Separation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems, "WINDOW", 0.05)  # five windows of 800 samples
    loud, quiet = 0.1, 1e-4
    flute = torch.full((TIME,), loud)
    flute[800:2_400] = quiet  # the second and third window
    flute[3_200:] = quiet  # the last one
    mixture = torch.full((TIME,), 0.3)
    tree = result.trace.copy()
    tree["observed_data"] = (
        tree["observed_data"].to_dataset().assign(mixture=("time", mixture.numpy()))
    )
    changed = replace(result, trace=tree, contributions=torch.stack([mixture - flute, flute]))
    *_, rests = write_stems(changed, tmp_path, StemFiles(native=True, residual=True))
    assert rests == {"flute": pytest.approx(0.15)}
    oboe, written, residual = (
        read_audio(tmp_path / f"{name}.wav")[0][0] for name in (*NAMES, "residual")
    )
    fade = round(stems.FADE * RATE)
    for heard in (slice(0, 800), slice(2_400, 3_200)):
        assert (written[heard] == flute[heard]).all()
    for silent in (slice(800 + fade, 2_400 - fade), slice(3_200 + fade, TIME)):
        assert (written[silent].abs() < 1e-12).all()
    assert (written.diff().abs() <= loud + quiet).all()
    assert (oboe == mixture - flute).all()
    torch.testing.assert_close(oboe + written + residual, mixture)


def test_a_recording_has_the_channels_that_were_separated(tmp_path: Path) -> None:
    result = make_result()
    silence = np.zeros((1, 4, 2, 2 * TIME))
    two = trace_of(silence, gains=GAINS, source_names=NAMES, sample_rate=RATE, channels=2)
    both = replace(result, trace=two, side=0 * result.contributions)
    for channels in (1, 3):
        with pytest.raises(ValueError, match=f"recording: got {channels} channels, expected the 2"):
            write_stems(both, tmp_path, StemFiles(), (torch.zeros(channels, TIME), RATE))
    assert not [*tmp_path.iterdir()]
