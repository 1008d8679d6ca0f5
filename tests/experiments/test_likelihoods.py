"""Held-out audio by name, and log-likelihoods of sets of priors."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from likelihoods import held_out_audio, log_likelihoods
from music import needs_ffmpeg, write_tracks

from pyro_sep.data.musdb import MusdbSource
from pyro_sep.data.source import ToySource
from pyro_sep.priors.base import Priors

RATE, TIME, FRAMES = 16_000, 2_000, 50
LEVELS = {"loud": 0.7, "soft": 0.1}


def priors(*names: str) -> dict[str, Any]:
    """A set of these sources."""
    return {"set": dict.fromkeys(names, SimpleNamespace(sample_rate=RATE))}


def test_held_out_audio_by_name() -> None:
    audio = held_out_audio(priors("saw", "sine"), 3, TIME)
    assert list(audio) == ["saw", "sine"]
    for name, frames in audio.items():
        assert torch.equal(frames, ToySource(name).held_out(3, TIME))


@needs_ffmpeg
def test_held_out_audio_of_silence(tmp_path: Path) -> None:
    write_tracks(tmp_path)
    heard = held_out_audio(priors("bass"), 2, TIME, tmp_path)
    assert torch.equal(heard["bass"], MusdbSource(tmp_path, "bass", RATE, TIME).held_out(2, TIME))
    soundfile.write(tmp_path / "test" / "c" / "bass.wav", np.zeros((2 * RATE, 2)), RATE)
    with pytest.raises(ValueError, match="got no held-out frame of bass that is not silent"):
        held_out_audio(priors("drums", "bass"), 2, TIME, tmp_path)


def test_log_likelihoods_are_the_closed_form_clean_and_noised(
    gaussian_priors: Callable[..., Priors],
) -> None:
    sets = {
        name: dict(zip(LEVELS, gaussian_priors(*levels).values(), strict=True))
        for name, levels in (("true", (0.7, 0.1)), ("quiet", (0.35, 0.05)))
    }
    generator = torch.Generator().manual_seed(1)
    audio = {
        name: level * torch.randn(FRAMES, TIME, generator=generator)
        for name, level in LEVELS.items()
    }
    sigmas = (0.05, 0.5)
    table = log_likelihoods(sets, audio, sigmas, seed=2)
    assert table.dims == ("priors", "input", "sigma", "prior", "source")
    assert table["priors"].values.tolist() == ["true", "quiet"]
    assert table["input"].values.tolist() == ["clean", "noised"]
    for name, share in (("true", 1.0), ("quiet", 0.5)):
        for sigma in sigmas:
            for prior, a in LEVELS.items():
                for source, b in LEVELS.items():
                    cell = table.sel(priors=name, sigma=sigma, prior=prior, source=source)
                    variance = (share * a) ** 2 + sigma**2
                    entropy = 0.5 * math.log(2 * math.pi * variance)
                    clean = float(audio[source].square().mean()) / (2 * variance)
                    assert float(cell.sel(input="clean")) == pytest.approx(-entropy - clean)
                    ratio = (b**2 + sigma**2) / variance
                    error = 0.5 * ratio * math.sqrt(2 / (FRAMES * TIME))
                    expected = pytest.approx(-entropy - 0.5 * ratio, abs=4 * error + 1e-5)
                    assert float(cell.sel(input="noised")) == expected
