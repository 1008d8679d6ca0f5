"""Simulation-based calibration of the samplers."""

import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakePriors
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import draw_sources
from pyro_sep.diagnostics.sbc import NOMINAL
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.mixing.known import Mixing

MIXING = Mixing((0.6, -0.9), 0.05)
LEVELS, SIGMA_MIN, TIME = (0.8, 0.3), 0.2, 8
Law = Callable[[Sequence[float], Mixing, float], tuple[Tensor, Tensor]]


@pytest.mark.parametrize("sampler", ["langevin", "adjusted", "smc"])
def test_samplers_give_noisy_draws_of_the_last_level(
    sampler: str, gaussian_priors: MakePriors, gaussian_posterior: Law
) -> None:
    """With Gaussian priors mean and covariance are known; denoised draws would be narrower."""
    script, repeats = load("calibration"), 12
    steps = 6 if sampler == "smc" else 80  # from a mode to the law
    settings = Annealing(sigma_max=3.0, sigma_freeze=1.0, sigma_min=SIGMA_MIN, warmup=steps)
    task = script.Task(gaussian_priors(*LEVELS), MIXING, settings, False, 50, steps)
    mixture = torch.randn(TIME, generator=torch.Generator().manual_seed(2))
    draws = script.SAMPLERS[sampler](task, mixture.expand(repeats, -1), 3)
    assert draws.shape == (repeats, 50, 2, TIME)
    pull, covariance = gaussian_posterior(LEVELS, MIXING, SIGMA_MIN)
    off = draws.double() - pull[:, None] * mixture.double()
    means = off.mean(1)
    spreads = torch.einsum("rdit,rdjt->rij", off, off) / (50 * TIME)
    for values, truth in ((means, 0.0), (spreads, covariance)):
        error = values.std(0) / math.sqrt(repeats)
        # 6: the largest of some dozen Student-t's of eleven degrees of freedom.
        assert bool(((values.mean(0) - truth).abs() < 6 * error).all())
    assert float(spreads.mean(0)[1, 1]) > 0.9 * float(covariance[1, 1])


def test_the_truth_has_the_law_of_the_last_level(gaussian_priors: MakePriors) -> None:
    script, names, count, time = load("calibration"), ("square", "sine"), 50, 400
    priors = dict.fromkeys(names, next(iter(gaussian_priors(0.5).values())))
    task = script.Task(priors, MIXING, None, False, 7, None)
    sources, mixtures = script.draw_truth(task, time, count, SIGMA_MIN, 4)
    generator = torch.Generator().manual_seed(4)
    tones = torch.stack([draw_sources(name, count, time, generator)[0] for name in names], 1)
    noise = torch.cat([sources - tones, (mixtures - MIXING.mix(sources))[:, None]], 1).flatten(2)
    noise = noise.transpose(0, 1).flatten(1)
    scale = torch.tensor([SIGMA_MIN, SIGMA_MIN, MIXING.scale_at(SIGMA_MIN)])
    # Of 20,000 normal numbers each: variances to 1 %, correlations to 0.7 %.
    assert bool(((noise.var(1) / scale**2 - 1).abs() < 0.04).all())
    assert float((noise.corrcoef() - torch.eye(3)).abs().max()) < 0.03
    clean, mixed = script.draw_truth(task, time, count, None, 4)
    assert torch.equal(clean, tones)
    assert torch.equal(mixed, MIXING.mix(tones))
    again, exact = script.draw_truth(task._replace(exact=True), time, count, SIGMA_MIN, 4)
    assert torch.equal(again, sources)
    assert torch.equal(exact, MIXING.mix(sources))


def test_smc_takes_no_exact_mixture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^constraint: got 'exact', expected gaussian for smc"):
        load("calibration").main(sampler="smc", constraint="exact", out=tmp_path)


def test_functions_of_sources(gaussian_priors: MakePriors) -> None:
    script, priors = load("calibration"), gaussian_priors(*LEVELS)
    sources = torch.randn(3, 5, 2, 64, generator=torch.Generator().manual_seed(0))
    values = script.functions(priors, sources, SIGMA_MIN)
    instants = [name for name in values if name.startswith("audio at ")]
    assert list(values) == ["level_db", "centroid", "log_prior", *instants]
    assert instants == ["audio at 1 ms", "audio at 2 ms", "audio at 3 ms"]
    np.testing.assert_array_equal(values["audio at 2 ms"], sources[..., 32])
    power = sources.square().mean(-1)
    np.testing.assert_allclose(values["level_db"], 10 * power.log10(), atol=1e-4)
    for k, level in enumerate(LEVELS):
        variance = level**2 + SIGMA_MIN**2
        law = torch.distributions.Normal(0.0, math.sqrt(variance))
        expected = law.log_prob(sources[:, :, k]).sum(-1)
        np.testing.assert_allclose(values["log_prior"][..., k], expected, rtol=1e-4)
    assert "log_prior" not in script.functions(priors, sources, None)


def test_the_experiment_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, calls = load("calibration"), []
    sampler = script.SAMPLERS["langevin"]
    monkeypatch.setitem(script.SAMPLERS, "langevin", lambda *a: calls.append(a) or sampler(*a))
    tiny = {"draws": 2, "steps": 1, "batch": 1, "sources": "sine,square", "sigma_min": 0.3}
    short = partial(script.resolve_settings, levels=6, candidates=1, tries=1, replicas=0)
    monkeypatch.setattr(script, "resolve_settings", short)
    script.main(simulations=2, out=tmp_path / "whole", **tiny)
    names = ["calibration.png", "simulations.json", "summary.json"]
    assert sorted(os.listdir(tmp_path / "whole")) == names
    ladder = calls[0][0].settings
    assert ladder.sigma_min == 0.3 < ladder.sigma_freeze < ladder.sigma_max
    script.main(simulations=1, out=tmp_path / "halves", **tiny)
    assert len(calls) == 3
    script.main(simulations=2, out=tmp_path / "halves", **tiny)
    assert len(calls) == 4  # the first batch was there
    runs = [json.loads((tmp_path / run / names[1]).read_text()) for run in ("whole", "halves")]
    for run in runs:
        for row in run["mixtures"]:
            del row["seconds"]
    assert runs[0] == runs[1]
    first, second = (np.array(row["draws"]["level_db"]) for row in runs[0]["mixtures"])
    assert first.shape == (2, 2)  # (draw, source)
    assert bool((first != second).any())
    reports = [
        json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "halves")
    ]
    for summary in reports:
        del summary["seconds_per_simulation"]
    assert reports[0] == reports[1]
    assert reports[0]["simulations"] == 2
    assert {row["source"] for row in reports[0]["functions"]} == {"sine", "square"}
    printed = capsys.readouterr().out
    assert reports[0]["verdict"] in printed
    with pytest.raises(ValueError, match="give another --out"):
        script.main(simulations=2, out=tmp_path / "halves", **(tiny | {"seed": 1}))


def test_the_draws_of_a_trace_are_judged_beside_clean_tones(tmp_path: Path) -> None:
    script = load("calibration")
    script.main(sampler="separate", simulations=1, steps=1, out=tmp_path)
    (row,) = json.loads((tmp_path / "simulations.json").read_text())["mixtures"]
    assert len(row["draws"]["centroid"]) == Annealing.chains * Annealing.draws
    assert "log_prior" not in row["true"]


def test_all_samples_of_the_audio_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("calibration")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 2, 256, generator=generator)
    scale = torch.tensor([1.0, 0.0])[:, None]  # of the draws: the second source's miss
    draws = scale * torch.randn(4, 30, 2, 256, generator=generator)
    monkeypatch.setattr(script, "draw_truth", lambda *arguments: (truth, truth.sum(1)))
    monkeypatch.setitem(script.SAMPLERS, "separate", lambda *arguments: draws + 1e-6)
    script.main(sampler="separate", simulations=4, out=tmp_path)
    shares = json.loads((tmp_path / "summary.json").read_text())["coverage_of_all_audio"]
    for p, share in zip(NOMINAL, shares["square"], strict=True):
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 1024) ** 0.5)
    assert shares["saw"][:2] == [0, 0]


def test_the_verdict_names_what_is_off() -> None:
    script = load("calibration")
    rows = [
        {"source": "saw", "function": name, "p_value": 0.03} for name in ("level_db", "centroid")
    ]
    assert "least p-value 0.03 of 2" in script.judge(rows)
    rows[1]["p_value"] = 0.02
    assert script.judge(rows) == "not calibrated: saw centroid"


def test_an_unknown_sampler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="sampler: got 'gibbs', expected one of langevin, adjusted, smc"
    ):
        load("calibration").main(sampler="gibbs", out=tmp_path)
