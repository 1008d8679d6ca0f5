"""The table of music on tiny tracks, with tiny priors."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from baselines import ideal_ratio_mask
from music import RATE, needs_ffmpeg
from networks import WAVENET, randomise
from scripts import load

from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.data.tracks import stem_frames
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.models.registry import build
from pyro_sep.priors.io import load_prior, save_prior
from pyro_sep.priors.networks import WaveNetPrior
from pyro_sep.trace.dataset import load_trace

pytestmark = needs_ffmpeg
SECONDS = 0.064
TIME = 1_024  # at 16 kHz
METHODS = ["mixture", "low-pass", "hpss", "nmf", "mask", "posterior"]
SMALL: dict[str, Any] = {"chains": 1, "candidates": 1, "levels": 6, "draws": 2}


def write_track(folder: Path, seed: int, bass_from: float = 0.0) -> None:
    """1.5 s of a bass, clicks of drums, and noise; the bass begins after that share of it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    t = np.arange(int(1.5 * RATE)) / RATE
    bass = 0.3 * np.sin(2 * np.pi * 90 * t) * (t >= 1.5 * bass_from)
    drums = rng.standard_normal(len(t)) * np.exp(-(t % 0.05) / 0.002)
    noise = 0.1 * rng.standard_normal((2, len(t)))
    for name, samples in zip(STEMS, (bass, 0.3 * drums, *noise), strict=True):
        soundfile.write(folder / f"{name}.wav", np.stack([samples] * 2, 1), RATE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six test tracks: d has no bass, l has it later, and f is of two stems alone."""
    folder = tmp_path_factory.mktemp("musdb")
    for seed, track in enumerate(("train/a", "train/b", "test/c", "test/e", "test/f", "test/g")):
        write_track(folder / track, seed)
    write_track(folder / "test" / "d", 6, bass_from=2)
    write_track(folder / "test" / "l", 7, bass_from=0.25)
    for stem in ("vocals", "other"):
        (folder / "test" / "f" / f"{stem}.wav").unlink()
    return folder


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    for name in ("bass", "drums"):
        torch.manual_seed(len(name))
        network = build(WAVENET)
        randomise(network)
        save_prior(
            WaveNetPrior(network, name=name, sample_rate=16_000), folder / f"{name}.safetensors"
        )
    return folder


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment, whose NMF learns from a few seconds."""
    module = load("separate_music")
    monkeypatch.setattr("baselines.TRAINING_SECONDS", 4)
    return module


@pytest.fixture
def run(module: ModuleType, root: Path, priors: Path, tmp_path: Path) -> Callable[..., None]:
    def start(**options: Any) -> None:
        given = {"musdb": root, "priors": str(priors), "seconds": SECONDS, "out": tmp_path / "out"}
        module.main(**(given | SMALL | options))

    return start


def test_the_table_and_what_it_is_made_of(
    run: Callable[..., None], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(excerpts=3)
    out = tmp_path / "out"
    table = pd.read_csv(out / "summary.csv", index_col="method")
    assert table.index.tolist() == METHODS
    figures = {name: json.loads((out / f"{name}.json").read_text()) for name in METHODS}
    frames, expected = [], {"mixture": [], "mask": []}
    for track in musdb_tracks(root):
        if track.name in "cef":  # d has no bass, and three were asked for
            frames.append(stem_frames(track, ("bass", "drums"), 16_000, TIME)[0])
            mixture, masked = frames[-1].sum(0), ideal_ratio_mask(frames[-1].sum(0), frames[-1])
            expected["mixture"].append(si_sdr(mixture, frames[-1]).tolist())
            expected["mask"].append(si_sdr_improvement(masked, frames[-1], mixture).tolist())
    for name, content in figures.items():
        assert [row["track"] for row in content["mixtures"]] == ["c", "e", "f"]
        gain = np.array([row["improvement"] for row in content["mixtures"]])
        np.testing.assert_allclose(table.loc[name, ["bass", "drums"]], np.median(gain, 0))
        assert table.loc[name, "all"] == pytest.approx(np.median(gain))
        assert table.loc[name, "mean"] == pytest.approx(gain.mean())
        assert table.loc[name, "% above 5 dB"] == pytest.approx(100 * (gain > 5).mean())
        sdr = np.array([row["si_sdr"] for row in content["mixtures"]])
        assert table.loc[name, "SI-SDR"] == pytest.approx(np.median(sdr))
        np.testing.assert_allclose(sdr - gain, expected["mixture"], atol=1e-3)
        seconds = [row["seconds"] for row in content["mixtures"]]
        assert table.loc[name, "CPU s"] == pytest.approx(np.median(seconds))
    found = [row["improvement"] for row in figures["mask"]["mixtures"]]
    np.testing.assert_allclose(found, expected["mask"], atol=1e-3)
    assert (table.loc["mixture", ["bass", "drums", "all", "mean"]] == 0).all()
    assert (table.loc[["nmf", "low-pass", "mask"], "all"] > 5).all()  # clicks and a sine
    assert table["all"].idxmax() in ("mask", "low-pass")
    assert sorted(path.name for path in (out / "c").iterdir()) == [
        "bass.wav",
        "drums.wav",
        "separation.png",
        "summary.json",
        "trace.nc",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["tracks"], summary["chains"]) == (["c", "e", "f"], 1)
    assert [row["method"] for row in summary["table"]] == METHODS
    printed = capsys.readouterr().out
    assert "3 excerpts of 0.064 s" in printed
    assert f"{table.loc['nmf', 'all']:.1f}" in printed
    assert f" s. Results: {out}" in printed


def test_of_several_chains_the_best_one_has_a_row_too(
    run: Callable[..., None], module: ModuleType, root: Path, tmp_path: Path
) -> None:
    run(excerpts=1, chains=2, methods="posterior")
    out = tmp_path / "out"
    table = pd.read_csv(out / "summary.csv", index_col="method")
    assert table.index.tolist() == ["posterior", "best chain"]
    draws = load_trace(out / "c" / "trace.nc")["posterior/sources"].values
    (item,) = module.find_excerpts(root, ("bass", "drums"), TIME, 1)
    found = [
        si_sdr_improvement(torch.from_numpy(mean), item.sources, item.mixture).numpy()
        for mean in draws.mean(1)
    ]
    assert not np.allclose(found[0], found[1], atol=0.1)
    best = table.loc["best chain", ["bass", "drums"]].to_numpy(float)
    assert min(np.abs(best - one).max() for one in found) < 1e-3
    assert table.loc["posterior", "all"] != pytest.approx(table.loc["best chain", "all"], abs=0.1)


def test_priors_at_a_lower_rate_are_judged_without_their_treble_too(
    run: Callable[..., None], root: Path, priors: Path, tmp_path: Path
) -> None:
    low = tmp_path / "low"
    for name, treble in (("bass", (0.0,)), ("drums", (1.0, 2.0))):
        network = load_prior(priors / f"{name}.safetensors").network
        prior = WaveNetPrior(network, name=name, sample_rate=4_000, treble=treble)
        low.mkdir(exist_ok=True)
        save_prior(prior, low / f"{name}.safetensors")
    run(excerpts=1, methods="posterior", priors=str(low), seconds=0.256)
    table = pd.read_csv(tmp_path / "out" / "summary.csv", index_col="method")
    assert table.index.tolist() == ["posterior", "flat treble"]
    assert table.loc["posterior", "all"] != pytest.approx(table.loc["flat treble", "all"], abs=0.1)


def test_a_run_that_was_cut_off_goes_on(
    run: Callable[..., None], module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    learned: list[int] = []

    def separate(*inputs: Any, **options: Any) -> Any:
        calls.append(options["seed"])
        return real_separate(*inputs, **options)

    def learn(*inputs: Any) -> Any:
        learned.append(1)
        return real_learn(*inputs)

    real_separate, real_learn = module.separate_at, module.learn
    monkeypatch.setattr(module, "separate_at", separate)
    monkeypatch.setattr(module, "learn", learn)
    options = {"excerpts": 5, "methods": "mixture,nmf,posterior", "seed": 3}
    run(**options)
    assert (calls, len(learned)) == ([3, 4, 5, 6, 7], 1)
    path = tmp_path / "out" / "posterior.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"mixtures": whole["mixtures"][:2]}))
    run(**options)
    assert (calls[5:], len(learned)) == ([5, 6, 7], 1)
    again = json.loads(path.read_text())
    assert again["settings"] == whole["settings"]
    for a, b in zip(whole["mixtures"], again["mixtures"], strict=True):
        assert a["track"] == b["track"]
        assert a["si_sdr"] == pytest.approx(b["si_sdr"], abs=1e-3)
    run(**options | {"excerpts": 2})  # fewer than there are
    table = pd.read_csv(tmp_path / "out" / "summary.csv", index_col="method")
    assert table.loc["posterior", "mean"] == pytest.approx(
        np.mean([row["improvement"] for row in whole["mixtures"][:2]])
    )
    with pytest.raises(ValueError, match=r"nmf.json: got figures of .*give another --out"):
        run(**options | {"seed": 4})
    assert len(calls) == 8


def test_excerpts_are_where_all_stems_are_heard(module: ModuleType, root: Path) -> None:
    found = module.find_excerpts(root, ("drums", "bass"), TIME, 20)
    assert [item.track for item in found] == ["c", "e", "f", "g", "l"]
    late = found[-1].sources
    assert late.shape == (2, TIME)
    assert bool((late.square().mean(1) >= 1e-6).all())
    (track,) = [track for track in musdb_tracks(root) if track.name == "l"]
    frames = stem_frames(track, ("drums", "bass"), 16_000, TIME)
    heard = (frames[:, 1].square().mean(1) >= 1e-6).nonzero()[0, 0]
    assert heard > 0
    assert torch.equal(late, frames[heard])
    torch.testing.assert_close(found[0].mixture, found[0].sources[0] + found[0].sources[1])
    four = module.find_excerpts(root, STEMS, TIME, 20)  # f has but two of them
    assert [item.track for item in four] == ["c", "e", "g", "l"]


def test_four_stems_have_their_methods(module: ModuleType) -> None:
    assert module.chosen_methods(None, STEMS) == ["mixture", "hpss", "nmf", "mask", "posterior"]
    assert module.chosen_methods(None, ("bass", "vocals")) == [
        "mixture",
        "nmf",
        "mask",
        "posterior",
    ]
    assert module.chosen_methods(None, ("drums", "bass")) == METHODS


def test_a_silent_estimate_is_the_worst(module: ModuleType) -> None:
    rows = [
        {"improvement": [1.0, None], "si_sdr": [2.0, None], "seconds": 1.0},
        {"improvement": [3.0, 6.0], "si_sdr": [4.0, 5.0], "seconds": 3.0},
    ]
    row = module.line(rows, ("bass", "drums"))
    assert (row["bass"], row["drums"], row["all"]) == (2.0, -np.inf, 2.0)
    assert (row["% above 5 dB"], row["SI-SDR"], row["CPU s"]) == (25.0, 3.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "nmf,magic"}, "methods: got 'magic', expected some of mixture, low-pass, "),
        ({"stems": "bass,flute"}, "stems: got 'flute', expected some of bass, drums, vocals, oth"),
        ({"stems": "bass"}, "stems: got bass, expected two or more that differ"),
        ({"stems": "bass,bass"}, "stems: got bass,bass, expected two or more"),
        ({"stems": "drums,other", "methods": "low-pass"}, "low-pass: got stems drums, other, "),
        ({"stems": "drums,other"}, "sources: got 'other', expected some of bass, drums"),
        ({"priors": "nothing"}, "priors: got 'nothing', expected a shipped set"),
    ],
)
def test_what_cannot_be_asked_for(
    run: Callable[..., None], tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        run(**options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_stems_that_are_never_heard_together(root: Path, tmp_path: Path) -> None:
    write_track(tmp_path / "test" / "d", 0, bass_from=2)
    with pytest.raises(ValueError, match="got no test track with bass, drums at once, expected"):
        load("separate_music").find_excerpts(tmp_path, ("bass", "drums"), TIME, 20)
