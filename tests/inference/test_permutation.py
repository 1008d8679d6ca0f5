import math
from itertools import permutations

import pytest
import scipy.stats
import torch
from conftest import MakePriors
from torch import Tensor

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.steps.permutation import draw_assignment, reassign
from pyro_sep.mixing.known import Mixing

ORDERS = list(permutations(range(3)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def law_of_orders(cross: Tensor) -> Tensor:
    """Probability of every order in which three priors can take three contributions."""
    return torch.stack([cross[range(3), order].sum() for order in ORDERS]).softmax(0)


def p_value(assignment: Tensor, law: Tensor) -> float:
    code = assignment @ torch.tensor([9, 3, 1])
    counts = [int((code == i * 9 + j * 3 + k).sum()) for i, j, k in ORDERS]
    assert sum(counts) == len(assignment)
    expected = law * len(assignment)
    assert expected.min() > 100
    return float(scipy.stats.chisquare(counts, expected.numpy()).pvalue)


@pytest.mark.parametrize("sweeps", [1, 2])
def test_the_heat_bath_leaves_the_law_of_orders_as_it_is(sweeps: int) -> None:
    batch, cross = 40_000, 1.2 * normal(3, 3)
    law = law_of_orders(cross)
    before = torch.tensor(ORDERS)[torch.multinomial(law, batch, True, generator=generator(1))]
    assert p_value(before, law) > 1e-4
    # Source j now holds share before[j].
    presented = cross[:, before].movedim(1, 0)
    moved = before.gather(1, draw_assignment(presented, generator(2), sweeps))
    assert p_value(moved, law) > 1e-4
    assert 0.2 < float((moved == before).all(1).double().mean()) < 0.8


def test_the_heat_bath_converges_to_the_law_of_orders() -> None:
    batch, cross = 40_000, 1.2 * normal(3, 3)
    law = law_of_orders(cross)
    assignment = draw_assignment(cross.expand(batch, 3, 3), generator(3), sweeps=15)
    assert p_value(assignment, law) > 1e-4
    assert p_value(assignment, law_of_orders(-cross)) < 1e-20
    assert p_value(assignment, law_of_orders(cross.T)) < 1e-20


@pytest.mark.parametrize("log_odds", [-1.5, 0.0, 2.0])
def test_two_sources_swap_by_the_odds(log_odds: float) -> None:
    batch, cross = 20_000, torch.zeros(2, 2)
    cross[0, 1] = cross[1, 0] = log_odds / 4
    cross[0, 0] = cross[1, 1] = -log_odds / 4
    swapped = draw_assignment(cross.expand(batch, 2, 2), generator(), sweeps=1)[:, 0].double()
    expected = 1 / (1 + math.exp(-log_odds))
    # Chains draw on their own: one draw for all would give 0 or 1.
    error = math.sqrt(expected * (1 - expected) / batch)
    assert abs(float(swapped.mean()) - expected) < 4.5 * error


def test_a_swap_leaves_the_mixture_and_the_volume() -> None:
    gains = torch.tensor([[0.3], [1.5], [-0.8], [0.9]]).double()
    sources = normal(50, 4, 6)
    order = torch.stack([torch.randperm(4, generator=generator(i)) for i in range(50)])
    moved = reassign(sources, order, gains)
    mixture = (gains * sources).sum(1)
    assert float(((gains * moved).sum(1) - mixture).abs().max()) < 1e-12
    for row in (0, 7, 31):
        for source in range(4):
            taken = int(order[row, source])
            expected = gains[taken] * sources[row, taken] / gains[source]
            assert torch.allclose(moved[row, source], expected, rtol=1e-14)
    back = reassign(moved, order.argsort(1), gains)
    assert torch.allclose(back, sources, rtol=1e-12)
    kept = reassign(sources, torch.arange(4).expand(50, 4), gains)
    assert torch.allclose(kept, sources, rtol=1e-14)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: reassign(flat.reshape(1, 4, 2), order[:1], gains).flatten(),
        normal(8),
    )
    assert abs(float(torch.linalg.slogdet(jacobian).logabsdet)) < 1e-12


@pytest.mark.parametrize("gains", [(0.7, 0.9, 1.2), (1.2, -0.5)])
def test_swaps_leave_the_joint_law_of_sources_and_mixture(
    gaussian_priors: MakePriors, gains: tuple[float, ...]
) -> None:
    levels, sigma, batch, time = (0.4, 0.6, 0.9)[: len(gains)], 0.3, 20_000, 2
    mixing, priors = Mixing(gains, 0.1), gaussian_priors(*levels)
    scales = torch.tensor([[math.sqrt(level**2 + sigma**2)] for level in levels]).double()
    sources = scales * normal(batch, len(gains), time)
    mixture = mixing.mix(sources)
    target = AnnealedPosterior(mixture, list(priors.values()), mixing)
    weights, noise = mixing.weights(sources), generator(1)
    swapped = 0.0
    for _ in range(5):
        assignment = draw_assignment(target.cross_log_prior(sources, sigma), noise)
        swapped += float((assignment != torch.arange(len(gains))).any(1).double().mean()) / 5
        sources = reassign(sources, assignment, weights)
    assert 0.2 < swapped < 0.9
    assert float((mixing.mix(sources) - mixture).abs().max()) < 1e-12
    unit = (sources / scales).movedim(1, 0).flatten(1)
    for k in range(len(gains)):
        assert scipy.stats.kstest(unit[k].numpy(), "norm").pvalue > 1e-4
    count = batch * time
    covariance = unit @ unit.T / count
    assert ((covariance.diagonal() - 1).abs() < 4.5 * math.sqrt(2 / count)).all()
    across = covariance - torch.diag(covariance.diagonal())
    assert (across.abs() < 4.5 / math.sqrt(count)).all()
    # The power of a chain is where the wrong odds would show first: its samples move together.
    power = unit.reshape(len(gains), batch, time).square().sum(-1)
    for k in range(len(gains)):
        assert scipy.stats.kstest(power[k].numpy(), "chi2", args=(time,)).pvalue > 1e-4


def test_a_wrong_assignment_is_mended_and_a_right_one_kept(gaussian_priors: MakePriors) -> None:
    levels, batch = (0.1, 0.5, 1.0), 200
    mixing = Mixing((1.3, 0.4, 0.8), 0.1)
    right = torch.tensor(levels).double()[:, None] * normal(batch, 3, 400)
    mixture, weights = mixing.mix(right), mixing.weights(right)
    target = AnnealedPosterior(mixture, list(gaussian_priors(*levels).values()), mixing)
    for order in ORDERS:
        held = reassign(right, torch.tensor(order).expand(batch, 3), weights)
        assignment = draw_assignment(target.cross_log_prior(held, 0.02), generator(), sweeps=2)
        mended = reassign(held, assignment, weights)
        assert torch.allclose(mended, right, rtol=1e-12), order


def test_chains_do_not_know_of_each_other() -> None:
    cross = 1.2 * normal(100, 3, 3)
    first = draw_assignment(cross, generator())
    cross[40] = 50 * torch.eye(3).roll(1, 0)
    second = draw_assignment(cross, generator())
    others = torch.arange(100) != 40
    assert torch.equal(first[others], second[others])
    assert second[40].tolist() == [2, 0, 1]


def test_the_generator_decides() -> None:
    cross = 1.2 * normal(100, 3, 3)
    first = draw_assignment(cross, generator())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(draw_assignment(cross, generator()), first)
    assert not torch.equal(draw_assignment(cross, generator(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = draw_assignment(cross)
    torch.manual_seed(99)
    assert torch.equal(draw_assignment(cross), drawn)


def test_one_source_keeps_its_share() -> None:
    assert draw_assignment(normal(5, 1, 1), generator()).tolist() == [[0]] * 5
