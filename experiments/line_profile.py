r"""Are learned priors peaked or smooth? The log density along the line between two sources.

    python experiments/line_profile.py                          # saw to triangle, both families
    python experiments/line_profile.py --sources square,sine
    python experiments/line_profile.py --priors toy/oracle --frames 2

Frank & Ilse 2020 (arXiv 2011.01761) find learned priors "either discriminative and extremely peaked
or smooth and non-discriminative", in words. This is the picture: with two tones of the test split,

.. math:: s(t) = (1 - t) \, s_a + t \, s_b, \qquad x = s(t) + \sigma n

the curves are the log densities of x at level sigma under the priors of a and of b, as excess over
the noise (see :mod:`pyro_sep.priors.auditing`) in nats per audio sample: 0 is the ceiling. The
noise n is the same all along the line. Curves are means over frames, bands contain all frames.

Three levels have a panel of their own: the lowest, where a density is peaked; the highest, where it
is smooth; and one in between. The last panel has all levels of a sampler's ladder, dashed where the
two priors do not distinguish the two sources by the audit's rule. Printed for the prior of a are
its excess at a, its fall on the way to b, and its reach, the t at which it has fallen by half a nat
per audio sample. An exact law of one point falls by that where the audio is sigma away from it.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from _common import Frames, Out, PriorSets, Results, Seed, Sources, Time, bar, choose
from likelihoods import TWO_SETS, load_sets
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.source import ToySource
from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.models.settings import AUDIT_TIME
from pyro_sep.priors.auditing import SIGMAS, discriminative, noise_entropy
from pyro_sep.priors.base import Prior, Priors
from pyro_sep.priors.io import choose_priors

PANELS = (0.01, 0.129, 2.0)  # peaked, in between, smooth
FALL = 0.5  # nats per audio sample: a displacement of sigma costs d^2 / (2 sigma^2)
_NEAR = (np.arange(9) / 16) ** 2  # closer together where the cliffs are
#: Values of t.
POINTS = np.unique([*-_NEAR, *_NEAR, *np.linspace(0.25, 0.75, 9), *(1 - _NEAR), *(1 + _NEAR)])


def main(
    priors: PriorSets = TWO_SETS,
    sources: Sources = "saw,triangle",
    frames: Frames = 8,
    time: Time = AUDIT_TIME,
    seed: Seed = 0,
    out: Out = Path("results/line_profile"),
) -> None:
    """Print and draw the profiles and say which levels distinguish the two sources."""
    results, names = Results(out), choose("sources", sources, WAVEFORMS)
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"sources: got {sources!r}, expected two waveforms, such as saw,triangle")
    sets = {name: choose_priors(loaded, sources) for name, loaded in load_sets(priors).items()}
    table = profiles(sets, names, frames, time, seed)
    figures = {name: summarise(table.sel(priors=name)) for name in sets}
    for name, levels in figures.items():
        print(f"{name}: the prior of {names[0]} on the way to {names[1]}, nats per audio sample")
        print(levels.to_string(float_format="{:.3g}".format, na_rep="none"))
    print('Paper (2011.01761): "either discriminative and extremely peaked or smooth and')
    print('non-discriminative", no figure.')
    results.csv(table.to_series(), "line_profile")
    results.png(draw(table), "line_profile")
    settings = {"sources": names, "frames": frames, "time": time, "seed": seed}
    settings |= {"seconds": results.seconds}
    words = {name: levels.reset_index().to_dict("list") for name, levels in figures.items()}
    results.json(settings | {"levels": words})
    results.done()


def profiles(
    sets: Mapping[str, Priors], names: list[str], frames: int, time: int, seed: int
) -> xr.DataArray:
    """Excess in nats per audio sample, ``(priors, sigma, prior, t, frame)``."""
    start, end = (ToySource(name).held_out(frames, time) for name in names)
    coords: dict[str, Any] = {"priors": list(sets), "sigma": list(SIGMAS), "prior": names}
    cells = list(itertools.product(*coords.values()))
    values = [
        profile(sets[priors][name], sigma, start, end, seed) for priors, sigma, name in bar(cells)
    ]
    coords |= {"t": POINTS, "frame": range(frames)}
    shape = [len(labels) for labels in coords.values()]
    return xr.DataArray(np.reshape(values, shape), coords, name="excess")


@torch.no_grad()
def profile(prior: Prior, sigma: float, start: Tensor, end: Tensor, seed: int) -> np.ndarray:
    """Excess along the line, ``(t, frame)``, in nats per audio sample."""
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
    law = prior.frame(start.shape[-1]).condition(sigma)
    rows = [law.log_prob(start + t * (end - start) + sigma * noise) for t in POINTS.tolist()]
    return torch.stack(rows).numpy() / start.shape[-1] + noise_entropy(sigma)


def summarise(table: xr.DataArray) -> pd.DataFrame:
    """The figures of every noise level, from ``(sigma, prior, t, frame)``."""
    own = table.isel(prior=0).mean("frame")
    rows = {
        "excess": own.sel(t=0).values,
        "fall": (own.sel(t=0) - own.sel(t=1)).values,
        "reach": [reach(curve) for curve in own],
        "told_apart": told_apart(table),
    }
    return pd.DataFrame(rows, index=own["sigma"].to_index())


def told_apart(table: xr.DataArray) -> list[bool]:
    """Whether the two priors distinguish the two sources, per noise level."""
    names = table["prior"].values
    ends = table.sel(t=[0, 1]).mean("frame").rename(t="source").assign_coords(source=names)
    return list(discriminative(ends).values())


def reach(curve: xr.DataArray) -> float:
    """The t between the ends at which a profile has fallen by :data:`FALL`; NaN where nowhere."""
    inside = curve.sel(t=slice(0, 1))
    t, fallen = inside["t"].values, (inside.sel(t=0) - inside).values
    after = np.flatnonzero(fallen >= FALL)[:1]
    if not after.size:
        return np.nan
    step = [after[0] - 1, after[0]]
    return float(np.interp(FALL, fallen[step], t[step]))


def draw(table: xr.DataArray) -> Figure:
    """A row per set of priors: three levels with both priors, then the ladder of the first."""
    start, end = table["prior"].values.tolist()
    rows, columns = table.sizes["priors"], len(PANELS) + 1
    figure = Figure(figsize=(3.2 * columns, 0.4 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, line in zip(table, axes, strict=True):
        for sigma, ax in zip(PANELS, line, strict=False):
            both(ax, row.sel(sigma=sigma))
            ax.set_title(f"sigma {sigma:g}")
        ladder(line[-1], row)
        line[-1].set_title(f"the ladder, prior of {start}")
        line[0].set_ylabel(f"{row['priors'].item()}\nexcess / (nats per audio sample)")
    for ax in axes.ravel():
        ax.axhline(0, color="0.75", linewidth=1, zorder=0)
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(top=0.15)
        ax.set_xticks([0, 0.5, 1], [start, "t = 0.5", end])
    axes[0, 2].legend(frameon=False, loc="lower center")
    axes[0, -1].legend(
        frameon=False, title="sigma", loc="upper left", bbox_to_anchor=(1, 1), reverse=True
    )
    return figure


def both(ax: Axes, level: xr.DataArray) -> None:
    """Draw both priors along the line: means, in bands that contain all frames."""
    for index, curve in enumerate(level):
        low, high = curve.min("frame"), curve.max("frame")
        ax.fill_between(curve["t"], low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        label = f"prior of {curve['prior'].item()}"
        ax.plot(curve["t"], curve.mean("frame"), color=f"C{index}", label=label)


def ladder(ax: Axes, levels: xr.DataArray) -> None:
    """Draw the first prior at all levels, dashed where the priors do not distinguish the two."""
    colors = colormaps["viridis"](np.linspace(0, 0.9, levels.sizes["sigma"]))
    for level, color, apart in zip(levels, colors, told_apart(levels), strict=True):
        mean = level.isel(prior=0).mean("frame")
        label = f"{level['sigma'].item():g}"
        ax.plot(mean["t"], mean, "-" if apart else "--", color=color, label=label)


if __name__ == "__main__":
    run(main)
