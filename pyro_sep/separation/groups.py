"""Means of draws that explain the mixture alike, and the modes that follow from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pyro_sep.inference.annealing.draws import Draws
from pyro_sep.inference.bridge import MassRatio, mass_ratio
from pyro_sep.separation.modes import Group, Modes, find_modes
from pyro_sep.storage.states import check_like, check_shapes
from pyro_sep.trace.draws import chosen_draws
from pyro_sep.trace.estimate import shrunk_mean

COMPARED = 50  # noisy draws of a chain, at least, that are held to compare masses by

#: Number of the mixture, of the chain, and what each source explains (see Draws).
Key = tuple[int, ...]

#: Log density of noisy sources ``(draw, source, frame)`` of the mixture of this number.
LogDensity = Callable[[int, Tensor], Tensor]


class GroupedDraws:
    """Sums over the draws of each group: those of a chain between which no source swapped.

    Args:
        mixtures: ``(mixture, time)``.
        gains: known a_k.
        sample_rate: in Hz, of all channels together, which are interleaved.
        log_density: by which chains that share no mode are weighed; None where they count alike.
        density_error: see :func:`~pyro_sep.separation.modes.find_modes`.
    """

    def __init__(
        self,
        mixtures: Tensor,
        gains: Sequence[float],
        sample_rate: int,
        log_density: LogDensity | None,
        density_error: float,
    ) -> None:
        self.mixtures, self.gains = mixtures.cpu(), torch.tensor(gains)
        self.sample_rate = sample_rate
        self.log_density, self.density_error = log_density, density_error
        self.orders: list[Tensor] = []  # of blocks, (mixture, chain, draw, source)
        self.lp: list[Tensor] = []  # of blocks, (mixture, chain, draw)
        self.noisy: list[Tensor] = []  # of the first blocks, (mixture, chain, draw, source, frame)
        self.sums: dict[Key, dict[str, Tensor]] = {}  # by name

    def add(self, draws: Draws, values: Mapping[str, Tensor]) -> None:
        """Add a block of draws, and the values ``(mixture, chain, draw, ...)`` to be averaged."""
        orders = draws.assignment.cpu()
        gains = values.get("gains", self.gains)
        # Of unknown gains the product with the source is identified better than its factors.
        values = {**values, "contributions": gains[..., None] * values["sources"]}
        compared = self.log_density is not None and orders.shape[1] > 1
        if compared:
            values["frame"] = draws.means.cpu()
        for key in _keys([orders]):
            same = (orders[key[:2]] == torch.tensor(key[2:])).all(-1)
            total = self.sums.setdefault(key, {})
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value[key[:2]][same].double().sum(0)
        held = sum(block.shape[2] for block in self.noisy)
        if compared and held < COMPARED:
            self.noisy.append(draws.noisy.cpu())
        self.orders.append(orders)
        self.lp.append(draws.statistics.lp.cpu())

    def modes(self, i: int) -> "MixtureModes":
        """The modes of the mixture of this number."""
        keys = [key for key in self.sums if key[0] == i]
        orders, lp = (torch.cat([b[i] for b in blocks], 1) for blocks in (self.orders, self.lp))
        chosen = [(orders[key[1]] == torch.tensor(key[2:])).all(-1) for key in keys]
        groups, means = [], []
        for key, same in zip(keys, chosen, strict=True):
            count = int(same.sum())
            mean = {name: total / count for name, total in self.sums[key].items()}
            heard = mean["contributions"].float().numpy()
            groups.append(Group(key[1], count, float(lp[key[1], same].double().mean()), heard))
            means.append(mean)
        centres = [mean.pop("frame") for mean in means] if self.noisy else []
        weigh = partial(self._compare, keys, centres) if centres else None
        found = find_modes(groups, self.mixtures[i].numpy(), weigh, self.density_error)
        return MixtureModes(lp, groups, means, chosen, found, self.gains, self.sample_rate)

    def _compare(
        self, keys: Sequence[Key], centres: Sequence[Tensor], one: int, other: int
    ) -> MassRatio:
        """The log ratio of the masses of two groups."""
        log_density = partial(cast(LogDensity, self.log_density), keys[one][0])
        noisy, others = self._noisy(keys[one]), self._noisy(keys[other])
        shift = (centres[other] - centres[one]).float()
        return mass_ratio(log_density, noisy, others, shift)

    def _noisy(self, key: Key) -> Tensor:
        """The noisy draws of a group that are held, ``(draw, source, frame)``."""
        order = torch.tensor(key[2:])
        blocks = zip(self.noisy, self.orders, strict=False)  # the first ones alone are held
        return torch.cat([n[key[:2]][(o[key[:2]] == order).all(-1)] for n, o in blocks])

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint."""
        keys, sums = [[*key] for key in self.sums], [*self.sums.values()]
        blocks = {"orders": self.orders, "lp": self.lp, "noisy": self.noisy}
        return blocks | {"keys": keys, "sums": sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            ValueError: a part that does not fit the others.
        """
        orders, noisy, sums = state["orders"], state["noisy"], state["sums"]
        keys, shapes = [tuple(key) for key in state["keys"]], [tuple(o.shape) for o in orders]
        time, mixtures = self.mixtures.shape[-1], len(self.mixtures)
        check_shapes("lp", state["lp"], [shape[:3] for shape in shapes])
        heard, held = [n[..., :time] for n in noisy], shapes[: len(noisy)]
        check_shapes("noisy", heard, [(*shape, time) for shape in held])
        if {*keys} != {*_keys(orders)} or len(keys) != len(sums):
            raise ValueError("its sums are not those of its draws")
        for key, total in zip(keys, sums, strict=True):
            check_like("sums", total, sums[0])
            check_shapes("sums", [total["sources"]], [(len(key) - 2, time)])
        if any(shape[0] != mixtures for shape in shapes):
            raise ValueError("it has another number of mixtures")
        self.orders, self.lp, self.noisy = orders, state["lp"], noisy
        self.sums = dict(zip(keys, sums, strict=True))


class MixtureModes(NamedTuple):
    """The groups of a mixture's draws, and their modes."""

    lp: Tensor  # (chain, draw)
    groups: list[Group]
    means: list[dict[str, Tensor]]  # over the draws of each group, by name
    chosen: list[Tensor]  # of each group: which draws of its chain, (draw,)
    modes: Modes
    gains: Tensor  # known a_k
    sample_rate: int

    def of_draws(self) -> dict[str, Any]:
        """Mode and weight of every draw ``(chain, draw)``, and the probability of every mode."""
        mode, weight = torch.zeros_like(self.lp, dtype=torch.int32), torch.zeros_like(self.lp)
        rows = zip(self.groups, self.chosen, self.modes.label, self.modes.weight, strict=True)
        for group, same, label, share in rows:
            mode[group.chain, same] = label
            weight[group.chain, same] = share / group.count
        return {"label": mode, "weight": weight, "probability": self.modes.probability}

    def mean(self, estimate: str) -> dict[str, Tensor]:
        """Means over the draws that an estimate is of, by name.

        Of several chains, contributions are shrunk, see :mod:`pyro_sep.trace.estimate`, and sources
        are these over the mean gains.
        """
        told = self.of_draws()
        lp = self.lp.numpy()
        drawn = chosen_draws(told["label"].numpy(), told["weight"].numpy(), lp, estimate)
        share = np.zeros(lp.shape)
        np.add.at(share, tuple(drawn.T), 1 / len(drawn))
        totals: dict[str, Tensor] = {}
        chains: dict[int, Tensor] = {}  # contributions of each
        for group, same, mean in zip(self.groups, self.chosen, self.means, strict=True):
            own = float(share[group.chain, same.numpy()].sum())
            for name, value in mean.items() if own else ():
                totals[name] = totals.get(name, 0.0) + own * value
            if own:
                part = own / share[group.chain].sum() * mean["contributions"]
                chains[group.chain] = chains.get(group.chain, 0.0) + part
        if len(chains) > 1:
            found = shrunk_mean(torch.stack([*chains.values()]).float().numpy(), self.sample_rate)
            totals["contributions"] = torch.from_numpy(found)
            gains = totals.get("gains", self.gains)
            totals["sources"] = totals["contributions"] / gains[:, None]
        return {name: total.float() for name, total in totals.items()}


def _keys(orders: Iterable[Tensor]) -> list[Key]:
    """Of the groups in blocks of draws, in order of appearance."""
    found: dict[Key, None] = {}
    for block in orders:
        for i, chain in product(range(block.shape[0]), range(block.shape[1])):
            found |= {(i, chain, *order): None for order in block[i, chain].tolist()}
    return [*found]
