"""Python and the command line separate a file alike, by their defaults."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pyro_sep import load_priors, separate
from pyro_sep.cli.app import main
from pyro_sep.separation.presets import resolve_estimate

TINY = {"candidates": 1, "levels": 6, "draws": 2}


@pytest.mark.parametrize(
    ("name", "stems", "sums"),
    [("toy", ("saw", "square"), False), ("music", ("bass", "drums"), True)],
)
def test_stems_are_the_same(
    name: str, stems: tuple[str, str], sums: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors = load_priors(name)
    chosen = {stem: priors[stem] for stem in stems}
    rate = chosen[stems[0]].sample_rate
    mixture = 0.2 * torch.sin(2 * math.pi * 440 / rate * torch.arange(256))
    soundfile.write(tmp_path / "duet.wav", mixture.numpy(), rate, subtype="FLOAT")
    result = separate(mixture, chosen, **TINY)
    assert result.trace.attrs["estimate"] == ("mean" if sums else "mode")
    gains = result.trace["constant_data"]["gains"].values.tolist()
    assert gains == ([1.0, 1.0] if sums else [0.5, 0.5])

    options = [f"--{option}={value}" for option, value in TINY.items()]
    options += [f"--priors={name}", f"--stems={','.join(stems)}", "--native"]
    line = ["separate", str(tmp_path / "duet.wav"), f"--out={tmp_path / 'out'}", *options]
    monkeypatch.setattr(sys, "argv", ["pyro-sep", *line])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    for stem, expected in zip(stems, result.contributions, strict=True):
        written, _ = soundfile.read(tmp_path / "out" / "duet" / f"{stem}.wav", dtype="float32")
        assert np.array_equal(written, expected.numpy())


def test_a_prior_that_states_nonsense_is_named() -> None:
    priors = load_priors("toy/oracle")
    priors["saw"].estimate = "median"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^estimate: got 'median', expected one of mode, mean"):
        resolve_estimate(priors)
