"""Does every prior know its own source best? Fig. 3 of Frank & Ilse 2020 (arXiv 2011.01761).

    python experiments/cross_likelihood.py                         # both families that ship
    python experiments/cross_likelihood.py --priors toy/oracle,FOLDER
    python experiments/cross_likelihood.py --priors FOLDER --musdb ROOT   # priors of musdb18 stems

Printed is the mean log-likelihood of each source's held-out audio in nats per audio sample, at the
lowest noise level that the priors know, in two tables: clean inputs, as the paper judged, and
inputs noised at that level, whose law the priors are. A *row* compares different audio under one
prior; a *column* compares different priors on the same audio, as Bayes' rule does.

The paper's noise-free likelihoods have no counterpart here. Clean toy audio is a curve with three
parameters and has no density: its likelihood grows with training without bound.

The paper prints a picture without figures. The figures printed beside ours are the tables behind
its poster, github.com/morris-frank/thesis-tex, graphics/toy_noise_0. Only the winners compare: the
flow's leave the log-determinant out, the WaveNet's are log probabilities of bins.
"""

from pathlib import Path

import xarray as xr
from _common import Frames, MusdbRoot, Out, PriorSets, Results, Seed, Time
from likelihoods import TWO_SETS, held_out_audio, load_sets, log_likelihoods, lowest_sigma
from matplotlib.figure import Figure

from pyro_sep.cli.program import run
from pyro_sep.models.settings import AUDIT_FRAMES, AUDIT_TIME
from pyro_sep.viz.plots import plot_audit

PAPER_NAMES = ("sine", "square", "saw", "triangle")
PAPER = {  # rows are priors
    "flow": [
        [4.8, -8.9e2, -7.5e2, -47],
        [-4.1e2, -1.8, -6.9e2, -6.8e2],
        [-6.8e2, -8.2e2, 4.1, -6.7e2],
        [-46, -1e3, -1e3, 4.0],
    ],
    "WaveNet": [
        [-0.051, -0.51, -0.43, -0.26],
        [-0.86, -4.7e-6, -1.5, -1.5],
        [-1.1, -1.6, -0.080, -1.1],
        [-0.20, -1.4, -0.27, -0.10],
    ],
}


def main(
    priors: PriorSets = TWO_SETS,
    frames: Frames = AUDIT_FRAMES,
    time: Time = AUDIT_TIME,
    seed: Seed = 0,
    musdb: MusdbRoot = None,
    out: Out = Path("results/cross_likelihood"),
) -> None:
    """Print and draw the tables and say who wins each row and column."""
    results, sets = Results(out), load_sets(priors)
    sigma = lowest_sigma(sets)
    audio = held_out_audio(sets, frames, time, musdb)
    table = log_likelihoods(sets, audio, (sigma,), seed)
    print(f"audio: {musdb or 'toy'}")
    verdicts = {}
    for panel in panels(table):
        title = f"{panel['priors'].item()}, {panel['input'].item()}"
        verdicts[title] = report(f"{title} audio, sigma {sigma:g}", panel)
    for family, rows in () if musdb else PAPER.items():
        paper = xr.DataArray(rows, {"prior": list(PAPER_NAMES), "source": list(PAPER_NAMES)})
        report(f"paper's poster, {family}, clean audio, no noise", paper)
    results.csv(table.to_series(), "cross_likelihood")
    results.png(draw(table), "cross_likelihood")
    settings = {"sigma": sigma, "frames": frames, "time": time, "seed": seed, "musdb": musdb}
    settings |= {"seconds": results.seconds}
    results.json(settings | {"verdicts": verdicts, "table": table.to_dict()})
    results.done()


def panels(table: xr.DataArray) -> xr.DataArray:
    """Sets of priors and kinds of input in the place of levels: ``(sigma, prior, source)``."""
    stacked = table.stack(panel=("priors", "input", "sigma"), create_index=False)
    return stacked.swap_dims(panel="sigma").transpose("sigma", "prior", "source")


def report(title: str, panel: xr.DataArray) -> dict[str, str]:
    """Print a table and who wins; the verdicts."""
    verdicts = {
        "rows": winners(panel, "prior", "source", "each prior gives its own source most"),
        "columns": winners(
            panel, "source", "prior", "each source is likeliest under its own prior"
        ),
    }
    print(f"{title}: rows are priors\n{panel.to_pandas().to_string(float_format='{:.3g}'.format)}")
    for kind, verdict in verdicts.items():
        print(f"  {kind}: {verdict}")
    return verdicts


def winners(panel: xr.DataArray, each: str, over: str, all_own: str) -> str:
    """In words, the names whose best is not their own, and that best."""
    best = panel.idxmax(over)
    lost = [
        f"{name} (its best {over} is {best.sel({each: name}).item()})"
        for name in panel[each].values
        if best.sel({each: name}) != name
    ]
    return f"not so for {', '.join(lost)}" if lost else all_own


def draw(table: xr.DataArray) -> Figure:
    """A heat map for each set of priors, a row, and each kind of input, a column."""
    maps = panels(table)
    figure = plot_audit(maps)
    rows, columns = table.sizes["priors"], table.sizes["input"]
    size = (1.4 + columns * (1 + 0.8 * maps.sizes["source"]), 0.6 + rows * (1 + 0.6 * len(maps[0])))
    figure.set_size_inches(size)
    grid = figure.add_gridspec(rows, columns)
    for i, (ax, panel) in enumerate(zip(figure.axes, maps, strict=False)):  # the bar comes last
        ax.set_subplotspec(grid[divmod(i, columns)])
        ax.set_title(f"{panel['priors'].item()}, {panel['input'].item()}")
    figure.axes[-1].set_ylabel("log-likelihood / (nats per audio sample)")
    return figure


if __name__ == "__main__":
    run(main)
