"""Records the draws of a separation, in memory or in a Zarr store, and the mean of every chain."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.annealing.draws import Draws, Statistics
from pyro_sep.inference.annealing.driver import Descent
from pyro_sep.storage.states import check_like, check_shapes
from pyro_sep.trace.dataset import chosen_chains, load_trace
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
    """Records the draws of every mixture in its backend, and the mean of every chain.

    Args:
        backends: one per mixture.
        estimate: of which chains, see :func:`pyro_sep.trace.dataset.chosen_chains`.
        time: audio samples of the mixtures; those of a frame beyond them are dropped.
        extras: further variables of the draws.
    """

    def __init__(
        self,
        backends: Sequence[MemoryBackend | ZarrBackend],
        estimate: str,
        time: int,
        extras: Extras,
    ) -> None:
        self.backends, self.estimate, self.time, self.extras = backends, estimate, time, extras
        self.count = 0  # of draws
        self.sums: dict[str, Tensor] = {}  # of means, lp and extras, (mixture, chain, ...)

    def add(self, draws: Draws, first: int) -> None:
        """Record a block of draws; ``first`` is the number of its first draw."""
        sources, means = (a[..., : self.time].cpu() for a in (draws.sources, draws.means))
        statistics = Statistics._make(part.cpu() for part in draws.statistics)
        self.count += sources.shape[2]
        extras = {name: values.cpu() for name, values in self.extras(draws).items()}
        summed = {"sources": means, "lp": statistics.lp} | extras
        if "gains" in extras:  # the product is identified better than its factors
            summed["contributions"] = extras["gains"][..., None] * means
        for name, values in summed.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum(2)
        for i, backend in enumerate(self.backends):
            stats = {name: part[i] for name, part in statistics._asdict().items()}
            lp, log_prior = stats.pop("lp"), stats.pop("log_prior")
            block = {"sources": sources[i], "lp": lp, "log_prior": log_prior, "stats": stats}
            backend.add(block | {name: values[i] for name, values in extras.items()}, first)

    def finish(
        self, descent: Descent, attrs: Mapping[str, Any], search: Mapping[str, Any]
    ) -> list[xr.DataTree]:
        """The trace of each mixture; ``search`` has what its candidates have in common."""
        warmup = Statistics._make(part.cpu() for part in descent.warmup)._asdict()
        del warmup["log_prior"]
        traces = []
        for i, backend in enumerate(self.backends):
            tries, share = int(descent.tries[i].max()), float(descent.found[i].mean())
            own = {**attrs, "search_tries": tries, "search_found": share}
            stats = {name: part[i] for name, part in warmup.items()}
            found = {**search, "log_prior": descent.search[i].cpu()}
            traces.append(backend.finish(warmup_stats=stats, search_stats=found, attrs=own))
        return traces

    def means(self) -> list[dict[str, Tensor]]:
        """The estimate of each mixture: means over its chosen chains, by name."""
        means = []
        for i, lp in enumerate(self.sums["lp"]):
            chains = chosen_chains(lp.numpy(), self.estimate)
            parts = {name: total[i, chains].mean(0) for name, total in self.sums.items()}
            means.append({name: (part / self.count).float() for name, part in parts.items()})
        return means

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint: sums, and the states of the backends."""
        backends = [backend.state() for backend in self.backends]
        return {"count": self.count, "sums": self.sums, "backends": backends}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            ValueError: a part that does not fit the others.
        """
        count, sums = state["count"], state["sums"]
        check_like("count", count, self.count)
        if count:
            shape = tuple(sums["sources"].shape)
            whole = (len(self.backends), *shape[1:3], self.time)
            check_shapes("sums", [sums["sources"], sums["lp"]], [whole, shape[:2]])
        self.count, self.sums = count, sums
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
