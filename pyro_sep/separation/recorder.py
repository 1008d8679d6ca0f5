"""What is kept of a separation while it draws: a trace of each mixture, and every chain's mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.annealing.draws import Draws, Statistics
from pyro_sep.inference.annealing.driver import Descent
from pyro_sep.storage.states import check_like, check_shapes
from pyro_sep.trace.dataset import chosen_chains, load_trace
from pyro_sep.trace.zarr_store import TraceStore

#: :func:`pyro_sep.trace.build_trace` of a mixture; draws, warm-up and attributes are still to come.
Build = Callable[..., xr.DataTree]

#: Further variables of the posterior, ``(mixture, chain, draw, ...)`` each, of a block of draws.
Extras = Callable[[Draws], dict[str, Tensor]]


class Trace(Protocol):
    """A trace of one mixture that grows."""

    def add(self, block: dict[str, Any], first: int) -> None:
        """Some draws as :func:`pyro_sep.trace.build_trace` takes them, and the first's number."""

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace."""

    def state(self) -> list[Any]:
        """What a checkpoint has to hold."""

    def restore(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` gave."""


class MemoryBackend:
    """Draws in memory."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.blocks: list[dict[str, Any]] = []

    def add(self, block: dict[str, Any], first: int) -> None:
        """Keep some draws."""
        self.blocks.append(block)

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace."""
        return self.build(**_joined(self.blocks), warmup_stats=_scalars(warmup), attrs=attrs)

    def state(self) -> list[Any]:
        """All draws."""
        return self.blocks

    def restore(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            ValueError: blocks that differ in more than their number of draws.
        """
        for block in state:
            check_like("draws", _last(block), _last(state[0]))
        self.blocks = state


class ZarrBackend:
    """Draws in a Zarr store."""

    def __init__(self, build: Build, store: TraceStore) -> None:
        self.build, self.store = build, store
        self.last: list[Any] = []  # number of the last draw, and the draw

    def add(self, block: dict[str, Any], first: int) -> None:
        """Write some draws."""
        self.store.add(self.build(**block, warmup_stats={}, attrs={}), first)
        self.last = [first + block["sources"].shape[1] - 1, _last(block)]

    def finish(self, warmup: Statistics, attrs: Mapping[str, Any]) -> xr.DataTree:
        """The whole trace, opened."""
        rest = self.build(**self.last[1], warmup_stats=_scalars(warmup), attrs=attrs)
        self.store.finish(rest)
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
            self.store.check(state[1]["lp"][:, 0], state[0])
        self.last = state


class DrawRecorder:
    """A sink: a trace of each mixture, and the mean of each of their chains.

    Args:
        traces: one per mixture.
        estimate: of which chains, see :func:`pyro_sep.trace.dataset.chosen_chains`.
        time: audio samples of the mixtures; what of a frame is beyond them is dropped.
        extras: what else there is to say of the draws.
    """

    def __init__(self, traces: Sequence[Trace], estimate: str, time: int, extras: Extras) -> None:
        self.traces, self.estimate, self.time, self.extras = traces, estimate, time, extras
        self.count = 0  # of draws
        self.sums: dict[str, Tensor] = {}  # of means, lp and extras, (mixture, chain, ...)

    def add(self, draws: Draws, first: int) -> None:
        """Keep a block of draws."""
        sources, means = (a[..., : self.time].cpu() for a in (draws.sources, draws.means))
        statistics = Statistics._make(part.cpu() for part in draws.statistics)
        self.count += sources.shape[2]
        extras = {name: values.cpu() for name, values in self.extras(draws).items()}
        summed = {"sources": means, "lp": statistics.lp} | extras
        if "gains" in extras:  # a product is known better than its factors
            summed["contributions"] = extras["gains"][..., None] * means
        for name, values in summed.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum(2)
        for i, trace in enumerate(self.traces):
            stats = _of(i, statistics)._asdict()
            lp, log_prior = stats.pop("lp"), stats.pop("log_prior")
            block = {"sources": sources[i], "lp": lp, "log_prior": log_prior, "stats": stats}
            trace.add(block | {name: values[i] for name, values in extras.items()}, first)

    def finish(self, descent: Descent, attrs: Mapping[str, Any]) -> list[xr.DataTree]:
        """The trace of each mixture."""
        parts = Statistics._make(part.cpu() for part in descent.warmup)
        traces = []
        for i, trace in enumerate(self.traces):
            tries, found = int(descent.tries[i].max()), float(descent.found[i].mean())
            said = {"search_tries": tries, "search_found": found}
            traces.append(trace.finish(_of(i, parts), {**attrs, **said}))
        return traces

    def means(self) -> list[dict[str, Tensor]]:
        """Means over the chains that the estimate is of, by name, of each mixture."""
        means = []
        for i, lp in enumerate(self.sums["lp"]):
            chains = chosen_chains(lp.numpy(), self.estimate)
            parts = {name: total[i, chains].mean(0) for name, total in self.sums.items()}
            means.append({name: (part / self.count).float() for name, part in parts.items()})
        return means

    def state(self) -> dict[str, Any]:
        """Sums, and what the traces need."""
        traces = [trace.state() for trace in self.traces]
        return {"count": self.count, "sums": self.sums, "traces": traces}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            ValueError: a part that does not fit the others.
        """
        count, sums = state["count"], state["sums"]
        check_like("count", count, self.count)
        if count:
            shape = tuple(sums["sources"].shape)
            whole = (len(self.traces), *shape[1:3], self.time)
            check_shapes("sums", [sums["sources"], sums["lp"]], [whole, shape[:2]])
        self.count, self.sums = count, sums
        for trace, part in zip(self.traces, state["traces"], strict=True):
            trace.restore(part)


def _of(mixture: int, statistics: Statistics) -> Statistics:
    return Statistics._make(part[mixture] for part in statistics)


def _joined(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One block of all, draw after draw."""
    return {
        name: _joined([block[name] for block in blocks])
        if isinstance(value, dict)
        else torch.cat([block[name] for block in blocks], 1)
        for name, value in blocks[0].items()
    }


def _last(block: dict[str, Any]) -> dict[str, Any]:
    """The last draw of a block, by itself."""
    return {
        name: _last(value) if isinstance(value, dict) else value[:, -1:].clone()
        for name, value in block.items()
    }


def _scalars(statistics: Statistics) -> dict[str, Tensor]:
    """Statistics of a chain as a whole."""
    return {name: part for name, part in statistics._asdict().items() if name != "log_prior"}
