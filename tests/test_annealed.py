import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from tqdm import tqdm

from pyro_sep.inference import checkpoint
from pyro_sep.inference.annealed import Descent, _Walk, anneal, best_explorers
from pyro_sep.inference.checkpoint import Checkpoint
from pyro_sep.inference.draws import Collected, Statistics
from pyro_sep.inference.langevin import Evaluation
from pyro_sep.inference.settings import Annealing
from pyro_sep.latent_mixing import GAIN_RANGE, NOISE_SPREAD, start_mixing
from pyro_sep.mixing import Mixing
from pyro_sep.posterior import TANGENTS, AnnealedPosterior
from pyro_sep.presence import SpikeAndSlab
from pyro_sep.separation import separate_batch

SIGMA = 0.1  # last noise level of the settings here
LADDER = {"sigma_max": 1.5, "sigma_turn": 0.3, "sigma_min": SIGMA, "levels": 6}


class GaussianPrior(TorchDistribution):
    """White source: every audio sample Normal(0, level^2), noise of std sigma on top."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    sample_rate = 16_000
    sigmas = (0.01, 20.0)
    multiple = 1

    def __init__(
        self, level: float, name: str = "white", sigma: float = 0.01, time: int = 1
    ) -> None:
        self.level, self.name, self.sigma = level, name, sigma
        super().__init__(Size(), Size((time,)), validate_args=False)

    def condition(self, sigma: float) -> "GaussianPrior":
        return type(self)(self.level, self.name, sigma, self.event_shape[0])

    def frame(self, time: int) -> "GaussianPrior":
        return type(self)(self.level, self.name, self.sigma, time)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.shape[-1:] == self.event_shape
        std = math.hypot(self.level, self.sigma)
        return torch.distributions.Normal(0.0, std).log_prob(value).sum(-1)


class TwoModes(GaussianPrior):
    """The whole frame is near +level (weight 1/5) or near -level (4/5), with a spread of 0.1."""

    weights = (0.2, 0.8)

    def log_prob(self, value: Tensor) -> Tensor:
        std = math.hypot(0.1, self.sigma)
        modes = [
            torch.distributions.Normal(mean, std).log_prob(value).sum(-1) + math.log(weight)
            for mean, weight in zip((self.level, -self.level), self.weights, strict=True)
        ]
        return torch.logaddexp(*modes)


@dataclass(frozen=True)
class Recorder(AnnealedPosterior):
    """Notes (lanes, sigma) of all that is evaluated, and is killed at the k-th evaluation."""

    log: dict[str, list[Any]] = field(kw_only=True)

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        if len(self.log["evaluate"]) + 1 == self.log["killed_at"]:
            raise KeyboardInterrupt
        evaluation = super().evaluate(sources, sigma)
        self.log["evaluate"].append((len(sources), sigma))
        self.log["evaluation"].append(evaluation)
        return evaluation

    def cross_log_prior(self, sources: Tensor, sigma: float) -> Tensor:
        self.log["exchange"].append((len(sources), sigma))
        return super().cross_log_prior(sources, sigma)


class Run(NamedTuple):
    """All draws, and how they came about."""

    sources: Tensor
    means: Tensor
    noisy: Tensor
    statistics: Statistics
    warmup: Statistics
    gradients: int


def walk(
    mixtures: Tensor,
    priors: Sequence[GaussianPrior],
    mixing: Mixing,
    seed: int = 0,
    exact: bool = False,
    checkpoint: Checkpoint | None = None,
    killed_at: int | None = None,
    **settings: Any,
) -> tuple[Run, dict[str, Any]]:
    """A run, and the log of a Recorder."""
    log: dict[str, Any] = {"evaluate": [], "evaluation": [], "exchange": []}
    log["killed_at"] = killed_at
    annealing = Annealing(**(LADDER | settings))
    generator = torch.Generator().manual_seed(seed)
    sink = Collected()
    descent = anneal(
        mixtures,
        lambda m: Recorder(m, priors, mixing, exact, log=log),
        annealing,
        generator,
        sink,
        checkpoint,
    )
    return gather(sink, descent), log


def gather(sink: Collected, descent: Descent) -> Run:
    return Run(*sink.draws[:4], *descent)


SET = {"noise_level", "step_size", "acceptance_rate", "gradients"}  # the same for every seed


def flat(draws: Run) -> dict[str, Tensor]:
    """Every tensor of a run, by name."""
    own = {name: getattr(draws, name) for name in ("sources", "means", "noisy", "gradients")}
    for group in ("statistics", "warmup"):
        own |= {f"{group}.{k}": v for k, v in getattr(draws, group)._asdict().items()}
    return {name: torch.as_tensor(value) for name, value in own.items()}


def closed_form(
    levels: Sequence[float], mixing: Mixing, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior of the noisy sources of an audio sample m = 1.

    Its mean and covariance, and the matrix that takes noisy sources to their Tweedie estimates.
    """
    a = torch.tensor(mixing.gains, dtype=torch.float64)
    clean = torch.tensor(levels, dtype=torch.float64).square()
    variance = clean + sigma**2
    likelihood = sigma**2 * a.square().sum() + mixing.noise_scale**2
    covariance = torch.linalg.inv(torch.diag(1 / variance) + torch.outer(a, a) / likelihood)
    return covariance @ a / likelihood, covariance, torch.diag(clean / variance)


CASES = {
    "two": ((0.5, 0.25), (0.5, 0.5), 1e-3),
    "four": ((0.5, 0.25, 0.4, 0.3), (0.3, 1.5, 0.7, 1.0), 1e-3),
    "six": ((0.5, 0.25, 0.4, 0.3, 0.5, 0.2), (0.3, 1.5, 0.7, 1.0, 1.5, 1.2), 0.05),
}


@pytest.fixture(scope="module", params=CASES)
def gaussian(request: pytest.FixtureRequest) -> Any:
    """A run on the mixture m = 1 at each of 500 instants, so each is a draw of one law."""
    levels, gains, noise_scale = CASES[request.param]
    mixing = Mixing(gains, noise_scale)
    priors = [GaussianPrior(level) for level in levels]
    # 4 widths of the slowest direction, exp(-steps * 0.8 * ln(1 / 0.9) / 2) and less, are e^-8.
    budget = {"steps": 60, "chains": 24, "explorers": 2, "draws": 3, "thin": 150}
    draws, _ = walk(torch.ones(1, 500), priors, mixing, **budget)
    return levels, mixing, draws, draws.noisy


def assert_law(noisy: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws ``(..., source, time)`` are of this law, those of every instant independently."""
    x = noisy.double().movedim(-2, -1).reshape(-1, len(mean))
    count = len(x)
    standard = (x.mean(0) - mean) / (covariance.diagonal() / count).sqrt()
    assert standard.abs().max() < 4.5
    centred = x - mean
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()
    error = (centred.T @ centred / count - covariance) / (spread / count).sqrt()
    assert error.abs().max() < 4.5


def test_noisy_draws_follow_the_closed_form_posterior(gaussian: Any) -> None:
    levels, mixing, _, noisy = gaussian
    assert noisy[0, ..., 0, :].numel() == 24 * 3 * 500
    assert_law(noisy, *closed_form(levels, mixing, SIGMA)[:2])


@pytest.mark.parametrize("persistence", [0.0, 0.9])
def test_corrected_draws_follow_the_closed_form_posterior(persistence: float) -> None:
    levels, mixing = (0.5, 0.25), Mixing((0.5, 0.5), 0.05)
    draws, _ = walk(
        torch.ones(1, 4).expand(2000, 4),
        [GaussianPrior(level) for level in levels],
        mixing,
        corrected=True,
        persistence=persistence,
        steps=200,
        chains=4,
        explorers=1,
        draws=1,
        thin=400,
    )
    assert_law(draws.noisy, *closed_form(levels, mixing, SIGMA)[:2])
    target = 0.9 if persistence else 0.574
    assert float(draws.statistics.acceptance_rate.mean()) == pytest.approx(target, abs=0.1)
    assert draws.statistics.step_size.unique().numel() == 1
    assert draws.warmup.step_size.unique().numel() > 40


def test_exact_draws_follow_the_closed_form_on_the_plane() -> None:
    levels, mixing = (0.5, 0.25, 0.4), Mixing((0.3, 1.5, -0.7))
    priors = [GaussianPrior(level) for level in levels]
    budget = {"steps": 60, "chains": 24, "explorers": 2, "draws": 3, "thin": 150}
    draws, _ = walk(torch.ones(1, 500), priors, mixing, exact=True, **budget)
    a = torch.tensor(mixing.gains, dtype=torch.float64)
    prior = torch.diag(torch.tensor(levels, dtype=torch.float64).square() + SIGMA**2)
    pull = prior @ a / (a @ prior @ a)
    assert_law(draws.noisy, pull, prior - torch.outer(pull, prior @ a))
    for sources in (draws.noisy, draws.means, draws.sources):
        assert (mixing.mix(sources) - 1).abs().max() < 1e-4  # float32, 1,000 steps


def test_means_and_clean_draws_follow_the_closed_form(gaussian: Any) -> None:
    levels, mixing, draws, _ = gaussian
    mean, covariance, tweedie = closed_form(levels, mixing, SIGMA)
    a = torch.tensor(mixing.gains, dtype=torch.float64)
    pull = SIGMA**2 * a / (SIGMA**2 * a.square().sum() + mixing.noise_scale**2)
    allowed = torch.eye(len(a)) - torch.outer(pull, a)
    predicted = allowed @ tweedie @ mean + pull
    known = tweedie @ covariance @ tweedie  # where x is known, so is the mean
    spread = SIGMA * (torch.eye(len(a)) - (torch.eye(len(a)) - tweedie) ** TANGENTS)
    assert_law(draws.means[0], predicted, allowed @ known @ allowed.T)
    law = allowed @ (known + spread @ spread) @ allowed.T
    # The nudges are rounded in float32.
    assert_law(draws.sources[0], predicted, law)
    # Near E[s | m] = L a / (a' L a + gamma^2), but for what is known of the gap.
    energy = torch.tensor(levels, dtype=torch.float64).square()
    exact = energy * a / ((energy * a.square()).sum() + mixing.noise_scale**2)
    assert (predicted - exact).abs().max() < 0.15 * exact.max()


def test_clean_draws_add_up_to_the_mixture(gaussian: Any) -> None:
    levels, mixing, draws, noisy = gaussian
    tweedie = closed_form(levels, mixing, SIGMA)[2].diagonal()
    before = 1 - mixing.mix(noisy.double() * tweedie[:, None])
    share = mixing.noise_scale**2 / mixing.scale_at(SIGMA) ** 2
    rounding = 8 * torch.finfo(torch.float32).eps * sum(abs(g) for g in mixing.gains)
    after = 1 - mixing.mix(draws.means.double())
    assert (after.abs() <= before.abs() * share + rounding).all()
    # Draws are further off by at most sigma n before they are conditioned.
    beyond = 6 * SIGMA * mixing.gain_energy**0.5
    after = 1 - mixing.mix(draws.sources.double())
    assert (after.abs() <= (before.abs() + beyond) * share + 10 * rounding).all()
    assert share < 0.11


@pytest.mark.parametrize("sigma_min", [0.2, 0.05])
def test_sources_of_one_level_are_denoised_to_the_clean_posterior_mean(sigma_min: float) -> None:
    # Then E[s | m] = a / sum a^2 at any sigma, but for gamma: the gap is nil.
    mixing = Mixing((1.2, 0.6))
    budget = {"steps": 40, "chains": 10, "explorers": 1, "draws": 2, "thin": 80}
    draws, _ = walk(
        torch.ones(1, 400), [GaussianPrior(0.4)] * 2, mixing, sigma_min=sigma_min, **budget
    )
    _, covariance, tweedie = closed_form((0.4, 0.4), mixing, sigma_min)
    a = torch.tensor(mixing.gains, dtype=torch.float64)
    linear = (torch.eye(2) - torch.outer(a, a) / mixing.gain_energy) @ tweedie
    error = ((linear @ covariance @ linear.T).diagonal() / (10 * 2 * 400)).sqrt()
    got = draws.means[0].double().mean((0, 1, 3))
    assert ((got - a / mixing.gain_energy).abs() < 4.5 * error + 1e-4).all()


def test_chains_and_instants_are_independent() -> None:
    time = 4_000
    draws, _ = walk(
        torch.ones(1, time),
        [GaussianPrior(0.5), GaussianPrior(0.25)],
        Mixing.mean(2),
        steps=40,
        chains=4,
        explorers=3,
        draws=1,
        thin=40,
    )
    chains = draws.noisy[0, :, 0]
    for source in range(2):
        correlation = torch.corrcoef(chains[:, source]) - torch.eye(4)
        assert correlation.abs().max() < 4.5 / math.sqrt(time)
        shifted = torch.corrcoef(torch.stack([chains[0, source, 1:], chains[0, source, :-1]]))
        assert shifted[0, 1].abs() < 4.5 / math.sqrt(time)


def test_best_explorers_is_the_highest_mean_of_each_group() -> None:
    log_density = torch.tensor(
        [
            [0.0, 9.0, 1.0, -5.0, -8.0, -6.0],
            [0.0, -9.5, 1.0, -7.0, -1.0, -6.5],
        ]
    )  # lane 1 holds the highest value and lane 2 the highest mean; chain 0 has all the best lanes
    assert best_explorers(log_density, 3).tolist() == [2, 4]
    assert best_explorers(log_density, 2).tolist() == [0, 2, 4]
    assert best_explorers(log_density, 1).tolist() == list(range(6))
    assert best_explorers(log_density, 6).tolist() == [2]
    two = best_explorers(log_density, 3, 2).reshape(2, 2)
    assert [set(lanes) for lanes in two.tolist()] == [{0, 2}, {3, 4}]


def test_explorers_find_the_right_mode_as_often_as_chance_allows() -> None:
    # From sigma = 0.5 a start falls into either mode of a frame at +-1; the mixture says +1.
    time, chains = 4, 300
    priors = [TwoModes(1.0), GaussianPrior(0.1)]
    mixture = torch.full((1, time), 0.5)

    def share_right(explorers: int) -> float:
        draws, _ = walk(
            mixture,
            priors,
            Mixing.mean(2),
            sigma_max=0.5,
            sigma_turn=0.3,
            steps=30,
            chains=chains,
            explorers=explorers,
            draws=1,
            exchange_every=0,
        )
        return float((draws.sources[0, :, 0, 0].mean(-1) > 0).double().mean())

    alone, four = share_right(1), share_right(4)
    assert 0.1 < alone < 0.9
    expected = 1 - (1 - alone) ** 4
    slope = 4 * (1 - alone) ** 3
    error = math.sqrt(slope**2 * alone * (1 - alone) / chains + expected * (1 - expected) / chains)
    assert abs(four - expected) < 4 * error
    assert four > alone + 4 * math.sqrt(alone * (1 - alone) / chains)


PLACES = (-1.5, 0.0, 1.5)


class Placed(GaussianPrior):
    """The frame is near one of three constants: by 20 nats rather near its own, ``level``."""

    def log_prob(self, value: Tensor) -> Tensor:
        std = math.hypot(0.1, self.sigma)
        modes = [
            torch.distributions.Normal(place, std).log_prob(value).sum(-1)
            - 20.0 * (place != self.level)
            for place in PLACES
        ]
        return torch.stack(modes).logsumexp(0)


def after_tournaments(order: Sequence[int], **settings: int) -> Tensor:
    """Mean of each source ``(lane, source)`` that started at another's place."""
    places, lanes = torch.tensor(PLACES), 8
    mixture = places.mean().expand(lanes, 20)
    target = AnnealedPosterior(mixture, [Placed(place) for place in PLACES], Mixing.mean(3))
    generator = torch.Generator().manual_seed(0)
    walker = _Walk(target, Annealing(**LADDER, **settings), generator, tqdm(disable=True))
    noise = SIGMA * torch.randn(lanes, 3, 20, generator=generator)
    walker.position = places[list(order)][:, None] + noise
    tournament = walker.settings.tournaments_at(3, False)[SIGMA]
    for i in range(tournament.most):
        walker.hold_tournament(tournament, first=i == 0)
    return walker.position.mean(-1)


@pytest.mark.parametrize(
    ("order", "settings", "expected"),
    [
        ((0, 1, 2), {}, PLACES),  # right already: nothing changes hands
        ((2, 1, 0), {}, PLACES),
        ((1, 0, 2), {}, PLACES),
        ((1, 2, 0), {}, PLACES),  # a cycle takes two exchanges
    ],
)
def test_tournaments_put_sources_in_each_other_s_place(
    order: Sequence[int], settings: dict[str, int], expected: Sequence[float]
) -> None:
    means = after_tournaments(order, **settings)
    # At sigma 0.1 no frame wanders from place to place; a mean of 20 samples errs by 0.03.
    assert torch.allclose(means, torch.tensor(expected).expand(8, 3), atol=0.2)


def test_who_is_in_place_holds_no_further_tournament() -> None:
    target = AnnealedPosterior(
        torch.tensor(PLACES).mean().expand(3, 20), [Placed(p) for p in PLACES], Mixing.mean(3)
    )
    generator = torch.Generator().manual_seed(0)
    walker = _Walk(target, Annealing(**LADDER), generator, tqdm(disable=True))
    orders = torch.tensor([[0, 1, 2], [1, 0, 2], [1, 2, 0]])
    noise = SIGMA * torch.randn(3, 3, 20, generator=generator)
    walker.position = torch.tensor(PLACES)[orders][..., None] + noise
    held = []
    tournament = walker.settings.tournaments_at(3, False)[SIGMA]
    for i in range(4):
        before, steps = walker.evaluations, walker.steps
        kept = walker.position.clone()
        walker.hold_tournament(tournament, first=i == 0)
        held.append(walker.open.tolist())
        if i == 3:
            assert torch.equal(walker.position, kept)
            assert walker.evaluations == before
        assert walker.steps - steps == tournament.total_steps
    assert held == [[1, 2], [2], [], []]


def test_a_cycle_is_not_undone_by_one_exchange() -> None:
    means = after_tournaments((1, 2, 0), tournaments=1)
    right = (means - torch.tensor(PLACES)).abs() < 0.2
    assert (right.sum(1) == 1).all()


def test_a_seed_is_a_run_and_another_seed_another() -> None:
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    budget = {"steps": 3, "draws": 2}
    mixtures = torch.ones(2, 30)
    torch.manual_seed(5)
    first, _ = walk(mixtures, priors, Mixing.mean(2), seed=7, **budget)
    torch.manual_seed(6)  # the global generator plays no part
    again, _ = walk(mixtures, priors, Mixing.mean(2), seed=7, **budget)
    other, _ = walk(mixtures, priors, Mixing.mean(2), seed=8, **budget)
    for (name, a), b, c in zip(
        flat(first).items(), flat(again).values(), flat(other).values(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (name.split(".")[-1] in SET)
    sources = first.sources
    assert not torch.equal(sources[0, 0], sources[0, 1])
    assert not torch.equal(sources[0, 0, 0], sources[0, 0, 1])
    assert not torch.equal(sources[0], sources[1])


def test_every_mixture_has_its_own_lanes() -> None:
    time = 200
    phase = torch.arange(time) * 2 * math.pi
    mixtures = torch.stack([torch.sin(phase * f) for f in (0.01, 0.03, 0.07)])
    mixing = Mixing((0.7, 1.2, 0.4))
    priors = [GaussianPrior(level) for level in (0.5, 0.25, 0.7)]
    # A second tournament is for lanes that are not in place yet: how many moves the generator on.
    budget = {"steps": 20, "chains": 2, "explorers": 3, "draws": 5, "thin": 1, "tournaments": 1}
    draws, _ = walk(mixtures, priors, mixing, **budget)
    assert draws.sources.shape == (3, 2, 5, 3, time)
    residual = mixing.mix(draws.sources)[:, None] - mixtures[None, :, None, None]
    power = residual.square().mean((-1, -2, -3))  # (of the draws, of the mixture)
    assert (power.diagonal() < 1e-6).all()
    assert (power + torch.eye(3) > 0.5).all()
    # Lanes do not touch: what the others hold changes nothing in the first.
    changed = torch.cat([mixtures[:1], -mixtures[1:]])
    other, _ = walk(changed, priors, mixing, **budget)
    for (name, a), b in zip(flat(draws).items(), flat(other).values(), strict=True):
        if a.ndim:
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1]) == (name.split(".")[-1] in SET)


def test_what_is_kept_is_consistent_with_the_densities() -> None:
    mixing = Mixing((0.5, 0.9), 0.1)
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    mixtures = torch.stack([torch.ones(50), -torch.ones(50)])
    draws, _ = walk(mixtures, priors, mixing, steps=5, chains=2, draws=4, thin=3)
    laws = [prior.frame(50).condition(SIGMA) for prior in priors]
    noisy = draws.noisy
    for k, law in enumerate(laws):
        assert torch.allclose(draws.statistics.log_prior[..., k], law.log_prob(noisy[..., k, :]))
    likelihood = mixing.log_likelihood(mixtures[:, None, None], noisy, SIGMA)
    assert torch.allclose(draws.statistics.lp, draws.statistics.log_prior.sum(-1) + likelihood)
    position = noisy.clone().requires_grad_()
    density = sum(law.log_prob(position[..., k, :]).sum() for k, law in enumerate(laws))
    density = density + mixing.log_likelihood(mixtures[:, None, None], position, SIGMA).sum()
    (gradient,) = torch.autograd.grad(density, position)
    assert torch.allclose(draws.statistics.grad_norm, gradient.flatten(-2).norm(dim=-1), rtol=1e-4)


def test_warmup_holds_every_step_but_no_start() -> None:
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    budget = {"steps": 3, "chains": 2, "explorers": 1, "draws": 1, "exchange_every": 0}
    draws, log = walk(torch.ones(1, 20), priors, Mixing.mean(2), **budget)
    steps = [log["evaluation"][4 * level + i] for level in range(6) for i in (1, 2, 3)]
    assert torch.equal(draws.warmup.lp[0], torch.stack([e.log_density for e in steps], 1))
    assert torch.equal(draws.warmup.log_prior[0], torch.stack([e.parts for e in steps], 1))
    norms = torch.stack([e.gradient.flatten(1).norm(dim=1) for e in steps], 1)
    assert torch.equal(draws.warmup.grad_norm[0], norms)


def test_warmup_is_the_ladder_step_by_step() -> None:
    settings = {"steps": 4, "chains": 2, "explorers": 3, "draws": 5, "levels": 9}
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    draws, _ = walk(torch.ones(2, 20), priors, Mixing.mean(2), **settings)
    assert draws.statistics.lp.shape == draws.statistics.grad_norm.shape == (2, 2, 5)
    assert draws.statistics.log_prior.shape == (2, 2, 5, 2)
    assert draws.warmup.lp.shape == draws.warmup.grad_norm.shape == (2, 2, 36)
    assert draws.warmup.log_prior.shape == (2, 2, 36, 2)
    sigmas = Annealing(**(LADDER | settings)).sigmas
    assert draws.warmup.noise_level.shape == (2, 2, 36)
    level = draws.warmup.noise_level[0, 0]
    assert level.tolist() == pytest.approx([s for s in sigmas for _ in range(4)])
    assert (level[0], level[-1]) == (1.5, pytest.approx(SIGMA))
    assert torch.allclose(draws.warmup.step_size, Annealing.step_size * draws.warmup.noise_level)
    assert torch.allclose(draws.statistics.noise_level, torch.tensor(SIGMA))
    # Noise of std sigma bounds a density from above: the history belongs to those levels.
    floor = -20 * (0.5 * torch.log(2 * math.pi * (0.25 + level**2)))
    assert (draws.warmup.log_prior[..., 0] <= floor + 1e-4).all()


@pytest.mark.parametrize(("every", "per_level"), [(3, 2), (20, 1)])
def test_every_step_is_one_evaluation(every: int, per_level: int) -> None:
    settings = {"steps": 7, "chains": 2, "explorers": 3, "draws": 5, "thin": 2}
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    draws, log = walk(torch.ones(2, 20), priors, Mixing.mean(2), exchange_every=every, **settings)
    annealing = Annealing(**(LADDER | settings))
    above = sum(sigma >= annealing.sigma_turn for sigma in annealing.sigmas)
    assert above == 4
    exchanges = above * per_level
    assert annealing.total_steps(2, False) == 6 * 7 + 5 * 2
    assert len(log["exchange"]) == exchanges
    # Beside the steps: the start of every level and of the draws, what an exchange moved, and the
    # clean draws.
    steps = annealing.total_steps(2, False)
    assert len(log["evaluate"]) == steps + 6 + 1 + exchanges + 5 * TANGENTS
    # Explorers only ever drop out, as many of every chain; below the turn there is one.
    lanes = [count for count, _ in log["evaluate"]]
    assert draws.gradients == sum(lanes) / 2  # of each mixture
    assert lanes == sorted(lanes, reverse=True)
    assert (lanes[0], lanes[-1]) == (2 * 2 * 3, 2 * 2)
    assert all(count % (2 * 2) == 0 for count in lanes)
    below = {count for count, sigma in log["evaluate"] if sigma < annealing.sigma_turn}
    assert below == {2 * 2}
    assert min(sigma for _, sigma in log["exchange"]) >= annealing.sigma_turn


LONG: dict[str, Any] = {
    "tournaments": 1,
    "mixtures": torch.sin(torch.arange(60) / torch.tensor([[7.0], [3.0]])),
    "priors": [GaussianPrior(level) for level in (0.5, 0.25, 0.7)],
    "mixing": Mixing((0.7, 1.2, 0.4)),
    "steps": 6,
    "explorers": 4,
    "draws": 25,  # in three blocks
    "exchange_every": 3,
}


def resume(path: Path, killed_at: int | None = None, **options: Any) -> tuple[Run, dict[str, Any]]:
    return walk(**LONG, **options, checkpoint=Checkpoint(path, {}), killed_at=killed_at)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every block."""
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)


def assert_same(a: Run, b: Run) -> None:
    for (name, one), other in zip(flat(a).items(), flat(b).values(), strict=True):
        assert torch.equal(one, other), name


#: Evaluation that is not made any more, and how many a checkpoint holds by then.
KILLS = {
    "before any checkpoint": (5, 0),
    "second level": (14, 9),
    "when explorers have gone": (30, 27),
    "tournament": (50, 36),
    "below the turn": (70, 65),
    "second tournament": (90, 79),
    "first block": (115, 108),
    "second block": (160, 149),
    "last draw": (209, 189),
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("place", KILLS)
@pytest.mark.parametrize("options", [{}, {"corrected": True}, {"exact": True}])
def test_a_killed_run_goes_on_exactly(tmp_path: Path, options: Any, place: str) -> None:
    killed_at, held = KILLS[place]
    whole, log = walk(**LONG, **options)
    assert len(log["evaluate"]) == 209
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run.pt", killed_at, **options)
    torch.manual_seed(77)  # another process: its global generator is elsewhere
    again, rest = resume(tmp_path / "run.pt", **options)
    assert_same(again, whole)
    assert rest["evaluate"] == log["evaluate"][held:]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("killed_at", [30, 80, 150, 220, 270])
def test_where_sources_may_be_silent_too(tmp_path: Path, killed_at: int) -> None:
    options = LONG | {"priors": [SpikeAndSlab(prior) for prior in LONG["priors"]]}
    whole, log = walk(**options)
    assert len(log["evaluate"]) > 270
    with pytest.raises(KeyboardInterrupt):
        walk(**options, checkpoint=Checkpoint(tmp_path / "run.pt", {}), killed_at=killed_at)
    again, rest = walk(**options, checkpoint=Checkpoint(tmp_path / "run.pt", {}))
    assert_same(again, whole)
    assert len(rest["evaluate"]) < len(log["evaluate"])


@pytest.mark.usefixtures("always")
def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    whole, _ = walk(**LONG)
    kills = 0
    while True:
        try:
            again, _ = resume(tmp_path / "run.pt", killed_at=50)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert_same(again, whole)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    whole, _ = resume(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    again, log = resume(tmp_path / "run.pt")
    assert_same(again, whole)
    assert log["evaluate"] == []
    assert (tmp_path / "run.pt").read_bytes() == before


def test_within_a_minute_draws_are_not_written(tmp_path: Path) -> None:
    _, log = walk(**LONG)
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run.pt", killed_at=len(log["evaluate"]))
    saved = Checkpoint(tmp_path / "run.pt", {}).load()
    assert saved is not None
    assert (saved["walk"]["drawn"], saved["sink"]["blocks"]) == (0, [])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("may_be_silent", [False, True])
def test_the_bar_counts_total_steps(
    count: int, may_be_silent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    annealing = Annealing(**LADDER, steps=7, draws=5, thin=2)
    prior = GaussianPrior(0.5)
    priors: list[Any] = [SpikeAndSlab(prior) if may_be_silent else prior] * count
    mixing = Mixing.mean(count)
    generator = torch.Generator().manual_seed(0)
    anneal(
        torch.ones(1, 20),
        lambda lanes: AnnealedPosterior(lanes, priors, mixing),
        annealing,
        generator,
        Collected(),
        progress=True,
    )
    total = annealing.total_steps(count, may_be_silent)
    assert f"{total}/{total}" in capsys.readouterr().err
    # There are tournaments from the third source on, or where it is open which are present.
    assert (total == 6 * 7 + 5 * 2) == (count < 3 and not may_be_silent)


class Band(GaussianPrior):
    """Noise of the first or the second half of every frame, of RMS ``level`` over the frame."""

    def log_prob(self, value: Tensor) -> Tensor:
        time = value.shape[-1]
        inside = (torch.arange(time) < time // 2) == (self.name == "first")
        std = torch.where(inside, math.hypot(self.level * 2**0.5, self.sigma), self.sigma)
        return torch.distributions.Normal(0.0, std).log_prob(value).sum(-1)


def latent_walk(mixture: Tensor, infer_noise: bool, sigma: float, chains: int) -> dict[str, Tensor]:
    """Draws of the unknown gains, and of the noise where it is unknown."""
    priors = {name: Band(0.5, name) for name in ("first", "second")}
    known = Mixing.mean(2, 0.02)

    def posterior(lanes: Tensor) -> AnnealedPosterior:
        latent = start_mixing(lanes, priors, known, True, infer_noise)
        return AnnealedPosterior(lanes, list(priors.values()), latent)

    # A short step: gains must not change what a long one makes of the velocity.
    budget = {"steps": 60, "explorers": 1, "draws": 1, "thin": 400, "step_size": 0.4}
    settings = Annealing(**(LADDER | {"sigma_min": sigma, "chains": chains} | budget))
    sink = Collected()
    anneal(mixture[None], posterior, settings, torch.Generator().manual_seed(0), sink)
    return sink.draws.mixing


@pytest.mark.parametrize(("infer_noise", "noise", "sigma"), [(False, 0.02, 0.05), (True, 0.6, 0.1)])
def test_unequal_gains_and_noise_follow_the_law_on_a_grid(
    infer_noise: bool, noise: float, sigma: float
) -> None:
    truth, half, chains = (0.3, 1.5), 32, 200
    unit = torch.randn(2 * half, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    unit = unit / unit.reshape(2, half).square().mean(1).sqrt().repeat_interleave(half)
    gains = torch.tensor(truth).double().repeat_interleave(half)
    mixture = (0.5 * gains.square() + noise**2).sqrt() * unit
    draws = latent_walk(mixture.float(), infer_noise, sigma, chains)

    start, end = GAIN_RANGE
    axis = start + (end - start) * (torch.arange(120).double() + 0.5) / 120
    gamma = torch.tensor([noise]).double()
    if infer_noise:
        gamma = (torch.arange(160).double() + 0.5) / 160
    a, b, c = torch.meshgrid(axis, axis, gamma, indexing="ij")
    floor = torch.maximum(c**2, 2 * sigma**2 * (a**2 + b**2))
    logs = -(a * b).log() - infer_noise * (c / NOISE_SPREAD) ** 2 / 2
    for gain, heard in zip((a, b), mixture.reshape(2, half), strict=True):
        variance = 0.5 * gain**2 + floor
        logs = logs - half / 2 * (variance.log() + heard.square().mean() / variance)
    weights = logs.flatten().softmax(0)
    drawn = [draws["gains"][0, :, 0, 0], draws["gains"][0, :, 0, 1]]
    assert ("noise_scale" in draws) == infer_noise
    if infer_noise:
        drawn.append(draws["noise_scale"][0, :, 0])
    for values, grid in zip(drawn, (a, b, c), strict=False):
        mean = float(weights @ grid.flatten())
        spread = float(weights @ grid.flatten().square()) - mean**2
        z = (float(values.double().mean()) - mean) / math.sqrt(spread / chains)
        assert abs(z) < 4.5
        ratio = float((values.double() - mean).square().mean()) / spread
        assert abs(ratio - 1) < 4.5 * math.sqrt(4 / chains)  # of a kurtosis up to 5
    if not infer_noise:  # noise of 0.6 is beyond what its prior expects, and gains take some of it
        low, high = torch.stack(drawn[:2]).quantile(torch.tensor([0.005, 0.995]), 1)
        assert (low < torch.tensor(truth)).all()
        assert (torch.tensor(truth) < high).all()


def test_the_sampler_never_sees_the_true_sources() -> None:
    priors = {"loud": GaussianPrior(0.5, "loud"), "soft": GaussianPrior(0.25, "soft")}
    true = torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(3))
    budget = {"steps": 3, "chains": 2, "explorers": 2, "draws": 4, "levels": 6}
    blind = separate_batch(true.mean(1), priors, **budget)
    told = separate_batch(true.mean(1), priors, true_sources=true, **budget)
    for i, (a, b) in enumerate(zip(blind, told, strict=True)):
        assert torch.equal(a.sources, b.sources)
        for group in ("posterior", "sample_stats", "warmup_sample_stats", "posterior_predictive"):
            assert a.trace[group].to_dataset().identical(b.trace[group].to_dataset())
        assert "true_sources" not in a.trace["constant_data"]
        kept = b.trace["constant_data"]["true_sources"].values
        assert torch.equal(torch.from_numpy(kept), true[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: 0}, f"^{name}: got 0, expected at least 1$")
            for name in ("steps", "chains", "explorers", "draws", "thin")
        ),
        ({"tournaments": -1}, "^tournaments: got -1, expected 0 or more$"),
        ({"exchange_every": -1}, "^exchange_every: got -1, expected 0 or more$"),
        ({"levels": 10**9}, "^levels: got 1000000000, expected at most 1000000$"),
        ({"step_size": 0.0}, r"^step_size: got 0.0, expected above 0, below sqrt\(2\)$"),
        ({"step_size": 2**0.5}, "^step_size: got 1.414"),
        ({"step_size": math.nan}, "^step_size: got nan"),
        ({"persistence": 1.0}, "^persistence: got 1.0, expected at least 0, below 1$"),
        ({"persistence": -0.1}, "^persistence: got -0.1"),
        ({"levels": 5}, "^levels: got 5, expected at least 6$"),
        ({"sigma_max": 0.2}, "^ladder: got 0.2 down to 0.3"),
        ({"sigma_min": 0.4}, "^ladder: got 0.3 down to 0.4"),
        ({"sigma_min": 0.0}, "^ladder: got 0.3 down to 0,"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Annealing(**(LADDER | settings)).sigmas


def test_a_run_with_unknown_gains_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sources, so that tournaments exchange gains too; killed at several places."""
    monkeypatch.setattr("pyro_sep.inference.checkpoint.SECONDS", -1.0)
    priors = {name: Band(0.5, name) for name in ("first", "second", "third")}
    mixture = torch.randn(2, 60, generator=torch.Generator().manual_seed(4))
    settings = Annealing(**LADDER, steps=6, draws=25, explorers=2, exchange_every=3)
    calls = 0

    def run(path: Path | None, killed_at: int) -> tuple[Collected, Descent]:
        nonlocal calls
        calls = 0

        @dataclass(frozen=True)
        class Counting(AnnealedPosterior):
            def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
                nonlocal calls
                calls += 1
                if calls == killed_at:
                    raise KeyboardInterrupt
                return super().evaluate(sources, sigma)

        def posterior(lanes: Tensor) -> AnnealedPosterior:
            latent = start_mixing(lanes, priors, Mixing.mean(3), True, True)
            return Counting(lanes, list(priors.values()), latent)

        sink = Collected()
        checkpoint = None if path is None else Checkpoint(path, {})
        generator = torch.Generator().manual_seed(0)
        return sink, anneal(mixture, posterior, settings, generator, sink, checkpoint)

    whole, descent = run(None, 0)
    total = calls
    assert torch.diff(whole.draws.mixing["gains"], dim=2).abs().max() > 1e-3
    for killed_at in range(20, total, total // 7):
        path = tmp_path / f"{killed_at}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(path, killed_at)
        again, rest = run(path, 0)
        assert calls < total
        for name in ("gains", "noise_scale"):
            assert torch.equal(again.draws.mixing[name], whole.draws.mixing[name])
        assert torch.equal(again.draws.noisy, whole.draws.noisy)
        assert rest.gradients == descent.gradients
