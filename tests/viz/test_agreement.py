"""The picture of the chains' agreement over time."""

import numpy as np
import pytest
import xarray as xr
from traces import trace_of

from pyro_sep.viz.agreement import plot_agreement

RATE, TIME = 1_000, 1_050


def trace(chains: int) -> xr.DataTree:
    """A source that all chains hold alike, and one in which they differ in the second half."""
    sources = np.random.default_rng(0).normal(size=(1, 1, 2, TIME)).repeat(chains, 0)
    sources[0, :, 1, TIME // 2 :] *= -1
    mixture, names = sources[0, 0].sum(0), ["same", "other $name"]
    return trace_of(
        sources, mixture=mixture, gains=(1.0, 1.0), source_names=names, sample_rate=RATE
    )


def test_rows_and_columns() -> None:
    ax, bar = plot_agreement(trace(2), 0.5).axes
    (mesh,) = ax.collections
    drawn = np.asarray(mesh.get_array()).reshape(2, 2)
    assert drawn == pytest.approx(np.array([[1, 1], [1, -1]]), abs=0.11)
    assert ax.get_xlim() == (0, TIME / RATE)  # the last window is longer
    assert [label.get_text() for label in ax.get_yticklabels()] == ["same", r"other \$name"]
    assert bar.get_ylabel() == "agreement"
    assert mesh.get_clim() == (0, 1)


def test_one_chain_has_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match=r"^tree: got a trace of one chain, expected two or more"):
        plot_agreement(trace(1))
