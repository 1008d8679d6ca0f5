import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr

from pyro_sep.trace import (
    best_chain,
    build_trace,
    chosen_chains,
    estimate_chains,
    load_trace,
    save_trace,
    to_arviz,
)

RATE = 8000
SHAPE = (2, 30, 2, 80)


def arguments(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = np.sin(2 * np.pi * np.array([[500], [1000]]) * np.arange(80) / RATE)
    return {
        "sources": truth + 0.1 * rng.normal(size=SHAPE),
        "lp": rng.normal(size=SHAPE[:2]),
        "log_prior": rng.normal(size=SHAPE[:3]),
        "stats": {"step_size": rng.random(SHAPE[:2]), "level": np.ones(SHAPE[:2], dtype=int)},
        "warmup_stats": {"noise_level": rng.random((2, 7))},
        "mixture": truth.mean(0),
        "gains": np.array([0.5, 0.25]),
        "source_names": ["bass", "Süßes"],
        "sample_rate": RATE,
        "true_sources": truth,
        "attrs": {
            "seed": 3,
            "method": "basis",
            "sigmas": np.array([1.0, 0.1]),
            "fast": True,
            "nothing": None,
            "nested": {"path": Path("a/b"), "levels": [1, 2]},
            "rate": np.float32(0.5),
        },
        **changes,
    }


def test_groups_dims_and_values() -> None:
    given = arguments()
    tree = build_trace(**given)
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "warmup_sample_stats",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    sources = tree["posterior/sources"]
    assert sources.dims == ("chain", "draw", "source", "time")
    np.testing.assert_array_equal(sources, given["sources"].astype(np.float32))
    np.testing.assert_allclose(
        tree["posterior_predictive/mixture"],
        0.5 * given["sources"][:, :, 0] + 0.25 * given["sources"][:, :, 1],
        atol=1e-6,
    )
    np.testing.assert_array_equal(tree["observed_data/mixture"], np.float32(given["mixture"]))
    np.testing.assert_array_equal(tree["sample_stats/lp"], np.float32(given["lp"]))
    assert tree["sample_stats/level"].dtype.kind == "i"
    assert dict(tree["warmup_sample_stats"].sizes) == {"chain": 2, "draw": 7}
    assert int(tree["constant_data/sample_rate"]) == RATE
    np.testing.assert_array_equal(tree["constant_data/gains"], [0.5, 0.25])
    floats = [v for node in tree.subtree for v in node.data_vars.values() if v.dtype.kind == "f"]
    assert {v.dtype for v in floats} == {np.dtype("float32")}


@pytest.mark.parametrize("name", ["misfit", "presence"])
def test_what_is_a_variable_where_it_is_known(name: str) -> None:
    values = np.random.default_rng(1).random(SHAPE[:3])
    posterior = build_trace(**arguments(**{name: values}))["posterior"]
    assert posterior[name].dims == ("chain", "draw", "source")
    np.testing.assert_allclose(posterior[name], values, rtol=1e-6)
    assert name not in build_trace(**arguments())["posterior"]
    with pytest.raises(ValueError, match=rf"{name}: got shape \(30, 2\), expected \(2, 30, 2\)"):
        build_trace(**arguments(**{name: values[0]}))


def test_unknown_gains_and_noise_are_of_the_posterior() -> None:
    rng = np.random.default_rng(1)
    gains, noise = 0.2 + rng.random(SHAPE[:3]), rng.random(SHAPE[:2])
    given = arguments(gains=gains, noise_scale=noise)
    tree = build_trace(**given)
    assert tree["posterior/gains"].dims == ("chain", "draw", "source")
    np.testing.assert_array_equal(tree["posterior/gains"], np.float32(gains))
    np.testing.assert_array_equal(tree["posterior/noise_scale"], np.float32(noise))
    np.testing.assert_allclose(tree["constant_data/gains"], gains.mean((0, 1)), rtol=1e-5)
    mixed = (gains[..., None] * given["sources"]).sum(2)
    np.testing.assert_allclose(tree["posterior_predictive/mixture"], mixed, atol=1e-5)
    with pytest.raises(ValueError, match=r"noise_scale: got shape \(30,\), expected \(2, 30\)"):
        build_trace(**arguments(noise_scale=noise[0]))


def test_the_best_chain_has_the_highest_mean_and_no_nan() -> None:
    lp = [[0.0, 9.0], [5.0, 5.0], [100.0, np.nan]]
    stats = xr.Dataset({"lp": (("chain", "draw"), lp)})
    tree = xr.DataTree.from_dict({"sample_stats": stats})
    assert best_chain(tree) == 1
    assert estimate_chains(tree) == [1]
    tree.attrs["estimate"] = "mean"
    assert estimate_chains(tree) == [0, 1]
    assert chosen_chains(np.full(2, np.nan), "mean") == [0]


def test_coordinates() -> None:
    posterior = build_trace(**arguments())["posterior"]
    assert posterior["source"].values.tolist() == ["bass", "Süßes"]
    assert posterior["draw"].values.tolist() == list(range(30))
    np.testing.assert_array_equal(posterior["time"], np.arange(80) / RATE)
    assert posterior["time"].attrs["units"] == "s"


def test_scalar_summaries_of_tones() -> None:
    phase = 2 * np.pi * np.arange(80) / RATE
    tones = np.stack([0.5 * np.sin(500 * phase), np.sin(1000 * phase) + np.sin(3000 * phase)])
    sources = np.broadcast_to(tones, SHAPE).copy()
    sources[1, 4, 0] = 0
    posterior = build_trace(**arguments(sources=sources))["posterior"]
    level, centroid = posterior["level"].values, posterior["centroid"].values
    # A sine of amplitude A has the mean power A^2 / 2.
    assert level[0, 0, 0] == pytest.approx(10 * np.log10(0.125), abs=1e-4)
    assert level[0, 0, 1] == pytest.approx(0, abs=1e-4)
    assert centroid[0, 0] == pytest.approx([500, 2000], abs=0.1)
    assert np.isfinite(level).all()
    assert np.isfinite(centroid).all()
    assert level[1, 4, 0] < -300


def test_attrs_are_strings_and_numbers() -> None:
    attrs = build_trace(**arguments())["/"].attrs
    assert (attrs["seed"], attrs["method"], attrs["rate"]) == (3, "basis", 0.5)
    assert json.loads(attrs["sigmas"]) == [1.0, 0.1]
    assert json.loads(attrs["nested"]) == {"path": "a/b", "levels": [1, 2]}
    assert json.loads(attrs["fast"]) is True
    assert json.loads(attrs["nothing"]) is None
    assert attrs["inference_library"] == "pyro_sep"
    assert attrs["xarray_version"] == xr.__version__
    assert "created_at" not in attrs


def test_optional_parts() -> None:
    tree = build_trace(**arguments(true_sources=None, warmup_stats={}))
    assert "warmup_sample_stats" not in tree.children
    assert "true_sources" not in tree["constant_data"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sources", np.zeros((2, 30, 3, 80)), r"got shape \(2, 30, 3, 80\), expected .any, any, 2"),
        ("sources", np.zeros((30, 2, 80)), r"got shape \(30, 2, 80\)"),
        ("lp", np.zeros((2, 29)), r"got shape \(2, 29\), expected \(2, 30\)"),
        ("log_prior", np.zeros((2, 30)), r"got shape \(2, 30\), expected \(2, 30, 2\)"),
        ("mixture", np.zeros(81), r"got shape \(81,\), expected \(80\)"),
        ("gains", np.ones(3), r"got shape \(3,\), expected \(2\)"),
        ("true_sources", np.zeros((3, 80)), r"got shape \(3, 80\), expected \(2, 80\)"),
    ],
)
def test_shapes_are_checked(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        build_trace(**arguments(**{name: value}))


def test_shapes_of_stats_are_checked() -> None:
    with pytest.raises(ValueError, match=r"step_size: got shape \(30,\)"):
        build_trace(**arguments(stats={"step_size": np.zeros(30)}))
    warmup = {"a": np.zeros((2, 7)), "b": np.zeros((2, 8))}
    with pytest.raises(ValueError, match=r"b: got shape \(2, 8\), expected \(2, 7\)"):
        build_trace(**arguments(warmup_stats=warmup))


@pytest.mark.parametrize("warmup", [7, 0])
def test_netcdf_round_trip_is_exact(tmp_path: Path, warmup: int) -> None:
    tree = build_trace(**arguments(warmup_stats={"noise_level": np.ones((2, warmup))}))
    save_trace(tree, tmp_path / "a.nc")
    loaded = load_trace(tmp_path / "a.nc")
    xr.testing.assert_identical(loaded, tree)
    for path in ("posterior/sources", "sample_stats/lp", "constant_data/true_sources"):
        assert loaded[path].dtype == np.float32
    # In memory and closed: the file may go, and the trace be written again over it.
    save_trace(loaded, tmp_path / "a.nc")
    xr.testing.assert_identical(load_trace(tmp_path / "a.nc"), tree)
    assert os.listdir(tmp_path) == ["a.nc"]


def test_one_trace_gives_one_file(tmp_path: Path) -> None:
    for name in ("a.nc", "b.nc"):
        save_trace(build_trace(**arguments()), tmp_path / name)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_files_are_compressed(tmp_path: Path) -> None:
    sources = np.zeros((2, 30, 2, 8000))
    mixture, true_sources = sources[0, 0, 0], sources[0, 0]
    tree = build_trace(**arguments(sources=sources, mixture=mixture, true_sources=true_sources))
    save_trace(tree, tmp_path / "a.nc")
    assert (tmp_path / "a.nc").stat().st_size < sources.size * 4 / 10


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    tree = build_trace(**arguments())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_trace(tree, tmp_path / "none" / "a.nc")


def test_a_full_disk_leaves_the_older_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = build_trace(**arguments())
    save_trace(tree, tmp_path / "a.nc")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = rf"a\.nc: could not be written \(got 1000 bytes free, expected {tree.nbytes}\)"
    with pytest.raises(OSError, match=message):
        save_trace(tree, tmp_path / "a.nc")
    assert os.listdir(tmp_path) == ["a.nc"]
    xr.testing.assert_identical(load_trace(tmp_path / "a.nc"), tree)


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_trace(path)
    save_trace(build_trace(**arguments()), path)
    whole = path.read_bytes()
    for content in (b"", b"text\n" * 99, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nc: got no readable netCDF") as caught:
            load_trace(path)
        assert "\n" not in str(caught.value)
    save_trace(xr.DataTree.from_dict({"other": xr.Dataset({"a": 1})}), path)
    with pytest.raises(ValueError, match=r"got groups \['other'\], expected 'posterior'"):
        load_trace(path)


def test_imports_without_torch(tmp_path: Path) -> None:
    save_trace(build_trace(**arguments()), tmp_path / "a.nc")
    code = (
        "import sys; from pyro_sep.trace import load_trace; load_trace(sys.argv[1]);"
        "sys.exit('torch' in sys.modules or 'arviz' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.nc"]).returncode == 0


def test_arviz_reads_the_trace() -> None:
    data = to_arviz(build_trace(**arguments()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        names = ["level", "centroid", "log_prior"]
        table = arviz.summary(data, var_names=names, round_to=4)
        matplotlib.use("agg")
        assert arviz.plot_trace(data, var_names=names) is not None
        assert arviz.plot_rank(data, var_names=names) is not None
    assert [label for label in table.index if label.startswith("level")] == [
        "level[bass]",
        "level[Süßes]",
    ]
    mean = float(table.loc["centroid[bass]", "mean"])
    level = build_trace(**arguments())["posterior/centroid"].sel(source="bass").mean()
    assert mean == pytest.approx(float(level), rel=1e-3)
