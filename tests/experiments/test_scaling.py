"""Collections on paper, and the file that the parts of the script share."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts import load

scaling = load("scaling")
MEASURED = {
    "length": {
        "runs": [{"seconds": 2.0, "trace_megabytes": 10.0}],
        "cpu_seconds_per_gradient_and_second": 0.1,
    },
    "scheduler": {"cpu_milliseconds_per_task": 2.0},
}


@pytest.fixture(autouse=True)
def known_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "estimate_cost", lambda *_, **__: SimpleNamespace(gradients=100.0))


def test_a_track_and_collections_follow_from_what_was_measured() -> None:
    found = scaling.projection(MEASURED)
    assert found["core_hours_per_track"] == pytest.approx(100 * 0.1 * 180 / 3_600)
    assert found["stems_megabytes_per_track"] == pytest.approx(4 * 2 * 4 * 44_100 * 180 / 1e6)
    assert found["sections_per_track"] == 4
    first, second, _ = found["collections"]
    assert first["core_hours"] == pytest.approx(1_000 * found["core_hours_per_track"])
    assert first["days"] == pytest.approx(first["core_hours"] / 64 / 24)
    assert second["core_hours"] == pytest.approx(100 * first["core_hours"])
    assert first["scheduler_seconds"] == pytest.approx(1_000 * 4 * 2e-3)


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps(MEASURED))
    scaling.main(only="projection", out=tmp_path)
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert content["length"] == MEASURED["length"]
    assert content["projection"]["gradients"] == 100.0
    with pytest.raises(ValueError, match="only: got 'magic', expected some of speed, scheduler"):
        scaling.main(only="magic", out=tmp_path)
