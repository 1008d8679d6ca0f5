"""The comparison of samplers on priors whose posterior is known."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samplers
import torch
from _common import resume
from conftest import MakePriors
from networks import NESTED, randomise
from pyro import poutine
from pyro.infer import NUTS
from scripts import load
from torch import Tensor

from pyro_sep.data.toy import ToyMixture, toy_mixture
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.registry import build
from pyro_sep.priors.base import Priors
from pyro_sep.priors.networks import FloWaveNetPrior
from pyro_sep.separation.api import Separation, separation_from_draws
from pyro_sep.separation.presets import default_ladder

compare = load("compare_samplers")
Law = Callable[..., tuple[Tensor, Tensor]]
TIME = 256


def mixture(priors: Priors, seed: int = 0) -> ToyMixture:
    generator = torch.Generator().manual_seed(seed)
    sources = torch.stack([p.rms * torch.randn(TIME, generator=generator) for p in priors.values()])
    return ToyMixture(sources.mean(0), sources, torch.zeros(len(sources)))


@pytest.mark.parametrize("name", ["langevin", "sgld", "mala", "smc", "hmc", "nuts"])
def test_every_sampler_draws_from_a_gaussian_posterior(
    name: str, gaussian_priors: MakePriors, gaussian_posterior: Law
) -> None:
    priors = gaussian_priors(0.5, 0.2)
    item = mixture(priors)
    (result,) = compare.SAMPLERS[name]([item], priors, 3)
    assert result.sources.shape == (2, TIME)
    assert result.trace.attrs["gradients"] > 100
    lp = float(result.trace["sample_stats"]["lp"].mean())
    # That of exact draws: it spreads by sqrt(dimensions / 2) from draw to draw.
    expected = float(exact(item, priors, gaussian_posterior).trace["sample_stats"]["lp"].mean())
    assert abs(lp - expected) < 4 * math.sqrt(2 * TIME / 2)


def exact(item: ToyMixture, priors: Priors, law: Law) -> Separation:
    """Two chains of 200 independent draws."""
    mixing, sigma = Mixing.mean(2), default_ladder(priors, TIME)["sigma_min"]
    pull, covariance = law([prior.rms for prior in priors.values()], mixing, sigma)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200, TIME, 2, generator=generator, dtype=torch.float64)
    draws = noise @ torch.linalg.cholesky(covariance).T + pull * item.mixture[:, None]
    noisy = draws.transpose(-1, -2).float()
    result = separation_from_draws(
        noisy, item.mixture, priors, mixing, sigma, true_sources=item.sources
    )
    misfits = [
        prior.condition(sigma).misfit(noisy[..., k, :]) for k, prior in enumerate(priors.values())
    ]
    found = result.trace["posterior"]["misfit"].values
    np.testing.assert_allclose(found, torch.stack(misfits, -1), rtol=1e-4)
    return result


def flow_priors() -> dict[str, FloWaveNetPrior]:
    priors = {}
    for seed, name in enumerate(("square", "saw")):
        torch.manual_seed(seed)
        network = build(NESTED)
        randomise(network)
        priors[name] = FloWaveNetPrior(network, name=name, sample_rate=16_000)
    return priors


def test_latent_chains_start_at_the_audio_that_is_given() -> None:
    priors, sigma, found = flow_priors(), 0.3, []

    class Watched(NUTS):
        """NUTS that notes where it starts."""

        def setup(self, *arguments: Any, **options: Any) -> None:
            super().setup(*arguments, **options)
            found.append(self.initial_params)

    mixture, *start = 0.3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    kernel = partial(Watched, max_tree_depth=2)
    samplers.pyro_chains(
        kernel, mixture, priors, sigma, [torch.stack(start)], 4, 2, latent=list(priors)
    )
    for source, (name, prior) in zip(start, priors.items(), strict=True):
        flow = prior.frame(64).condition(sigma).transforms[0]
        torch.testing.assert_close(found[0][f"{name}_base"], flow.inv(source))


def test_pyro_s_samplers_move_flows_to_their_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    priors = flow_priors()
    sites: set[str] = set()

    def kernel(target: Callable[..., Any], sigma: float, **options: Any) -> Any:
        trace = poutine.trace(target).get_trace()
        sites.update(n for n, s in trace.nodes.items() if s["type"] == "sample")
        return NUTS(target, step_size=sigma / 4, max_tree_depth=1, **options)

    monkeypatch.setattr(samplers, "nuts", kernel)
    monkeypatch.setattr(samplers, "WARMUP", 1)
    monkeypatch.setattr(samplers, "DRAWS", 4)
    item = toy_mixture("test", 0, ("square", "saw"), 64)
    result = samplers.separate_from_the_mixture(kernel, item.mixture, priors, 0)
    assert {"square_base", "saw_base"} <= sites
    assert result.trace["posterior"].sizes["chain"] == 2
    assert bool(torch.isfinite(result.sources).all())


def test_a_run_goes_on_where_it_was_cut_off(gaussian_priors: MakePriors, tmp_path: Path) -> None:
    priors = gaussian_priors(0.5, 0.2)
    items = [mixture(priors, seed) for seed in range(7)]
    calls: list[tuple[int, int]] = []

    def sampler(batch: list[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
        calls.append((len(batch), seed))
        noisy = torch.stack([item.sources for item in batch])[:, None, None].expand(-1, 2, 5, 2, -1)
        noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
        return [
            separation_from_draws(
                n, item.mixture, priors, Mixing.mean(2), 0.1, attrs={"gradients": 4}
            )
            for n, item in zip(noisy, batch, strict=True)
        ]

    path, settings = tmp_path / "cell.json", {"seconds": 0.016, "seed": 10}
    measure = partial(compare.measure, sampler, priors, 10)
    whole = list(resume(path, settings, items, measure))
    assert calls == [(5, 10), (2, 15)]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"mixtures": content["mixtures"][:5]}))
    again = list(resume(path, settings, items, measure))
    assert calls[2:] == [(2, 15)]
    for a, b in zip(whole, again, strict=True):
        assert a["si_sdr"] == pytest.approx(b["si_sdr"])
    with pytest.raises(ValueError, match=r"cell.json: got figures of .*give another --out"):
        list(resume(path, settings | {"seed": 11}, items, measure))
    row = compare.line(whole)
    assert row["gradients"] == 4
    gains = torch.tensor([r["improvement"] for r in whole]).flatten()
    assert row["improvement, median dB"] == pytest.approx(float(gains.quantile(0.5)), abs=0.06)
    table = compare.as_markdown(compare.pd.DataFrame([{"prior": "x"} | row]))
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_draws_from_elsewhere_make_a_separation(
    gaussian_priors: MakePriors, gaussian_posterior: Law
) -> None:
    priors = gaussian_priors(0.5, 0.2)
    item, mixing = mixture(priors), Mixing.mean(2)
    result = exact(item, priors, gaussian_posterior)
    clean = torch.from_numpy(result.trace["posterior"]["sources"].values)
    assert clean.shape == (2, 200, 2, TIME)
    assert mixing.mix(clean).sub(item.mixture).abs().max() < 1e-3
    lp = result.trace["sample_stats"]["lp"].values
    # Draws add to what is expected, by less than sigma each.
    off = result.sources - clean[int(lp.mean(1).argmax())].mean(0)
    assert off.abs().max() < 4.5 * default_ladder(priors, TIME)["sigma_min"] / math.sqrt(200)
    assert off.abs().max() > 1e-4
    # E[s | m], known up to a spread at every instant; the mean of 200 draws knows it better.
    variance = torch.tensor([0.25, 0.04])
    expected = (variance / variance.sum() * 2)[:, None] * item.mixture
    spread = math.sqrt(0.25 * 0.04 / 0.29)
    error = (result.sources - expected).square().mean(1).sqrt()
    assert bool((error < 0.3 * spread).all())


def test_an_unknown_sampler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare_samplers.py", "--samplers", "langevin,magic"])
    with pytest.raises(SystemExit) as end:
        compare.run(compare.main)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "pyro-sep: samplers: got 'magic', expected some of langevin, exact, sgld, mala, smc, hmc, "
        "nuts\n"
    )
