"""Stems of real records: improvement over the mixture, by our posterior and by others.

    python experiments/separate_records.py --tracks RECORDS
    python experiments/separate_records.py --tracks song.stem.mp4 --priors music
    python experiments/separate_records.py --tracks RECORDS --priors guitar --start 60

--tracks is a folder with TRACK/STEM.wav of records, or a .stem.mp4. Of each track an excerpt is
separated into the stems that both the track and the set of priors have, mono at 16 kHz; priors of
another rate separate at theirs, and stems are brought to 16 kHz as ``pyro-sep separate`` does it.
The mixture is the track's own where it has one. With --wide both channels are separated at once:
the sources named play another take on each side, the others are in the centre. With --coarse chains
of the posterior begin from the stems of priors at a lower rate.

    mixture     the mixture itself, in place of every stem
    hpss        harmonic-percussive separation; needs drums
    nmf         non-negative matrix factorisation; learns from --training, a folder of tracks too
    mask        the ideal ratio mask, made from the true stems: what no mask can surpass by much
    isdm        the Dirac sampler of Mariani et al. 2023 (arXiv 2302.02257) with our priors
    posterior   ``pyro_sep.separate``
    pooled      the mean of the posteriors of --priors and of --coarse, from whose stems chains of
                the former begin: that of a model by which either set may be the right one, with a
                probability of a half
    true-start  the same as posterior, its chains begun at the true stems: what is lost from there
                the priors have given away, and the rest of what the posterior lacks was lost by the
                search

Printed are SI-SDR, its improvement over the mixture and museval's SDR in dB, of each stem of each
track, and their medians. OUT/METHOD.csv has these by stem, with its level in dB of full scale, and
of the posterior the bounds of the SI-SDR that it expects, and the misfit and agreement by source.
OUT/METHOD.json has the same by track, and the verdict; a run that was cut off continues there.
Estimates of the posterior lie in OUT/TRACK/posterior with trace and picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from _common import (
    Chains,
    CoarsePriors,
    Out,
    Preset,
    PriorSet,
    Results,
    Row,
    Seed,
    choose,
    inside_expected,
    judge,
    load_set,
    resume,
    score,
    separate_at,
    split,
    upmixed,
)
from baselines import applies, hpss, ideal_ratio_mask, learn_dictionaries, nmf
from frontier import isdm
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.cli.program import run
from pyro_sep.data.musdb import musdb_tracks
from pyro_sep.data.source import RecordingFolder
from pyro_sep.data.toy import ToyMixture
from pyro_sep.data.tracks import MIXTURE, Track, stems_folder
from pyro_sep.diagnostics.verdict import diagnose
from pyro_sep.evaluation.tracks import evaluate
from pyro_sep.priors.base import Priors, sample_rate_of
from pyro_sep.priors.stereo import in_stereo
from pyro_sep.results.writer import write_separation
from pyro_sep.trace.dataset import level_db

METHODS = ("mixture", "hpss", "nmf", "mask", "isdm", "posterior", "pooled", "true-start")
MONO = ("nmf", "isdm")
SLOW = ("nmf", "isdm", "pooled", "true-start")  # not made unless they are named
RATE = 16_000  # Hz, of the excerpts
ISDM_STEPS = 75  # about what our default preset takes
SILENT = -60.0  # dB of full scale, of stems that a track is taken not to have


@dataclass(frozen=True)
class Excerpt:
    """A part of a track, mono or of two channels."""

    track: str
    stems: tuple[str, ...]
    sources: Tensor  # (stem, time), or (stem, channel, time)
    mixture: Tensor  # (time,), or (channel, time)


def main(
    tracks: Annotated[Path, typer.Option(help="Folder of TRACK/STEM files, or a .stem.mp4.")],
    priors: PriorSet = "music",
    coarse: CoarsePriors = None,
    wide: Annotated[
        str | None,
        typer.Option(help="Sources that play another take on each side, comma-separated."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Tracks whose names begin so, comma-separated.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="The first tracks of these.")] = None,
    start: Annotated[float, typer.Option(min=0, help="Of the excerpt, in seconds.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=1, help="Of it, at most.")] = 10.0,
    methods: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(METHODS)}; by default all but {', '.join(SLOW)}."),
    ] = None,
    training: Annotated[Path | None, typer.Option(help="Tracks that an NMF learns from.")] = None,
    preset: Preset = None,
    chains: Chains = None,
    seed: Seed = 0,
    out: Out = Path("results/separate_records"),
) -> None:
    """Separate the excerpts by every method and print the table."""
    results = Results(out)
    loaded = load_set(priors, mixing="sum")
    below = None if coarse is None else load_set(coarse, ",".join(loaded), "sum")
    own, lower = (
        at if at is None or wide is None else in_stereo(at, split(wide)) for at in (loaded, below)
    )
    items = [
        excerpt(track, tuple(loaded), start, seconds, wide is not None)
        for track in chosen(tracks, only)[:count]
    ]
    named = {item.track: item for item in items if len(item.stems) > 1}
    if not named:
        raise ValueError(
            f"{tracks}: got no track with two of {', '.join(loaded)}, expected one at least"
        )
    settings = {"tracks": tracks.name, "priors": priors, "start": start, "seconds": seconds}
    settings |= {} if wide is None else {"wide": wide}
    options = {"seed": seed, "preset": preset, "chains": chains}
    table = {}
    for method in chosen_methods(methods, training, coarse, [*named.values()], wide is not None):
        known = settings | ({} if method in ("mixture", "hpss", "mask") else {"seed": seed})
        if method in ("posterior", "pooled", "true-start"):
            known |= options
        if method in ("posterior", "pooled") and coarse is not None:
            known |= {"coarse": coarse}
        figures = partial(measure, method, own, lower, options, training, out)
        rows = list(resume(out / f"{method}.json", known, [*named.values()], figures, batch=1))
        if [row["track"] for row in rows] != [*named]:
            raise ValueError(f"{out}: got figures of other tracks; give another --out")
        table[method] = line(rows)
        results.csv(by_stem(rows), method, index=False)
        for row in rows:
            print(told(method, row), flush=True)
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("method").reset_index()
    results.csv(frame, "summary", index=False)
    lines = [{"method": method} | figures for method, figures in table.items()]
    results.json(settings | {"tracks_judged": [*named], "table": lines})
    print(frame.to_string(index=False, float_format="{:.1f}".format))
    results.done()


def chosen(tracks: Path, only: str | None) -> list[Track]:
    """Tracks in the order of their names."""
    found = musdb_tracks(tracks) if tracks.is_file() else stems_folder(tracks)
    starts = ("",) if only is None else tuple(split(only))
    return sorted((t for t in found if t.name.startswith(starts)), key=lambda track: track.name)


def chosen_methods(
    methods: str | None,
    training: Path | None,
    coarse: str | None,
    items: Sequence[Excerpt],
    stereo: bool,
) -> list[str]:
    """The methods in a list, or those that take little time and can separate all tracks."""
    if methods is not None:
        names = choose("methods", methods, METHODS)
    else:
        names = [name for name in METHODS if name not in SLOW]
        names = [name for name in names if all(applies(name, item.stems) for item in items)]
    if stereo and (mono := [name for name in names if name in MONO]):
        raise ValueError(
            f"methods: got {mono[0]} with --wide, expected others: it is of mono audio"
        )
    if "pooled" in names and coarse is None:
        raise ValueError("methods: got pooled, expected a second set of priors; give --coarse")
    if "nmf" in names and training is None:
        raise ValueError("methods: got nmf, expected tracks to learn from too; give --training")
    return names


def excerpt(
    track: Track, known: Sequence[str], start: float, seconds: float, stereo: bool = False
) -> Excerpt:
    """The part of a track that is separated, and the stems that are heard in it."""

    def part(stem: str | None) -> Tensor:
        samples, own = track.mixture() if stem is None else track.read(stem)
        samples = samples[:, round(start * own) : round((start + seconds) * own)]
        if stereo and len(samples) != 2:
            raise ValueError(
                f"{track.name}: got {len(samples)} channels, expected two; leave out --wide"
            )
        return resample(samples if stereo else samples.mean(0), own, RATE)

    stems = {name: part(name) for name in known if name in track.stems}
    heard = {
        name: audio for name, audio in stems.items() if level_db(audio.flatten().numpy()) > SILENT
    }
    sources = torch.stack([*heard.values()]) if heard else torch.empty(0, 0)
    whole = part(None) if MIXTURE in track.readers else sources.sum(0)
    return Excerpt(track.name, tuple(heard), sources, whole)


def measure(
    method: str,
    priors: Priors,
    coarse: Priors | None,
    options: Mapping[str, Any],
    training: Path | None,
    out: Path,
    start: int,
    items: Sequence[Excerpt],
) -> list[Row]:
    """Figures of a method."""
    rows = []
    for item in items:
        own = {name: priors[name] for name in item.stems}
        further: Row = {}
        if method in ("posterior", "true-start"):
            result, estimate = separate_at(
                item.mixture,
                item.sources,
                RATE,
                own,
                from_truth=method == "true-start",
                coarse=coarse if method == "posterior" else None,
                **options,
            )
            write_separation(result, out / item.track / method)
            found = diagnose(result.trace)
            further = judge(result) | {
                "misfit": {row.name: row.misfit for row in found.sources},
                "agreement": {row.name: row.agreement for row in found.sources},
                "log_prior": mean_log_prior(result.trace),
            }
        elif method == "pooled":
            estimate = pooled(item, own, cast(Priors, coarse), options)
        elif method == "nmf":
            estimate = nmf(item.mixture, learned(cast(Path, training), item.stems, options["seed"]))
        else:
            estimate = baseline(method, item, own, options["seed"])
        scores = score(estimate.flatten(1), item.sources.flatten(1), item.mixture.flatten())
        rows.append(
            {
                "track": item.track,
                "stems": list(item.stems),
                "level_db": [round(float(level_db(s)), 1) for s in item.sources.flatten(1).numpy()],
                "sdr": museval_sdr(estimate, item),
            }
            | scores
            | further
        )
    return rows


def pooled(item: Excerpt, priors: Priors, coarse: Priors, options: Mapping[str, Any]) -> Tensor:
    """The mean of two posteriors, chains of the second from the stems of the first."""
    audio = (item.mixture, item.sources, RATE)
    chosen = {name: coarse[name] for name in priors}
    stems = separate_at(*audio, chosen, **options)[1]
    return (stems + separate_at(*audio, priors, initial=stems, **options)[1]) / 2


def mean_log_prior(trace: xr.DataTree) -> dict[str, float]:
    """Of the noisy sources by name, the mean over all draws, in nats."""
    means = trace["posterior"].to_dataset()["log_prior"].mean(("chain", "draw"))
    return {str(name): float(means.sel(source=name)) for name in means["source"].values}


def baseline(method: str, item: Excerpt, priors: Priors, seed: int) -> Tensor:
    """Stems ``(stem, time)`` by another method, which hears the channels one by one."""
    if item.sources.ndim == 3:
        pairs = zip(item.sources.unbind(1), item.mixture, strict=True)
        each = [replace(item, sources=sources, mixture=mixture) for sources, mixture in pairs]
        return torch.stack([baseline(method, one, priors, seed) for one in each], 1)
    own = sample_rate_of(priors)
    count = len(item.stems)

    def dirac() -> Tensor:  # of a mixture that is a mean
        observed, true = (resample(audio, RATE, own) for audio in (item.mixture, item.sources))
        toy = ToyMixture(observed / count, true, torch.zeros(count))
        found = isdm([toy], priors, seed, steps=ISDM_STEPS).sources[0]
        return upmixed(found, observed, priors, item.mixture, RATE)

    ways: dict[str, Callable[[], Tensor]] = {
        "mixture": lambda: item.mixture.expand(count, *item.mixture.shape),
        "hpss": lambda: hpss(item.mixture, item.stems, RATE),
        "mask": lambda: ideal_ratio_mask(item.mixture, item.sources),
        "isdm": dirac,
    }
    return ways[method]()


def learned(training: Path, stems: Sequence[str], seed: int) -> dict[str, Any]:
    """A dictionary of each stem."""
    audio = (RecordingFolder(training, RATE, RATE, stem) for stem in stems)
    return learn_dictionaries(audio, RATE, seed)


def museval_sdr(estimate: Tensor, item: Excerpt) -> list[float]:
    """BSS Eval v4's SDR of each stem: medians over seconds."""

    def track(stems: Tensor) -> Track:
        pairs = zip(item.stems, stems, strict=True)
        readers = {name: partial(_given, stem) for name, stem in pairs}
        return Track(item.track, "", readers | {MIXTURE: partial(_given, item.mixture)})

    (found,) = evaluate([track(estimate)], [track(item.sources)], bss_eval=True)
    return [float(value) for value in found.table["SDR"]]


def _given(samples: Tensor) -> tuple[Tensor, int]:
    return torch.atleast_2d(samples), RATE


def line(rows: Sequence[Row]) -> dict[str, float]:
    """Medians over the stems of all tracks in dB, and the worst stem's improvement."""
    every = {
        key: np.array([value for row in rows for value in row[key]], float)
        for key in ("improvement", "si_sdr", "sdr")
    }
    return {
        "improvement": float(np.median(every["improvement"])),
        "worst": float(every["improvement"].min()),
        "SI-SDR": float(np.median(every["si_sdr"])),
        "SDR": float(np.nanmedian(every["sdr"])),
        "stems": len(every["si_sdr"]),
        "CPU s": float(np.median([row["seconds"] for row in rows])),
        **inside(rows),
    }


def inside(rows: Sequence[Row]) -> dict[str, float]:
    """How many stems have an interval that the SI-SDR is expected in, and the share inside."""
    hits = inside_expected(rows)
    return {"expected": len(hits), "inside": float(np.mean(hits))} if hits else {}


def by_stem(rows: Sequence[Row]) -> pd.DataFrame:
    """A line for every stem of every track."""
    lines = []
    for row in rows:
        for k, stem in enumerate(row["stems"]):
            line = {"track": row["track"], "stem": stem}
            line |= {key: row[key][k] for key in ("level_db", "improvement", "si_sdr", "sdr")}
            if "misfit" in row:
                line |= {key: row[key][stem] for key in ("misfit", "agreement", "log_prior")}
                low, high = (row["expected_si_sdr"] or {k: (None, None)})[k]
                line |= {"expected_low": low, "expected_high": high}
            lines.append(line)
    return pd.DataFrame(lines)


def told(method: str, row: Row) -> str:
    """A track in a line."""
    gains = zip(row["stems"], row["improvement"], row["sdr"], strict=True)
    figures = ", ".join(f"{name} {gain:+.1f} (SDR {sdr:.1f})" for name, gain, sdr in gains)
    return f"{method:9s} {row['track']}: {figures}"


if __name__ == "__main__":
    run(main)
