"""Every source under every prior as the noise level rises: Fig. 4 of Frank & Ilse 2020, toy data.

    python experiments/noise_conditioning.py
    python experiments/noise_conditioning.py --frames 32         # the audit's frames
    python experiments/noise_conditioning.py --priors FOLDER --musdb ROOT   # of musdb18 stems

Mean log-likelihood in nats per audio sample (arXiv 2011.01761) at the paper's noise levels, of
clean inputs, as the paper judged, and of inputs noised at the level, which is what the priors are
laws of. The paper's level 0 is left out: the priors that ship know 0.01 and more, since a clean toy
curve has no density. The picture has a panel per prior and a line per source; where the prior's own
source is the highest line it tells the sources apart, and grey is the noise's own entropy, the
ceiling for noised inputs.

The paper prints a picture without figures. What is printed of it counts the winners in the tables
behind its poster, github.com/morris-frank/thesis-tex, graphics/toy_noise_*, clean inputs.
"""

import sys
import time as clock
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import xarray as xr
from matplotlib.figure import Figure

from pyro_sep.cli.app import AUDIT_TIME, MusdbRoot, run
from pyro_sep.data.source import held_out_audio
from pyro_sep.priors.auditing import log_likelihoods, noise_entropy, own_wins
from pyro_sep.priors.io import load_priors
from pyro_sep.storage.files import atomic_write, save_json
from pyro_sep.viz.plots import save_figure

SIGMAS = (0.01, 0.027, 0.077, 0.129, 0.359)
#: Of four: priors that give their own source most, and sources likeliest under their own prior.
PAPER = {
    "flow": {0: (4, 4), 0.01: (4, 4), 0.027: (4, 3), 0.077: (3, 2), 0.129: (2, 1), 0.359: (2, 0)},
    "WaveNet": {
        0: (4, 4),
        0.01: (4, 4),
        0.027: (4, 3),
        0.077: (3, 2),
        0.129: (2, 2),
        0.359: (1, 2),
    },
}


def main(
    priors: Annotated[
        str, typer.Option(help="Sets that ship, or folders, comma-separated.")
    ] = "toy/wavenet,toy/flow",
    frames: Annotated[int, typer.Option(min=1, help="Test frames; the paper's 1,500.")] = 8,
    time: Annotated[int, typer.Option(min=16, help="Audio samples a frame.")] = AUDIT_TIME,
    seed: int = 0,
    musdb: MusdbRoot = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/noise_conditioning"
    ),
) -> None:
    """Print and draw the tables and count who wins at each level."""
    started = clock.monotonic()
    sets = {name: load_priors(name) for name in priors.split(",")}
    sources = next(iter(sets.values()))
    rate = next(iter(sources.values())).sample_rate
    audio = held_out_audio(sources, rate, frames, time, musdb)
    table = log_likelihoods(sets, audio, SIGMAS, seed, sys.stderr.isatty())
    print(f"audio: {musdb or 'toy'}")
    wins = count_wins(table)
    for name in sets:
        for kind in ("clean", "noised"):
            rows = table.sel(priors=name, input=kind).stack(row=("prior", "source"))
            print(f"{name}, {kind} audio\n{rows.T.to_pandas().to_string(float_format='%.2f')}")
    print(
        f"Of {len(audio)}: priors that give their own source most, and sources that are likeliest "
        f"under their own prior\n{wins.to_string()}"
    )
    for family, counts in () if musdb else PAPER.items():
        cells = "  ".join(f"{s:g}: {own} {likeliest}" for s, (own, likeliest) in counts.items())
        print(f"paper's poster, {family}, clean audio, of 4  {cells}")
    seconds = clock.monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "noise_conditioning.csv") as partial:
        table.to_series().to_csv(partial)
    save_figure(draw(table), out / "noise_conditioning.png")
    settings = {"frames": frames, "time": time, "seed": seed, "musdb": musdb, "seconds": seconds}
    save_json(
        settings | {"wins": wins.reset_index().to_dict("records"), "table": table.to_dict()},
        out / "summary.json",
    )
    print(f"{seconds:.0f} s. Results: {out}")


def count_wins(table: xr.DataArray) -> pd.DataFrame:
    """Of the priors, those that give their own source most; of the sources, the reverse."""
    by_prior, by_source = own_wins(table)
    counts = {"priors_right": by_prior.sum("prior"), "sources_right": by_source.sum("source")}
    return xr.Dataset(counts).to_dataframe(["priors", "input", "sigma"])


def draw(table: xr.DataArray) -> Figure:
    """A row of panels for each set of priors and each kind of input, a column for each prior."""
    names = [str(name) for name in table["prior"].values]
    rows = [(str(name), kind) for name in table["priors"].values for kind in ("clean", "noised")]
    figure = Figure(figsize=(3 * len(names), 2.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(names), sharex=True, sharey=True, squeeze=False)
    for (priors, kind), line in zip(rows, axes, strict=True):
        for prior, ax in zip(names, line, strict=True):
            panel = table.sel(priors=priors, input=kind, prior=prior)
            sigmas = panel["sigma"].values
            ceiling = [-noise_entropy(sigma) for sigma in sigmas]
            ax.plot(sigmas, ceiling, color="0.75", linewidth=4, label="ceiling of noised audio")
            for index, source in enumerate(names):
                width = 2.5 if source == prior else 1.0
                curve = panel.sel(source=source)
                ax.plot(sigmas, curve, f"C{index}o-", ms=3, linewidth=width, label=source)
            ax.set(xscale="log", title=f"{priors}: {prior}")
            ax.set_yscale("symlog", linthresh=1)
        line[0].set_ylabel(f"{kind} audio\nnats / audio sample")
    for ax in axes[-1]:
        ax.set_xlabel("sigma")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
