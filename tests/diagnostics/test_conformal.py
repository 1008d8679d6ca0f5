import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from traces import trace_of

from pyro_sep import load_priors
from pyro_sep.audio.io import save_audio
from pyro_sep.cli.app import main
from pyro_sep.data.tracks import Track
from pyro_sep.diagnostics.conformal import (
    FUNCTIONS,
    ConformalCalibration,
    actual,
    draws_of,
    expected,
    format_intervals,
    kind_of,
)
from pyro_sep.diagnostics.verdict import diagnose, format_diagnosis
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.evaluation.tracks import with_truth
from pyro_sep.separation.api import separate, separate_batch
from pyro_sep.trace.dataset import (
    FINGERPRINT,
    centroid,
    level_db,
    load_trace,
    save_trace,
)
from pyro_sep.trace.estimate import estimate_sources
from pyro_sep.viz import report

RATE, TIME = 8_000, 800
NAMES = ["oboe", "flute"]
ATTRS = {
    "noise_scale": 0.001,
    "constraint": "exact",
    "presence": None,
    "estimate": "mode",
    "settings": {"levels": 22, "sigma_min": 0.05},
    f"{FINGERPRINT}oboe": -123.25,
    f"{FINGERPRINT}flute": 17.5,
}


def make_trace(seed: int = 0, **changes: Any) -> xr.DataTree:
    """Two tones and draws of them, too loud by 5 and 10 %; chain 1 is the best."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(TIME) / RATE
    truth = np.stack([rng.uniform(0.3, 1) * np.sin(2 * np.pi * f * seconds) for f in (300, 900)])
    loud = np.array([1.05, 1.1])[:, None] * truth
    given = {
        "sources": loud + 0.02 * rng.normal(size=(2, 6, 2, TIME)),
        "lp": rng.normal(size=(2, 6)) + 10 * np.arange(2)[:, None],
        "log_prior": rng.normal(size=(2, 6, 2)),
        "mixture": truth.mean(0),
        "source_names": NAMES,
        "sample_rate": RATE,
        "true_sources": truth,
        "attrs": ATTRS,
    }
    return trace_of(**given | changes)


@pytest.fixture(scope="module")
def calibration() -> ConformalCalibration:
    return ConformalCalibration.of(make_trace(seed) for seed in range(39))


@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_intervals_cover_as_they_say_whatever_the_errors(probability: float) -> None:
    count, repeats = 39, 4_000
    rng = np.random.default_rng(1)
    errors = 3 + rng.lognormal(sigma=1.5, size=(count + 1, repeats))  # biased, skewed, heavy
    dims = ("mixture", "source")
    calibration = ConformalCalibration({}, xr.Dataset({"level_db": (dims, errors[:-1])}))
    bounds = calibration.about(xr.Dataset({"level_db": ("source", np.zeros(repeats))}), probability)
    low, high = (bounds["level_db"].sel(bound=bound).values for bound in ("low", "high"))
    share = ((low <= errors[-1]) & (errors[-1] <= high)).mean()
    rank = int((count + 1) * (1 - probability) / 2 + 1e-9)
    nominal = 1 - 2 * rank / (count + 1)
    assert nominal == pytest.approx(probability)
    assert share == pytest.approx(nominal, abs=4 * (nominal * (1 - nominal) / repeats) ** 0.5)


def test_an_interval_needs_enough_mixtures(calibration: ConformalCalibration) -> None:
    trace = make_trace(100)
    assert set(calibration.intervals(trace, 0.95).data_vars) == {"level_db", "centroid", "si_sdr"}
    with pytest.raises(ValueError, match=r"got 39 mixtures, expected at least 199 for .* of 99%"):
        calibration.intervals(trace, 0.99)


def test_functions_are_those_of_the_best_chain() -> None:
    trace = make_trace()
    best = trace["posterior"]["sources"].values[1]
    truth = trace["constant_data"]["true_sources"].values
    found, true = expected(trace), actual(trace)
    np.testing.assert_allclose(found["level_db"], level_db(best).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["centroid"], centroid(best, RATE).mean(0), rtol=1e-6)
    np.testing.assert_allclose(true["level_db"], level_db(truth), rtol=1e-6)
    np.testing.assert_allclose(true["centroid"], centroid(truth, RATE), rtol=1e-6)
    mean, references = torch.from_numpy(best.mean(0)), torch.from_numpy(truth)
    np.testing.assert_allclose(true["si_sdr"], si_sdr(mean, references.float()), rtol=1e-5)
    against = si_sdr(mean, torch.from_numpy(best)).mean(0)
    np.testing.assert_allclose(found["si_sdr"], against, rtol=1e-5)
    assert dict(draws_of(trace).sizes) == {"chain": 2, "draw": 6, "source": 2}


def test_of_a_mean_over_chains_functions_are_those_of_all() -> None:
    trace = make_trace(attrs=ATTRS | {"estimate": "mean"})
    draws = trace["posterior"]["sources"].values
    np.testing.assert_allclose(expected(trace)["level_db"], level_db(draws).mean((0, 1)), rtol=1e-6)
    estimate, references = estimate_sources(trace), trace["constant_data"]["true_sources"].values
    assert estimate.values == pytest.approx(draws.mean((0, 1)), abs=0.05)  # which it is not quite
    scores = si_sdr(torch.from_numpy(estimate.values), torch.from_numpy(references))
    np.testing.assert_allclose(actual(trace)["si_sdr"], scores, rtol=1e-5)


def test_they_mend_draws_that_are_biased_and_narrow(calibration: ConformalCalibration) -> None:
    trace = make_trace(100)
    drawn, true = draws_of(trace)["level_db"], actual(trace)["level_db"]
    assert (drawn.min(("chain", "draw")) > true).all()
    bounds = calibration.intervals(trace)["level_db"]
    assert (bounds.sel(bound="low") < true).all()
    assert (true < bounds.sel(bound="high")).all()
    width = bounds.sel(bound="high") - bounds.sel(bound="low")
    assert (width < 0.05).all()  # dB: the error is the same in all of them


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attrs": ATTRS | {"constraint": "gaussian"}}, "got constraint gaussian, expected exact"),
        ({"attrs": ATTRS | {"settings": {"levels": 9, "sigma_min": 0.05}}}, "got levels 9"),
        ({"attrs": ATTRS | {f"{FINGERPRINT}oboe": -124.0}}, "got prior of oboe -124.0"),
        ({"gains": (0.3, 0.5)}, r"got gains \[0.3, 0.5\]"),
        ({"sample_rate": 16_000}, "got sample_rate 16000"),
        ({"attrs": {}}, "got none of the attribute 'noise_scale', .*; separate the mixture again"),
    ],
)
def test_other_kinds_are_refused(
    calibration: ConformalCalibration, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=rf"^trace: {words}"):
        calibration.intervals(make_trace(3, **changes))
    with pytest.raises(ValueError, match=rf"^trace: {words}"):
        ConformalCalibration.of([make_trace(), make_trace(3, **changes)])


def test_priors_are_the_same_up_to_rounding(calibration: ConformalCalibration) -> None:
    rounded = ATTRS | {f"{FINGERPRINT}oboe": -123.2501}
    calibration.intervals(make_trace(3, attrs=rounded))


def test_it_learns_from_known_sources_alone() -> None:
    with pytest.raises(ValueError, match="got none of constant_data/true_sources"):
        ConformalCalibration.of([make_trace(true_sources=None)])
    with pytest.raises(ValueError, match="traces: got none"):
        ConformalCalibration.of([])
    diverged = np.full((2, 6, 2, TIME), np.nan)
    with pytest.raises(ValueError, match="traces: got level_db of NaN or infinity"):
        ConformalCalibration.of([make_trace(sources=diverged)])


def test_what_is_written_is_read(calibration: ConformalCalibration, tmp_path: Path) -> None:
    path, trace = tmp_path / "calibration.json", make_trace(100)
    calibration.save(path)
    again = ConformalCalibration.load(path)
    assert again.kind == calibration.kind
    xr.testing.assert_allclose(
        again.intervals(trace), calibration.intervals(trace), rtol=1e-5, atol=1e-4
    )
    for content in ("{}", "no JSON", json.dumps({"kind": {"sources": ["oboe"]}, "errors": {}})):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"calibration.json: got no readable calibration"):
            ConformalCalibration.load(path)


SOUND = {"kind": {"sources": NAMES}, "errors": {f: {n: [0.5, 1] for n in NAMES} for f in FUNCTIONS}}


def with_level(values: Any, name: str = "oboe") -> dict[str, Any]:
    level = SOUND["errors"]["level_db"] | {name: values}
    return SOUND | {"errors": SOUND["errors"] | {"level_db": level}}


@pytest.mark.parametrize(
    "content",
    [
        with_level(["1.0", "2.0"]),
        with_level([None, None]),
        with_level([float("nan"), 1.0]),
        with_level([float("inf"), 1.0]),
        with_level([10**400, 1.0]),
        with_level([True, 1.0]),
        with_level([[1.0], [2.0]]),
        with_level([1.0]),
        with_level([]),
        with_level({}),
        with_level(3),
        with_level([1.0, 2.0], "harp"),
        SOUND | {"errors": {**SOUND["errors"], "pitch": SOUND["errors"]["level_db"]}},
        SOUND | {"errors": []},
        SOUND | {"kind": {}},
        SOUND | {"kind": {"sources": []}},
        SOUND | {"kind": {"sources": ["oboe", "oboe"]}},
        SOUND | {"kind": {"sources": [1, 2]}},
        SOUND | {"kind": {"sources": "oboe"}},
        SOUND | {"more": 1},
        [],
        None,
        "[" * 100_000,
        '{"kind": ' * 100_000,
        '{"kind": {"sources": [' + "[" * 100_000,
        "",
    ],
    ids=lambda content: str(content)[:50],
)
def test_a_calibration_that_lies(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(SOUND))
    assert ConformalCalibration.load(path).errors.sizes == {"mixture": 2, "source": 2}
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"calibration\.json: got no readable calibration") as got:
        ConformalCalibration.load(path)
    assert "\n" not in str(got.value)
    assert len(str(got.value)) < 500 + len(str(path))


def test_a_calibration_of_absurd_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="it has more than"):
        ConformalCalibration.load(path)
    with pytest.raises(ValueError, match="no readable calibration"):
        ConformalCalibration.load(tmp_path)


@pytest.mark.parametrize("settings", ["{", "[]", "3", "[" * 100_000])
def test_settings_of_a_trace_that_are_no_settings(settings: str) -> None:
    trace = make_trace()
    trace.attrs["settings"] = settings
    with pytest.raises(ValueError, match="trace: got the attribute 'settings' of"):
        kind_of(trace)


def test_the_table_names_every_source_and_function(calibration: ConformalCalibration) -> None:
    lines = format_intervals(calibration, make_trace(100)).split("\n")
    assert lines[0] == "where 95% of truths lie, by 39 mixtures of the kind:"
    assert [line.split()[0] for line in lines[1:]] == NAMES
    for line in lines[1:]:
        assert line.count(" to ") == 3
        assert all(word in line for word in ("level", "dB", "centroid", "Hz", "SI-SDR"))


def test_a_separation_tells_its_kind() -> None:
    truth = torch.randn(2, 2, 256, generator=torch.Generator().manual_seed(0))
    priors = {name: load_priors("toy/oracle")[name] for name in ("square", "saw")}
    budget = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "draws": 2}
    one, other = separate_batch(truth.mean(1), priors, true_sources=truth, **budget)
    kind = kind_of(one.trace)
    assert kind == kind_of(other.trace)
    assert kind["sources"] == ["square", "saw"]
    assert kind["samples"] == 256
    assert kind["levels"] == 6
    assert kind["constraint"] == "exact"
    assert kind["gains"] == [0.5, 0.5]
    assert kind[f"{FINGERPRINT}square"] != kind[f"{FINGERPRINT}saw"]
    assert "seed" not in kind
    learned = ConformalCalibration.of([one.trace, other.trace])
    assert learned.errors.sizes == {"mixture": 2, "source": 2}


def test_noise_levels_that_follow_the_loudness_are_no_part_of_a_kind() -> None:
    mixture = torch.randn(256, generator=torch.Generator().manual_seed(0))
    priors = {name: load_priors("toy/oracle")[name] for name in ("square", "saw")}
    budget = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "draws": 2}
    loud, quiet = (
        separate(scale * mixture, priors, estimate="mean", **budget).trace for scale in (1.0, 0.3)
    )
    assert loud.attrs["settings"] != quiet.attrs["settings"]
    assert kind_of(loud) == kind_of(quiet)
    assert "sigma_min" in kind_of(separate(mixture, priors, **budget).trace)  # of tones


def test_the_truth_comes_from_stems() -> None:
    trace = make_trace(true_sources=None)
    seconds = np.arange(2 * TIME) / (2 * RATE)
    contributions = torch.tensor(np.stack([np.sin(2 * np.pi * f * seconds) for f in (300, 900)]))
    stems = {
        name: lambda x=x: (x.expand(2, -1), 2 * RATE)
        for name, x in zip(NAMES, contributions, strict=True)
    }
    known = with_truth(trace, Track("song", "", stems))["constant_data"]["true_sources"]
    inner = known.values[:, 50:-50]  # resampling rings at the ends
    np.testing.assert_allclose(inner, 2 * contributions.numpy()[:, ::2][:, 50:-50], atol=0.02)
    long = {name: lambda: (torch.zeros(1, 8 * TIME), 2 * RATE) for name in NAMES}
    with pytest.raises(ValueError, match=r"^song: got oboe of 0.40 s, expected the 0.10 s"):
        with_truth(trace, Track("song", "", long))
    inferred = make_trace(gains=np.full((2, 6, 2), 0.5))
    with pytest.raises(ValueError, match="song: got inferred gains"):
        with_truth(inferred, Track("song", "", stems))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pyro-sep", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_separated_tracks_calibrate(
    call: Any, calibration: ConformalCalibration, tmp_path: Path
) -> None:
    for i in range(3):
        trace = make_trace(i)
        folder, true = tmp_path / "estimates" / f"song {i}", tmp_path / "true" / f"song {i}"
        folder.mkdir(parents=True)
        true.mkdir(parents=True)
        truth = torch.from_numpy(trace["constant_data"]["true_sources"].values)
        for name, audio in zip(NAMES, truth, strict=True):
            save_audio(true / f"{name}.wav", audio[None] / 2, RATE)  # contributions, of gains 1/2
        save_trace(make_trace(i, true_sources=None), folder / "trace.nc")
    words = ("calibrate", tmp_path / "estimates", "--references", tmp_path / "true", "--out")
    file = tmp_path / "calibration.json"
    code, out, _ = call(*words, file)
    assert (code, out) == (0, f"{file}: of 3 mixtures of oboe, flute\n")
    learned = ConformalCalibration.load(file)
    assert learned.kind == calibration.kind
    first = calibration.errors.isel(mixture=slice(3))
    xr.testing.assert_allclose(learned.errors, first, rtol=1e-4, atol=1e-3)
    (tmp_path / "estimates" / "song 2").rename(tmp_path / "estimates" / "tune")
    code, _, err = call(*words, file)
    assert code == 2
    assert "got track 'tune' without a reference" in err
    code, _, err = call("calibrate", tmp_path / "true", *words[2:], file)
    assert code == 2
    assert "true: got no trace.nc in it" in err


def test_a_calibration_shows_in_table_and_page(
    call: Any, calibration: ConformalCalibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "DPI", 40)
    file, path, page = (tmp_path / name for name in ("known.json", "trace.nc", "page.html"))
    trace = make_trace(100, true_sources=None)
    calibration.save(file)
    save_trace(trace, path)
    code, out, _ = call("diagnose", path, "--calibration", file)
    diagnosis = diagnose(load_trace(path))
    assert code == (0 if diagnosis.trusted else 1)
    intervals = format_intervals(ConformalCalibration.load(file), load_trace(path))
    assert out == f"{intervals}\n{format_diagnosis(diagnosis)}\n"
    code, _, err = call("report", path, "--out", page, "--calibration", file)
    assert (code, err) == (0, "")
    text = page.read_text()
    assert all(words in text for words in ("90 % of truths", "SI-SDR / dB", "in 39 mixtures"))
    low, high = calibration.intervals(trace, 0.9)["centroid"].sel(source="flute").values
    assert f"<td>{low:.0f} to {high:.0f}</td>" in text
    page.unlink()
    save_trace(make_trace(100, gains=(1, 1)), path)
    code, _, err = call("report", path, "--out", page, "--calibration", file)
    assert code == 2
    assert "trace: got gains [1.0, 1.0], expected [0.5, 0.5]" in err
    assert not page.exists()


@pytest.mark.parametrize("probability", [0, 1, 1.0, -1.0, float("nan"), "a", None])
def test_a_probability_of_no_interval(calibration: ConformalCalibration, probability: Any) -> None:
    with pytest.raises(ValueError, match=r"^probability: got .*, expected above 0, below 1"):
        calibration.intervals(make_trace(), probability)


def test_a_kind_that_says_less_does_not_fit(calibration: ConformalCalibration) -> None:
    for name in calibration.kind:
        if name != "sources":
            less = {key: value for key, value in calibration.kind.items() if key != name}
            with pytest.raises(ValueError, match="as in the calibration; separate all"):
                ConformalCalibration(less, calibration.errors).intervals(make_trace())
