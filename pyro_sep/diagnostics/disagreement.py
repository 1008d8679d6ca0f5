"""Where versions of the sources differ, in words: which sound is in different ones, and when."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_sep.trace.dataset import in_channels
from pyro_sep.trace.draws import ALIKE, mode_draws, select_draws

WINDOW = 0.05  # seconds
MOVED = 3.16  # 10 dB: what a source has so much less of in one version, it has not got there
OPPOSITE = -0.5  # correlation of what two sources differ by, where one has what the other lacks


def chains_apart(trace: xr.DataTree, names: Sequence[str]) -> str:
    """The loudest sound that two chains divide differently between these sources.

    Args:
        trace: of two chains or more.
        names: of the sources in which chains differ.
    """
    means = in_channels(trace["posterior"].to_dataset().mean("draw"), "sources")
    return _describe(trace, [means.sel(chain=c) for c in means["chain"]], names, "chains")


def modes_apart(trace: xr.DataTree) -> tuple[tuple[str, ...], str]:
    """Sources in which the two most probable modes differ, and the loudest sound that they divide.

    Args:
        trace: of two modes or more.
    """
    posterior, whole = trace["posterior"].to_dataset(), ("channel", "time")
    drawn = [select_draws(posterior, mode_draws(trace, mode)) for mode in (0, 1)]
    means = [in_channels(version.mean("draw"), "sources") for version in drawn]
    off, power = (means[0] - means[1]) ** 2, (means[0] ** 2 + means[1] ** 2).mean(whole)
    apart = off.mean(whole) > ALIKE * power
    names = tuple(str(name) for name in posterior["source"].values[apart.values])
    names = names or tuple(map(str, posterior["source"].values))
    return names, _describe(trace, means, names, "explanations")


def _describe(
    trace: xr.DataTree, versions: Sequence[xr.DataArray], names: Sequence[str], what: str
) -> str:
    """What the two versions that differ most put in different sources.

    They are compared in windows of 50 ms, in the channel in which they differ most. The sound is
    named by the highest peak of the spectrum of what one source has in one version and not in the
    other.

    Args:
        trace: that they are of.
        versions: of the sources, ``(source, channel, time)``.
        names: of the sources that are compared.
        what: versions are called.
    """
    constant = trace["constant_data"].to_dataset()
    rate, gains = int(constant["sample_rate"]), constant["gains"].sel(source=list(names)).values
    axes = ("channel", "source", "time")
    heard = [v.sel(source=list(names)).transpose(*axes).values * gains[:, None] for v in versions]
    channel = int(np.var(heard, 0).sum((1, 2)).argmax())
    means = np.stack(heard)[:, channel]
    pairs = combinations(range(len(means)), 2)
    c, d = max(pairs, key=lambda pair: float(((means[pair[0]] - means[pair[1]]) ** 2).sum()))
    start, stop = _loudest(means[c] - means[d], max(1, round(WINDOW * rate)))
    one, other = means[c, :, start:stop], means[d, :, start:stop]
    loudest, *others = np.argsort(-((one - other) ** 2).sum(-1)).tolist()
    part = one - other
    opposite = [k for k in others[:1] if _correlation(part[loudest], part[k]) < OPPOSITE]
    involved = [names[k] for k in sorted([loudest, *opposite])]
    peak = _peak(part[loudest])
    sound = f"the sound near {peak * rate / _padded(part[loudest]):.0f} Hz at {start / rate:.2f} s"
    both = f"{what} {c + 1} and {d + 1}"
    if not opposite:
        return f"{both} differ in {involved[0]}, most in {sound}"
    here, there = (float(np.abs(_spectrum(mean[loudest])[peak])) for mean in (one, other))
    if max(here, there) > MOVED * min(here, there):
        return f"{both} put {sound} in different sources ({' or '.join(involved)})"
    return f"{both} divide {sound} differently between {' and '.join(involved)}"


def _loudest(difference: NDArray[np.floating], length: int) -> tuple[int, int]:
    """Bounds of the window in which the difference is loudest."""
    power = (difference**2).sum(0)
    last = max(0, len(power) - length)
    starts = [*range(0, last, max(1, length // 2)), last]
    start = max(starts, key=lambda i: float(power[i : i + length].sum()))
    return start, min(start + length, len(power))


def _padded(signal: NDArray[np.floating]) -> int:
    """Length of the transform: finer than the window's own resolution."""
    return 4 * len(signal)


def _spectrum(signal: NDArray[np.floating]) -> NDArray[np.complexfloating]:
    return np.fft.rfft(signal * np.hanning(len(signal)), _padded(signal))


def _peak(signal: NDArray[np.floating]) -> int:
    """Bin of the highest peak of the spectrum."""
    return int(np.argmax(np.abs(_spectrum(signal))))


def _correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm > 0 else 0.0
