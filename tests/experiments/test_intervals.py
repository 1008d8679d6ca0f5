"""The experiment that judges intervals."""

import functools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from scripts import load

from pyro_sep.cli.program import run
from pyro_sep.diagnostics.conformal import ConformalCalibration
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.separation.api import separate_batch
from pyro_sep.separation.presets import resolve_settings


def test_the_experiment_learns_and_judges_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    intervals = load("intervals")
    calls = []

    def quick(*args: Any, **options: Any) -> Any:
        calls.append(options["seed"])
        budget = {"levels": 6, "candidates": 1, "tries": 1, "swaps": 0, "replicas": 0}
        budget |= {"chains": 2, "cooling": 1, "warmup": 1, "draws": 4, "thin": 1}
        return separate_batch(*args, **options, **budget)

    monkeypatch.setattr(intervals, "separate_batch", quick)
    monkeypatch.setattr(intervals, "resume", functools.partial(intervals.resume, batch=15))
    words = [
        "--priors",
        "toy/oracle",
        "--seconds",
        "0.016",
        "--learn",
        "39",
        "--judge",
        "6",
        "--out",
    ]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["intervals.py", *words, str(tmp_path)])
        with pytest.raises(SystemExit) as stop:
            run(intervals.main)
        assert not stop.value.code
    assert len(calls) == len(set(calls)) == 3
    printed = capsys.readouterr().out.splitlines()
    printed = [line for line in printed if not line.endswith(f" s. Results: {tmp_path}")]
    assert len(printed) > 6
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
    learned = ConformalCalibration.load(tmp_path / "calibration.json")
    assert learned.errors.sizes == {"mixture": 39, "source": 2}
    row = json.loads((tmp_path / "mixtures.json").read_text())["mixtures"][3]
    error = row["true"]["level_db"][1] - row["expected"]["level_db"][1]
    assert float(learned.errors["level_db"][3, 1]) == pytest.approx(error, abs=1e-5)
    assert {"level_db", "centroid", "si_sdr"} == set(row["draws_below"])
    assert "kind" not in row
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["learned"], summary["judged"], summary["intervals"]) == (
        39,
        6,
        [0.5, 0.8, 0.95],
    )
    assert len(summary["functions"]) == 6
    for line in summary["functions"]:
        assert line["widths"] == sorted(line["widths"])
        assert all(0 <= share <= 1 for share in line["draws"] + line["calibrated"])
        shown = " ".join(f"{share:.0%}" for share in line["calibrated"])
        assert any(shown in text and line["function"] in text for text in printed)


def test_the_calibration_in_the_docs_is_of_the_default_run() -> None:
    path = Path(__file__).parents[2] / "docs/results/calibration/intervals/calibration.json"
    kind = ConformalCalibration.load(path).kind
    priors = choose_priors(load_priors("toy"), ",".join(kind["sources"]))
    settings = resolve_settings(priors, kind["samples"])
    assert {name: kind[name] for name in asdict(settings)} == pytest.approx(asdict(settings))
