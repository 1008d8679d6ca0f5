import math
from collections.abc import Callable

import pytest
import torch

from pyro_sep.inference.settings import Tournament
from pyro_sep.inference.tournament import candidates, enter
from pyro_sep.mixing import Mixing
from pyro_sep.posterior import AnnealedPosterior
from pyro_sep.presence import SpikeAndSlab
from pyro_sep.priors import Priors

MakePriors = Callable[..., Priors]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_candidates_are_all_exchanges_and_all_flips(count: int) -> None:
    orders, flips = candidates(count, flip=True)
    pairs = math.comb(count, 2)
    assert len(orders) == len(flips) == 1 + pairs + count
    assert (orders[0], flips[0]) == (list(range(count)), [False] * count)
    assert len({(*order, *flip) for order, flip in zip(orders, flips, strict=True)}) == len(orders)
    moved = [sum(i != k for i, k in enumerate(order)) for order in orders]
    assert moved == [0] + [2] * pairs + [0] * count
    assert [sum(flip) for flip in flips] == [0] * (1 + pairs) + [1] * count
    assert candidates(count, flip=False) == (orders[: 1 + pairs], flips[: 1 + pairs])


def test_all_enter_at_one_noise_level(gaussian_priors: MakePriors) -> None:
    lanes, time, sigma = 2, 4000, 0.2
    priors = [SpikeAndSlab(prior) for prior in gaussian_priors(0.5, 0.3).values()]
    present = torch.tensor([[True, False], [True, True]])
    target = AnnealedPosterior(torch.zeros(lanes, time), priors, Mixing.mean(2), present=present)
    clean = torch.tensor([[10.0, 0.0], [10.0, -10.0]])  # silence is what it says
    generator = torch.Generator().manual_seed(0)
    noise = sigma * torch.randn(lanes, 2, time, generator=generator)
    tournament = Tournament((0.7, 0.4, sigma), 3, 1)
    entered, position, changed = enter(target, clean[..., None] + noise, tournament, generator)
    assert changed.tolist() == [False, True, True, True] * lanes
    assert entered.present is not None
    # As it is, exchanged, the first flipped, the second flipped; lane after lane.
    expected = torch.tensor(
        [[[10, 0], [0, 10], [0, 0], [10, 0]], [[10, -10], [-10, 10], [0, -10], [10, 0]]]
    ).flatten(0, 1)
    assert torch.equal(entered.present[:4].int(), torch.tensor([[1, 0], [0, 1], [0, 0], [1, 1]]))
    assert torch.equal(entered.present[4:].int(), torch.tensor([[1, 1], [1, 1], [0, 1], [1, 0]]))
    # 4,000 numbers: means to 0.011, stds to 1.1 %.
    assert torch.allclose(position.mean(-1), expected.float(), atol=0.05)
    assert torch.allclose(position.std(-1), torch.tensor(0.7), rtol=0.05)


def test_silence_for_silence_is_no_change(gaussian_priors: MakePriors) -> None:
    priors = [SpikeAndSlab(prior) for prior in gaussian_priors(0.5, 0.3, 0.2).values()]
    present = torch.tensor([[False, True, False]])
    target = AnnealedPosterior(torch.zeros(1, 20), priors, Mixing.mean(3), present=present)
    tournament, generator = Tournament((0.7, 0.2), 3, 1), torch.Generator().manual_seed(0)
    _, _, changed = enter(target, torch.zeros(1, 3, 20), tournament, generator)
    orders, _ = candidates(3, flip=True)
    assert [order for order, new in zip(orders, changed, strict=True) if not new] == [
        [0, 1, 2],
        [2, 1, 0],
    ]
