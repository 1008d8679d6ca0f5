"""The frontier's samplers on Gaussian priors, where each of their steps is linear."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _common import load_rows
from conftest import MakePriors
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import ToyMixture
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.budget import count_gradients
from pyro_sep.inference.annealing.schedules import geometric_ladder
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.separation.presets import default_ladder, resolve_settings

frontier = load("frontier")
TIME, LEVEL, SEED = 4_000, 0.5, 3


def mixtures(priors: Priors, count: int, time: int = TIME) -> list[ToyMixture]:
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([prior.rms for prior in priors.values()])[:, None]
    sources = levels * torch.randn(count, len(priors), time, generator=generator)
    return [ToyMixture(s.mean(0), s, torch.zeros(len(s))) for s in sources]


def ends(priors: Priors) -> tuple[float, float]:
    ladder = default_ladder(priors, TIME)
    return ladder["sigma_max"], ladder["sigma_min"]


def differences(found: Any, items: Sequence[ToyMixture]) -> Tensor:
    """Half of what two sources are apart; they add up to the mixture."""
    mixed = torch.stack([item.mixture for item in items])
    torch.testing.assert_close(found.sources.mean(1), mixed, atol=1e-4, rtol=0)
    return (found.sources[:, 0] - found.sources[:, 1]) / 2


def test_the_flow_is_euler_s_method(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(LEVEL, LEVEL)
    items = mixtures(priors, 2)
    found = frontier.reverse(items, priors, SEED, levels=12, noisy=False)
    assert found.evaluations == [12, 12]
    sigmas = geometric_ladder(*ends(priors), 12)
    factor = LEVEL**2 / (LEVEL**2 + sigmas[-1] ** 2)
    for sigma, lower in pairwise(sigmas):
        factor *= 1 - sigma * (sigma - lower) / (LEVEL**2 + sigma**2)
    noise = torch.randn(2, 2, TIME, generator=torch.Generator().manual_seed(SEED))
    begun = sigmas[0] * (noise[:, 0] - noise[:, 1]) / 2
    torch.testing.assert_close(differences(found, items), factor * begun, atol=1e-4, rtol=1e-3)


def test_the_reverse_diffusion_has_the_variance_of_its_steps(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(LEVEL, LEVEL)
    items = mixtures(priors, 2)
    found = frontier.reverse(items, priors, SEED, levels=30, noisy=True)
    assert found.evaluations == [30, 30]
    sigmas = geometric_ladder(*ends(priors), 30)
    variance = sigmas[0] ** 2 / 2  # of half a difference
    for sigma, lower in pairwise(sigmas):
        fallen = sigma**2 - lower**2
        variance = variance * (1 - fallen / (LEVEL**2 + sigma**2)) ** 2 + fallen / 2
    variance *= (LEVEL**2 / (LEVEL**2 + sigmas[-1] ** 2)) ** 2
    got = float(differences(found, items).square().mean())
    assert got == pytest.approx(variance, rel=4.5 * math.sqrt(2 / (2 * TIME)))


@pytest.mark.parametrize("rounds", [1, 3])
def test_isdm_has_the_variance_of_its_steps(gaussian_priors: MakePriors, rounds: int) -> None:
    priors = gaussian_priors(LEVEL, LEVEL)
    items = mixtures(priors, 2)
    found = frontier.isdm(items, priors, SEED, steps=60, rounds=rounds)
    assert found.evaluations == [59 * rounds + 1] * 2
    sigmas = frontier.karras_ladder(*ends(priors), 60)
    mean, variance = -1.0, sigmas[0] ** 2  # of the first source less the mixture, in mixtures
    for sigma, lower in pairwise(sigmas):
        for left in reversed(range(rounds)):
            raised = min(sigma * (1 + 20 / 60), 10)
            variance += raised**2 - sigma**2
            factor = 1 - 2 * raised * (raised - lower) / (LEVEL**2 + raised**2)
            mean, variance = mean * factor, variance * factor**2
            if left:
                variance += sigma**2 - lower**2
    shrunk = LEVEL**2 / (LEVEL**2 + sigmas[-1] ** 2)
    power = float(torch.stack([item.mixture for item in items]).square().mean())
    got = float(differences(found, items).square().mean())
    expected = shrunk**2 * (variance + mean**2 * power)
    assert got == pytest.approx(expected, rel=4.5 * math.sqrt(2 / (2 * TIME)))


def test_the_last_of_three_sources_is_what_is_left(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.3, 0.2)
    items = mixtures(priors, 2)
    begun = frontier.start(items, priors, 0, True)
    sources = begun.noise()
    whole = frontier.with_the_rest(begun.target, sources)
    torch.testing.assert_close(whole[:, :2], sources[:, :2])
    left = 3 * torch.stack([item.mixture for item in items]) - sources[:, :2].sum(1)
    torch.testing.assert_close(whole[:, 2], left, atol=1e-5, rtol=1e-4)
    # Differences of gradients are those of the priors, not projected.
    gradient = begun.target.evaluate(whole, 0.1).gradient
    laws = torch.tensor([p.rms**2 + 0.01 for p in priors.values()])[:, None]
    own = -whole / laws
    torch.testing.assert_close(gradient - gradient[:, -1:], own - own[:, -1:], atol=1e-3, rtol=1e-4)


def test_karras_levels_fall_from_end_to_end() -> None:
    sigmas = frontier.karras_ladder(1.0, 0.05, 9)
    np.testing.assert_allclose((sigmas[0], sigmas[-1]), (1.0, 0.05))
    roots = np.power(sigmas, 1 / 7)
    np.testing.assert_allclose(np.diff(roots), (0.05 ** (1 / 7) - 1) / 8)


def test_sgld_finds_the_posterior_mean(
    gaussian_priors: MakePriors, gaussian_posterior: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    priors = gaussian_priors(0.5, 0.1)
    items = mixtures(priors, 2)
    found = frontier.sgld(items, priors, SEED, steps=60)
    assert found.evaluations == [22 * 60] * 2
    pull, covariance = gaussian_posterior([0.5, 0.1], frontier.Mixing.mean(2), ends(priors)[1])
    for item, sources in zip(items, found.sources, strict=True):
        expected = pull[:, None] * item.mixture
        error = (sources - expected).square().mean(1)
        assert bool((error < 1.5 * covariance.diagonal()).all())
        corr = (sources[0] * item.mixture).mean() / item.mixture.square().mean()
        assert float(corr) == pytest.approx(2 * 0.25 / 0.26, rel=0.05)


def test_search_and_hmc_report_what_they_cost(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.2)
    items = mixtures(priors, 1, 256)
    method = frontier.METHODS["search-1"]
    found = method.sampler(items, priors, 0, **method.budget)
    assert found.sources.shape == (1, 2, 256)
    assert 20 < found.evaluations[0] < 30
    found = frontier.hmc(items, priors, 0)
    assert found.sources.shape == (1, 2, 256)
    assert found.evaluations[0] > 100


def test_budgets_grow(gaussian_priors: MakePriors) -> None:
    priors, spent = gaussian_priors(0.5, 0.2), []
    target = AnnealedPosterior(torch.ones(1, 256), list(priors.values()), Mixing.mean(2))
    for name in frontier.choose_methods("search"):
        budget = dict(frontier.METHODS[name].budget)
        settings = resolve_settings(priors, 256, **budget)
        spent.append(settings.chains * count_gradients(settings, target, False))
    assert spent == sorted(spent)
    assert spent[-1] > 10 * spent[0]


def test_methods_are_chosen_by_name_and_family() -> None:
    assert frontier.choose_methods("sgld-2,isdm,sgld") == [
        "sgld-2",
        "isdm-1",
        "isdm-2",
        "isdm-3",
        "sgld-1",
    ]
    assert frontier.choose_methods(None) == list(frontier.METHODS)
    assert {frontier.family(name) for name in frontier.METHODS} == set(frontier.MARKERS)
    with pytest.raises(ValueError, match="methods: got 'magic', expected some of search-1, "):
        frontier.choose_methods("sgld,magic")


def test_figures_are_written_and_gone_on_with(
    gaussian_priors: MakePriors,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[int, int, float]] = []

    def sampler(items: list[ToyMixture], priors: Priors, seed: int, off: float) -> Any:
        calls.append((len(items), seed, off))
        generator = torch.Generator().manual_seed(seed)
        true = torch.stack([item.sources for item in items])
        noise = off * torch.randn(true.shape, generator=generator)
        return frontier.Found(true + noise, [100.0 / off] * len(items))

    priors = dict(zip(("sine", "saw"), gaussian_priors(0.5, 0.2).values(), strict=True))
    monkeypatch.setattr(frontier, "load_set", lambda *names: priors)
    methods = {
        f"sgld-{i}": frontier.Method(sampler, {"off": off}) for i, off in enumerate((0.5, 0.1))
    }
    monkeypatch.setattr(frontier, "METHODS", methods)
    options = {"sources": "sine,saw", "seconds": 0.016, "first": 7, "methods": None}
    options |= {"priors": "toy", "seed": 10, "out": tmp_path}
    frontier.main(mixtures=7, **options)
    assert calls == [(5, 10, 0.5), (2, 15, 0.5), (5, 10, 0.1), (2, 15, 0.1)]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(f" s. Results: {tmp_path}")
    assert (tmp_path / "frontier.png").stat().st_size > 1_000
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["first"] == 7
    items = [frontier.toy_mixture("test", 7 + i, ("sine", "saw"), 256) for i in range(7)]
    for name, method in methods.items():
        found = [sampler(items[i:j], priors, 10 + i, **method.budget) for i, j in ((0, 5), (5, 7))]
        sources = torch.cat([part.sources for part in found])
        true = torch.stack([item.sources for item in items])
        mixed = torch.stack([item.mixture for item in items])[:, None]
        row, sdr = summary["methods"][name], si_sdr(sources, true)
        gain = si_sdr_improvement(sources, true, mixed)
        assert row["median_improvement_db"] == pytest.approx(np.median(gain), abs=1e-3)
        assert row["share_above_10_db"] == pytest.approx(float((sdr > 10).float().mean()))
        assert row["share_above_20_db"] == pytest.approx(float((sdr > 20).float().mean()))
        assert row["evaluations"] == pytest.approx(100 / method.budget["off"])
        assert row["cpu_seconds"] >= 0
    calls.clear()
    frontier.main(mixtures=8, **options)
    assert calls == [(1, 17, 0.5), (1, 17, 0.1)]
    assert len(load_rows(tmp_path / "sgld-0.json", settings(tmp_path))) == 8
    with pytest.raises(ValueError, match=r"sgld-0.json: got figures of .*give another --out"):
        frontier.main(mixtures=8, **(options | {"first": 8}))


def settings(folder: Path) -> Any:
    return json.loads((folder / "sgld-0.json").read_text())["settings"]
