import inspect
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import typer
import xarray as xr
from music import excerpt, needs_ffmpeg, write_tracks
from safetensors.torch import load_file, save_file
from traces import trace_of

from pyro_sep.audio.io import read_audio
from pyro_sep.cli.app import main
from pyro_sep.cli.train import train
from pyro_sep.diagnostics.verdict import diagnose, format_diagnosis
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.models.flowavenet import FloWaveNet, FloWaveNetConfig
from pyro_sep.models.registry import FAMILIES
from pyro_sep.models.train import SERIAL_SIGMAS
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors import training
from pyro_sep.priors.io import load_prior, load_priors, save_prior
from pyro_sep.priors.networks import PRIORS, FloWaveNetPrior, WaveNetPrior
from pyro_sep.results import plan, recordings
from pyro_sep.separation.cost import Cost
from pyro_sep.separation.presets import PRESETS
from pyro_sep.storage.files import only_run
from pyro_sep.trace import draws
from pyro_sep.trace.dataset import load_trace, save_trace
from pyro_sep.trace.draws import estimate_draws, select_draws
from pyro_sep.viz import report

SCRIPT = Path(sys.executable).with_name("pyro-sep")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of untrained priors swap freely; their alternatives are not asked for here."""
    monkeypatch.setattr(draws, "PROBABLE", 2.0)


BUDGET = ("--preset", "quick", "--levels", "6", "--chains", "1", "--candidates", "2")
QUICK = (*BUDGET[:-1], "1", "--draws", "2")
FILES = ["saw.wav", "separation.png", "sine.wav", "summary.json", "trace.nc"]
TINY: dict[str, WaveNetConfig | FloWaveNetConfig] = {
    "wavenet": WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=4),
    "flow": FloWaveNetConfig(
        squeeze=16, flows=2, components=2, layers=1, width=8, spectra=(32,), head_width=8
    ),
}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pyro-sep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Outcome(int(caught.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("priors"), ["sine", "saw"])


def save_tiny(folder: Path, names: list[str]) -> Path:
    """A set of tiny priors: of toy tones, or where an oboe is among them of recordings."""
    for name in names:
        torch.manual_seed(len(name))
        prior = WaveNetPrior(WaveNet(TINY["wavenet"]), name=name, sample_rate=16_000)
        save_prior(prior, folder / f"{name}.safetensors")
    write_set(folder, names, *(("sum", "mean") if "oboe" in names else ("mean", "mode")))
    return folder


def write_set(folder: Path, names: list[str], mixing: str = "mean", estimate: str = "mode") -> None:
    content = {"priors": names, "mixing": mixing, "estimate": estimate}
    (folder / "priors.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def both_families(priors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WaveNet for the sine, a flow for the saw."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "sine.safetensors").write_bytes((priors / "sine.safetensors").read_bytes())
    torch.manual_seed(1)
    prior = FloWaveNetPrior(FloWaveNet(TINY["flow"]), name="saw", sample_rate=16_000)
    save_prior(prior, folder / "saw.safetensors")
    write_set(folder, ["sine", "saw"])
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that is trained by default is tiny, and the audit short."""
    for family, config in TINY.items():
        monkeypatch.setitem(FAMILIES[family].sizes, "toy", config)
    monkeypatch.setattr(training, "AUDIT_FRAMES", 2)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    t = np.arange(1_001) / 44_100
    channels = np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in (440, 1_000)], 1)
    path = tmp_path_factory.mktemp("audio") / "duet.wav"
    soundfile.write(path, channels, 44_100)
    return path


def command(*arguments: str | Path) -> list[str]:
    return [str(SCRIPT), *map(str, arguments)]


def lines(err: str) -> list[str]:
    """What stands on standard error beside the progress bar."""
    assert "Traceback" not in err
    written = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    return [line for line in written if "step/s" not in line and "s/step" not in line]


def refused(outcome: Outcome, message: str) -> None:
    """One line, exit code 2."""
    assert outcome.code == 2, outcome
    assert len(lines(outcome.err)) == 1, outcome.err
    assert outcome.err.startswith("pyro-sep: ")
    assert message in outcome.err
    assert outcome.out == ""


def assert_separated(out: Path, files: list[str] = FILES) -> None:
    assert sorted(os.listdir(out)) == files
    for name in ("sine", "saw"):
        info = soundfile.info(out / f"{name}.wav")
        assert (info.samplerate, info.frames, info.channels) == (44_100, 1_001, 2)
        assert info.subtype == "FLOAT"
    trace = load_trace(out / "trace.nc")
    assert trace["posterior"]["source"].values.tolist() == ["sine", "saw"]
    assert trace.attrs["mixture"] == "duet.wav"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sources"] == ["sine", "saw"]
    assert summary["sample_rate"] == 44_100


NOTES = ["mixed down from 2 channels", "resampled from 44100 Hz to 16000 Hz"]


def test_separate(priors: Path, stereo: Path, tmp_path: Path) -> None:
    out = tmp_path / "duet"
    arguments = command("separate", stereo, "--priors", priors, "--out", tmp_path, "--seed", "7")
    use = (*BUDGET, "--draws", "1")  # of one explanation
    done = subprocess.run([*arguments, *use], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lines(done.stderr) == [f"{stereo}: {note}" for note in NOTES]
    about, written, verdict = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(stereo))}: about \d+ s and 0\.\d GB", about)
    assert written == f"{out}: sine.wav, saw.wav, trace.nc, separation.png, summary.json"
    judged = format_diagnosis(diagnose(load_trace(out / "trace.nc"))).splitlines()[-1]
    assert verdict == f"{out}: {judged}"
    assert_separated(out)
    attrs = load_trace(out / "trace.nc").attrs
    assert attrs["seed"] == 7
    assert json.loads(attrs["notes"]) == NOTES
    settings = json.loads(attrs["settings"])
    given = ("levels", "chains", "candidates")
    assert [settings[key] for key in given] == [6, 1, 2]
    assert settings["replicas"] == PRESETS["quick"]["mode"]["replicas"]


def test_separate_writes_a_report(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    out = tmp_path / "duet"
    outcome = call("separate", stereo, "--priors", priors, "--out", tmp_path, "--report", *BUDGET)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-2] == f"{out / 'report.html'}: open it in a browser"
    assert sorted(os.listdir(out)) == sorted([*FILES, "report.html"])


def test_a_dry_run_says_what_it_takes_and_writes_nothing(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    out, use = tmp_path / "out", ("--priors", priors, *QUICK)
    outcome = call("separate", stereo, tmp_path / "none.wav", *use, "--out", out, "--dry-run")
    assert outcome.code == 2  # of the file that is not there
    (said,) = outcome.out.splitlines()
    assert said.startswith(f"{stereo}: about ")
    assert not out.exists()
    assert call("separate", stereo, *use, "--out", out).code == 0
    outcome = call("separate", stereo, *use, "--out", out, "--dry-run")
    assert outcome.out.startswith(f"{stereo}: separated before with these settings")
    outcome = call("separate", stereo, *use, "--out", out, "--dry-run", "--force")
    assert outcome.out.startswith(f"{stereo}: about ")


def test_hours_of_work_are_asked_for_in_a_terminal(
    call, priors: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(stereo.read_bytes())
    long = Cost(0.6 * 3_600, 10**9, 1.0)
    monkeypatch.setattr(plan, "estimate_cost", lambda *_, **__: long)
    use = ("separate", "--priors", priors, *QUICK, "--out", tmp_path / "out")
    outcome = call(*use, stereo)
    assert outcome.code == 0
    assert "all of it" not in outcome.err
    outcome = call(*use, stereo, other, "--force")
    assert outcome.code == 0
    assert "all of it takes about 72 min; if that is too long, interrupt it" in outcome.err
    asked: list[str] = []

    def refuse(text: str, **_: object) -> None:
        asked.append(text)
        raise typer.Abort

    monkeypatch.setattr(typer, "confirm", refuse)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    shutil.rmtree(tmp_path / "out")
    assert call(*use, stereo, other).code == 1
    assert asked == ["all of it takes about 72 min; go on?"]
    assert not (tmp_path / "out").exists()


def test_priors_have_no_default(call, stereo: Path, tmp_path: Path) -> None:
    outcome = call("separate", stereo, "--out", tmp_path / "out")
    refused(
        outcome,
        "priors: got none, expected a shipped set (guitar, guitar-16k, music, music-4k, toy, ",
    )


@pytest.mark.parametrize(
    ("names", "preset"), [(["sine", "saw"], "standard"), (["oboe", "saw"], "quick")]
)
def test_the_preset_is_quick_but_of_tones(
    call, stereo: Path, tmp_path: Path, names: list[str], preset: str
) -> None:
    folder = tmp_path / "priors"
    folder.mkdir()
    arguments = ("separate", stereo, "--priors", save_tiny(folder, names), "--out")
    by_default = call(*arguments, tmp_path / "a", *QUICK[2:])
    assert by_default.code == 0, by_default.err
    assert call(*arguments, tmp_path / "b", *QUICK[2:], "--preset", preset).code == 0
    traces = [load_trace(tmp_path / out / "duet" / "trace.nc") for out in ("a", "b")]
    assert traces[0].attrs["settings"] == traces[1].attrs["settings"]
    refused(
        call(*arguments, tmp_path / "c", "--preset", "slow"),
        "'slow' is not one of 'quick', 'standard'",
    )


def test_the_mixture_of_a_track_bears_its_name(call, priors: Path, tmp_path: Path) -> None:
    track, out = tmp_path / "A - B", tmp_path / "out"
    track.mkdir()
    soundfile.write(track / "mixture.wav", 0.4 * np.sin(np.arange(300) / 5), 16_000)
    options = ("--priors", priors, "--out", out, "--draws", "1", *BUDGET)
    assert call("separate", track / "mixture.wav", *options).code == 0
    assert load_trace(out / "A - B" / "trace.nc").attrs["mixture"] == "A - B"


def test_a_report_that_cannot_be_written_keeps_no_file_from_its_turn(
    call, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = [tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "out"
    for path in paths:
        soundfile.write(path, 0.4 * np.sin(np.arange(300) / 5), 16_000)
    write = report.write_report

    def fails(tree: xr.DataTree, path: Path, **options: Any) -> None:
        if path.parent.name == "a":
            raise OSError(f"{path}: could not be written")
        write(tree, path, **options)

    monkeypatch.setattr(report, "write_report", fails)
    use = ("--priors", priors, "--out", out, "--report", *QUICK)
    outcome = call("separate", *paths, *use)
    assert outcome.code == 2
    (line,) = lines(outcome.err)
    assert line == f"pyro-sep: {paths[0]}: {out / 'a' / 'report.html'}: could not be written"
    assert sorted(os.listdir(out / "a")) == FILES
    assert sorted(os.listdir(out / "b")) == sorted([*FILES, "report.html"])


def test_separate_says_which_sources_are_there(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    arguments = ("separate", stereo, "--priors", priors, "--out", tmp_path, *BUDGET)
    outcome = call(*arguments, "--presence", "infer")
    assert outcome.code == 0
    presence = json.loads((tmp_path / "duet" / "summary.json").read_text())["presence"]
    assert list(presence) == ["sine", "saw"]
    trace = load_trace(tmp_path / "duet" / "trace.nc")
    drawn = select_draws(trace["posterior"]["presence"], estimate_draws(trace)).values
    assert list(presence.values()) == pytest.approx(drawn.mean(0).tolist(), abs=6e-4)
    last = outcome.out.splitlines()[-2]
    sine, saw = drawn.mean(0)
    assert last == f"{tmp_path / 'duet'}: probability of presence: sine {sine:.2f}, saw {saw:.2f}"
    refused(call(*arguments, "--presence", "maybe"), "'maybe' is not one of 'infer'")


def test_separate_begins_from_the_stems_of_another_separator(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    """All of it, from a folder of the track; then an excerpt of a channel, from that folder."""
    stems, out = tmp_path / "stems" / "duet", tmp_path / "out"
    stems.mkdir(parents=True)
    audio, rate = soundfile.read(stereo)
    soundfile.write(stems / "Sine.wav", 0.6 * audio, rate)
    use = ("separate", stereo, "--priors", priors, "--out", out, "--draws", "2")
    begin = (*use, "--initial", tmp_path / "stems")
    refused(call(*begin), f"{stems}: got none of the source saw, expected one file, saw.wav")
    assert not out.exists()
    soundfile.write(stems / "saw.wav", 0.0 * audio, rate)  # it rests
    assert call(*begin, "--report").code == 0
    summary = json.loads((out / "duet" / "summary.json").read_text())
    assert list(summary["initial"]["si_sdr"]) == ["sine"]
    soundfile.write(stems / "saw.wav", 0.4 * audio, rate)
    refused(call(*begin, "--presence", "infer"), "presence: got 'infer' beside initial stems")
    refused(call(*begin, "--levels", "6"), "levels: got 6 beside initial stems")
    outcome = call(*begin, "--report")
    assert outcome.code == 0, outcome.err
    summary = json.loads((out / "duet" / "summary.json").read_text())
    moved = summary["initial"]
    said = ", ".join(f"{name} {moved['si_sdr'][name]:.1f} dB" for name in ("sine", "saw"))
    assert f"SI-SDR to the initial stems: {said}; " in outcome.out
    assert moved["preferred"] in ("result", "initial", "neither")
    page = (out / "duet" / "report.html").read_text()
    assert f"SI-SDR to the initial stems: {said}; " in page
    assert "sine, initial stem" in page
    assert "separated before" in call(*begin).out
    soundfile.write(stems / "saw.wav", 0.3 * audio, rate)
    assert "separated before" not in call(*begin).out
    excerpt = ("--start", "0.002", "--channel", "2")
    assert call(*use, "--initial", stems, *excerpt).code == 0
    constant = load_trace(out / "duet" / "trace.nc")["constant_data"]
    heard = constant["initial"].sum("source") / 0.9
    mixture = load_trace(out / "duet" / "trace.nc")["observed_data"]["mixture"]
    assert np.allclose(heard, mixture, atol=1e-4)  # of 16 bits


def test_separate_both_channels(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    out, use = tmp_path / "out", ("separate", stereo, "--priors", priors, *QUICK, "--wide", "saw")
    refused(call(*use[:-1], "flute", "--out", out), "wide: got 'flute', expected some of sine, saw")
    refused(call(*use[:-1], "saw,", "--out", out), "wide: got 'saw,', expected names that differ")
    refused(call(*use, "--out", out, "--channel", "1"), "got channel 1, expected both of two")
    assert not out.exists()
    outcome = call(*use, "--out", out, "--report", "--residual", "--write-draws", "1")
    assert outcome.code == 0, outcome.err
    assert "mixed down" not in outcome.err
    folder = out / "duet"
    parts = [read_audio(folder / f"{name}.wav")[0] for name in ("sine", "saw", "residual")]
    assert torch.allclose(torch.stack(parts).sum(0), read_audio(stereo)[0], atol=1e-6)
    assert read_audio(folder / "draws" / "saw_01.wav")[0].shape == parts[0].shape
    trace = load_trace(folder / "trace.nc")
    assert json.loads(trace.attrs["places"]) == {"sine": "centre", "saw": "wide"}
    power = trace["posterior"]["side"].to_numpy().var((0, 1, 3))
    assert power[0] < power[1]  # of the sine, in the centre
    again = call(*use, "--out", out, "--report", "--residual", "--write-draws", "1")
    assert "separated before" in again.out
    begun = call(
        *(*use[:4], "--draws", "2", "--wide", "saw"),
        *("--initial", folder, "--out", tmp_path / "again"),
    )
    assert begun.code == 0, begun.err


@pytest.mark.parametrize("names", [["sine", "saw"], ["oboe", "saw"]])
def test_separate_takes_the_mean_of_all_chains_but_of_tones(
    call, stereo: Path, tmp_path: Path, names: list[str]
) -> None:
    priors = tmp_path / "priors"
    priors.mkdir()
    use = (*BUDGET, "--chains", "2", "--draws", "4", "--native")
    arguments = ("separate", stereo, "--priors", save_tiny(priors, names), "--out", tmp_path, *use)
    assert call(*arguments).code == 0
    folder = tmp_path / "duet"
    mean = load_trace(folder / "trace.nc")["posterior/sources"].values[:, :, 1].mean(1)
    stem = soundfile.read(folder / "saw.wav")[0]
    gain = 0.5 if names[0] == "sine" else 1.0
    off = [np.abs(stem - gain * one).max() for one in (*mean, mean.mean(0))]
    assert (np.argmin(off) == 2) == (names[0] == "oboe")
    assert call(*arguments, "--estimate", "mean").code == 0
    assert load_trace(folder / "trace.nc").attrs["estimate"] == "mean"
    refused(call(*arguments, "--estimate", "median"), "'median' is not one of 'mode', 'mean'")


@pytest.mark.parametrize("kind", ["priors", "both_families"])
def test_separate_adds_up_at_the_priors_own_rate(
    call, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    mixture = 0.4 * torch.sin(torch.arange(300) / 5).numpy()  # 300 is no multiple of 16
    soundfile.write(tmp_path / "a.wav", mixture, 16_000, subtype="FLOAT")
    folder = request.getfixturevalue(kind)
    arguments = ("--priors", folder, "--out", tmp_path / "out", *BUDGET)
    outcome = call("separate", tmp_path / "a.wav", *arguments)
    assert outcome.code == 0
    assert lines(outcome.err) == []
    stems = [soundfile.read(tmp_path / "out" / "a" / f"{name}.wav")[0] for name in ("sine", "saw")]
    assert [len(stem) for stem in stems] == [300, 300]
    assert np.abs(np.sum(stems, 0) - mixture).max() < 1e-2


def test_draws(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    arguments = ("--priors", priors, "--out", tmp_path, *BUDGET, "--draws", "7")
    assert call("separate", stereo, *arguments).code == 0
    assert load_trace(tmp_path / "duet" / "trace.nc")["posterior"].sizes["draw"] == 7


def test_many_files_of_many_kinds(call, priors: Path, tmp_path: Path) -> None:
    """One that cannot be separated does not keep the others from it."""
    audio = 0.3 * np.random.default_rng(0).standard_normal((900, 2))
    kinds = {"a.wav": 8_000, "b.flac": 48_000, "c.mp3": 44_100, "d.wav": 16_000}
    for name, rate in kinds.items():
        soundfile.write(tmp_path / name, audio, rate)
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    silent = write_bad(tmp_path, "silent")
    paths = [tmp_path / "a.wav", broken, silent, *(tmp_path / name for name in list(kinds)[1:])]
    out = tmp_path / "out"
    outcome = call("separate", *paths, "--priors", priors, "--out", out, "--residual", *BUDGET)
    assert outcome.code == 2
    errors = [line for line in lines(outcome.err) if line.startswith("pyro-sep: ")]
    assert [line.split(": got")[0] for line in errors] == [
        f"pyro-sep: {broken}",
        f"pyro-sep: {silent}: mixture",
    ]
    assert sorted(os.listdir(out)) == ["a", "b", "c", "d"]
    said = [line.split(": ")[0] for line in outcome.out.splitlines()]
    for i, name in enumerate(kinds):
        folder = str(out / Path(name).stem)
        assert said[3 * i : 3 * i + 3] == [str(tmp_path / name), folder, folder]
    for name, rate in kinds.items():
        recording, _ = soundfile.read(tmp_path / name)
        folder = out / Path(name).stem
        parts = [soundfile.read(folder / f"{stem}.wav") for stem in ("sine", "saw", "residual")]
        assert {part_rate for _, part_rate in parts} == {rate}
        error = np.sum([part for part, _ in parts], 0) - recording
        assert 10 * np.log10(np.square(error).mean() / np.square(recording).mean()) < -90


def test_two_files_of_one_name(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    use = ("--priors", priors, *QUICK, "--out", tmp_path / "out")
    outcome = call("separate", stereo, stereo, *use)
    assert outcome.code == 2
    assert f"{stereo}: got a second track 'duet' after {stereo}, expected names" in outcome.err
    assert os.listdir(tmp_path / "out") == ["duet"]  # the first


def test_a_name_that_is_none_of_a_track(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    names = ["...wav", "..wav", ".wav", "....stem.mp4", ".stem.mp4", "draws.wav"]
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / name for name in names]
    for path in paths:
        path.write_bytes(stereo.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "below" / "out"
    for path in paths[1:]:
        refused(call("separate", path, "--priors", priors, *QUICK, "--out", out), "'s name, ")
        assert not out.exists()
    outcome = call("separate", *paths, stereo, "--priors", priors, *QUICK, "--out", out)
    assert outcome.code == 2
    for name, line in zip(names, lines(outcome.err), strict=False):
        assert f"in/{name}: got " in line
        assert "as the track's name, expected one for its folder" in line
    assert_separated(out / "duet")
    assert os.listdir(out) == ["duet"]
    assert (
        sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(out.parent))
        == before
    )


def test_a_mixture_is_called_after_its_folder_as_it_is_given(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    (tmp_path / "store" / "0001").mkdir(parents=True)
    (tmp_path / "store" / "0001" / "Mixture.wav").write_bytes(stereo.read_bytes())
    (tmp_path / "Song").symlink_to(tmp_path / "store" / "0001")
    out = tmp_path / "out"
    mixture = tmp_path / "Song" / "Mixture.wav"
    assert call("separate", mixture, "--priors", priors, *QUICK, "--out", out).code == 0
    assert os.listdir(out) == ["Song"]
    assert load_trace(out / "Song" / "trace.nc").attrs["mixture"] == "Song"


def test_names_that_are_one_on_some_systems(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    for name in ("Song.wav", "song.wav", "caf\u00e9.wav", "cafe\u0301.wav"):
        (tmp_path / name).write_bytes(stereo.read_bytes())
    songs = sorted(tmp_path.glob("*.wav"))
    outcome = call("separate", *songs, "--priors", priors, *QUICK, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert len([line for line in lines(outcome.err) if "a second track" in line]) == 2
    assert len(os.listdir(tmp_path / "out")) == 2


def test_files_of_others_are_not_overwritten(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(stereo.read_bytes())
    out = tmp_path / "out"
    (out / "duet").mkdir(parents=True)
    options = ("--priors", priors, *QUICK, "--report", "--write-draws", "1", "--out", out)
    for foreign in ("sine.wav", "trace.nc", "summary.json", "report.html", "draws"):
        (out / "duet" / foreign).write_text("the user's")
        also = [other] if foreign == "draws" else []  # which is separated all the same
        outcome = call("separate", stereo, *also, *options)
        assert outcome.code == 2
        expected = f"{out / 'duet' / foreign}: got a file that no former run left there"
        assert expected in lines(outcome.err)[0]
        assert os.listdir(out / "duet") == [foreign]
        assert (out / "duet" / foreign).read_text() == "the user's"
        (out / "duet" / foreign).unlink()
    assert (out / "other" / "summary.json").exists()
    assert call("separate", stereo, *options).code == 0
    assert call("separate", stereo, *options, "--force").code == 0  # its own files are


def test_an_input_is_not_overwritten(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(stereo.read_bytes())
    (tmp_path / "song").mkdir()
    stem = tmp_path / "song" / "sine.wav"
    stem.write_bytes(stereo.read_bytes())
    outcome = call("separate", song, stem, "--priors", priors, *QUICK, "--out", tmp_path)
    assert outcome.code == 2
    assert "song/sine.wav: got an input of this command where results" in lines(outcome.err)[0]
    assert stem.read_bytes() == stereo.read_bytes()
    assert os.listdir(tmp_path / "song") == ["sine.wav"]
    assert (tmp_path / "sine" / "summary.json").exists()  # the second file's


def test_what_is_finished_is_not_separated_again(
    call, priors: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = ("separate", stereo, "--priors", priors, *QUICK, "--out", tmp_path)
    assert call(*use).code == 0
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "duet").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(AnnealedPosterior, "evaluate", None)
        again = call(*use)
        assert (again.code, again.out) == (
            0,
            f"{tmp_path / 'duet'}: separated before with these settings; --force does it anew\n",
        )
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "duet").iterdir()} == first
        assert call(*use, "--report").code == 0  # the page alone is made
        assert (tmp_path / "duet" / "report.html").exists()
        for more in (["--force"], ["--seed", "1"], ["--format", "flac"], ["--duration", "0.02"]):
            assert call(*use, *more).code == 2  # it would be sampled
    trace = (tmp_path / "duet" / "trace.nc").read_bytes()
    (tmp_path / "duet" / "saw.wav").unlink()
    assert call(*use).code == 0
    assert sorted(os.listdir(tmp_path / "duet")) == FILES
    assert (tmp_path / "duet" / "trace.nc").read_bytes() == trace


def test_the_order_of_stems_and_gains_belongs_to_a_run(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    use = ("separate", stereo, "--priors", priors, *QUICK, "--gains", "0.8,0.2", "--out")
    assert call(*use, tmp_path / "one", "--stems", "sine,saw").code == 0
    assert call(*use, tmp_path / "other", "--stems", "saw,sine").code == 0
    turned = call(*use, tmp_path / "one", "--stems", "saw,sine")
    assert "separated before" not in turned.out
    stems = [tmp_path / out / "duet" / "sine.wav" for out in ("one", "other")]
    assert np.array_equal(*(soundfile.read(stem)[0] for stem in stems))


def test_outputs_that_are_of_others(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    assert call("separate", stereo, "--priors", priors, *QUICK, "--out", tmp_path).code == 0
    trace = tmp_path / "duet" / "trace.nc"
    before = trace.read_bytes()
    refused(call("report", trace, "--out", trace), "got an input of this command as --out")
    refused(call("calibrate", tmp_path, "--references", tmp_path, "--out", trace), "did not write")
    for out in (tmp_path / "duet" / "sine.wav", tmp_path / "duet" / "summary.json"):
        refused(call("report", trace, "--out", out), "got a file that this command did not write")
    assert trace.read_bytes() == before
    page = tmp_path / "page.html"
    assert call("report", trace, "--out", page).code == 0
    assert call("report", trace, "--out", page).code == 0  # its own
    refused(call("report", trace, "--out", tmp_path / "none" / "page.html"), "create it first")


def test_other_audio_under_the_same_name_is_separated(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    song, out = tmp_path / "duet.wav", tmp_path / "out"
    use = ("separate", song, "--priors", priors, *QUICK, "--out", out)
    song.write_bytes(stereo.read_bytes())
    assert call(*use).code == 0
    audio, rate = soundfile.read(stereo)
    soundfile.write(song, 0.5 * audio, rate)
    outcome = call(*use)
    assert outcome.code == 0
    assert "separated before" not in outcome.out


ERRORS = {
    "empty": (ValueError(), "no more is known"),
    "lines": (ValueError("\n \nreason"), "reason"),
    "zero": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    "memory": (MemoryError(), "MemoryError: no more is known"),
    "eof": (EOFError(), "EOFError: no more is known"),
    "deep": (RecursionError("deep"), "RecursionError: deep"),
}


def test_one_file_never_ends_a_batch(
    call, priors: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{name}.wav" for name in (*ERRORS, "other")]
    for path in paths:
        path.write_bytes(stereo.read_bytes())
    write = recordings.write_separation

    def fails(result, folder: Path, *arguments):
        if folder.name in ERRORS:
            raise ERRORS[folder.name][0]
        return write(result, folder, *arguments)

    monkeypatch.setattr(recordings, "write_separation", fails)
    out = tmp_path / "out"
    outcome = call("separate", *paths, "--priors", priors, *QUICK, "--out", out)
    assert outcome.code == 2
    errors = [line for line in lines(outcome.err) if line.startswith("pyro-sep: ")]
    assert errors == [
        f"pyro-sep: {path}: {ERRORS[path.stem][1]}" for path in paths if path.stem in ERRORS
    ]
    assert (out / "other" / "summary.json").exists()


def test_a_terminal_interprets_no_name(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    song = tmp_path / "a\x1b[31mred\x07.wav"
    song.write_bytes(stereo.read_bytes())
    gone = tmp_path / "\x1b]0;title.wav"
    outcome = call("separate", song, gone, "--priors", priors, *QUICK, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert r"a\x1b[31mred\x07" in outcome.out
    assert r"\x1b]0;title.wav: no such file" in outcome.err
    assert "\x1b[31m" not in outcome.out + outcome.err
    assert "\x07" not in outcome.out + outcome.err


def test_what_does_not_fit_is_known_before_it_is_sampled(
    call, priors: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnnealedPosterior, "evaluate", None)
    audio, rate = soundfile.read(stereo)
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, 3 * audio, rate, "FLOAT")
    use = ("--priors", priors, *QUICK, "--out", tmp_path / "out")
    outcome = call("separate", loud, *use, "--format", "flac")
    assert lines(outcome.err)[-1] == (
        f"pyro-sep: {loud}: format: got a recording with a peak of 1.5 for FLAC, which ends at "
        "full scale, 1, expected wav; use --format wav"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9_000))
    outcome = call("separate", stereo, *use)
    last = lines(outcome.err)[-1]
    assert last.startswith(f"pyro-sep: {stereo}: {tmp_path / 'out' / 'duet'}: got 0.0 MB of free")
    assert not (tmp_path / "out" / "duet").exists()


def test_stems_of_choice(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    out, use = tmp_path / "out", ("separate", stereo, "--priors", priors, *BUDGET, "--out")
    options = ("--format", "flac", "--stems", "saw", "--residual", "--native", "--write-draws", "2")
    excerpt = ("--start", "0.002", "--duration", "0.02")
    outcome = call(*use, out, *options, *excerpt)
    assert outcome.code == 0, outcome.err
    assert lines(outcome.err)[0] == f"{stereo}: cut to 0.020 s from 0.002 s on"
    names = "saw.flac, residual.flac, draws, trace.nc, separation.png, summary.json"
    assert outcome.out.splitlines()[1] == f"{out / 'duet'}: {names}"
    assert sorted(os.listdir(out / "duet")) == sorted(names.split(", "))
    assert sorted(os.listdir(out / "duet" / "draws")) == ["saw_01.flac", "saw_02.flac"]
    for name in ("saw", "residual", "draws/saw_01"):
        info = soundfile.info(out / "duet" / f"{name}.flac")
        assert (info.subtype, info.samplerate, info.frames) == ("PCM_24", 16_000, 320)
        assert info.channels == 1
    assert load_trace(out / "duet" / "trace.nc")["posterior"]["source"].values.tolist() == ["saw"]
    turned = call(*use, out, "--stems", "saw,sine")
    assert turned.out.splitlines()[1].startswith(f"{out / 'duet'}: saw.wav, sine.wav, trace.nc")
    assert sorted(os.listdir(out / "duet")) == FILES  # of this run alone


def test_segments_give_the_same_stems(
    call, both_families: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = ("separate", stereo, "--priors", both_families, *BUDGET, "--draws", "5", "--out")
    assert call(*use, tmp_path / "whole").code == 0
    lengths = []
    for network in (WaveNet, FloWaveNet):

        def forward(self, x, sigma, original=network.forward):  # type: ignore[no-untyped-def]
            lengths.append(x.shape[-1])
            return original(self, x, sigma)

        monkeypatch.setattr(network, "forward", forward)
    assert call(*use, tmp_path / "parts", "--segment", "0.006").code == 0
    assert max(lengths) < 363  # audio samples of the recording at 16 kHz
    for name in ("sine", "saw"):
        stems = [
            soundfile.read(tmp_path / f / "duet" / f"{name}.wav")[0] for f in ("whole", "parts")
        ]
        assert np.abs(stems[0] - stems[1]).max() < 1e-3 * np.abs(stems[0]).max()


def test_options_that_do_not_fit(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    use = ("separate", stereo, "--priors", priors, "--out", tmp_path / "out")
    for options, message in (
        (("--stems", "sine,cello"), "sources: got 'cello', expected some of sine, saw"),
        (("--format", "mp3"), "'mp3' is not one of 'wav', 'flac'"),
        (("--levels", "5"), "levels: got 5, expected at least 6"),
        (("--write-draws", "9", "--draws", "8"), "write-draws: got 9, expected at most 8, which"),
        (("--segment", "0"), "segment: got 0 s, expected at least 1 / 16000 s, an audio sample"),
        (("--start", "3"), "duet.wav: got an excerpt from 3 s on, expected one"),
        (("--duration", "0"), "duet.wav: got an excerpt of 0 s from 0 s on, expected"),
    ):
        refused(call(*use, *options), message)
    assert not (tmp_path / "out").exists()


@needs_ffmpeg
def test_the_mixture_of_a_stem_mp4(call, priors: Path, tmp_path: Path) -> None:
    song = tmp_path / "A song. 2.stem.mp4"
    cut = ("-map", "0", "-c", "copy", "-t", "0.1", song)
    subprocess.run(["ffmpeg", "-v", "error", "-i", excerpt(), *cut], check=True)
    out, use = tmp_path / "out", ("--priors", priors, *BUDGET, "--draws", "2", "--residual")
    outcome = call("separate", song, "--out", out, *use)
    assert outcome.code == 0, outcome.err
    assert lines(outcome.err) == [f"{song}: {note}" for note in NOTES]
    folder = out / "A song. 2"
    stems = [soundfile.read(folder / f"{n}.wav") for n in ("sine", "saw", "residual")]
    mixture, rate = read_audio(song)
    assert {stem_rate for _, stem_rate in stems} == {rate} == {44_100}
    assert np.abs(np.sum([stem for stem, _ in stems], 0).T - mixture.numpy()).max() < 1e-5
    (folder / "sine.wav").rename(folder / "bass.wav")
    judged = call("evaluate", out, "--musdb", song)
    assert judged.code == 0, judged.err
    assert judged.out.splitlines()[0] == "A song. 2"
    excerpted = call("separate", song, "--out", out, *use, "--start", "0.05", "--duration", "0.02")
    assert excerpted.code == 0, excerpted.err
    assert soundfile.info(folder / "sine.wav").frames == 882


@needs_ffmpeg
def test_a_stem_mp4_that_is_cut_off(call, priors: Path, tmp_path: Path) -> None:
    song = tmp_path / "song.stem.mp4"
    song.write_bytes(excerpt().read_bytes()[:500_000])
    outcome = call("separate", song, "--priors", priors, "--out", tmp_path / "out", *BUDGET)
    refused(outcome, "audio samples of mixture, expected 268288; the file is cut off, copy it")
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_written_is_not_drawn_again(
    call, priors: Path, stereo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    use = ("separate", stereo, "--priors", priors, *BUDGET, "--out")
    assert call(*use, whole).code == 0

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(recordings, "write_separation", full)
        assert call(*use, cut).code == 2
    assert os.listdir(cut / "duet") == ["checkpoint.pt"]
    other = call(*use, cut, "--seed", "5")
    (line,) = lines(other.err)[2:]
    assert line.startswith(f"pyro-sep: {stereo}: {cut / 'duet' / 'checkpoint.pt'}: got the ")
    assert line.endswith(
        "of seed 0, expected seed 5; give the options that it had, or another place, or delete it"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", None)
        assert call(*use, cut).code == 0
    assert_separated(cut / "duet")
    traces = [folder / "duet" / "trace.nc" for folder in (cut, whole)]
    assert traces[0].read_bytes() == traces[1].read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(priors: Path, stereo: Path, tmp_path: Path) -> None:
    outs = tmp_path / "whole", tmp_path / "cut"
    whole, cut = (out / "duet" for out in outs)
    use = command("separate", stereo, "--priors", priors, *BUDGET, "--draws", "400", "--out")
    subprocess.run([*use, outs[0]], env=ENV, capture_output=True, check=True)
    with subprocess.Popen([*use, outs[1]], env=ENV, stderr=subprocess.DEVNULL) as process:
        while not (cut / "checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert "trace.nc" not in os.listdir(cut)
    done = subprocess.run([*use, outs[1]], env=ENV, capture_output=True, text=True, check=True)
    assert done.returncode == 0
    assert "  0%" not in done.stderr  # it did not begin anew
    files = sorted(os.listdir(whole))  # another process may find alternatives, see one_explanation
    assert {*FILES} <= {*files}
    assert_separated(cut, files)
    assert (cut / "trace.nc").read_bytes() == (whole / "trace.nc").read_bytes()
    for name in ("sine.wav", "saw.wav"):  # a WAV file holds the time of day
        stems = [soundfile.read(folder / name)[0] for folder in (cut, whole)]
        assert np.array_equal(*stems)


def write_bad(folder: Path, case: str) -> Path:
    path = folder / f"{case}.wav"
    audio = 0.3 * np.sin(np.arange(1_000, dtype=np.float32))
    if case == "text":
        path.write_text("this is no audio\n" * 50)
    elif case == "zero":
        path.touch()
    elif case == "folder":
        path.mkdir()
    elif case != "missing":
        audio[10] = np.nan if case == "nan" else audio[10]
        audio = {"silent": 0 * audio, "short": audio[:100]}.get(case, audio)
        soundfile.write(path, audio, 16_000, subtype="FLOAT")
    return path


BAD_AUDIO = {
    "missing": "no such file",
    "text": "got no readable audio",
    "zero": "got no readable audio",
    "folder": "got a folder",
    "nan": "got NaN or infinity",
    "silent": "got silence",
    "short": "got 100 audio samples, expected at least 256",
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio(call, priors: Path, tmp_path: Path, case: str) -> None:
    path, out = write_bad(tmp_path, case), tmp_path / "out"
    outcome = call("separate", path, "--priors", priors, "--out", out)
    refused(outcome, BAD_AUDIO[case])
    assert not out.exists() or not os.listdir(out)


def test_bad_audio_as_a_user_sees_it(priors: Path, tmp_path: Path) -> None:
    path = write_bad(tmp_path, "text")
    arguments = command("separate", path, "--priors", priors, "--out", tmp_path / "out")
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True)
    refused(Outcome(done.returncode, done.stdout, done.stderr), f"{path}: got no readable audio")
    assert not (tmp_path / "out").exists()


def spoil(folder: Path, case: str, original: Path) -> None:
    """Copy priors with one of them spoilt."""
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoilt = folder / "saw.safetensors"
    if case == "truncated":
        spoilt.write_bytes(spoilt.read_bytes()[:-100])
    elif case == "noise":
        spoilt.write_bytes(bytes(range(256)) * 20)
    elif case == "foreign":
        save_file({"weight": torch.zeros(3)}, spoilt)
    elif case == "misfit":
        prior = load_prior(original / "saw.safetensors")
        save_prior(prior, spoilt)
        from safetensors import safe_open

        with safe_open(spoilt, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(spoilt)
        tensors.pop("read.weight")
        save_file(tensors, spoilt, metadata)
    elif case == "unlisted":
        spoilt.unlink()
    elif case == "order":
        (folder / "priors.json").write_text("{")


BAD_PRIORS = {
    "truncated": "saw.safetensors: not a readable safetensors file",
    "noise": "saw.safetensors: not a readable safetensors file",
    "foreign": "got format None, expected one of pyro_sep.wavenet.1, pyro_sep.flow.1",
    "misfit": "saw.safetensors: weights do not fit their config",
    "unlisted": "saw.safetensors: not a readable safetensors file",
    "order": "priors.json: expected {",
}


@pytest.mark.parametrize("case", BAD_PRIORS)
def test_bad_priors(call, priors: Path, stereo: Path, tmp_path: Path, case: str) -> None:
    spoil(tmp_path, case, priors)
    out = tmp_path / "out"
    refused(call("separate", stereo, "--priors", tmp_path, "--out", out), BAD_PRIORS[case])
    assert not out.exists()


def test_unknown_names(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    to = ("--out", out)
    message = "priors: got 'orchestra', expected a shipped set (guitar, guitar-16k, music, "
    refused(call("separate", stereo, "--priors", "orchestra", *to), message)
    (tmp_path / "empty").mkdir()
    message = "empty: no *.safetensors in it; train priors with `pyro-sep train`"
    refused(call("separate", stereo, "--priors", tmp_path / "empty", *to), message)
    device = "device: got 'abacus', expected cpu or one that is here"
    use = ("--device", "abacus")
    refused(call("separate", stereo, "--priors", priors, *to, *use), device)
    refused(call("audit", "--priors", priors, *to, *use), device)
    refused(call("train", "--source", "toy:sine", *to, *use), device)
    message = "size: got 'huge', expected one of toy, music, music-4k, "
    refused(call("train", "--source", "toy:sine", *to, "--size", "huge"), message)
    refused(call("train", "--source", "toy:sine", *to, "--size", "paper-musdb18"), "size: got")
    message = "size: got 'huge', expected one of toy, toy-deep, paper"
    use = ("--family", "flow", "--size", "huge")
    refused(call("train", "--source", "toy:sine", *to, *use), message)
    message = "'organ' is not one of 'wavenet', 'flow'; see "
    refused(call("train", "--source", "toy:sine", *to, "--family", "organ"), message)
    message = "'boiled' is not one of 'conditional', 'serial'"
    refused(call("train", "--source", "toy:sine", *to, "--recipe", "boiled"), message)
    message = "source: got 'toys:sine', expected toy:WAVEFORM or a folder"
    refused(call("train", "--source", "toys:sine", *to), message)
    message = "waveform: got 'cosine', expected one of sine, saw, square, triangle"
    refused(call("train", "--source", "toy:cosine", *to), message)
    message = "source: got 'sine', expected NAME=SOURCE"
    refused(call("audit", "--priors", priors, "--source", "sine", *to), message)
    message = "audio: got ['cello', 'saw', 'sine'], expected the priors' names ['saw', 'sine']"
    refused(call("audit", "--priors", priors, "--source", "cello=toy:saw", *to), message)
    assert not out.exists()


def test_an_audit_needs_a_level_that_all_know(
    call, priors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_sep.priors.auditing.SIGMAS", (7.0, 9.0))
    message = "priors: got none that all know of the levels 7.0, 9.0, expected one"
    refused(call("audit", "--priors", priors), message)


def test_recordings_are_sums_and_toy_mixtures_means(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    flute = tmp_path / "flute"
    flute.mkdir()
    for file, name in (("saw", "flute"), ("sine", "sine")):
        shutil.copy(priors / f"{file}.safetensors", flute / f"{name}.safetensors")
    for folder, gain in ((priors, 0.5), (flute, 1.0)):
        assert call("separate", stereo, "--priors", folder, "--out", tmp_path, *BUDGET).code == 0
        trace = load_trace(tmp_path / "duet" / "trace.nc")
        assert trace["constant_data"]["gains"].values.tolist() == [gain, gain]


def test_gains_and_noise_are_numbers_or_inferred(
    call, priors: Path, stereo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    use = ("separate", stereo, "--priors", priors, "--out", out, *BUDGET)
    assert call(*use, "--gains", "infer", "--noise-scale", "infer").code == 0
    posterior = load_trace(out / "duet" / "trace.nc")["posterior"]
    assert {"gains", "noise_scale"} <= set(posterior.data_vars)
    assert call(*use, "--gains", "0.3,0.7", "--noise-scale", "0.01").code == 0
    trace = load_trace(out / "duet" / "trace.nc")
    assert trace["constant_data"]["gains"].values == pytest.approx([0.3, 0.7])
    assert trace.attrs["noise_scale"] == 0.01
    for options, message in (
        (("--gains", "loud"), "gains: got 'loud', expected numbers or infer"),
        (("--gains", "0.3"), "gains: got 1 for 2 priors"),
        (("--gains", "0.3,infer"), "gains: got '0.3,infer', expected numbers or infer"),
        (("--noise-scale", "some"), "noise_scale: got 'some', expected a number or infer"),
    ):
        outcome = call(*use, *options)
        assert outcome.code == 2
        assert message in lines(outcome.err)[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta:cuda"])
def test_a_device_that_is_not_here(
    call, priors: Path, stereo: Path, tmp_path: Path, device: str
) -> None:
    arguments = ("--priors", priors, "--out", tmp_path / "out", "--device", device)
    refused(call("separate", stereo, *arguments), f"device: got '{device}', expected cpu or one")


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_place_of_the_folder(
    call, priors: Path, stereo: Path, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / below
    outcome = call("separate", stereo, "--priors", priors, "--out", out)
    assert outcome.code == 2
    assert lines(outcome.err)[:2] == [f"{stereo}: {note}" for note in NOTES]
    (line,) = lines(outcome.err)[2:]
    assert line.startswith(f"pyro-sep: {stereo}: {out / 'duet'}: cannot be written to (")
    assert line.endswith("); give another folder")
    assert (tmp_path / "file").read_text() == "kept"
    train = call("train", "--source", "toy:sine", "--out", out)
    assert (train.code, len(lines(train.err))) == (2, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["separate"],
        ["separate", "a.wav"],
        ["separate", "a.wav", "--out", "out", "--nothing"],
        ["separate", "a.wav", "--out", "out", "--seed", "one"],
        ["separate", "a.wav", "--out", "out", "--chains", "0"],
        ["train", "--source", "toy:sine", "--out", "out", "--sample-rate", "999"],
        ["train", "--source", "toy:sine"],
        ["train", "--source", "toy:sine", "--out", "out", "--steps", "0"],
        ["nothing"],
        [],
    ],
)
def test_usage_errors(
    call, arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), "")
    assert os.listdir(tmp_path) == []


def test_help_names_every_command(call) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    commands = ("train", "audit", "separate", "diagnose", "report", "calibrate", "evaluate")
    assert all(name in outcome.out for name in commands)


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, pyro_sep.cli.app; sys.exit(bool({'torch', 'pyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_train_has_the_defaults_of_the_library() -> None:
    library = inspect.signature(training.train_prior).parameters
    command_line = inspect.signature(train).parameters
    assert set(command_line) <= set(library)
    for name, parameter in command_line.items():
        assert parameter.default == library[name].default, name


def test_an_interrupt_leaves_nothing_half_written(
    priors: Path, stereo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command("separate", stereo, "--priors", priors, "--out", out, "--draws", "100000")
    with subprocess.Popen(
        arguments,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A run in the background of a shell inherits that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (out / "duet" / "checkpoint.pt").exists():  # under way
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out_text, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert err.decode().splitlines()[-2:] == [
        f"the same command goes on from {out / 'duet' / 'checkpoint.pt'}",
        "interrupted",
    ]
    assert out_text.decode().splitlines()[1:] == []  # beside what it takes
    assert os.listdir(out / "duet") == ["checkpoint.pt"]


TRAIN = ("train", "--source", "toy:sine", "--batch", "1", "--time", "64", "--seed", "3")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("family", "network"), [("wavenet", "WaveNet"), ("flow", "FloWaveNet")])
def test_train_writes_weights_and_their_card(
    call, tmp_path: Path, family: str, network: str
) -> None:
    out = tmp_path / "new"
    use = ("--family", family, "--out", out) if family == "flow" else ("--out", out)
    outcome = call(*TRAIN, "--steps", "2", *use)
    assert outcome.code == 0, outcome.err
    path = out / "sine.safetensors"
    assert outcome.out == f"{path}: prior of sine, its model card beside it\n"
    assert sorted(os.listdir(out)) == ["priors.json", "sine.md", "sine.run", "sine.safetensors"]
    stated = json.loads((out / "priors.json").read_text())
    assert stated == {"priors": ["sine"], "mixing": "mean", "estimate": "mode"}
    prior = load_prior(path)
    assert type(prior) is PRIORS[family]
    assert (prior.name, prior.sample_rate) == ("sine", 16_000)
    assert prior.rms == pytest.approx(0.9 / 2**0.5, abs=0.05)  # RMS of sines of 0.8 to 1
    card = path.with_suffix(".md").read_text()
    for words in (
        "# Prior of sine",
        "`toy:sine`, 16000 Hz",
        f"- Model: {network}, ",
        f"pyro-sep train --source toy:sine --out DIR --family {family} --size toy",
        "--size toy --recipe conditional --steps 2 --batch 1 --time 64",
        "--seed 3 --sample-rate 16000`",
        f"{sum(p.numel() for p in prior.network.parameters()):,} parameters",
        "noise levels 0.01 to 5",
        "2 frames of 2048 samples",
        "| 0.359 | ",
    ):
        assert words in card, words
    again = call(*TRAIN, "--steps", "3", *use)
    refused(again, "got a run of another config")


@pytest.mark.usefixtures("tiny")
def test_a_frame_that_the_network_cannot_take(call, tmp_path: Path) -> None:
    use = ("--family", "flow", "--time", "100", "--out", tmp_path / "out")
    message = "time: got 100 audio samples per frame, expected a multiple of 16 for this network"
    refused(call("train", "--source", "toy:sine", *use), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "family",
    [
        "wavenet",
        "flow",
    ],
)
def test_the_serial_recipe_writes_a_set_per_level(call, tmp_path: Path, family: str) -> None:
    out = tmp_path / "new"
    arguments = (*TRAIN, "--steps", "5", "--family", family, "--recipe", "serial", "--out", out)
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    folders = [f"sigma-{sigma:g}" for sigma in SERIAL_SIGMAS]
    assert sorted(os.listdir(out)) == sorted([*folders, "sine.run"])
    assert sorted(os.listdir(out / "sine.run")) == sorted(folders)
    assert outcome.out.splitlines() == [
        f"{out / folder / 'sine.safetensors'}: prior of sine, its model card beside it"
        for folder in folders
    ]
    written = {}
    for sigma, folder in zip(SERIAL_SIGMAS, folders, strict=True):
        assert sorted(os.listdir(out / folder)) == ["priors.json", "sine.md", "sine.safetensors"]
        (prior,) = load_priors(out / folder).values()
        assert type(prior) is PRIORS[family]
        assert prior.sigmas == (sigma, sigma)
        card = (out / folder / "sine.md").read_text()
        assert "--recipe serial --steps 5" in card
        assert f"noise levels {sigma:g} to {sigma:g}, full scale 1" in card
        assert card.count("\n| 0.") == (sigma > 0)  # a row at its own level; none without noise
        written[folder] = load_file(out / folder / "sine.safetensors")
    for before, after in itertools.pairwise(written.values()):
        assert any(not torch.equal(value, after[key]) for key, value in before.items())
    again = call(*arguments)  # all of it is read back
    assert again.code == 0
    for folder, weights in written.items():
        once_more = load_file(out / folder / "sine.safetensors")
        assert all(torch.equal(value, once_more[key]) for key, value in weights.items())


KILLED = """
import os, signal, sys
from pyro_sep.models import train
save, saves = train.save_state, []

def last_save(*arguments):
    save(*arguments)
    saves.append(1)
    if len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

train.save_state, train.CHECKPOINT_SECONDS = last_save, 0.0
from pyro_sep.cli.app import main
main()
"""


def test_a_killed_training_goes_on(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "AUDIT_FRAMES", 1)
    arguments = (*TRAIN, "--steps", "4", "--out")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, str(tmp_path / "killed")],
        env=ENV,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "killed") == ["sine.run"]
    resumed = call(*arguments, tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    assert "| 2/4 [" in resumed.err
    assert "| 0/4 [" not in resumed.err
    assert call(*arguments, tmp_path / "whole").code == 0
    first = load_file(tmp_path / "killed" / "sine.safetensors")
    second = load_file(tmp_path / "whole" / "sine.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value, second[key], atol=1e-6), key


@pytest.mark.usefixtures("tiny")
def test_train_goes_on_with_its_own_audio_alone(call, tmp_path: Path) -> None:
    use = ("train", "--steps", "1", "--batch", "1", "--time", "64", "--out", tmp_path / "out")
    for place, rate in (("a", 440), ("b", 1_100)):
        (tmp_path / place / "bass").mkdir(parents=True)
        tone = 0.3 * np.sin(2 * np.pi * rate * np.arange(8_000) / 16_000)
        soundfile.write(tmp_path / place / "bass" / "tone.wav", tone, 16_000)
    assert call(*use, "--source", tmp_path / "a" / "bass").code == 0
    stated = json.loads((tmp_path / "out" / "priors.json").read_text())
    assert stated == {"priors": ["bass"], "mixing": "sum", "estimate": "mean"}
    tone = call("train", "--source", "toy:saw", "--out", tmp_path / "out")
    refused(tone, "out: got priors of mixing 'sum' and estimate 'mean', expected 'mean' and")
    weights = (tmp_path / "out" / "bass.safetensors").read_bytes()
    other = call(*use, "--source", tmp_path / "b" / "bass")
    assert "checkpoint.pt: got a run of another config" in lines(other.err)[-1]
    slower = call(*use, "--source", tmp_path / "a" / "bass", "--sample-rate", "8000")
    assert slower.code == 2
    assert call(*use, "--source", tmp_path / "a" / "bass").code == 0
    assert (tmp_path / "out" / "bass.safetensors").read_bytes() == weights
    tones = call(*use, "--source", "toy:sine", "--sample-rate", "8000")
    refused(tones, "expected 16000, its own rate")
    refused(call(*use, "--source", ""), "source: got no name")


@pytest.mark.usefixtures("tiny")
def test_train_does_not_overwrite_weights_of_others(call, tmp_path: Path) -> None:
    weights = save_tiny(tmp_path, ["sine"]) / "sine.safetensors"
    before = weights.read_bytes()
    refused(call(*TRAIN, "--steps", "1", "--out", tmp_path), "got a file of another run, expected")
    assert weights.read_bytes() == before
    assert not (tmp_path / "sine.run").exists()
    new = (*TRAIN, "--steps", "1", "--out", tmp_path / "new")
    assert call(*new).code == 0
    assert call(*new).code == 0  # its own
    with only_run(tmp_path / "new" / "sine.run"):
        refused(call(*new), "sine.run: got another run that writes to it now")


def test_audit(call, priors: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--frames", "2", "--time", "64", "--seed", "1", "--out", out)
    outcome = call("audit", "--priors", priors, *arguments)
    assert outcome.code == 0, outcome.err
    table = json.loads((out / "audit.json").read_text())
    assert table["names"] == ["sine", "saw"]
    verdicts = [line for line in outcome.out.splitlines() if line.startswith("sigma ")]
    assert verdicts == [
        f"sigma {sigma}: {'discriminative' if verdict else 'NOT discriminative'}"
        for sigma, verdict in table["discriminative"].items()
    ]
    assert len(verdicts) == len(table["sigmas"]) == 7
    value = table["excess[sigma][prior][source]"][0][1][0]  # saw prior on sines at 0.01
    (row,) = [x for x in outcome.out.splitlines() if x.split("|")[0].split() == ["0.01", "saw"]]
    assert float(row.split("|")[1].split()[0]) == pytest.approx(value, abs=6e-4)
    assert (out / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(out)) == ["audit.json", "audit.png"]


def test_audit_of_two_families(call, both_families: Path) -> None:
    arguments = ("audit", "--priors", both_families, "--frames", "2", "--time")
    outcome = call(*arguments, "64")
    assert outcome.code == 0, outcome.err
    assert sum(line.startswith("sigma ") for line in outcome.out.splitlines()) == 7
    bad = call(*arguments, "100")
    assert bad.code == 2
    last = lines(bad.err)[-1]  # after the progress bar
    assert last.startswith("pyro-sep: time: got 100 audio samples, expected a positive multiple")


def test_audit_on_recordings(call, priors: Path, tmp_path: Path) -> None:
    audio = 0.5 * np.sin(np.arange(4_000) / 7)
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    arguments = ("--frames", "2", "--time", "64", "--source", f"sine={tmp_path}")
    outcome = call("audit", "--priors", priors, *arguments)
    assert outcome.code == 0, outcome.err
    toy = call("audit", "--priors", priors, *arguments[:-2])
    assert outcome.out != toy.out
    assert outcome.out.splitlines()[:2] == toy.out.splitlines()[:2]
    both = call("audit", "--priors", priors, *arguments, "--source", "sine=toy:sine")
    assert both.code == 0, both.err
    assert both.out not in (outcome.out, toy.out)


@needs_ffmpeg
@pytest.mark.usefixtures("tiny")
def test_train_and_audit_on_musdb(call, tmp_path: Path) -> None:
    write_tracks(tmp_path / "db")
    out, use = tmp_path / "out", ("--musdb", tmp_path / "db")
    short = ("--steps", "1", "--batch", "1", "--time", "64", "--out", out)
    outcome = call("train", "--source", "musdb:drums", *use, *short)
    assert outcome.code == 0, outcome.err
    card = (out / "drums.md").read_text()
    for words in ("alone, `musdb:drums`", "--source musdb:drums --musdb ROOT --out DIR", "| 1 |"):
        assert words in card
    arguments = ("audit", "--priors", out, *use, "--frames", "2", "--time", "64")
    by_default = call(*arguments)
    assert by_default.code == 0, by_default.err
    assert call(*arguments, "--source", "drums=musdb:drums").out == by_default.out
    swapped = call(*arguments, "--source", f"drums={tmp_path / 'db' / 'test'}:bass")
    assert swapped.code == 0, swapped.err
    assert swapped.out != by_default.out


@needs_ffmpeg
def test_evaluate(call, tmp_path: Path) -> None:
    stems = tmp_path / "db" / "test" / "c"
    write_tracks(tmp_path / "db")
    shutil.copytree(stems, tmp_path / "guess" / "c")
    (tmp_path / "guess" / "c" / "vocals.wav").unlink()
    shutil.copy(stems / "other.wav", tmp_path / "guess" / "c" / "drums.wav")
    arguments = ("evaluate", tmp_path / "guess", "--out", tmp_path / "out")
    outcome = call(*arguments, "--musdb", tmp_path / "db")
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(os.listdir(tmp_path / "out")) == ["scores.csv", "summary.csv"]
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores.columns.tolist() == ["track", "stem", "SI-SDR", "improvement"]
    assert scores[["track", "stem"]].values.tolist() == [
        ["c", "bass"],
        ["c", "drums"],
        ["c", "other"],
    ]
    assert (scores["SI-SDR"] > 60).tolist() == [True, False, True]
    blocks = outcome.out.split("medians\n")
    assert blocks[0].startswith("c\n")
    assert f"{scores['SI-SDR'][1]:.2f}" in blocks[1]
    assert call(*arguments, "--references", tmp_path / "db" / "test").out == outcome.out
    two = call(*arguments, "--references", tmp_path / "db", "--stems", "drums,bass").out
    assert [line.split()[0] for line in two.splitlines()[3:5]] == ["drums", "bass"]


@needs_ffmpeg
def test_evaluate_with_bss_eval(call, tmp_path: Path) -> None:
    pytest.importorskip("museval")
    for seed, stem in enumerate(("bass", "drums")):
        sound = np.random.default_rng(seed).standard_normal(6_000)
        for folder, scale in (("truth", 0.1), ("guess", 0.09)):
            (tmp_path / folder / "song").mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / folder / "song" / f"{stem}.wav", scale * sound, 4_000)
    arguments = ("evaluate", tmp_path / "guess", "--references", tmp_path / "truth")
    outcome = call(*arguments, "--bss-eval", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert list(map(str, found)) == ["scores.csv", "summary.csv", "test/song.json"]
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores.columns[-4:].tolist() == ["SDR", "ISR", "SIR", "SAR"]
    # Scale counts: a tenth is missing. To 16 bits both are rounded, 67 dB below.
    assert scores["SDR"].tolist() == pytest.approx([20, 20], abs=0.01)


def test_evaluate_what_is_not_there(call, tmp_path: Path) -> None:
    out, song = tmp_path / "out", tmp_path / "guess" / "song"
    song.mkdir(parents=True)
    arguments = ("evaluate", tmp_path / "guess", "--out", out)
    message = "expected one of --musdb ROOT and --references FOLDER"
    refused(call(*arguments), message)
    truth = ("--references", tmp_path / "guess")
    refused(call(*arguments, "--musdb", tmp_path, *truth), message)
    refused(call(*arguments, *truth), "guess: got no audio file")
    soundfile.write(song / "bass.wav", np.zeros(100), 8_000)
    (tmp_path / "truth" / "tune").mkdir(parents=True)
    soundfile.write(tmp_path / "truth" / "tune" / "bass.wav", np.zeros(100), 8_000)
    message = "got track 'song' without a reference, expected some of tune"
    refused(call(*arguments, "--references", tmp_path / "truth"), message)
    assert not out.exists()
    for content, message in ((b"", "got no readable audio"), (b"text", "got no readable audio")):
        (song / "bass.wav").write_bytes(content)
        refused(call(*arguments, *truth), message)
    soundfile.write(song / "bass.wav", np.full(100, np.nan), 8_000, subtype="FLOAT")
    refused(call(*arguments, *truth), "got NaN or infinity")
    assert not out.exists()


def test_evaluate_goes_on_after_a_bad_track(call, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for place in ("truth", "guess"):
        for track in ("-good", "bad"):
            (tmp_path / place / track).mkdir(parents=True)
            for stem in ("bass", "drums"):
                audio = 0.1 * generator.standard_normal(8_000)
                soundfile.write(tmp_path / place / track / f"{stem}.wav", audio, 8_000)
    (tmp_path / "guess" / "bad" / "bass.wav").write_bytes(b"no audio")
    truth = ("--references", tmp_path / "truth", "--out", tmp_path / "out")
    outcome = call("evaluate", tmp_path / "guess", *truth)
    assert outcome.code == 2
    (line,) = lines(outcome.err)
    assert "bad/bass.wav: got no readable audio" in line
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert table["track"].unique().tolist() == ["'-good"]  # no formula of a spreadsheet
    assert table["SI-SDR"].notna().all()


@needs_ffmpeg
def test_musdb_that_is_not_there(call, priors: Path, tmp_path: Path) -> None:
    out, use = tmp_path / "out", ("--source", "musdb:bass", "--out", tmp_path / "out")
    refused(call("train", *use), "without musdb18; give its root as --musdb ROOT")
    refused(call("train", *use, "--musdb", tmp_path / "none"), "none: expected the root of musdb18")
    refused(call("train", *use, "--musdb", tmp_path), "got no track, expected train/*.stem.mp4")
    refused(call("train", *use, "--musdb", excerpt()), "got no training frame of bass")
    audit = ("audit", "--priors", priors, "--musdb", excerpt())
    refused(call(*audit), "musdb: got stem 'sine', expected one of bass, drums, vocals, other")
    (tmp_path / "test").mkdir()
    cut = tmp_path / "test" / "cut.stem.mp4"
    cut.write_bytes(excerpt().read_bytes()[:500_000])
    (tmp_path / "guess" / "cut").mkdir(parents=True)
    soundfile.write(tmp_path / "guess" / "cut" / "bass.wav", np.ones(268_288), 44_100)
    evaluate = ("evaluate", tmp_path / "guess", "--musdb", tmp_path)
    refused(call(*evaluate), "expected 268288; the file is cut off, copy it again")
    assert not out.exists()


def test_diagnose(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    out = tmp_path / "duet"
    done = call("separate", stereo, "--priors", priors, "--out", tmp_path, *BUDGET, "--chains", "2")
    assert done.code == 0, done.err
    outcome = call("diagnose", out / "trace.nc")
    trace = load_trace(out / "trace.nc")
    diagnosis = diagnose(trace)
    assert (outcome.code, outcome.err) == (0 if diagnosis.trusted else 1, "")
    assert outcome.out == format_diagnosis(diagnosis) + "\n"
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == ["source", "sine", "saw", "residual:", "gradient", "bands:", "verdict:"]
    assert f"gradient evaluations: {trace.attrs['gradients']:,}\n" in outcome.out
    assert "nan" not in outcome.out
    assert "diagnose" in call("--help").out


@pytest.mark.parametrize(("misfit", "code"), [(1.0, 0), (3.0, 1)])
def test_the_exit_code_says_whether_to_trust(
    call, tmp_path: Path, misfit: float, code: int
) -> None:
    sources = np.sin(np.arange(1, 3)[:, None] * np.arange(64.0))
    tree = trace_of(
        np.broadcast_to(sources, (1, 5, 2, 64)),
        mixture=sources.sum(0),
        gains=(1.0, 1.0),
        source_names=("sine", "saw"),
        attrs={"estimate": "mode"},
        misfit=np.full((1, 5, 2), misfit),
    )
    save_trace(tree, tmp_path / "trace.nc")
    assert call("diagnose", tmp_path / "trace.nc").code == code


def test_diagnose_what_is_no_trace(call, tmp_path: Path) -> None:
    refused(call("diagnose", tmp_path / "none.nc"), "none.nc: no such file")
    (tmp_path / "text.nc").write_text("no trace")
    refused(call("diagnose", tmp_path / "text.nc"), "text.nc: got no readable netCDF file")
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"level_db": ("chain", [0.0])})})
    save_trace(tree, tmp_path / "other.nc")
    refused(call("diagnose", tmp_path / "other.nc"), "other.nc: got none of posterior/sources, ")


def test_workers_are_of_one_kind(call, priors: Path, stereo: Path, tmp_path: Path) -> None:
    use = ("separate", stereo, "--priors", priors, "--out", tmp_path / "out", *QUICK)
    both = call(*use, "--workers", "2", "--scheduler", "tcp://a:1")
    refused(both, "workers: got --scheduler too, expected one of the two")
    assert not (tmp_path / "out").exists()
