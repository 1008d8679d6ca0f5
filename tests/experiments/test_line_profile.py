"""The line from one source to another, on Gaussian priors whose density is known."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scripts import load

from pyro_sep.data.toy import toy_mixture

line_profile = load("line_profile")
NAMES, FRAMES, TIME = ("square", "saw"), 3, 64


def tones(name: str) -> torch.Tensor:
    return torch.stack([toy_mixture("test", i, (name,), TIME).sources[0] for i in range(FRAMES)])


def table_of(curves: dict[tuple[float, str], Callable[[np.ndarray], np.ndarray]]) -> xr.DataArray:
    """One frame of given curves by level and prior."""
    t = line_profile.POINTS
    sigmas = sorted({sigma for sigma, _ in curves})
    values = [[curves[sigma, name](t)[:, None] for name in NAMES] for sigma in sigmas]
    coords = {"sigma": sigmas, "prior": list(NAMES), "t": t, "frame": [0]}
    return xr.DataArray(values, coords, name="excess")


def test_the_points_hold_both_ends_and_are_closer_there() -> None:
    t = line_profile.POINTS
    assert (t[0], t[-1]) == (-0.25, 1.25)
    assert {0.0, 1.0} <= set(t.tolist())
    np.testing.assert_array_equal(t, 1 - t[::-1])
    assert np.diff(t).max() <= 1 / 16
    assert np.diff(t).min() == 1 / 256


def test_profiles_are_the_closed_form(
    gaussian_priors: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    levels = {"square": 0.9, "saw": 0.2}
    priors = dict(zip(levels, gaussian_priors(*levels.values()).values(), strict=True))
    monkeypatch.setattr(line_profile, "load_sets", lambda names: {names: priors})
    out = tmp_path / "out"
    line_profile.main("mine", "square,saw", FRAMES, TIME, seed=4, out=out)
    assert sorted(os.listdir(out)) == ["line_profile.csv", "line_profile.png", "summary.json"]
    table = pd.read_csv(out / "line_profile.csv")
    assert len(table) == len(line_profile.SIGMAS) * 2 * len(line_profile.POINTS) * FRAMES
    start, end = tones("square"), tones("saw")
    noise = torch.randn(FRAMES, TIME, generator=torch.Generator().manual_seed(4))
    for _, sigma, name, t, frame, value in table.itertuples(index=False):
        x = ((1 - t) * start + t * end + sigma * noise)[frame].double()
        variance = levels[name] ** 2 + sigma**2
        density = -0.5 * math.log(2 * math.pi * variance) - float(x.square().mean()) / 2 / variance
        excess = density + 0.5 * math.log(2 * math.pi * math.e * sigma**2)
        assert value == pytest.approx(excess, abs=1e-5 * max(1, abs(excess)))
    summary = json.loads((out / "summary.json").read_text())
    rows = pd.DataFrame(summary["levels"]["mine"]).set_index("sigma")
    means = table.groupby(["sigma", "prior", "t"])["excess"].mean()
    for sigma in line_profile.SIGMAS:
        own = means[sigma, "square"]
        assert rows.loc[sigma, "excess"] == pytest.approx(own[0.0])
        assert rows.loc[sigma, "fall"] == pytest.approx(own[0.0] - own[1.0])
    assert not rows["told_apart"].any()  # the quieter is likelier under any Gaussian of mean 0
    printed = capsys.readouterr().out
    assert "mine: the prior of square on the way to saw, nats per audio sample\n" in printed
    assert f" s. Results: {out}" in printed


def test_the_reach_is_where_half_a_nat_is_lost() -> None:
    peak = table_of(
        {
            (0.1, "square"): lambda t: -8 * t**2,  # half a nat at 1/4
            (0.1, "saw"): lambda t: -8 * (1 - t) ** 2,
            (1.0, "square"): lambda t: -0.1 * t,
            (1.0, "saw"): lambda t: 0.05 + 0.1 * t,  # which has the square, too
            (2.0, "square"): lambda t: 0.1 * t,
            (2.0, "saw"): lambda t: 0.2 * t,
        }
    )
    figures = line_profile.summarise(peak)
    np.testing.assert_allclose(figures["excess"], 0)
    np.testing.assert_allclose(figures["fall"], [8, 0.1, -0.1])
    np.testing.assert_allclose(figures["reach"], [0.25, np.nan, np.nan], rtol=1e-12)
    assert figures["told_apart"].tolist() == [True, False, False]


def test_every_set_has_three_levels_and_the_ladder() -> None:
    sigmas = (*line_profile.PANELS, 0.5)
    curves = {
        (sigma, name): lambda t, s=sigma, end=end: -s * (t - end) ** 2
        for sigma in sigmas
        for end, name in enumerate(NAMES)
    }
    curves[2.0, "saw"] = lambda t: -t  # which gives the square most
    one = table_of(curves)
    both = xr.concat([one, 2 * one], "priors").assign_coords(priors=["one", "two"])
    axes = iter(line_profile.draw(both).axes)
    for scale, priors in ((1, "one"), (2, "two")):
        for sigma in line_profile.PANELS:
            ax = next(axes)
            assert ax.get_title() == f"sigma {sigma:g}"
            assert ax.get_ylabel().startswith(priors) == (sigma == line_profile.PANELS[0])
            for line, name in zip(ax.lines[:2], NAMES, strict=True):
                assert line.get_label() == f"prior of {name}"
                expected = scale * one.sel(sigma=sigma, prior=name, frame=0)
                np.testing.assert_array_equal(line.get_ydata(), expected)
        ax = next(axes)
        assert ax.get_title() == "the ladder, prior of square"
        for line, sigma in zip(ax.lines[:4], sorted(sigmas), strict=True):
            assert line.get_label() == f"{sigma:g}"
            assert line.get_linestyle() == ("--" if sigma == 2 else "-")


@pytest.mark.parametrize("sources", ["saw", "saw,saw", "saw,sine,square"])
def test_a_line_has_two_ends(sources: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sources: got '{sources}', expected two waveforms"):
        line_profile.main("none", sources, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
