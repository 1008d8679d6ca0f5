"""How good is each stem? Intervals of its SI-SDR without the truth, learned and judged.

    python experiments/expected_scores.py                              # tones, toy priors
    python experiments/expected_scores.py --priors music --musdb ROOT  # stems of musdb18
    python experiments/expected_scores.py --priors music --musdb ROOT --mixes RECORDS/mixes

Mixtures of two, three and four of a set's sources in turn are separated as ``pyro_sep.separate``
does it by default. From the first ones :mod:`pyro_sep.diagnostics.score_intervals` learns what the
draws or the chains tell of the SI-SDR of a stem. Intervals of 80 % are then judged on the others.

Tones have 0.128 or 0.512 s. Those to learn from are the test mixtures from index 0 on, and those to
judge by are the ones from 1000 on. Music has 1 or 5 s, cut from test tracks at moments when all its
stems sound: every second track is for learning, and the others are for judging. With --mixes, test
tracks of musdb18 and mixtures that records.py made come two and two in turn.

OUT/expected_scores.json is what ships beside the weights of the set (pyro_sep/weights). Printed and
in OUT/summary.json are the share of stems whose SI-SDR is in its interval, by the number of
sources, and the interval's width. A run that was cut off continues.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from _common import MusdbRoot, Out, PriorSet, Results, Row, load_set, resume, sounding_frame
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import musdb_tracks
from pyro_sep.data.toy import toy_mixture
from pyro_sep.data.tracks import Track, stems_folder
from pyro_sep.diagnostics.score_intervals import (
    FILE,
    PROBABILITY,
    Clue,
    ScoreErrors,
    clue_of,
    explains,
)
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.priors.base import Priors, sample_rate_of, stated
from pyro_sep.separation.api import separate

COUNTS = (2, 3, 4)  # of sources
TONES = (0.128, 0.128, 0.512)  # seconds
MUSIC = (1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0)
JUDGED_TONES = 1_000  # index of the first

#: The sources ``(source, time)`` of a mixture by number, names and audio samples, and its name.
Draw = Callable[[int, tuple[str, ...], int], tuple[Tensor, str]]


def main(
    priors: PriorSet = "toy",
    musdb: MusdbRoot = None,
    mixes: Annotated[
        Path | None, typer.Option(help="Folder of TRACK/STEM files, beside musdb18's.")
    ] = None,
    learn: Annotated[int, typer.Option(min=6, help="Mixtures to learn from.")] = 24,
    judge: Annotated[int, typer.Option(min=2, help="Mixtures to judge by.")] = 12,
    out: Out = Path("results/expected_scores"),
) -> None:
    """Separate mixtures, learn from the first ones, judge by the others."""
    results = Results(out)
    chosen = load_set(priors, mixing="mean" if musdb is None else "sum")
    rate = sample_rate_of(chosen)
    draws: dict[str, Draw] = {"learn": partial(tones, 0), "judge": partial(tones, JUDGED_TONES)}
    if musdb is not None:
        tracks = chosen_tracks(musdb, mixes)
        parts = {"learn": tracks[::2], "judge": tracks[1::2]}
        draws = {part: partial(excerpt, own, rate) for part, own in parts.items()}
    lengths = TONES if musdb is None else MUSIC
    folders = {"musdb": musdb} | ({} if mixes is None else {"mixes": mixes})
    names = {key: None if path is None else path.resolve().name for key, path in folders.items()}
    settings = {"priors": priors} | names
    rows = {}
    for part, many in (("learn", learn), ("judge", judge)):
        figures = partial(measure, chosen, lengths, draws[part])
        rows[part] = list(resume(out / f"{part}.json", settings, range(many), figures, batch=1))
    known, unknown = map(explained, rows.values())
    errors = ScoreErrors.learn([clue(row) for row in known], [row["si_sdr"] for row in known])
    errors.save(out / FILE)
    content = settings | {"learned": len(known), "learned_stems": len(errors.errors)}
    content |= {"seconds": list(dict.fromkeys(lengths)), "probability": PROBABILITY}
    content |= {"separated": learn + judge, "not_explained": learn + judge - len(known + unknown)}
    content |= judged(errors, unknown)
    results.json(content)
    print(f"{content['judged_stems']} stems of {content['judged']} mixtures:", end=" ")
    print(f"{content['inside']:.0%} inside intervals of {PROBABILITY:.0%}", end=" ")
    print(f"(standard error {content['error']:.0%}), {content['width_db']:.1f} dB wide.")
    results.done()


def chosen_tracks(musdb: Path, mixes: Path | None) -> list[Track]:
    """Test tracks, and mixtures of a folder two and two in turn with them, as many of each."""
    test = [track for track in musdb_tracks(musdb) if track.subset == "test"]
    if mixes is None:
        return test
    others = stems_folder(mixes)
    pairs = range(0, min(len(test), len(others)) - 1, 2)
    return [track for i in pairs for part in (test, others) for track in part[i : i + 2]]


def measure(
    priors: Priors, lengths: Sequence[float], draw: Draw, start: int, batch: Sequence[int]
) -> list[Row]:
    """What each separation tells without the truth, and the SI-SDR of its stems."""
    rows = []
    for i in batch:
        step = i // len(COUNTS)
        sets = list(combinations(priors, COUNTS[i % len(COUNTS)]))
        names, seconds = sets[step % len(sets)], lengths[(i + step) % len(lengths)]
        sources, label = draw(i, names, round(seconds * sample_rate_of(priors)))
        chosen = {name: priors[name] for name in names}
        mixture = sources.sum(0) if stated(chosen, "mixing", "") == "sum" else sources.mean(0)
        result = separate(mixture, chosen, seed=i)
        scores = si_sdr(result.contributions, sources).tolist()
        told = clue_of(result.trace)._asdict() | {"explained": explains(result.trace)}
        rows.append({"mixture": label, "si_sdr": dict(zip(names, scores, strict=True))} | told)
    return rows


def tones(first: int, i: int, names: tuple[str, ...], time: int) -> tuple[Tensor, str]:
    """Tones of a test mixture."""
    return toy_mixture("test", first + i, names, time).sources, str(first + i)


def excerpt(
    tracks: Sequence[Track], rate: int, i: int, names: tuple[str, ...], time: int
) -> tuple[Tensor, str]:
    """Stems of a moment of a track at which all of them sound, at this rate.

    Raises:
        ValueError: no track has such a moment.
    """
    for k in range(len(tracks)):
        track = tracks[(i + k) % len(tracks)]
        if (frame := sounding_frame(track, names, rate, time, seed=i)) is not None:
            return frame, track.name
    raise ValueError(f"musdb: got no test track with {', '.join(names)} at once, expected some")


def explained(rows: list[Row]) -> list[Row]:
    """Separations that explain their mixture. Of others an interval is never given."""
    return [row for row in rows if row["explained"]]


def clue(row: Row) -> Clue:
    """What was told without the truth, by a row of the file."""
    return Clue(row["kind"], row["priors"], row["figures"])


def judged(errors: ScoreErrors, rows: list[Row]) -> Row:
    """Shares of the SI-SDRs that are inside their intervals, by the number of sources.

    Stems of one mixture depend on each other, so the standard error is over mixtures.
    """
    inside: dict[int, list[float]] = {number: [] for number in COUNTS}
    shares, width = [], 0.0
    for row in rows:
        bounds = errors.intervals(clue(row), PROBABILITY)
        hits = [float(low <= row["si_sdr"][name] <= high) for name, (low, high) in bounds.items()]
        width = next(high - low for low, high in bounds.values())
        inside[len(bounds)] += hits
        shares.append(np.mean(hits))
    every = [hit for hits in inside.values() for hit in hits]
    return {
        "judged": len(rows),
        "judged_stems": len(every),
        "inside": float(np.mean(every)),
        "inside_by_count": {str(k): float(np.mean(hits)) for k, hits in inside.items() if hits},
        "error": float(np.std(shares, ddof=1) / np.sqrt(len(shares))),
        "width_db": width,
    }


if __name__ == "__main__":
    run(main)
