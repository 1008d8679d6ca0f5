"""Levels of stems, and the mixture that is their sum."""

import numpy as np
from numpy.typing import NDArray

from pyro_sep.data.tracks import MIXTURE

LEVELS = {"bass": -20.0, "drums": -19.0, "other": -20.5, "vocals": -19.0}  # dB while it is heard
SPREAD = 1.5  # dB, standard deviation
PEAK = 0.891  # of the loudest of mixture and stems: -1 dB
FADE = 221  # audio samples, 5 ms
BLOCK = 4_410  # audio samples over which a level is taken, 0.1 s
SILENT = -90.0  # dB, of a stem as it is played
FAINT = -50.0  # dB, of a stem in the mixture

Array = NDArray[np.float64]


class SilentStemError(ValueError):
    """A stem of an excerpt is silent, though its score has notes there."""


def mix(audio: dict[str, Array], rng: np.random.Generator) -> dict[str, NDArray[np.int16]]:
    """Stems brought to their levels, and the mixture, which is exactly their sum.

    Args:
        audio: ``(time, channel)`` by stem.
        rng: makes some a little louder or softer.

    Raises:
        SilentStemError: a stem is silent or not finite, or nearly silent beside the others.
    """
    time = len(next(iter(audio.values())))
    edge = np.minimum(np.arange(time) + 1, np.arange(time, 0, -1)) / FADE
    fade = np.minimum(1, edge)[:, None]
    stems = {}
    for stem, samples in audio.items():
        if not np.isfinite(samples).all():
            raise SilentStemError(f"its {stem} stem is not finite")
        level = active_level(samples)
        if level <= SILENT:
            raise SilentStemError(f"its {stem} stem is silent")
        gain = 10 ** ((LEVELS[stem] + rng.normal(0, SPREAD) - level) / 20)
        stems[stem] = samples * fade * gain
    peak = max(np.abs(samples).max() for samples in (sum(stems.values()), *stems.values()))
    mixed = {
        stem: np.round(samples * (PEAK / peak) * 32_768).astype(np.int16)
        for stem, samples in stems.items()
    }
    for stem, samples in mixed.items():
        if decibel(samples / 32_768) < FAINT:
            raise SilentStemError(f"its {stem} stem is nearly silent")
    return mixed | {MIXTURE: np.sum(list(mixed.values()), axis=0, dtype=np.int16)}


def decibel(samples: Array) -> float:
    """Mean power in dB."""
    return float(10 * np.log10(np.mean(np.square(samples)) + 1e-20))


def active_level(samples: Array) -> float:
    """Mean power in dB of the blocks within 30 dB of the loudest."""
    power = np.square(samples[: len(samples) // BLOCK * BLOCK]).mean(1).reshape(-1, BLOCK).mean(1)
    return float(10 * np.log10(power[power >= power.max() * 1e-3].mean() + 1e-20))
