"""Traces in few words: a test gives what it is about."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from pyro_sep.trace.dataset import build_trace

NAMES = ("oboe", "flute")
RATE = 8_000


def trace_of(sources: ArrayLike, **given: Any) -> xr.DataTree:
    """A trace of draws ``(chain, draw, source, time)``; what is not given is zero or nothing.

    But gains are equal and add up to 1; two sources have NAMES, and audio has RATE.
    """
    chain, draw, source, time = np.shape(sources)
    nothing = {
        "lp": np.zeros((chain, draw)),
        "log_prior": np.zeros((chain, draw, source)),
        "stats": {},
        "warmup_stats": {},
        "mixture": np.zeros(time),
        "gains": np.full(source, 1 / source),
        "source_names": NAMES,
        "sample_rate": RATE,
        "true_sources": None,
        "attrs": {},
    }
    return build_trace(sources=sources, **(nothing | given))
