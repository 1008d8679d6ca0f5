"""The variables of a trace: which of those in a file belong to it, and how large they may be.

A file may come from anywhere. So its variables are first listed (:class:`Stored`) without reading
them; :func:`choose` selects those of a trace; and :func:`check` checks what was read.
"""

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

import numpy as np
import xarray as xr

from pyro_sep.trace.channels import SIDE, side_of

DIMS = ("chain", "draw", "source", "time")  # in this order; a variable has some of them
SEARCH = "search_stats"  # has dimensions of its own
SEARCH_DIMS = ("chain", "section", "candidate", "level", "source")
MODES = "modes"
MODES_DIMS = ("chain", "draw", "mode")
OWN_DIMS = {SEARCH: SEARCH_DIMS, MODES: MODES_DIMS}
GROUPS = (
    *("posterior", "sample_stats", "warmup_sample_stats", "posterior_predictive"),
    *("log_likelihood", "observed_data", "constant_data", MODES, SEARCH),
)
NEEDED = {
    "posterior": ("sources",),
    "sample_stats": ("lp",),
    "observed_data": ("mixture",),
    "constant_data": ("gains", "sample_rate"),
}
LIBRARY = "pyro_sep"  # attribute ``inference_library`` of a trace
WARMUP = "warmup_sample_stats"  # has a number of draws of its own
SMALL = 1 << 28  # bytes that a trace may always have
COMPRESSED = 32  # by which a file may be smaller than its trace: draws are noise, and hardly are


class TraceError(ValueError):
    """The error of a file that is no trace: what was got and expected, without its name."""


class Stored(NamedTuple):
    """A variable in a file that has not been read.

    Attributes:
        shape: by dimension, in order.
        kind: of its values, as NumPy's ``dtype.kind``; ``"U"`` for text.
        nbytes: that reading it takes.
        fault: what is wrong with it, such as a missing chunk; empty if nothing is.
    """

    shape: Mapping[str, int]
    kind: str
    nbytes: int
    fault: str = ""


def choose(stored: Mapping[str, Mapping[str, Stored]], file_bytes: int) -> dict[str, Set[str]]:
    """Names of the variables of a trace, by group: those that have its dimensions.

    Args:
        stored: the variables of a file, by group and name.
        file_bytes: size of the file.

    Raises:
        TraceError: no trace, one with a variable that is damaged or of another size than the
            others, or one that claims more than a file of its size can hold.
    """
    for group, names in NEEDED.items():
        for name in names:
            if name not in stored.get(group, {}):
                raise TraceError(f"got none of {group}/{name}, expected it")
    sizes = stored["posterior"]["sources"].shape
    if tuple(sizes) != DIMS or min(sizes.values()) < 1:
        raise TraceError(f"got posterior/sources of {dict(sizes)}, expected {', '.join(DIMS)}")
    chosen: dict[str, Set[str]] = {}
    total = 0
    for group, variables in stored.items():
        dims = OWN_DIMS.get(group, DIMS)
        chosen[group] = {name for name, part in variables.items() if _belongs(name, part, dims)}
        for name in sorted(chosen[group]):
            _check_stored(f"{group}/{name}", variables[name], sizes, group == WARMUP)
            total += variables[name].nbytes
    if total > max(SMALL, COMPRESSED * file_bytes):
        raise TraceError(f"got a claim of {total} bytes in a file of {file_bytes}, expected less")
    return chosen


def _belongs(name: str, stored: Stored, order: tuple[str, ...]) -> bool:
    """Whether a variable has the dimensions of a trace, in their order, and is not one itself."""
    dims = tuple(stored.shape)
    ours = dims == tuple(dim for dim in order if dim in dims)
    return ours and (name not in order or dims == (name,))


def _check_stored(name: str, stored: Stored, sizes: Mapping[str, int], warmup: bool) -> None:
    if stored.fault:
        raise TraceError(f"got {name} {stored.fault}, expected it whole")
    if stored.kind not in ("U" if name.endswith("/source") else "biuf"):
        raise TraceError(f"got {name} of the type {stored.kind!r}, expected numbers")
    for dim, size in stored.shape.items():
        if size != sizes.get(dim, size) and not (warmup and dim == "draw"):
            raise TraceError(
                f"got {name} of {size} along {dim}, expected {sizes[dim]} as in posterior/sources"
            )


def check(tree: xr.DataTree) -> None:
    """Raise TraceError unless a tree that was read is a trace of this package."""
    if (library := tree.attrs.get("inference_library")) != LIBRARY:
        raise TraceError(f"got a trace of {library!r:.80}, expected one of {LIBRARY}")
    for name, value in tree.attrs.items():
        number = isinstance(value, int | float | np.integer | np.floating)
        if not (number or (isinstance(value, str) and name != "gradients")):
            raise TraceError(f"got the attribute {name:.80} of {value!r:.80}, expected a number")
    posterior, constant = tree["posterior"].to_dataset(), tree["constant_data"].to_dataset()
    for name, part in posterior.data_vars.items():
        if part.dtype.kind != "f":
            raise TraceError(f"got posterior/{name} of {part.dtype}, expected floats")
    for name in ("initial", "true_sources"):
        if SIDE in posterior and name in constant and side_of(name) not in constant:
            raise TraceError(f"got constant_data/{name} of one channel, expected both of two")
    rate = constant["sample_rate"]
    if rate.dtype.kind not in "iu" or rate.shape or int(rate) < 1:
        raise TraceError(f"got the sample rate {rate.values!r:.80}, expected a number in Hz")
    names = posterior["source"].values.tolist()
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise TraceError(f"got sources {names!r:.200}, expected names that differ")


def groups_of(names: Iterable[str]) -> list[str]:
    """Those of the groups in a file that a trace may have, in order.

    Raises:
        TraceError: none of a posterior.
    """
    there = set(names)
    if "posterior" not in there:
        raise TraceError(f"got groups {sorted(there)!r:.200}, expected 'posterior' among them")
    return [group for group in GROUPS if group in there]
