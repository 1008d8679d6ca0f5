"""Intervals of a stem's SI-SDR without the truth."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from traces import trace_of

from pyro_sep import load_priors
from pyro_sep.diagnostics import score_intervals
from pyro_sep.diagnostics.conformal import is_same
from pyro_sep.diagnostics.score_intervals import (
    FILE,
    Clue,
    ScoreErrors,
    clue_of,
    expected_scores,
    format_scores,
)
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.priors.io import SHIPPED
from pyro_sep.separation.inputs import fingerprints
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.dataset import FINGERPRINT

RATE, TIME = 8_000, 400
NAMES = ["oboe", "flute"]
ATTRS = {
    "noise_scale": 0.001,
    "constraint": "exact",
    "presence": None,
    "estimate": "mean",
    "settings": {"levels": 22, "chains": 2},
    f"{FINGERPRINT}oboe": -123.25,
    f"{FINGERPRINT}flute": 17.5,
}


def make_trace(attrs: dict[str, Any] = ATTRS, chains: int = 2, **changes: Any) -> xr.DataTree:
    """Two tones, and chains of draws that add up to their mean."""
    rng = np.random.default_rng(0)
    seconds = np.arange(TIME) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * seconds) for f in (300, 900)])
    wrong = 0.1 * rng.normal(size=(chains, 5, 1, TIME)) * np.array([1, -1])[:, None]
    given = {
        "sources": tones + wrong,
        "lp": rng.normal(size=(chains, 5)),
        "log_prior": rng.normal(size=(chains, 5, 2)),
        "mixture": tones.mean(0),
        "source_names": NAMES,
        "sample_rate": RATE,
        "attrs": attrs,
    }
    return trace_of(**given | changes)


def learned(trace: xr.DataTree, errors: list[float]) -> ScoreErrors:
    """What separations like this one would tell if they had these errors."""
    clue = clue_of(trace)
    scores = [{name: z + error for name, z in clue.figures.items()} for error in errors]
    return ScoreErrors.learn([clue] * len(errors), scores)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> ScoreErrors:
    """Ships in place of what does."""
    errors = learned(make_trace(), [-4.0, -3.0, -2.0, -1.0, 0.0])
    monkeypatch.setattr(score_intervals, "shipped_errors", lambda: (errors,))
    return errors


@pytest.mark.parametrize("probability", [0.5, 0.8])
def test_intervals_cover_as_they_say_whatever_the_errors(probability: float) -> None:
    rng, count, repeats = np.random.default_rng(0), 39, 2_000
    kind, inside = {"samples": TIME, "count": 1}, 0
    for errors in rng.gamma(2.0, size=(repeats, count + 1)) - 5:
        clues = [Clue(kind, {"oboe": 1.0}, {"oboe": float(z)}) for z in rng.normal(size=count + 1)]
        scores = [{"oboe": c.figures["oboe"] + e} for c, e in zip(clues, errors, strict=True)]
        model = ScoreErrors.learn(clues[1:], scores[1:])
        low, high = model.intervals(clues[0], probability)["oboe"]
        inside += low <= scores[0]["oboe"] <= high
    error = (probability * (1 - probability) / repeats) ** 0.5
    assert inside / repeats == pytest.approx(probability, abs=4 * error)


def test_where_all_chains_count_the_figure_is_of_one_against_another() -> None:
    trace = make_trace(chains=3)
    means = torch.from_numpy(trace["posterior"]["sources"].values.mean(1))
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    scores = torch.stack([si_sdr(means[a], means[b]) for a, b in pairs]).mean(0)
    assert [*clue_of(trace).figures.values()] == pytest.approx(scores.tolist(), abs=1e-3)


def test_where_the_best_counts_the_figure_is_of_its_draws() -> None:
    trace = make_trace(ATTRS | {"estimate": "mode"})
    best = int(trace["sample_stats"]["lp"].values.mean(1).argmax())
    draws = torch.from_numpy(trace["posterior"]["sources"].values[best])
    scores = si_sdr(draws.mean(0), draws).mean(0)
    assert [*clue_of(trace).figures.values()] == pytest.approx(scores.tolist(), abs=1e-3)


def test_an_interval_is_the_figure_and_the_errors(known: ScoreErrors) -> None:
    trace = make_trace()
    found = expected_scores(trace, 0.6)
    assert found is not None
    for name, z in clue_of(trace).figures.items():
        assert found[name] == pytest.approx((z - 4, z), abs=2e-3)
    with pytest.raises(ValueError, match=r"^probability: got 1\.5, expected above 0, below 1"):
        expected_scores(trace, 1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"attrs": ATTRS | {"settings": {"levels": 23, "chains": 2}}},
        {"attrs": ATTRS | {"noise_scale": 0.1}},
        {"attrs": ATTRS | {"presence": "infer"}},
        {"attrs": ATTRS | {f"{FINGERPRINT}oboe": -124.0}},
        {"attrs": {"noise_scale": 0.001}},  # of another sampler
        {"gains": (0.5, 0.4)},
        {"gains": np.full((2, 5, 2), 0.5)},
        {"sample_rate": 2 * RATE},
        {"source_names": ["oboe", "violin"]},
        {"mixture": np.ones(TIME)},  # which the sources do not explain
        {"sources": np.full((2, 5, 2, TIME), np.nan)},
    ],
)
def test_of_another_separation_nothing_is_known(
    known: ScoreErrors, changes: dict[str, Any]
) -> None:
    assert expected_scores(make_trace(), 0.6) is not None
    assert expected_scores(make_trace(**changes), 0.6) is None


def test_lengths_and_numbers_of_sources_have_a_range() -> None:
    priors = {"oboe": 1.0, "flute": 2.0}
    clues = [
        Clue({"samples": samples, "count": count}, priors, {"oboe": 9.0, "flute": 9.0})
        for samples, count in ((400, 2), (1_600, 4))
    ]
    errors = ScoreErrors.learn(clues, [{"oboe": 8.0, "flute": 8.0}] * 2)
    for samples, count, fits in ((400, 3, True), (800, 2, True), (399, 2, False), (800, 5, False)):
        assert errors.fits(Clue({"samples": samples, "count": count}, priors, {})) is fits


def test_a_file_is_read_as_it_was_written(known: ScoreErrors, tmp_path: Path) -> None:
    known.save(tmp_path / FILE)
    assert ScoreErrors.load(tmp_path / FILE) == known


def test_words() -> None:
    said = "oboe 3 to 7 dB (80 %, for mixtures like those it was learned from)"
    assert format_scores({"oboe": (2.6, 7.4)}) == said


SETS = sorted(path.parent.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob(FILE))


def test_toys_and_music_have_errors_that_ship() -> None:
    assert {"toy", "music"} <= {*SETS}


@pytest.mark.parametrize("name", SETS)
def test_what_ships_is_of_the_default_separation(name: str) -> None:
    """Where this fails, run experiments/expected_scores.py again."""
    errors, priors = ScoreErrors.load(SHIPPED / name / FILE), load_priors(name)
    prints = fingerprints(priors, torch.zeros(1, 1))
    assert all(is_same(prints[f"{FINGERPRINT}{k}"], errors.priors[k]) for k in priors)
    for time in errors.ranges["samples"]:
        settings = asdict(resolve_settings(priors, time))
        assert settings.keys() - errors.kind.keys() <= {"sigma_max", "sigma_freeze", "sigma_min"}
        for field in settings.keys() & errors.kind.keys():
            assert is_same(settings[field], errors.kind[field]), field
    assert len(errors.errors) > 30
