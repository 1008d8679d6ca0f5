"""Long recordings, in sections that are joined."""

import itertools
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pyro_sep.audio.io import read_audio, save_audio
from pyro_sep.data.tracks import stems_folder
from pyro_sep.priors.io import load_priors
from pyro_sep.results import StemFiles, sections, separate_many
from pyro_sep.results.plan import Plan
from pyro_sep.results.sections import jobs_of, join_files, spans, with_tracks

RATE = 16_000
BUDGET = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "cooling": 1, "draws": 3}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections of a fraction of a second."""
    for name, value in {"LONGEST": 0.2, "SECTION": 0.12, "OVERLAP": 0.02}.items():
        monkeypatch.setattr(sections, name, value)
    monkeypatch.setattr(sections, "STEP", 0.01)


@pytest.mark.parametrize("seconds", [301, 360, 1_000.5, 36_000])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sections_cover_a_recording_and_overlap(seconds: float, rate: int) -> None:
    count = round(seconds * rate)
    found = spans(count, rate)
    assert found[0][0] == 0
    assert found[-1][1] == count
    assert all(begin % rate == 0 for begin, _ in found)
    assert max(end - begin for begin, end in found) <= (sections.SECTION + 1) * rate
    for (_, end), (begin, _) in itertools.pairwise(found):
        assert end - begin == sections.OVERLAP * rate
    assert found[-1][1] - found[-1][0] > sections.OVERLAP * rate


def test_only_a_long_recording_is_cut(short: None, tmp_path: Path) -> None:
    paths = {tmp_path / f"{count}.wav": tmp_path / f"out/{count}" for count in (3_200, 3_201)}
    for path in paths:
        save_audio(path, 0.1 * torch.ones(int(path.stem)), RATE)
    one, *parts = jobs_of(paths, 0.0, None, lambda _: nullcontext())
    assert (one.section, one.duration, one.folder.name) == (None, None, "3200")
    assert [part.section for part in parts] == [1, 2]
    assert [part.track.name for part in parts] == ["3201"] * 2
    (excerpt,) = jobs_of({tmp_path / "3201.wav": tmp_path}, 0.1, 0.5, lambda _: nullcontext())
    assert (excerpt.start, excerpt.duration, excerpt.section) == (0.1, 0.5, None)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_files_that_are_parts_of_one_join_to_it(tmp_path: Path, suffix: str) -> None:
    audio = 0.3 * torch.randn(2, 9_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    parts = []
    for begin, end in ((0, 4_000), (3_500, 7_000), (6_000, 9_000)):
        parts.append((begin / RATE, tmp_path / f"{begin}.{suffix}"))
        save_audio(parts[-1][1], audio[:, begin:end], RATE)
    join_files(parts, tmp_path / f"all.{suffix}")
    found, rate = read_audio(tmp_path / f"all.{suffix}")
    assert rate == RATE
    assert found.shape == audio.shape
    assert float((found - audio).abs().max()) < (1e-7 if suffix == "wav" else 2**-22)


def test_the_stems_of_a_long_recording_add_up(short: None, tmp_path: Path) -> None:
    tone = {"sine": load_priors("toy/oracle")["sine"]}
    audio = 0.5 * (torch.arange(4_000) / 8).sin()
    audio[2_500:] = 0  # the last section is silent
    path, out = tmp_path / "long.wav", tmp_path / "out"
    save_audio(path, audio, RATE)
    use: dict[str, Any] = {"files": StemFiles(residual=True), **BUDGET}
    (done,) = separate_many([path], tone, out, **use)
    assert done.error == ""
    assert done.folder == out / "long"
    assert done.written == ("sine.wav", "residual.wav", "summary.json")
    stems = [read_audio(out / "long" / name)[0][0] for name in ("sine.wav", "residual.wav")]
    assert float((sum(stems) - audio).abs().max()) < 1e-6
    summary = json.loads((out / "long" / "summary.json").read_text())
    assert summary["sections"] == ["sections/001", "sections/002", "sections/003"]
    last = json.loads((out / "long" / "sections/003" / "summary.json").read_text())
    assert last["verdict"] == "silence"
    first, _ = soundfile.read(out / "long/sections/001/sine.wav")
    assert np.array_equal(stems[0][:1_000].numpy(), first[:1_000].astype(np.float32))
    (again,) = separate_many([path], tone, out, **use)
    assert (again.written, again.error) == ((), "")
    (out / "long" / "sine.wav").unlink()
    (again,) = separate_many([path], tone, out, **use)
    assert again.written == done.written


def test_a_long_recording_is_one_track_of_its_channel(short: None, tmp_path: Path) -> None:
    tone = {"sine": load_priors("toy/oracle")["sine"]}
    left = 0.5 * (torch.arange(4_000) / 8).sin()
    save_audio(tmp_path / "long.wav", torch.stack([left, -left]), RATE)
    plan = Plan(
        priors=tone,
        files=StemFiles(),
        channel="side",
        initial=None,
        options=BUDGET,
        seed=0,
        device=torch.device("cpu"),
        force=False,
        page=False,
    )
    folders = plan.folders([tmp_path / "long.wav"], tmp_path / "out", nullcontext)
    jobs = jobs_of(folders, 0.0, None, nullcontext)
    assert len(jobs) == 3
    assert not any(outcome.error for outcome in with_tracks(map(plan.attempt, jobs), jobs))
    (track,) = stems_folder(tmp_path / "out")
    assert (track.name, track.stems, track.channel) == ("long", ["sine"], "side")


def test_a_section_that_fails_is_said_once_more_of_the_whole(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    save_audio(path, 0.5 * (torch.arange(4_000) / 8).sin(), RATE)
    (tmp_path / "out/long/sections").mkdir(parents=True)
    (tmp_path / "out/long/sections/002").write_text("a file where a folder would be")
    tone = {"sine": load_priors("toy/oracle")["sine"]}
    (done,) = separate_many([path], tone, tmp_path / "out", **BUDGET)
    assert done.error == (
        f"{path}: 1 of 3 sections failed, expected none; start the same command again"
    )
    assert not (tmp_path / "out/long/summary.json").exists()
