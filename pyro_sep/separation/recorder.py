"""Records the draws of a separation, in memory or in a Zarr store, and their modes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.annealing.draws import Draws, Statistics
from pyro_sep.inference.annealing.driver import RunInfo
from pyro_sep.separation.groups import GroupedDraws
from pyro_sep.storage.states import check_like
from pyro_sep.trace.dataset import load_trace
from pyro_sep.trace.zarr_store import TraceStore

#: :func:`pyro_sep.trace.build_trace` of a mixture, which lacks the draws, warm-up and attributes.
Build = Callable[..., xr.DataTree]

#: Further variables of the posterior, ``(mixture, chain, draw, ...)`` each, of a block of draws.
Extras = Callable[[Draws], dict[str, Tensor]]


class MemoryBackend:
    """Keeps the draws of one mixture in memory."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.blocks: list[dict[str, Any]] = []

    def add(self, block: dict[str, Any], first: int) -> None:
        """Add a block of draws, as arguments of ``build``; ``first`` is the number of its first."""
        self.blocks.append(block)

    def finish(self, **rest: Any) -> xr.DataTree:
        """The whole trace, given the arguments of ``build`` that are not draws."""
        return self.build(**_joined(self.blocks), **rest)

    def state(self) -> list[Any]:
        """The part of a checkpoint: all draws."""
        return self.blocks

    def restore(self, state: list[Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            ValueError: blocks that differ in more than their number of draws.
        """
        for block in state:
            check_like("draws", _last(block), _last(state[0]))
        self.blocks = state


class ZarrBackend:
    """Writes the draws of one mixture to a Zarr store; the methods are :class:`MemoryBackend`'s."""

    def __init__(self, build: Build, path: Path, draws: int) -> None:
        self.build, self.store = build, TraceStore(path, draws)
        self.last: list[Any] = []  # number of the last draw, and the draw

    def add(self, block: dict[str, Any], first: int) -> None:
        """Write a block of draws."""
        self.store.add(self.build(**block, warmup_stats={}, attrs={}), first)
        self.last = [first + block["sources"].shape[1] - 1, _last(block)]

    def finish(self, **rest: Any) -> xr.DataTree:
        """The whole trace, opened."""
        self.store.finish(self.build(**self.last[1], **rest))
        return load_trace(self.store.path)

    def state(self) -> list[Any]:
        """The part of a checkpoint: the last draw, by which the store is recognised."""
        return self.last

    def restore(self, state: list[Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            ValueError: a store without those draws.
        """
        if state:
            self.store.check(state[1]["lp"][:, 0], state[0])
        self.last = state


class DrawRecorder:
    """Records the draws of every mixture in its backend, and their means by mode.

    Args:
        backends: one per mixture.
        estimate: ``"mode"`` or ``"mean"``, see :func:`pyro_sep.trace.draws.chosen_draws`.
        groups: of the draws, with audio samples of the mixtures; those of a frame beyond them are
            dropped.
        extras: further variables of the draws.
    """

    def __init__(
        self,
        backends: Sequence[MemoryBackend | ZarrBackend],
        estimate: str,
        groups: GroupedDraws,
        extras: Extras,
    ) -> None:
        self.backends, self.estimate, self.groups, self.extras = backends, estimate, groups, extras

    def add(self, draws: Draws, first: int) -> None:
        """Record a block of draws; ``first`` is the number of its first draw."""
        time = self.groups.mixtures.shape[-1]
        sources, means = (a[..., :time].cpu() for a in (draws.sources, draws.means))
        statistics = Statistics._make(part.cpu() for part in draws.statistics)
        extras = {name: values.cpu() for name, values in self.extras(draws).items()}
        self.groups.add(draws, {"sources": means} | extras)
        for i, backend in enumerate(self.backends):
            stats = {name: part[i] for name, part in statistics._asdict().items()}
            lp, log_prior = stats.pop("lp"), stats.pop("log_prior")
            block = {"sources": sources[i], "lp": lp, "log_prior": log_prior, "stats": stats}
            backend.add(block | {name: values[i] for name, values in extras.items()}, first)

    def finish(
        self, info: RunInfo, attrs: Mapping[str, Any], search: Mapping[str, Any]
    ) -> list[tuple[xr.DataTree, dict[str, Tensor]]]:
        """The trace of each mixture and its estimate, which is means by name.

        ``search`` has what the candidates of all mixtures have in common.
        """
        warmup = Statistics._make(part.cpu() for part in info.warmup)._asdict()
        del warmup["log_prior"]
        results = []
        for i, backend in enumerate(self.backends):
            found = self.groups.modes(i)
            weighed = "density" if found.modes.by_density else "frequency"
            own: dict[str, Any] = {**attrs, "modes_weighed": weighed}
            rest: dict[str, Any] = {
                "warmup_stats": {name: part[i] for name, part in warmup.items()},
                "modes": found.of_draws(),
            }
            if (searched := info.search) is not None:
                own["search_tries"] = int(searched.tries[i].max())
                own["search_found"] = float(searched.found[i].mean())
                candidates = {"length": searched.length, "log_prior": searched.log_prior[i].cpu()}
                rest["search_stats"] = {**search, **candidates}
            results.append((backend.finish(**rest, attrs=own), found.mean(self.estimate)))
        return results

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint: that of the groups, and the states of the backends."""
        backends = [backend.state() for backend in self.backends]
        return {"groups": self.groups.state(), "backends": backends}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            ValueError: a part that does not fit the others.
        """
        self.groups.restore(state["groups"])
        for backend, part in zip(self.backends, state["backends"], strict=True):
            backend.restore(part)


def _joined(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One block of all draws."""
    return {
        name: _joined([block[name] for block in blocks])
        if isinstance(value, dict)
        else torch.cat([block[name] for block in blocks], 1)
        for name, value in blocks[0].items()
    }


def _last(block: dict[str, Any]) -> dict[str, Any]:
    """The last draw of a block, as a block."""
    return {
        name: _last(value) if isinstance(value, dict) else value[:, -1:].clone()
        for name, value in block.items()
    }
