import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from traces import trace_of

from pyro_sep.diagnostics.verdict import diagnose
from pyro_sep.results import writer
from pyro_sep.results.stems import StemFiles
from pyro_sep.results.writer import REPORT, Seconds, is_finished, own_files, write_separation
from pyro_sep.separation.api import Separation
from pyro_sep.storage.files import atomic_write
from pyro_sep.trace.dataset import load_trace
from pyro_sep.viz.report import REPORT_MARK

RATE, TIME, DRAWS, NAMES = 8_000, 400, 8, ("oboe", "flute")
FILES = ["flute.wav", "oboe.wav", "separation.png", "summary.json", "trace.nc"]


def make_result(chains: int = 2, presence: Tensor | None = None) -> Separation:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    t = torch.arange(TIME) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (300.0, 900.0)])
    samples = tones + 0.1 * normal(chains, DRAWS, 2, TIME)
    lp = normal(chains, DRAWS) + 10.0 * torch.arange(chains)[:, None]
    trace = trace_of(
        samples.numpy(),
        lp=lp.numpy(),
        log_prior=normal(chains, DRAWS, 2).numpy(),
        mixture=tones.mean(0).numpy(),
        source_names=NAMES,
        sample_rate=RATE,
        attrs={"seed": 4, "settings": {"chains": chains}},
    )
    sources = samples[-1].mean(0)
    return Separation(sources, NAMES, RATE, trace, sources / 2, presence)


@pytest.fixture(scope="module")
def result() -> Separation:
    return make_result()


def test_everything_is_written(result: Separation, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_separation(result, folder)
    assert written == ["oboe.wav", "flute.wav", "trace.nc", "separation.png", "summary.json"]
    assert sorted(os.listdir(folder)) == FILES
    for name, share in zip(NAMES, result.contributions, strict=True):
        info = soundfile.info(folder / f"{name}.wav")
        assert (info.subtype, info.samplerate, info.frames, info.channels) == (
            "FLOAT",
            RATE,
            TIME,
            1,
        )
        written, _ = soundfile.read(folder / f"{name}.wav", dtype="float32")
        assert np.array_equal(written, share.numpy())
    assert load_trace(folder / "trace.nc").identical(result.trace)
    assert (folder / "separation.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_summary_has_the_stems_rate(result: Separation, tmp_path: Path) -> None:
    recording = torch.randn(1, 2_203, generator=torch.Generator().manual_seed(0)), 44_100
    for native, rate in ((False, 44_100), (True, RATE)):
        write_separation(result, tmp_path, StemFiles(native=native), recording)
        assert json.loads((tmp_path / "summary.json").read_text())["sample_rate"] == rate
        assert soundfile.info(tmp_path / "oboe.wav").samplerate == rate


def test_the_summary_adds_up(result: Separation, tmp_path: Path) -> None:
    write_separation(result, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    lp = result.trace["sample_stats"]["lp"].values.mean(1)
    assert summary["sources"] == list(NAMES)
    assert summary["sample_rate"] == RATE
    assert summary["mean_lp_of_chains"] == pytest.approx(lp.tolist(), abs=0.06)
    assert summary["best_chain"] == 1
    for table in ("r_hat", "ess_bulk"):
        assert list(summary[table]) == list(NAMES)
        for row in summary[table].values():
            assert list(row) == ["level_db", "centroid", "log_prior"]
            assert all(value > 0 for value in row.values())
    assert summary["settings"]["seed"] == 4
    assert summary["settings"]["settings"] == {"chains": 2}  # an attribute that is JSON itself
    diagnosis = diagnose(result.trace)
    assert summary["trusted"] is diagnosis.trusted is False  # its mixture has other tones
    said = [summary[name] for name in ("verdict", "reason", "bands", "blamed")]
    assert said == [diagnosis.verdict, diagnosis.reason, diagnosis.bands, [*diagnosis.blamed]]


def test_the_summary_says_which_sources_are_there(result: Separation, tmp_path: Path) -> None:
    write_separation(make_result(presence=torch.tensor([0.98765, 0.0])), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["presence"] == {"oboe": 0.988, "flute": 0.0}
    write_separation(result, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["presence"] is None


def test_the_summary_has_the_scores_to_expect_and_the_seconds(
    result: Separation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_separation(result, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["expected_si_sdr"] is None  # nothing is known of such priors
    assert summary["seconds"] is None  # nobody counted
    scores = {"oboe": (-1.23, 4.56), "flute": (20.0, 25.0)}
    monkeypatch.setattr(writer, "expected_scores", lambda trace: scores)
    write_separation(result, tmp_path, seconds=Seconds(2.0, 3.5, True))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["expected_si_sdr"] == {
        "oboe": {"low": -1.2, "high": 4.6, "probability": 0.8},
        "flute": {"low": 20.0, "high": 25.0, "probability": 0.8},
    }
    assert summary["seconds"] == {"wall": 2.0, "cpu": 3.5, "resumed": True}


def test_a_summary_without_r_hat_is_still_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    write_separation(make_result(chains=1), tmp_path)
    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert set(summary["r_hat"]["oboe"].values()) == {None}
    assert summary["ess_bulk"]["oboe"]["level_db"] > 0


def listed(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_holds_one_run(result: Separation, tmp_path: Path) -> None:
    foreign = ["draws/notes.txt", "drums.wav", "oboe.mp3", "oboe_01.wav"]
    write_separation(result, tmp_path, StemFiles(residual=True, draws=3))
    (tmp_path / "report.html").write_text(REPORT_MARK)
    for name in foreign:
        (tmp_path / name).touch()
    write_separation(result, tmp_path, StemFiles("flac", draws=2))
    drawn = [f"draws/{name}_0{i}.flac" for name in NAMES for i in (1, 2)]
    flac = [*FILES[2:], "flute.flac", "oboe.flac"]
    assert listed(tmp_path) == sorted([*foreign, *drawn, *flac])
    assert write_separation(result, tmp_path)[:2] == ["oboe.wav", "flute.wav"]
    assert listed(tmp_path) == sorted([*foreign, *FILES])
    (tmp_path / "draws" / "notes.txt").unlink()
    write_separation(result, tmp_path)
    assert not (tmp_path / "draws").exists()


def test_sources_of_the_former_run_go_with_it(result: Separation, tmp_path: Path) -> None:
    (tmp_path / "flute.wav").write_bytes(b"of nobody knows whom")
    one = Separation(result.sources, ("oboe", "drum"), RATE, result.trace, result.contributions)
    write_separation(one, tmp_path)
    assert listed(tmp_path) == sorted({*FILES, "drum.wav"})
    write_separation(result, tmp_path)
    assert listed(tmp_path) == FILES
    for summary in ("", "[]", '{"sources": 3}', '{"sources": ["../a"]}'):
        (tmp_path / "summary.json").write_text(summary)
        write_separation(result, tmp_path)
        assert listed(tmp_path) == FILES


def test_only_a_page_that_a_run_wrote_goes_with_it(result: Separation, tmp_path: Path) -> None:
    page = tmp_path / REPORT
    for text, stays in (("my own notes", True), (f"<title>song · {REPORT_MARK}", False)):
        write_separation(result, tmp_path)
        page.write_text(text)
        assert (REPORT in own_files(tmp_path)) != stays
        write_separation(result, tmp_path)
        assert page.exists() == stays


def test_what_cannot_be_written_removes_nothing(result: Separation, tmp_path: Path) -> None:
    write_separation(result, tmp_path)
    loud = Separation(result.sources, NAMES, RATE, result.trace, 4 * result.contributions)
    with pytest.raises(ValueError, match="use WAV"):
        write_separation(loud, tmp_path, StemFiles("flac"))
    assert listed(tmp_path) == FILES


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def half_figure(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content[:100])
        raise OSError(28, "No space left on device")


def half_text(self: Path, text: str) -> int:
    self.write_bytes(text[:20].encode())
    raise OSError(28, "No space left on device")


def interrupted(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("target", "replacement", "whole"),
    [
        ("soundfile.write", full_disk, []),
        ("xarray.DataTree.to_netcdf", full_disk, FILES[:2]),
        ("xarray.DataTree.to_netcdf", interrupted, FILES[:2]),
        ("pyro_sep.viz.png.atomic_write_bytes", half_figure, [*FILES[:2], "trace.nc"]),
        ("pathlib.Path.write_text", half_text, [*FILES[:3], "trace.nc"]),
    ],
)
def test_a_write_that_fails_leaves_only_whole_files(
    result: Separation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    replacement: Callable[..., Any],
    whole: list[str],
) -> None:
    error = KeyboardInterrupt if replacement is interrupted else OSError
    with monkeypatch.context() as patch:
        patch.setattr(target, replacement)
        with pytest.raises(error) as caught:
            write_separation(result, tmp_path)
    if error is OSError:
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == whole
    for name in set(whole) & {"oboe.wav", "flute.wav"}:
        assert soundfile.info(tmp_path / name).frames == TIME
    if "trace.nc" in whole:
        assert load_trace(tmp_path / "trace.nc").identical(result.trace)


def test_a_summary_says_whose_the_files_are(result: Separation, tmp_path: Path) -> None:
    write_separation(result, tmp_path, StemFiles(residual=True, draws=2))
    drawn = [f"draws/{name}_0{i}.wav" for name in NAMES for i in (1, 2)]
    stems = ["flute.wav", "oboe.wav", "residual.wav"]
    results = ["separation.png", "summary.json", "trace.nc"]
    assert sorted(own_files(tmp_path)) == sorted([*drawn, *stems, *results])


@pytest.mark.parametrize(
    "name", ["../a.wav", "a.txt", "/a.wav", "draws/../a.wav", "other/a.wav", "./oboe.wav", ""]
)
def test_a_summary_makes_no_other_files_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"files": {"b.wav": 9, name: 9}}))
    assert own_files(tmp_path)[0] == "b.wav"
    assert name not in own_files(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"files": 3}', '{"files": ["a.wav"]}', "[" * 100_000, "\udcff", '{"files": null}'],
)
def test_a_summary_that_is_none_makes_nothing_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    assert own_files(tmp_path) == []
    assert not is_finished(tmp_path, {"seed": 1})


def test_a_run_is_known_again(result: Separation, tmp_path: Path) -> None:
    run = {"seed": 1, "options": {"gains": [0.5, 0.5]}, "prior of oboe": -100.0}
    assert not is_finished(tmp_path, run)
    write_separation(result, tmp_path, run=run)
    assert is_finished(tmp_path, run)
    assert is_finished(tmp_path, run | {"prior of oboe": -100.0001})  # on another machine
    assert not is_finished(tmp_path, run | {"prior of oboe": -101.0})
    assert not is_finished(tmp_path, run | {"seed": 2})
    assert not is_finished(tmp_path, run | {"more": 2})
    assert not is_finished(tmp_path, {})
    (tmp_path / "flute.wav").write_bytes(b"")
    assert not is_finished(tmp_path, run)
    (tmp_path / "flute.wav").unlink()
    assert not is_finished(tmp_path, run)
