"""The experiment that learns and judges the score to expect of a stem."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from music import write_tracks
from scripts import load

from pyro_sep.audio import save_audio
from pyro_sep.cli.program import run
from pyro_sep.diagnostics.score_intervals import ScoreErrors
from pyro_sep.separation.api import separate

BUDGET = {"levels": 6, "candidates": 1, "tries": 1, "swaps": 0, "replicas": 0, "cooling": 1}
BUDGET |= {"warmup": 1, "draws": 2, "thin": 1}


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load("expected_scores")
    monkeypatch.setattr(module, "separate", functools.partial(separate, **BUDGET))
    monkeypatch.setattr(module, "TONES", (0.016, 0.032))
    return module


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["expected_scores.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        run(module.main)
    assert not stop.value.code


def test_it_learns_judges_and_goes_on(
    experiment: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = ("--priors", "toy/oracle", "--learn", 9, "--judge", 3, "--out", tmp_path)
    monkeypatch.setattr(experiment, "explains", lambda trace: True)  # too few levels for a verdict
    call(experiment, monkeypatch, *words)
    printed = capsys.readouterr().out
    monkeypatch.delattr(experiment, "separate")
    call(experiment, monkeypatch, *words)  # all is there
    assert capsys.readouterr().out.splitlines()[0] == printed.splitlines()[0]
    errors = ScoreErrors.load(tmp_path / "expected_scores.json")
    rows = json.loads((tmp_path / "learn.json").read_text())["mixtures"]
    assert [len(row["figures"]) for row in rows] == [2, 3, 4] * 3
    assert [row["mixture"] for row in rows] == [str(i) for i in range(9)]
    wanted = [row["si_sdr"][k] - z for row in rows for k, z in row["figures"].items()]
    assert errors.errors == pytest.approx(sorted(wanted), abs=1e-3)
    assert errors.ranges == {"samples": (256, 512), "count": (2, 4)}
    assert errors.kind["mixing"] == "mean"
    judged = json.loads((tmp_path / "judge.json").read_text())["mixtures"]
    assert [row["mixture"] for row in judged] == ["1000", "1001", "1002"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = errors.errors[1], errors.errors[-2]  # of 27, by a tenth of 28 from either end
    inside = [
        low <= row["si_sdr"][k] - z <= high for row in judged for k, z in row["figures"].items()
    ]
    assert summary["inside"] == pytest.approx(sum(inside) / 9)
    assert (summary["learned"], summary["judged_stems"], summary["not_explained"]) == (9, 9, 0)
    assert f"{summary['inside']:.0%} inside intervals of 80%" in printed


def test_what_is_not_explained_is_left_out(experiment: Any) -> None:
    rows = [{"explained": False}, {"explained": True}]
    assert experiment.explained(rows) == rows[1:]


def test_excerpts_are_moments_at_which_all_stems_sound(experiment: Any, tmp_path: Path) -> None:
    write_tracks(tmp_path)
    tracks = experiment.musdb_tracks(tmp_path)
    sources, label = experiment.excerpt(tracks, 16_000, 1, ("bass", "drums"), 1_600)
    assert sources.shape == (2, 1_600)
    assert "b" not in label  # whose bass is silent
    silent = [track for track in tracks if track.name == "b"]
    with pytest.raises(ValueError, match=r"^musdb: got no test track with bass, drums at once"):
        experiment.excerpt(silent, 16_000, 0, ("bass", "drums"), 1_600)


def test_mixtures_and_test_tracks_come_two_and_two_in_turn(experiment: Any, tmp_path: Path) -> None:
    for name in ("test/a", "test/b", "test/c", "mixes/v", "mixes/w", "mixes/x", "mixes/y"):
        (tmp_path / name).mkdir(parents=True)
        save_audio(tmp_path / name / "bass.wav", torch.zeros(441), 44_100)
    tracks = experiment.chosen_tracks(tmp_path, tmp_path / "mixes")
    assert [track.name for track in tracks] == ["a", "b", "v", "w"]
    assert [track.name for track in experiment.chosen_tracks(tmp_path, None)] == ["a", "b", "c"]
