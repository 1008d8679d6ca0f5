"""Where chains disagree, in words: which sound they put in different sources, and when."""

from itertools import combinations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

WINDOW = 0.05  # seconds
OPPOSITE = -0.5  # correlation of what two sources differ by, where one has what the other lacks


def describe_disagreement(trace: xr.DataTree) -> str:
    """The loudest sound that two chains hold in different sources, or that only one of them holds.

    The two chains whose means differ most are compared in windows of 50 ms. The sound is named by
    the highest peak of the spectrum of what one source has in one chain and not in the other.

    Args:
        trace: of two chains or more.
    """
    sources = (
        trace["posterior"].to_dataset()["sources"].transpose("chain", "draw", "source", "time")
    )
    constant = trace["constant_data"].to_dataset()
    rate, gains = int(constant["sample_rate"]), constant["gains"].values
    means = np.nan_to_num(sources.mean("draw").values) * gains[:, None]
    pairs = combinations(range(len(means)), 2)
    c, d = max(pairs, key=lambda pair: float(((means[pair[0]] - means[pair[1]]) ** 2).sum()))
    difference = means[c] - means[d]
    start, stop = _loudest(difference, round(WINDOW * rate))
    part = difference[:, start:stop]
    loudest, *others = np.argsort(-(part**2).sum(-1)).tolist()
    opposite = [k for k in others[:1] if _correlation(part[loudest], part[k]) < OPPOSITE]
    names = [str(sources["source"].values[k]) for k in sorted([loudest, *opposite])]
    sound = f"the sound near {_peak(part[loudest], rate):.0f} Hz at {start / rate:.2f} s"
    chains = f"chains {c + 1} and {d + 1}"
    if opposite:
        return f"{chains} put {sound} in different sources ({' or '.join(names)})"
    return f"{chains} differ in {names[0]}: only one has {sound}"


def _loudest(difference: NDArray[np.floating], length: int) -> tuple[int, int]:
    """Bounds of the window in which the difference is loudest."""
    power = (difference**2).sum(0)
    starts = range(0, max(1, len(power) - length + 1), max(1, length // 2))
    start = max(starts, key=lambda i: float(power[i : i + length].sum()))
    return start, min(start + length, len(power))


def _peak(signal: NDArray[np.floating], rate: int) -> float:
    """Frequency of the highest peak of the spectrum, in Hz."""
    padded = 4 * len(signal)  # finer than the window's own resolution
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)), padded))
    return float(np.argmax(spectrum)) * rate / padded


def _correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm > 0 else 0.0
