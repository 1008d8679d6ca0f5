import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from pyro_sep.storage.seals import sealed
from pyro_sep.trace import layout
from pyro_sep.trace.dataset import (
    FORMAT,
    build_trace,
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
    level, centroid = posterior["level_db"].values, posterior["centroid"].values
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

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a\.nc: could not be written \(No space left on device\)"):
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


def sealed_anew(path: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a trace as one would who knows of its seal."""
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(sealed(path.read_bytes(), FORMAT))


def replaced(name: str, *shape: int, **options: Any) -> Callable[[h5py.File], object]:
    """A variable of the same dimensions in the place of another."""

    def change(file: h5py.File) -> None:
        dims = [dim[0] for dim in file[name].dims]
        del file[name]
        new = file.create_dataset(name, shape, **options)
        for i, scale in enumerate(dims):
            new.dims[i].attach_scale(scale)

    return change


def linked(file: h5py.File, link: Any) -> None:
    del file["posterior/level_db"]
    file["posterior/level_db"] = link


def alone(file: h5py.File, **options: Any) -> None:
    file.create_dataset("posterior/zz", **options)


LIES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (lambda f: linked(f, h5py.SoftLink("/posterior/sources")), "got a link"),
    "external link": (lambda f: linked(f, h5py.ExternalLink("b.nc", "/x")), "got a link"),
    "external group": (lambda f: f.__setitem__("zz", h5py.ExternalLink("b.nc", "/")), "got a link"),
    "external storage": (
        replaced("observed_data/mixture", 80, dtype="u1", external=[("secret", 0, 80)]),
        "observed_data/mixture in another file",
    ),
    "no chunks": (
        replaced("posterior/sources", 2, 30, 2, 80, dtype="f4", chunks=(1, 30, 1, 80)),
        "posterior/sources with missing chunks",
    ),
    "no values": (
        replaced("posterior/level_db", 2, 30, 2, dtype="f4"),
        "posterior/level_db without its values",
    ),
    "too many draws": (
        replaced("sample_stats/lp", 2, 31, data=np.zeros((2, 31))),
        "sample_stats/lp of 31 along draw",
    ),
    "a filter": (
        replaced("sample_stats/lp", 2, 30, data=np.zeros((2, 30)), compression="lzf"),
        "sample_stats/lp through the filters",
    ),
    "text": (
        replaced("sample_stats/lp", 2, 30, data=np.full((2, 30), "a", dtype="S1")),
        "got sample_stats/lp ",
    ),
    "whole numbers": (
        replaced("posterior/sources", 2, 30, 2, 80, data=np.zeros(SHAPE, dtype=int)),
        "posterior/sources of int64, expected floats",
    ),
    "no sources": (lambda f: f.__delitem__("posterior/sources"), "none of posterior/sources"),
    "no mixture": (lambda f: f.__delitem__("observed_data"), "none of observed_data/mixture"),
    "a rate of none": (
        lambda f: f["constant_data/sample_rate"].write_direct(np.array(-1)),
        "got the sample rate",
    ),
    "another library": (lambda f: f.attrs.modify("inference_library", "pymc"), "trace of 'pymc'"),
    "no library": (lambda f: f.attrs.__delitem__("inference_library"), "got a trace of None"),
    "a list": (lambda f: f.attrs.__setitem__("seed", [1, 2]), "got the attribute seed"),
    "words": (lambda f: f.attrs.__setitem__("gradients", "many"), "got the attribute gradients"),
    "names alike": (
        lambda f: f["posterior/source"].__setitem__(slice(None), ["a", "a"]),
        "expected names that differ",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_trace_that_lies(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "a.nc"
    save_trace(build_trace(**arguments()), path)
    change, words = LIES[lie]
    sealed_anew(path, change)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"a\.nc: .*{words}") as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__setitem__("posterior/loop", f["/"]),
        lambda f: f.__setitem__("loop", f["posterior"]),
        lambda f: alone(f, shape=(2**40,), dtype="f4", chunks=(2**16,)),
        lambda f: alone(f, data=np.zeros(10**6), compression="gzip"),
        lambda f: alone(f, shape=(80,), dtype="u1", external=[("secret", 0, 80)]),
        lambda f: alone(f, shape=(3,), dtype=h5py.ref_dtype),
        lambda f: f.create_dataset("time", shape=(2**40,), dtype="f8", chunks=(2**16,)),
    ],
    ids=["loop", "second name", "bomb", "zeros", "external", "references", "in the root"],
)
def test_what_is_not_of_a_trace_is_not_read(
    tmp_path: Path, change: Callable[[h5py.File], object]
) -> None:
    tree = build_trace(**arguments())
    save_trace(tree, tmp_path / "a.nc")
    sealed_anew(tmp_path / "a.nc", change)
    xr.testing.assert_identical(load_trace(tmp_path / "a.nc"), tree)


def test_a_claim_beyond_the_files_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = arguments(sources=np.zeros((2, 30, 2, 8_000)), mixture=np.zeros(8_000))
    save_trace(build_trace(**zeros | {"true_sources": None}), tmp_path / "a.nc")
    load_trace(tmp_path / "a.nc")
    monkeypatch.setattr(layout, "SMALL", 1_000)
    with pytest.raises(ValueError, match=r"a\.nc: got a claim of \d+ bytes in a file of \d+,"):
        load_trace(tmp_path / "a.nc")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    save_trace(build_trace(**arguments()), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 997):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.nc: got no readable netCDF file \(it is"):
            load_trace(path)


def test_other_readers_of_netcdf_read_it(tmp_path: Path) -> None:
    tree = build_trace(**arguments())
    save_trace(tree, tmp_path / "a.nc")
    with xr.open_datatree(tmp_path / "a.nc") as opened:
        xr.testing.assert_identical(opened.load(), tree)


def test_imports_without_torch(tmp_path: Path) -> None:
    save_trace(build_trace(**arguments()), tmp_path / "a.nc")
    code = (
        "import sys; from pyro_sep.trace.dataset import load_trace; load_trace(sys.argv[1]);"
        "sys.exit('torch' in sys.modules or 'arviz' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.nc"]).returncode == 0


def test_arviz_reads_the_trace() -> None:
    data = to_arviz(build_trace(**arguments()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        names = ["level_db", "centroid", "log_prior"]
        table = arviz.summary(data, var_names=names, round_to=4)
        matplotlib.use("agg")
        assert arviz.plot_trace(data, var_names=names) is not None
        assert arviz.plot_rank(data, var_names=names) is not None
    assert [label for label in table.index if label.startswith("level_db")] == [
        "level_db[bass]",
        "level_db[Süßes]",
    ]
    mean = float(table.loc["centroid[bass]", "mean"])
    level = build_trace(**arguments())["posterior/centroid"].sel(source="bass").mean()
    assert mean == pytest.approx(float(level), rel=1e-3)


def arviz_of(**changes: Any) -> tuple[Any, Any]:
    """ArviZ, and a trace as it takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
        import arviz
    attrs = {"noise_scale": 0.1, "constraint": "gaussian"} | changes.pop("attrs", {})
    return arviz, to_arviz(build_trace(**arguments(attrs=attrs, **changes)))


@pytest.mark.parametrize("drawn", [False, True])
def test_the_log_likelihood_is_that_of_every_audio_sample(drawn: bool) -> None:
    gamma = np.random.default_rng(1).uniform(0.1, 0.2, SHAPE[:2]) if drawn else None
    attrs = {"noise_scale": "infer"} if drawn else {}
    arviz, data = arviz_of(attrs=attrs, noise_scale=gamma)
    given = arguments()
    heard = np.einsum("k,cdkt->cdt", given["gains"], given["sources"])
    scale = 0.1 if gamma is None else gamma[..., None]
    expected = scipy.stats.norm(heard, scale).logpdf(given["mixture"])
    found = data.log_likelihood["mixture"]
    assert found.dims == ("chain", "draw", "time")
    assert np.allclose(found.values, expected, rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws: Pareto k
        loo = arviz.loo(data)
    assert loo.n_data_points == SHAPE[-1]
    assert loo.elpd_loo < expected.mean((0, 1)).sum()


@pytest.mark.parametrize(
    "attrs", [{"constraint": "exact"}, {"noise_scale": "infer"}, {"noise_scale": None}]
)
def test_where_there_is_no_likelihood_arviz_says_so(attrs: dict[str, Any]) -> None:
    arviz, data = arviz_of(attrs=attrs)
    assert "log_likelihood" not in data.groups()
    with pytest.raises(TypeError, match="log likelihood not found"):
        arviz.loo(data)


def test_arviz_takes_the_energy() -> None:
    lp = np.random.default_rng(0).normal(size=SHAPE[:2])
    arviz, data = arviz_of(stats={"energy": 1 - lp})
    assert arviz.bfmi(data).shape == (2,)


def test_a_trace_is_left_as_it_was_for_arviz() -> None:
    tree = build_trace(**arguments(attrs={"noise_scale": 0.1}))
    before = tree.copy(deep=True)
    to_arviz(tree)
    xr.testing.assert_identical(tree, before)


def test_from_version_1_on_arviz_takes_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_sep.trace.dataset.version", lambda _: "1.0.0")
    tree = build_trace(**arguments(attrs={"noise_scale": 0.1}))
    data = to_arviz(tree)
    assert isinstance(data, xr.DataTree)
    assert set(data.children) == {*tree.children, "log_likelihood"}
    assert data.attrs == tree.attrs


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ([("seed", 1)], "attrs: got a list, expected a mapping"),
        ({1: 2}, "attrs: got the name 1, expected a word"),
        ({"": 2}, "attrs: got the name '', expected a word"),
        ({"x": {(1, 2): 3}}, r"attrs: got a dict as 'x' \(keys must be"),
    ],
)
def test_attributes_that_no_file_holds_are_named_in_a_line(attrs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        build_trace(**arguments(attrs=attrs))
    assert "\n" not in str(caught.value)


def test_a_huge_number_is_kept_as_text(tmp_path: Path) -> None:
    save_trace(build_trace(**arguments(attrs={"huge": 2**70})), tmp_path / "a.nc")
    assert load_trace(tmp_path / "a.nc").attrs["huge"] == str(2**70)


@pytest.mark.parametrize(
    "attrs",
    [
        {"a": "x\udc80"},
        {"a": "x\0y"},
        {"a\udc80": 1},
        {"CLASS": 1},
        {"DIMENSION_LIST": 1},
        {"_NCProperties": 1},
        {"a" * 70_000: 1},
        {"": 1},
    ],
    ids=str,
)
def test_attributes_that_no_file_can_hold(attrs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^attrs: got ") as caught:
        build_trace(**arguments(attrs=attrs))
    assert len(str(caught.value).splitlines()) == 1
