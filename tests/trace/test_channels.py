"""What is measured of two channels: both, and not their mean, in which a wide source may cancel."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from traces import trace_of

from pyro_sep.data.tracks import Track
from pyro_sep.diagnostics.conformal import actual
from pyro_sep.diagnostics.convergence import (
    absent_contributions,
    agreement_over_time,
    audio_agreement,
    mixture_residual,
)
from pyro_sep.diagnostics.disagreement import chains_apart
from pyro_sep.diagnostics.initial import compare_initial
from pyro_sep.evaluation.tracks import with_truth
from pyro_sep.results.stems import StemFiles, write_stems
from pyro_sep.separation.api import Separation
from pyro_sep.trace import load_trace, save_trace
from pyro_sep.trace.dataset import in_channels
from pyro_sep.trace.estimate import estimate_channels, estimate_sources, shrunk_mean
from pyro_sep.viz.report import render_report
from pyro_sep.viz.separation import plot_separation

RATE, TIME = 4_000, 4_000
NAMES = ["bass", "guitar"]


def tone(frequency: float, level: float = 0.1) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * frequency * np.arange(TIME) / RATE)).astype(np.float32)


def by_turns(left: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack([left, right], -1).reshape(*left.shape[:-1], -1)


BASS, GUITAR = tone(100), tone(800)
CENTRE, OPPOSITE = by_turns(BASS, BASS), by_turns(GUITAR, -GUITAR)


def trace(
    guitars: list[NDArray[np.floating]],
    estimate: str = "mean",
    presence: tuple[float, float] | None = None,
) -> xr.DataTree:
    """A chain for each of these guitars, whose true channels are opposite; the bass is in both."""
    sources = np.stack([[[CENTRE, guitar]] * 5 for guitar in guitars])
    shape = sources.shape[:2]
    known = np.stack([CENTRE, OPPOSITE])
    return trace_of(
        sources,
        mixture=known.sum(0),
        gains=[1.0, 1.0],
        source_names=NAMES,
        sample_rate=RATE,
        true_sources=known,
        attrs={"noise_scale": 0.001, "estimate": estimate},
        presence=None if presence is None else np.broadcast_to(presence, (*shape, 2)),
        initial=known,
        initial_lp=np.zeros(8),
        channels=2,
    )


def test_level_and_centroid_are_those_of_both_channels() -> None:
    posterior = trace([OPPOSITE])["posterior"].to_dataset().isel(chain=0, draw=0)
    level = 10 * np.log10(0.1**2 / 2)
    np.testing.assert_allclose(posterior["level_db"], [level, level], atol=1e-3)
    np.testing.assert_allclose(posterior["centroid"], [100, 800], atol=0.1)
    assert not posterior["sources"].sel(source="guitar").values.any()


def test_constants_have_both_channels_and_go_through_a_file(tmp_path: Path) -> None:
    tree = trace([OPPOSITE])
    save_trace(tree, tmp_path / "trace.nc")
    read = load_trace(tmp_path / "trace.nc")
    assert read.identical(tree)
    for name in ("initial", "true_sources"):
        heard = in_channels(read["constant_data"].to_dataset(), name)
        assert heard.dims == ("source", "channel", "time")
        np.testing.assert_allclose(heard.values[1], [GUITAR, -GUITAR], atol=1e-7)
        np.testing.assert_allclose(heard.values[0], [BASS, BASS], atol=1e-7)


def test_audio_of_one_channel_has_one() -> None:
    mono = xr.Dataset({"mixture": ("time", [1.0, 2.0])})
    assert in_channels(mono, "mixture").dims == ("channel", "time")
    assert in_channels(mono, "mixture").values.tolist() == [[1.0, 2.0]]


def test_chains_that_differ_in_the_side_alone_do_not_agree() -> None:
    same, other = trace([OPPOSITE, OPPOSITE]), trace([OPPOSITE, -OPPOSITE])
    assert audio_agreement(same).values == pytest.approx([1, 1])
    assert audio_agreement(other).values == pytest.approx([1, -1], abs=1e-5)
    over_time = agreement_over_time(other, 0.5).sel(source="guitar")
    assert over_time.values == pytest.approx([-1, -1], abs=1e-5)
    assert "differ in guitar, most in the sound near 800 Hz" in chains_apart(other, ["guitar"])


def test_the_residual_is_that_of_both_channels() -> None:
    assert mixture_residual(trace([OPPOSITE])) < -100
    halved = mixture_residual(trace([OPPOSITE / 2]))  # a quarter of half of the mixture's power
    assert halved == pytest.approx(10 * np.log10(1 / 8), abs=0.01)
    silenced = absent_contributions(trace([OPPOSITE], presence=(1.0, 0.0)))
    assert silenced == {"guitar": pytest.approx(10 * np.log10(1 / 2), abs=0.01)}


def test_a_stem_whose_channels_cancel_is_heard(tmp_path: Path) -> None:
    tree = trace([OPPOSITE])
    mid = torch.from_numpy(np.stack([BASS, 0 * BASS]))
    for guitar, silent in ((0 * BASS, {"guitar": 1.0}), (GUITAR, {})):
        side = torch.from_numpy(np.stack([0 * BASS, guitar]))
        result = Separation(mid, ("bass", "guitar"), RATE, tree, mid, side=side)
        assert write_stems(result, tmp_path, StemFiles()).silent == silent


def test_it_is_compared_with_initial_stems_and_the_truth_by_both_channels() -> None:
    comparison = compare_initial(trace([OPPOSITE + 0.1 * CENTRE]))
    assert comparison is not None
    assert comparison.si_sdr["bass"] > 100
    assert comparison.si_sdr["guitar"] == pytest.approx(20, abs=0.1)
    true = actual(trace([OPPOSITE]))
    np.testing.assert_allclose(true["centroid"], [100, 800], atol=0.1)
    assert float(true["si_sdr"].min()) > 100


def test_the_truth_of_a_track_has_its_channels() -> None:
    tree = trace([OPPOSITE])
    stems = {"bass": np.stack([BASS, BASS]), "guitar": np.stack([GUITAR, -GUITAR])}
    track = Track("song", "", {n: lambda n=n: (torch.from_numpy(stems[n]), RATE) for n in stems})
    known = with_truth(tree, track)["constant_data"].to_dataset()
    for k, name in enumerate(NAMES):
        heard = in_channels(known, "true_sources").values[k]
        np.testing.assert_allclose(heard, stems[name], atol=1e-6)
    mono = Track("song", "", {n: lambda: (torch.zeros(1, TIME), RATE) for n in stems})
    with pytest.raises(ValueError, match="song: got bass of 1 channel, expected the 2 that were"):
        with_truth(tree, mono)


def test_a_silent_truth_is_named() -> None:
    tree = trace([OPPOSITE])
    known = tree["constant_data"].to_dataset()
    known["true_sources_side"] = 0 * known["true_sources_side"]
    silenced = tree.assign({"constant_data": xr.DataTree(known)})
    with pytest.raises(ValueError, match="got a silent true source of 'guitar', expected sound"):
        actual(silenced)


def test_both_channels_are_shrunk_as_one_frame() -> None:
    left, right = tone(300), tone(1_200)
    guitars = [by_turns(left, right), by_turns(left, -right), by_turns(left, 0 * right)]
    tree = trace(guitars)
    shrunk = shrunk_mean(np.stack([[CENTRE, guitar] for guitar in guitars]), 2 * RATE)
    expected = np.stack([shrunk[:, 0::2], shrunk[:, 1::2]], 1)
    np.testing.assert_allclose(estimate_channels(tree).values, expected, atol=1e-5)
    np.testing.assert_allclose(estimate_sources(tree).values, expected.mean(1), atol=1e-5)


def test_a_trace_that_lacks_a_side_is_refused(tmp_path: Path) -> None:
    tree = trace([OPPOSITE])
    known = tree["constant_data"].to_dataset().drop_vars("initial_side")
    save_trace(tree.assign({"constant_data": xr.DataTree(known)}), tmp_path / "old.nc")
    with pytest.raises(ValueError, match=r"got constant_data/initial of one channel, expected"):
        load_trace(tmp_path / "old.nc")


def test_pages_and_pictures_score_both_channels() -> None:
    tree = trace([OPPOSITE + 0.1 * CENTRE])
    titles = [ax.get_title(loc="left") for ax in plot_separation(tree).axes]
    assert "guitar: SI-SDR 20.0 dB" in titles
    assert " 20.0" in render_report(tree)
    assert "true source is silent" not in render_report(tree)
