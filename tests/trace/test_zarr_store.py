import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from pyro_sep.trace.dataset import build_trace, load_trace, save_trace, to_arviz
from pyro_sep.trace.zarr_store import DRAWN, TraceStore

RATE, DRAWS = 8000, 30
RNG = np.random.default_rng(0)
SOURCES = RNG.normal(size=(2, DRAWS, 2, 80))
LP = RNG.normal(size=(2, DRAWS)).astype(np.float32)
LOG_PRIOR = RNG.normal(size=(2, DRAWS, 2))


def trace(first: int = 0, end: int = DRAWS, **changes: Any) -> xr.DataTree:
    """Draws ``first`` to ``end`` of one run."""
    part = slice(first, end)
    return build_trace(
        **{
            "sources": SOURCES[:, part],
            "lp": LP[:, part],
            "log_prior": LOG_PRIOR[:, part],
            "stats": {"step_size": LP[:, part] ** 2, "taken": np.ones_like(LP[:, part], dtype=int)},
            "warmup_stats": {"noise_level": np.ones((2, 7))},
            "mixture": SOURCES[0, 0, 0],
            "gains": (0.5, 0.25),
            "source_names": ["bass", "Süßes"],
            "sample_rate": RATE,
            "true_sources": SOURCES[0, 0],
            "attrs": {"seed": 3, "settings": {"levels": 6}, "rate": 0.1},
            **changes,
        }
    )


def write(store: TraceStore, *starts: int, size: int = 8) -> TraceStore:
    for first in starts:
        store.add(trace(first, min(first + size, DRAWS), warmup_stats={}, attrs={}), first)
    return store


def finished(path: Path) -> Path:
    write(TraceStore(path, DRAWS), 0, 8, 16, 24).finish(trace(DRAWS - 1))
    return path


def test_blocks_on_disk_are_the_trace_in_memory(tmp_path: Path) -> None:
    stored = load_trace(finished(tmp_path / "a.zarr"))
    assert list(stored["posterior"]["draw"].values) == list(range(DRAWS))
    xr.testing.assert_identical(stored.load(), trace())
    for name, group in trace().children.items():
        for key, part in group.to_dataset().variables.items():
            assert stored[name].to_dataset().variables[key].dtype == part.dtype


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    stored = load_trace(finished(tmp_path / "a.zarr"))
    assert not stored["posterior/sources"].variable._in_memory
    np.testing.assert_array_equal(stored["posterior/sources"][1, 17], np.float32(SOURCES[1, 17]))
    assert not stored["posterior/sources"].variable._in_memory


def test_a_block_may_come_again(tmp_path: Path) -> None:
    store = write(TraceStore(tmp_path / "a.zarr", DRAWS), 0, 8, 16)
    again = write(TraceStore(store.path, DRAWS), 8, 16, 24)
    again.finish(trace(DRAWS - 1))
    xr.testing.assert_identical(load_trace(store.path).load(), trace())


def test_the_first_block_replaces_an_older_store(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.zarr")
    write(TraceStore(path, 12), 0, size=12)
    with pytest.raises(ValueError, match="got a trace that is not finished"):
        load_trace(path)
    short = trace(0, 12, true_sources=None, warmup_stats={})
    TraceStore(path, 12).finish(short)
    xr.testing.assert_identical(load_trace(path).load(), short)


def test_arviz_takes_the_store(tmp_path: Path) -> None:
    data = to_arviz(load_trace(finished(tmp_path / "a.zarr")))
    names = ["level_db", "centroid", "log_prior"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        table = arviz.summary(data, var_names=names, round_to=4)
        same = arviz.summary(to_arviz(trace()), var_names=names, round_to=4)
    assert table.equals(same)
    assert "level_db[Süßes]" in table.index


def test_a_store_becomes_a_file(tmp_path: Path) -> None:
    save_trace(load_trace(finished(tmp_path / "a.zarr")), tmp_path / "a.nc")
    xr.testing.assert_identical(load_trace(tmp_path / "a.nc"), trace())


def test_chunks_hold_a_block_of_one_source(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.zarr")
    array = json.loads((path / "posterior" / "sources" / ".zarray").read_text())
    assert (array["shape"], array["chunks"]) == ([2, DRAWS, 2, 80], [1, 8, 1, 80])


def test_a_store_is_known_by_its_last_draw(tmp_path: Path) -> None:
    store = write(TraceStore(tmp_path / "a.zarr", DRAWS), 0, 8)
    store.check(LP[:, 15], 15)
    for lp, draw in ((LP[:, 14], 15), (LP[:, 16], 16), (LP[:, 15], DRAWS)):
        message = rf"a\.zarr without the draws of its checkpoint, expected {draw + 1} of them"
        with pytest.raises(ValueError, match=message) as caught:
            store.check(lp, draw)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="without the draws of its checkpoint"):
        TraceStore(tmp_path / "b.zarr", DRAWS).check(LP[:, 0], 0)


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "photos.zarr"
    folder.mkdir()
    (folder / "a.jpg").write_text("kept")
    with pytest.raises(
        ValueError, match=r"photos\.zarr, which is there and is no store of a trace"
    ):
        TraceStore(folder, DRAWS)
    with pytest.raises(ValueError, match=r"got .*photos, expected a name that ends in \.zarr"):
        TraceStore(tmp_path / "photos", DRAWS)
    assert os.listdir(folder) == ["a.jpg"]


def test_bad_stores_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with pytest.raises(FileNotFoundError, match=r"a\.zarr: no such store"):
        load_trace(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"a\.zarr: got no readable Zarr store") as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)
    xr.DataTree.from_dict({"/": xr.Dataset(attrs={"inference_library": "x"})}).to_zarr(
        path, zarr_format=2, consolidated=False
    )
    with pytest.raises(ValueError, match=r"got groups \[\], expected 'posterior'"):
        load_trace(path)


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change the metadata of a file of a store."""

    def change(path: Path) -> None:
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(content | changes))

    return change


SOURCES_ARRAY = "posterior/sources/.zarray"
CHUNK = "posterior/sources/1.2.0.0"


def link(path: Path) -> None:
    (path / CHUNK).rename(path.parent / "elsewhere")
    (path / CHUNK).symlink_to(path.parent / "elsewhere")


def flip(path: Path) -> None:
    content = bytearray((path / CHUNK).read_bytes())
    content[len(content) // 2] ^= 1
    (path / CHUNK).write_bytes(content)


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty chunk": (lambda p: (p / CHUNK).write_bytes(b""), "damaged chunk 1.2.0.0"),
    "short chunk": (lambda p: os.truncate(p / CHUNK, 99), "damaged chunk 1.2.0.0"),
    "flipped bit": (flip, "damaged chunk 1.2.0.0"),
    "text": (lambda p: (p / CHUNK).write_text("text" * 99), "damaged chunk 1.2.0.0"),
    "missing chunk": (lambda p: (p / CHUNK).unlink(), "sources with missing chunks"),
    "another name": (lambda p: (p / CHUNK).rename(p / f"{CHUNK}0"), "sources with missing chunks"),
    "a link": (link, "got a link, 1.2.0.0"),
    "chunks of 0": (edit(SOURCES_ARRAY, chunks=[1, 8, 1, 0]), "no readable Zarr store"),
    "half a chain": (edit(SOURCES_ARRAY, shape=[1.5, 30, 2, 80]), "no readable Zarr store"),
    "huge": (edit(SOURCES_ARRAY, shape=[2**50, 30, 2, 80]), "along chain"),
    "huge chunk": (edit(SOURCES_ARRAY, chunks=[1, 8, 1, 2**40]), "sources with "),
    "objects": (edit(SOURCES_ARRAY, dtype="|O", filters=[{"id": "pickle"}]), "no readable Zarr"),
    "pickled": (edit(SOURCES_ARRAY, filters=[{"id": "pickle"}]), "no readable Zarr store"),
    "no codec": (edit(SOURCES_ARRAY, compressor={"id": "none such"}), "no readable Zarr store"),
    "no dims": (edit("posterior/sources/.zattrs", _ARRAY_DIMENSIONS=3), "no readable Zarr store"),
    "deep": (lambda p: (p / SOURCES_ARRAY).write_text("[" * 10**5), "no readable Zarr store"),
    "no metadata": (lambda p: (p / SOURCES_ARRAY).unlink(), "none of posterior/sources"),
    "attributes": (lambda p: (p / ".zattrs").write_text("[]"), "no readable Zarr store"),
    "an attribute": (edit(".zattrs", seed=[1]), "no readable Zarr store"),
    "a library": (edit(".zattrs", inference_library="pymc"), "got a trace of 'pymc'"),
    "no group": (lambda p: shutil.rmtree(p / "observed_data"), "none of observed_data/mixture"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_store_that_lies(tmp_path: Path, lie: str) -> None:
    path = finished(tmp_path / "a.zarr")
    change, words = LIES[lie]
    change(path)
    with pytest.raises(ValueError, match=rf"a\.zarr: .*{words}") as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)


def test_chunks_of_zeros_are_not_missing(tmp_path: Path) -> None:
    silent = {"sources": np.zeros((1, 1, 2, 80)), "lp": np.zeros((1, 1))}
    silent |= {"log_prior": np.zeros((1, 1, 2)), "stats": {}, "warmup_stats": {}}
    store = TraceStore(tmp_path / "a.zarr", 1)
    store.add(trace(**silent), 0)
    store.finish(trace(**silent))
    xr.testing.assert_identical(load_trace(store.path).load(), trace(**silent))


def test_what_is_not_of_a_trace_is_not_read(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.zarr")
    shutil.copytree(path / "posterior" / "time", path / "posterior" / "zz")
    edit("posterior/zz/.zattrs", _ARRAY_DIMENSIONS=["zz"])(path)
    edit("posterior/zz/.zarray", shape=[2**40])(path)
    shutil.copytree(path / "posterior", path / "posterior" / "loop")
    xr.testing.assert_identical(load_trace(path).load(), trace())


def test_a_full_disk_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = write(TraceStore(tmp_path / "a.zarr", DRAWS), 0, 8)
    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    for action in (lambda: write(store, 16), lambda: store.finish(trace(DRAWS - 1))):
        message = r"a\.zarr: could not be written \(No space left on device\)"
        with pytest.raises(OSError, match=message):
            action()
    with pytest.raises(ValueError, match="got a trace that is not finished"):
        load_trace(store.path)


def test_only_the_draws_grow(tmp_path: Path) -> None:
    write(TraceStore(tmp_path / "a.zarr", DRAWS), 0)
    assert {path.name for path in (tmp_path / "a.zarr").iterdir() if path.is_dir()} == set(
        DRAWN
    ) & set(trace().children)


def test_imports_without_torch() -> None:
    code = "import sys, pyro_sep.trace.zarr_store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_data_of_others_are_not_replaced(tmp_path: Path) -> None:
    store = tmp_path / "photos.zarr"
    zarr.open_group(store, mode="w", zarr_format=2).create_array("album", shape=(3,), dtype="f4")
    before = sorted(store.rglob("*"))
    with pytest.raises(
        ValueError, match=r"photos\.zarr, which is there and is no store of a trace"
    ):
        TraceStore(store, 3)
    assert sorted(store.rglob("*")) == before
