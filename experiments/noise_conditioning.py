"""Do priors still know their own source as the noise level rises? Fig. 4 of Frank & Ilse 2020.

    python experiments/noise_conditioning.py
    python experiments/noise_conditioning.py --frames 32         # the audit's frames
    python experiments/noise_conditioning.py --priors FOLDER --musdb ROOT   # of musdb18 stems

Printed is the mean log-likelihood in nats per audio sample at the paper's noise levels
(arXiv 2011.01761), of clean inputs, as the paper judged, and of inputs noised at the level, whose
law the priors are. The paper's level 0 is left out: the priors that ship know 0.01 and more, since
a clean toy curve has no density. The picture has a panel per prior and a line per source. A prior
whose own source, the thick line, is the highest distinguishes the sources; grey is the noise's own
entropy with its sign changed, the ceiling for noised inputs.

The paper prints a picture without figures. The figures printed beside ours count the winners in the
tables behind its poster, github.com/morris-frank/thesis-tex, graphics/toy_noise_*, clean inputs.
"""

from pathlib import Path

import pandas as pd
import xarray as xr
from _common import Frames, MusdbRoot, Out, PriorSets, Results, Seed, Time
from likelihoods import TWO_SETS, held_out_audio, load_sets, log_likelihoods
from matplotlib.figure import Figure

from pyro_sep.cli.program import run
from pyro_sep.models.settings import AUDIT_TIME
from pyro_sep.priors.auditing import noise_entropy, own_wins

SIGMAS = (0.01, 0.027, 0.077, 0.129, 0.359)
MARKERS = "osD^v<>"  # of the sources: curves that coincide are seen by them
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
    priors: PriorSets = TWO_SETS,
    frames: Frames = 8,
    time: Time = AUDIT_TIME,
    seed: Seed = 0,
    musdb: MusdbRoot = None,
    out: Out = Path("results/noise_conditioning"),
) -> None:
    """Print and draw the tables and count who wins at each level."""
    results, sets = Results(out), load_sets(priors)
    audio = held_out_audio(sets, frames, time, musdb)
    table = log_likelihoods(sets, audio, SIGMAS, seed)
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
    results.csv(table.to_series(), "noise_conditioning")
    results.png(draw(table), "noise_conditioning")
    settings = {"frames": frames, "time": time, "seed": seed, "musdb": musdb}
    settings |= {"seconds": results.seconds}
    records = wins.reset_index().to_dict("records")
    results.json(settings | {"wins": records, "table": table.to_dict()})
    results.done()


def count_wins(table: xr.DataArray) -> pd.DataFrame:
    """Numbers of priors that give their own source most, and of sources so judged by theirs."""
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
                style = f"C{index}{MARKERS[index % len(MARKERS)]}-"
                width = 3.0 if source == prior else 1.0
                curve = panel.sel(source=source)
                ax.plot(sigmas, curve, style, ms=5, mfc="white", linewidth=width, label=source)
            ax.set(xscale="log", title=f"{priors}: {prior}")
            ax.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas], rotation=45)
            ax.set_xticks([], minor=True)
            ax.set_yscale("symlog", linthresh=1)
            ax.yaxis.set_major_formatter("{x:g}")
        line[0].set_ylabel(f"{kind} audio\nnats / audio sample")
    for ax in axes[-1]:
        ax.set_xlabel("sigma")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    style = {"frameon": False, "title": "source"}
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), **style)
    return figure


if __name__ == "__main__":
    run(main)
