"""What a separation leaves on disk: stems, trace, picture, summary."""

import json
import math
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import xarray as xr

from pyro_sep.data.tracks import DRAWS, Audio
from pyro_sep.diagnostics import chain_agreement
from pyro_sep.files import save_json
from pyro_sep.plots import plot_separation, save_figure
from pyro_sep.separation import Separation
from pyro_sep.stems import StemFiles, stem_files, write_stems
from pyro_sep.trace import best_chain, save_trace

REPORT = "report.html"  # of a run, written after all else if it is asked for


def write_separation(
    result: Separation,
    folder: Path,
    files: StemFiles | None = None,
    recording: Audio | None = None,
) -> list[str]:
    """Write stems, trace.nc, separation.png and summary.json, each whole or not at all.

    What a former run left in the folder and this one does not write goes: stems and draws of its
    sources or these, report.html, and no other file. Its summary.json tells that there was one.

    Args:
        result: what to write.
        folder: made where it is missing.
        files: which stems, see :mod:`pyro_sep.stems`; a WAV per source where None.
        recording: whose rate and channels they are to have; those of the mixture where None.

    Returns:
        Names of what was written, of files and the folder of draws.

    Raises:
        ValueError: a FLAC beyond full scale.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems, rate = write_stems(result, folder, files or StemFiles(), recording)
    save_trace(result.trace, folder / "trace.nc")
    save_figure(plot_separation(result.trace), folder / "separation.png")
    agreement = chain_agreement(result.trace)
    mean_lp = result.trace["sample_stats"].to_dataset()["lp"].mean("draw").values
    summary = {
        "sources": list(result.names),
        "sample_rate": rate,
        "mean_lp_of_chains": [round(float(value), 1) for value in mean_lp],
        "best_chain": best_chain(result.trace),
        "r_hat": _by_source(agreement["r_hat"]),
        "ess_bulk": _by_source(agreement["ess_bulk"]),
        "settings": dict(result.trace.attrs),
    }
    if result.presence is not None:
        summary["presence"] = {
            name: round(float(value), 3)
            for name, value in zip(result.names, result.presence, strict=True)
        }
    if former := _former_sources(folder):
        _remove_former(folder, {*result.names, *former}, stems)
    save_json(summary, folder / "summary.json")
    written = dict.fromkeys(Path(name).parts[0] for name in stems)
    return [*written, "trace.nc", "separation.png", "summary.json"]


def _remove_former(folder: Path, names: Collection[str], stems: Sequence[str]) -> None:
    """Remove the stems of a former run, but for those now written, its draws and its page."""
    kept = {folder / name for name in stems}
    for path in (*stem_files(folder, names), folder / REPORT):
        if path not in kept and path.is_file():
            path.unlink()
    draws = folder / DRAWS
    if draws.is_dir() and not any(draws.iterdir()):
        draws.rmdir()


def _former_sources(folder: Path) -> list[str]:
    """Those of the summary in a folder; none where there is no such thing."""
    try:
        return list(map(str, json.loads((folder / "summary.json").read_text())["sources"]))
    except (OSError, ValueError, LookupError, TypeError):
        return []


def check_writable(folder: Path) -> None:
    """Make a folder and try it, before hours are spent on what goes in.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written to ({error.strerror}); give another --out"
        ) from None


def _by_source(table: xr.DataArray) -> dict[str, dict[str, float | None]]:
    """``{source: {summary: value}}`` of a (summary, source) table; None where it is not finite."""
    return {
        str(source): {
            str(summary): _rounded(float(table.sel(source=source, summary=summary)))
            for summary in table["summary"].values
        }
        for source in table["source"].values
    }


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
