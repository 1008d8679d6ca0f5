import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_sep import progress
from pyro_sep.inference.annealing import checkpoint
from pyro_sep.inference.annealing import driver as annealed
from pyro_sep.inference.annealing.budget import count_gradients
from pyro_sep.inference.annealing.checkpoint import Checkpoint
from pyro_sep.inference.annealing.draws import MemoryRecorder, Statistics
from pyro_sep.inference.annealing.driver import RunInfo, anneal
from pyro_sep.inference.annealing.sections import split
from pyro_sep.inference.annealing.settings import (
    MOST,
    REPLICA_LEVELS,
    RESTART,
    SCREENED,
    Annealing,
)
from pyro_sep.inference.posterior import TANGENTS, AnnealedPosterior
from pyro_sep.inference.state import Evaluation
from pyro_sep.mixing.known import Mixing
from pyro_sep.mixing.latent import GAIN_RANGE, NOISE_SPREAD, start_mixing
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.separation.api import separate_batch

SIGMA = 0.1  # last noise level of the settings here
LADDER: dict[str, Any] = {"sigma_max": 1.5, "sigma_freeze": 0.3, "sigma_min": SIGMA, "levels": 6}
LOGGED = 20  # evaluations of a run
ALONE: dict[str, Any] = {"candidates": 1, "swaps": 0, "replicas": 0, "tries": 1}  # the shortest


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
        self.rms, self.name, self.sigma = level, name, sigma
        super().__init__(Size(), Size((time,)), validate_args=False)

    def condition(self, sigma: float) -> "GaussianPrior":
        return type(self)(self.rms, self.name, sigma, self.event_shape[0])

    def frame(self, time: int) -> "GaussianPrior":
        return type(self)(self.rms, self.name, self.sigma, time)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.shape[-1:] == self.event_shape
        std = math.hypot(self.rms, self.sigma)
        return torch.distributions.Normal(0.0, std).log_prob(value).sum(-1)


@dataclass(frozen=True)
class LoggedPosterior(AnnealedPosterior):
    """Notes (chains, sigma) of all that is evaluated, and is killed at the k-th evaluation.

    Of what came out it holds the first evaluations.
    """

    log: dict[str, Any] = field(kw_only=True)

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        if len(self.log["evaluate"]) + 1 == self.log["killed_at"]:
            raise KeyboardInterrupt
        evaluation = super().evaluate(sources, sigma)
        self.log["evaluate"].append((len(sources), sigma))
        if len(self.log["evaluation"]) < LOGGED:  # all of them would be hundreds of megabytes
            self.log["evaluation"].append(evaluation)
        return evaluation

    def cross_log_prior(self, sources: Tensor, sigma: float) -> Tensor:
        self.log["swap"].append((len(sources), sigma))
        self.log["before swap"].append(len(self.log["evaluate"]))
        return super().cross_log_prior(sources, sigma)


class Run(NamedTuple):
    """All draws, and how they came about."""

    sources: Tensor
    means: Tensor
    noisy: Tensor
    statistics: Statistics
    warmup: Statistics
    gradients: int
    tries: Tensor
    found: Tensor
    search: Tensor
    length: int


def walk(
    mixtures: Tensor,
    priors: Sequence[GaussianPrior],
    mixing: Mixing,
    seed: int = 0,
    exact: bool = False,
    checkpoint: Checkpoint | None = None,
    killed_at: int | None = None,
    average: bool = False,
    **settings: Any,
) -> tuple[Run, dict[str, Any]]:
    """A run, and the log of its posterior."""
    log: dict[str, Any] = {"evaluate": [], "evaluation": [], "swap": [], "before swap": []}
    log["killed_at"] = killed_at
    annealing = Annealing(**(LADDER | ALONE | settings))
    generator = torch.Generator().manual_seed(seed)
    recorder = MemoryRecorder()
    info = anneal(
        mixtures,
        lambda m: LoggedPosterior(m, priors, mixing, exact, log=log),
        annealing,
        generator,
        recorder,
        checkpoint,
        average=average,
    )
    return gather(recorder, info), log


def gather(recorder: MemoryRecorder, info: RunInfo) -> Run:
    assert info.search is not None
    return Run(*recorder.draws[:4], *info[:2], *info.search)


#: The same for every seed.
SET = {"noise_level", "step_size", "acceptance_rate", "gradients", "tries", "found"}


NAMES = ("sources", "means", "noisy", "gradients", "tries", "found")


def flat(draws: Run) -> dict[str, Tensor]:
    """Every tensor of a run, by name."""
    own = {name: getattr(draws, name) for name in NAMES}
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
    budget: dict[str, Any] = {"warmup": 200, "chains": 24, "draws": 3, "thin": 150, "section": 512}
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
def test_adjusted_draws_follow_the_closed_form_posterior(persistence: float) -> None:
    levels, mixing = (0.5, 0.25), Mixing((0.5, 0.5), 0.05)
    draws, _ = walk(
        torch.ones(1, 4).expand(2000, 4),
        [GaussianPrior(level) for level in levels],
        mixing,
        adjusted=True,
        persistence=persistence,
        warmup=400,
        chains=4,
        draws=1,
        thin=200,
    )
    assert_law(draws.noisy, *closed_form(levels, mixing, SIGMA)[:2])
    target = 0.9 if persistence else 0.574
    assert float(draws.statistics.acceptance_rate.mean()) == pytest.approx(target, abs=0.1)
    assert draws.statistics.step_size.unique().numel() == 1
    assert draws.warmup.step_size.unique().numel() > 40


def test_exact_draws_follow_the_closed_form_on_the_plane() -> None:
    levels, mixing = (0.5, 0.25, 0.4), Mixing((0.3, 1.5, -0.7))
    priors = [GaussianPrior(level) for level in levels]
    budget: dict[str, Any] = {"warmup": 200, "chains": 24, "draws": 3, "thin": 150}
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
    budget: dict[str, Any] = {"warmup": 120, "chains": 10, "draws": 2, "thin": 80}
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
        warmup=40,
        chains=4,
        draws=1,
        thin=40,
    )
    chains = draws.noisy[0, :, 0]
    for source in range(2):
        correlation = torch.corrcoef(chains[:, source]) - torch.eye(4)
        assert correlation.abs().max() < 4.5 / math.sqrt(time)
        shifted = torch.corrcoef(torch.stack([chains[0, source, 1:], chains[0, source, :-1]]))
        assert shifted[0, 1].abs() < 4.5 / math.sqrt(time)


def test_a_seed_is_a_run_and_another_seed_another() -> None:
    priors = [GaussianPrior(0.5), GaussianPrior(0.25)]
    budget: dict[str, Any] = {"candidates": 3, "replicas": 2, "warmup": 3, "draws": 2, "chains": 2}
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


def test_every_mixture_has_its_own_chains() -> None:
    time = 200
    phase = torch.arange(time) * 2 * math.pi
    mixtures = torch.stack([torch.sin(phase * f) for f in (0.01, 0.03, 0.07)])
    mixing = Mixing((0.7, 1.2, 0.4))
    priors = [GaussianPrior(level) for level in (0.5, 0.25, 0.7)]
    # A second round is for chains that changed: how many moves the generator on.
    budget: dict[str, Any] = {
        "candidates": 3,
        "swaps": 1,
        "replicas": 2,
        "chains": 2,
        "draws": 5,
        "thin": 1,
    }
    draws, _ = walk(mixtures, priors, mixing, **budget)
    assert draws.sources.shape == (3, 2, 5, 3, time)
    residual = mixing.mix(draws.sources)[:, None] - mixtures[None, :, None, None]
    power = residual.square().mean((-1, -2, -3))  # (of the draws, of the mixture)
    assert (power.diagonal() < 1e-6).all()
    assert (power + torch.eye(3) > 0.5).all()
    # Chains do not touch: what the others hold changes nothing in the first.
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
    draws, _ = walk(mixtures, priors, mixing, warmup=5, chains=2, draws=4, thin=3)
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


PAIR = [GaussianPrior(0.5), GaussianPrior(0.25)]


def test_warmup_holds_every_step_but_no_start() -> None:
    budget: dict[str, Any] = {"cooling": 3, "warmup": 4, "chains": 2, "draws": 1}
    draws, log = walk(torch.ones(1, 20), PAIR, Mixing.mean(2), **budget)
    search = 7  # levels, the last twice
    assert {count for count, _ in log["evaluate"][:search]} == {2}
    steps = [log["evaluation"][search + i] for i in range(1, 7)]
    assert torch.equal(draws.warmup.lp[0], torch.stack([e.log_density for e in steps], 1))
    assert torch.equal(draws.warmup.log_prior[0], torch.stack([e.parts for e in steps], 1))
    norms = torch.stack([e.gradient.flatten(1).norm(dim=1) for e in steps], 1)
    assert torch.equal(draws.warmup.grad_norm[0], norms)


@pytest.mark.parametrize("cooling", [1, 2, 5])
def test_warmup_is_the_cooling_step_by_step(cooling: int) -> None:
    settings: dict[str, Any] = {"cooling": cooling, "warmup": 4, "chains": 2, "draws": 5}
    draws, _ = walk(torch.ones(2, 20), PAIR, Mixing.mean(2), **settings)
    steps = cooling - 1 + 4
    assert draws.statistics.lp.shape == draws.statistics.grad_norm.shape == (2, 2, 5)
    assert draws.statistics.log_prior.shape == (2, 2, 5, 2)
    assert draws.warmup.lp.shape == draws.warmup.grad_norm.shape == (2, 2, steps)
    assert draws.warmup.log_prior.shape == (2, 2, steps, 2)
    level = draws.warmup.noise_level
    assert level.shape == (2, 2, steps)
    high = RESTART * SIGMA
    falling = [high * (SIGMA / high) ** (i / max(1, cooling - 1)) for i in range(cooling - 1)]
    assert level[0, 0].tolist() == pytest.approx([*falling, *[SIGMA] * 4])
    assert torch.equal(level, level[:1, :1].expand_as(level))
    assert torch.allclose(draws.warmup.step_size, Annealing.step_size * level)
    assert torch.allclose(draws.statistics.noise_level, torch.tensor(SIGMA))
    # Noise of std sigma bounds a density from above: the history belongs to those levels.
    floor = -20 * (0.5 * torch.log(2 * math.pi * (0.25 + level[0, 0] ** 2)))
    assert (draws.warmup.log_prior[..., 0] <= floor + 1e-4).all()


def test_a_search_is_one_evaluation_a_level_of_the_candidates_that_are_left() -> None:
    settings: dict[str, Any] = {
        "candidates": 8,
        "chains": 2,
        "levels": 30,
        "cooling": 3,
        "draws": 2,
    }
    _, log = walk(torch.ones(3, 20), PAIR, Mixing.mean(2), **settings)
    annealing = Annealing(**(LADDER | ALONE | settings))
    search = log["evaluate"][:31]
    assert [sigma for _, sigma in search] == list(annealing.search_sigmas)
    freeze, batch = annealing.sigma_freeze, 3 * 2
    for count, sigma in search:
        left = 8 if sigma >= 2 * freeze else 4 if sigma >= 1.1 * freeze else 2
        assert count == batch * (left if sigma >= 0.45 * freeze else 1)
    assert {count for count, _ in log["evaluate"][31:]} == {batch}
    above = [sigma for _, sigma in search if sigma >= freeze]
    assert [sigma for _, sigma in log["swap"]] == above[::4]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("adjusted", [False, True])
def test_gradients_are_those_of_every_mixture(average: bool, adjusted: bool) -> None:
    settings: dict[str, Any] = {"candidates": 3, "chains": 2, "draws": 5, "adjusted": adjusted}
    draws, log = walk(torch.ones(2, 20), PAIR, Mixing.mean(2), average=average, **settings)
    counts = [count for count, _ in log["evaluate"]]
    densities = 2 * sum(count for count, _ in log["swap"]) / 3  # of both priors
    misfits = 0 if average else 2 * 2
    assert draws.gradients == round((sum(counts) + densities + misfits) / 2)
    # A Metropolis test needs the density at every level, all else one evaluation a step.
    cooling = Annealing.cooling * (2 if adjusted else 1) - adjusted
    chain = cooling + Annealing.warmup + 5 * (Annealing.thin + TANGENTS)
    assert len(counts) == 7 + chain
    assert bool(log["swap"]) != average


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("may_be_silent", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_about_as_many_gradients_as_were_said(
    count: int, may_be_silent: bool, average: bool
) -> None:
    prior = GaussianPrior(0.5)
    priors: list[Any] = [SpikeAndSlab(prior) if may_be_silent else prior] * count
    settings: dict[str, Any] = {
        "candidates": 4,
        "levels": 12,
        "swaps": 1,
        "replicas": 3,
        "section": 4_096,
    }
    draws, _ = walk(torch.ones(1, 4_000), priors, Mixing.mean(count), average=average, **settings)
    target = AnnealedPosterior(torch.ones(1, 4_000), priors, Mixing.mean(count))
    expected = count_gradients(Annealing(**(LADDER | ALONE | settings)), target, average)
    # A wrong presence takes a second round; sections of 512 samples are evaluated for 64.
    assert draws.gradients == pytest.approx(expected, rel=0.4 if may_be_silent else 0.1)


def test_how_far_it_is_goes_on_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)  # a line after every evaluation
    settings = Annealing(**LADDER, replicas=0, draws=30)

    def run(killed_at: int | None) -> list[int]:
        log: dict[str, Any] = {"evaluate": [], "evaluation": [], "swap": [], "before swap": []}
        log["killed_at"] = killed_at
        generator = torch.Generator().manual_seed(0)
        with suppress(KeyboardInterrupt):
            anneal(
                torch.ones(1, 20),
                lambda batch: LoggedPosterior(batch, PAIR, Mixing.mean(2), log=log),
                settings,
                generator,
                MemoryRecorder(),
                Checkpoint(tmp_path / f"{killed_at}.pt", {}),
                progress=True,
            )
        lines = capsys.readouterr().err.splitlines()
        assert all(re.fullmatch(r"\d+ %, .+ left", line) for line in lines)
        return [int(line.split()[0]) for line in lines]

    whole = run(None)
    assert len(whole) > 100
    assert whole == sorted(whole)
    assert whole[0] <= 2
    assert whole[-1] >= 97
    cut = run(120)
    (tmp_path / "120.pt").rename(tmp_path / "None.pt")
    rest = run(None)
    assert cut == whole[: len(cut)]
    assert rest == whole[-len(rest) :]
    assert rest[0] > 15


class Surprised(GaussianPrior):
    """Knows all audio but such as is negative on average."""

    def misfit(self, value: Tensor) -> Tensor:
        return torch.where(value.mean(-1) < 0, 9.0, 1.0)


def test_what_was_found_is_told_of_every_chain() -> None:
    mixtures = torch.tensor([0.5, -0.5])[:, None].expand(2, 300)
    settings: dict[str, Any] = {"tries": 3, "chains": 2}
    priors = [Surprised(0.5), Surprised(0.25)]
    draws, log = walk(mixtures, priors, Mixing.mean(2), **settings)
    assert draws.tries.tolist() == [[1, 1], [3, 3]]
    assert draws.found.tolist() == [[1, 1], [0, 0]]
    assert [count for count, _ in log["evaluate"][:22:7]] == [4, 2, 2, 4]
    draws, _ = walk(mixtures, priors, Mixing.mean(2), average=True, **settings)
    assert (draws.tries == 1).all()
    assert (draws.found == 1).all()


def test_of_a_long_frame_sections_are_told() -> None:
    """The second half cannot be known, whatever it is grown from."""
    mixture = torch.cat([torch.full((1, 500), 0.5), torch.full((1, 500), -0.5)], 1)
    settings: dict[str, Any] = {"tries": 2, "chains": 2, "section": 256}
    draws, _ = walk(mixture, [Surprised(0.5), Surprised(0.25)], Mixing.mean(2), **settings)
    assert split(1_000, 256, 1) == ([0, 193, 387, 580, 774], 226)
    assert (draws.tries == 2).all()
    share = float(draws.found[0, 0])
    assert share in (pytest.approx(2 / 5), pytest.approx(3 / 5))  # the middle one is of both
    assert draws.sources.shape == (1, 2, Annealing.draws, 2, 1_000)


def test_candidates_are_searched_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"candidates": 2, "chains": 3}
    _, whole = walk(torch.ones(2, 20), PAIR, Mixing.mean(2), **settings)
    monkeypatch.setattr(annealed, "GROUP", 2 * 2 * 20 * 4)  # four chains of two candidates
    draws, parts = walk(torch.ones(2, 20), PAIR, Mixing.mean(2), **settings)
    assert [parts["evaluate"][i][0] for i in (0, 7)] == [8, 4]
    assert whole["evaluate"][0][0] == 12
    assert draws.tries.shape == (2, 3)


WAVES = torch.sin(torch.arange(600) / torch.tensor([[7.0], [3.0]]))
LONG: dict[str, Any] = {
    "mixtures": WAVES,
    "priors": [GaussianPrior(level) for level in (0.5, 0.25, 0.7)],
    "mixing": Mixing((0.7, 1.2, 0.4)),
    "section": 256,  # three of them
    "candidates": 3,
    "swaps": 2,
    "replicas": 2,
    "cooling": 4,
    "warmup": 8,
    "draws": 25,  # in three blocks
}


def resume(path: Path, killed_at: int | None = None, **options: Any) -> tuple[Run, dict[str, Any]]:
    return walk(**(LONG | options), checkpoint=Checkpoint(path, {}), killed_at=killed_at)


@cache
def whole_run(may_be_silent: bool = False, **options: bool) -> tuple[Run, dict[str, Any]]:
    """The run that nothing kills, computed once for all places."""
    silent = {"priors": [SpikeAndSlab(prior) for prior in LONG["priors"]]}
    return walk(**(LONG | options | (silent if may_be_silent else {})))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every block."""
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)


def assert_same(a: Run, b: Run) -> None:
    for (name, one), other in zip(flat(a).items(), flat(b).values(), strict=True):
        assert torch.equal(one, other), name


def places(log: dict[str, Any]) -> dict[str, int]:
    """Evaluations in the middle of each stage, and in the blocks of draws."""
    counts = [count for count, _ in log["evaluate"]]
    thin = 2  # steps before the swap step of each draw
    draws, second = (log["before swap"][-n] - thin for n in (25, 15))
    chain = draws - (4 + 8)  # one before the first step, but one step less above the last level
    return {
        "first section": 3,
        "second section": chain // 3 + 5,
        "before the chain": chain - 2,
        "cooling": chain + 3,
        "last level": chain + 10,
        "first block": draws + 3,
        "second block": second + 5,
        "last draw": len(counts),
    }


PLACES = (
    *("first section", "second section", "before the chain", "cooling", "last level"),
    *("first block", "second block", "last draw"),
)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [{}, {"exact": True}, {"average": True}], ids=str)
def test_a_killed_run_goes_on_exactly(tmp_path: Path, options: Any, place: str) -> None:
    whole, log = whole_run(**options)
    killed_at = places(log)[place]
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run.pt", killed_at, **options)
    saved = Checkpoint(tmp_path / "run.pt", {}).load()
    stage = saved["run"]["stage"] if saved else 0
    known = {"first section": 0, "second section": 1, "cooling": 6, "last level": 8}
    drawing = dict.fromkeys(PLACES[5:], 9)
    assert stage == (known | drawing).get(place, stage)
    torch.manual_seed(77)  # another process: its global generator is elsewhere
    again, rest = resume(tmp_path / "run.pt", **options)
    assert_same(again, whole)
    held = len(log["evaluate"]) - len(rest["evaluate"])
    assert (held > 0) == (place != "first section")
    assert held < killed_at
    assert rest["evaluate"] == log["evaluate"][held:]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("options", [{"adjusted": True}, {"tries": 3}], ids=str)
def test_a_run_may_be_killed_again_and_again(tmp_path: Path, options: Any) -> None:
    options |= {"priors": [Surprised(level) for level in (0.5, 0.25, 0.7)]}
    whole, log = walk(**(LONG | options))
    kills = 0
    while True:
        try:
            again, _ = resume(tmp_path / "run.pt", killed_at=100, **options)
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < len(log["evaluate"])
    assert kills >= 2
    assert_same(again, whole)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_where_sources_may_be_silent_too(tmp_path: Path, share: float) -> None:
    options = LONG | {"priors": [SpikeAndSlab(prior) for prior in LONG["priors"]]}
    whole, log = whole_run(may_be_silent=True)
    killed_at = round(share * len(log["evaluate"]))
    with pytest.raises(KeyboardInterrupt):
        walk(**options, checkpoint=Checkpoint(tmp_path / "run.pt", {}), killed_at=killed_at)
    again, rest = walk(**options, checkpoint=Checkpoint(tmp_path / "run.pt", {}))
    assert_same(again, whole)
    # Which are present is decided of the whole frame, which is one section.
    assert (len(rest["evaluate"]) < len(log["evaluate"])) == (share > 0.2)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    whole, _ = resume(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    again, log = resume(tmp_path / "run.pt")
    assert_same(again, whole)
    assert log["evaluate"] == []
    assert (tmp_path / "run.pt").read_bytes() == before


def test_within_a_minute_draws_are_not_written(tmp_path: Path) -> None:
    _, log = whole_run()
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run.pt", killed_at=len(log["evaluate"]))
    saved = Checkpoint(tmp_path / "run.pt", {}).load()
    assert saved is not None
    assert saved["run"]["stage"] == 3 + 2 + 4
    assert (saved["run"]["drawn"], saved["recorder"]["blocks"]) == (0, [])


WHOLE = torch.zeros(2, 3, 600)
CHAIN = [WHOLE, WHOLE, torch.zeros(2), WHOLE, torch.zeros(2, 3)]

#: Of which place, what, and its value.
DAMAGES: list[tuple[str, str, Any]] = [
    *(("second section", name, -1) for name in ("stage", "drawn", "cost")),
    ("second section", "stage", 0),
    ("second section", "stage", 2),
    ("second section", "stage", 10),
    ("second section", "stage", 1.5),
    ("second section", "drawn", 5),
    ("second section", "step_size", 0.0),
    ("second section", "step_size", math.inf),
    ("second section", "cost", "much"),
    ("second section", "sections", [[], [], []]),
    ("second section", "sections", [[torch.zeros(2, 3, 255)], [torch.ones(2)], [torch.ones(2)]]),
    ("second section", "chain", CHAIN),
    ("second section", "history", [torch.zeros(1, 2)] * 7),
    ("second section", "target", {"gains": torch.ones(2, 3)}),
    ("cooling", "chain", []),
    ("cooling", "chain", CHAIN[:1]),
    ("cooling", "chain", [WHOLE[..., :256], *CHAIN[1:]]),
    ("cooling", "contributions", WHOLE),
    ("cooling", "history", []),
    ("cooling", "stage", 7),
    ("cooling", "adaptation", {}),
    ("second block", "contributions", None),
    ("second block", "drawn", 26),
    ("second block", "chain", [WHOLE] * 5),
    ("second block", "stage", 8),
    ("second block", "generator", torch.zeros(5, dtype=torch.uint8)),
]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What checkpoints hold of runs that were killed at these places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", -1.0)
        _, log = whole_run()
        held: dict[str, dict[str, Any]] = {}
        for place in sorted({place for place, *_ in DAMAGES}):
            path = tmp_path_factory.mktemp("states") / "run.pt"
            with pytest.raises(KeyboardInterrupt):
                resume(path, places(log)[place])
            saved = Checkpoint(path, {}).load()
            assert saved is not None
            held[place] = saved
    return held


@pytest.mark.parametrize(("place", "name", "value"), DAMAGES)
def test_a_state_of_another_walk_is_refused(
    tmp_path: Path, states: dict[str, dict[str, Any]], place: str, name: str, value: Any
) -> None:
    path = tmp_path / "run.pt"
    saved = states[place]
    Checkpoint(path, {}).save(saved | {"run": saved["run"] | {name: value}})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt: got no readable checkpoint \("):
        resume(path)
    assert path.read_bytes() == before


def test_the_mean_of_candidates_is_where_the_chain_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of them err less than one, at a level at which the chain has not moved yet."""
    generator = torch.Generator().manual_seed(3)
    clean = 0.5 * torch.randn(1, 2, 4_000, generator=generator)

    def gap(candidates: int) -> float:
        settings: dict[str, Any] = {
            "candidates": candidates,
            "cooling": 1,
            "warmup": 1,
            "draws": 1,
            "thin": 1,
        }
        draws, _ = walk(
            clean.mean(1),
            [GaussianPrior(0.5)] * 2,
            Mixing.mean(2),
            average=True,
            section=4_096,
            **settings,
        )
        return float((draws.means[0, 0, 0] - clean.mean(1)).square().mean())

    assert gap(10) < 0.5 * gap(1)


class Band(GaussianPrior):
    """Noise of the first or the second half of every frame, of RMS ``level`` over the frame."""

    def log_prob(self, value: Tensor) -> Tensor:
        time = value.shape[-1]
        inside = (torch.arange(time) < time // 2) == (self.name == "first")
        std = torch.where(inside, math.hypot(self.rms * 2**0.5, self.sigma), self.sigma)
        return torch.distributions.Normal(0.0, std).log_prob(value).sum(-1)


def latent_walk(mixture: Tensor, infer_noise: bool, sigma: float, chains: int) -> dict[str, Tensor]:
    """Draws of the unknown gains, and of the noise where it is unknown."""
    priors = {name: Band(0.5, name) for name in ("first", "second")}
    known = Mixing.mean(2, 0.02)

    def posterior(batch: Tensor) -> AnnealedPosterior:
        latent = start_mixing(batch, priors, known, True, infer_noise)
        return AnnealedPosterior(batch, list(priors.values()), latent)

    # A short step: gains must not change what a long one makes of the velocity.
    budget = ALONE | {"draws": 1, "thin": 400, "step_size": 0.4}
    settings = Annealing(**(LADDER | {"sigma_min": sigma, "chains": chains} | budget))
    recorder = MemoryRecorder()
    anneal(mixture[None], posterior, settings, torch.Generator().manual_seed(0), recorder)
    return recorder.draws.mixing


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
    budget: dict[str, Any] = {
        "warmup": 3,
        "chains": 2,
        "candidates": 2,
        "replicas": 2,
        "draws": 4,
        "levels": 6,
    }
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
            for name in ("tries", "candidates", "cooling", "warmup", "chains", "draws", "thin")
        ),
        ({"swaps": -1}, "^swaps: got -1, expected 0 or more$"),
        ({"replicas": -1}, "^replicas: got -1, expected 0 or more$"),
        ({"section": 255}, "^section: got 255, expected at least 256$"),
        ({"candidates": 2.5}, "^candidates: got 2.5, expected at least 1$"),
        ({"levels": 10**9}, f"^levels: got 1000000000, expected at most {MOST}$"),
        ({"step_size": 0.0}, r"^step_size: got 0.0, expected above 0, below sqrt\(2\)$"),
        ({"step_size": 2**0.5}, "^step_size: got 1.414"),
        ({"step_size": math.nan}, "^step_size: got nan"),
        ({"persistence": 1.0}, "^persistence: got 1.0, expected at least 0, below 1$"),
        ({"persistence": -0.1}, "^persistence: got -0.1"),
        ({"adjusted": 2}, "^adjusted: got 2"),
        ({"levels": 5}, "^levels: got 5, expected at least 6$"),
        ({"sigma_max": 0.2}, "^ladder: got 0.2 down to 0.3"),
        ({"sigma_min": 0.4}, "^ladder: got 0.3 down to 0.4"),
        ({"sigma_min": 0.0}, "^ladder: got 0.3 down to 0,"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Annealing(**(LADDER | settings))


@pytest.mark.parametrize("low", [0.01, 0.1, 0.25, 0.29])
@pytest.mark.parametrize("high", [0.31, 1.5, 20.0])
@pytest.mark.parametrize("may_be_silent", [False, True])
def test_all_ladders_fall_from_level_to_level(low: float, high: float, may_be_silent: bool) -> None:
    settings = Annealing(high, 0.3, low, levels=20)
    search = settings.search_sigmas
    rounds = settings.rounds(3, may_be_silent)
    twice = [search, *(held.sigmas for held in rounds)]
    once = [settings.replica_sigmas, settings.cooling_sigmas]
    for sigmas in [*(ladder[:-1] for ladder in twice), *once]:
        assert list(sigmas) == sorted(set(sigmas), reverse=True)
        assert low <= sigmas[-1]
        assert sigmas[0] <= high
    for sigmas in twice:  # the last level twice
        assert sigmas[-1] == sigmas[-2]
    assert (search[0], search[-1], len(search)) == (high, low, 21)
    assert once[0][-1] == once[1][-1] == low
    assert len(once[0]) == REPLICA_LEVELS


def test_a_search_is_slow_until_it_is_settled_and_then_fast() -> None:
    sigmas = Annealing(2.0, 0.5, 0.02, levels=42).search_sigmas
    ratios = [b / a for a, b in pairwise(sigmas[:-1])]
    turn = [i for i, sigma in enumerate(sigmas) if sigma >= 0.66 * 0.5 * (1 - 1e-9)][-1]
    assert turn + 1 == 5 * 42 // 6
    assert sigmas[turn] == pytest.approx(0.33)
    assert ratios[:turn] == pytest.approx([ratios[0]] * turn)
    assert max(ratios[turn:]) < ratios[0] < 1


@pytest.mark.parametrize(
    ("candidates", "left"), [(1, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 2, 1]), (8, [4, 2, 1])]
)
def test_parts_of_the_candidates_go_on(candidates: int, left: list[int]) -> None:
    settings = Annealing(2.0, 0.5, 0.02, candidates=candidates)
    assert [count for _, count in settings.halving] == left
    assert [level for level, _ in settings.halving] == pytest.approx([1.0, 0.55, 0.225])


def test_rounds_are_held_where_there_is_something_to_mend() -> None:
    settings = Annealing(2.0, 0.5, 0.02, swaps=3)
    assert settings.rounds(2, False) == []
    (swap,) = settings.rounds(3, False)
    assert (swap.sigmas[0], swap.sigmas[-1]) == pytest.approx((0.6 * 0.5, 0.11 * 0.5))
    assert (len(swap.sigmas), swap.most) == (7, 3)
    presence, again = settings.rounds(1, True)
    assert (presence.sigmas[0], presence.sigmas[-1]) == pytest.approx((1.4 * 0.5, 0.45 * 0.5))
    assert (len(presence.sigmas), presence.most) == (10, 6)
    assert again == swap


def test_overtones_tell_at_a_share_of_the_freeze_but_not_below_the_last_level() -> None:
    assert Annealing(2.0, 0.5, 0.02).sigma_detail == pytest.approx(0.075)
    assert Annealing(2.0, 0.5, 0.2).sigma_detail == 0.2


def test_one_level_of_cooling_is_the_last() -> None:
    assert Annealing(2.0, 0.5, 0.02, cooling=1).cooling_sigmas == (0.02,)
    two = Annealing(2.0, 0.5, 0.02, cooling=2).cooling_sigmas
    assert two == pytest.approx((RESTART * 0.02, 0.02))


def test_more_sources_take_more_gradients() -> None:
    settings, prior = Annealing(2.0, 0.5, 0.02), GaussianPrior(0.5)

    def gradients(count: int, may_be_silent: bool) -> float:
        priors: list[Any] = [SpikeAndSlab(prior) if may_be_silent else prior] * count
        target = AnnealedPosterior(torch.ones(1, 256), priors, Mixing.mean(count))
        return count_gradients(settings, target, False)

    for may_be_silent in (False, True):
        costs = [gradients(count, may_be_silent) for count in (1, 2, 3, 4)]
        assert costs == sorted(set(costs))
    # Where who is present is open, each of three sources is a candidate more in every round.
    known, open_too = (gradients(3, silent) for silent in (False, True))
    presence, swap = settings.rounds(3, True)
    tried = 1 + SCREENED + 3
    more = len(presence.sigmas) * tried + 1 + 3 * len(swap.sigmas)
    assert open_too - known == pytest.approx(more)


def test_a_run_with_unknown_gains_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sources, so that rounds swap gains too; killed at several places."""
    monkeypatch.setattr("pyro_sep.inference.annealing.checkpoint.SECONDS", -1.0)
    priors = {name: Band(0.5, name) for name in ("first", "second", "third")}
    mixture = torch.randn(2, 60, generator=torch.Generator().manual_seed(4))
    settings = Annealing(**LADDER, candidates=3, replicas=2, draws=25)
    calls = 0

    def run(path: Path | None, killed_at: int) -> tuple[MemoryRecorder, RunInfo]:
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

        def posterior(batch: Tensor) -> AnnealedPosterior:
            latent = start_mixing(batch, priors, Mixing.mean(3), True, True)
            return Counting(batch, list(priors.values()), latent)

        recorder = MemoryRecorder()
        checkpoint = None if path is None else Checkpoint(path, {})
        generator = torch.Generator().manual_seed(0)
        return recorder, anneal(mixture, posterior, settings, generator, recorder, checkpoint)

    whole, info = run(None, 0)
    total = calls
    assert torch.diff(whole.draws.mixing["gains"], dim=2).abs().max() > 1e-3
    for killed_at in range(35, total, total // 5):
        path = tmp_path / f"{killed_at}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(path, killed_at)
        again, rest = run(path, 0)
        assert calls < total
        for name in ("gains", "noise_scale"):
            assert torch.equal(again.draws.mixing[name], whole.draws.mixing[name])
        assert torch.equal(again.draws.noisy, whole.draws.noisy)
        assert rest.gradients == info.gradients
