"""Held-out audio and its log-likelihood under sets of priors, for several experiments."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr
from _common import split
from torch import Tensor

from pyro_sep.data.source import default_spec, open_source
from pyro_sep.priors.auditing import audit, noise_entropy
from pyro_sep.priors.base import Priors, known_sigmas, sample_rate_of
from pyro_sep.priors.io import load_priors

TWO_SETS = "toy/wavenet,toy/flow"  # both families that ship


def load_sets(names: str) -> dict[str, Priors]:
    """Sets of priors by name, from a comma-separated list."""
    return {name: load_priors(name) for name in split(names)}


def lowest_sigma(sets: Mapping[str, Priors]) -> float:
    """The lowest noise level that all priors know."""
    return max(known_sigmas(priors)[0] for priors in sets.values())


def held_out_audio(
    sets: Mapping[str, Priors], count: int, time: int, musdb: Path | None = None
) -> dict[str, Tensor]:
    """Held-out audio ``(frame, time)`` of each source of the first set, by its name.

    A source is a stem of musdb18 where its root is given, else a toy waveform.

    Raises:
        ValueError: an unknown source, or one that is silent throughout.
    """
    priors = next(iter(sets.values()))
    rate = sample_rate_of(priors)
    audio = {
        name: open_source(default_spec(name, musdb), rate, time, musdb).held_out(count, time)
        for name in priors
    }
    if silent := [name for name, frames in audio.items() if not len(frames)]:
        raise ValueError(
            f"{musdb}: got no held-out frame of {', '.join(silent)} that is not silent, expected "
            "test tracks with it"
        )
    return audio


def log_likelihoods(
    sets: Mapping[str, Priors], audio: Mapping[str, Tensor], sigmas: Sequence[float], seed: int = 0
) -> xr.DataArray:
    """Mean log density per audio sample, of clean audio and of audio noised at its level.

    Args:
        sets: sets of priors by name; all sets know the same sources.
        audio: of each source, as :func:`pyro_sep.priors.auditing.audit` takes it.
        sigmas: noise levels.
        seed: of the noise.

    Returns:
        Nats with dims ``(priors, input, sigma, prior, source)``; ``input`` is ``"clean"`` or
        ``"noised"``.

    Raises:
        ValueError: audio of a source without a prior or the other way round.
    """
    progress, kinds = sys.stderr.isatty(), {"clean": False, "noised": True}
    tables = [
        xr.concat(
            [audit(priors, audio, sigmas, seed, progress, noised) for noised in kinds.values()],
            "input",
        )
        for priors in sets.values()
    ]
    excess = xr.concat(tables, "priors").assign_coords(priors=list(sets), input=list(kinds))
    floor = xr.DataArray([noise_entropy(sigma) for sigma in sigmas], {"sigma": excess["sigma"]})
    return (excess - floor).rename("log_likelihood")
