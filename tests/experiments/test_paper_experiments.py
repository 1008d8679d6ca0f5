"""The experiments that show the paper's figures and table, on tiny networks and known laws."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from music import excerpt, needs_ffmpeg, write_tracks
from networks import NESTED, WAVENET, randomise
from scripts import load
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import MusdbSource, musdb_tracks
from pyro_sep.data.toy import toy_mixture
from pyro_sep.data.tracks import stem_frames
from pyro_sep.models.registry import build, family_of
from pyro_sep.priors.io import load_priors, save_prior
from pyro_sep.priors.networks import PRIORS

NAMES = ("square", "saw")
FRAMES, TIME = 3, 64


def save_set(folder: Path, config: object, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir()
    for name in names:
        torch.manual_seed(len(name))
        network = build(config)
        randomise(network)
        prior = PRIORS[family_of(config)](network, name=name, sample_rate=16_000)
        save_prior(prior, folder / f"{name}.safetensors")
    content = {"priors": names, "mixing": "mean", "estimate": "mode"}
    (folder / "priors.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set of each family; the flows know less low noise."""
    folder = tmp_path_factory.mktemp("sets")
    flow = dataclasses.replace(NESTED, sigma_min=0.05)
    return save_set(folder / "wavenet", WAVENET), save_set(folder / "flow", flow)


def test_waveforms_are_the_four_waves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("waveforms").main(out=tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["waveforms.csv", "waveforms.png"]
    curves = pd.read_csv(tmp_path / "out" / "waveforms.csv")
    p = curves["phase"].to_numpy()
    assert np.allclose(np.diff(p), 1e-3)
    assert len(p) == 1_000
    sine = np.sin(2 * np.pi * p)
    expected = {
        "sine": sine,
        "saw": 2 * p - 1,
        "square": np.where(p < 0.5, 1, -1),
        "triangle": 2 / np.pi * np.arcsin(sine),
    }
    assert curves.columns[1:].tolist() == list(expected)
    for name, wave in expected.items():
        np.testing.assert_allclose(curves[name], wave, atol=1e-9)
    printed = capsys.readouterr().out
    for name, rms in (("sine", 2**-0.5), ("saw", 3**-0.5), ("square", 1), ("triangle", 3**-0.5)):
        assert f"{name}: RMS {rms:.3f}, peak 1.000" in printed


def test_waveforms_are_drawn() -> None:
    curves = pd.DataFrame({"up": [0.0, 1.0, 2.0], "down": [0.0, -1.0, -2.0]}, index=[0, 0.5, 1])
    figure = load("waveforms").draw(curves)
    assert [ax.get_title() for ax in figure.axes] == ["up", "down"]
    for ax, curve in zip(figure.axes, curves.T.to_numpy(), strict=True):
        np.testing.assert_array_equal(ax.lines[-1].get_ydata(), curve)


@needs_ffmpeg
def test_waveforms_of_the_excerpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("waveforms")
    module.main(musdb=excerpt(), out=tmp_path)
    curves = pd.read_csv(tmp_path / "waveforms.csv", index_col="seconds")
    (track,) = musdb_tracks(excerpt())
    frames = stem_frames(track, ["drums"], 16_000, 16_000)
    assert curves.columns.tolist() == ["bass", "drums", "vocals", "other"]
    np.testing.assert_allclose(curves["drums"], frames[0, 0], atol=1e-6)
    assert curves.index[-1] == 15_999 / 16_000
    printed = capsys.readouterr().out
    assert "the four stems of a track, here The Easton Ellises - Falcon 69" in printed
    assert f"bass: RMS {curves['bass'].pow(2).mean() ** 0.5:.3f}" in printed
    figure = module.draw(curves, "song")
    assert figure.get_suptitle() == "song"
    assert figure.axes[0].get_xlabel() == "time / s"


@needs_ffmpeg
@pytest.mark.parametrize("name", ["cross_likelihood", "noise_conditioning", "constant_inputs"])
def test_music_is_judged_without_the_papers_tones(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tracks(tmp_path / "db")
    priors = save_set(tmp_path / "priors", WAVENET, ("bass", "drums"))
    options = {"frames": 2, "time": 64, "musdb": tmp_path / "db", "out": tmp_path / "out"}
    if name == "constant_inputs":
        options["start"] = 32
    load(name).main(str(priors), **options)
    printed = capsys.readouterr().out
    assert printed.startswith(f"audio: {tmp_path / 'db'}\n")
    assert "poster" not in printed
    assert "thesis" not in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["musdb"] == str(tmp_path / "db")
    table = pd.read_csv(tmp_path / "out" / f"{name}.csv")
    heard = MusdbSource(tmp_path / "db", "drums", 16_000, 64).held_out(2, 64)
    law = load_priors(str(priors))["drums"].frame(64).condition(0.01)
    if name == "constant_inputs":
        row = table.query("sigma == 0.01 and input == 'clean' and prior == 'drums'")
        short = law.frame(32).log_prob(heard[:, :32])
        expected, found = float((law.log_prob(heard) - short).mean()) / 32, row["own"].item()
    else:
        row = table.query(
            "sigma == 0.01 and input == 'clean' and prior == 'drums' and source == 'drums'"
        )
        expected, found = float(law.log_prob(heard).mean()) / 64, row["log_likelihood"].item()
    assert found == pytest.approx(expected, abs=1e-4)


def expected_log_likelihood(folder: str, kind: str, sigma: float, prior: str, source: str) -> float:
    """One cell, straight from the prior."""
    x = torch.stack([toy_mixture("test", i, (source,), TIME).sources[0] for i in range(FRAMES)])
    if kind == "noised":
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    law = load_priors(folder)[prior].frame(TIME).condition(sigma)
    return float(law.log_prob(x).mean()) / TIME


def check_cells(path: Path, sigmas: tuple[float, ...], folders: list[str]) -> None:
    table = pd.read_csv(path)
    assert len(table) == len(folders) * 2 * len(sigmas) * len(NAMES) ** 2
    keys = ["priors", "input", "sigma", "prior", "source"]
    assert not table.duplicated(keys).any()
    assert set(table["sigma"]) == set(sigmas)
    assert set(table["priors"]) == set(folders)
    for *key, value in table[[*keys, "log_likelihood"]].itertuples(index=False):
        assert value == pytest.approx(expected_log_likelihood(*key), abs=1e-4)


def test_cross_likelihood_is_the_priors(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(folder) for folder in sets]
    out = tmp_path / "out"
    load("cross_likelihood").main(",".join(folders), FRAMES, TIME, seed=5, out=out)
    assert sorted(os.listdir(out)) == [
        "cross_likelihood.csv",
        "cross_likelihood.png",
        "summary.json",
    ]
    check_cells(out / "cross_likelihood.csv", (0.05,), folders)  # the lowest that both know
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["sigma"], summary["frames"], summary["time"]) == (0.05, FRAMES, TIME)
    titles = [f"{folder}, {kind}" for folder in folders for kind in ("clean", "noised")]
    assert list(summary["verdicts"]) == titles
    printed = capsys.readouterr().out
    for title, verdict in summary["verdicts"].items():
        block = printed.split(f"{title} audio, sigma 0.05: rows are priors\n")[1]
        assert block.splitlines()[4:6] == [
            f"  rows: {verdict['rows']}",
            f"  columns: {verdict['columns']}",
        ]
    assert f" s. Results: {out}" in printed


def test_cross_likelihood_says_who_wins(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "b", "c"]
    rows = [[3.0, 1.0, 2.5], [0.0, 1.5, 2.0], [2.0, 1.0, 2.7]]
    panel = xr.DataArray(rows, {"prior": names, "source": names})
    module = load("cross_likelihood")
    verdicts = module.report("title", panel)
    assert verdicts["rows"] == "not so for b (its best source is c)"
    assert verdicts["columns"] == "each source is likeliest under its own prior"
    verdicts = module.report("title", panel.rename(prior="source", source="prior"))
    assert verdicts["rows"] == "each prior gives its own source most"
    assert verdicts["columns"] == "not so for b (its best prior is c)"
    # The tables behind the poster are discriminative, says our rule of them too.
    for table in module.PAPER.values():
        paper = xr.DataArray(table, {"prior": list("abcd"), "source": list("abcd")})
        assert not any("not" in verdict for verdict in module.report("paper", paper).values())


def table_of(module: ModuleType, sigmas: tuple[float, ...]) -> xr.DataArray:
    """Some numbers for two sets of three priors."""
    names = ["a", "b", "c"]
    coords = {
        "priors": ["one", "two"],
        "input": ["clean", "noised"],
        "sigma": list(sigmas),
        "prior": names,
        "source": names,
    }
    shape = [len(values) for values in coords.values()]
    values = np.random.default_rng(0).normal(size=shape)
    return xr.DataArray(values, coords, name="log_likelihood")


def test_cross_likelihood_draws_every_table() -> None:
    module = load("cross_likelihood")
    table = table_of(module, (0.01,))
    *maps, bar = module.draw(table).axes
    keys = [(name, kind) for name in ("one", "two") for kind in ("clean", "noised")]
    assert [ax.get_title() for ax in maps] == [f"{name}, {kind}" for name, kind in keys]
    for (name, kind), ax in zip(keys, maps, strict=True):
        cells = table.sel(priors=name, input=kind, sigma=0.01, drop=True)
        np.testing.assert_array_equal(ax.images[0].get_array(), cells.transpose("prior", "source"))
    assert bar.get_ylabel() == "log-likelihood / (nats per audio sample)"


@pytest.mark.parametrize("name", ["cross_likelihood", "noise_conditioning"])
def test_sets_of_other_sources_are_refused(
    name: str,
    sets: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_set(tmp_path / "other", WAVENET, ("sine", "saw"))
    out = tmp_path / "out"
    arguments = ("--priors", f"{sets[0]},{other}", "--frames", "1", "--time", "16")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        run(load(name).main)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == (
        "pyro-sep: audio: got ['saw', 'square'], expected the priors' names ['saw', 'sine']\n"
    )
    assert printed.out == ""
    assert not out.exists()


def test_noise_conditioning_is_the_priors(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(sets[0]), str(save_set(tmp_path / "flow", NESTED))]
    out = tmp_path / "out"
    module = load("noise_conditioning")
    module.main(",".join(folders), FRAMES, TIME, seed=5, out=out)
    assert sorted(os.listdir(out)) == [
        "noise_conditioning.csv",
        "noise_conditioning.png",
        "summary.json",
    ]
    check_cells(out / "noise_conditioning.csv", (0.01, 0.027, 0.077, 0.129, 0.359), folders)
    summary = json.loads((out / "summary.json").read_text())
    table = pd.read_csv(out / "noise_conditioning.csv").set_index(["priors", "input", "sigma"])
    assert len(summary["wins"]) == 20
    for row in summary["wins"]:
        cells = table.loc[(row["priors"], row["input"], row["sigma"])]
        square = cells.pivot(index="prior", columns="source", values="log_likelihood").to_numpy()
        assert row["priors_right"] == (square.argmax(1) == [0, 1]).sum()
        assert row["sources_right"] == (square.argmax(0) == [0, 1]).sum()
    printed = capsys.readouterr().out
    assert "paper's poster, flow, clean audio, of 4  0: 4 4  0.01: 4 4  0.027: 4 3" in printed
    assert f" s. Results: {out}" in printed


def test_noise_conditioning_draws_a_panel_per_prior() -> None:
    module = load("noise_conditioning")
    sigmas = (0.1, 0.3)
    table = table_of(module, sigmas)
    axes = iter(module.draw(table).axes)
    for priors in ("one", "two"):
        for kind in ("clean", "noised"):
            for prior in "abc":
                ax = next(axes)
                assert ax.get_title() == f"{priors}: {prior}"
                entropy, *curves = ax.lines
                expected = [-0.5 * math.log(2 * math.pi * math.e * s**2) for s in sigmas]
                np.testing.assert_allclose(entropy.get_ydata(), expected)
                assert [line.get_label() for line in curves] == list("abc")
                for line in curves:
                    curve = table.sel(
                        priors=priors, input=kind, prior=prior, source=line.get_label()
                    )
                    np.testing.assert_array_equal(line.get_xdata(), sigmas)
                    np.testing.assert_array_equal(line.get_ydata(), curve)


def test_constant_inputs_are_the_closed_form(
    gaussian_priors: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = load("constant_inputs")
    levels = {"square": 1.0, "saw": 0.2}
    priors = dict(zip(levels, gaussian_priors(*levels.values()).values(), strict=True))
    monkeypatch.setattr(module, "load_sets", lambda names: {names: priors})
    frames, start, time = 20, 500, 2_500
    module.main("mine", frames, start, time, seed=3, out=tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "constant_inputs.csv",
        "constant_inputs.png",
        "summary.json",
    ]
    table = pd.read_csv(tmp_path / "out" / "constant_inputs.csv")
    assert len(table) == 8
    tones = {
        name: torch.stack([toy_mixture("test", i, (name,), time).sources[0] for i in range(frames)])
        for name in levels
    }
    for row in table.to_dict("records"):
        sigma, added = row["sigma"], row["sigma"] if row["input"] == "noised" else 0.0
        variance = levels[row["prior"]] ** 2 + sigma**2
        own = float(tones[row["prior"]][:, start:].square().mean())
        powers = {"own": own, "zero": 0.0, "one": 1.0, "noise": 0.25}
        for name, power in powers.items():
            value = -0.5 * math.log(2 * math.pi * variance) - (power + added**2) / (2 * variance)
            # Var x^2 = 4 m^2 s^2 + 2 s^4 for mean m and noise s; the tones are the same ones.
            s2, m2 = (added**2 + 0.25, 0) if name == "noise" else (added**2, power)
            error = math.sqrt((4 * m2 * s2 + 2 * s2**2) / (frames * (time - start))) / 2 / variance
            assert row[name] == pytest.approx(value, abs=4 * error + 1e-4 * abs(value))
    assert sorted(set(table["sigma"])) == [0.001, 0.359]
    # A Gaussian of mean 0 finds the quieter likelier: zero and, where it is loud, noise.
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    verdict = summary["likelier_than_own"]["mine, noised audio, sigma 0.359"]
    last = table[(table["input"] == "noised") & (table["sigma"] == 0.359)].set_index("prior")
    expected = [
        f"{name} under {prior} (+{last.loc[prior, name] - last.loc[prior, 'own']:.2g})"
        for name in ("zero", "noise")
        for prior in levels
    ]
    assert verdict == ", ".join(expected)
    assert summary["rows"][0]["zero"] == pytest.approx(table["zero"][0])
    printed = capsys.readouterr().out
    assert f"  likelier than the prior's own source: {verdict}\n" in printed
    assert "author's thesis, flow, clean audio, no noise\n" in printed


def test_the_beginning_does_not_count() -> None:
    @dataclasses.dataclass
    class Edges:
        """Two ends cost 100 nats, whatever the frame; in between an audio sample costs 2 x."""

        time: int = 1

        def frame(self, time: int) -> "Edges":
            return Edges(time)

        def log_prob(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == self.time
            return -100 - 2 * x.sum(-1)

    loud_start = torch.cat([torch.full((1, 40), 9.0), torch.tensor([[1.0, 2.0, 3.0]])], -1)
    result = load("constant_inputs").judge(Edges(), {"x": loud_start}, 40)
    assert result == {"x": pytest.approx(-4.0)}


def test_constant_inputs_of_an_autoregressive_prior_are_conditional(
    sets: tuple[Path, Path],
) -> None:
    prior = load_priors(sets[0])["saw"].condition(0.1)
    x = torch.randn(2, 96)
    parts = torch.stack([prior.frame(t).log_prob(x[:, :t]) for t in range(32, 97)])
    result = load("constant_inputs").judge(prior, {"x": x}, 32)
    assert result["x"] == pytest.approx(float(parts.diff(dim=0).mean()), abs=1e-4)


def test_constant_inputs_refuse_a_start_beyond_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start: got 64 audio samples, expected fewer than time"):
        load("constant_inputs").main("none", start=64, time=64, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_constant_inputs_are_drawn() -> None:
    columns = ["own", "zero", "one", "noise"]
    tables = {
        title: pd.DataFrame(np.random.default_rng(i).normal(size=(2, 4)), NAMES, columns)
        for i, title in enumerate("abcd")
    }
    figure = load("constant_inputs").draw(tables)
    for ax, (title, cells) in zip(figure.axes, tables.items(), strict=True):
        assert ax.get_title() == title
        for points, name in zip(ax.collections, columns, strict=True):
            assert points.get_label() == name
            np.testing.assert_array_equal(points.get_offsets()[:, 1], cells[name])
