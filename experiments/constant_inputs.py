r"""Do priors find constants and noise likely? Table 1 of Frank & Ilse 2020.

    python experiments/constant_inputs.py
    python experiments/constant_inputs.py --priors toy/oracle --frames 2 --start 512 --time 1024
    python experiments/constant_inputs.py --priors FOLDER --musdb ROOT      # of musdb18 stems

Printed is the mean log-likelihood in nats per audio sample (arXiv 2011.01761) of constant 0,
constant 1 and white noise N(0, 0.5), beside that of the prior's own source, at the lowest noise
level that the priors know and at 0.359. The 0.5 is taken for a standard deviation, as in the
paper's N(0, sigma).

The paper finds constants and noise likely, which would be a flaw of a law of the source. It judged
clean inputs; but at level sigma a prior is the law of audio plus noise, and clean inputs gain up to
half a nat by the noise that they lack. So all four are judged both clean and noised at the level.
The second command gives the figures of the true law.

The beginning does not count. The figure is

.. math:: (\log p(x_{<T}) - \log p(x_{<S})) / (T - S)

with a start S beyond the receptive field, 2,047 samples for the WaveNets that ship and 1,472 to
either side for the flows. For an autoregressive prior that is the density of the rest given the
start; for a flow the ends of the two frames cancel.

The paper's figures are those of the author's thesis, github.com/morris-frank/thesis-tex,
graphics/toy_const.tex and wn_toy_const.tex, which have no row for noise. Only comparisons within a
family count: the flow's leave the log-determinant out, the WaveNet's are log probabilities of bins.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from _common import Frames, MusdbRoot, Out, PriorSets, Results, Seed
from likelihoods import TWO_SETS, held_out_audio, load_sets, lowest_sigma
from matplotlib.figure import Figure
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.priors.base import Prior

HIGH = 0.359  # the paper's highest noise level
NOISE = 0.5  # std
DODGE = 0.17  # of the width of a prior, between the marks of two inputs
WORDS = {"own": "its own source", "zero": "constant 0", "one": "constant 1", "noise": "white noise"}
PANELS = 4  # of a set of priors: two noise levels, clean and noised
#: Of the priors of sine, saw, square and triangle.
PAPER = {
    ("flow", "no noise"): {
        "own": (4.8, 4.1, -1.8, 4.0),
        "zero": (4.8, 4.4, -7.0e2, 1.8),
        "one": (-15, -2.7e6, -3.6e3, -3.2e2),
    },
    ("flow", "sigma 0.359"): {
        "own": (1.5, 3.2, 1.5, -1.3),
        "zero": (-0.50, 5.1, -3.1, -2.0e11),
        "one": (2.7, -2.8, 4.5, -11),
    },
    ("WaveNet", "no noise"): {
        "own": (-0.051, -0.080, -4.7e-6, -0.10),
        "zero": (-4.0e-4, -6.4, -26, -6.0e-8),
        "one": (-4.1, -20, -6.0e-8, -2.3),
    },
    ("WaveNet", "sigma 0.359"): {
        "own": (-0.16, -0.19, -1.1e-5, -0.18),
        "zero": (-43, -38, -18, -34),
        "one": (-4.9e-4, -1.8e-4, -6.0e-8, -1.3e-4),
    },
}


def main(
    priors: PriorSets = TWO_SETS,
    frames: Frames = 8,
    start: Annotated[int, typer.Option(min=16, help="Audio samples that do not count.")] = 3_072,
    time: Annotated[int, typer.Option(min=32, help="Audio samples per frame.")] = 6_144,
    seed: Seed = 0,
    musdb: MusdbRoot = None,
    out: Out = Path("results/constant_inputs"),
) -> None:
    """Print and draw the table, and say what is likelier than the prior's own source."""
    results = Results(out)
    if start >= time:
        raise ValueError(f"start: got {start} audio samples, expected fewer than time, {time}")
    sets = load_sets(priors)
    own = held_out_audio(sets, frames, time, musdb)
    print(f"audio: {musdb or 'toy'}")
    rows = [
        {"priors": name, "sigma": sigma, "input": kind, "prior": source}
        | judge(prior.condition(sigma), inputs(own[source], seed, noise), start)
        for name, loaded in sets.items()
        for sigma in (lowest_sigma(sets), HIGH)
        for kind, noise in (("clean", 0.0), ("noised", sigma))
        for source, prior in loaded.items()
    ]
    table = pd.DataFrame(rows).set_index(["priors", "sigma", "input", "prior"])
    verdicts = {
        f"{name}, {kind} audio, sigma {sigma:g}": cells.droplevel([0, 1, 2])
        for (name, sigma, kind), cells in table.groupby(level=[0, 1, 2], sort=False)
    }
    paper = {
        f"author's thesis, {family}, clean audio, {level}": pd.DataFrame(figures, WAVEFORMS)
        for (family, level), figures in PAPER.items()
    }
    for title, cells in (verdicts if musdb else verdicts | paper).items():
        print(f"{title}\n{cells.to_string(float_format='{:.3g}'.format)}")
        print(f"  likelier than the prior's own source: {likelier(cells)}")
    results.csv(table, "constant_inputs")
    results.png(draw(verdicts), "constant_inputs")
    settings = {"frames": frames, "start": start, "time": time, "seed": seed, "musdb": musdb}
    settings |= {"seconds": results.seconds}
    words = {title: likelier(cells) for title, cells in verdicts.items()}
    results.json(settings | {"likelier_than_own": words, "rows": rows})
    results.done()


def inputs(own: Tensor, seed: int, sigma: float) -> dict[str, Tensor]:
    """Audio ``(frame, time)`` by name, with noise of std sigma; a constant without is one frame."""
    generator = torch.Generator().manual_seed(seed)
    white = NOISE * torch.randn(own.shape, generator=generator)
    audio = {
        "own": own,
        "zero": torch.zeros_like(own[:1]),
        "one": torch.ones_like(own[:1]),
        "noise": white,
    }
    if not sigma:
        return audio
    noise = sigma * torch.randn(own.shape, generator=generator)
    return {name: clean + noise for name, clean in audio.items()}


@torch.no_grad()
def judge(prior: Prior, audio: dict[str, Tensor], start: int) -> dict[str, float]:
    """Mean log-likelihood per audio sample of each input, its first ``start`` samples left out."""
    result = {}
    for name, x in audio.items():
        time = x.shape[-1]
        whole = prior.frame(time).log_prob(x)
        beginning = prior.frame(start).log_prob(x[:, :start])
        result[name] = float((whole - beginning).mean()) / (time - start)
    return result


def likelier(cells: pd.DataFrame) -> str:
    """In words, which inputs a prior finds likelier than its own source, and by how much."""
    found = [
        f"{name} under {prior} (+{row[name] - row['own']:.2g})"
        for name in cells.columns.drop("own")
        for prior, row in cells.iterrows()
        if row[name] > row["own"]
    ]
    return ", ".join(found) or "none"


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """A panel per table, four to a set of priors: what each prior gives to each input."""
    rows = len(tables) // PANELS
    figure = Figure(figsize=(3.4 * PANELS, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, PANELS, sharey=True, squeeze=False).ravel()
    for ax, (title, cells) in zip(axes, tables.items(), strict=True):
        places = range(len(cells))
        for index, (name, marker) in enumerate(zip(cells.columns, "_ox^", strict=True)):
            own = name == "own"
            x = [place + (0 if own else DODGE * (index - 2)) for place in places]
            size, color = (900, "black") if own else (40, f"C{index}")
            ax.scatter(x, cells[name], size, color, marker=marker, label=name)
        ax.set_title(title, fontsize="medium")
        ax.set_xticks(places, cells.index)
        ax.set_xlim(-0.6, len(cells) - 0.4)
        ax.grid(axis="y", color="0.92")
        ax.set_axisbelow(True)
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter("{x:g}")
    for ax in axes[::PANELS]:
        ax.set_ylabel("nats / audio sample")
    handles, names = axes[0].get_legend_handles_labels()
    labels = [WORDS.get(name, name) for name in names]
    style = {"frameon": False, "markerscale": 0.8}
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), **style)
    return figure


if __name__ == "__main__":
    run(main)
