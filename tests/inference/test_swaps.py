import math
from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from conftest import GaussianPrior, MakePriors
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import SCREENED, Annealing, Round
from pyro_sep.inference.annealing.swaps import rank, swap_round, swap_search
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.progress import Progress

PLACES, TIME, SIGMA = (-1.5, 0.0, 1.5), 20, 0.1
SETTINGS = Annealing(1.5, 0.3, SIGMA, levels=6)


def held(most: int = 4) -> Round:
    return SETTINGS.rounds(3, False)[0]._replace(most=most)


class Placed(GaussianPrior):
    """The frame is near one of three constants: by 20 nats rather near its own, ``level``."""

    def condition(self, sigma: float) -> "Placed":
        return Placed(self.name, self.rms, self.event_shape[0], sigma)

    def frame(self, time: int) -> "Placed":
        return Placed(self.name, self.rms, time, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        std = math.hypot(0.1, self.sigma)
        modes = [
            torch.distributions.Normal(place, std).log_prob(value).sum(-1)
            - 20.0 * (place != self.rms)
            for place in PLACES
        ]
        return torch.stack(modes).logsumexp(0)


def evaluator() -> Evaluator:
    return Evaluator(SETTINGS, torch.Generator().manual_seed(0), Progress(False, 1.0))


def placed(orders: Sequence[Sequence[int]]) -> Found:
    """Chains whose sources are at each other's places."""
    clean = torch.tensor(PLACES)[torch.tensor(orders)][..., None].repeat(1, 1, TIME)
    mixture = torch.tensor(PLACES).mean().expand(len(orders), TIME)
    priors = [Placed(str(place), place) for place in PLACES]
    target = AnnealedPosterior(mixture, priors, Mixing.mean(3))
    return Found(target, clean, torch.zeros(len(orders)))


def silent_or_not(priors: Priors, present: Sequence[Sequence[bool]], clean: Tensor) -> Found:
    """Chains in which it is decided which sources are present."""
    target = AnnealedPosterior(
        torch.zeros(len(clean), clean.shape[-1]),
        [SpikeAndSlab(prior) for prior in priors.values()],
        Mixing.mean(len(priors)),
        present=torch.tensor(present),
    )
    return Found(target, clean, torch.zeros(len(clean)))


def assert_in_place(clean: Tensor) -> None:
    # At sigma 0.1 no frame wanders from place to place; a mean of 20 samples errs by 0.03.
    expected = torch.tensor(PLACES).expand(len(clean), 3)
    assert torch.allclose(clean.mean(-1), expected, atol=0.2)


@pytest.mark.parametrize("i", range(3))
def test_the_swap_that_priors_rank_best_comes_first(i: int) -> None:
    j, k = (i + 1) % 3, (i + 2) % 3
    order = [0, 1, 2]
    order[i], order[j] = j, i
    tried = rank(placed([order, [0, 1, 2]]), SIGMA, evaluator())
    assert tried.assignment.shape == tried.flipped.shape == (2, 1 + SCREENED, 3)
    assert not tried.flipped.any()
    assert (tried.assignment[:, 0] == torch.arange(3)).all()
    assert tried.assignment[0, 1].tolist() == order
    moved = tried.assignment[:, 1:] != torch.arange(3)
    assert (moved.sum(-1) == 2).all()
    # Another pair is second: one of the two is left where it is wrong.
    assert len({tuple(row) for row in tried.assignment[0].tolist()}) == 1 + SCREENED
    assert tried.assignment[0, 2, k] != k


@pytest.mark.parametrize(("count", "swaps"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_candidates_are_a_few_swaps_and_all_flips(
    gaussian_priors: MakePriors, count: int, swaps: int
) -> None:
    priors = gaussian_priors(0.5, 0.3, 0.2, 0.4, multiples=(1,) * count)
    clean = torch.zeros(2, count, 8)
    known = AnnealedPosterior(torch.zeros(2, 8), list(priors.values()), Mixing.mean(count))
    if count > 1:
        tried = rank(Found(known, clean, torch.zeros(2)), SIGMA, evaluator())
        assert tried.assignment.shape == (2, 1 + swaps, count)
    found = silent_or_not(priors, [[True] * count] * 2, clean)
    tried = rank(found, SIGMA, evaluator())
    assert tried.assignment.shape == tried.flipped.shape == (2, 1 + swaps + count, count)
    assert not tried.flipped[:, : 1 + swaps].any()
    assert torch.equal(tried.flipped[:, 1 + swaps :], (torch.eye(count) > 0).expand(2, -1, -1))
    assert (tried.assignment[:, 1 + swaps :] == torch.arange(count)).all()
    rows = torch.cat([tried.assignment[0], tried.flipped[0].long()], 1)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)


def test_every_order_is_corrected_and_the_right_one_stays() -> None:
    orders = [*permutations(range(3))]
    found = swap_search(placed(orders), held(), evaluator())
    assert_in_place(found.clean)


def test_one_swap_is_one_round_and_a_cycle_takes_two() -> None:
    orders = [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]
    found, changed = swap_round(placed(orders), held(), evaluator())
    assert changed.tolist() == [False, True, True, True, True]
    assert_in_place(found.clean[:3])
    right = (found.clean.mean(-1) - torch.tensor(PLACES)).abs() < 0.2
    assert right.sum(1).tolist() == [3, 3, 3, 1, 1]
    found, changed = swap_round(found, held(), evaluator())
    assert changed.tolist() == [False, False, False, True, True]
    assert_in_place(found.clean)
    again, changed = swap_round(found, held(), evaluator())
    assert not changed.any()
    assert_in_place(again.clean)


@pytest.mark.parametrize("most", range(5))
def test_only_chains_that_changed_have_another_round(most: int) -> None:
    orders = [(0, 1, 2), (1, 0, 2), (1, 2, 0)]
    work = evaluator()
    found = swap_search(placed(orders), held(most), work)
    searched = (3, 2, 1, 0)[:most]  # a third round finds the cycle in place
    ranked = 3 / 3  # densities of three priors
    each = (1 + SCREENED) * len(held().sigmas) + ranked
    assert work.cost == pytest.approx(sum(searched) * each * 3 * TIME)
    if most == 0:
        assert torch.equal(found.clean, placed(orders).clean)


def test_the_density_is_that_of_the_best() -> None:
    found = swap_search(placed([(0, 1, 2), (1, 2, 0)]), held(), evaluator())
    # Both chains end alike; 40 standard normals of 6 dimensions more or less.
    assert float((found.log_density[0] - found.log_density[1]).abs()) < 40
    worse = swap_search(placed([(1, 2, 0)]), held(1), evaluator())
    assert float(found.log_density.min() - worse.log_density[0]) > 15


class Loud(GaussianPrior):
    """The frame is near its level."""

    def condition(self, sigma: float) -> "Loud":
        return Loud(self.name, self.rms, self.event_shape[0], sigma)

    def frame(self, time: int) -> "Loud":
        return Loud(self.name, self.rms, time, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        std = math.hypot(0.1, self.sigma)
        return torch.distributions.Normal(self.rms, std).log_prob(value).sum(-1)


@pytest.mark.parametrize("present", [(True, False), (False, True), (True, True), (False, False)])
def test_who_is_not_present_is_silenced_and_who_is_is_woken(present: tuple[bool, bool]) -> None:
    levels = torch.tensor([1.5, 0.8])  # so that every one that is right brings it nearer
    starts = [[False, False], [True, False], [False, True], [True, True]]
    target = AnnealedPosterior(
        (levels * torch.tensor(present)).mean().expand(4, TIME),
        [SpikeAndSlab(Loud("loud", 1.5)), SpikeAndSlab(Loud("soft", 0.8))],
        Mixing.mean(2),
        present=torch.tensor(starts),
    )
    clean = (levels * torch.tensor(starts))[..., None].repeat(1, 1, TIME)
    presence = SETTINGS.rounds(2, True)[0]
    found = swap_search(Found(target, clean, torch.zeros(4)), presence, evaluator())
    assert found.target.present is not None
    assert (found.target.present == torch.tensor(present)).all()
    expected = (levels * torch.tensor(present)).expand(4, 2)
    assert torch.allclose(found.clean.mean(-1), expected, atol=0.2)


def test_silence_for_silence_is_no_change(gaussian_priors: MakePriors) -> None:
    """A swap of two that are silent wins here: only one of the pairs is screened."""
    priors = gaussian_priors(0.5, 0.5, 0.5)
    present = [[False, True, False], [False, False, False], [True, True, False]]
    found = silent_or_not(priors, present, torch.zeros(3, 3, TIME))
    kept: list[Tensor] = []

    def best(log_density: Tensor, group: int) -> Tensor:
        """The first swap of every chain."""
        kept.append(log_density)
        return torch.arange(1, len(log_density), group)

    work = evaluator()
    tried = rank(found, held().sigmas[-1], evaluator())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_sep.inference.annealing.swaps.best_of_groups", best)
        result, changed = swap_round(found, held(), work)
    assert len(kept[0]) == 3 * tried.assignment.shape[1]
    expected = []
    for row, order in zip(present, tried.assignment[:, 1].tolist(), strict=True):
        pair = [i for i, j in enumerate(order) if i != j]
        assert len(pair) == 2
        expected.append(any(row[i] for i in pair))
    assert changed.tolist() == expected
    assert not expected[1]
    assert result.target.present is not None
    assert result.target.present.sum(1).tolist() == [1, 0, 2]
