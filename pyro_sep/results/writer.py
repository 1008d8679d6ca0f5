"""Writes the results of a separation: stems, trace, picture, summary."""

import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
import xarray as xr

from pyro_sep.audio.io import FORMATS, save_audio
from pyro_sep.data.tracks import INSIDE, RESIDUAL, SUMMARY, Audio, read_summary
from pyro_sep.diagnostics.convergence import chain_agreement
from pyro_sep.diagnostics.initial import compare_initial
from pyro_sep.diagnostics.score_intervals import PROBABILITY, expected_scores
from pyro_sep.diagnostics.verdict import diagnose
from pyro_sep.inference.annealing.checkpoint import same_run
from pyro_sep.models.train import CHECKPOINT
from pyro_sep.results.stems import StemFiles, write_stems
from pyro_sep.separation.api import Separation
from pyro_sep.storage.files import atomic_write_bytes, has_mark, only_run, save_json
from pyro_sep.trace.dataset import TRACE, save_trace
from pyro_sep.trace.draws import alternative_modes, best_chain, mode_probabilities
from pyro_sep.viz.png import save_figure
from pyro_sep.viz.report import REPORT_MARK
from pyro_sep.viz.separation import plot_separation

PICTURE = "separation.png"
REPORT = "report.html"  # of a run, written after all else if it is asked for
RESULTS = (TRACE, PICTURE, SUMMARY)


class Seconds(NamedTuple):
    """How long a separation took, without reading and writing its files.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of all processors together.
        resumed: whether it went on from a checkpoint; the seconds before that are not counted.
    """

    wall: float
    cpu: float
    resumed: bool


def write_separation(
    result: Separation,
    folder: Path,
    files: StemFiles | None = None,
    recording: Audio | None = None,
    run: Mapping[str, Any] | None = None,
    seconds: Seconds | None = None,
) -> list[str]:
    """Write stems, trace.nc, separation.png and summary.json, each whole or not at all.

    Files of a former run that this one does not write are deleted, and no others: the former
    summary.json lists them.

    Args:
        result: what to write.
        folder: made where it is missing.
        files: which stems, see :mod:`pyro_sep.results.stems`; a WAV per source where None.
        recording: whose rate and channels they are to have; those of the mixture where None.
        run: identity of the run, see :func:`is_finished`.
        seconds: that the separation took, where they are known.

    Returns:
        Names of what was written, of files and the folder of draws.

    Raises:
        ValueError: a FLAC beyond full scale, or a recording of other channels than were separated.
        OSError: the folder cannot be written to.
    """
    diagnosis, agreement = diagnose(result.trace), chain_agreement(result.trace)
    folder.mkdir(parents=True, exist_ok=True)
    stems, rate, silent = write_stems(result, folder, files or StemFiles(), recording)
    save_trace(result.trace, folder / TRACE)
    save_figure(plot_separation(result.trace), folder / PICTURE)
    mean_lp = result.trace["sample_stats"].to_dataset()["lp"].mean("draw").values
    written = [*stems, TRACE, PICTURE, SUMMARY]
    summary = {
        "trusted": diagnosis.trusted,
        "verdict": str(diagnosis.verdict),
        "reason": diagnosis.reason,
        "bands": diagnosis.bands,
        "blamed": list(diagnosis.blamed),
        "modes": [round(p, 3) for p in mode_probabilities(result.trace)],
        "alternatives": [
            round(mode_probabilities(result.trace)[mode], 3)
            for mode in alternative_modes(result.trace)
        ],
        "sources": list(result.names),
        "silent_seconds": silent,
        "presence": _presence(result),
        "expected_si_sdr": _expected(result.trace),
        "sample_rate": rate,
        "seconds": seconds and seconds._asdict(),
        "mean_lp_of_chains": [round(float(value), 1) for value in mean_lp],
        "best_chain": best_chain(result.trace),
        "r_hat": _by_source(agreement["r_hat"]),
        "ess_bulk": _by_source(agreement["ess_bulk"]),
        "settings": {name: _plain(value) for name, value in result.trace.attrs.items()},
        "files": {name: (folder / name).stat().st_size for name in written if name != SUMMARY},
        "run": dict(run or {}),
    }
    if (moved := compare_initial(result.trace)) is not None:
        summary["initial"] = {
            "si_sdr": {name: _rounded(value) for name, value in moved.si_sdr.items()},
            "nats": _rounded(moved.nats),
            "spread": _rounded(moved.spread),
            "preferred": moved.preferred,
        }
    remove_files(folder, set(own_files(folder)) - set(written))
    save_json(summary, folder / SUMMARY)
    return [*dict.fromkeys(Path(name).parts[0] for name in stems), TRACE, PICTURE, SUMMARY]


def write_silence(
    folder: Path,
    sources: Collection[str],
    files: StemFiles,
    recording: Audio,
    run: Mapping[str, Any],
) -> list[str]:
    """Write the stems of audio in which there is nothing, and a summary.json that says so.

    Args:
        folder: made where it is missing.
        sources: names of the stems, all of which are silent.
        files: which stems; there are no draws.
        recording: the silence.
        run: identity of the run, see :func:`is_finished`.

    Raises:
        OSError: the folder cannot be written to, or another run holds it.
    """
    samples, rate = recording
    stems = dict.fromkeys(sources, torch.zeros_like(samples))
    if files.residual:
        stems[RESIDUAL] = samples
    written = {f"{name}.{files.suffix}": stem for name, stem in stems.items()}
    with only_run(folder):
        for name, stem in written.items():
            save_audio(folder / name, stem, rate)
        sizes = {name: (folder / name).stat().st_size for name in written}
        remove_files(folder, set(own_files(folder)) - set(written))
        verdict = {"trusted": True, "verdict": "silence", "sources": list(sources)}
        save_json(verdict | {"files": sizes, "run": dict(run)}, folder / SUMMARY)
    return [*written, SUMMARY]


def receive_results(files: Mapping[str, bytes], folder: Path) -> None:
    """Write results that were made elsewhere, in place of those of a former run.

    Args:
        files: contents by name, as :func:`write_separation` wrote them.
        folder: made where it is missing.

    Raises:
        OSError: the folder cannot be written to, or another run holds it.
    """
    with only_run(folder):
        stale = set(own_files(folder)) - set(files)
        for name in sorted(files, key=lambda name: name == SUMMARY):  # which says that all is there
            (folder / name).parent.mkdir(exist_ok=True)
            atomic_write_bytes(folder / name, files[name])
        remove_files(folder, stale)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def own_files(folder: Path) -> list[str]:
    """Names of the files that runs of this package left in a folder, by their summary.json.

    Other names than those of results are ignored, whatever the summary lists.
    """
    listed = read_summary(folder).get("files")
    if not isinstance(listed, dict):
        return []
    page = [REPORT] * has_mark(folder / REPORT, REPORT_MARK)
    return [*filter(_is_stem, listed), *RESULTS, *page]


def is_finished(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether all files of the run of this identity are there, with their sizes."""
    summary = read_summary(folder)
    sizes = summary.get("files")
    if not run or not same_run(summary.get("run"), run) or not isinstance(sizes, dict):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _is_stem(name: str) -> bool:
    path = PurePath(name)
    inside = path.parts[:-1] in ((), *((folder,) for folder in INSIDE))
    return inside and path.as_posix() == name and path.suffix[1:] in FORMATS


def remove_files(folder: Path, names: Collection[str]) -> None:
    """Remove files of a former run, and its folders of draws and alternatives if they are empty."""
    for name in names:
        if (folder / name).is_file():
            (folder / name).unlink()
    for inside in INSIDE:
        with suppress(OSError):  # not there, or something else in it
            (folder / inside).rmdir()


def _presence(result: Separation) -> dict[str, float] | None:
    """Probability of each source's presence; None where all are present."""
    if result.presence is None:
        return None
    pairs = zip(result.names, result.presence.tolist(), strict=True)
    return {name: round(probability, 3) for name, probability in pairs}


def _expected(trace: xr.DataTree) -> dict[str, dict[str, float]] | None:
    """An interval of each stem's SI-SDR in dB; None where none is known."""
    bounds = expected_scores(trace)
    if bounds is None:
        return None
    return {
        name: {"low": round(low, 1), "high": round(high, 1), "probability": PROBABILITY}
        for name, (low, high) in bounds.items()
    }


def _by_source(table: xr.DataArray) -> dict[str, dict[str, float | None]]:
    """``{source: {summary: value}}`` of a (summary, source) table; None where it is not finite."""
    return {
        str(source): {
            str(summary): _rounded(float(table.sel(source=source, summary=summary)))
            for summary in table["summary"].values
        }
        for source in table["source"].values
    }


def _plain(value: object) -> object:
    """An attribute of a trace; those that are JSON as what they say."""
    if not (isinstance(value, str) and (value[:1] in ("{", "[") or value == "null")):
        return value
    with suppress(ValueError):
        return json.loads(value)
    return value


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
