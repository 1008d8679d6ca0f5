"""Bass and drums, or other stems, of musdb18: the posterior beside what needs no learned prior.

    python experiments/separate_music.py --musdb ROOT
    python experiments/separate_music.py --musdb ROOT --stems bass,drums,vocals,other
    python experiments/separate_music.py --musdb ROOT --methods mixture,hpss,nmf,mask

From each of the first test tracks that has one it takes an excerpt in which all stems are heard,
above -60 dB re full scale: the first such of the 150 frames that ``pyro_sep.data.tracks`` draws by
the track's name, whatever the seed. It is mono, at 16 kHz, and the mixture is the sum of its stems.

    mixture     the mixture itself, in place of every stem
    low-pass    bass below 200 Hz, drums above; for these two stems alone
    hpss        harmonic-percussive separation; needs drums
    nmf         non-negative matrix factorisation, from the same training stems as the priors
    mask        the ideal ratio mask, made from the true stems: what no mask can surpass by much
    posterior   ``pyro_sep.separate`` with gains of 1, several excerpts at once: the mean of all
                chains, and of several the best one's too, by log posterior

All but the last are ``baselines``. Printed are improvements of SI-SDR over the mixture in
dB: the median of each stem, median and mean of all, and the share above 5 dB; the median SI-SDR;
and the median seconds of the CPU, without those in which an NMF learns. OUT/METHOD.json keeps the
figures of every excerpt, and a run that was cut off goes on; OUT/TRACK has stems, trace and picture
of the posterior of the first excerpt.

Frank & Ilse 2020 (arXiv 2011.01761) report that separation failed; they give no SI-SDR.
"""

import sys
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from baselines import (
    applies,
    check_stems,
    hpss,
    ideal_ratio_mask,
    learn_dictionary,
    low_pass,
    nmf,
)
from torch import Tensor
from tqdm import tqdm

from pyro_sep.audio.io import active_frames
from pyro_sep.cli.app import one_of, run
from pyro_sep.data.musdb import STEMS, MusdbSource, musdb_tracks
from pyro_sep.data.tracks import stem_frames
from pyro_sep.evaluation.metrics import si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.schedules import MIN_LEVELS
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.priors.base import Priors
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.results.writer import write_separation
from pyro_sep.separation.api import PRESETS, Separation, separate_batch
from pyro_sep.storage.files import atomic_write, load_figures, save_json
from pyro_sep.trace.dataset import best_chain

SAMPLE_RATE = 16_000  # Hz
BATCH = 5  # excerpts whose posterior is drawn from at once
TRAINING_SECONDS = 200  # of each stem, that an NMF learns from
METHODS = ("mixture", "low-pass", "hpss", "nmf", "mask", "posterior")


@dataclass(frozen=True)
class Excerpt:
    """A moment of a test track."""

    index: int
    track: str
    sources: Tensor  # (stem, time)

    @property
    def mixture(self) -> Tensor:
        """The sum of the stems, ``(time,)``."""
        return self.sources.sum(0)


Figures = dict[str, Any]  # of an excerpt
Separator = Callable[[list[Excerpt]], list[Figures]]


def main(
    musdb: Annotated[Path, typer.Option(help="Root of musdb18.")],
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder.")] = "music",
    stems: Annotated[str, typer.Option(help="Those that are mixed, by commas.")] = "bass,drums",
    excerpts: Annotated[int, typer.Option(min=1, help="At most, one a test track.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.016, help="Length of an excerpt.")] = 2.0,
    methods: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(METHODS)}; by default all that apply.")
    ] = None,
    seed: int = 0,
    preset: Annotated[str, typer.Option(help=f"Budget: {', '.join(PRESETS)}.")] = "quick",
    chains: Annotated[int | None, typer.Option(min=1, help="Else the preset's.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Of a search; else the preset's.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=MIN_LEVELS, help="Noise levels; else the preset's.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="DrawRecorder per chain; else the preset's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/separate_music"
    ),
) -> None:
    """Separate excerpts by every method and print the table."""
    started = clock.monotonic()
    names = chosen_stems(stems)
    chosen = chosen_methods(methods, names)
    loaded = chosen_priors(priors, stems) if "posterior" in chosen else {}
    given = {"chains": chains, "candidates": candidates, "levels": levels, "draws": draws}
    own = {name: value for name, value in given.items() if value is not None}
    one_of("preset", preset, PRESETS)
    budget = PRESETS[preset]["mean"] | own
    settings = {"musdb": str(musdb), "stems": stems, "seconds": seconds}
    further: dict[str, dict[str, Any]] = {
        "nmf": {"seed": seed},
        "posterior": {"priors": priors, "seed": seed} | budget,
    }
    items = find_excerpts(musdb, names, round(seconds * SAMPLE_RATE), excerpts)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(items)} excerpts of {seconds:g} s, each of another test track", flush=True)
    rows = []
    with tqdm(total=len(chosen) * len(items), disable=not sys.stderr.isatty()) as bar:
        for method in chosen:
            known = settings | further.get(method, {})
            size, make = 1, partial(baseline, method, names, musdb, seed)
            if method == "posterior":
                size, make = BATCH, partial(posterior, loaded, seed, budget, out)
            path = out / f"{method}.json"
            figures = run_method(make, items, known, path, size, bar)
            rows.append({"method": method} | summarise(figures, names))
            if method == "posterior" and budget.get("chains", Annealing.chains) > 1:
                best = [row | row["best_chain"] for row in figures]
                rows.append({"method": "best chain"} | summarise(best, names))
    table = pd.DataFrame(rows)
    with atomic_write(out / "summary.csv") as temporary:
        table.to_csv(temporary, index=False)
    spent = clock.monotonic() - started
    tracks = [item.track for item in items]
    content = settings | further["posterior"] | {"tracks": tracks, "wall_seconds": spent}
    save_json(content | {"table": rows}, out / "summary.json")
    print(table.to_string(index=False, float_format="{:.1f}".format))
    print(f"Paper (2011.01761): separation failed, no figure.\n{spent:.0f} s. Results: {out}")


def chosen_stems(stems: str) -> tuple[str, ...]:
    """Names of the stems, two at least."""
    names = tuple(stems.split(","))
    if unknown := [name for name in names if name not in STEMS]:
        raise ValueError(f"stems: got {unknown[0]!r}, expected some of {', '.join(STEMS)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"stems: got {stems}, expected two or more that differ")
    return names


def chosen_methods(methods: str | None, names: Sequence[str]) -> list[str]:
    """Those that are named, or all that can tell these stems apart."""
    if methods is None:
        return [method for method in METHODS if applies(method, names)]
    chosen = methods.split(",")
    for method in chosen:
        if method not in METHODS:
            raise ValueError(f"methods: got {method!r}, expected some of {', '.join(METHODS)}")
        check_stems(method, names)
    return chosen


def chosen_priors(priors: str, stems: str) -> Priors:
    """Those of the stems, which must be of the excerpts' rate."""
    loaded = choose_priors(load_priors(priors), stems)
    rate = next(iter(loaded.values())).sample_rate
    if rate != SAMPLE_RATE:
        raise ValueError(f"priors: got {rate} Hz, expected {SAMPLE_RATE} Hz; train them anew")
    return loaded


def find_excerpts(root: Path, names: Sequence[str], time: int, count: int) -> list[Excerpt]:
    """One of each test track in which all stems are heard at once, of ``count`` at most."""
    found: list[Excerpt] = []
    tracks = [track for track in musdb_tracks(root) if track.subset == "test"]
    for track in tqdm(tracks, "reading", disable=not sys.stderr.isatty(), leave=False):
        if len(found) == count:
            break
        if not set(names) <= set(track.stems):
            continue
        for frame in stem_frames(track, names, SAMPLE_RATE, time):
            if all(len(active_frames(stem, time)) for stem in frame):
                found.append(Excerpt(len(found), track.name, frame))
                break
    if not found:
        raise ValueError(
            f"{root}: got no test track with {', '.join(names)} at once, expected one at least; "
            "name other --stems"
        )
    return found


def run_method(
    make: Callable[[], Separator],
    items: list[Excerpt],
    settings: dict[str, Any],
    path: Path,
    size: int,
    bar: Any,
) -> list[Figures]:
    """Figures of every excerpt, those that ``path`` already has and the others."""
    rows = {row["track"]: row for row in load_figures(path, settings)}
    left = [item for item in items if item.track not in rows]
    bar.update(len(items) - len(left))
    separate = make() if left else None  # an NMF learns only if there is something left
    for start in range(0, len(left), size):
        batch = left[start : start + size]
        began = clock.process_time()
        found = separate(batch)
        seconds = (clock.process_time() - began) / len(batch)
        for item, figures in zip(batch, found, strict=True):
            rows[item.track] = {"track": item.track, "seconds": seconds} | figures
        save_json({"settings": settings, "mixtures": list(rows.values())}, path)
        bar.update(len(batch))
    return [rows[item.track] for item in items]


def score(item: Excerpt, estimate: Tensor) -> Figures:
    """Figures of an estimate ``(stem, time)``."""
    return {
        "improvement": si_sdr_improvement(estimate, item.sources, item.mixture).tolist(),
        "si_sdr": si_sdr(estimate, item.sources).tolist(),
    }


def summarise(rows: list[Figures], names: Sequence[str]) -> dict[str, float]:
    """A row of the table, in dB; improvement is over the mixture."""
    # A silent estimate has -inf, which JSON does not know.
    gain, sdr = (
        pd.DataFrame([row[key] for row in rows], columns=list(names), dtype=float).fillna(-np.inf)
        for key in ("improvement", "si_sdr")
    )
    return {
        **gain.median().to_dict(),
        "all": float(np.median(gain)),
        "mean": float(gain.to_numpy().mean()),
        "% above 5 dB": 100 * float((gain > 5).to_numpy().mean()),
        "SI-SDR": float(np.median(sdr)),
        "CPU s": float(np.median([row["seconds"] for row in rows])),
    }


def baseline(method: str, names: Sequence[str], root: Path, seed: int) -> Separator:
    """One excerpt after the other; an NMF learns first."""
    dictionaries = learn(root, names, seed) if method == "nmf" else {}
    separate: dict[str, Callable[[Excerpt], Tensor]] = {
        "mixture": lambda item: item.mixture.expand(len(names), -1),
        "low-pass": lambda item: low_pass(item.mixture, names, SAMPLE_RATE),
        "hpss": lambda item: hpss(item.mixture, names, SAMPLE_RATE),
        "nmf": lambda item: nmf(item.mixture, dictionaries),
        "mask": lambda item: ideal_ratio_mask(item.mixture, item.sources),
    }
    return lambda batch: [score(item, separate[method](item)) for item in batch]


def learn(root: Path, names: Sequence[str], seed: int) -> dict[str, Any]:
    """A dictionary of each stem, from seconds of the training tracks."""
    began, dictionaries = clock.process_time(), {}
    for name in names:
        audio = MusdbSource(root, name, SAMPLE_RATE, SAMPLE_RATE)
        generator = torch.Generator().manual_seed(seed)
        frames = audio.draw(TRAINING_SECONDS, SAMPLE_RATE, generator)
        dictionaries[name] = learn_dictionary(frames, seed=seed)
    tqdm.write(f"nmf: learned in {clock.process_time() - began:.0f} s of the CPU")
    return dictionaries


def posterior(priors: Priors, seed: int, budget: dict[str, int], out: Path) -> Separator:
    """The annealed driver, with mixtures that are sums; the first one's results are written."""

    def separate(batch: list[Excerpt]) -> list[Figures]:
        results = separate_batch(
            torch.stack([item.mixture for item in batch]),
            priors,
            gains=(1.0,) * len(priors),
            estimate="mean",
            seed=seed + batch[0].index,
            true_sources=torch.stack([item.sources for item in batch]),
            progress=sys.stderr.isatty(),
            **budget,
        )
        if batch[0].index == 0:
            write_separation(results[0], out / batch[0].track)
        return [
            score(item, result.contributions)
            | {"best_chain": score(item, best_chains_mean(result))}
            for item, result in zip(batch, results, strict=True)
        ]

    return separate


def best_chains_mean(result: Separation) -> Tensor:
    """Mean of the draws of the chain of the highest mean log posterior, ``(stem, time)``."""
    sources = result.trace["posterior"].to_dataset()["sources"].isel(chain=best_chain(result.trace))
    return torch.from_numpy(sources.mean("draw").values)


if __name__ == "__main__":
    run(main)
