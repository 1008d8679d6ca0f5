"""Tables of records, at a size of seconds."""

import json
from pathlib import Path

import pandas as pd
import pytest
import soundfile
import torch

pytest.importorskip("museval")
pytest.importorskip("librosa")

import mastered
import separate_records as script
from music import needs_ffmpeg

from pyro_sep.models import WaveNetConfig
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.priors import WaveNetPrior, save_priors
from pyro_sep.trace import load_trace

RATE = 16_000


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of two seconds, stems of noise; the drums of one are silent."""
    root = tmp_path_factory.mktemp("tracks")
    generator = torch.Generator().manual_seed(0)
    for name, loud in (("a", 0.05), ("b", 0.0)):
        (root / name).mkdir()
        stems = {
            stem: level * torch.randn(2 * RATE, generator=generator)
            for stem, level in (("bass", 0.1), ("drums", loud), ("other", 0.03), ("flute", 0.1))
        }
        for stem, samples in stems.items():
            soundfile.write(root / name / f"{stem}.wav", samples.numpy(), RATE)
        mixture = sum(stems.values()) + 0.001
        soundfile.write(root / name / "mixture.wav", mixture.numpy(), RATE)
    return root


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small untrained priors of three stems."""
    return _untrained(tmp_path_factory.mktemp("priors"), RATE)


def _untrained(folder: Path, rate: int) -> Path:
    config = WaveNetConfig(width=8, layers=2, hop=32, components=2, sigma_data=0.06, sigma_min=0.01)
    torch.manual_seed(0)
    made = {
        name: WaveNetPrior(WaveNet(config), name=name, sample_rate=rate)
        for name in ("bass", "drums", "other")
    }
    save_priors(made, folder)
    return folder


def test_a_table_of_records(
    tracks: Path, priors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"tracks": tracks, "priors": str(priors), "start": 0.5, "seconds": 1.0}
    methods = "mixture,hpss,mask,isdm,posterior,true-start"
    script.main(**options, methods=methods, out=tmp_path, count=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tracks_judged"] == ["a"]
    lines = {row["method"]: row for row in summary["table"]}
    assert list(lines) == methods.split(",")
    assert lines["mixture"]["improvement"] == pytest.approx(0)
    assert lines["mask"]["improvement"] > 3
    assert lines["posterior"]["stems"] == 3
    table = pd.read_csv(tmp_path / "posterior.csv")
    assert table["stem"].tolist() == ["bass", "drums", "other"]
    assert table["level_db"].round().tolist() == [-20, -26, -30]
    assert table["misfit"].gt(0).all()
    assert lines["true-start"]["improvement"] > lines["posterior"]["improvement"]
    assert (tmp_path / "a" / "posterior" / "trace.nc").exists()
    before = (tmp_path / "posterior.json").read_text()
    script.main(**options, methods=methods, out=tmp_path, count=1)
    assert (tmp_path / "posterior.json").read_text() == before
    assert "isdm      a: bass" in capsys.readouterr().out


def test_chains_begin_from_the_stems_of_coarser_priors(
    tracks: Path, priors: Path, tmp_path: Path
) -> None:
    coarse = str(_untrained(tmp_path / "coarse", RATE // 4))
    options = {"tracks": tracks, "priors": str(priors), "seconds": 1.0, "count": 1, "chains": 1}
    script.main(**options, methods="posterior,pooled", coarse=coarse, out=tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "pooled.csv")["improvement"].notna().all()
    with pytest.raises(ValueError, match="methods: got pooled, expected a second set"):
        script.main(**options, methods="pooled", out=tmp_path / "none")
    known = json.loads((tmp_path / "out" / "posterior.json").read_text())["settings"]
    assert known["coarse"] == coarse
    trace = load_trace(tmp_path / "out" / "a" / "posterior" / "trace.nc")
    assert trace["constant_data"]["initial"].shape == (3, RATE)
    with pytest.raises(ValueError, match="got figures of"):
        script.main(**options, methods="posterior", out=tmp_path / "out")


def test_stems_that_are_silent_are_left_out(tracks: Path) -> None:
    (track,) = script.chosen(tracks, "b")
    item = script.excerpt(track, ("bass", "drums", "other"), 0.0, 2.0)
    assert item.stems == ("bass", "other")
    whole, _ = track.mixture()
    assert torch.allclose(item.mixture, whole[0])  # its own, with what is no stem of ours


def test_both_channels_at_once(tracks: Path, priors: Path, tmp_path: Path) -> None:
    song = tmp_path / "tracks" / "song"
    song.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    wide, centre = 0.1 * torch.randn(2, 2, RATE, generator=generator)
    stems = {"bass": wide, "drums": centre[:1].expand(2, -1)}
    for stem, samples in stems.items():
        soundfile.write(song / f"{stem}.wav", samples.T.numpy(), RATE)
    options = {"tracks": tmp_path / "tracks", "priors": str(priors), "seconds": 1.0}
    out = tmp_path / "out"
    script.main(**options, wide="bass", methods="mask,posterior,true-start", chains=1, out=out)
    found, begun = (pd.read_csv(out / f"{name}.csv") for name in ("posterior", "true-start"))
    assert found["stem"].tolist() == ["bass", "drums"]
    assert begun["improvement"].mean() > found["improvement"].mean()  # the priors are untrained
    assert pd.read_csv(out / "mask.csv")["improvement"].gt(3).all()
    assert json.loads((out / "summary.json").read_text())["wide"] == "bass"
    trace = load_trace(out / "song" / "posterior" / "trace.nc")
    assert trace["posterior"]["side"].sizes["time"] == RATE
    with pytest.raises(ValueError, match="methods: got isdm with --wide"):
        script.main(**options, wide="bass", methods="isdm", out=tmp_path / "other")
    with pytest.raises(ValueError, match="a: got 1 channels, expected two; leave out --wide"):
        script.main(tracks=tracks, priors=str(priors), wide="bass", out=tmp_path / "third")


def test_no_track_with_two_stems(tracks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no track with two of sine, saw"):
        script.main(tracks=tracks, priors=_tones(tmp_path), out=tmp_path / "out")


def _tones(folder: Path) -> str:
    config = WaveNetConfig(width=8, layers=2, hop=32, components=2, sigma_data=0.06)
    made = {n: WaveNetPrior(WaveNet(config), name=n, sample_rate=RATE) for n in ("sine", "saw")}
    save_priors(made, folder / "tones")
    return str(folder / "tones")


def test_nmf_needs_recordings(tracks: Path, priors: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="methods: got nmf, expected tracks to learn from"):
        script.main(tracks=tracks, priors=str(priors), methods="nmf", out=tmp_path)


@needs_ffmpeg
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_models_of_mastered_mixtures(tracks: Path, tmp_path: Path, rate: int) -> None:
    priors = str(_untrained(tmp_path / "priors", rate))
    options = {"mixes": tracks, "priors": priors, "start": 0.5, "seconds": 1.0, "mixtures": 1}
    mastered.main(**options, models="sum,noise", out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["table"]) == ["sum", "noise"]
    assert summary["table"]["sum"]["stems"] == 3
    assert 0 < summary["master_si_sdr_db"] < 60
