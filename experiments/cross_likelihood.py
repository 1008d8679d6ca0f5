"""Every source under every prior: Fig. 3 of Frank & Ilse 2020 (arXiv 2011.01761), toy data.

    python experiments/cross_likelihood.py                         # both families that ship
    python experiments/cross_likelihood.py --priors toy/oracle,FOLDER
    python experiments/cross_likelihood.py --priors FOLDER --musdb ROOT   # priors of musdb18 stems

Mean log-likelihood in nats per audio sample of each source's held-out audio, at the lowest noise
level that the priors know, in two tables: clean inputs, as the paper judged, and inputs noised at
that level, which is what the priors are laws of. A *row* compares what one prior gives to different
audio; a *column* what different priors give to the same audio, which is what Bayes' rule needs.

The paper's noise-free likelihoods have no counterpart here. Clean toy audio is a curve with three
parameters and has no density: its likelihood grows with training without bound, and how far it got
says how long a prior was trained.

The paper prints a picture without figures. Those printed here are the tables behind its poster,
github.com/morris-frank/thesis-tex, graphics/toy_noise_0. Only who wins compares: the flow's leave
the log-determinant out, the WaveNet's are log probabilities of bins.
"""

import sys
import time as clock
from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from matplotlib.figure import Figure

from pyro_sep.cli.app import AUDIT_FRAMES, AUDIT_TIME, MusdbRoot, run
from pyro_sep.data.source import held_out_audio
from pyro_sep.priors.auditing import log_likelihoods
from pyro_sep.priors.io import load_priors
from pyro_sep.storage.files import atomic_write, save_json
from pyro_sep.viz.plots import plot_audit, save_figure

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
    priors: Annotated[
        str, typer.Option(help="Sets that ship, or folders, comma-separated.")
    ] = "toy/wavenet,toy/flow",
    frames: Annotated[int, typer.Option(min=1, help="Test frames; the paper's 1,500.")] = (
        AUDIT_FRAMES
    ),
    time: Annotated[int, typer.Option(min=16, help="Audio samples a frame.")] = AUDIT_TIME,
    seed: int = 0,
    musdb: MusdbRoot = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/cross_likelihood"
    ),
) -> None:
    """Print and draw the tables and say who wins each row and column."""
    started = clock.monotonic()
    sets = {name: load_priors(name) for name in priors.split(",")}
    sigma = max(prior.sigmas[0] for loaded in sets.values() for prior in loaded.values())
    sources = next(iter(sets.values()))
    rate = next(iter(sources.values())).sample_rate
    audio = held_out_audio(sources, rate, frames, time, musdb)
    table = log_likelihoods(sets, audio, (sigma,), seed, sys.stderr.isatty())
    print(f"audio: {musdb or 'toy'}")
    verdicts = {}
    for panel in panels(table):
        title = f"{panel['priors'].item()}, {panel['input'].item()}"
        verdicts[title] = report(f"{title} audio, sigma {sigma:g}", panel)
    for family, rows in () if musdb else PAPER.items():
        paper = xr.DataArray(rows, {"prior": list(PAPER_NAMES), "source": list(PAPER_NAMES)})
        report(f"paper's poster, {family}, clean audio, no noise", paper)
    seconds = clock.monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "cross_likelihood.csv") as partial:
        table.to_series().to_csv(partial)
    save_figure(draw(table), out / "cross_likelihood.png")
    settings = {"sigma": sigma, "frames": frames, "time": time, "seed": seed, "seconds": seconds}
    settings |= {"musdb": musdb}
    save_json(settings | {"verdicts": verdicts, "table": table.to_dict()}, out / "summary.json")
    print(f"{seconds:.0f} s. Results: {out}")


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
    """In words, whose best is not its own and what it is."""
    best = panel.idxmax(over)
    lost = [
        f"{name} (its best {over} is {best.sel({each: name}).item()})"
        for name in panel[each].values
        if best.sel({each: name}) != name
    ]
    return f"not so for {', '.join(lost)}" if lost else all_own


def draw(table: xr.DataArray) -> Figure:
    """A heat map for each set of priors and each kind of input."""
    maps = panels(table)
    figure = plot_audit(maps)
    for ax, panel in zip(figure.axes, maps, strict=False):  # the colour bar comes last
        ax.set_title(f"{panel['priors'].item()}, {panel['input'].item()}")
    figure.axes[-1].set_ylabel("log-likelihood / (nats per audio sample)")
    return figure


if __name__ == "__main__":
    run(main)
