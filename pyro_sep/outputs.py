"""What a separation leaves on disk: stems, trace, picture, summary."""

import math
import tempfile
from pathlib import Path

import xarray as xr

from pyro_sep.data.tracks import Audio
from pyro_sep.diagnostics import chain_agreement
from pyro_sep.files import save_json
from pyro_sep.plots import plot_separation, save_figure
from pyro_sep.separation import Separation
from pyro_sep.stems import StemFiles, write_stems
from pyro_sep.trace import best_chain, save_trace


def write_separation(
    result: Separation,
    folder: Path,
    files: StemFiles | None = None,
    recording: Audio | None = None,
) -> list[str]:
    """Write stems, trace.nc, separation.png and summary.json, each whole or not at all.

    Args:
        result: what to write.
        folder: made where it is missing.
        files: which stems, see :mod:`pyro_sep.stems`; a WAV per source where None.
        recording: whose rate and channels they are to have; those of the mixture where None.

    Returns:
        Names of what was written.

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
    save_json(summary, folder / "summary.json")
    return [*stems, "trace.nc", "separation.png", "summary.json"]


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
