import math
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from conftest import MakePriors
from networks import NESTED, WAVENET, randomise
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.infer.inspect import get_model_relations
from torch import Tensor

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import (
    NOISE_SCALE,
    Mixing,
    check_count,
    default_gains,
    frame_time,
    level_gain,
    model,
)
from pyro_sep.mixing.latent import draw_mixing
from pyro_sep.models.flowavenet import FloWaveNet
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import load_priors
from pyro_sep.priors.networks import FloWaveNetPrior, WaveNetPrior

UNEQUAL = Mixing((0.3, 1.5, -0.8), 0.2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_mixture_is_the_sum_of_gains_times_sources() -> None:
    sources = normal(2, 3, 5)
    expected = 0.3 * sources[:, 0] + 1.5 * sources[:, 1] - 0.8 * sources[:, 2]
    assert torch.allclose(UNEQUAL.mix(sources), expected, rtol=1e-14)
    assert torch.allclose(UNEQUAL.mix(sources[0]), expected[0], rtol=1e-14)
    assert UNEQUAL.weights(sources).tolist() == [[0.3], [1.5], [-0.8]]
    assert UNEQUAL.mix(sources.float()).dtype == torch.float32
    mean = Mixing.mean(3)
    assert mean.noise_scale == NOISE_SCALE
    assert torch.allclose(mean.mix(sources), sources.mean(1), rtol=1e-14)
    assert Mixing.mean(4, 0.5).noise_scale == 0.5


def test_the_mixture_of_noisy_sources_carries_the_noise_of_all() -> None:
    assert UNEQUAL.gain_energy == pytest.approx(0.09 + 2.25 + 0.64)
    assert UNEQUAL.scale_at(0) == pytest.approx(0.2)
    assert UNEQUAL.scale_at(0.5) == pytest.approx(math.sqrt(0.25 * 2.98 + 0.04))
    clean, count = normal(3, 1), 100_000
    noisy = clean + 0.5 * normal(count, 3, 1, seed=1)
    noise = UNEQUAL.mix(clean) + 0.2 * normal(count, 1, seed=2) - UNEQUAL.mix(noisy)
    ratio = float(noise.square().mean()) / UNEQUAL.scale_at(0.5) ** 2
    assert abs(ratio - 1) < 4.5 * math.sqrt(2 / count)


def test_log_likelihood_is_a_sum_over_time() -> None:
    mixture, sources = normal(2, 7, seed=1), normal(2, 3, 7)
    value = UNEQUAL.log_likelihood(mixture, sources, 0.1)
    assert value.shape == (2,)
    scale = math.sqrt(0.01 * 2.98 + 0.04)
    mean = 0.3 * sources[:, 0] + 1.5 * sources[:, 1] - 0.8 * sources[:, 2]
    expected = scipy.stats.norm(mean.numpy(), scale).logpdf(mixture.numpy()).sum(-1)
    assert value.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_the_score_is_the_gradient_of_the_log_likelihood() -> None:
    mixture, sources = normal(2, 4, seed=1), normal(2, 3, 4)
    score = UNEQUAL.score(mixture, sources, 0.1)
    leaf = sources.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(UNEQUAL.log_likelihood(mixture, leaf, 0.1).sum(), leaf)
    assert torch.allclose(score, gradient, rtol=1e-10)
    step = 1e-5
    for index in ((0, 0, 0), (0, 1, 3), (1, 2, 2)):
        nudge = torch.zeros_like(sources)
        nudge[index] = step
        above = UNEQUAL.log_likelihood(mixture, sources + nudge, 0.1).sum()
        below = UNEQUAL.log_likelihood(mixture, sources - nudge, 0.1).sum()
        assert float(score[index]) == pytest.approx(float(above - below) / (2 * step), rel=1e-6)
    # It pulls towards the mixture.
    before = (mixture - UNEQUAL.mix(sources)).abs()
    after = (mixture - UNEQUAL.mix(sources + 1e-3 * score)).abs()
    assert (after < before).all()


@pytest.mark.parametrize("mixing", [UNEQUAL, Mixing.mean(3, 0.01), Mixing((1.5, 0.3), 1.0)])
def test_condition_on_is_gaussian_conditioning(mixing: Mixing) -> None:
    count, time, scale = len(mixing.gains), 3, 0.7
    sources, mixture = normal(count, time), normal(time, seed=1)
    # Sources (source * time) with errors of covariance scale^2 I, observed through a matrix.
    observe = torch.kron(
        torch.tensor([mixing.gains], dtype=torch.float64), torch.eye(time).double()
    )
    precision = torch.eye(count * time).double() / scale**2
    precision = precision + observe.T @ observe / mixing.noise_scale**2
    pull = sources.flatten() / scale**2 + observe.T @ mixture / mixing.noise_scale**2
    expected = torch.linalg.solve(precision, pull).reshape(count, time)
    assert torch.allclose(mixing.condition_on(mixture, sources, scale), expected, atol=1e-10)


def test_condition_on_closes_the_residual_as_the_noise_goes() -> None:
    sources, mixture = normal(5, 3, 4), normal(5, 4, seed=1)
    before = mixture - UNEQUAL.mix(sources)
    for noise_scale in (1.0, 0.1, 1e-3):
        mixing = Mixing(UNEQUAL.gains, noise_scale)
        after = mixture - mixing.mix(mixing.condition_on(mixture, sources, 0.5))
        share = noise_scale**2 / (0.25 * 2.98 + noise_scale**2)
        assert torch.allclose(after, share * before, rtol=1e-8, atol=1e-12)


HEARD, FRAME = 5, 8  # the mixture ends before its sources


@pytest.mark.parametrize(
    ("multiples", "time", "expected"),
    [
        ((1,), 301, 301),
        ((16,), 300, 304),
        ((16,), 304, 304),
        ((16,), 1, 16),
        ((1, 16), 300, 304),
        ((4, 6), 13, 24),
        ((4, 6, 1), 24, 24),
        ((2, 3, 5), 31, 60),
    ],
)
def test_frames_are_the_shortest_that_all_priors_take(
    gaussian_priors: MakePriors, multiples: tuple[int, ...], time: int, expected: int
) -> None:
    priors = gaussian_priors(*(0.5,) * len(multiples), multiples=multiples)
    assert frame_time(priors.values(), time) == expected
    for prior in priors.values():
        assert expected % prior.multiple == 0


def test_what_is_beyond_the_mixture_is_not_heard() -> None:
    mixture, sources = normal(2, HEARD, seed=1), normal(2, 3, FRAME)
    head = sources[..., :HEARD]
    value = UNEQUAL.log_likelihood(mixture, sources, 0.1)
    assert value.shape == (2,)
    assert torch.equal(value, UNEQUAL.log_likelihood(mixture, head, 0.1))
    residual = UNEQUAL.residual(mixture, sources)
    assert residual.shape == (2, FRAME)
    assert torch.allclose(residual[:, :HEARD], mixture - UNEQUAL.mix(head), rtol=1e-14)
    assert (residual[:, HEARD:] == 0).all()
    assert torch.equal(UNEQUAL.residual(mixture[0], sources[0]), residual[0])


def test_the_score_of_what_is_not_heard_is_zero() -> None:
    mixture, sources = normal(2, HEARD, seed=1), normal(2, 3, FRAME)
    score = UNEQUAL.score(mixture, sources, 0.1)
    assert score.shape == sources.shape
    assert (score[..., HEARD:] == 0).all()
    assert torch.equal(score[..., :HEARD], UNEQUAL.score(mixture, sources[..., :HEARD], 0.1))
    step, nudges = 1e-5, torch.eye(3 * FRAME).double().reshape(-1, 1, 3, FRAME)
    for nudge, slope in zip(nudges, score.flatten(1).T, strict=True):
        above = UNEQUAL.log_likelihood(mixture, sources + step * nudge, 0.1)
        below = UNEQUAL.log_likelihood(mixture, sources - step * nudge, 0.1)
        assert torch.allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


def test_condition_on_leaves_what_is_not_heard() -> None:
    mixture, sources = normal(2, HEARD, seed=1), normal(2, 3, FRAME)
    conditioned = UNEQUAL.condition_on(mixture, sources, 0.5)
    assert conditioned.shape == sources.shape
    assert torch.equal(conditioned[..., HEARD:], sources[..., HEARD:])
    head = UNEQUAL.condition_on(mixture, sources[..., :HEARD], 0.5)
    assert torch.allclose(conditioned[..., :HEARD], head, rtol=1e-14)
    assert (conditioned[..., :HEARD] != sources[..., :HEARD]).all()


@pytest.mark.parametrize("sigma", [None, 0.6])
def test_the_model_has_sites_of_the_longer_frame(
    gaussian_priors: MakePriors, sigma: float | None
) -> None:
    mixing, mixture = Mixing((0.4, 1.3), 0.1), normal(HEARD, seed=1)
    priors = gaussian_priors(0.2, 0.9, multiples=(2, 4))
    drawn = poutine.trace(model).get_trace(mixture.float(), priors, mixing, sigma)
    assert list(drawn.stochastic_nodes) == ["one", "two"]
    assert all(drawn.nodes[name]["value"].shape == (FRAME,) for name in priors)
    assert drawn.nodes["_RETURN"]["value"].shape == (2, FRAME)
    assert drawn.nodes["mixture"]["fn"].event_shape == (HEARD,)
    sources = normal(2, FRAME)
    values = dict(zip(priors, sources, strict=True))
    trace = poutine.trace(poutine.condition(model, values)).get_trace(
        mixture, priors, mixing, sigma
    )
    levels = [prior.rms**2 + (sigma or 1e-3) ** 2 for prior in priors.values()]
    by_hand = sum(
        scipy.stats.norm(0, math.sqrt(level)).logpdf(part.numpy()).sum()
        for level, part in zip(levels, sources, strict=True)
    )
    mean = (0.4 * sources[0] + 1.3 * sources[1])[:HEARD]
    scale = math.sqrt((sigma or 0) ** 2 * (0.16 + 1.69) + 0.01)
    by_hand += scipy.stats.norm(mean.numpy(), scale).logpdf(mixture.numpy()).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("gains", [(0.4, 1.3), (0.3, 1.5, -0.8)])
@pytest.mark.parametrize("sigma", [0.05, 0.6])
def test_the_model_has_the_density_of_the_posterior(
    gaussian_priors: MakePriors, gains: tuple[float, ...], sigma: float
) -> None:
    mixing = Mixing(gains, 0.1)
    priors = gaussian_priors(0.2, 0.9, 0.5)
    priors = dict(list(priors.items())[: len(gains)])
    mixture, sources = normal(6, seed=1), normal(len(gains), 6)
    values = dict(zip(priors, sources, strict=True))
    trace = poutine.trace(poutine.condition(model, values)).get_trace(
        mixture, priors, mixing, sigma
    )
    assert list(trace.stochastic_nodes) == []
    assert list(trace.observation_nodes) == [*priors, "mixture"]
    assert torch.equal(trace.nodes["_RETURN"]["value"], sources)
    assert torch.equal(trace.nodes["mixture"]["value"], mixture)
    posterior = AnnealedPosterior(mixture[None], list(priors.values()), mixing)
    expected = posterior.evaluate(sources[None], sigma).log_density
    assert float(trace.log_prob_sum()) == pytest.approx(float(expected), rel=1e-12)
    by_hand = sum(
        scipy.stats.norm(0, math.sqrt(prior.rms**2 + sigma**2)).logpdf(part.numpy()).sum()
        for prior, part in zip(priors.values(), sources, strict=True)
    )
    mean = sum(gain * part for gain, part in zip(gains, sources, strict=True))
    scale = math.sqrt(sigma**2 * sum(a**2 for a in gains) + 0.01)
    by_hand += scipy.stats.norm(mean.numpy(), scale).logpdf(mixture.numpy()).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("levels", [(0.2, 0.9), (0.2, 0.9, 0.5)])
def test_the_model_draws_every_source_at_its_site(
    gaussian_priors: MakePriors, levels: tuple[float, ...]
) -> None:
    priors = gaussian_priors(*levels)
    mixing = Mixing((0.4, 1.3, 0.7)[: len(levels)], 0.1)
    mixture = torch.zeros(20_000)
    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace(mixture, priors, mixing)
    assert list(trace.stochastic_nodes) == list(priors)
    assert list(trace.observation_nodes) == ["mixture"]
    for name, level in zip(priors, levels, strict=True):
        drawn = trace.nodes[name]["value"]
        ratio = float(drawn.square().mean()) / (level**2 + 1e-6)  # its lowest noise level
        assert abs(ratio - 1) < 4.5 * math.sqrt(2 / len(drawn))
    law = trace.nodes["mixture"]["fn"].base_dist
    pairs = zip(mixing.gains, priors, strict=True)
    parts = [gain * trace.nodes[name]["value"] for gain, name in pairs]
    assert torch.allclose(law.mean, sum(parts), rtol=1e-5, atol=1e-6)
    assert torch.allclose(law.scale, torch.tensor(0.1))  # plain noise scale without a level


def test_one_gain_per_prior(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.2, 0.9)
    check_count(priors, Mixing.mean(2))
    with pytest.raises(ValueError, match=r"got 3 for 2 priors \(one, two\); expected") as caught:
        model(torch.zeros(4), priors, UNEQUAL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gains", "noise_scale", "match"),
    [
        ((), 0.1, r"gains: got \(\)"),
        ((1.0, 0.0), 0.1, r"gains: got \(1.0, 0.0\)"),
        ((1.0, math.nan), 0.1, "gains: got"),
        ((1.0, math.inf), 0.1, "gains: got"),
        ((1.0,), 0.0, "noise_scale: got 0.0"),
        ((1.0,), -0.1, "noise_scale: got -0.1"),
        ((1.0,), math.nan, "noise_scale: got nan"),
        ((1.0,), math.inf, "noise_scale: got inf"),
    ],
)
def test_numbers_out_of_range(gains: tuple[float, ...], noise_scale: float, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        Mixing(gains, noise_scale)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gains_are_those_of_the_set(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.2)
    assert default_gains(priors) == (0.5, 0.5)
    for prior in priors.values():
        del prior.mixing
    assert default_gains(priors) == (1.0, 1.0)  # of a prior that states nothing


def test_priors_of_sets_that_disagree_need_gains(gaussian_priors: MakePriors) -> None:
    priors = gaussian_priors(0.5, 0.2)
    priors["one"].mixing = "sum"
    message = "^priors: got mixing 'sum' for one, 'mean' for two, expected one of all; give gains$"
    with pytest.raises(ValueError, match=message):
        default_gains(priors)


FOUR = Mixing((0.3, -0.8), 0.1)
Model = Callable[..., Tensor]


def network_priors(**times: int) -> Priors:
    """Priors of both families."""
    torch.manual_seed(0)
    networks = WaveNet(WAVENET), FloWaveNet(NESTED)
    for network in networks:
        randomise(network)
    wavenet, flow = networks
    first, second = times.get("flute", 16), times.get("oboe", 16)
    return {
        "flute": WaveNetPrior(wavenet, name="flute", sample_rate=8_000, time=first),
        "oboe": FloWaveNetPrior(flow, name="oboe", sample_rate=8_000, time=second),
    }


PAIR = network_priors()


def known(mixture: Tensor | None = None) -> Tensor:
    return model(mixture, PAIR, FOUR)


def latent(mixture: Tensor | None = None) -> Tensor:
    return model(mixture, PAIR, draw_mixing(PAIR, "infer", "infer"))


both = pytest.mark.parametrize("run", [known, latent])
batches = pytest.mark.parametrize("batch", [(1,), (2,), (3,), (2, 3)], ids=str)


def in_plates(run: Model, batch: tuple[int, ...]) -> Model:
    """The model in a plate for every axis of a batch."""

    def wrapped(mixture: Tensor | None = None) -> Tensor:
        with ExitStack() as plates:
            for dim in range(-len(batch), 0):
                plates.enter_context(pyro.plate(f"plate {dim}", batch[dim], dim=dim))
            return run(mixture)

    return wrapped


def values_of(trace: poutine.Trace) -> dict[str, Tensor]:
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}


@both
@batches
@pytest.mark.parametrize("observed", ["one", "each", "none"])
def test_a_model_in_plates_is_as_many_models(
    run: Model, batch: tuple[int, ...], observed: str
) -> None:
    """As many draws as sources must not be taken for sources, nor the other way round."""
    pyro.set_rng_seed(0)  # a log density near 0 has no relative error to speak of
    mixture = {"one": torch.randn(16), "each": torch.randn(*batch, 16), "none": None}[observed]
    trace = poutine.trace(in_plates(run, batch)).get_trace(mixture)
    trace.compute_log_prob()
    values = values_of(trace)
    assert trace.nodes["_RETURN"]["value"].shape == (*batch, 2, 16)
    assert trace.nodes["mixture"]["log_prob"].shape == batch
    for index in product(*map(range, batch)):
        own = {name: value[index] for name, value in values.items() if "plate" not in name}
        heard = mixture[index] if observed == "each" and mixture is not None else mixture
        single = poutine.trace(poutine.condition(run, own)).get_trace(heard)
        single.compute_log_prob()
        assert torch.equal(
            trace.nodes["_RETURN"]["value"][index], torch.stack([own[n] for n in PAIR])
        )
        for name in (*PAIR, "mixture"):
            got, expected = (part.nodes[name]["log_prob"] for part in (trace, single))
            assert float(got[index]) == pytest.approx(float(expected), rel=1e-4), name


@both
@batches
def test_mixtures_of_a_batch_have_sources_of_their_own(run: Model, batch: tuple[int, ...]) -> None:
    mixtures = torch.randn(*batch, 16)
    trace = poutine.trace(run).get_trace(mixtures)
    trace.compute_log_prob()
    shape = tuple(size for size in batch if size > 1 or batch[0] > 1)
    for name in PAIR:
        assert trace.nodes[name]["log_prob"].shape == shape
        assert trace.nodes[name]["value"].reshape(-1, 16).unique(dim=0).shape[0] == math.prod(shape)
    assert trace.nodes["mixture"]["log_prob"].shape == batch


@both
@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (2,), (3,)], ids=str)
def test_predictive_in_parallel(run: Model, draws: int, batch: tuple[int, ...]) -> None:
    mixture = torch.randn(*batch, 16)
    prior = Predictive(poutine.uncondition(run), num_samples=draws, parallel=True)(mixture)
    assert all(prior[name].shape == (draws, *batch, 16) for name in (*PAIR, "mixture"))
    given = {name: torch.randn(draws, *batch, 16) for name in PAIR}
    if run is latent:  # sites outside of the plates of the batch
        ones = torch.ones(draws, *(1,) * len(batch))
        given |= {"gains": ones[..., None] * torch.tensor([0.3, 1.8]), "noise_scale": 1e-6 * ones}
    got = Predictive(poutine.uncondition(run), given, return_sites=["mixture"], parallel=True)
    a, b = (0.3, 1.8) if run is latent else FOUR.gains
    expected = a * given["flute"] + b * given["oboe"]
    off = (got(mixture)["mixture"] - expected).abs().max()
    assert float(off) < (1e-4 if run is latent else 6 * 0.1)


@both
@pytest.mark.parametrize("particles", [1, 2, 3])
def test_an_elbo_of_vectorized_particles(run: Model, particles: int) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    mixture, guide = torch.randn(16), AutoDelta(run)
    guide(mixture)
    losses = [
        Trace_ELBO(particles, max_plate_nesting=0, vectorize_particles=how).loss(
            run, guide, mixture
        )
        for how in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@both
def test_plates_may_be_subsampled(run: Model) -> None:
    mixtures = torch.randn(6, 16)

    def subsampled() -> Tensor:
        with pyro.plate("mixtures", 6, subsample_size=2) as chosen:
            return run(mixtures[chosen])

    assert poutine.trace(subsampled).get_trace().nodes["_RETURN"]["value"].shape == (2, 2, 16)


@pytest.mark.parametrize(
    ("times", "heard", "frame"),
    [({}, 16, 16), ({"flute": 12}, 12, 12), ({"flute": 14}, 14, 16), ({"oboe": 8}, 8, 8)],
)
def test_a_mixture_that_nobody_observed_is_as_long_as_the_priors(
    times: dict[str, int], heard: int, frame: int
) -> None:
    drawn = Predictive(
        lambda mixture=None: model(mixture, network_priors(**times), FOUR), num_samples=3
    )()
    assert drawn["mixture"].shape == (3, heard)
    assert drawn["flute"].shape == drawn["oboe"].shape == (3, frame)
    off = drawn["mixture"] - FOUR.mix(torch.stack([drawn[name] for name in PAIR], -2))[..., :heard]
    assert 0.05 < float(off.std()) < 0.15


@both
def test_what_else_pyro_does_with_a_model(run: Model) -> None:
    mixture = torch.randn(16)
    relations = get_model_relations(run, (mixture,))
    assert set(PAIR) <= set(relations["sample_sample"]["mixture"])
    assert relations["observed"] == ["mixture"]
    mcmc = MCMC(NUTS(run, max_tree_depth=1), 2, 1, disable_progbar=True)
    mcmc.run(mixture)
    assert all(mcmc.get_samples()[name].shape == (2, 16) for name in PAIR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": [0.1, 0.2]}, r"mixture: got \[0.1, 0.2\], expected a tensor"),
        ({"mixture": torch.tensor(0.1)}, r"mixture: got tensor\(0.1000\), expected a tensor"),
        ({"priors": {}}, "priors: got none, expected priors by source name"),
        ({"priors": "toy"}, "priors: got 'toy', expected .*; load them first"),
        ({"priors": {"mixture": PAIR["flute"], "oboe": PAIR["oboe"]}}, "priors: got a source of"),
        ({"mixing": (0.5, 0.5)}, r"mixing: got \(0.5, 0.5\), expected Mixing"),
        ({"sigma": "0.1"}, "sigma: got '0.1', expected 0.01 to"),
    ],
)
def test_what_is_no_model_is_said_in_a_line(change: dict[str, Any], message: str) -> None:
    arguments = {"mixture": torch.zeros(16), "priors": PAIR, "mixing": FOUR} | change
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        model(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gains",
    [[0.5, 2], np.array([0.5, 2.0]), torch.tensor([0.5, 2.0]), (np.float32(0.5), torch.tensor(2))],
    ids=str,
)
def test_gains_of_any_type_are_the_same_gains(gains: Any) -> None:
    assert Mixing(gains, np.float64(0.25)) == Mixing((0.5, 2.0), 0.25)  # type: ignore[arg-type]
    assert hash(Mixing(gains)) == hash(Mixing((0.5, 2.0)))


@pytest.mark.parametrize(
    "gains",
    [0.5, "ab", [[0.5, 0.5]], np.ones((2, 2)), [None, 1], [True, 1], {"a": 1}, [1j]],
    ids=str,
)
def test_gains_of_no_use(gains: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^gains: got .*, expected a number of 1e-07 to 1e\+06"
    ) as caught:
        Mixing(gains)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [1e300, 1e7, 1e-8, -1e300, 1e-320])
def test_gains_and_noise_have_squares_in_float32(number: float) -> None:
    with pytest.raises(ValueError, match=r"^gains: got .*, expected a number of"):
        Mixing((number, 1.0))
    with pytest.raises(ValueError, match=r"^noise_scale: got"):
        Mixing((1.0,), number)


def test_a_model_of_samples_that_are_no_floats(gaussian_priors: Callable) -> None:
    for mixture in (torch.ones(8, dtype=torch.int16), torch.ones(8, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"^mixture: got .* of floats, or None"):
            model(mixture, gaussian_priors(0.3), Mixing.mean(1))


def test_the_gain_of_a_level_is_that_of_independent_sources() -> None:
    priors = load_priors("music")
    generator = torch.Generator().manual_seed(0)
    sources = torch.stack(
        [prior.rms * torch.randn(40_000, generator=generator) for prior in priors.values()]
    )
    mixtures = torch.tensor([0.5, 3.0])[:, None] * sources.sum(0)
    assert level_gain(mixtures, priors).tolist() == pytest.approx([0.5, 3.0], rel=0.02)
