import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found, best_of_groups, descend, repeat
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.search import MISFIT, Result, candidates, is_plausible, search
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation
from pyro_sep.mixing.known import Mixing
from pyro_sep.progress import Progress

TIME, BATCH = 4, 300
LADDER: dict[str, Any] = {"sigma_max": 0.5, "sigma_freeze": 0.3, "sigma_min": 0.1, "levels": 12}


def annealing(**settings: Any) -> Annealing:
    return Annealing(**(LADDER | {"swaps": 0, "replicas": 0, "tries": 1} | settings))


def evaluator(seed: int = 0, **settings: Any) -> Evaluator:
    generator = torch.Generator().manual_seed(seed)
    return Evaluator(annealing(**settings), generator, Progress(False, 1.0))


class TwoModes(GaussianPrior):
    """The whole frame is near its level or near 0, which is less likely by 4 nats."""

    def condition(self, sigma: float) -> "TwoModes":
        return type(self)(self.name, self.rms, self.event_shape[0], sigma)

    def frame(self, time: int) -> "TwoModes":
        return type(self)(self.name, self.rms, time, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        std = math.hypot(0.1, self.sigma)
        near, far = (
            torch.distributions.Normal(mean, std).log_prob(value).sum(-1)
            for mean in (self.rms, 0.0)
        )
        return torch.logaddexp(near, far - 4)

    def misfit(self, value: Tensor) -> Tensor:
        return torch.full_like(value[..., 0], math.nan)


class Knowing(TwoModes):
    """Is surprised by the mode that is less likely."""

    def misfit(self, value: Tensor) -> Tensor:
        return (value - self.rms).square().mean(-1) / (0.1**2 + self.sigma**2)


class Silent(TwoModes):
    """Must not be asked."""

    def misfit(self, value: Tensor) -> Tensor:
        raise AssertionError


def posterior(kind: type[TwoModes] = TwoModes, batch: int = BATCH) -> AnnealedPosterior:
    """Silence: two sources at +1 and -1, or both at 0."""
    priors = [kind("up", 1.0), kind("down", -1.0)]
    return AnnealedPosterior(torch.zeros(batch, TIME), priors, Mixing.mean(2))


def right(clean: Tensor) -> Tensor:
    return (clean[:, 0].mean(-1) > 0.5) & (clean[:, 1].mean(-1) < -0.5)


def run(kind: type[TwoModes], **settings: int) -> Result:
    return search(posterior(kind), evaluator(**settings), False)


def test_best_of_groups_are_those_of_the_highest_log_density_of_each_group() -> None:
    log_density = torch.tensor([0.0, 9.0, 1.0, -5.0, -8.0, -6.0])
    assert best_of_groups(log_density, 3).tolist() == [1, 3]
    assert best_of_groups(log_density, 2).tolist() == [1, 2, 5]
    assert best_of_groups(log_density, 1).tolist() == list(range(6))
    assert best_of_groups(log_density, 6).tolist() == [1]
    two = best_of_groups(log_density, 3, 2).reshape(2, 2)
    assert [set(batch) for batch in two.tolist()] == [{1, 2}, {3, 5}]


def test_a_chain_that_diverged_is_never_the_best() -> None:
    assert best_of_groups(torch.tensor([math.nan, -9.0, math.inf, math.nan]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("place", range(4))
def test_halving_keeps_the_best(place: int) -> None:
    batch, group = 3, 4
    target = repeat(posterior(TwoModes, batch), group)
    start = torch.zeros(batch, group, 2, TIME)
    start[:, place] = torch.tensor([1.0, -1.0])[:, None]
    halving = ((0.35, 2), (0.15, 1))
    sigmas = (0.4, 0.3, 0.2, 0.1, 0.1)
    work = evaluator()
    found = descend(
        target,
        start.flatten(0, 1),
        sigmas,
        work,
        averaged=2,
        group=group,
        halving=halving,
    )
    assert found.clean.shape == (batch, 2, TIME)
    assert found.target.mixture.shape == (batch, TIME)
    assert right(found.clean).all()
    # Of four candidates one level is evaluated, of two another two.
    assert work.cost == batch * 2 * TIME * (4 + 2 + 2 + 1 + 1)


def test_the_last_levels_say_which_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate is ahead at the first levels, the other at the last three."""
    scores = iter([[9.0, 0.0], [9.0, 0.0], [0.0, 2.0], [0.0, 2.0], [4.0, 1.0]])

    def evaluate(target: AnnealedPosterior, sources: Tensor, sigma: float) -> Evaluation:
        log_density = torch.tensor(next(scores, [0.0]))
        return Evaluation(log_density, torch.zeros_like(sources), torch.zeros(len(sources), 2))

    monkeypatch.setattr(AnnealedPosterior, "evaluate", evaluate)
    target = repeat(posterior(batch=1), 2)
    start = torch.tensor([[[1.0], [-1.0]], [[5.0], [-5.0]]]).repeat(1, 1, TIME)
    sigmas = (1e-3, 9e-4, 8e-4, 7e-4, 6e-4, 1e-4)
    found = descend(target, start, sigmas, evaluator(), group=2, halving=((5e-4, 1),))
    assert found.clean[:, 0].mean().item() == pytest.approx(5.0, abs=0.1)


def test_without_halving_every_candidate_is_kept() -> None:
    target = posterior(TwoModes, 4)
    start = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).repeat(2, 1)[..., None].repeat(1, 1, TIME)
    found = descend(target, start, (0.2, 0.1), evaluator())
    assert right(found.clean).tolist() == [True, False, True, False]
    assert found.log_density.argsort(descending=True)[:2].sort().values.tolist() == [0, 2]


def test_clean_sources_and_log_density_are_means_of_the_last_levels() -> None:
    target = posterior(TwoModes, 5)
    start = torch.ones(5, 2, TIME)
    parts = [
        descend(target, start, sigmas, evaluator(3)) for sigmas in ((0.3, 0.2), (0.3, 0.2, 0.1))
    ]
    both = descend(target, start, (0.3, 0.2, 0.1), evaluator(3), averaged=2)
    assert torch.allclose(both.clean, (parts[0].clean + parts[1].clean) / 2)
    expected = (parts[0].log_density + parts[1].log_density) / 2
    assert torch.allclose(both.log_density, expected)


def test_the_better_mode_is_found_more_often_by_more_candidates() -> None:
    shares = [
        float(right(run(TwoModes, candidates=count).clean).double().mean()) for count in (1, 4)
    ]
    error = math.sqrt(0.25 / BATCH)
    assert 0.05 < shares[0] < 0.9
    assert shares[1] > shares[0] + 4 * error
    # Halving cannot do better than to take the best of four.
    assert shares[1] < 1 - (1 - shares[0]) ** 4 + 8 * error


def test_a_search_that_fails_tries_again_and_says_so() -> None:
    once = run(Knowing, candidates=1)
    assert (once.tries == 1).all()
    assert torch.equal(once.plausible, right(once.clean))
    share = float(once.plausible.double().mean())
    assert 0.05 < share < 0.9
    most = 4
    result = run(Knowing, candidates=1, tries=most)
    assert torch.equal(result.plausible, right(result.clean))
    expected = 1 - (1 - share) ** most
    error = math.sqrt(most**2 * (1 - share) ** 6 * share * (1 - share) + 0.25) / math.sqrt(BATCH)
    assert float(result.plausible.double().mean()) == pytest.approx(expected, abs=4 * error)
    # What the first try found is kept, and who has found nothing has tried all.
    assert torch.equal(result.clean[once.plausible], once.clean[once.plausible])
    assert torch.equal(result.tries == 1, once.plausible)
    assert (result.tries[~result.plausible] == most).all()
    assert set(result.tries.tolist()) == set(range(1, most + 1))


def test_of_searches_that_all_fail_the_likeliest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [[-3.0, -1.0], [-2.0, -4.0], [-5.0, 7.0]]

    def attempt(target: AnnealedPosterior, *_: object) -> Found:
        log_density = torch.tensor(given.pop(0))
        clean = log_density[:, None, None].expand(-1, 2, TIME)
        return Found(target, -clean.abs(), log_density)

    monkeypatch.setattr("pyro_sep.inference.annealing.search.attempt", attempt)
    target = posterior(Knowing, 2)
    result = search(target, evaluator(tries=3), False)
    assert result.clean[:, 0, 0].tolist() == [-2.0, -7.0]
    assert result.tries.tolist() == [3, 3]
    assert not result.plausible.any()


def test_a_prior_that_cannot_say_never_fails() -> None:
    result = run(TwoModes, candidates=1, tries=4)
    assert (result.tries == 1).all()
    assert result.plausible.all()
    assert not right(result.clean).all()


@pytest.mark.parametrize("time", [100, 4_000])
def test_a_misfit_is_allowed_its_standard_error(time: int) -> None:
    bound = MISFIT + 3 * math.sqrt(2 / time)

    class Fixed(GaussianPrior):
        def misfit(self, value: Tensor) -> Tensor:
            return value.new_tensor(surprises)

        def condition(self, sigma: float) -> "Fixed":
            return self

        def frame(self, time: int) -> "Fixed":
            return self

    surprises: Sequence[float] = (0.2, 1.0, 0.99 * bound, 1.01 * bound, 40.0, math.nan, math.inf)
    count = len(surprises)
    target = AnnealedPosterior(torch.zeros(count, time), [Fixed("a", 0.5)], Mixing((1.0,)))
    found = Found(target, torch.zeros(count, 1, time), torch.zeros(count))
    plausible = is_plausible(found, evaluator())
    assert plausible.tolist() == [True, True, True, False, False, True, False]
    both = AnnealedPosterior(
        torch.zeros(count, time), [Fixed("a", 0.5), Knowing("b", 0.0)], Mixing.mean(2)
    )
    clean = torch.zeros(count, 2, time)
    clean[1, 1] = 9.0  # one source that is not known is enough
    plausible = is_plausible(Found(both, clean, torch.zeros(count)), evaluator())
    assert plausible.tolist() == [True, False, True, False, False, True, False]


def test_the_average_is_the_mean_of_the_candidates() -> None:
    group, batch = 3, 4
    target = posterior(Silent, batch)
    found = candidates(target, evaluator(5, candidates=group), True)
    work = evaluator(5)
    lone = repeat(target, group)
    start = lone.start(work.settings.sigma_max, work.generator)
    each = descend(lone, start, work.settings.search_sigmas, work)
    assert torch.allclose(found.clean, each.clean.reshape(batch, group, 2, TIME).mean(1))
    assert torch.allclose(found.log_density, each.log_density.reshape(batch, group).mean(1))
    assert found.target.mixture.shape == (batch, TIME)
    result = search(target, evaluator(5, candidates=group), True)
    assert torch.equal(result.clean, found.clean)
    assert (result.tries == 1).all()
    assert result.plausible.all()
