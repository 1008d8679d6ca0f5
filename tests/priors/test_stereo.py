"""Priors of two channels, and what separates with them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep import load_priors, separate
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing, model
from pyro_sep.priors import audit, save_priors
from pyro_sep.priors.io import save_prior
from pyro_sep.priors.stereo import (
    Place,
    StereoPrior,
    channels_of,
    in_stereo,
)
from pyro_sep.priors.waveform import WaveformPrior
from pyro_sep.separation import estimate_cost, separate_batch, separation_from_draws
from pyro_sep.trace import load_trace, save_trace
from pyro_sep.trace.channels import deinterleave, interleave
from pyro_sep.trace.dataset import log_likelihood

LEVEL, SIGMA = 0.5, 0.2
FAST = {"levels": 6, "candidates": 1, "cooling": 2, "warmup": 2, "swaps": 0, "replicas": 0}


def law(place: Place, time: int = 1, sigma: float = SIGMA) -> StereoPrior:
    return StereoPrior(GaussianPrior("white", LEVEL, time), place, sigma)


def covariance(place: Place, sigma: float = SIGMA) -> Tensor:
    """Of left and right of an audio sample, in closed form."""
    shared = LEVEL**2 * (1 if place == "centre" else 0)
    noisy = LEVEL**2 + sigma**2
    return torch.tensor([[noisy, shared], [shared, noisy]], dtype=torch.float64)


@pytest.mark.parametrize("place", ["centre", "wide"])
def test_the_density_is_the_closed_form(place: Place) -> None:
    audio = torch.randn(5, 3, 2, 7, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance(place))
    expected = exact.log_prob(audio.mT).sum(-1)
    assert torch.allclose(law(place, 7).log_prob(interleave(audio)), expected)


@pytest.mark.parametrize("place", ["centre", "wide"])
def test_the_density_integrates_to_one(place: Place) -> None:
    edge = 7 * math.hypot(LEVEL, SIGMA)
    axis = torch.linspace(-edge, edge, int(2 * edge / SIGMA) + 1, dtype=torch.float64)
    total = law(place).log_prob(torch.cartesian_prod(axis, axis)).exp().sum()
    assert float(total * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("place", ["centre", "wide"])
def test_samples_have_the_covariance(place: Place) -> None:
    torch.manual_seed(0)
    count = 40_000
    audio = deinterleave(law(place, 1).sample((count,)))[..., 0].double()
    found = audio.T @ audio / count
    assert torch.allclose(found, covariance(place), atol=4 * math.sqrt(2 / count) * 0.29)


def test_samples_of_a_network_are_of_its_density() -> None:
    """The mean of log_prob over draws is the mono one's, by the chain rule of a change of axes."""
    sine = load_priors("toy/oracle")["sine"].frame(64)
    torch.manual_seed(0)
    for place, narrowing in (("wide", 1.0), ("centre", math.sqrt(2))):
        prior = StereoPrior(sine, place, 0.3)
        mono = sine.condition(0.3 / narrowing)
        first = mono.log_prob(mono.sample((2_000,)))
        second = mono.log_prob(mono.sample((2_000,)))
        if place == "centre":
            half = 0.3 / math.sqrt(2) * torch.randn(2_000, 64)
            noise = torch.distributions.Normal(0.0, 0.3 / math.sqrt(2)).log_prob(half).sum(-1)
            second = noise - 64 * math.log(2)
        found, expected = prior.log_prob(prior.sample((2_000,))), first + second
        error = math.hypot(float(found.std()), float(expected.std())) / math.sqrt(2_000)
        assert abs(float(found.mean() - expected.mean())) < 4 * error


def test_it_is_a_prior_and_a_pyro_distribution() -> None:
    prior = StereoPrior(GaussianPrior("white", LEVEL, 8, multiple=4), "centre")
    assert (prior.name, prior.sample_rate, prior.channels) == ("white", 16_000, 2)
    assert (prior.rms, prior.multiple, prior.event_shape) == (LEVEL, 8, (16,))
    assert prior.sigmas == pytest.approx((1e-3 * math.sqrt(2), 10 * math.sqrt(2)))
    assert float(prior.sigma) == pytest.approx(1e-3 * math.sqrt(2))
    changed = prior.condition(0.3).frame(24)
    assert (changed.event_shape, changed.place) == ((24,), "centre")
    assert float(changed.sigma) == pytest.approx(0.3)
    priors = {"white": prior}
    trace = pyro.poutine.trace(model).get_trace(torch.zeros(20), priors, Mixing((1.0,)), 0.3)
    assert trace.nodes["white"]["value"].shape == (24,)
    assert trace.log_prob_sum().isfinite()


def test_a_batch_of_noise_levels() -> None:
    saw = load_priors("toy")["saw"].frame(64)
    sigma = torch.tensor([[0.1], [0.2]])
    for place in ("centre", "wide"):
        batch = StereoPrior(saw, place, sigma)
        assert (batch.batch_shape, batch.event_shape) == ((2, 1), (128,))
        audio = batch.sample((3,))
        assert audio.shape == (3, 2, 1, 128)
        alone = StereoPrior(saw, place, 0.2).log_prob(audio[:, 1])
        assert torch.allclose(batch.log_prob(audio)[:, 1], alone, rtol=1e-4, atol=1e-2)
        assert batch.expand((2, 5)).sample().shape == (2, 5, 128)


def test_own_draws_surprise_it_as_much_as_noise_does() -> None:
    torch.manual_seed(0)
    for place in ("centre", "wide"):
        prior = law(place, 500)
        assert float(prior.misfit(prior.sample((200,))).mean()) == pytest.approx(1, abs=0.02)


def test_the_gradient_is_that_of_the_density() -> None:
    value = 0.3 * torch.randn(4, 6, dtype=torch.float64)
    for place in ("centre", "wide"):
        assert torch.autograd.gradcheck(law(place, 3).log_prob, value.clone().requires_grad_())


def test_places_by_name() -> None:
    priors = load_priors("guitar")
    stereo = in_stereo(priors, ["guitar"])
    assert {name: prior.place for name, prior in stereo.items()} == {
        "guitar": "wide",
        "rest": "centre",
    }
    assert (channels_of(priors), channels_of(stereo)) == (1, 2)
    assert stereo["guitar"].treble == priors["guitar"].treble
    with pytest.raises(ValueError, match="wide: got 'bass', expected some of guitar, rest"):
        in_stereo(priors, ["bass"])
    with pytest.raises(ValueError, match="priors: got some of two channels already"):
        in_stereo(stereo)
    with pytest.raises(ValueError, match="priors: got some of one channel and some of two"):
        channels_of({"rest": priors["rest"], "guitar": stereo["guitar"]})
    with pytest.raises(ValueError, match="place: got 'left', expected one of centre, wide"):
        StereoPrior(priors["rest"], "left")  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["wide", "centre"])
def test_a_batch_of_levels_has_a_density_each(place: Any) -> None:
    mono, frame = WaveformPrior.of("saw").frame(64), torch.randn(128)
    levels = torch.tensor([0.1, 0.3, 0.5])
    each = [StereoPrior(mono, place, float(level)).log_prob(frame) for level in levels]
    found = StereoPrior(mono, place, levels).log_prob(frame)
    assert torch.allclose(found, torch.stack(each), rtol=1e-5)


def test_names_of_wide_sources_may_be_any_collection() -> None:
    mono = {"wide": GaussianPrior("wide", 0.3), "centre": GaussianPrior("centre", 0.5)}
    assert in_stereo(mono, (name for name in ["wide"]))["wide"].place == "wide"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wide: got 'wide', expected a list of names"):
        in_stereo(mono, "wide")


def gaussians() -> dict[str, StereoPrior]:
    """A wide source and one in the centre, both white."""
    mono = {
        "wide": GaussianPrior("wide", 0.3, multiple=2),
        "centre": GaussianPrior("centre", 0.5, multiple=2),
    }
    return in_stereo(mono, ["wide"])


def test_draws_have_the_posterior_of_both_channels() -> None:
    """Of an audio sample: the centre's is known from both channels at once, in closed form."""
    torch.manual_seed(0)
    time, sigma = 400, 0.1
    mixture = torch.randn(2, time)
    options = {"settings": None, "sigma_min": sigma, "sigma_freeze": 0.5, "sigma_max": 1.0}
    settings = {"warmup": 100, "draws": 200, "thin": 5, "adjusted": True, "chains": 2}
    result = separate(
        mixture,
        gaussians(),
        gains=(1, 1),
        noise_scale=0.1,
        constraint="gaussian",
        estimate="mean",
        **(FAST | options | settings),
    )
    # The law of clean draws, and what they are moved by on their mixture: see ``draw_clean``.
    eye = torch.eye(2, dtype=torch.float64)
    priors = [0.3**2 * eye, torch.full((2, 2), 0.5**2, dtype=torch.float64)]
    total = sum(priors) + (4 * sigma**2 + 0.1**2) * eye
    means = [own @ torch.linalg.solve(total, mixture.double()) for own in priors]
    left, right = (mixture - sum(means)).unbind()
    # By what denoising leaves open of mean and difference; of the latter the centre has none.
    wide, centre = 0.3**2 / (0.3**2 + sigma**2), 2 * 0.5**2 / (2 * 0.5**2 + sigma**2)
    shares = [[wide / (wide + centre + 1), wide / (wide + 1)], [centre / (wide + centre + 1), 0.0]]
    posterior = result.trace["posterior"].to_dataset().mean(("chain", "draw"))
    for k, (mean, share) in enumerate(zip(means, shares, strict=True)):
        middle = mean.mean(0) + share[0] * (left + right) / 2
        side = (mean[0] - mean[1]) / 2 + share[1] * (left - right) / 2
        if k == 1:
            assert float(side.abs().max()) < 1e-12
            assert (posterior["side"].values[k] ** 2).mean() < 1e-4
        for name, exact in (("sources", middle), ("side", side))[: 2 - k]:
            found = torch.from_numpy(posterior[name].values[k]).double()
            slope = float((found * exact).sum() / exact.square().sum())
            assert slope == pytest.approx(1, abs=0.03), (k, name)


def test_a_source_in_the_centre_has_next_to_nothing_on_the_side() -> None:
    torch.manual_seed(0)
    true = {"wide": 0.3 * torch.randn(2, 600), "centre": 0.5 * torch.randn(1, 600).expand(2, -1)}
    mixture = torch.stack([*true.values()]).sum(0)
    result = separate(mixture, gaussians(), gains=(1, 1), draws=20, **FAST)
    assert result.side is not None
    left, right = (result.contributions + sign * result.side for sign in (1, -1))
    assert torch.allclose(left.sum(0), mixture[0], atol=1e-3)
    assert torch.allclose(right.sum(0), mixture[1], atol=1e-3)
    power = result.side.square().mean(-1)
    assert float(power[1]) < 0.02 * float(power[0])


def test_what_is_given_has_a_channel_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixtures, true = 0.5 * torch.randn(3, 2, 300), torch.randn(3, 2, 2, 300)
    priors, options = gaussians(), {"gains": (1, 1), "draws": 3, **FAST}
    results = separate_batch(mixtures, priors, true_sources=true, **options)
    assert len(results) == 3
    first, trace = results[0], results[0].trace
    assert (first.sources.shape, first.sample_rate) == ((2, 300), 16_000)
    assert trace["posterior"]["side"].dims == ("chain", "draw", "source", "time")
    assert trace.attrs["places"] == '{"wide": "wide", "centre": "centre"}'
    known, observed = trace["constant_data"], trace["observed_data"]
    assert torch.allclose(torch.from_numpy(known["true_sources"].values), true[0].mean(1))
    half = (mixtures[0, 0] - mixtures[0, 1]) / 2
    assert torch.allclose(torch.from_numpy(observed["side"].values), half)
    assert float(trace["posterior"]["time"][-1]) == pytest.approx(299 / 16_000)
    save_trace(trace, tmp_path / "trace.nc")
    assert load_trace(tmp_path / "trace.nc").identical(trace)
    stored = separate_batch(
        mixtures[:1], priors, true_sources=true[:1], store=[tmp_path / "a.zarr"], **options
    )
    assert stored[0].trace["posterior"]["side"].shape == trace["posterior"]["side"].shape

    stems = torch.stack([mixtures / 2, mixtures / 2], 1)
    begun = separate_batch(
        mixtures, priors, initial=stems, gains=(1, 1), draws=3, cooling=2, warmup=2
    )
    assert begun[0].trace["constant_data"]["initial"].shape == (2, 300)
    cost = estimate_cost(mixtures[0], priors, gains=(1, 1), draws=3, **FAST)
    assert cost.gradients > 0

    with pytest.raises(ValueError, match=r"mixture: got shape \(300,\), expected \(2, time\), as"):
        separate(mixtures[0, 0], priors, **options)
    with pytest.raises(ValueError, match=r"mixtures: got shape \(3, 300\), expected \(mixture, 2,"):
        separate_batch(mixtures[:, 0], priors, **options)
    with pytest.raises(ValueError, match=r"true_sources: .* \(source, channel, time\)"):
        separate(mixtures[0], priors, true_sources=true[0, :, 0], **options)


def test_the_likelihood_is_that_of_both_channels() -> None:
    torch.manual_seed(0)
    mixture, gamma = 0.5 * torch.randn(2, 300), 0.05
    how = {"constraint": "gaussian", "noise_scale": gamma, "gains": (1, 0.5)}
    trace = separate(mixture, gaussians(), draws=3, **how, **FAST).trace
    drawn = trace["posterior"].to_dataset().isel(chain=0, draw=1)
    mid, side = (
        torch.from_numpy(drawn[name].values).double() * torch.tensor([[1.0], [0.5]])
        for name in ("sources", "side")
    )
    heard = torch.stack([(mid + side).sum(0), (mid - side).sum(0)])
    expected = torch.distributions.Normal(heard, gamma).log_prob(mixture.double()).sum(0)
    likelihood = log_likelihood(trace)
    assert likelihood is not None
    found = torch.from_numpy(likelihood["mixture"].values[0, 1])
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_networks_of_another_type_are_refused() -> None:
    priors = {name: prior.to(torch.float64) for name, prior in load_priors("guitar").items()}
    with pytest.raises(ValueError, match=r"priors: got weights of torch.float64 for 'guitar'"):
        separate(torch.randn(2, 512), in_stereo(priors, ["guitar"]))


def test_draws_of_another_sampler() -> None:
    torch.manual_seed(0)
    noisy, mixture = torch.randn(1, 3, 2, 512), torch.randn(2, 256)
    mixing = Mixing((1.0, 1.0))
    result = separation_from_draws(noisy, mixture, gaussians(), mixing, sigma=0.5)
    assert result.side is not None
    assert (result.sources.shape, result.side.shape) == ((2, 256), (2, 256))


def test_the_posterior_of_frames_is_exact_on_both_channels() -> None:
    mixture = interleave(torch.randn(1, 2, 16))
    target = AnnealedPosterior(mixture, [*gaussians().values()], Mixing((1.0, 1.0)), exact=True)
    start = target.start(0.5)
    assert torch.allclose(start.sum(1), mixture, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: StereoPrior(StereoPrior(p, "wide"), "wide"), "got a StereoPrior, expected the"),
        (lambda p: StereoPrior("guitar", "wide"), "prior: got a str, expected the prior of a"),
        (lambda p: StereoPrior(p, "wide", "loud"), "sigma: got 'loud', expected 0.002 to 0.25"),
        (lambda p: StereoPrior(p, "centre", 0.002), "expected 0.00282843 to 0.353553, the noise"),
        (lambda p: StereoPrior(p, "wide", 0.1).condition(-1), "sigma: got -1, expected 0.002"),
        (lambda p: StereoPrior(p, "wide").frame(257), "got 257 audio samples, expected a positive"),
        (lambda p: StereoPrior(p, "wide").frame(0), "got 0 audio samples, expected a positive mul"),
        (
            lambda p: StereoPrior(p, "wide").log_prob(torch.zeros(2, 512)),
            r"shape \(2, 512\), ",
        ),
        (lambda p: StereoPrior(p, "wide").misfit(torch.zeros(7)), r"got shape \(7,\), expected"),
        (
            lambda p: StereoPrior(p, "wide").log_prob([0.0]),
            r"value: got \[0.0\], expected",
        ),
        (lambda p: StereoPrior(p, "wide").log_prob(torch.ones(8).int()), "value: got torch.int32"),
        (lambda p: in_stereo({p.name: p}, None), "wide: got None, expected a list of names"),
        (lambda p: in_stereo({p.name: p}, [["a"]]), r"wide: got \['a'\], expected some of guitar"),
        (lambda p: StereoPrior(p, "wide").condition([0.1, 9]), r"sigma: got \[0.1, 9\], expected"),
        (lambda p: save_priors({"a": 3}, Path("x")), "prior: got a int, expected a NetworkPrior"),
        (
            lambda p: save_priors(in_stereo({p.name: p}), Path("x")),
            "a StereoPrior, expected a Net",
        ),
        (
            lambda p: save_prior(in_stereo({p.name: p})[p.name], Path("x")),
            "its mono audio, prior",
        ),
        (lambda p: audit(in_stereo({p.name: p}), {p.name: torch.zeros(1, 512)}), "of two channels"),
    ],
)
def test_what_is_none_is_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(load_priors("guitar")["guitar"].frame(512))


def test_levels_may_be_a_list() -> None:
    prior = StereoPrior(load_priors("guitar")["guitar"], "wide").condition([0.1, 0.2])
    assert prior.batch_shape == (2,)


def test_a_mixture_is_long_enough_in_each_channel() -> None:
    with pytest.raises(ValueError, match="mixture: got 255 audio samples, expected at least 256"):
        separate(torch.randn(2, 255), gaussians())
    with pytest.raises(ValueError, match="mixture: got 255 audio samples, expected at least 256"):
        estimate_cost(torch.randn(2, 255), gaussians())
    noisy, mixing = torch.randn(1, 3, 2, 512), Mixing((1.0, 1.0))
    with pytest.raises(ValueError, match="mixture: got NaN or infinity, expected finite audio"):
        separation_from_draws(noisy, torch.full((2, 256), math.nan), gaussians(), mixing, sigma=0.5)


def test_a_checkpoint_of_other_places_is_named(tmp_path: Path) -> None:
    mixture, options = torch.randn(2, 256), {"draws": 3, "checkpoint": tmp_path / "a", **FAST}
    separate(mixture, gaussians(), **options)
    mono = {name: prior.mono for name, prior in gaussians().items()}
    named = r"a run of .*places .*'wide'.*, expected .*places .*'centre'"
    with pytest.raises(ValueError, match=named):
        separate(mixture, in_stereo(mono), **options)


def test_long_audio_is_evaluated_in_segments() -> None:
    priors = load_priors("guitar")
    both = in_stereo(priors, ["guitar"])
    frames = 0.01 * torch.randn(1, 2 * 6_000, generator=torch.Generator().manual_seed(0))
    for name, prior in both.items():
        whole = prior.frame(12_000).log_prob(frames)
        parts = prior.in_segments(0.25)
        assert (parts.place, parts.sigma) == (prior.place, prior.sigma)
        assert priors[name].network.window == 1_000
        assert torch.allclose(parts.frame(12_000).log_prob(frames), whole, rtol=1e-4)
