"""Options that several commands have, and how their values are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

    from pyro_sep.data.tracks import Track

Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")]
MusdbRoot = Annotated[
    Path | None, typer.Option(help="Root of musdb18, or one .stem.mp4; nothing is downloaded.")
]
References = Annotated[
    Path | None, typer.Option(help="Folder with TRACK/STEM.wav, in place of musdb18.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="File of `pyro-sep calibrate`; adds calibrated intervals."),
]


def listed(option: str, value: str) -> list[str]:
    """Names separated by commas.

    Raises:
        ValueError: a name that is empty, or there twice.
    """
    names = [name.strip() for name in value.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{option}: got {value!r}, expected names that differ, by commas")
    return names


def mixing_options(gains: str | None, noise_scale: str | None) -> dict[str, Any]:
    """Gains and noise as :func:`~pyro_sep.separate` takes them, where they are given."""
    mixing: dict[str, Any] = {}
    if gains is not None:
        mixing["gains"] = _numbers("gains", gains, "numbers or infer")
    if noise_scale is not None:
        scale = _numbers("noise_scale", noise_scale, "a number or infer")
        if len(scale) > 1 and scale != "infer":
            raise ValueError(f"noise_scale: got {noise_scale!r}, expected a number or infer")
        mixing["noise_scale"] = scale if scale == "infer" else scale[0]
    return mixing


def _numbers(option: str, value: str, expected: str) -> list[float] | Literal["infer"]:
    """Numbers separated by commas, or ``"infer"``."""
    if value.strip() == "infer":
        return "infer"
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"{option}: got {value!r}, expected {expected}") from None


def torch_device(name: str) -> "torch.device":
    """A device by name.

    Raises:
        ValueError: no such device here.
    """
    import torch

    try:
        torch.zeros(1, device=name).item()  # a device that computes
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: got {name!r}, expected cpu or one that is here ({reason})"
        ) from None
    return torch.device(name)


def reference_tracks(musdb: Path | None, references: Path | None) -> "list[Track]":
    """Tracks whose stems are known, of musdb18 or of a folder.

    Raises:
        ValueError: both are given, or none.
    """
    from pyro_sep.data.musdb import musdb_tracks
    from pyro_sep.data.tracks import stems_folder

    if (musdb is None) == (references is None):
        raise ValueError("references: expected one of --musdb ROOT and --references FOLDER")
    return musdb_tracks(musdb) if musdb is not None else stems_folder(references or Path())
