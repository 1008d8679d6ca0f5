from typing import Any

import numpy as np
import pytest
import xarray as xr
from traces import trace_of

from pyro_sep.viz.dashboard import plot_diagnostics

DRAWS = 12


def trace(draws: int = DRAWS, **changes: Any) -> xr.DataTree:
    rng = np.random.default_rng(0)
    given = {
        "sources": rng.normal(size=(2, draws, 2, 64)),
        "lp": rng.normal(size=(2, draws)),
        "log_prior": rng.normal(size=(2, draws, 2)),
        "stats": {"energy": rng.normal(size=(2, draws))},
        "mixture": rng.normal(size=64),
        "source_names": ["oboe", "flute"],
    }
    return trace_of(**given | changes)


@pytest.mark.parametrize("variable", ["level_db", "centroid", "log_prior"])
def test_the_dashboard_has_a_row_per_source(variable: str) -> None:
    tree = trace()
    figure = plot_diagnostics(tree, variable)
    titles = {ax.get_title(loc="left") for ax in figure.axes}
    assert {"oboe", "flute", "Trace", "Ranks", "Energy"} <= titles
    values = tree["posterior"].to_dataset()[variable].values
    for k, row in enumerate((figure.axes[:3], figure.axes[3:6])):
        traces = [line.get_ydata() for line in row[1].lines if len(line.get_ydata()) == DRAWS]
        np.testing.assert_allclose(sorted(map(tuple, traces)), sorted(map(tuple, values[:, :, k])))
        heights = [float(patch.get_height()) for patch in row[2].patches]
        assert len(heights) > 0


def test_a_trace_without_energies_says_so() -> None:
    figure = plot_diagnostics(trace(stats={}))
    assert [text.get_text() for text in figure.axes[-1].texts] == ["the trace has no energies"]


def test_wrong_variables_and_few_draws_are_errors() -> None:
    with pytest.raises(ValueError, match=r"got 'sources', expected one of .*level_db"):
        plot_diagnostics(trace(), "sources")
    with pytest.raises(ValueError, match="got 3 draws a chain, expected 4 or more"):
        plot_diagnostics(trace(3))
