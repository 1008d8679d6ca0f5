"""Each fault is the one that it says, on priors whose score is known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakePriors
from networks import NESTED, randomise
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import ToyMixture
from pyro_sep.inference.annealing import chain
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.registry import build
from pyro_sep.priors.base import Priors
from pyro_sep.priors.networks import FloWaveNetPrior

ablation = load("langevin_ablation")
LEVELS, SIGMA, TIME = (0.5, 0.2), 0.3, 64


def parts(priors: Priors, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score of the priors, pull of the mean, and pull of the sum."""
    variance = torch.tensor([[level**2 + SIGMA**2] for level in LEVELS], dtype=x.dtype)
    mean, total = x.mean(1, keepdim=True), x.sum(1, keepdim=True)
    pull = 0.5 * (m[:, None] - mean) / (SIGMA**2 / 2 + 1e-6)
    wrong = (m[:, None] - total) / (2 * SIGMA**2 + 1e-6)
    return -x / variance, pull.expand_as(x), wrong.expand_as(x)


def drawn() -> tuple[Tensor, Tensor]:
    """Noisy sources ``(batch, source, time)`` and mixtures ``(batch, time)``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, TIME, generator=generator, dtype=torch.float64)
    return x, torch.randn(3, TIME, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("fault", ablation.FAULTS[:-1])
def test_the_gradient_has_the_fault_and_no_other(fault: str, gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(*LEVELS)
    x, m = drawn()
    score, pull, wrong = parts(priors, x, m)
    clamped = parts(priors, x.clamp(-1, 1), m)[0]
    expected = {
        "sign of the likelihood": score - pull,
        "no likelihood": score,
        "score of the mean": score / TIME + pull,
        "sum for the mean": score + wrong,
        "clamped": clamped + pull,
    }.get(fault, score + pull)
    laws = tuple(priors.values())
    target = ablation.Faulty(m, laws, Mixing.mean(2), fault=fault)
    gradient = target.evaluate(x, SIGMA).gradient
    assert torch.allclose(gradient, expected, rtol=1e-9)
    right = AnnealedPosterior(m, laws, Mixing.mean(2)).evaluate(x, SIGMA).gradient
    unchanged = fault in ("no fault", "paper's ladder")
    assert torch.allclose(gradient, right, rtol=1e-9) == unchanged


@pytest.mark.parametrize("fault", ablation.FAULTS[:-1])
def test_clean_sources_have_the_fault_too(fault: str, gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(*LEVELS)
    x, m = drawn()
    score, *_ = parts(priors, x.clamp(-1, 1) if fault == "clamped" else x, m)
    clean = x + SIGMA**2 * score / (TIME if fault == "score of the mean" else 1)
    gain = 1.0 if fault == "sum for the mean" else 0.5
    residual = (m - gain * clean.sum(1))[:, None]
    moved = gain * SIGMA**2 / (2 * gain**2 * SIGMA**2 + 1e-6) * residual
    weight = {"sign of the likelihood": -1, "no likelihood": 0}.get(fault, 1)
    target = ablation.Faulty(m, tuple(priors.values()), Mixing.mean(2), fault=fault)
    target = target.select(torch.arange(3))  # as the search does
    found = target.denoise(x, target.evaluate(x, SIGMA), SIGMA)
    assert torch.allclose(found, clean + weight * moved, rtol=1e-9)


def test_what_the_log_determinant_leaves() -> None:
    torch.manual_seed(0)
    network = build(NESTED)
    randomise(network)
    prior = FloWaveNetPrior(network, name="saw", sample_rate=16_000)
    law = ablation.WithoutLogDet(prior).frame(TIME).condition(SIGMA)
    assert (law.rms, law.multiple) == (prior.rms, prior.multiple)
    x = torch.randn(3, TIME)
    z, log_det = network(x, torch.full((3,), SIGMA))
    assert torch.allclose(law.log_prob(x), torch.distributions.Normal(0, 1).log_prob(z).sum(1))
    whole = prior.frame(TIME).condition(SIGMA).log_prob(x)
    assert torch.allclose(law.log_prob(x) + log_det, whole, rtol=1e-4)
    assert log_det.abs().min() > 1


def test_what_it_writes(
    gaussian_priors: MakePriors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    priors = gaussian_priors(*LEVELS)
    monkeypatch.setattr(ablation, "load_set", lambda *names: priors)
    # Gaussians of about one level swap freely, and have one broad mode.
    monkeypatch.setattr(chain, "_swap", lambda run, state, sigma: state)

    def tones(split: str, index: int, names: tuple[str, ...], time: int) -> ToyMixture:
        generator = torch.Generator().manual_seed(index)
        scale = torch.tensor(LEVELS)[:, None]
        sources = scale * torch.randn(2, time, generator=generator)
        return ToyMixture(sources.mean(0), sources, torch.zeros(2))

    monkeypatch.setattr(ablation, "toy_mixture", tones)
    ablation.main(mixtures=3, seconds=0.016, levels=6, out=tmp_path / "out")
    gains = json.loads((tmp_path / "out" / "langevin_ablation.json").read_text())["improvement_db"]
    assert list(gains) == list(ablation.FAULTS[:-1])  # Gaussians are no flows
    medians = {fault: torch.tensor(values).median() for fault, values in gains.items()}
    assert {len(values) for values in gains.values()} == {6}
    for fault in ("sign of the likelihood", "no likelihood", "score of the mean"):
        assert medians[fault] < medians["no fault"], fault
    assert (tmp_path / "out" / "langevin_ablation.png").stat().st_size > 10_000
    rows = (tmp_path / "out" / "langevin_ablation.csv").read_text().splitlines()
    assert len(rows) == 1 + 7 * 6
    assert "separation failed, no figure" in capsys.readouterr().out
