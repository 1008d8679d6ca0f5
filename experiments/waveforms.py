"""One period of each toy wave: Fig. 1 of Frank & Ilse 2020 (arXiv 2011.01761).

    python experiments/waveforms.py

The picture and the curves are in --out. The RMS of a wave of amplitude 1 is known in closed form:
1/sqrt(2) for a sine, 1 for a square, 1/sqrt(3) for sawtooth and triangle. A tone of the toy data
set has an amplitude between 0.8 and 1 on top of it.
"""

import time as clock
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from pyro_sep.cli import run
from pyro_sep.data.toy import WAVEFORMS, waveform
from pyro_sep.files import written_whole
from pyro_sep.plots import save_figure

POINTS = 1_000  # per period


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/waveforms"),
) -> None:
    """Draw the waves, write their curves and print their RMS."""
    started = clock.monotonic()
    phase = torch.arange(POINTS, dtype=torch.float64) / POINTS
    curves = pd.DataFrame(
        {name: waveform(name, phase).numpy() for name in WAVEFORMS},
        index=pd.Index(phase.numpy(), name="phase"),
    )
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "waveforms.csv") as partial:
        curves.to_csv(partial)
    save_figure(draw(curves), out / "waveforms.png")
    for name, curve in curves.items():
        print(f"{name}: RMS {curve.pow(2).mean() ** 0.5:.3f}, peak {curve.abs().max():.3f}")
    print(
        f"Paper, Fig. 1: one period of the same four waves, a figure only. "
        f"{clock.monotonic() - started:.0f} s. Results: {out}"
    )


def draw(curves: pd.DataFrame) -> Figure:
    """A panel per wave."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots(1, curves.shape[1], sharex=True, sharey=True)
    for index, (ax, (name, curve)) in enumerate(zip(axes, curves.items(), strict=True)):
        ax.axhline(0, color="0.8", linewidth=0.8)
        ax.plot(curve.index, curve, color=f"C{index}")
        ax.set(title=name, xlabel="phase / periods")
    axes[0].set_ylabel("amplitude")
    return figure


if __name__ == "__main__":
    run(main)
