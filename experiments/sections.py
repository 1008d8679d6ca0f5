"""Is a recording that is separated in sections as good as one that is separated as a whole?

    python experiments/sections.py --musdb ROOT

One excerpt of each of the first test tracks (those of ``separate_music``) is separated

    whole       as one state, as ``pyro_sep.separate`` does
    again       the same with another seed: what chance alone changes
    sections    in sections of --section seconds, each by itself, joined by a cross-fade

Sections overlap by an eighth of their length. Printed are the improvements of SI-SDR over the
mixture in dB, the mean of all stems, and the CPU seconds. OUT/METHOD.json has the figures of every
excerpt, and a run that was cut off continues.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from _common import (
    Out,
    Preset,
    PriorSet,
    Results,
    Row,
    Seconds,
    Seed,
    decibels,
    load_set,
    resume,
    score,
    upmixed,
)
from separate_music import SAMPLE_RATE, Excerpt, find_excerpts
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.cli.program import run
from pyro_sep.inference.annealing.sections import join, split
from pyro_sep.mixing.known import frame_time
from pyro_sep.priors.base import Priors, sample_rate_of
from pyro_sep.separation.api import separate
from pyro_sep.separation.presets import Preset as PresetName


def main(
    musdb: Annotated[Path, typer.Option(help="Root of musdb18.")],
    priors: PriorSet = "music",
    stems: Annotated[str, typer.Option(help="Stems in the mixture, comma-separated.")] = (
        "bass,drums,vocals,other"
    ),
    excerpts: Annotated[int, typer.Option(min=1, help="At most, one per test track.")] = 3,
    seconds: Seconds = 4.0,
    section: Annotated[float, typer.Option(min=0.1, help="Length of a section in seconds.")] = 2.0,
    preset: Preset = "quick",
    seed: Seed = 0,
    out: Out = Path("results/sections"),
) -> None:
    """Separate excerpts as a whole and in sections, and print the table."""
    results, time = Results(out), round(seconds * SAMPLE_RATE)
    chosen = load_set(priors, stems, "sum")
    rate = sample_rate_of(chosen)
    settings = {"musdb": musdb.resolve().name, "priors": priors, "stems": stems}
    settings |= {"seconds": seconds, "section_seconds": section, "seed": seed}
    settings |= {"preset": preset}
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "whole": partial(whole, chosen, preset, seed),
        "again": partial(whole, chosen, preset, seed + 1),
        "sections": partial(in_sections, chosen, preset, seed, round(section * rate)),
    }
    items, table = find_excerpts(musdb, list(chosen), time, excerpts), {}
    for name, method in methods.items():
        figures = partial(measure, method, chosen)
        rows = list(resume(out / f"{name}.json", settings, items, figures, 1))
        gain = decibels(rows, "improvement")
        spent = float(np.mean([row["seconds"] for row in rows]))
        table[name] = {"mean improvement": float(gain.mean())}
        table[name] |= {"median": float(np.median(gain)), "CPU s": spent}
        table[name] |= {row["track"]: float(np.mean(row["improvement"])) for row in rows}
    frame = pd.DataFrame.from_dict(table, orient="index")
    results.json(settings | {"table": table})
    print(frame.T.to_string(float_format="{:.1f}".format))
    results.done()


def measure(
    method: Callable[[Tensor], Tensor], priors: Priors, start: int, items: Sequence[Excerpt]
) -> list[Row]:
    """Figures of the stems that a method gives for excerpts, at the priors' rate."""
    rows = []
    for item in items:
        observed = resample(item.mixture, SAMPLE_RATE, sample_rate_of(priors))
        stems = upmixed(method(observed), observed, priors, item.mixture, SAMPLE_RATE)
        rows.append({"track": item.track} | score(stems, item.sources, item.mixture))
    return rows


def whole(priors: Priors, preset: PresetName | None, seed: int, mixture: Tensor) -> Tensor:
    """The stems of a mixture that is one state."""
    return separate(mixture, priors, preset=preset, seed=seed).contributions


def in_sections(
    priors: Priors, preset: PresetName | None, seed: int, section: int, mixture: Tensor
) -> Tensor:
    """The stems of sections that are separated one after another, and joined."""
    starts, length = split(len(mixture), section, frame_time(list(priors.values()), 1))
    parts = [whole(priors, preset, seed, mixture[start : start + length]) for start in starts]
    return join([part[None] for part in parts], starts)[0]


if __name__ == "__main__":
    run(main)
