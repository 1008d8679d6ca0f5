"""The experiment that says why raw intervals are too narrow."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import load

from pyro_sep.cli.program import run
from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.separation.presets import resolve_settings


def test_the_experiment_judges_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = load("denoising_errors")
    calls = []

    def quick(*args: Any, **options: Any) -> Any:
        calls.append(options["draws"])
        budget = {"levels": 6, "candidates": 1, "tries": 1, "swaps": 0, "replicas": 0}
        return resolve_settings(*args, **options | budget, cooling=1, warmup=1, thin=1)

    monkeypatch.setattr(script, "resolve_settings", quick)
    monkeypatch.setattr(script, "SIGMAS", (0.05, 1.0))
    monkeypatch.setattr(script, "PAIRS", (("sine", "saw"), ("square", "triangle")))
    monkeypatch.setattr(script, "ALONE", 3)
    words = ["--seconds", "0.016", "--mixtures", "2", "--first", "0", "--frames", "2"]
    words += ["--draws", "10", "--out", str(tmp_path)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["denoising_errors.py", *words])
        with pytest.raises(SystemExit) as stop:
            run(script.main)
        assert not stop.value.code
    assert calls == [10] * 2
    capsys.readouterr()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["predictions"]) == 2 * len(WAVEFORMS)
    assert [line["prior"] for line in summary["denoisers"]] == ["learned"] * 12 + ["oracle"] * 4
    # Gains and the rest are parts of one error; the draws corrected for gains differ from the raw.
    assert all(line["gain"] < line["rest"] for line in summary["denoisers"][:12])
    assert {line["gains"] for line in summary["coverage"]} == {"before", "after"}
    shares = [line[key] for line in summary["coverage"] for key in ("level", "centroid", "audio")]
    assert all(low <= middle <= high for low, middle, high in shares)
    for line in summary["errors"]:
        assert line["before_level_error"] != line["after_level_error"]


def test_scores_along_a_tone_tell_of_a_wrong_gain() -> None:
    script = load("denoising_errors")
    priors = script.load_set("toy/wavenet")
    tones = {"saw": script.tones_of("saw", 0, 4, 512)}
    (right,) = script.predictions(priors, tones, 0, 0, [("saw", 0.2)])
    louder = {"saw": 1.3 * tones["saw"]}  # beyond the amplitudes that there are
    (wrong,) = script.predictions(priors, louder, 0, 0, [("saw", 0.2)])
    assert wrong["along_tone"] > 2 * right["along_tone"]
    assert 0.8 < right["mean_square"] < 1.2
