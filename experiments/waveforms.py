"""What do the toy waves and a track's stems look like? Fig. 1 and 2 of Frank & Ilse 2020.

    python experiments/waveforms.py
    python experiments/waveforms.py --musdb ROOT   # or one .stem.mp4: a second of its first track

The paper is arXiv 2011.01761. Printed are RMS and peak of every curve; picture and curves are in
--out. The RMS of a wave of amplitude 1 is known in closed form:
1/sqrt(2) for a sine, 1 for a square, 1/sqrt(3) for sawtooth and triangle. A tone of the toy data
set has an amplitude between 0.8 and 1 on top of it.
"""

from pathlib import Path

import pandas as pd
import torch
from _common import MusdbRoot, Out, Results
from matplotlib.figure import Figure

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS, waveform
from pyro_sep.data.tracks import stem_frames

POINTS = 1_000  # per period


def main(
    musdb: MusdbRoot = None,
    out: Out = Path("results/waveforms"),
) -> None:
    """Draw the waves or stems, write their curves and print their RMS."""
    results = Results(out)
    title, curves = ("", periods()) if musdb is None else second_of_music(musdb)
    results.csv(curves, "waveforms")
    results.png(draw(curves, title), "waveforms")
    for name, curve in curves.items():
        print(f"{name}: RMS {curve.pow(2).mean() ** 0.5:.3f}, peak {curve.abs().max():.3f}")
    paper = f"2: the four stems of a track, here {title}" if title else "1: the same four waves"
    print(f"Paper, Fig. {paper}; a figure only.")
    results.done()


def periods() -> pd.DataFrame:
    """One period of each wave."""
    phase = torch.arange(POINTS, dtype=torch.float64) / POINTS
    return pd.DataFrame(
        {name: waveform(name, phase).numpy() for name in WAVEFORMS},
        index=pd.Index(phase.numpy(), name="phase"),
    )


def second_of_music(root: Path) -> tuple[str, pd.DataFrame]:
    """A track's name, and a second of its stems, all at the same moment."""
    track = musdb_tracks(root)[0]
    stems = stem_frames(track, STEMS, SAMPLE_RATE, SAMPLE_RATE)[0]
    seconds = pd.Index(torch.arange(SAMPLE_RATE).numpy() / SAMPLE_RATE, name="seconds")
    return track.name, pd.DataFrame(dict(zip(STEMS, stems.numpy(), strict=True)), index=seconds)


def draw(curves: pd.DataFrame, title: str = "") -> Figure:
    """A panel per wave or stem."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots(1, curves.shape[1], sharex=True, sharey=True)
    for index, (ax, (name, curve)) in enumerate(zip(axes, curves.items(), strict=True)):
        ax.axhline(0, color="0.8", linewidth=0.8)
        ax.plot(curve.index, curve, color=f"C{index}")
        ax.set(title=name, xlabel="time / s" if title else "phase / periods")
    axes[0].set_ylabel("amplitude")
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    run(main)
