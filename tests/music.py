"""Music for tests: a small musdb18-HQ of noise, and the real excerpt that stempeg ships."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyro_sep.data.musdb import STEMS

RATE = 44_100
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="needs ffmpeg"
)


def write_tracks(root: Path) -> None:
    """Two training tracks and one test track of stereo noise, 1.5 s; the bass of one is silent."""
    rng = np.random.default_rng(0)
    for track in ("train/a", "train/b", "test/c"):
        (root / track).mkdir(parents=True)
        stems = 0.1 * rng.standard_normal((len(STEMS), int(1.5 * RATE), 2))
        if track == "train/b":
            stems[0] = 0
        for name, samples in (*zip(STEMS, stems, strict=True), ("mixture", stems.sum(0))):
            soundfile.write(root / track / f"{name}.wav", samples, RATE)


def excerpt() -> Path:
    """A .stem.mp4 of six seconds: The Easton Ellises - Falcon 69, CC BY-NC-SA."""
    stempeg = pytest.importorskip("stempeg")
    return Path(stempeg.example_stem_path())
