import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_sep.diagnostics.sbc import RankTest
from pyro_sep.viz.plots import plot_audit, plot_calibration
from pyro_sep.viz.png import save_figure


def audit() -> xr.DataArray:
    values = np.array([[[0.0, 3.25], [0.5, -0.02]], [[-0.001, 12.5], [np.inf, 0.01]]])
    names = ["sine", "square"]
    coords = {"sigma": [0.1, 0.01], "prior": names, "source": names}
    return xr.DataArray(values, coords, ("sigma", "prior", "source"))


def test_audit_writes_each_cell_and_frames_the_diagonal() -> None:
    figure = plot_audit(audit().transpose("source", "sigma", "prior"))
    panels = figure.axes[:2]
    assert [ax.get_title() for ax in panels] == ["sigma = 0.1", "sigma = 0.01"]
    texts = {t.get_position(): t.get_text() for t in panels[0].texts}
    assert texts == {(0, 0): "0.00", (1, 0): "3.25", (0, 1): "0.50", (1, 1): "-0.02"}
    assert [t.get_text() for t in panels[1].texts] == ["0.00", "12.50", "inf", "0.01"]
    for ax in panels:
        frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        assert [(round(f.get_x()), round(f.get_y())) for f in frames] == [(0, 0), (1, 1)]


def test_audit_hides_spare_panels() -> None:
    table = audit().isel(sigma=[0] * 5)
    figure = plot_audit(table.assign_coords(sigma=[5.0, 4.0, 3.0, 2.0, 1.0]))
    assert [bool(ax.axison) for ax in figure.axes[:8]] == [True] * 5 + [False] * 3


def test_save_figure(tmp_path: Path) -> None:
    save_figure(plot_audit(audit()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_figure(Figure(), tmp_path / "none" / "a.png")


def test_imports_without_torch_and_pyplot() -> None:
    code = (
        "import sys, pyro_sep.viz.plots;"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_calibration_shows_ranks_and_coverage() -> None:
    rng = np.random.default_rng(0)
    test = RankTest.simulate(60, 4, rng)
    names = {"source": ["saw", "sine"], "function": ["level_db", "centroid", "log_prior"]}
    ranks = xr.DataArray(rng.integers(0, 5, (60, 2, 3)), names, ("simulation", *names))
    covered = xr.DataArray(
        rng.random((3, 2, 3)), {"interval": [0.5, 0.8, 0.95], **names}, ("interval", *names)
    )
    figure = plot_calibration(ranks, covered, test)
    assert len(figure.axes) == 4
    low, high = test.band()
    for k, name in enumerate(names["source"]):
        left, right = figure.axes[2 * k : 2 * k + 2]
        assert left.get_title(loc="left") == name
        curves = {str(line.get_label()): line.get_ydata() for line in left.lines}
        shares = {str(line.get_label()): line.get_ydata() for line in right.lines}
        for j, function in enumerate(names["function"]):
            below = [(ranks.values[:, k, j] <= i).mean() - (i + 1) / 5 for i in range(4)]
            np.testing.assert_allclose(curves[function], below, atol=1e-12)
            np.testing.assert_array_equal(shares[function], covered.values[:, k, j])
        corners = left.collections[0].get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx((low - test.points).min())
        assert corners.max() == pytest.approx((high - test.points).max())
