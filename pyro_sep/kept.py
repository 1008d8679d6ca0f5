"""What is kept of a separation while it draws: a trace of each mixture, and every chain's mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.draws import Draws, Statistics
from pyro_sep.store import TraceStore
from pyro_sep.trace import load_trace

#: :func:`pyro_sep.trace.build_trace` of a mixture; draws, warm-up and attributes are still to come.
Build = Callable[..., xr.DataTree]


class Trace(Protocol):
    """A trace of one mixture that grows."""

    def add(self, sources: Tensor, statistics: Statistics, first: int) -> None:
        """Some draws ``(chain, draw, source, time)``, the first of which has this number."""

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace."""

    def state(self) -> list[Any]:
        """What a checkpoint has to hold."""

    def restore(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` gave."""


class TraceInMemory:
    """Draws in memory."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.sources: list[Tensor] = []
        self.statistics: list[Statistics] = []

    def add(self, sources: Tensor, statistics: Statistics, first: int) -> None:
        """Keep some draws."""
        self.sources.append(sources)
        self.statistics.append(statistics)

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace."""
        sources = torch.cat(self.sources, 1)
        statistics = Statistics._make(torch.cat(p, 1) for p in zip(*self.statistics, strict=True))
        return self.build(**_drawn(sources, statistics), warmup_stats=_scalars(warmup), attrs=attrs)

    def state(self) -> list[Any]:
        """All draws."""
        return [self.sources, [list(block) for block in self.statistics]]

    def restore(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.sources, blocks = state
        self.statistics = [Statistics._make(block) for block in blocks]


class TraceOnDisk:
    """Draws in a Zarr store."""

    def __init__(self, build: Build, store: TraceStore) -> None:
        self.build, self.store = build, store
        self.last: list[Any] = []  # number of the last draw, its log posterior, its sources

    def add(self, sources: Tensor, statistics: Statistics, first: int) -> None:
        """Write some draws."""
        block = self.build(**_drawn(sources, statistics), warmup_stats={}, attrs={})
        self.store.add(block, first)
        self.last = [first + sources.shape[1] - 1, statistics.lp[:, -1], sources[:, -1:].clone()]

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace, opened."""
        last = Statistics._make(part[:, -1:] for part in warmup)  # of the last draw's shape
        rest = _drawn(self.last[2], last)
        self.store.finish(self.build(**rest, warmup_stats=_scalars(warmup), attrs=attrs))
        return load_trace(self.store.path)

    def state(self) -> list[Any]:
        """The last draw, by which the store is known again."""
        return self.last

    def restore(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            ValueError: the store does not hold those draws.
        """
        if state:
            self.store.check(state[1], state[0])
        self.last = state


class Kept:
    """A sink: a trace of each mixture, and the mean of each of their chains.

    Args:
        traces: one per mixture.
        time: audio samples of the mixtures; what of a frame is beyond them is dropped.
    """

    def __init__(self, traces: Sequence[Trace], time: int) -> None:
        self.traces, self.time = traces, time
        self.count = 0  # of draws
        self.sources: Any = 0.0  # their sum, (mixture, chain, source, time)
        self.lp: Any = 0.0  # (mixture, chain)

    def add(self, draws: Draws, first: int) -> None:
        """Keep a block of draws."""
        sources = draws.sources[..., : self.time].cpu()
        statistics = Statistics._make(part.cpu() for part in draws.statistics)
        self.count += sources.shape[2]
        self.sources = self.sources + sources.double().sum(2)
        self.lp = self.lp + statistics.lp.double().sum(2)
        for i, trace in enumerate(self.traces):
            trace.add(sources[i], _of(i, statistics), first)

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> list[xr.DataTree]:
        """The trace of each mixture."""
        parts = Statistics._make(part.cpu() for part in warmup)
        return [trace.finish(_of(i, parts), attrs) for i, trace in enumerate(self.traces)]

    def means(self) -> list[Tensor]:
        """Mean of the chain of the highest mean log posterior, ``(source, time)`` a mixture."""
        best = self.lp.nan_to_num(nan=-torch.inf).argmax(1)
        return [(own[k] / self.count).float() for own, k in zip(self.sources, best, strict=True)]

    def state(self) -> dict[str, Any]:
        """Sums, and what the traces need."""
        traces = [trace.state() for trace in self.traces]
        return {"count": self.count, "sources": self.sources, "lp": self.lp, "traces": traces}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.count, self.sources, self.lp = state["count"], state["sources"], state["lp"]
        for trace, part in zip(self.traces, state["traces"], strict=True):
            trace.restore(part)


def _of(mixture: int, statistics: Statistics) -> Statistics:
    return Statistics._make(part[mixture] for part in statistics)


def _drawn(sources: Tensor, statistics: Statistics) -> dict[str, Any]:
    """Draws of one mixture as :func:`pyro_sep.trace.build_trace` takes them."""
    stats = statistics._asdict()
    lp, log_prior = stats.pop("lp"), stats.pop("log_prior")
    return {"sources": sources, "lp": lp, "log_prior": log_prior, "stats": stats}


def _scalars(statistics: Statistics) -> dict[str, Tensor]:
    """Statistics of a chain as a whole."""
    return {name: part for name, part in statistics._asdict().items() if name != "log_prior"}
