import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from conftest import GaussianPrior, MakePriors
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_sep.inference import posterior
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.spike_slab import SpikeAndSlab

GAINS = (0.3, 1.5, -0.8)
LEVELS = (0.2, 0.9, 0.5)
SIGMA = 0.4
BATCH, TIME = 6, 5
FRAME = 8  # of sources longer than their mixture


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def target(gaussian_priors: MakePriors) -> AnnealedPosterior:
    priors = list(gaussian_priors(*LEVELS).values())
    return AnnealedPosterior(normal(BATCH, TIME, seed=1), priors, Mixing(GAINS, 0.1))


def log_priors(sources: Tensor) -> Tensor:
    scales = [[math.sqrt(level**2 + SIGMA**2)] for level in LEVELS]
    scale = torch.tensor(scales, dtype=torch.float64)
    return Normal(torch.zeros_like(sources), scale).log_prob(sources).sum(-1)


def log_density(mixture: Tensor, sources: Tensor) -> Tensor:
    mean = GAINS[0] * sources[:, 0] + GAINS[1] * sources[:, 1] + GAINS[2] * sources[:, 2]
    scale = math.sqrt(SIGMA**2 * (0.09 + 2.25 + 0.64) + 0.01)
    return log_priors(sources).sum(1) + Normal(mean, scale).log_prob(mixture).sum(-1)


def test_the_density_is_the_priors_and_the_likelihood(target: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, TIME)
    evaluation = target.evaluate(sources, SIGMA)
    assert evaluation.log_density.shape == (BATCH,)
    assert torch.allclose(evaluation.parts, log_priors(sources), rtol=1e-12)
    assert torch.allclose(evaluation.log_density, log_density(target.mixture, sources), rtol=1e-12)
    assert not any(value.requires_grad for value in evaluation)


def test_the_gradient_is_that_of_the_density(target: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, TIME)
    gradient = target.evaluate(sources, SIGMA).gradient
    leaf = sources.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_density(target.mixture, leaf).sum(), leaf)
    assert torch.allclose(gradient, expected, rtol=1e-10)
    step, nudges = 1e-5, torch.eye(3 * TIME).double().reshape(-1, 3, TIME)
    for nudge, slope in zip(nudges, gradient.flatten(1).T, strict=True):
        above = target.evaluate(sources + step * nudge, SIGMA).log_density
        below = target.evaluate(sources - step * nudge, SIGMA).log_density
        assert torch.allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.fixture
def longer(gaussian_priors: MakePriors) -> AnnealedPosterior:
    """Of sources that go on after their mixture: the first two priors take even frames alone."""
    priors = list(gaussian_priors(*LEVELS, multiples=(2, 4, 1)).values())
    return AnnealedPosterior(normal(BATCH, TIME, seed=1), priors, Mixing(GAINS, 0.1))


def test_a_frame_is_as_long_as_the_mixture_or_a_little_longer(
    target: AnnealedPosterior, longer: AnnealedPosterior
) -> None:
    assert target.frame == TIME
    assert longer.frame == FRAME
    assert longer.select(torch.tensor([0])).frame == FRAME


def test_the_unheard_part_of_the_sources_has_its_prior_alone(longer: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, FRAME)
    evaluation = longer.evaluate(sources, SIGMA)
    assert torch.allclose(evaluation.parts, log_priors(sources), rtol=1e-12)
    head, tail = sources[..., :TIME], sources[..., TIME:]
    expected = log_density(longer.mixture, head) + log_priors(tail).sum(1)
    assert torch.allclose(evaluation.log_density, expected, rtol=1e-12)
    variance = torch.tensor([[level**2 + SIGMA**2] for level in LEVELS]).double()
    assert torch.allclose(evaluation.gradient[..., TIME:], -tail / variance, rtol=1e-6)
    step, nudges = 1e-5, torch.eye(3 * FRAME).double().reshape(-1, 3, FRAME)
    for nudge, slope in zip(nudges, evaluation.gradient.flatten(1).T, strict=True):
        above = longer.evaluate(sources + step * nudge, SIGMA).log_density
        below = longer.evaluate(sources - step * nudge, SIGMA).log_density
        assert torch.allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


def test_the_unheard_part_is_denoised_by_its_prior_alone(
    target: AnnealedPosterior, longer: AnnealedPosterior
) -> None:
    sources = normal(BATCH, 3, FRAME)
    clean = longer.denoise(sources, longer.evaluate(sources, SIGMA), SIGMA)
    head = sources[..., :TIME]
    expected = target.denoise(head, target.evaluate(head, SIGMA), SIGMA)
    assert torch.allclose(clean[..., :TIME], expected, rtol=1e-10)
    shrink = torch.tensor([[level**2 / (level**2 + SIGMA**2)] for level in LEVELS]).double()
    assert torch.allclose(clean[..., TIME:], shrink * sources[..., TIME:], rtol=1e-6)


def test_cross_log_prior_is_that_of_whole_frames(longer: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, FRAME)
    own = torch.diagonal(longer.cross_log_prior(sources, SIGMA), dim1=1, dim2=2)
    assert torch.allclose(own, log_priors(sources), rtol=1e-12)


def test_cross_log_prior_is_that_of_every_share_under_every_prior(
    target: AnnealedPosterior,
) -> None:
    sources = normal(BATCH, 3, TIME)
    cross = target.cross_log_prior(sources, SIGMA)
    assert cross.shape == (BATCH, 3, 3)
    for i, level in enumerate(LEVELS):
        law = Normal(torch.zeros(1).double(), math.sqrt(level**2 + SIGMA**2))
        for j in range(3):
            share = GAINS[j] * sources[:, j] / GAINS[i]
            assert torch.allclose(cross[:, i, j], law.log_prob(share).sum(-1), rtol=1e-12)
    # DrawRecorder as it is, every source has its own log prior.
    own = torch.diagonal(cross, dim1=1, dim2=2)
    assert torch.allclose(own, target.evaluate(sources, SIGMA).parts, rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2 * TIME, 4 * TIME + 1])
def test_memory_is_bounded_and_changes_nothing(
    target: AnnealedPosterior, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    sources = normal(BATCH, 3, TIME)
    evaluation = target.evaluate(sources, SIGMA)
    cross = target.cross_log_prior(sources, SIGMA)
    sizes: list[int] = []
    law = type(target.priors[0])
    log_prob = law.log_prob

    def recorded(self: Any, value: Tensor) -> Tensor:
        sizes.append(value.numel())
        return log_prob(self, value)

    monkeypatch.setattr(law, "log_prob", recorded)
    monkeypatch.setattr(posterior, "CHUNK", chunk)
    for whole, chunked in zip(evaluation, target.evaluate(sources, SIGMA), strict=True):
        assert torch.equal(whole, chunked)
    assert torch.equal(target.cross_log_prior(sources, SIGMA), cross)
    assert max(sizes) == max(TIME, chunk // TIME * TIME)
    assert sum(sizes) == (1 + 3) * BATCH * 3 * TIME


def test_denoising_is_tweedie_and_the_mixture(target: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, TIME)
    clean = target.denoise(sources, target.evaluate(sources, SIGMA), SIGMA)
    shrunk = torch.stack(
        [level**2 / (level**2 + SIGMA**2) * sources[:, k] for k, level in enumerate(LEVELS)], 1
    )
    gains = torch.tensor(GAINS, dtype=torch.float64)[:, None]
    residual = target.mixture - (gains * shrunk).sum(1)
    pull = SIGMA**2 / (SIGMA**2 * 2.98 + 0.01)
    expected = shrunk + pull * gains * residual[:, None]
    assert torch.allclose(clean, expected, atol=1e-12)
    # What is left of the residual is the share of the mixing noise.
    after = target.mixture - target.mixing.mix(clean)
    assert torch.allclose(after, residual * 0.01 / (SIGMA**2 * 2.98 + 0.01), atol=1e-12)


class Plane(GaussianPrior):
    """Gaussian sources in a plane through 0, of std 20 along each of two directions."""

    def __init__(self, seed: int, sigma: float = SIGMA) -> None:
        super().__init__("plane", 20.0, TIME, sigma)
        self.seed, axes = seed, torch.linalg.qr(normal(TIME, 2, seed=seed)).Q
        self.clean = self.rms**2 * axes @ axes.T

    def condition(self, sigma: float) -> "Plane":
        return Plane(self.seed, sigma)

    def frame(self, time: int) -> "Plane":
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        covariance = self.clean + self.sigma**2 * torch.eye(TIME)
        return MultivariateNormal(torch.zeros(TIME).double(), covariance).log_prob(value)


def given(prior: Tensor, mix: Tensor, noise: float, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``N(0, prior)`` given its ``mix`` in white noise of this variance."""
    pull = prior @ mix.T @ torch.linalg.inv(mix @ prior @ mix.T + noise * torch.eye(TIME))
    return pull @ mixture, prior - pull @ mix @ prior


@pytest.mark.parametrize("exact", [False, True])
def test_clean_draws_follow_the_posterior_of_sources_on_manifolds(exact: bool) -> None:
    batch, gains, noise_scale, eye = 20_000, (0.6, -1.1), 0.1, torch.eye(2 * TIME).double()
    planes, mixture = [Plane(1), Plane(2)], normal(TIME, seed=3)
    mixing, energy = Mixing(gains, noise_scale), SIGMA**2 * (0.36 + 1.21)
    target = AnnealedPosterior(mixture.expand(batch, -1), planes, mixing, exact)
    clean = torch.block_diag(*(plane.clean for plane in planes))
    mix = torch.cat([gain * torch.eye(TIME).double() for gain in gains], 1)
    own = 0.0 if exact else noise_scale**2  # variance of the mixture beyond that of the sources
    mean, covariance = given(clean + SIGMA**2 * eye, mix, 0.0 if exact else energy + own, mixture)
    values, axes = torch.linalg.eigh(covariance)
    root = axes * values.clamp(min=0).sqrt()
    noisy = (mean + normal(batch, 2 * TIME) @ root.T).reshape(batch, 2, TIME)
    generator = torch.Generator().manual_seed(4)
    at = (noisy, target.evaluate(noisy, SIGMA), SIGMA)
    drawn, denoised = target.draw_clean(*at, generator)
    assert torch.equal(denoised, target.denoise(*at))

    pull = SIGMA**2 / (energy + own) * mix.T
    allowed = eye - pull @ mix
    honest_mean, honest = given(clean, mix, (1 if exact else 2) * energy + own, mixture)
    expected, law = allowed @ honest_mean + pull @ mixture, allowed @ honest @ allowed.T
    if exact:  # on the plane of the mixture a tangent is not quite one
        tangents = allowed @ clean @ torch.linalg.inv(clean + SIGMA**2 * eye)
        known = tangents @ covariance @ tangents.T
        spread = tangents @ allowed @ (2 * eye - tangents @ allowed)
        wider = known + SIGMA**2 * spread @ spread
        ratio = wider.diagonal() / law.diagonal()
        assert ((ratio > 0.8) & (ratio < 1.2)).all()
        law = wider
    off = drawn.flatten(1) - expected
    assert (off.mean(0) / (law.diagonal() / batch).sqrt()).abs().max() < 4.5
    error = (torch.outer(law.diagonal(), law.diagonal()) + law.square()) / batch
    assert ((off.T @ off / batch - law) / error.sqrt()).abs().max() < 4.5
    # With noise of gamma alone the sources would be known better.
    narrow = allowed @ given(clean, mix, noise_scale**2, mixture)[1] @ allowed.T
    assert (law.diagonal() > narrow.diagonal()).all()
    # Of what is left unexplained the share of the mixing noise stays.
    left = (mixture - mixing.mix(drawn)).abs().max()
    apart = mixture.abs().max() + 6 * math.sqrt(2 * energy)
    assert left < 1e-4 + own / (energy + own) * apart
    assert own / (energy + own) < 0.04


def test_chains_do_not_know_of_each_other(target: AnnealedPosterior) -> None:
    sources = normal(BATCH, 3, TIME)
    indices = torch.tensor([4, 1, 1])
    some = target.select(indices)
    assert torch.equal(some.mixture, target.mixture[indices])
    assert some.priors is target.priors
    assert some.mixing is target.mixing
    whole = target.evaluate(sources, SIGMA)
    for expected, value in zip(whole, some.evaluate(sources[indices], SIGMA), strict=True):
        assert torch.allclose(value, expected[indices], rtol=1e-14)
    cross = target.cross_log_prior(sources, SIGMA)
    assert torch.allclose(some.cross_log_prior(sources[indices], SIGMA), cross[indices], rtol=1e-14)


def test_an_exact_mixture_moves_on_its_plane(longer: AnnealedPosterior) -> None:
    exact = replace(longer, exact=True)
    start = exact.start(2.0, torch.Generator().manual_seed(0))
    assert start.shape == (BATCH, 3, FRAME)
    mixed = exact.mixing.mix(start)
    assert torch.allclose(mixed[:, :TIME], exact.mixture, atol=1e-12)
    assert mixed[:, TIME:].abs().max() > 0.1  # not heard, so free
    direction = normal(BATCH, 3, FRAME, seed=2)
    allowed = exact.project(direction)
    assert exact.mixing.mix(allowed)[:, :TIME].abs().max() < 1e-12
    assert torch.allclose(exact.project(allowed), allowed)
    assert torch.allclose((direction - allowed).mul(allowed).sum(), torch.zeros(()).double())
    assert torch.equal(allowed[..., TIME:], direction[..., TIME:])
    evaluation = exact.evaluate(start, SIGMA)
    assert torch.allclose(evaluation.log_density, log_priors(start).sum(1), rtol=1e-12)
    assert torch.allclose(exact.log_density(start, SIGMA), evaluation.log_density, rtol=1e-12)
    scale = torch.tensor([[level**2 + SIGMA**2] for level in LEVELS]).double()
    assert torch.allclose(evaluation.gradient, exact.project(-start / scale), rtol=1e-6)
    clean = exact.denoise(start, evaluation, SIGMA)
    assert torch.allclose(exact.mixing.mix(clean)[:, :TIME], exact.mixture, atol=1e-12)
    free = longer.project(direction)
    assert free is direction


@pytest.fixture
def silent(gaussian_priors: MakePriors) -> AnnealedPosterior:
    """Of three sources that may be silent, which are is known."""
    priors = [SpikeAndSlab(prior, 0.3) for prior in gaussian_priors(*LEVELS).values()]
    present = torch.tensor([[bool(row >> k & 1) for k in range(3)] for row in range(8)])
    return AnnealedPosterior(normal(8, TIME, seed=1), priors, Mixing(GAINS, 0.1), present=present)


def test_over_all_that_may_be_present_the_densities_add_up(silent: AnnealedPosterior) -> None:
    sources = normal(1, 3, TIME).expand(8, -1, -1)
    mixture = silent.mixture[:1].expand(8, -1)
    decided = replace(silent, mixture=mixture).evaluate(sources, SIGMA)
    open_ = replace(silent, mixture=mixture, present=None).evaluate(sources, SIGMA)
    assert decided.log_density.logsumexp(0).item() == pytest.approx(open_.log_density[0].item())
    mean = (decided.log_density.softmax(0)[:, None, None] * decided.gradient).sum(0)
    assert torch.allclose(mean, open_.gradient[0], rtol=1e-9)
    assert torch.allclose(silent.log_density(sources, SIGMA), silent.evaluate(sources, SIGMA)[0])


def test_silence_asks_no_prior(silent: AnnealedPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = normal(8, 3, TIME)
    asked: list[int] = []
    law = type(cast(SpikeAndSlab, silent.priors[0]).prior)
    log_prob = law.log_prob

    def recorded(self: Any, value: Tensor) -> Tensor:
        asked.append(len(value))
        return log_prob(self, value)

    monkeypatch.setattr(law, "log_prob", recorded)
    silent.evaluate(sources, SIGMA)
    assert asked == [4, 4, 4]


def test_presence_is_swapped_with_the_sources(silent: AnnealedPosterior) -> None:
    sources = normal(8, 3, TIME)
    cross = silent.cross_log_prior(sources, SIGMA)
    order = torch.tensor([1, 0, 2]).expand(8, -1)
    swapped, moved = silent.reassign(sources, order)
    assert swapped.present is not None
    assert silent.present is not None
    assert torch.equal(swapped.present, silent.present[:, [1, 0, 2]])
    after = swapped.evaluate(moved, SIGMA).parts
    expected = torch.stack([cross[:, 0, 1], cross[:, 1, 0], cross[:, 2, 2]], 1)
    assert torch.allclose(after, expected, rtol=1e-12)


def test_presence_belongs_to_the_chain(silent: AnnealedPosterior) -> None:
    assert silent.present is not None
    indices = torch.tensor([5, 2])
    some = silent.select(indices)
    assert some.present is not None
    assert torch.equal(some.present, silent.present[indices])
    back = silent.update(torch.tensor([0, 7]), some)
    assert back.present is not None
    assert torch.equal(back.present[[0, 7]], silent.present[indices])
    assert torch.equal(back.present[1:7], silent.present[1:7])
    known = replace(silent, present=None).with_latents(silent.latents()).present
    assert known is not None
    assert torch.equal(known, silent.present)


def test_presence_is_drawn_by_its_odds(silent: AnnealedPosterior) -> None:
    count = 4000
    sources = 0.6 * normal(1, 3, TIME)
    repeated = silent.select(torch.zeros(count, dtype=torch.long))
    drawn = repeated.decide(sources.expand(count, -1, -1), SIGMA, torch.Generator().manual_seed(0))
    assert drawn.present is not None
    for k, prior in enumerate(silent.priors):
        law = cast(SpikeAndSlab, prior.frame(TIME).condition(SIGMA))
        expected = law.presence(sources[0, k]).item()
        assert 0.05 < expected < 0.95
        error = math.sqrt(expected * (1 - expected) / count)
        assert drawn.present[:, k].double().mean().item() == pytest.approx(expected, abs=4 * error)


def test_who_is_flipped_is_silent_at_first(silent: AnnealedPosterior) -> None:
    clean = 100 + normal(8, 3, TIME)
    flipped = torch.zeros(8, 3, dtype=torch.bool)
    flipped[:, 1] = True
    flipped[5, 2] = True
    other, moved = silent.flip(clean, flipped)
    assert other.present is not None
    assert silent.present is not None
    assert torch.equal(other.present, silent.present ^ flipped)
    assert torch.equal(moved[~flipped], clean[~flipped])
    assert (moved[flipped] == 0).all()


@pytest.mark.parametrize("exact", [False, True])
def test_tied_sources_are_the_nearest_that_add_up(exact: bool) -> None:
    mixing = Mixing((0.5, -1.2, 0.3))
    target = AnnealedPosterior(normal(4, TIME), [], mixing, exact)
    sources = normal(4, 3, TIME)
    tied = target.tie(sources)
    if not exact:
        assert tied is sources
        return
    assert torch.allclose(mixing.mix(tied), target.mixture, atol=1e-6)
    assert torch.allclose(target.tie(tied), tied, atol=1e-6)
    # What is changed goes along the gains, at every instant.
    gains = torch.tensor(mixing.gains, dtype=sources.dtype)[:, None]
    change = tied - sources
    along = (change * gains).sum(1, keepdim=True) / gains.square().sum() * gains
    assert torch.allclose(change, along, atol=1e-6)
    moved = sources + target.project(normal(4, 3, TIME))
    assert torch.allclose(mixing.mix(moved), mixing.mix(sources), atol=1e-6)


def test_a_section_is_the_posterior_of_its_samples(silent: AnnealedPosterior) -> None:
    sources = normal(8, 3, TIME)
    parts = [slice(0, 4), slice(4, TIME)]
    densities = [silent.section(part).log_density(sources[..., part], SIGMA) for part in parts]
    whole = silent.log_density(sources, SIGMA)
    # White priors: parts are independent, but for the absence, which is counted twice.
    assert silent.present is not None
    absence = torch.tensor([cast(SpikeAndSlab, prior).absence for prior in silent.priors])
    twice = torch.where(silent.present, (1 - absence).log(), absence.log()).sum(1)
    assert torch.allclose(densities[0] + densities[1], whole + twice, rtol=1e-6)
    assert silent.section(parts[0]).present is silent.present
