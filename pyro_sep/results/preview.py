"""What to expect of a long separation, before it begins: a few seconds of it, separated.

Priors may never have heard such a record. Draws do not tell by themselves: audio that a prior does
not know surprises it hardly more than audio that it knows, while the sources are still told apart
(measured on music that the priors know and on records that they do not: the mean squares of
:meth:`pyro_sep.priors.NetworkPrior.misfit` are 1.0 to 1.2 in both). What tells is how far chains
disagree, from which :mod:`pyro_sep.diagnostics.score_intervals` knows the SI-SDR to expect. So some
excerpts of a second are separated with the settings of the whole.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pyro_sep.audio.io import Recording
from pyro_sep.diagnostics.score_intervals import expected_scores
from pyro_sep.priors.base import Priors
from pyro_sep.separation.api import separate
from pyro_sep.separation.inputs import SILENT

EXCERPTS = 3
SECONDS = 1.0  # of each
LEAST = 30.0  # seconds of a recording that is worth it: a tenth of its cost
UNKNOWN_DB = 0.0  # expected SI-SDR of a stem below which its errors are louder than it is


def excerpts(recording: Recording) -> list[Tensor]:
    """The excerpts ``(time,)`` of a recording that are separated first; none of a short one."""
    whole, time = recording.samples, round(SECONDS * recording.sample_rate)
    if len(whole) < LEAST * recording.sample_rate:
        return []
    starts = [number * len(whole) // (EXCERPTS + 1) for number in range(1, EXCERPTS + 1)]
    parts = [whole[start : start + time] for start in starts]
    return [part for part in parts if float(part.abs().max()) >= SILENT]


def preview(
    recording: Recording, priors: Priors, options: Mapping[str, Any]
) -> dict[str, float] | None:
    """The SI-SDR to expect of each stem in dB, the median over excerpts of the middle of intervals.

    Args:
        recording: at the priors' rate.
        priors: of the sources, by name.
        options: of :func:`~pyro_sep.separate`.

    Returns:
        By source; None of a short recording, of silence, and where nothing is known of such
        separations (:func:`~pyro_sep.diagnostics.expected_scores`).
    """
    found: list[dict[str, float]] = []
    for excerpt in excerpts(recording):
        bounds = expected_scores(separate(excerpt, priors, **options).trace)
        if bounds is None:
            return None
        found.append({name: (low + high) / 2 for name, (low, high) in bounds.items()})
    if not found:
        return None
    return {name: float(np.median([row[name] for row in found])) for name in priors}


def format_preview(expected: Mapping[str, float]) -> str:
    """The figures in a line, and a warning where most stems are worth little.

    >>> format_preview({"bass": -2.0, "drums": -4.2, "other": 3.0})
    'these priors do not know this record: by excerpts, the SI-SDR to expect is bass -2 dB, drums \
-4 dB, other 3 dB'
    """
    cells = ", ".join(f"{name} {value:.0f} dB" for name, value in expected.items())
    said = f"by excerpts, the SI-SDR to expect is {cells}"
    unknown = sum(value < UNKNOWN_DB for value in expected.values())
    return f"these priors do not know this record: {said}" if 2 * unknown > len(expected) else said
