"""Does a separation that begins from another separator's stems improve them?

    python experiments/initial_stems.py --first 1000                       # docs/results/initial
    python experiments/initial_stems.py --musdb ROOT --mixtures 5 --seconds 1

Every mixture is separated from the same start of each kind, and by a search:

    search      no stems are given
    true        the true sources
    bleed       0.8 of a source and 0.2 of the mean of the others
    noise       a source and white noise 12 dB below it; tones alone
    low-pass    a source below 4 kHz; tones alone
    hpss        harmonic-percussive separation, as in separate_music.py; music alone
    mask        the ideal ratio mask, as there; music alone

Mixtures are of tones of the toy test split, or, with --musdb, excerpts of the test tracks as
separate_music.py takes them. Printed are medians over sources and mixtures, in dB: SI-SDR of the
start and of the estimate; the gain of one over the other, also the least; SI-SDR of the estimate
against the start; the median of the nats by which the draws are more probable than the start; how
often the posterior prefers each of them; and mean CPU seconds. OUT/KIND.json has the figures of
every mixture, and a run that was cut off continues.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from _common import (
    First,
    Mixtures,
    Only,
    Out,
    Results,
    Row,
    Seconds,
    Seed,
    Sources,
    choose,
    decibels,
    load_set,
    resume,
    split,
)
from baselines import hpss, ideal_ratio_mask
from separate_music import find_excerpts
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import STEMS
from pyro_sep.data.toy import SAMPLE_RATE, toy_mixture
from pyro_sep.diagnostics.initial import compare_initial
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.priors.base import Priors
from pyro_sep.separation.api import separate

NOISE_DB = -12.0  # of the added noise, re its source
CUTOFF = 4_000.0  # Hz
BLEED = 0.2
EXACT_DB = 100.0  # SI-SDR from where on a start is the truth but for rounding
TONES = ("search", "true", "bleed", "noise", "low-pass")
FIGURES = (
    *("start_db", "estimate_db", "gain_db", "least_gain_db", "moved_db"),
    *("nats", "prefers_result", "prefers_start"),
)
MUSIC = ("search", "true", "bleed", "hpss", "mask")


def main(
    mixtures: Mixtures = 10,
    first: First = 0,
    seconds: Seconds = 0.128,
    sources: Sources = "square,saw",
    musdb: Annotated[
        Path | None, typer.Option(help="Root of musdb18: its excerpts in place of tones.")
    ] = None,
    kinds: Only = None,
    seed: Seed = 0,
    out: Out = Path("results/initial_stems"),
) -> None:
    """Separate mixtures from starts of every kind and print the table."""
    results, music = Results(out), musdb is not None
    names = STEMS if music else tuple(split(sources))
    priors = load_set("music" if music else "toy", ",".join(names), "sum" if music else "mean")
    time = round(seconds * SAMPLE_RATE)
    if musdb is not None:
        parts = [item.sources for item in find_excerpts(musdb, names, time, mixtures)]
    else:
        tones = [toy_mixture("test", first + i, names, time) for i in range(mixtures)]
        parts = [tone.sources / len(names) for tone in tones]
    settings = {"sources": list(names), "seconds": seconds, "first": first, "seed": seed}
    settings |= {"musdb": musdb.resolve().name if musdb is not None else None}
    table = {}
    for kind in choose("kinds", kinds, MUSIC if music else TONES):
        measure = partial(measured, kind, priors, seed)
        rows = list(resume(out / f"{kind}.json", settings, parts, measure, 1))
        table[kind] = line(rows)
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("start")
    results.json(settings | {"mixtures": len(parts), "table": table})
    print(frame.to_string(float_format="{:.1f}".format))
    results.done()


def degraded(kind: str, stems: Tensor, seed: int) -> Tensor | None:
    """Stems of a kind made from the true contributions ``(source, time)``; None for a search."""
    generator = torch.Generator().manual_seed(seed)
    others = (stems.sum(0) - stems) / (len(stems) - 1)
    noise = torch.randn(stems.shape, generator=generator)
    made: dict[str, Callable[[], Tensor | None]] = {
        "search": lambda: None,
        "true": stems.clone,
        "bleed": lambda: (1 - BLEED) * stems + BLEED * others,
        "noise": lambda: stems + 10 ** (NOISE_DB / 20) * stems.std(1, keepdim=True) * noise,
        "low-pass": lambda: low_passed(stems),
        "hpss": lambda: hpss(stems.sum(0), STEMS, SAMPLE_RATE),
        "mask": lambda: ideal_ratio_mask(stems.sum(0), stems),
    }
    return made[kind]()


def low_passed(stems: Tensor) -> Tensor:
    """Stems without what is above :data:`CUTOFF`."""
    spectrum = torch.fft.rfft(stems)
    frequencies = torch.fft.rfftfreq(stems.shape[-1], 1 / SAMPLE_RATE)
    return torch.fft.irfft(spectrum * (frequencies < CUTOFF), n=stems.shape[-1])


def measured(
    kind: str, priors: Priors, seed: int, start: int, items: Sequence[Tensor]
) -> list[Row]:
    """Figures of separations of mixtures that begin from stems of a kind."""
    rows = []
    for i, stems in enumerate(items, start):
        initial = degraded(kind, stems, seed + i)
        result = separate(stems.sum(0), priors, seed=seed + i, initial=initial)
        row: Row = {
            "si_sdr": si_sdr(result.contributions, stems).tolist(),
            "gradients": int(result.trace.attrs["gradients"]),
        }
        moved = compare_initial(result.trace)
        if initial is not None and moved is not None:
            row |= {
                "start_si_sdr": si_sdr(initial, stems).tolist(),
                "moved_si_sdr": [*moved.si_sdr.values()],
                "nats": moved.nats,
                "preferred": moved.preferred,
            }
        rows.append(row)
    return rows


def line(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """A line of the table; None where a search began from nothing, or nothing is to be gained."""
    after = decibels(rows, "si_sdr")
    figures: dict[str, float | int | None] = dict.fromkeys(FIGURES)
    if "nats" in rows[0]:
        preferred = [row["preferred"] for row in rows]
        figures |= {
            "moved_db": float(np.median(decibels(rows, "moved_si_sdr"))),
            "nats": float(np.median([row["nats"] for row in rows])),
            "prefers_result": preferred.count("result"),
            "prefers_start": preferred.count("initial"),
        }
        before = decibels(rows, "start_si_sdr")
        if before.min() < EXACT_DB:
            figures["start_db"] = float(np.median(before))
            figures["gain_db"] = float(np.median(after - before))
            figures["least_gain_db"] = float((after - before).min())
    return figures | {
        "estimate_db": float(np.median(after)),
        "gradients": float(np.mean([row["gradients"] for row in rows])),
        "cpu_seconds": float(np.mean([row["seconds"] for row in rows])),
    }


if __name__ == "__main__":
    run(main)
