import json
import math
import statistics
import sys
import warnings
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict, fields, replace
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_sep import load_priors, separate
from pyro_sep.data.toy import toy_mixture
from pyro_sep.diagnostics.verdict import diagnose
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.draws import Draws
from pyro_sep.inference.annealing.schedules import start_level
from pyro_sep.inference.annealing.settings import RESTART, Annealing
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.flowavenet import FloWaveNet, FloWaveNetConfig
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors.networks import FloWaveNetPrior, NetworkPrior, WaveNetPrior
from pyro_sep.separation.api import Separation, separate_batch, separation_from_draws
from pyro_sep.separation.inputs import MIN_TIME, check_mixtures
from pyro_sep.separation.presets import (
    PRESETS,
    SONG_RATE,
    SONG_START,
    default_constraint,
    default_ladder,
    relative_loudness,
    resolve_settings,
)
from pyro_sep.separation.recorder import DrawRecorder
from pyro_sep.trace.dataset import save_trace, to_arviz
from pyro_sep.trace.estimate import estimate_sources

TIME = 300
BUDGET = {"levels": 6, "candidates": 2, "tries": 1, "swaps": 0, "replicas": 2, "chains": 2}
BUDGET |= {"cooling": 4, "warmup": 3, "draws": 6, "thin": 1}
LEVELS = {"oboe": 0.5, "flute": 0.3}
TONES: dict[str, Any] = {"mixing": "mean", "estimate": "mode"}


def make_prior(name: str, **config: Any) -> WaveNetPrior:
    torch.manual_seed(len(name))
    network = WaveNet(
        WaveNetConfig(
            **{
                "width": 8,
                "layers": 2,
                "hop": 16,
                "spectra": (32,),
                "components": 4,
                "sigma_data": LEVELS[name],
            }
            | config
        )
    )
    torch.nn.init.normal_(network.head_out.weight, std=0.3)
    return WaveNetPrior(network, name=name, sample_rate=8_000, **TONES)


def make_flow(name: str) -> FloWaveNetPrior:
    torch.manual_seed(len(name))
    network = FloWaveNet(
        FloWaveNetConfig(
            squeeze=16,
            flows=2,
            components=2,
            layers=1,
            width=8,
            spectra=(32,),
            head_width=8,
            sigma_data=LEVELS[name],
        )
    )
    torch.nn.init.normal_(network.interpolator.head_out.weight, std=0.3)
    return FloWaveNetPrior(network, name=name, sample_rate=8_000, **TONES)


PRIORS = {name: make_prior(name) for name in LEVELS}


def tones(time: int = TIME) -> Tensor:
    """Sources (source, time)."""
    t = torch.arange(time) / 8_000
    return torch.stack([0.7 * torch.sin(2 * math.pi * f * t) for f in (440.0, 700.0)])


@pytest.fixture(scope="module")
def result() -> Separation:
    attrs = {"mixture": "duet.wav", "notes": ["mixed down"]}
    return separate(tones().mean(0), PRIORS, seed=3, true_sources=tones(), attrs=attrs, **BUDGET)


def test_the_result_is_the_mean_of_the_most_probable_chain(result: Separation) -> None:
    assert result.names == ("oboe", "flute")
    assert result.sample_rate == 8_000
    assert result.sources.shape == (2, TIME)
    lp = result.trace["sample_stats"]["lp"].values.mean(1)
    draws = result.trace["posterior"]["sources"].values
    assert draws.shape == (2, 6, 2, TIME)
    assert nearest_chain(result) == lp.argmax()


def nearest_chain(result: Separation) -> int:
    """Of which chain the result is the mean, but for what draws add to what is expected."""
    means = result.trace["posterior"]["sources"].values.mean(1)
    off = np.sqrt(np.square(means - result.sources.numpy()).mean((1, 2)))
    assert off.min() < default_ladder(PRIORS, TIME)["sigma_min"] / math.sqrt(BUDGET["draws"])
    assert off.max() > 2 * off.min()
    return int(off.argmin())


def test_the_best_chain_is_by_mean_not_by_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_sep.separation import api as separation

    class Rigged(DrawRecorder):
        def add(self, draws: Draws, first: int) -> None:
            lp = torch.tensor([[[5.0] + [-9.0] * 5, [0.0] * 6]])
            super().add(draws._replace(statistics=draws.statistics._replace(lp=lp)), first)

    monkeypatch.setattr(separation, "DrawRecorder", Rigged)
    result = separate(tones().mean(0), PRIORS, **BUDGET)
    assert nearest_chain(result) == 1


def test_the_mean_over_all_chains_leaves_out_one_that_diverged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyro_sep.separation import api as separation

    both = separate(tones().mean(0), PRIORS, estimate="mean", **BUDGET)
    drawn = torch.from_numpy(estimate_sources(both.trace).values)
    bound = default_ladder(PRIORS, TIME)["sigma_min"] / math.sqrt(BUDGET["draws"])
    assert (both.sources - drawn).square().mean().sqrt() < bound
    assert torch.allclose(both.contributions, both.sources / 2, atol=1e-7)
    assert both.trace.attrs["estimate"] == "mean"

    class Diverged(DrawRecorder):
        def add(self, draws: Draws, first: int) -> None:
            lp = draws.statistics.lp.clone()
            lp[:, 1] = math.nan
            super().add(draws._replace(statistics=draws.statistics._replace(lp=lp)), first)

    monkeypatch.setattr(separation, "DrawRecorder", Diverged)
    one = separate(tones().mean(0), PRIORS, estimate="mean", **BUDGET)
    assert nearest_chain(one) == 0
    with pytest.raises(ValueError, match="estimate: got 'median', expected one of mode, mean"):
        separate(tones().mean(0), PRIORS, estimate="median", **BUDGET)


def test_the_trace_holds_every_group(result: Separation) -> None:
    trace = result.trace
    assert set(trace.children) == {
        "posterior",
        "sample_stats",
        "warmup_sample_stats",
        "search_stats",
        "modes",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    stats = ("lp", "grad_norm", "acceptance_rate", "noise_level", "step_size", "energy")
    for group, draws in (("sample_stats", 6), ("warmup_sample_stats", 6)):
        assert set(trace[group].data_vars) == set(stats)
        for name in stats:
            assert trace[group][name].shape == (2, draws)
            assert np.isfinite(trace[group][name]).all()
    ladder = default_ladder(PRIORS, TIME)
    noise_level = trace["warmup_sample_stats"]["noise_level"].values
    assert np.allclose(noise_level[:, 0], RESTART * ladder["sigma_min"])
    assert np.allclose(noise_level[:, 3:], ladder["sigma_min"])  # three levels above, three steps
    assert (np.diff(noise_level)[:, :3] < 0).all()
    assert np.allclose(trace["sample_stats"]["noise_level"], ladder["sigma_min"])
    for group in ("sample_stats", "warmup_sample_stats"):
        assert np.allclose(
            trace[group]["step_size"], Annealing.step_size * trace[group]["noise_level"]
        )
    mixture = tones().mean(0).numpy()
    assert np.array_equal(trace["observed_data"]["mixture"], mixture)
    assert np.array_equal(trace["constant_data"]["true_sources"], tones())
    assert trace["constant_data"]["gains"].values.tolist() == [0.5, 0.5]
    draws = trace["posterior"]["sources"].values
    predictive = trace["posterior_predictive"]["mixture"].values
    assert np.allclose(predictive, draws.mean(2), atol=1e-6)
    assert np.abs(predictive - mixture).max() < 1e-5  # sources add up to it
    log_prior = trace["posterior"]["log_prior"].values.sum(-1)
    assert np.array_equal(trace["sample_stats"]["lp"].values, log_prior)  # and to no density


def test_the_energy_is_the_kinetic_one_more_than_the_potential(result: Separation) -> None:
    for group in ("sample_stats", "warmup_sample_stats"):
        stats = result.trace[group]
        kinetic = (stats["energy"] + stats["lp"]).values
        # Of standard normal velocities in the plane of the exact mixture, as free as one source; a
        # run as short as this is not quite in equilibrium.
        assert 0.7 < kinetic.mean() / (TIME / 2) < 1.4


def test_the_trace_says_how_it_was_made(result: Separation) -> None:
    attrs = result.trace.attrs
    assert attrs["seed"] == 3
    assert attrs["noise_scale"] == 1e-3
    assert attrs["mixture"] == "duet.wav"
    assert json.loads(attrs["notes"]) == ["mixed down"]
    settings = json.loads(attrs["settings"])
    assert settings.items() >= (BUDGET | default_ladder(PRIORS, TIME)).items()
    assert settings["step_size"] == Annealing.step_size


def test_arviz_summarises_the_scalars(result: Separation) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
        import arviz

        table = arviz.summary(
            to_arviz(result.trace), var_names=["level_db", "centroid", "log_prior"]
        )
    assert list(table.index) == [
        f"{name}[{source}]" for name in ("level_db", "centroid", "log_prior") for source in LEVELS
    ]
    level = result.trace["posterior"]["level_db"].values.mean((0, 1))
    assert table["mean"].iloc[:2].tolist() == pytest.approx(level.tolist(), abs=6e-4)
    assert table["r_hat"].notna().all()


def test_gains_reach_the_likelihood_and_the_trace() -> None:
    sources = tones()
    mixture = 1.5 * sources[0] - 0.3 * sources[1]
    result = separate(mixture, PRIORS, gains=(1.5, -0.3), **BUDGET)
    assert np.allclose(result.trace["constant_data"]["gains"], (1.5, -0.3))
    explained = 1.5 * result.sources[0] - 0.3 * result.sources[1]
    assert (explained - mixture).abs().max() < 1e-2
    with_mean = separate(mixture, PRIORS, **BUDGET)
    assert (with_mean.sources.mean(0) - mixture).abs().max() < 1e-2


@pytest.fixture(params=["flows", "mixed"])
def longer(request: pytest.FixtureRequest) -> dict[str, NetworkPrior]:
    """Priors whose frames are multiples of 16, which 300 is not."""
    flute: NetworkPrior = make_flow("flute")
    if request.param == "mixed":
        return {"oboe": make_prior("oboe"), "flute": flute}
    return {"oboe": make_flow("oboe"), "flute": flute}


def test_sources_are_as_long_as_their_mixture(longer: dict[str, NetworkPrior]) -> None:
    mixture = tones().mean(0)
    result = separate(mixture, longer, seed=3, true_sources=tones(), **BUDGET)
    assert result.names == ("oboe", "flute")
    assert result.sources.shape == (2, TIME)
    assert result.sources.isfinite().all()
    assert (result.sources.mean(0) - mixture).abs().max() < 1e-2
    draws = result.trace["posterior"]["sources"].values
    assert draws.shape == (2, 6, 2, TIME)
    assert np.array_equal(result.trace["observed_data"]["mixture"], mixture)
    predictive = result.trace["posterior_predictive"]["mixture"].values
    assert np.allclose(predictive, draws.mean(2), atol=1e-6)
    # Log densities are those of the whole frames.
    for group in ("sample_stats", "warmup_sample_stats"):
        assert np.isfinite(result.trace[group]["lp"]).all()
    again = separate(mixture, longer, seed=3, true_sources=tones(), **BUDGET)
    assert torch.equal(result.sources, again.sources)


def test_a_mixture_of_a_fitting_length_has_no_unheard_end(longer: dict[str, NetworkPrior]) -> None:
    results = separate_batch(torch.stack([*tones(304), tones(304).mean(0)]), longer, **BUDGET)
    assert [result.sources.shape for result in results] == [(2, 304)] * 3


def test_pairs_of_three_move_on_frames_of_all(longer: dict[str, NetworkPrior]) -> None:
    # Two of them would take the mixture's own length.
    priors = {**longer, "cello": make_prior("oboe"), "viola": make_prior("oboe")}
    mixture = tones().mean(0)
    result = separate(mixture, priors, **BUDGET)
    assert result.sources.shape == (4, TIME)
    assert (result.sources.mean(0) - mixture).abs().max() < 1e-2


@pytest.mark.parametrize("noise_scale", [0.01, "infer"])
@pytest.mark.parametrize("gains", [(0.3, 0.6), "infer"])
def test_unknown_gains_and_noise_are_draws_of_the_trace(gains: Any, noise_scale: Any) -> None:
    result = separate(
        tones().mean(0), PRIORS, gains=gains, noise_scale=noise_scale, seed=3, **BUDGET
    )
    posterior, constant = result.trace["posterior"], result.trace["constant_data"]
    assert ("gains" in posterior) == (gains == "infer")
    assert ("noise_scale" in posterior) == (noise_scale == "infer")
    drawn = np.broadcast_to(constant["gains"].values, (2, 6, 2))
    if gains == "infer":
        drawn = posterior["gains"].values
        assert drawn.shape == (2, 6, 2)
        assert len(np.unique(drawn)) > 2 * 6
        assert drawn.min() >= 0.2
        assert drawn.max() <= 2.0
        assert constant["gains"].values == pytest.approx(drawn.mean((0, 1)))
    if noise_scale == "infer":
        assert posterior["noise_scale"].shape == (2, 6)
        assert len(np.unique(posterior["noise_scale"])) == 2 * 6
    mixed = np.einsum("cdk,cdkt->cdt", drawn, posterior["sources"].values)
    assert np.allclose(result.trace["posterior_predictive"]["mixture"], mixed, atol=1e-5)
    assert np.isfinite(result.trace["sample_stats"]["lp"]).all()
    assert diagnose(result.trace).sources[0].name == "oboe"


def test_an_exact_mixture_needs_numbers() -> None:
    for unknown in ({"gains": "infer"}, {"noise_scale": "infer"}):
        with pytest.raises(
            ValueError, match=r"^gains: got 'infer', or noise_scale did, with an exact"
        ) as caught:
            separate(tones().mean(0), PRIORS, constraint="exact", **unknown, **BUDGET)
        assert "\n" not in str(caught.value)


def test_swaps_take_unknown_gains_along(longer: dict[str, NetworkPrior]) -> None:
    options = BUDGET | {"swaps": 1}
    result = separate(tones().mean(0), PRIORS | longer, gains="infer", **options)
    mixed = result.trace["posterior_predictive"]["mixture"].values.mean((0, 1))
    assert np.isfinite(mixed).all()
    assert result.trace["posterior"]["gains"].shape == (2, 6, len(PRIORS | longer))


def test_a_batch_is_its_mixtures_in_order() -> None:
    mixtures = torch.stack([tones()[0], tones()[1], -tones()[0]])
    results = separate_batch(mixtures, PRIORS, seed=1, **BUDGET)
    assert len(results) == 3
    for mixture, own in zip(mixtures, results, strict=True):
        assert np.array_equal(own.trace["observed_data"]["mixture"], mixture)
        assert (own.sources.mean(0) - mixture).abs().max() < 1e-2


def test_one_seed_is_one_result() -> None:
    mixture = tones().mean(0)
    first, again, other = (separate(mixture, PRIORS, seed=s, **BUDGET) for s in (4, 4, 5))
    assert torch.equal(first.sources, again.sources)
    assert first.trace.identical(again.trace)
    assert not torch.equal(first.sources, other.sources)


def test_the_ladder_follows_the_frame_and_the_priors() -> None:
    ladder = default_ladder(PRIORS, 2_000)
    assert ladder["sigma_max"] == start_level(2_000, 0.4)  # of the mean level
    assert ladder["sigma_max"] > ladder["sigma_freeze"] > ladder["sigma_min"]
    longer = default_ladder(PRIORS, 10**6)  # a section of it
    assert longer == default_ladder(PRIORS, int(longer["section"]))
    narrow = PRIORS | {"flute": make_prior("flute", sigma_min=0.08, sigma_max=1.1)}
    ladder = default_ladder(narrow, 10**6)
    assert (ladder["sigma_max"], ladder["sigma_min"]) == (1.1, 0.08)


def test_the_ladder_of_music_follows_the_loudness_of_the_mixture() -> None:
    levels = ("sigma_max", "sigma_freeze", "sigma_min")
    usual = default_ladder(PRIORS, TIME, True)
    quiet = default_ladder(PRIORS, TIME, True, loudness=0.1)
    for name in levels:
        assert quiet[name] < usual[name]
    share = (8_000 / SONG_RATE) ** 0.5  # noise of this rate has the same power per hertz
    assert quiet["sigma_max"] == pytest.approx(0.1 * SONG_START * share * 0.4)  # of the mean level
    low, high = (f({p.sigmas[i] for p in PRIORS.values()}) for f, i in ((max, 0), (min, 1)))
    for loudness in (1e-9, 1e9):  # beyond what the priors know
        ladder = default_ladder(PRIORS, TIME, True, loudness)
        assert low <= ladder["sigma_min"] < ladder["sigma_freeze"] < ladder["sigma_max"] <= high
    assert default_ladder(PRIORS, TIME, loudness=0.1) == default_ladder(PRIORS, TIME)  # of tones


def test_the_ladder_of_music_has_the_same_power_per_hertz_at_every_rate() -> None:
    usual = default_ladder(PRIORS, TIME, True, loudness=0.2)
    slow = {name: make_prior(name) for name in PRIORS}
    for prior in slow.values():
        prior.sample_rate = 2_000
    ladder = default_ladder(slow, TIME, True, loudness=0.2)
    for name in ("sigma_max", "sigma_freeze", "sigma_min"):  # sigma^2 / rate stays
        assert ladder[name] == pytest.approx(usual[name] / 2)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.5, 0.5), (2.0, -0.1)])
def test_a_mixture_of_sources_as_loud_as_their_priors_has_loudness_1(
    gains: tuple[float, float],
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 2, 100_000, generator=generator)
    rms = torch.tensor([prior.rms for prior in PRIORS.values()])[:, None]
    mixing = Mixing(gains)
    assert relative_loudness(mixing.mix(rms * noise), PRIORS, mixing) == pytest.approx(1, rel=0.01)


def test_levels_of_music_are_those_of_its_loudness() -> None:
    mixture = tones().mean(0)
    options = {"estimate": "mean", "levels": 6, "cooling": 2, "warmup": 1, "draws": 1}
    found = []
    for scale in (1.0, 0.5):
        trace = separate(scale * mixture, PRIORS, **options).trace
        found.append(json.loads(trace.attrs["settings"]))
        loudness = relative_loudness(scale * mixture, PRIORS, Mixing.mean(len(PRIORS)))
        ladder = default_ladder(PRIORS, TIME, True, loudness)
        assert found[-1].items() >= ladder.items()
    assert found[1]["sigma_max"] < found[0]["sigma_max"]


def test_settings_are_the_ladder_the_preset_and_what_is_given() -> None:
    settings = resolve_settings(PRIORS, TIME, "mean", "quick", draws=3)
    ladder, budget = default_ladder(PRIORS, TIME, True), PRESETS["quick"]["mean"]
    assert asdict(settings).items() >= (ladder | budget | {"draws": 3}).items()
    whole = resolve_settings(PRIORS, TIME, settings=settings, chains=2, draws=None)
    assert whole == replace(settings, chains=2)
    with pytest.raises(ValueError, match=r"^draw: got an unknown option, expected .* draws"):
        resolve_settings(PRIORS, TIME, draw=3)


def test_the_estimate_and_its_preset_are_those_of_the_priors() -> None:
    assert resolve_settings(PRIORS, TIME) == resolve_settings(PRIORS, TIME, "mode", "standard")
    recordings = {name: copy(prior) for name, prior in PRIORS.items()}
    for prior in recordings.values():
        prior.mixing, prior.estimate = "sum", "mean"
    assert resolve_settings(recordings, TIME) == resolve_settings(PRIORS, TIME, "mean", "quick")
    for prior in recordings.values():
        prior.sample_rate = 4_000  # where a larger budget takes no longer
    chosen = resolve_settings(recordings, TIME)
    assert chosen == resolve_settings(recordings, TIME, preset="standard")
    assert chosen.chains == PRESETS["standard"]["mean"]["chains"]
    result = separate(WAVE, recordings, **TINY)
    assert result.trace.attrs["estimate"] == "mean"
    assert result.trace["constant_data"]["gains"].values.tolist() == [1.0, 1.0]
    for prior in recordings.values():
        prior.mixing = "mean"
    expected = separate(WAVE, recordings, gains=(1.0, 1.0), preset="quick", **TINY)
    assert torch.equal(result.sources, expected.sources)


def test_priors_of_sets_that_disagree_need_options() -> None:
    other = copy(PRIORS["flute"])
    other.mixing, other.estimate = "sum", "mean"
    mixed = PRIORS | {"flute": other}
    with pytest.raises(ValueError, match=r"^priors: got mixing .*; give gains$"):
        separate(WAVE, mixed, **TINY)
    with pytest.raises(ValueError, match=r"^priors: got estimate .*; give estimate$"):
        separate(WAVE, mixed, gains=(0.5, 0.5), **TINY)


def test_settings_are_given_whole_or_by_name(plain: Separation) -> None:
    whole = resolve_settings(PRIORS, TIME, **TINY)
    assert same(separate(WAVE, PRIORS, settings=whole), plain)
    assert same(separate(WAVE, PRIORS, settings=replace(whole, draws=9), draws=whole.draws), plain)


def test_every_option_has_a_name_a_type_and_a_default() -> None:
    single, batch = (signature(function).parameters for function in (separate, separate_batch))
    names = [name for name in single if name not in ("mixture", "priors")]
    assert names == [name for name in batch if name not in ("mixtures", "priors")]
    for name in names:
        for option in (single[name], batch[name]):
            assert option.kind is option.KEYWORD_ONLY
            assert option.default is not option.empty
            assert option.annotation is not option.empty
    assert {field.name for field in fields(Annealing)} <= {*names}


ORACLES = {name: load_priors("toy/oracle")[name] for name in ("square", "saw")}


def test_sources_add_up_to_a_mixture_without_noise() -> None:
    assert default_constraint(Mixing.mean(2)) == "exact"
    assert default_constraint(Mixing.mean(2, 0.01)) == "gaussian"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "exact"),
        ({"constraint": "gaussian"}, "gaussian"),
        ({"gains": "infer"}, "gaussian"),
        ({"presence": "infer"}, "gaussian"),
    ],
)
def test_the_trace_says_how_sources_are_tied(options: dict[str, Any], expected: str) -> None:
    mixture = toy_mixture("test", 100, tuple(ORACLES), MIN_TIME).mixture
    budget = BUDGET | {"candidates": 1, "replicas": 0, "draws": 2}
    result = separate(mixture, ORACLES, **options, **budget)
    assert result.trace.attrs["constraint"] == expected
    gap = (result.sources.mean(0) - mixture).abs().max()
    if not options:
        assert float(gap) < 1e-5  # rounding: the mixture is below 1


def bad(case: str) -> Tensor:
    mixture = tones().mean(0)
    if case in ("nan", "inf"):
        mixture[17] = float(case)
    return {
        "silence": torch.zeros(TIME),
        "short": mixture[: MIN_TIME - 1],
        "empty": mixture[:0],
        "stereo": tones(),
        "scalar": torch.tensor(0.5),
    }.get(case, mixture)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("nan", {}, "mixture: got NaN or infinity, expected finite audio"),
        ("inf", {}, "mixture: got NaN or infinity, expected finite audio"),
        ("silence", {}, "mixture: got silence, expected audio"),
        ("short", {}, "mixture: got 255 audio samples, expected at least 256"),
        ("empty", {}, "mixture: got 0 audio samples, expected at least 256"),
        ("stereo", {}, r"mixture: got shape \(2, 300\), expected \(time,\)"),
        ("scalar", {}, r"mixture: got shape \(\), expected \(time,\)"),
        ("", {"gains": (1.0,)}, r"gains: got 1 for 2 priors \(oboe, flute\); expected one per"),
        ("", {"gains": (1.0, 0.0)}, r"gains: got \(1.0, 0.0\), expected a number of 1e-07"),
        ("", {"gains": (1.0, math.nan)}, r"gains: got \(1.0, nan\), expected"),
        ("", {"noise_scale": 0.0}, "noise_scale: got 0.0, expected a positive number"),
        ("", {"noise_scale": math.inf}, "noise_scale: got inf, expected a positive number"),
        ("", {"levels": 2}, "levels: got 2, expected at least 6"),
        ("", {"chains": 0}, "chains: got 0, expected at least 1"),
        ("", {"sigma_min": 3.0}, r"ladder: got 0\.\d+ down to 3, expected 0 < sigma_min"),
    ],
)
def test_what_cannot_be_separated_is_said_in_a_line(
    case: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        separate(bad(case), PRIORS, **(BUDGET | options))
    assert "\n" not in str(caught.value)


TINY = BUDGET | {"candidates": 1, "replicas": 0, "cooling": 1, "warmup": 1, "draws": 2}
TRUTH = tones()
WAVE = TRUTH.mean(0)


def same(a: Separation, b: Separation) -> bool:
    """Whether two separations are one, bit for bit."""
    return torch.equal(a.sources, b.sources) and a.trace.identical(b.trace)


@pytest.fixture(scope="module")
def plain() -> Separation:
    return separate(WAVE, PRIORS, **TINY)


@pytest.mark.parametrize(
    "mixture",
    [
        WAVE.numpy(),
        WAVE.numpy().astype(">f8"),
        WAVE.double(),
        WAVE.tolist(),
        WAVE.clone().requires_grad_(),
        WAVE.numpy()[::-1].copy()[::-1],
    ],
    ids=["array", "big-endian", "float64", "list", "gradient", "backwards"],
)
def test_a_mixture_of_any_type_is_the_same_mixture(mixture: Any, plain: Separation) -> None:
    assert same(separate(mixture, PRIORS, **TINY), plain)


MODES: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "device": partial(torch.device, "meta"),
}


FAMILIES = {make: {name: make(name) for name in LEVELS} for make in (make_prior, make_flow)}
UNKNOWN = {"gains": "infer", "presence": "infer"}


def separated(family: Any, inferred: bool) -> Separation:
    """What is separated from arguments that are made where it is called."""
    priors = {name: prior.condition(0.5) for name, prior in FAMILIES[family].items()}
    mixture, truth = WAVE.clone(), TRUTH.clone()
    options: dict[str, Any] = TINY | (UNKNOWN if inferred else {})
    return separate(mixture, priors, true_sources=truth, **options)


in_plain_torch = cache(separated)


@pytest.mark.parametrize("mode", [*MODES, "dtype"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inferred", [False, True])
def test_what_the_caller_has_set_changes_no_draw(mode: str, family: Any, inferred: bool) -> None:
    expected = in_plain_torch(family, inferred)
    with ExitStack() as modes:
        if mode == "dtype":
            modes.callback(torch.set_default_dtype, torch.float32)
            torch.set_default_dtype(torch.float64)
        else:
            modes.enter_context(MODES[mode]())
        found = separated(family, inferred)
    assert same(found, expected)


def test_priors_made_under_inference_mode_have_gradients(plain: Separation) -> None:
    with torch.inference_mode():
        priors = {name: make_prior(name).condition(0.5) for name in LEVELS}
        assert same(separate(WAVE, priors, **TINY), plain)
    assert same(separate(WAVE, priors, **TINY), plain)


@pytest.mark.parametrize("seed", [7, np.int64(7), np.uint8(7), torch.tensor(7)], ids=type)
def test_numbers_of_any_type_are_the_same_numbers(seed: Any, tmp_path: Path) -> None:
    options = {"gains": (0.5, 0.25), "noise_scale": 0.25, "seed": 7, "true_sources": tones()}
    expected = separate(WAVE, PRIORS, **(TINY | options))
    for gains in ([0.5, 0.25], np.array([0.5, 0.25]), torch.tensor([0.5, 0.25])):
        options = {"gains": gains, "noise_scale": np.float32(0.25), "seed": seed}
        options |= {"true_sources": tones().double().numpy(), "draws": np.int64(2)}
        found = separate(WAVE, PRIORS, checkpoint=tmp_path / f"{len(gains)}", **(TINY | options))
        assert same(found, expected)
        save_trace(found.trace, tmp_path / "trace.nc")


@pytest.mark.parametrize(
    "options", [{"persistence": 0}, {"swaps": 0}, {"replicas": 0}, {"cooling": 1}]
)
def test_the_ends_of_a_range_belong_to_it(options: dict[str, Any]) -> None:
    assert separate(WAVE, PRIORS, **(TINY | options)).sources.isfinite().all()


def test_denormals_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_sep.separation import api as separation

    def fail(*_: Any) -> None:
        assert sys.float_info.min / 2 == 0
        raise OSError("full")

    separate(WAVE, PRIORS, **TINY)
    assert sys.float_info.min / 2 > 0
    monkeypatch.setattr(separation, "anneal", fail)
    with pytest.raises(OSError, match="full"):
        separate(WAVE, PRIORS, **TINY)
    assert sys.float_info.min / 2 > 0


class Unlike:
    """No prior."""


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture": WAVE[None]}, r"mixture: got shape \(1, 300\), .*; use separate\(mixture\[0\]"),
        (
            {"mixture": WAVE[:, None]},
            r"mixture: got shape \(300, 1\), .*; use separate\(mixture\[:, 0\], priors\)",
        ),
        ({"mixture": "mixture.wav"}, "mixture: got 'mixture.wav', expected audio in floats"),
        ({"mixture": (WAVE * 32767).short()}, "mixture: got int16, expected .*; divide by"),
        (
            {"mixture": WAVE * 32767},
            r"mixture: got a peak of \d+\.?\d*, expected .* scale 1; divide",
        ),
        (
            {"mixture": WAVE.to("meta")},
            r"mixture: got a tensor on meta, expected it on cpu, .*; use prior\.to\('meta'\), or",
        ),
        ({"priors": "toy"}, r"priors: got 'toy', expected .*load_priors\(\"toy\"\)"),
        ({"priors": {}}, "priors: got none, expected priors by source name"),
        ({"priors": list(PRIORS.values())}, "priors: got a list, expected priors by"),
        ({"priors": None}, "priors: got a NoneType, expected priors by"),
        ({"priors": {"oboe": Unlike()}}, "priors: got a Unlike for 'oboe', expected"),
        ({"priors": {"oboe": WaveNetPrior}}, "priors: got a class for 'oboe', expected"),
        ({"priors": {"oboe": PRIORS["oboe"].network}}, "priors: got a WaveNet for 'oboe'"),
        ({"priors": {0: PRIORS["oboe"]}}, "priors: got the name 0, expected"),
        ({"priors": {"": PRIORS["oboe"]}}, "priors: got the name '', expected"),
        ({"gains": np.ones((2, 2))}, r"gains: got an array of shape \(2, 2\), expected"),
        ({"gains": torch.tensor([0.5, math.nan])}, r"gains: got \[0.5, nan\], expected a number"),
        ({"gains": 0.5}, "gains: got 0.5, expected"),
        ({"gains": [0.5, 0.5, 0.5]}, "gains: got 3 for 2 priors"),
        ({"gains": [True, True]}, r"gains: got \[True, True\], expected"),
        ({"gains": {"oboe": 0.5}}, r"gains: got \{'oboe': 0.5\}, expected"),
        ({"noise_scale": "loud"}, "noise_scale: got 'loud', expected numbers or 'infer'"),
        ({"noise_scale": [0.1]}, r"noise_scale: got \[0.1\], expected a positive number"),
        ({"noise_scale": True}, "noise_scale: got True, expected a positive number"),
        ({"constraint": ["exact"]}, r"constraint: got \['exact'\], expected one of"),
        ({"estimate": WAVE}, r"estimate: got a tensor of shape \(300,\), expected one of"),
        ({"presence": True}, "presence: got True, expected 'infer'"),
        ({"presence": WAVE}, "presence: got a tensor .*, expected 'infer'"),
        ({"seed": -1}, "seed: got -1, expected a whole number"),
        ({"seed": 1.0}, "seed: got 1.0, expected a whole number"),
        ({"seed": True}, "seed: got True, expected a whole number"),
        ({"seed": 2**63}, "seed: got 9223372036854775808, expected a whole number"),
        ({"seed": "1"}, "seed: got '1', expected a whole number"),
        ({"seed": None}, "seed: got None, expected a whole number"),
        ({"true_sources": tones()[:1]}, r"true_sources: got shape \(1, 300\), expected \(2, 300\)"),
        ({"true_sources": WAVE.short()}, "true_sources: got int16, expected audio"),
        ({"attrs": [1]}, "attrs: got a list, expected a mapping"),
        ({"attrs": {1: 2}}, "attrs: got the name 1, expected"),
        ({"attrs": {"a/b": 2}}, "attrs: got the name 'a/b', expected"),
        ({"attrs": {"x": CYCLE}}, r"attrs: got a list as 'x' \(Circular reference"),
        ({"attrs": {"x": {(1, 2): 3}}}, r"attrs: got a dict as 'x' \(keys must be"),
        ({"attrs": {"seed": 2}}, "attrs: got 'seed', which the trace says"),
        ({"attrs": {"estimate": "mean"}}, "attrs: got 'estimate', which the trace says"),
        ({"checkpoint": 3}, "checkpoint: got 3, expected a path"),
        ({"checkpoint": ""}, "checkpoint: got '', expected a path"),
        ({"store": 3}, "store: got 3, expected a path"),
        ({"store": ["a.zarr"]}, r"store: got \['a.zarr'\], expected a path"),
        ({"settings": 3}, "settings: got 3, expected pyro_sep.inference.Annealing"),
        (
            {"settings": Annealing(2.0, 1.0, 0.1), "preset": "quick"},
            "settings: got preset too, expected one of the two",
        ),
        ({"preset": "slow"}, "preset: got 'slow', expected one of quick, standard, thorough"),
        ({"tries": 1.5}, "tries: got 1.5, expected at least 1"),
        ({"warmup": True}, "warmup: got True, expected at least 1"),
        ({"candidates": 2**63}, "candidates: got 9223372036854775808, expected at least 1"),
        ({"levels": 5}, "levels: got 5, expected at least 6"),
        ({"levels": "6"}, "levels: got '6', expected at least 6"),
        ({"swaps": -1}, "swaps: got -1, expected 0 or more"),
        ({"step_size": math.nan}, "step_size: got nan, expected above 0"),
        ({"step_size": "0.7"}, "step_size: got '0.7', expected above 0"),
        ({"persistence": -0.1}, "persistence: got -0.1, expected at least 0"),
        ({"persistence": 1}, "persistence: got 1, expected at least 0"),
        ({"adjusted": "yes"}, "adjusted: got 'yes', expected True or False"),
        ({"sigma_max": math.nan}, "sigma_max: got nan, expected a finite number"),
        ({"sigma_max": 6.0}, "sigma_max: got 6, expected 0.01 to 5, which all priors know"),
        ({"sigma_min": 0.001}, "sigma_min: got 0.001, expected 0.01 to 5, which all"),
        ({"sigma_freeze": 1e-3}, "ladder: got 0.001 down to 0.05, expected 0 < sigma_min"),
    ],
)
def test_an_argument_of_no_use_is_named_in_a_line(arguments: dict[str, Any], message: str) -> None:
    given = {"mixture": WAVE, "priors": PRIORS} | TINY | arguments
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        separate(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixtures": WAVE}, r"mixtures: got shape \(300,\), expected \(mixture, time\)"),
        ({"mixtures": [WAVE, WAVE[1:]]}, r"mixtures: got list \(setting an array element"),
        ({"mixtures": torch.ones(0, 300)}, r"mixtures: got shape \(0, 300\), expected .*one"),
        (
            {"mixtures": WAVE[:, None]},
            r"mixtures: got .*; use separate\(mixtures\[:, 0\], priors\)",
        ),
        ({"store": ["a.zarr", "./a.zarr"]}, "store: got a path twice, expected one"),
        ({"store": "a.zarr"}, "store: got 'a.zarr', expected a list of paths"),
        ({"store": []}, "store: got 0 paths, expected 2"),
        ({"true_sources": tones()}, r"true_sources: got shape \(2, 300\), expected \(2, 2, 300\)"),
    ],
)
def test_an_argument_of_a_batch_of_no_use(arguments: dict[str, Any], message: str) -> None:
    given = {"mixtures": [WAVE.numpy(), WAVE.tolist()], "priors": PRIORS} | TINY | arguments
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        separate_batch(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noisy": tones()}, r"noisy: got shape \(2, 300\), expected \(chain, draw, 2, 300\)"),
        ({"noisy": torch.ones(1, 2, 3, TIME)}, r"noisy: got shape \(1, 2, 3, 300\), expected"),
        ({"noisy": None}, "noisy: got None, expected audio"),
        ({"mixture": WAVE[None]}, r"mixture: got shape \(1, 300\), expected \(time,\)"),
        ({"priors": "toy"}, "priors: got 'toy', expected"),
        ({"mixing": (0.5, 0.5)}, r"mixing: got \(0.5, 0.5\), expected Mixing"),
        ({"mixing": Mixing.mean(3)}, "gains: got 3 for 2 priors"),
        ({"sigma": math.nan}, "sigma: got nan, expected a positive number"),
        ({"sigma": 9.0}, "sigma: got 9.0, expected 0.01 to 5"),
        ({"seed": 0.5}, "seed: got 0.5, expected a whole number"),
        ({"true_sources": WAVE}, r"true_sources: got shape \(300,\), expected \(2, 300\)"),
        ({"attrs": {1: 2}}, "attrs: got the name 1, expected"),
    ],
)
def test_a_description_of_no_use_is_named_in_a_line(
    arguments: dict[str, Any], message: str
) -> None:
    noisy = tones().expand(2, 3, 2, TIME)
    given = {"noisy": noisy, "mixture": WAVE, "priors": PRIORS, "mixing": Mixing.mean(2)}
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        separation_from_draws(**(given | {"sigma": 0.1} | arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_draws_of_any_type_are_described(mode: Any) -> None:
    noisy = tones().expand(2, 3, 2, TIME)
    expected = separation_from_draws(noisy, WAVE, PRIORS, Mixing.mean(2), 0.1)
    with mode():
        found = separation_from_draws(
            noisy.double().numpy(), WAVE.tolist(), PRIORS, Mixing.mean(2), 0.1
        )
    assert same(found, expected)


def test_priors_of_differing_rates_are_refused() -> None:
    other = make_prior("flute")
    other.sample_rate = 16_000
    with pytest.raises(ValueError, match=r"priors: got sample rates \[8000, 16000\]"):
        separate(tones().mean(0), PRIORS | {"flute": other}, **BUDGET)


def test_one_bad_mixture_of_a_batch_is_enough() -> None:
    good = tones().mean(0)
    with pytest.raises(ValueError, match="got silence"):
        check_mixtures(torch.stack([good, torch.zeros(TIME)]))
    with pytest.raises(ValueError, match=r"got shape \(300,\), expected \(mixture, time\)"):
        check_mixtures(good)
    check_mixtures(good[None, :MIN_TIME])


def test_the_toy_priors_ship() -> None:
    priors = load_priors("toy")
    assert list(priors) == ["sine", "saw", "square", "triangle"]
    for name, prior in priors.items():
        assert (prior.name, prior.sample_rate) == (name, 16_000)
        assert prior.frame(2_048).event_shape == (2_048,)
        assert prior.batch_shape == ()
        assert prior.sigmas[0] <= 0.05 < 1 < prior.sigmas[1]


@pytest.mark.slow
def test_every_chain_finds_the_tones_under_exact_priors() -> None:
    """One chain in five does under the Gaussian likelihood with a single start."""
    items = [toy_mixture("test", 100 + i, tuple(ORACLES), 1_024) for i in range(2)]
    mixtures = torch.stack([item.mixture for item in items])
    results = separate_batch(mixtures, ORACLES, chains=2)
    for item, result in zip(items, results, strict=True):
        for chain in result.trace["posterior"]["sources"].values.mean(1):
            assert (si_sdr(torch.from_numpy(chain), item.sources) > 20).all()


@pytest.mark.slow
def test_square_and_saw_are_told_apart(tmp_path: Path) -> None:
    toy = load_priors("toy")
    priors = {name: toy[name] for name in ("square", "saw")}
    items = [toy_mixture("test", 100 + i, tuple(priors), 2_048) for i in range(3)]
    results = separate_batch(torch.stack([item.mixture for item in items]), priors)
    gains = [
        float(si_sdr_improvement(result.sources, item.sources, item.mixture).mean())
        for item, result in zip(items, results, strict=True)
    ]
    assert statistics.median(gains) > 10, gains


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_priors_of_another_precision_are_refused(dtype: torch.dtype) -> None:
    priors = {"sine": load_priors("toy/wavenet")["sine"].to(dtype)}
    with pytest.raises(ValueError, match=rf"^priors: got weights of {dtype} for 'sine', expected"):
        separate(torch.ones(256), priors)
