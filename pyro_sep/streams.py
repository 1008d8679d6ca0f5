"""Streams of a .stem.mp4: a mixture and its stems in one file; ffmpeg decodes, through stempeg."""

from pathlib import Path

import torch
from torch import Tensor

from pyro_sep.extras import import_extra

STEM_MP4 = ".stem.mp4"
STREAMS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}  # musdb18's order
SLACK = 0.1  # seconds by which a decoder may differ from the header


def read_stream(path: Path, name: str) -> tuple[Tensor, int]:
    """Read one stream of a .stem.mp4 as it is.

    Args:
        path: the file.
        name: one of :data:`STREAMS`.

    Returns:
        ``(channel, time)`` in float32, full scale is 1, beyond which mixtures may go; and the rate
        in Hz.

    Raises:
        ValueError: ffmpeg or stempeg is missing, no readable audio, or a file that is cut off.
    """
    stempeg = import_extra(
        "stempeg",
        path,
        "decoder",
        "stempeg, ffmpeg and ffprobe; pip install stempeg, apt-get install ffmpeg",
    )
    import ffmpeg

    try:
        info = stempeg.Info(str(path))
        frames, rate = stempeg.read_stems(
            str(path), stem_id=STREAMS[name], info=info, always_3d=True, dtype="float32"
        )
        expected = info.samples(0)
    except (ffmpeg.Error, Warning, RuntimeError, LookupError, ValueError) as error:
        reason = last_words(error) or str(error).splitlines()[0]
        raise ValueError(
            f"{path}: got no readable audio of {name} ({reason}); replace the file"
        ) from error
    samples = torch.from_numpy(frames[0].copy()).T
    if samples.shape[-1] < expected - SLACK * rate:
        raise ValueError(
            f"{path}: got {samples.shape[-1]} audio samples of {name}, expected {expected}; "
            "the file is cut off, copy it again"
        )
    return samples, rate


def last_words(error: Exception) -> str:
    """What ffmpeg or ffprobe printed last, where it is they that failed; else nothing."""
    report = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
    return report[-1] if report else ""
