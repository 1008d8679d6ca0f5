"""What a separation leaves on disk: stems, trace, picture, summary."""

import math
import tempfile
from pathlib import Path

import xarray as xr

from pyro_sep.audio import resample, save_audio
from pyro_sep.diagnostics import chain_agreement
from pyro_sep.files import save_json
from pyro_sep.plots import plot_separation, save_figure
from pyro_sep.separation import Separation
from pyro_sep.trace import save_trace


def write_separation(
    result: Separation, folder: Path, rate: int | None = None, time: int | None = None
) -> None:
    """Write NAME.wav per source, trace.nc, separation.png and summary.json, each whole.

    Args:
        result: what to write.
        folder: made where it is missing.
        rate: of the WAV files in Hz; the priors' where None.
        time: audio samples of the WAV files; as many as were separated where None.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate, time = rate or result.sample_rate, time or result.sources.shape[-1]
    for name, source in zip(result.names, result.sources, strict=True):
        save_audio(folder / f"{name}.wav", resample(source, result.sample_rate, rate, time), rate)
    save_trace(result.trace, folder / "trace.nc")
    save_figure(plot_separation(result.trace), folder / "separation.png")
    agreement = chain_agreement(result.trace)
    mean_lp = result.trace["sample_stats"].to_dataset()["lp"].mean("draw").values
    summary = {
        "sources": list(result.names),
        "sample_rate": rate,
        "mean_lp_of_chains": [round(float(value), 1) for value in mean_lp],
        "best_chain": int(mean_lp.argmax()),
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
