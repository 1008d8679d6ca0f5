import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from traces import trace_of

from pyro_sep.data.toy import toy_mixture
from pyro_sep.diagnostics.convergence import (
    SUMMARIES,
    agreement_over_time,
    audio_agreement,
    chain_agreement,
)
from pyro_sep.diagnostics.disagreement import chains_apart
from pyro_sep.diagnostics.verdict import (
    MISFIT_MAX,
    Diagnosis,
    Verdict,
    diagnose,
    format_diagnosis,
)
from pyro_sep.priors.io import load_priors
from pyro_sep.trace.dataset import load_trace, save_trace


def trace(values: np.ndarray) -> xr.DataTree:
    """A trace whose three summaries are these (chain, draw, source) values, without audio."""
    dims = ("chain", "draw", "source")
    names = [f"s{k}" for k in range(values.shape[-1])]
    posterior = xr.Dataset(dict.fromkeys(SUMMARIES, (dims, values)), {"source": names})
    return xr.DataTree.from_dict({"posterior": posterior})


def quietly(tree: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> xr.Dataset:
    # At the method: ArviZ's logger is not among those of the logging module.
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: records.append(record))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = chain_agreement(tree)
    assert not records
    return table


def test_agreeing_and_disagreeing_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(4, 500, 2))
    values[0, :, 1] += 10  # one chain of the second source is elsewhere
    table = quietly(trace(values), monkeypatch)
    assert table["r_hat"].dims == ("summary", "source")
    assert table["summary"].values.tolist() == list(SUMMARIES)
    for name in SUMMARIES:
        agree = table.sel(summary=name, source="s0")
        differ = table.sel(summary=name, source="s1")
        assert agree["r_hat"] < 1.01
        # Independent draws: the ESS is their number, 2000, within its own Monte Carlo error.
        assert 1500 < agree["ess_bulk"] < 2500
        assert differ["r_hat"] > 1.5
        assert differ["ess_bulk"] < 20


def test_correlated_draws_are_worth_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    rho, draws = 0.8, 4000
    noise = np.random.default_rng(1).normal(size=(4, draws, 1))
    values = noise.copy()
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    ess = quietly(trace(values), monkeypatch)["ess_bulk"].values
    # AR(1): ESS = N (1 - rho) / (1 + rho).
    assert ess == pytest.approx(4 * draws / 9, rel=0.2)


@pytest.mark.parametrize("shape", [(1, 100, 2), (2, 3, 2)])
def test_too_little_for_r_hat(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    table = quietly(trace(np.random.default_rng(0).normal(size=shape)), monkeypatch)
    assert np.isnan(table["r_hat"]).all()
    assert np.isfinite(table["ess_bulk"]).all() == (shape[1] >= 4)
    assert table["source"].values.tolist() == ["s0", "s1"]


def test_constant_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(2, 100, 2))
    values[..., 1] = -120
    r_hat = quietly(trace(values), monkeypatch)["r_hat"]
    assert np.isfinite(r_hat.sel(source="s0")).all()
    assert np.isnan(r_hat.sel(source="s1")).all()


TIME, RATE, SIGMA = 400, 8_000, 0.05
NAMES = ("low", "middle", "high")
TONES = np.sin(2 * np.pi * np.array([[200], [500], [1000]]) * np.arange(TIME) / RATE)
FLOOR = 0.5 * math.log(2 * math.pi * math.e * SIGMA**2)
GRADIENTS = 1234


def spread(chains: int, draws: int, rho: float = 0.0) -> np.ndarray:
    """Tones (chain, draw, source, time) with AR(1) errors that cancel in the mixture."""
    noise = np.random.default_rng(0).normal(size=(chains, draws, 3, TIME))
    for t in range(1, draws):
        noise[:, t] = rho * noise[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return TONES + 0.05 * (noise - noise.mean(2, keepdims=True))


def separated(sources: np.ndarray, excess: Any = -0.2, **changes: Any) -> xr.DataTree:
    """A trace whose log prior has this mean excess, with independent errors."""
    shape = sources.shape[:3]
    # Three equal gains: the mixture takes 1/12 of a nat from the noise of each source.
    per_sample = np.broadcast_to(excess, shape) - FLOOR + 1 / 12
    given = {
        "sources": sources,
        "log_prior": TIME * per_sample + np.random.default_rng(1).normal(size=shape),
        "stats": {"noise_level": np.full(shape[:2], SIGMA)},
        "warmup_stats": {"noise_level": np.ones((shape[0], 7))},
        "mixture": TONES.mean(0),
        "source_names": NAMES,
        "sample_rate": RATE,
        "attrs": {"gradients": GRADIENTS},
    }
    return trace_of(**given | changes)


def judged(tree: xr.DataTree) -> Diagnosis:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return diagnose(tree)


def rough(diagnosis: Diagnosis) -> list[str]:
    """Names of the sources whose bands are not what they say."""
    return re.findall(r"^rough \((.*?)\):", diagnosis.bands)[0].split(", ")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_independent_chains_of_one_law_have_converged() -> None:
    import arviz  # warns of ArviZ 1.0, which the tests above see that the library does not

    tree = separated(spread(2, 300))
    diagnosis = judged(tree)
    assert (diagnosis.verdict, diagnosis.blamed, diagnosis.bands) == (Verdict.TRUSTED, (), "")
    assert diagnosis.trusted
    assert diagnosis.gradients == GRADIENTS
    assert diagnosis.residual < -100
    assert [row.name for row in diagnosis.sources] == list(NAMES)
    for k, row in enumerate(diagnosis.sources):
        values = [tree[f"posterior/{name}"].values[..., k] for name in SUMMARIES]
        assert row.r_hat == pytest.approx(max(float(arviz.rhat(value)) for value in values))
        ess = min(float(arviz.ess(value, method="bulk")) for value in values)
        assert row.ess_bulk == pytest.approx(ess)
        assert row.ess_per_gradient == pytest.approx(ess / diagnosis.gradients)
        assert row.agreement > 0.999


def test_chains_that_exchanged_two_tones() -> None:
    sources = spread(2, 300)
    sources[1] = sources[1][:, [0, 2, 1]]
    diagnosis = judged(separated(sources))
    assert (diagnosis.verdict, diagnosis.blamed) == (Verdict.CHAINS, ("middle", "high"))
    agreement = [row.agreement for row in diagnosis.sources]
    assert agreement == pytest.approx([1, 0, 0], abs=0.01)  # tones are orthogonal
    assert not diagnosis.trusted
    put = "chains 1 and 2 put the sound near (500|1000) Hz at 0.00 s in different sources"
    assert re.match(f"{put} \\(middle or high\\); ", diagnosis.reason)


def test_chains_agree_on_a_source_that_all_hold_absent() -> None:
    sources = spread(2, 300)
    sources[1] = sources[1][:, [0, 2, 1]]
    presence = np.broadcast_to([[[1.0, 0.1, 0.1]], [[1.0, 0.2, 0.9]]], sources.shape[:3])
    diagnosis = judged(separated(sources, presence=presence))
    agreement = [row.agreement for row in diagnosis.sources]
    assert agreement == pytest.approx([1, 1, 0], abs=0.01)
    # They hold loud tones all the same; chain 0, the best, holds both absent.
    assert (diagnosis.verdict, diagnosis.blamed) == (Verdict.PRIOR, ("middle", "high"))
    unknown = np.full(sources.shape[:3], np.nan)
    assert judged(separated(sources, presence=unknown)).sources[1].agreement < 0.1


@pytest.mark.parametrize("draws", [3, 30])
def test_correlated_draws_of_one_mode(draws: int) -> None:
    diagnosis = judged(separated(spread(2, draws, rho=0.95)))
    assert diagnosis.trusted
    if draws < 4:  # ArviZ has no answer
        assert diagnosis.bands.startswith("unknown: ")
    else:
        assert rough(diagnosis) == list(NAMES)


def test_too_few_draws_of_the_right_law() -> None:
    few = judged(separated(spread(2, 70)))
    assert set(rough(few)) >= {row.name for row in few.sources if row.ess_bulk < 200}
    least = min(row.ess_bulk for row in few.sources)
    assert f": {least:.0f} independent draws, at least 200 are needed" in few.bands
    assert any(row.ess_bulk < 200 and row.r_hat < 1.01 for row in few.sources)


def test_log_priors_of_another_mean() -> None:
    excess = np.zeros((2, 300, 3))
    excess[1, :, 1] = 1 / TIME  # one std away
    diagnosis = judged(separated(spread(2, 300), excess))
    assert rough(diagnosis) == ["middle"]
    assert diagnosis.sources[1].r_hat > 1.05


def test_log_priors_of_another_spread() -> None:
    excess = np.zeros((2, 300, 3))
    excess[1, :, 1] = 3 * np.random.default_rng(4).normal(size=300) / TIME
    diagnosis = judged(separated(spread(2, 300), excess))
    assert rough(diagnosis) == ["middle"]
    assert diagnosis.sources[1].ess_bulk > 200  # R-hat alone sees it


def test_chains_that_do_not_move() -> None:
    sources = np.zeros((2, 300, 3, TIME))
    sources[:, :, 0] = TONES[0]
    diagnosis = judged(separated(sources, gains=np.ones(3), mixture=TONES[0]))
    assert -math.inf < diagnosis.residual < -300  # nothing is left
    assert diagnosis.trusted
    assert rough(diagnosis) == list(NAMES)
    assert "R-hat is unknown" in diagnosis.bands
    assert np.isnan([row.r_hat for row in diagnosis.sources]).all()


@pytest.mark.parametrize("level", [-10.5, -9.5])
def test_chains_that_differ_by_a_tenth_of_their_power(level: float) -> None:
    sources = spread(2, 300)
    # Two sources share one more tone in chain 1, which is no part of the mixture. Their power is
    # that of a tone, 1/2, in chain 0, and more by the share's in chain 1; the errors add 0.3 %.
    share = 10 ** (level / 10)
    tone = np.cos(2 * np.pi * 2_000 * np.arange(TIME) / RATE)
    sources[1, :, 1] += math.sqrt(share / (1 - share / 2)) * tone
    sources[1, :, 2] -= math.sqrt(share / (1 - share / 2)) * tone
    diagnosis = judged(separated(sources))
    agreement = [row.agreement for row in diagnosis.sources]
    assert agreement == pytest.approx([1, 1 - share / 2, 1 - share / 2], abs=1e-3)
    apart = (Verdict.CHAINS, ("middle", "high"))
    assert ((diagnosis.verdict, diagnosis.blamed) == apart) == (level > -10)


@pytest.mark.parametrize("sigma", [0.02, 0.05])
@pytest.mark.parametrize("family", ["wavenet", "flow"])
def test_tones_of_another_source_surprise_a_prior_and_its_own_do_not(
    family: str, sigma: float
) -> None:
    priors = load_priors(f"toy/{family}")
    generator = torch.Generator().manual_seed(0)
    for name in priors:
        tones = torch.stack(
            [toy_mixture("test", index, (name,), 2_048).sources[0] for index in range(8)]
        )
        noisy = tones + sigma * torch.randn(tones.shape, generator=generator)
        for other, prior in priors.items():
            misfit = prior.frame(2_048).condition(sigma).misfit(noisy).median()
            assert (float(misfit) > MISFIT_MAX) == (other != name), (name, other, float(misfit))


@pytest.mark.parametrize("misfit", [1.9, 2.1])
def test_audio_that_surprises_a_prior(misfit: float) -> None:
    # However unlikely it is: -5 nats may be all that can be known of a source.
    values = np.ones((2, 300, 3))
    values[..., 2] = misfit
    values[1] = 9  # of a chain that is not the best
    lp = np.zeros((2, 300))
    lp[0] = 1
    diagnosis = judged(separated(spread(2, 300), -5, misfit=values, lp=lp))
    strange = (Verdict.PRIOR, ("high",))
    assert ((diagnosis.verdict, diagnosis.blamed) == strange) == (misfit > 2)
    assert [row.misfit for row in diagnosis.sources] == pytest.approx([1, 1, misfit])
    assert f"{misfit:>9.2f}" in format_diagnosis(diagnosis)


def test_silence_has_no_misfit() -> None:
    # The prior of a tone is surprised by its absence, and the law of the source is not.
    presence = np.ones((2, 300, 3))
    presence[..., 1:] = [0.4, 0.6]
    diagnosis = judged(separated(spread(2, 300), misfit=3 * presence, presence=presence))
    assert (diagnosis.verdict, diagnosis.blamed) == (Verdict.PRIOR, ("low",))
    misfits = [row.misfit for row in diagnosis.sources]
    np.testing.assert_allclose(misfits, [3, np.nan, 1.8], rtol=1e-4)


@pytest.mark.parametrize("level", [-41.0, -39.0])
def test_a_mixture_that_is_not_honoured(level: float) -> None:
    # A tone that is orthogonal to the others; in one chain only.
    rest = np.cos(2 * np.pi * 2_000 * np.arange(TIME) / RATE)
    rest *= np.sqrt(np.square(TONES.mean(0)).mean() / np.square(rest).mean())
    sources = spread(2, 300)
    sources[1, :, 1] += 3 * 10 ** (level / 20) * rest
    diagnosis = judged(separated(sources))
    assert diagnosis.residual == pytest.approx(level, abs=0.01)
    assert (diagnosis.verdict == Verdict.RESIDUAL) == (level > -40)


@pytest.mark.parametrize("inferred", [True, False])
@pytest.mark.parametrize("level", [-17.5, -16.5])
def test_a_noisy_mixture_may_be_missed_by_its_noise(level: float, inferred: bool) -> None:
    power = np.square(TONES.mean(0)).mean()
    std = math.sqrt(power * 10 ** (-20 / 10))  # twice its power is at -17 dB
    rest = np.cos(2 * np.pi * 2_000 * np.arange(TIME) / RATE)
    rest *= 10 ** (level / 20) * math.sqrt(power / np.square(rest).mean())
    known = {"noise_scale": np.full((2, 300), std)} if inferred else {}
    attrs = {"noise_scale": "infer" if inferred else std}
    tree = separated(spread(2, 300), mixture=TONES.mean(0) + rest, attrs=attrs, **known)
    assert (judged(tree).verdict is Verdict.RESIDUAL) == (level > -17)


def test_a_chain_that_diverged_is_not_trusted() -> None:
    sources = spread(3, 300)
    sources[1, 7, 2, 100:] = np.nan
    diagnosis = judged(separated(sources))
    assert diagnosis.verdict == Verdict.RESIDUAL
    assert diagnosis.reason == "a chain diverged, its draws are not finite; separate anew"
    bad = diagnosis.sources[2]
    assert np.isnan([diagnosis.residual, bad.agreement, bad.r_hat, bad.ess_bulk]).all()


def test_one_chain() -> None:
    diagnosis = judged(separated(spread(1, 300)))
    assert (diagnosis.verdict, diagnosis.blamed) == (Verdict.ONE_CHAIN, ())
    assert np.isnan([(row.r_hat, row.agreement) for row in diagnosis.sources]).all()
    assert min(row.ess_bulk for row in diagnosis.sources) > 100


def test_one_chain_is_enough_where_a_wrong_one_would_surprise_its_priors() -> None:
    known = {"misfit": np.ones((1, 300, 3)), "attrs": {"estimate": "mode"}}
    assert judged(separated(spread(1, 300), **known)).trusted
    for unknown in (
        {"misfit": np.full((1, 300, 3), np.nan)},
        {"attrs": {"estimate": "mean"}},
        {"attrs": {}},
    ):
        assert judged(separated(spread(1, 300), **known | unknown)).verdict is Verdict.ONE_CHAIN
    known["misfit"][..., 1] = 3
    assert judged(separated(spread(1, 300), **known)).verdict is Verdict.PRIOR
    for misfit, doubtful in ((1.13, False), (1.15, True)):  # 1 + 2 sqrt(2 / 400) is 1.14
        known["misfit"][..., 1] = misfit
        diagnosis = judged(separated(spread(1, 300), **known))
        assert diagnosis.trusted is not doubtful
        assert diagnosis.blamed == ("middle",) * doubtful


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("chains", [1, 2])
def test_a_log_posterior_that_is_not_finite(value: float, chains: int) -> None:
    lp = np.zeros((chains, 300))
    lp[0, 3] = value
    attrs = {"estimate": "mode"}
    tree = separated(spread(chains, 300), lp=lp, attrs=attrs, misfit=np.ones((chains, 300, 3)))
    assert diagnose(tree).verdict is Verdict.RESIDUAL


@pytest.mark.parametrize("found", ["no", None, math.nan, 0.0])
def test_a_search_that_says_nothing_sound(found: object) -> None:
    attrs = {"estimate": "mode", "search_found": found}
    assert judged(separated(spread(2, 300), attrs=attrs)).verdict is Verdict.SEARCH


def test_noise_that_leaves_nothing_to_explain() -> None:
    silent = np.zeros((2, 300, 3, TIME))
    tree = separated(silent, noise_scale=np.ones((2, 300)), attrs={"noise_scale": "infer"})
    assert judged(tree).verdict is Verdict.RESIDUAL


@pytest.mark.parametrize("misfit", [1.0, math.nan])
@pytest.mark.parametrize("level", [-21.0, -19.0])
def test_a_source_that_is_absent_holds_no_audio(level: float, misfit: float) -> None:
    share = 10 ** (level / 10)  # of the mixture's power, which two tones of amplitude 1 have
    tones = TONES * np.array([1, 1, math.sqrt(2 * share / (1 - share))])[:, None]
    sources = np.broadcast_to(tones, (2, 300, 3, TIME))
    presence = np.broadcast_to([1.0, 1.0, 0.0], sources.shape[:3])
    values = np.broadcast_to([1.0, 1.0, misfit], sources.shape[:3])
    tree = separated(sources, mixture=tones.mean(0), presence=presence, misfit=values)
    diagnosis = judged(tree)
    assert diagnosis.trusted == (level < -20)
    assert diagnosis.blamed == (() if level < -20 else ("high",))


def test_a_misfit_that_is_not_known_of_every_source() -> None:
    misfit = np.ones((1, 300, 3))
    misfit[..., 1] = math.nan
    attrs = {"estimate": "mode"}
    tree = separated(spread(1, 300), misfit=misfit, attrs=attrs)
    assert judged(tree).verdict is Verdict.ONE_CHAIN
    misfit[0, 1:, 1] = 5  # known of all draws but one
    assert judged(separated(spread(1, 300), misfit=misfit, attrs=attrs)).blamed == ("middle",)


def test_every_chain_of_the_estimate_has_to_fit() -> None:
    misfit = np.ones((2, 300, 3))
    misfit[1, :, 0] = 50
    attrs = {"estimate": "mean"}
    assert judged(separated(spread(2, 300), misfit=misfit, attrs=attrs)).blamed == ("low",)


def test_bands_of_one_chain_and_of_too_few_draws() -> None:
    assert "one chain" in judged(separated(spread(1, 300))).bands
    assert judged(separated(spread(2, 3))).bands.startswith("unknown: too few draws")
    assert format_diagnosis(Diagnosis((), 0, 0, Verdict.TRUSTED, (), "", "")).count("\n") == 3


@pytest.mark.parametrize("found", [1.0, 0.9])
def test_a_search_that_gave_up(found: float) -> None:
    attrs = {"estimate": "mode", "search_found": found}
    tree = separated(spread(2, 300), attrs=attrs, misfit=np.ones((2, 300, 3)))
    assert judged(tree).verdict is (Verdict.TRUSTED if found == 1 else Verdict.SEARCH)


def test_a_sound_that_one_chain_alone_holds() -> None:
    sources = spread(2, 300)
    late = np.isin(np.arange(TIME), np.arange(200, 300))
    sources[1, :, 2] += late * np.sin(np.pi / 2 * np.arange(TIME))
    assert chains_apart(separated(sources, sample_rate=2_000), NAMES) == (
        "chains 1 and 2 differ in high, most in the sound near 500 Hz at 0.10 s"
    )


def test_a_sound_that_is_divided_differently() -> None:
    sources = spread(2, 300)
    sources[1, :, 0] += 0.5 * TONES[2]  # half of a tone moves, and both have some of it
    sources[1, :, 2] -= 0.5 * TONES[2]
    assert chains_apart(separated(sources), NAMES) == (
        "chains 1 and 2 divide the sound near 1000 Hz at 0.00 s differently between low and high"
    )


def test_the_end_of_the_audio_is_looked_at() -> None:
    sources = spread(2, 300)
    late = np.isin(np.arange(TIME), np.arange(330, 400)) * np.sin(np.pi / 2 * np.arange(TIME))
    sources[1, :, 2] += 3 * late
    assert "near 500 Hz at 0.15 s" in chains_apart(separated(sources, sample_rate=2_000), NAMES)


def test_the_words_are_about_the_sources_that_are_blamed() -> None:
    sources = np.repeat(np.concatenate([TONES[:1] * 20, TONES])[None, None], 2, 0)
    sources = np.repeat(sources, 20, 1)
    sources[1, :, [0, 1]] += np.array([1, -1])[:, None, None] * 2 * TONES[0]
    sources[1, :, [2, 3]] = sources[0, :, [3, 2]]
    names = ("bass", "drums", "flute", "oboe")
    known = {"mixture": sources[0, 0].mean(0), "gains": np.full(4, 0.25), "source_names": names}
    tree = separated(sources, log_prior=np.zeros((2, 20, 4)), **known)
    diagnosis = judged(tree)
    assert set(diagnosis.blamed) >= {"flute", "oboe"}
    assert "200 Hz" not in chains_apart(tree, ("flute", "oboe"))


def test_three_chains_of_which_two_agree() -> None:
    sources = spread(3, 300)
    sources[2] = sources[2][:, [1, 0, 2]]
    sound = "put the sound near 200 Hz at 0.00 s in different sources \\(low or middle\\)"
    assert re.match(f"chains [12] and 3 {sound}", judged(separated(sources)).reason)


def test_agreement_of_known_audio() -> None:
    silent = 0 * TONES[0]
    chains = [[TONES[0], TONES[1], silent], [3 * TONES[0], -TONES[1], silent]]
    sources = np.repeat(np.array(chains)[:, None], 5, axis=1)
    rows = judged(separated(sources)).sources
    # 1 - (3 - 1)^2 / (3^2 + 1^2); opposite; silent in both.
    assert [row.agreement for row in rows] == pytest.approx([0.6, -1, 1], abs=1e-6)
    three = np.concatenate([sources[:1], sources[:1], sources[1:]])
    assert judged(separated(three)).sources[0].agreement == pytest.approx(0.6, abs=1e-6)


def test_agreement_over_time_of_known_audio() -> None:
    first, rest = np.arange(TIME) < 100, np.arange(TIME) >= 100
    one = [TONES[0], TONES[1] * rest, TONES[2]]
    # Three times as loud at first; one is silent at first in both; opposite later.
    other = [TONES[0] * np.where(first, 3, 1), TONES[1] * rest, TONES[2] * np.where(rest, -1, 1)]
    sources = np.repeat(np.array([one, other])[:, None], 5, axis=1)
    found = agreement_over_time(separated(sources), 120 / RATE)  # of 120, 120 and 160 samples
    assert found["time"].values.tolist() == pytest.approx([0.0, 0.015, 0.03])
    assert found.sel(source="middle").values == pytest.approx([1, 1, 1], abs=1e-6)
    exact = agreement_over_time(separated(sources), 100 / RATE)
    expected = [[0.6, 1, 1, 1], [math.nan, 1, 1, 1], [1, -1, -1, -1]]
    assert exact.values == pytest.approx(np.array(expected), abs=1e-6, nan_ok=True)
    whole = audio_agreement(separated(sources))
    same = agreement_over_time(separated(sources), 10.0)
    assert same.values == pytest.approx(whole.values[:, None])
    assert np.isnan(agreement_over_time(separated(sources[:1]), 100 / RATE)).all()


def test_draws_that_spread_are_no_disagreement() -> None:
    sources = np.random.default_rng(3).normal(size=(2, 100, 3, TIME))  # nothing in common
    for row in judged(separated(sources)).sources:
        # Means of 100 draws each differ by 2/100 of their power, and there are 400 of them.
        assert row.agreement == pytest.approx(1 - 1 / 100, abs=5 * 0.01 * math.sqrt(2 / TIME))


def test_gradients_that_nobody_counted() -> None:
    diagnosis = judged(separated(spread(2, 10), attrs={}))
    assert math.isnan(diagnosis.gradients)
    assert all(math.isnan(row.ess_per_gradient) for row in diagnosis.sources)


def test_a_trace_from_its_file(tmp_path: Path) -> None:
    tree = separated(spread(2, 30), misfit=np.ones((2, 30, 3)))
    save_trace(tree, tmp_path / "trace.nc")
    assert diagnose(load_trace(tmp_path / "trace.nc")) == diagnose(tree)


def test_a_tree_of_another_kind() -> None:
    tree = separated(spread(2, 10))
    del tree["observed_data"]
    tree["posterior"] = tree["posterior"].to_dataset().drop_vars("level_db")
    with pytest.raises(ValueError, match="got none of posterior/level_db, observed_data/mixture,"):
        diagnose(tree)


def test_diagnosis_as_text() -> None:
    sources = spread(2, 30)
    sources[1] = sources[1][:, [0, 2, 1]]
    diagnosis = judged(separated(sources, misfit=np.ones((2, 30, 3))))
    head, *rows, residual, gradients, bands, verdict = format_diagnosis(diagnosis).splitlines()
    expected = ["source", "R-hat", "bulk", "ESS", "ESS/gradient", "agreement", "misfit"]
    assert head.split() == expected
    for line, row in zip(rows, diagnosis.sources, strict=True):
        name, *figures = line.split()
        assert name == row.name
        wanted = [row.r_hat, row.ess_bulk, row.ess_per_gradient, row.agreement, 1]
        places = [1e-3, 0.1, row.ess_per_gradient / 10, 1e-3, 0.01]
        error = np.abs(np.subtract([float(figure) for figure in figures], wanted))
        assert (error <= places).all()
    assert residual == f"residual: {diagnosis.residual:.1f} dB of the mixture"
    assert gradients == "gradient evaluations: 1,234"
    assert bands == f"bands: {diagnosis.bands}"
    assert verdict.startswith(
        "verdict: not trusted, chains disagree (middle, high); chains 1 and 2 put the sound near"
    )


def of_modes(label: np.ndarray, probability: list[float], **changes: Any) -> xr.DataTree:
    """Two chains; draws of mode 1 have two tones exchanged."""
    sources = spread(2, 300)
    sources[label == 1] = sources[label == 1][:, [0, 2, 1]]
    weight = np.array(probability)[label]
    attrs = {"estimate": "mode", **changes.pop("attrs", {})}
    modes = {"label": label, "weight": weight / weight.sum(), "probability": probability}
    return separated(sources, attrs=attrs, modes=modes, misfit=np.ones((2, 300, 3)), **changes)


def test_a_posterior_of_two_explanations() -> None:
    label = np.tile(np.arange(300) % 3 == 0, (2, 1)).astype(int)
    diagnosis = judged(of_modes(label, [0.67, 0.33]))
    assert (diagnosis.verdict, diagnosis.blamed) == (Verdict.MODES, ("middle", "high"))
    said = "explanations 1 and 2 put the sound near (500|1000) Hz at 0.00 s in different sources"
    assert re.match(f"{said} \\(middle or high\\) \\(probabilities 67%, 33%\\); ", diagnosis.reason)
    one_chain = label * np.array([[0], [1]])
    assert judged(of_modes(one_chain, [0.96, 0.04])).reason.endswith("2 chains agree")


def test_a_chain_in_an_improbable_mode_is_no_witness() -> None:
    label = np.repeat([[0], [1]], 300, 1)
    diagnosis = judged(of_modes(label, [1.0, 0.0]))
    assert diagnosis.verdict is Verdict.TRUSTED
    assert "chains agree" not in diagnosis.reason
    assert judged(of_modes(label, [0.5, 0.5])).verdict is Verdict.MODES
