"""How good separated tracks are, where their stems are known: SI-SDR and BSS Eval, per stem.

SI-SDR (:mod:`pyro_sep.evaluation.metrics`) takes the channels of a stem as one signal. BSS Eval v4
(Stöter, Liutkus & Ito 2018, arXiv 1804.06267) is museval's: medians over windows of a second. It is
slow, one to three seconds for each second of four stereo stems, so it is made on request.

Estimates and references are contributions, which add up to the mixture, as ``pyro-sep separate``
writes them. SI-SDR does not depend on their gain, BSS Eval does.

Both judge at the estimates' rate and channels: the references are resampled, and mixed down for
mono estimates. Where a reference is silent there is no score.

Where posterior draws of a stem lie beside it, they say what its SI-SDR might be without knowing the
truth: the lowest and highest SI-SDR of the estimate against a draw, as if that were the true stem.
Draws are of one chain, so of one mode, and what lifts them to the recording's rate and channels
errs alike in all of them: a true score below the lowest says that there is more to the error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_sep.audio.io import chosen_channel
from pyro_sep.audio.resampling import resample
from pyro_sep.audio.scanning import files_below
from pyro_sep.checks.names import printable
from pyro_sep.checks.optional import import_optional
from pyro_sep.data.tracks import (
    RESIDUAL,
    Audio,
    Track,
    is_section,
    reference_of,
    stem_name,
    track_names,
)
from pyro_sep.evaluation.metrics import si_sdr, silent
from pyro_sep.storage.files import atomic_write
from pyro_sep.trace.channels import CHANNELS, SIDE, interleave
from pyro_sep.trace.dataset import TRACE, load_trace, with_side

EXPECTED = ["lowest", "highest"]  # SI-SDR against a draw
SLACK = 0.1  # seconds by which an estimate may differ in length from its reference
BSS_METRICS = ("SDR", "ISR", "SIR", "SAR")


class TrackScores(NamedTuple):
    """Scores of one track.

    >>> tone = (0.1 * torch.arange(2_205).sin()[None], 44_100)
    >>> song = Track("song", "test", {"bass": lambda: tone, "mixture": lambda: tone})
    >>> scores = next(evaluate([song], [song]))
    >>> list(scores.table.columns)
    ['SI-SDR', 'improvement']
    """

    name: str
    subset: str
    table: pd.DataFrame  # a row per stem, dB
    bss_eval: str | None  # museval's JSON of the track, with every window
    notes: tuple[str, ...] = ()  # estimates that were not judged, a line


class _Judged(NamedTuple):
    """Estimates and references of one length, rate and number of channels."""

    stems: list[str]
    estimates: Tensor  # (stem, channel, time)
    references: Tensor  # (stem, channel, time)
    mixture: Tensor  # (channel, time)
    rate: int
    draws: Mapping[str, Sequence[Callable[[], Audio]]]  # of a stem


def evaluate(
    estimates: Sequence[Track],
    references: Sequence[Track],
    stems: Sequence[str] = (),
    bss_eval: bool = False,
) -> Iterator[TrackScores]:
    """Judge every track that there are estimates of.

    Args:
        estimates: tracks by the references' names, see
            :func:`~pyro_sep.data.tracks.reference_of`.
        references: tracks with their stems.
        stems: those that were mixed: improvement is over their sum. If none are named, it is over
            the references' own mixture, and those stems are judged that both know.
        bss_eval: also run BSS Eval.

    Returns:
        The scores of one track after the other, made as they are asked for. They raise ValueError
        for a stem that is missing, another length, or audio that cannot be read.

    Raises:
        ValueError: an estimate without a reference, or no museval.

    >>> tone = (0.1 * torch.arange(2_205).sin()[None], 44_100)
    >>> song = Track("song", "test", {"bass": lambda: tone, "mixture": lambda: tone})
    >>> scores = next(evaluate([song], [song]))
    >>> bool(scores.table.loc["bass", "SI-SDR"] > 60)
    True
    """
    museval = None
    if bss_eval:
        museval = import_optional("museval", "bss-eval", "music", "apt-get install ffmpeg")
    judge = partial(_score, stems=stems, museval=museval)
    return map(judge, estimates, _references_of(estimates, references))


def _references_of(estimates: Sequence[Track], references: Sequence[Track]) -> list[Track]:
    """The reference of each estimate.

    Raises:
        ValueError: estimates without one, which are named.
    """
    found = [reference_of(track, references) for track in estimates]
    if unknown := [repr(e.name) for e, truth in zip(estimates, found, strict=True) if not truth]:
        known = ", ".join(track.name for track in references)
        got = f"estimates: got track {', '.join(unknown)} without a reference"
        raise ValueError(printable(f"{got}, expected some of {known}"))
    return [truth for truth in found if truth]


def traces_with_truth(
    estimates: Path,
    references: Sequence[Track],
    attempt: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> Iterator[xr.DataTree]:
    """Every TRACK/trace.nc below a folder, with the true sources of its track.

    Long recordings, which were separated in sections, are left out.

    Args:
        estimates: what ``pyro-sep separate`` wrote.
        references: tracks with their stems.
        attempt: what is to be done about the errors of a trace; they are raised by default.

    Raises:
        ValueError: no trace, one without a reference, or as :func:`with_truth`.
        OSError: a folder that may not be read.
    """
    found = [path for path in files_below(estimates) if path.name == TRACE]
    paths = [path for path in found if not is_section(path.parent, estimates)]
    if not paths:
        got = "those of sections alone" if found else f"no {TRACE} in it"
        raise ValueError(f"{printable(estimates)}: got {got}, expected TRACK/{TRACE}")
    folders = [path.parent for path in paths]
    named = track_names(folders, estimates)
    tracks = [Track(named[folder][0], "", {}, path=named[folder][1]) for folder in folders]
    return _loaded(paths, _references_of(tracks, references), attempt)


def _loaded(
    paths: Sequence[Path],
    truths: Sequence[Track],
    attempt: Callable[[Path], AbstractContextManager[object]],
) -> Iterator[xr.DataTree]:
    for path, truth in zip(paths, truths, strict=True):
        tree = None
        with attempt(path):
            tree = with_truth(load_trace(path), truth)
        if tree is not None:
            yield tree


def summarise(scores: Sequence[TrackScores]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All scores by (track, stem), and per stem the median and the number of tracks judged."""
    table = pd.concat({track.name: track.table for track in scores}, names=["track", "stem"])
    by_stem = table.groupby("stem", sort=False)
    summary = by_stem.median()
    summary.insert(0, "tracks", by_stem["SI-SDR"].count())
    return table, summary


def write_windows(scores: TrackScores, folder: Path) -> None:
    """Write museval's JSON of a track where museval looks for it: SUBSET/TRACK.json, else test.

    Raises:
        OSError: the folder cannot be written to.
    """
    if scores.bss_eval is not None:
        path = folder / (scores.subset or "test") / f"{scores.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(scores.bss_eval)


def with_truth(trace: xr.DataTree, track: Track) -> xr.DataTree:
    """The trace with the true sources: the stems of its track, divided by the gains.

    Args:
        trace: of a separation of the whole track.
        track: with the stems that were mixed; they are resampled, and mixed down where one channel
            was separated.

    Raises:
        ValueError: a stem that is missing, of another length or of other channels, or gains that
            were inferred: then the mixture tells the contributions alone.
    """
    posterior, constant = trace["posterior"].to_dataset(), trace["constant_data"].to_dataset()
    if "gains" in posterior:
        raise ValueError(f"{track.name}: got inferred gains, expected known ones; give --gains")
    rate, time = int(constant["sample_rate"]), posterior.sizes["time"]
    channels, sources = CHANNELS if SIDE in posterior else 1, []
    for name, gain in zip(posterior["source"].values, constant["gains"].values, strict=True):
        samples, own_rate = track.read(str(name))
        got = f"{track.name}: got {name}"
        heard = _like(samples, own_rate, rate, time, channels, trace.attrs.get("channel"), got)
        sources.append(heard.numpy() / gain)
    frames = interleave(np.stack(sources))
    known = constant.assign(with_side("true_sources", ("source", "time"), frames, channels))
    return trace.assign({"constant_data": xr.DataTree(known)})


def _score(estimate: Track, reference: Track, stems: Sequence[str], museval: Any) -> TrackScores:
    judged = _judged(estimate, reference, stems)
    table = _si_sdr_table(judged)
    known = {RESIDUAL, *reference.stems}
    unknown = [] if stems else [stem for stem in estimate.stems if stem not in known]
    said = f"no reference of {', '.join(unknown)}, expected some of {', '.join(reference.stems)}"
    notes = (printable(said),) if unknown else ()
    if museval is None:
        return TrackScores(estimate.name, reference.subset, table, None, notes)
    store = _bss_eval(museval, estimate.name, judged)
    if store.scores["targets"]:
        windows = store.df.groupby(["target", "metric"])["score"].median().unstack()
        table = table.join(windows[list(BSS_METRICS)])
    return TrackScores(estimate.name, reference.subset, table, store.json, notes)


def _judged(estimate: Track, reference: Track, stems: Sequence[str]) -> _Judged:
    names = [stem_name(stem) for stem in stems] or [
        stem for stem in reference.stems if stem in estimate.stems
    ]
    if not names:
        raise ValueError(
            f"{estimate.name}: got estimates {', '.join(estimate.stems)}, expected some of "
            f"{', '.join(reference.stems)}"
        )
    found = [estimate.read(stem) for stem in names]
    kinds = {(*samples.shape, rate) for samples, rate in found}
    if len(kinds) > 1:
        raise ValueError(
            f"{estimate.name}: got estimates of {sorted(kinds)} channels, samples and Hz, expected "
            "one kind; write them alike"
        )
    samples, rate = torch.stack([samples for samples, _ in found]), found[0][1]
    channels, time = samples.shape[1:]

    def like_estimates(audio: Audio) -> Tensor:
        got = f"{estimate.name}: got a reference"
        return _like(*audio, rate, time, channels, estimate.channel, got)

    references = torch.stack([like_estimates(reference.read(stem)) for stem in names])
    mixture = like_estimates(reference.mixture(stems))
    return _Judged(names, samples, references, mixture, rate, estimate.draws)


def _like(
    audio: Tensor,
    own_rate: int,
    rate: int,
    time: int,
    channels: int,
    channel: str | None,
    got: str,
) -> Tensor:
    """True audio at the rate, of the length and of the channels of a separation.

    ``channel`` is the one that was separated, and ``got`` begins a message.
    """
    seconds, separated = audio.shape[-1] / own_rate, time / rate
    if abs(seconds - separated) > SLACK:
        raise ValueError(
            f"{got} of {seconds:.2f} s, expected the {separated:.2f} s that were separated; "
            "separate the whole track"
        )
    if channels not in (1, len(audio)):
        raise ValueError(
            f"{got} of {len(audio)} channel{'s' * (len(audio) > 1)}, expected the {channels} that "
            "were separated; give stems of the recording"
        )
    if channel is not None and len(audio) > 1:
        audio, _ = chosen_channel(got, audio, channel)
    heard = audio.mean(0, keepdim=True) if channels == 1 else audio
    return resample(heard, own_rate, rate, time)


def _si_sdr_table(judged: _Judged) -> pd.DataFrame:
    """SI-SDR, its improvement over the mixture, and where there are draws what they expect.

    NaN where the reference is silent.
    """
    expected = EXPECTED if judged.draws else []
    table = pd.DataFrame(
        index=pd.Index(judged.stems, name="stem"),
        columns=["SI-SDR", "improvement", *expected],
        dtype=float,
    )
    mixture = judged.mixture.reshape(-1)
    for stem, estimate, reference in zip(
        judged.stems, judged.estimates.flatten(1), judged.references.flatten(1), strict=True
    ):
        if not silent(reference):
            score = float(si_sdr(estimate, reference))
            gain = score - float(si_sdr(mixture, reference))
            table.loc[stem, ["SI-SDR", "improvement"]] = [score, gain]
            own = [_against(estimate, read()[0], stem) for read in judged.draws.get(stem, ())]
            if own:
                table.loc[stem, EXPECTED] = [min(own), max(own)]
    return table


def _against(estimate: Tensor, draw: Tensor, stem: str) -> float:
    """SI-SDR of an estimate ``(value,)`` if this draw were the truth."""
    if draw.numel() != len(estimate):
        raise ValueError(
            f"{stem}: got a draw of {draw.numel()} values, expected the {len(estimate)} of its "
            "stem; separate the track again"
        )
    draw = draw.reshape(-1)
    return math.nan if silent(draw) else float(si_sdr(estimate, draw))


def _bss_eval(museval: Any, name: str, judged: _Judged) -> Any:
    """Museval's scores of a track; it takes no stem that is silent, estimated or true."""
    heard = [
        bool((estimate.sum(0) != 0).any() and (reference.sum(0) != 0).any())
        for estimate, reference in zip(judged.estimates, judged.references, strict=True)
    ]
    store = museval.TrackStore(track_name=name)
    if any(heard):
        scores = museval.evaluate(
            judged.references[heard].mT.double().numpy(),
            judged.estimates[heard].mT.double().numpy(),
            win=judged.rate,
            hop=judged.rate,
        )
        stems = [stem for stem, kept in zip(judged.stems, heard, strict=True) if kept]
        for stem, *values in zip(stems, *scores, strict=True):
            store.add_target(stem, dict(zip(BSS_METRICS, values, strict=True)))
    return store
