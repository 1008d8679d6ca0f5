"""What the experiments share: options, one resumable loop, one scoring, one saving, one clock."""

import atexit
import json
import sys
import time as clock
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyro_sep.audio.io import active_frames
from pyro_sep.audio.resampling import resample
from pyro_sep.audio.wiener import wiener_upmix
from pyro_sep.cli.options import Device as Device
from pyro_sep.cli.options import MusdbRoot as MusdbRoot
from pyro_sep.data.toy import WAVEFORMS, ToyMixture
from pyro_sep.data.tracks import Track, stem_frames
from pyro_sep.diagnostics.convergence import chain_agreement
from pyro_sep.diagnostics.score_intervals import expected_scores
from pyro_sep.diagnostics.verdict import Verdict, diagnose
from pyro_sep.evaluation.metrics import residual_db, si_sdr, si_sdr_improvement
from pyro_sep.inference.annealing.schedules import MIN_LEVELS
from pyro_sep.priors.base import MixingRule, Priors, sample_rate_of, stated, treble
from pyro_sep.priors.io import choose_priors, load_priors
from pyro_sep.priors.networks import NetworkPrior
from pyro_sep.separation.api import Separation, separate
from pyro_sep.separation.presets import Constraint as ConstraintName
from pyro_sep.separation.presets import Preset as PresetName
from pyro_sep.storage.files import atomic_write, save_json
from pyro_sep.trace.channels import left_and_right
from pyro_sep.trace.draws import mode_probabilities
from pyro_sep.viz.png import save_figure
from pyro_sep.workers import local_cluster, spread

if TYPE_CHECKING:
    from distributed import Client

BATCH = 5  # mixtures separated at once
ALL_WAVEFORMS = ",".join(WAVEFORMS)

PriorSet = Annotated[str, typer.Option(help="A set that ships, or a folder.")]
CoarsePriors = Annotated[
    str | None,
    typer.Option(help="Priors at a lower rate; chains begin from the stems that they find."),
]
PriorSets = Annotated[str, typer.Option(help="Sets that ship, or folders, comma-separated.")]
Sources = Annotated[str, typer.Option(help="Waveforms, comma-separated.")]
Mixtures = Annotated[int, typer.Option(min=1, help="Number of test mixtures.")]
First = Annotated[int, typer.Option(min=0, help="Index of the first test mixture.")]
Seconds = Annotated[
    float, typer.Option(min=0.016, max=3_600, help="Length of a mixture in seconds.")
]
Frames = Annotated[int, typer.Option(min=1, help="Test frames of each source.")]
Time = Annotated[int, typer.Option(min=16, help="Audio samples per frame.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
Preset = Annotated[PresetName | None, typer.Option(help="Budget; by default the priors'.")]
Chains = Annotated[int | None, typer.Option(min=1, help="Chains; by default the preset's.")]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Candidates of a search; by default the preset's.")
]
Levels = Annotated[
    int | None, typer.Option(min=MIN_LEVELS, help="Noise levels; by default the preset's.")
]
Tries = Annotated[int | None, typer.Option(min=1, help="Most searches; by default the preset's.")]
Draws = Annotated[int | None, typer.Option(min=1, help="Draws per chain; by default the preset's.")]
Constraint = Annotated[
    ConstraintName | None, typer.Option(help="By default the constraint that separate takes.")
]
Only = Annotated[str | None, typer.Option(help="Names, comma-separated; by default all.")]
List = Annotated[bool, typer.Option("--list", help="Print what would be run, and end.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Batches measured at once, each by a process of one core.")
]

Row = dict[str, Any]  # the figures of one mixture
Result = TypeVar("Result")
Item = TypeVar("Item")
Measure = Callable[[int, Sequence[Item]], Sequence[Row]]  # of a batch, from its first item's index


def split(names: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in names.split(",")]


def choose(option: str, value: str | None, known: Collection[str]) -> list[str]:
    """The names in a comma-separated list, or all that are known where there is no list.

    Raises:
        ValueError: a name that is not known.
    """
    names = list(known) if value is None else split(value)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option}: got {unknown[0]!r}, expected some of {', '.join(known)}")
    return names


def load_set(
    priors: str,
    sources: str | None = None,
    mixing: MixingRule = "mean",
    device: torch.device | str = "cpu",
) -> dict[str, NetworkPrior]:
    """The priors of these sources, comma-separated, or of all sources of a set.

    Args:
        priors: a set that ships, or a folder.
        sources: by default all.
        mixing: how the experiment makes its mixtures: toy mixtures are means of their sources.
        device: where the networks compute.

    Raises:
        ValueError: no such set or source; a set whose mixtures are made in another way.
    """
    loaded = load_priors(priors, device)
    chosen = loaded if sources is None else choose_priors(loaded, sources)
    rule = stated(chosen, "mixing", "give one set")
    if rule != mixing:
        raise ValueError(
            f"priors: got a set whose mixtures are the {rule} of their sources, expected the "
            f"{mixing}; state its mixing in a priors.json, or give another set"
        )
    return chosen


def timed(function: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """What a function returns, and the CPU seconds that it takes."""
    began = clock.process_time()
    result = function(*arguments)
    return result, clock.process_time() - began


def bar(items: Sequence[Item], label: str = "") -> Iterator[Item]:
    """The items, with a progress bar on a terminal."""
    return iter(tqdm(items, label, disable=not sys.stderr.isatty(), leave=False))


def resume(
    path: Path | None,
    settings: Mapping[str, Any],
    items: Sequence[Item],
    measure: Measure[Item],
    batch: int = BATCH,
    prepare: Callable[[], object] = lambda: None,
    workers: int | None = None,
) -> Iterator[Row]:
    """Yield the row of every item: first the rows in a file, then new ones, batch after batch.

    The file is written after every batch, so that a run that was cut off continues there. With
    workers too it holds the rows of the first items, and the same ones.

    Args:
        path: JSON file of the rows; none is read or written where None.
        settings: of the run. They are written to the file.
        items: one per row. The rows in the file are those of the first items.
        measure: gives the rows of a batch, from the index of its first item and the batch. A row's
            ``seconds`` are CPU seconds per item.
        batch: number of items measured at once.
        prepare: is called once before the first batch that is measured, and is not timed.
        workers: number of processes that measure batches at the same time; this one where None.

    Raises:
        ValueError: the file's rows were made with other settings.
    """
    rows = [] if path is None else load_rows(path, settings)
    yield from rows[: len(items)]
    if len(rows) >= len(items):
        return
    prepare()
    starts = range(len(rows), len(items), batch)
    parts = [(start, items[start : start + batch]) for start in starts]
    measured = in_order(partial(timed, measure), parts, workers)
    label = "" if path is None else path.stem
    for (_, part), (found, seconds) in zip(bar(parts, label), measured, strict=True):
        new = [row | {"seconds": seconds / len(part)} for row in found]
        rows += new
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_json({"settings": settings, "mixtures": rows}, path)
        yield from new


def in_order(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[Result]:
    """``function(*job)`` of every job, in their order, by so many processes or by this one."""
    if workers is None:
        yield from (function(*job) for job in jobs)
        return
    early: dict[int, Result] = {}
    due = 0
    for number, result in spread(cluster(workers), function, jobs):
        if isinstance(result, BaseException):
            raise result
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


@cache
def cluster(workers: int) -> "Client":
    """A client of so many processes, which end with this one."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(local_cluster(workers))


def load_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """The ``mixtures`` in a JSON file that were made with these settings; none without a file.

    Raises:
        ValueError: they were made with other settings.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    made = content.get("settings") if isinstance(content, dict) else None
    if made != settings:
        raise ValueError(f"{path}: got figures of {made}, expected {settings}; give another --out")
    return list(content["mixtures"])


def separate_at(
    mixture: Tensor,
    sources: Tensor,
    rate: int,
    priors: Priors,
    from_truth: bool = False,
    coarse: Priors | None = None,
    initial: Tensor | None = None,
    **options: Any,
) -> tuple[Separation, Tensor]:
    """A separation at the priors' rate, and its stems at that of the mixture.

    Args:
        mixture: ``(time,)``; or, as the stems, with a channel axis before the time, where the
            priors are of two channels.
        sources: the true ones, ``(source, time)``.
        rate: of both, in Hz.
        priors: of the sources; where theirs is another rate, stems are those that ``pyro-sep
            separate`` would write.
        from_truth: whether chains begin at the true sources, without a search.
        coarse: priors at a lower rate, from whose stems chains begin, without a search of their
            own; the sources that ``priors`` has are taken of them.
        initial: stems at the mixture's rate, from which they begin.
        options: of :func:`pyro_sep.separate`.

    Returns:
        The separation, and contributions ``(source, time)``.
    """
    own = sample_rate_of(priors)
    observed, true = (resample(audio, rate, own) for audio in (mixture, sources))
    if coarse is not None:
        chosen = {name: coarse[name] for name in priors}
        initial = separate_at(mixture, sources, rate, chosen, **options)[1]
    begun = true if from_truth else None if initial is None else resample(initial, rate, own)
    result = separate(observed, priors, true_sources=true, initial=begun, **options)
    channels = left_and_right(result.contributions, result.side)
    stems = torch.stack(channels, 1) if len(channels) > 1 else result.contributions
    return result, upmixed(stems, observed, priors, mixture, rate)


def upmixed(
    contributions: Tensor,
    observed: Tensor,
    priors: Priors,
    mixture: Tensor,
    rate: int,
    flat: bool = False,
) -> Tensor:
    """Contributions ``(source, time)`` at the priors' rate, at that of the mixture.

    There may be a channel axis before the time. ``flat`` divides the treble as if all sources had
    as much of it.
    """
    own = sample_rate_of(priors)
    if own == rate:
        return contributions
    above = [] if flat else [*treble(priors).values()]
    stems = wiener_upmix(contributions, observed, own, torch.atleast_2d(mixture), rate, above)
    return stems if contributions.ndim == 3 else stems[:, 0]


def sounding_frame(
    track: Track, names: Sequence[str], rate: int, time: int, seed: int = 0
) -> Tensor | None:
    """The first frame ``(stem, time)`` of a track in which all stems sound; None without one.

    Frames are those of :func:`pyro_sep.data.tracks.stem_frames`.
    """
    if not set(names) <= set(track.stems):
        return None
    drawn = stem_frames(track, tuple(names), rate, time, seed=seed)
    return next((f for f in drawn if all(len(active_frames(stem, time)) for stem in f)), None)


def stacked(items: Sequence[ToyMixture]) -> tuple[Tensor, Tensor]:
    """Mixtures ``(mixture, time)`` and sources ``(mixture, source, time)``."""
    return torch.stack([i.mixture for i in items]), torch.stack([i.sources for i in items])


def score(estimate: Tensor, sources: Tensor, mixture: Tensor) -> Row:
    """SI-SDR of estimates ``(source, time)``, and its improvement over the mixture, in dB."""
    return {
        "improvement": si_sdr_improvement(estimate, sources, mixture).tolist(),
        "si_sdr": si_sdr(estimate, sources).tolist(),
    }


def judge(result: Separation) -> Row:
    """The verdict on a separation, the probabilities of its modes, and the SI-SDR to expect."""
    verdict = diagnose(result.trace).verdict
    modes = [round(p, 3) for p in mode_probabilities(result.trace)]
    expected = expected_scores(result.trace)
    bounds = None if expected is None else [[*map(float, expected[n])] for n in result.names]
    said = {"trusted": verdict is Verdict.TRUSTED, "verdict": str(verdict), "modes": modes}
    return said | {"expected_si_sdr": bounds}


def inside_expected(rows: Sequence[Row]) -> list[bool]:
    """Whether each SI-SDR is in the interval that it is expected in, of stems that have one."""
    return [
        low <= value <= high
        for row in rows
        for (low, high), value in zip(row.get("expected_si_sdr") or [], row["si_sdr"], strict=False)
    ]


def summarise_verdicts(rows: Sequence[Row], right_db: float = 10.0) -> dict[str, Any]:
    """How often the verdict was that a separation may be trusted, and how far it was right.

    A separation is right where every source has an SI-SDR above ``right_db``.
    """
    trusted = np.array([row["trusted"] for row in rows], bool)
    inside = inside_expected(rows)
    worst = decibels(rows, "si_sdr").min(1)
    return {
        "share_trusted": float(trusted.mean()),
        "least_si_sdr_of_trusted_db": float(worst[trusted].min()) if trusted.any() else None,
        "share_inside_expected": float(np.mean(inside)) if inside else None,
        "stems_with_expected": len(inside),
        "right_above_db": right_db,
        "trusted_right": int((trusted & (worst > right_db)).sum()),
        "trusted_wrong": int((trusted & (worst <= right_db)).sum()),
        "not_trusted_right": int((~trusted & (worst > right_db)).sum()),
        "not_trusted_wrong": int((~trusted & (worst <= right_db)).sum()),
    }


def score_separation(item: ToyMixture, result: Separation) -> Row:
    """Figures of a separation of a toy mixture; R-hat and ESS are the worst ones."""
    agreement = chain_agreement(result.trace)
    gains = torch.full((len(result.names),), 1 / len(result.names))
    return (
        score(result.sources, item.sources, item.mixture)
        | judge(result)
        | {
            "residual_db": float(residual_db(result.sources, item.mixture, gains)),
            "gradients": int(result.trace.attrs["gradients"]),
            "ess": float(agreement["ess_bulk"].min()),
            "r_hat": float(agreement["r_hat"].max()),
        }
    )


def decibels(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    """Figures ``(mixture, source)`` in dB; JSON has null for the minus infinity of silence."""
    values = np.array([row[key] for row in rows], float)
    return np.where(np.isnan(values), -np.inf, values)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """SI-SDR and improvement over all sources of all mixtures, and the mean CPU seconds."""
    gain, sdr = decibels(rows, "improvement"), decibels(rows, "si_sdr")
    return {
        "median_improvement_db": float(np.median(gain)),
        "mean_improvement_db": float(gain.mean()),
        "quartiles_improvement_db": np.percentile(gain, [25, 75]).tolist(),
        "median_si_sdr_db": float(np.median(sdr)),
        "share_above_10_db": float((sdr > 10).mean()),
        "share_above_20_db": float((sdr > 20).mean()),
        "cpu_seconds": float(np.mean([row["seconds"] for row in rows])),
    }


class Results:
    """The files of an experiment, in a folder that is made with the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, clock.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the experiment began."""
        return clock.monotonic() - self.began

    def _path(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def csv(self, table: pd.DataFrame | pd.Series, name: str, index: bool = True) -> None:
        """Write a table as NAME.csv."""
        with atomic_write(self._path(f"{name}.csv")) as partial:
            table.to_csv(partial, index=index)

    def png(self, figure: Figure, name: str) -> None:
        """Write a figure as NAME.png."""
        save_figure(figure, self._path(f"{name}.png"))

    def json(self, content: Mapping[str, Any], name: str = "summary") -> None:
        """Write a mapping as NAME.json."""
        save_json(content, self._path(f"{name}.json"))

    def done(self) -> None:
        """Print the seconds taken and the folder."""
        print(f"{self.seconds:.0f} s. Results: {self.folder}")
