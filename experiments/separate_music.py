"""Stems of musdb18: is the posterior better than methods without a learned prior?

    python experiments/separate_music.py --musdb ROOT
    python experiments/separate_music.py --musdb ROOT --stems bass,drums,vocals,other
    python experiments/separate_music.py --musdb ROOT --methods mixture,hpss,nmf,mask

From each of the first test tracks it takes one excerpt in which all stems are above -60 dB re full
scale: the first such frame of the 150 that ``pyro_sep.data.tracks`` draws by the track's name,
whatever the seed. Tracks without one are left out. Excerpts are mono, at 16 kHz, and the mixture is
the sum of its stems.

    mixture     the mixture itself, in place of every stem
    low-pass    bass below 200 Hz, drums above; for these two stems alone
    hpss        harmonic-percussive separation; needs drums
    nmf         non-negative matrix factorisation, from the same training stems as the priors
    mask        the ideal ratio mask, made from the true stems: what no mask can surpass by much
    posterior   ``pyro_sep.separate``: the mean of all chains, and of several chains also the one of
                the highest log posterior; of priors at a lower rate also the estimate whose treble
                is divided as if all sources had as much of it

All but the last are ``baselines``. Stems of priors of another rate are brought to 16 kHz as
``pyro-sep separate`` does. With --coarse chains begin from the stems of priors at a lower rate.

Printed are improvements of SI-SDR over the mixture in dB: the median of each stem, median and mean
of all, and the share above 5 dB; the median SI-SDR; and the median CPU seconds, without the time in
which an NMF learns. OUT/METHOD.json has the figures of every excerpt, and a run that was cut off
continues. OUT/TRACK has stems, trace and picture of the posterior of the first excerpt.

Frank & Ilse 2020 (arXiv 2011.01761) report that separation failed; they give no SI-SDR.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from _common import (
    Candidates,
    Chains,
    CoarsePriors,
    Draws,
    Levels,
    Measure,
    Out,
    Preset,
    PriorSet,
    Results,
    Row,
    Seconds,
    Seed,
    Workers,
    bar,
    choose,
    decibels,
    judge,
    load_set,
    resume,
    score,
    separate_at,
    sounding_frame,
    summarise_verdicts,
    upmixed,
)
from baselines import (
    applies,
    check_stems,
    hpss,
    ideal_ratio_mask,
    learn_dictionaries,
    low_pass,
    nmf,
)
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import STEMS, MusdbSource, musdb_tracks
from pyro_sep.priors.base import Priors, sample_rate_of
from pyro_sep.results.writer import write_separation
from pyro_sep.separation.api import Separation
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.draws import best_chain

SAMPLE_RATE = 16_000  # Hz
RIGHT_DB = 5.0  # SI-SDR of every stem of a separation that is right
METHODS = ("mixture", "low-pass", "hpss", "nmf", "mask", "posterior")


@dataclass(frozen=True)
class Excerpt:
    """A moment of a test track."""

    track: str
    sources: Tensor  # (stem, time)

    @property
    def mixture(self) -> Tensor:
        """The sum of the stems, ``(time,)``."""
        return self.sources.sum(0)


def main(
    musdb: Annotated[Path, typer.Option(help="Root of musdb18.")],
    priors: PriorSet = "music",
    coarse: CoarsePriors = None,
    stems: Annotated[str, typer.Option(help="Stems in the mixture, comma-separated.")] = (
        "bass,drums"
    ),
    excerpts: Annotated[int, typer.Option(min=1, help="At most, one per test track.")] = 20,
    seconds: Seconds = 2.0,
    methods: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(METHODS)}; by default all that apply.")
    ] = None,
    seed: Seed = 0,
    preset: Preset = None,
    chains: Chains = None,
    candidates: Candidates = None,
    levels: Levels = None,
    draws: Draws = None,
    out: Out = Path("results/separate_music"),
    workers: Workers = None,
) -> None:
    """Separate excerpts by every method and print the table."""
    results = Results(out)
    names, time = chosen_stems(stems), round(seconds * SAMPLE_RATE)
    # The folder's name, not its path: these files are published.
    settings = {"musdb": musdb.resolve().name, "stems": stems, "seconds": seconds}
    further: dict[str, Any] = {"nmf": {"seed": seed}}
    learned = cache(partial(learn, musdb, names, seed))
    runs: dict[str, Measure[Excerpt]] = {
        method: partial(baseline, method, names, learned)
        for method in chosen_methods(methods, names)
    }
    if "posterior" in runs:
        loaded = load_set(priors, stems, "sum")
        rate = sample_rate_of(loaded)
        fields = {"chains": chains, "candidates": candidates, "levels": levels, "draws": draws}
        budget: dict[str, Any] = {"preset": preset} | fields
        plan = resolve_settings(loaded, round(seconds * rate), **budget)
        # Noise levels are those of each excerpt's loudness.
        settled = {name: value for name, value in asdict(plan).items() if "sigma" not in name}
        further["posterior"] = {"priors": priors, "seed": seed} | settled
        below = None
        if coarse is not None:
            below = load_set(coarse, stems, "sum")
            further["posterior"] |= {"coarse": coarse}
        shown = workers is None and sys.stderr.isatty()
        runs["posterior"] = partial(posterior, loaded, below, seed, budget, out, shown)
    items = find_excerpts(musdb, names, time, excerpts)
    tracks = [item.track for item in items]
    print(f"{len(items)} excerpts of {seconds:g} s, each of another test track", flush=True)
    table, verdicts = {}, {}
    for method, measure in runs.items():
        path, known = out / f"{method}.json", settings | further.get(method, {})
        prepare = learned if method == "nmf" else dict
        side = workers if method == "posterior" else None  # the others take a moment
        rows = list(resume(path, known, items, measure, 1, prepare, side))
        if [row["track"] for row in rows] != tracks:
            raise ValueError(f"{path}: got figures of other tracks; give another --out")
        table[method] = line(rows, names)
        if method == "posterior":
            verdicts = summarise_verdicts(rows, RIGHT_DB)
        if method == "posterior" and plan.chains > 1:
            table["best chain"] = line([row | row["best_chain"] for row in rows], names)
        if method == "posterior" and rate < SAMPLE_RATE:
            table["flat treble"] = line([row | row["flat_treble"] for row in rows], names)
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("method").reset_index()
    results.csv(frame, "summary", index=False)
    content = settings | further.get("posterior", {}) | verdicts | {"tracks": tracks}
    results.json(content | {"wall_seconds": results.seconds, "table": frame.to_dict("records")})
    print(frame.to_string(index=False, float_format="{:.1f}".format))
    print("Paper (2011.01761): separation failed, no figure.")
    results.done()


def chosen_stems(stems: str) -> tuple[str, ...]:
    """Names of the stems, at least two."""
    names = tuple(choose("stems", stems, STEMS))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"stems: got {stems}, expected two or more that differ")
    return names


def chosen_methods(methods: str | None, names: Sequence[str]) -> list[str]:
    """The methods in a list, or all that can separate these stems."""
    if methods is None:
        return [method for method in METHODS if applies(method, names)]
    chosen = choose("methods", methods, METHODS)
    for method in chosen:
        check_stems(method, names)
    return chosen


def find_excerpts(root: Path, names: Sequence[str], time: int, count: int) -> list[Excerpt]:
    """One excerpt of each test track in which all stems are heard at once, at most ``count``."""
    found: list[Excerpt] = []
    tracks = [track for track in musdb_tracks(root) if track.subset == "test"]
    for track in bar(tracks, "reading"):
        if len(found) == count:
            break
        if (frame := sounding_frame(track, names, SAMPLE_RATE, time)) is not None:
            found.append(Excerpt(track.name, frame))
    if not found:
        raise ValueError(
            f"{root}: got no test track with {', '.join(names)} at once, expected one at least; "
            "name other --stems"
        )
    return found


def line(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """A line of the table, in dB; improvement is over the mixture."""
    gain, sdr = decibels(rows, "improvement"), decibels(rows, "si_sdr")
    return {
        **dict(zip(names, np.median(gain, 0).tolist(), strict=True)),
        "all": float(np.median(gain)),
        "mean": float(gain.mean()),
        "% above 5 dB": 100 * float((gain > 5).mean()),
        "SI-SDR": float(np.median(sdr)),
        "CPU s": float(np.median([row["seconds"] for row in rows])),
    }


def baseline(
    method: str,
    names: Sequence[str],
    learned: Callable[[], dict[str, Any]],
    start: int,
    items: Sequence[Excerpt],
) -> list[Row]:
    """Figures of a baseline; ``learned`` gives the dictionaries of an NMF."""
    separate: dict[str, Callable[[Excerpt], Tensor]] = {
        "mixture": lambda item: item.mixture.expand(len(names), -1),
        "low-pass": lambda item: low_pass(item.mixture, names, SAMPLE_RATE),
        "hpss": lambda item: hpss(item.mixture, names, SAMPLE_RATE),
        "nmf": lambda item: nmf(item.mixture, learned()),
        "mask": lambda item: ideal_ratio_mask(item.mixture, item.sources),
    }
    return [
        {"track": item.track} | score(separate[method](item), item.sources, item.mixture)
        for item in items
    ]


def learn(root: Path, names: Sequence[str], seed: int) -> dict[str, Any]:
    """A dictionary of each stem, from seconds of the training tracks."""
    audio = (MusdbSource(root, name, SAMPLE_RATE, SAMPLE_RATE) for name in bar(names, "nmf"))
    return learn_dictionaries(audio, SAMPLE_RATE, seed)


def posterior(
    priors: Priors,
    coarse: Priors | None,
    seed: int,
    budget: Mapping[str, Any],
    out: Path,
    shown: bool,
    start: int,
    items: Sequence[Excerpt],
) -> list[Row]:
    """Figures of ``pyro_sep.separate``; the results of the first excerpt are written."""
    rows = []
    for i, item in enumerate(items, start):
        result, stems = separate_at(
            item.mixture,
            item.sources,
            SAMPLE_RATE,
            priors,
            coarse=coarse,
            seed=seed + i,
            progress=shown,
            **budget,
        )
        if i == 0:
            write_separation(result, out / item.track)
        found = score(stems, item.sources, item.mixture)
        others = {
            name: score(other, item.sources, item.mixture)
            for name, other in other_stems(result, priors, item.mixture).items()
        }
        rows.append({"track": item.track} | found | others | judge(result))
    return rows


def other_stems(result: Separation, priors: Priors, mixture: Tensor) -> dict[str, Tensor]:
    """Other estimates than ours, ``(stem, time)``.

    The mean of the draws of the chain of the highest mean log posterior, and of priors at a lower
    rate the estimate without what they say of the treble.
    """
    sources = result.trace["posterior"].to_dataset()["sources"].isel(chain=best_chain(result.trace))
    mean = torch.from_numpy(sources.mean("draw").values)
    observed = torch.from_numpy(result.trace["observed_data"].to_dataset()["mixture"].values)
    heard = (observed, priors, mixture, SAMPLE_RATE)
    found = {"best_chain": upmixed(mean, *heard)}
    if result.sample_rate < SAMPLE_RATE:
        found["flat_treble"] = upmixed(result.contributions, *heard, flat=True)
    return found


if __name__ == "__main__":
    run(main)
