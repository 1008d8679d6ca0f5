r"""The modes of a separation: explanations of the mixture that its draws hold, and their weights.

Draws of one chain in which the sources have swapped what they explain are apart, and so are chains.
Two such groups are one mode where the means of every contribution :math:`a_k s_k` are alike,

.. math:: \|\bar c_k - \bar c_k'\|^2 \le \epsilon \, (\|\bar c_k\|^2 + \|\bar c_k'\|^2)

or differ by nothing that is heard in the mixture. Within a chain modes have the weight that the
chain gives them. Chains that share no mode have never met: their masses are compared by a bridge
(:mod:`pyro_sep.inference.bridge`) where that tells more than it errs, the errors of learned
densities included, and else by the number of independent searches that ended there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pyro_sep.inference.bridge import MassRatio
from pyro_sep.trace.draws import ALIKE

UNHEARD = 0.01  # of the mixture's power
SIGNIFICANT = 3.0  # standard errors
LARGEST = 300.0  # nats: what is more probable than that is certain

Array = NDArray[np.floating]

#: The log ratio of the mass of the second of two groups to that of the first.
Compare = Callable[[int, int], MassRatio]


@dataclass(frozen=True)
class Group:
    """Draws of a chain in which every source explains the same.

    Attributes:
        chain: its number.
        count: of draws.
        lp: their mean log posterior, nats; NaN of a chain that diverged.
        contributions: their means ``(source, time)``.
    """

    chain: int
    count: int
    lp: float
    contributions: Array


@dataclass(frozen=True)
class Modes:
    """Of every group of draws its mode, by falling probability, and its probability.

    Attributes:
        label: of the mode, from 0, ``(group,)``.
        weight: ``(group,)``; they add up to 1.
        by_density: whether densities weighed chains that share no mode, not their number.
    """

    label: list[int]
    weight: list[float]
    by_density: bool

    @property
    def probability(self) -> list[float]:
        """Of every mode, falling."""
        pairs = list(zip(self.label, self.weight, strict=True))
        return [sum(w for k, w in pairs if k == label) for label in range(1 + max(self.label))]


def find_modes(
    groups: Sequence[Group], mixture: Array, compare: Compare | None, density_error: float
) -> Modes:
    """Tell the modes of groups apart, and weigh them.

    Args:
        groups: of all chains.
        mixture: ``(time,)``.
        compare: masses of two groups, given their numbers; None where chains count alike.
        density_error: standard error of the priors' log densities of a frame, in nats.

    >>> tones = np.sin(np.arange(64)), np.cos(np.arange(64))
    >>> one, other = np.stack(tones), np.stack(tones[::-1])
    >>> groups = [Group(0, 6, -1.0, one), Group(0, 2, -2.0, other), Group(1, 8, -1.0, one)]
    >>> find_modes(groups, sum(tones), None, 0.0).probability
    [0.875, 0.125]
    """
    parts = _clusters(groups, mixture)
    mass, by_density = _masses(groups, parts, compare, density_error)
    of_chain = {
        chain: sum(group.count for group in groups if group.chain == chain)
        for chain in {group.chain for group in groups}
    }
    weight = np.array([mass[group.chain] * group.count / of_chain[group.chain] for group in groups])
    weight /= weight.sum()
    labels = sorted(set(parts))
    total = {
        k: round(sum(weight[i] for i, part in enumerate(parts) if part == k), 9) for k in labels
    }
    best = {k: max(_lp(groups[i]) for i, part in enumerate(parts) if part == k) for k in labels}
    order = sorted(labels, key=lambda k: (-total[k], -best[k]))
    return Modes([order.index(part) for part in parts], weight.tolist(), by_density)


def _lp(group: Group) -> float:
    return -math.inf if math.isnan(group.lp) else group.lp


def _clusters(groups: Sequence[Group], mixture: Array) -> list[int]:
    """Number of the cluster of each group; the largest group of a cluster leads it."""
    unheard = UNHEARD * float(np.square(mixture.astype(float)).sum())
    leaders: list[int] = []
    found = [0] * len(groups)
    for i in sorted(range(len(groups)), key=lambda i: (-groups[i].count, i)):
        alike = (k for k, j in enumerate(leaders) if _alike(groups[i], groups[j], unheard))
        found[i] = next(alike, len(leaders))
        if found[i] == len(leaders):
            leaders.append(i)
    return found


def _alike(one: Group, other: Group, unheard: float) -> bool:
    """Whether two groups hold the same explanation; those that are not finite never do."""
    a, b = one.contributions.astype(float), other.contributions.astype(float)
    power = np.square(a).sum(-1) + np.square(b).sum(-1)
    return bool((np.square(a - b).sum(-1) <= np.maximum(ALIKE * power, unheard)).all())


def _masses(
    groups: Sequence[Group], parts: Sequence[int], compare: Compare | None, density_error: float
) -> tuple[dict[int, float], bool]:
    """The relative mass that each chain stands for, and whether densities tell it."""
    chains = sorted({group.chain for group in groups})
    sound = [c for c in chains if all(g.lp == g.lp for g in groups if g.chain == c)] or chains
    islands = _islands(sound, groups, parts)
    masses = [float(len(island)) for island in islands]
    by_density = False
    if compare is not None and len(islands) > 1:
        largest = [_largest(island, groups) for island in islands]
        reference = max(range(len(islands)), key=lambda k: _lp(groups[largest[k]]))
        for k, number in enumerate(largest):
            if k == reference:
                continue
            found = compare(largest[reference], number)
            error = math.hypot(found.error, density_error * math.sqrt(2))
            if error < 1 or abs(found.log_ratio) > SIGNIFICANT * error:
                own = _share(largest[reference], groups, parts) / _share(number, groups, parts)
                masses[k] = masses[reference] * own * math.exp(min(found.log_ratio, LARGEST))
                by_density = True
    mass = dict.fromkeys(chains, 0.0)
    for island, value in zip(islands, masses, strict=True):
        mass |= dict.fromkeys(island, value / len(island))
    return mass, by_density


def _islands(
    chains: Sequence[int], groups: Sequence[Group], parts: Sequence[int]
) -> list[list[int]]:
    """Chains that share modes, directly or by way of others, together."""
    modes = {
        c: {part for part, g in zip(parts, groups, strict=True) if g.chain == c} for c in chains
    }
    island = {c: c for c in chains}
    for c, d in combinations(chains, 2):
        if modes[c] & modes[d] and island[c] != island[d]:
            old, new = island[d], island[c]
            island = {chain: new if name == old else name for chain, name in island.items()}
    return [[c for c in chains if island[c] == name] for name in dict.fromkeys(island.values())]


def _largest(island: Sequence[int], groups: Sequence[Group]) -> int:
    """Number of the largest group of these chains, the more probable one of two."""
    own = [i for i, group in enumerate(groups) if group.chain in island]
    return max(own, key=lambda i: (groups[i].count, _lp(groups[i])))


def _share(number: int, groups: Sequence[Group], parts: Sequence[int]) -> float:
    """Share of a group's mode in the draws of its chain."""
    chain = groups[number].chain
    own = [i for i, group in enumerate(groups) if group.chain == chain]
    same = sum(groups[i].count for i in own if parts[i] == parts[number])
    return same / sum(groups[i].count for i in own)
