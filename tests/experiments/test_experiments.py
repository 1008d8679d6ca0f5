import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from samplers import STEP_SIZE
from scripts import EXPERIMENTS, load
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import WAVEFORMS, toy_mixture
from pyro_sep.diagnostics.convergence import chain_agreement
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.flowavenet import FloWaveNet, FloWaveNetConfig
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import save_prior
from pyro_sep.priors.networks import FloWaveNetPrior, WaveNetPrior
from pyro_sep.separation.presets import PRESETS
from pyro_sep.trace.dataset import load_trace

NAMES = ("square", "saw")
TIME = 480  # 0.03 s


def write_order(folder: Path, names: Sequence[str], mixing: str = "mean") -> None:
    content = {"priors": list(names), "mixing": mixing, "estimate": "mode"}
    (folder / "priors.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    config = WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=4)
    for name in WAVEFORMS:
        torch.manual_seed(len(name))
        prior = WaveNetPrior(WaveNet(config), name=name, sample_rate=16_000)
        save_prior(prior, folder / f"{name}.safetensors")
    write_order(folder, WAVEFORMS)
    return folder


def test_the_paper_s_algorithm_draws_from_the_posterior_of_its_last_level(
    gaussian_priors: Callable[..., Priors],
    gaussian_posterior: Callable[..., tuple[Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    separate_toy = load("separate_toy")
    levels, time, sigma = (0.03, 0.01), 4_000, 0.05
    monkeypatch.setattr(separate_toy, "PAPER_SIGMAS", (0.359, 0.129, sigma))
    priors = gaussian_priors(*levels)
    sources = torch.zeros(1, 2, time)
    (result,) = separate_toy.algorithm_1(
        torch.full((1, time), 0.05),
        priors,
        seed=0,
        true_sources=sources,
        attrs={"data": "a constant"},
    )
    assert result.trace.attrs["gradients"] == 300
    assert result.trace["posterior"].sizes == {"chain": 1, "draw": 20, "source": 2, "time": time}
    pull, covariance = gaussian_posterior(levels, Mixing.mean(2), sigma)
    step_size, precision = STEP_SIZE * sigma**2, torch.linalg.inv(covariance)
    # The uncorrected chain's own law: variance 1 / (c - eta c^2 / 2) where the curvature is c.
    covariance = torch.linalg.inv(precision - step_size / 2 * precision @ precision)
    # E log p(x, m) over all instants; it spreads by sqrt(time) from run to run.
    lp = float(result.trace["sample_stats"]["lp"][0, -1])
    mean = pull * 0.05
    scales = torch.tensor([level**2 + sigma**2 for level in levels], dtype=torch.float64)
    noise = sigma**2 / 2 + 1e-6
    quadratic = ((mean**2 + covariance.diagonal()) / scales).sum()
    residual = (0.05 - mean.mean()) ** 2 + covariance.mean()
    constant = (2 * torch.pi * scales).log().sum() + math.log(2 * math.pi * noise)
    expected = -0.5 * time * float(quadratic + residual / noise + constant)
    assert abs(lp - expected) < 4.5 * math.sqrt(time)


def test_separate_toy_prints_and_writes_its_figures(priors: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    budget = ("--seconds", "0.03", "--levels", "6", "--candidates", "1")
    data = ("--sources", "square,saw", "--mixtures", "2", "--first", "7")
    program = (sys.executable, EXPERIMENTS / "separate_toy.py")
    done = subprocess.run(
        [*program, "--priors", priors, "--out", out, *data, *budget],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(os.listdir(out)) == [
        "mixture_0007",
        "mixture_0008",
        "mixtures.json",
        "summary.json",
    ]
    summary = json.loads((out / "summary.json").read_text())
    sdr, gain = [], []
    for index, row in zip((7, 8), summary["mixtures"], strict=True):
        item = toy_mixture("test", index, NAMES, TIME)
        written = [
            soundfile.read(out / f"mixture_{index:04d}" / f"{name}.wav", dtype="float32")[0]
            for name in NAMES
        ]
        estimate = torch.from_numpy(np.stack(written))
        sdr.append(si_sdr(estimate, item.sources).tolist())
        gain.append(si_sdr_improvement(estimate, item.sources, item.mixture).tolist())
        assert row["index"] == index
        assert row["si_sdr"] == pytest.approx(sdr[-1], abs=1e-3)
        assert row["improvement"] == pytest.approx(gain[-1], abs=1e-3)
        assert row["residual_db"] < -30
        assert row["frequency"] == pytest.approx(item.frequencies.tolist(), abs=0.06)
    assert summary["median_improvement_db"] == pytest.approx(np.median(gain), abs=1e-3)
    assert summary["mean_improvement_db"] == pytest.approx(np.mean(gain), abs=1e-3)
    quartiles = np.percentile(gain, [25, 75]).tolist()
    assert summary["quartiles_improvement_db"] == pytest.approx(quartiles, abs=1e-3)
    assert summary["median_si_sdr_db"] == pytest.approx(np.median(sdr), abs=1e-3)
    assert summary["share_above_10_db"] == np.mean(np.array(sdr) > 10)
    per_source = dict(zip(NAMES, np.median(gain, 0).tolist(), strict=True))
    assert summary["median_improvement_per_source_db"] == pytest.approx(per_source, abs=1e-3)
    residuals = [row["residual_db"] for row in summary["mixtures"]]
    assert summary["worst_residual_db"] == max(residuals)
    first, second, last, where = done.stdout.splitlines()
    for index, line in ((7, first), (8, second)):
        assert line.startswith(f"mixture {index:4d}: SI-SDR (improvement) in dB: square ")
        assert f"({gain[index - 7][0]:+5.1f})  saw {sdr[index - 7][1]:6.1f}" in line
    assert f"SI-SDR improvement median {np.median(gain):.1f} dB" in last
    assert "Paper (2011.01761)" in last
    assert where.endswith(f" s. Results: {out}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--sources", "square,cello"),
            "sources: got 'cello', expected some of sine, saw, square, triangle",
        ),
        (("--first", "1500"), "index: got 1500, expected 0 to 1499 for test"),
        (("--device", "abacus"), "device: got 'abacus', expected cpu or one that is here ("),
        (
            ("--priors", "none"),
            "priors: got 'none', expected a shipped set (guitar, guitar-16k, music, music-4k, ",
        ),
    ],
)
def test_separate_toy_refuses_in_a_line(
    priors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
    message: str,
) -> None:
    out = tmp_path / "results"
    paths = ("--priors", str(priors), "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["separate_toy.py", *paths, *arguments])
    with pytest.raises(SystemExit) as caught:
        run(load("separate_toy").main)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"pyro-sep: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flows")
    config = FloWaveNetConfig(squeeze=8, flows=2, width=8, layers=2, spectra=(32,), head_width=8)
    for name in NAMES:
        torch.manual_seed(len(name))
        prior = FloWaveNetPrior(FloWaveNet(config), name=name, sample_rate=16_000)
        save_prior(prior, folder / f"{name}.safetensors")
    write_order(folder, NAMES)
    return folder


def test_latent_nuts_stands_beside_sgld(
    flows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "results"
    module = load("latent_nuts")
    budget = {"levels": 6, "candidates": 1, "tries": 1, "swaps": 0, "replicas": 0}
    budget |= {"cooling": 1, "warmup": 1, "draws": 1, "thin": 1}
    monkeypatch.setattr(module, "separate", functools.partial(module.separate, **budget))
    module.main(
        index=3,
        seconds=0.0161,  # 258 samples, no multiple of 8
        sources="square,saw",
        priors=str(flows),
        warmup=8,
        draws=6,
        max_tree_depth=2,
        seed=0,
        out=out,
    )
    assert sorted(os.listdir(out)) == ["nuts", "sgld", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    nuts, sgld = summary["NUTS, latent"], summary["SGLD, audio"]
    assert 0.5 * nuts["gradients"] < sgld["gradients"] < 1.5 * nuts["gradients"]
    for folder, row in (("nuts", nuts), ("sgld", sgld)):
        trace = load_trace(out / folder / "trace.nc")
        assert dict(trace["posterior"].sizes) == {"chain": 2, "draw": 6, "source": 2, "time": 264}
        agreement = chain_agreement(trace)
        assert row["r_hat_worst"] == pytest.approx(float(agreement["r_hat"].max()), abs=0.01)
        assert row["ess_worst"] == pytest.approx(float(agreement["ess_bulk"].min()), abs=0.06)
        assert (out / folder / "separation.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "NUTS, latent: gradients" in printed
    assert "SGLD, audio: gradients" in printed
    assert f" s. Results: {out}" in printed


def test_sets_of_sums_are_no_priors_of_toy_mixtures(flows: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(flows, tmp_path / "flows")
    write_order(folder, NAMES, "sum")
    with pytest.raises(
        ValueError, match="priors: got a set whose mixtures are the sum of their so"
    ):
        load("intervals").main(priors=str(folder), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_latent_nuts_wants_flows(priors: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no flow for 'square', expected flow priors"):
        load("latent_nuts").main(sources="square,saw", priors=str(priors), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_flow_ablation_trains_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("flow_ablation")
    nested = FloWaveNetConfig(squeeze=8, flows=2, width=8, layers=2, spectra=(32,), head_width=8)
    variants = {"a, b": nested, "wavenet": WaveNetConfig(width=8, layers=2, spectra=(32,))}
    monkeypatch.setattr(module, "VARIANTS", variants)
    monkeypatch.setattr(module, "AUDIT_FRAMES", 2)
    module.main(source="saw", steps=2, out=tmp_path)
    content = json.loads((tmp_path / "saw.json").read_text())
    table = content["variants"]
    assert (list(table), content["steps"]) == (["a, b", "wavenet"], 2)
    header, first, second, took = capsys.readouterr().out.splitlines()[-4:]
    assert header == "| variant | CPU min | 0.01 | 0.077 | 0.359 | 1 |"
    assert first.startswith("| a, b | ")
    own, other = table["wavenet"]["own"][-1], table["wavenet"]["highest_other"][-1]
    assert second.endswith(f"| {own:.2f} ({other:.2f}) |")
    assert took.endswith(f" s. Results: {tmp_path}")


def test_presence_judges_every_source_and_goes_on(
    priors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = load("presence")
    monkeypatch.setattr(module, "resume", functools.partial(module.resume, batch=2))
    small = {"tries": 1, "swaps": 0, "replicas": 0, "draws": 2}
    monkeypatch.setitem(PRESETS["quick"], "mode", small)
    run = functools.partial(
        module.main, mixtures=3, first=4, seconds=0.03, priors=str(priors), out=tmp_path
    )
    run = functools.partial(run, preset="quick", levels=6, candidates=1)
    run(chains=2)
    assert sorted(os.listdir(tmp_path)) == ["mixtures.json", "presence.png", "summary.json"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = summary["mixtures"]
    assert [row["index"] for row in rows] == [4, 5, 6]
    truth = np.array([row["present"] for row in rows])
    assert set(truth.sum(1)) <= {2, 3}
    best = np.array([row["probability"][int(np.argmax(row["lp"]))] for row in rows])
    assert np.shape(rows[0]["probability"]) == (2, 4)
    right = truth == (best > 0.5)
    assert summary["sources_right"] == pytest.approx(right.mean())
    assert summary["mixtures_right"] == pytest.approx(right.all(1).mean())
    assert summary["present_found"] == pytest.approx(right[truth].mean())
    assert summary["absent_found"] == pytest.approx(right[~truth].mean())
    assert summary["brier"] == pytest.approx(np.square(best - truth).mean())
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("mixture    4: sine ")
    assert f"3 mixtures: right at 1/2 are {right.mean():.1%} of the sources" in printed

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("separated again")

    monkeypatch.setattr(module, "separate_batch", refuse)
    run(chains=2)
    assert capsys.readouterr().out.splitlines()[:-1] == printed.splitlines()[:-1]
    with pytest.raises(ValueError, match=r"mixtures.json: got figures of .*give another --out"):
        run(chains=1)


def test_presence_holds_a_part_of_the_tones() -> None:
    module = load("presence")
    held = [module.subset(index, WAVEFORMS) for index in range(200)]
    assert held == [module.subset(index, WAVEFORMS) for index in range(200)]
    assert {len(set(names)) for names in held} == {2, 3}
    assert len({frozenset(names) for names in held}) == 6 + 4
    sources, item = module.partial_sources(3, WAVEFORMS, 300), toy_mixture("test", 3, time=300)
    for name, source, tone in zip(WAVEFORMS, sources, item.sources, strict=True):
        assert torch.equal(source, tone if name in held[3] else torch.zeros(300))
