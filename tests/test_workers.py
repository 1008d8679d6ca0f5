"""Clusters that are not there, and workers that do not suit."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pyro_sep import workers
from pyro_sep.workers import connected, local_cluster, spread, started, without_cluster


@pytest.mark.parametrize("use", [lambda: local_cluster(2), lambda: connected("tcp://a:1")])
def test_the_extra_is_named(use: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"got no distributed .* pip install 'pyro-sep\[dask\]'$"):
        use().__enter__()


def test_the_settings_of_workers_are_dask_s() -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    assert all(dask.config.get(name, None) is not None for name in workers.OF_WORKERS)


def test_a_number_of_workers() -> None:
    with pytest.raises(ValueError, match=r"^workers: got 0, expected at least 1$"):
        local_cluster(0).__enter__()


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3), (9, 3)])
def test_a_start_that_takes_too_long_is_tried_again(failures: int, starts: int) -> None:
    tried: list[int] = []

    def start() -> str:
        tried.append(len(tried))
        assert len(tried) > failures
        return "started"

    if failures < starts:
        assert started(start) == "started"
    else:
        with pytest.raises(AssertionError):
            started(start)
    assert len(tried) == starts


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1)
    with pytest.raises(OSError, match=r"^scheduler: got no answer from 'tcp:"):
        connected("tcp://127.0.0.1:1").__enter__()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got no answer from '\S*other.json', exp"):
        connected(str(tmp_path / "other.json")).__enter__()


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "WORKER_SECONDS", 0.1)
    options = {"n_workers": 0, "processes": False, "dashboard_address": None}
    with (
        started(partial(distributed.LocalCluster, **options)) as cluster,
        pytest.raises(OSError, match=r"got no worker within 0.1 s, expected at least one; start"),
    ):
        connected(cluster.scheduler_address).__enter__()


def test_workers_have_one_thread_each() -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with (
        started(partial(distributed.Client, **options, threads_per_worker=2)) as client,
        pytest.raises(ValueError, match="got a worker of 2 threads at inproc"),
    ):
        list(spread(client, abs, [(1,)]))


def test_every_job_is_called_once_and_errors_are_results() -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with started(partial(distributed.Client, **options, threads_per_worker=1)) as client:
        found = dict(spread(client, int, ((text,) for text in ("1", "2", "x", *"3456789"))))
        assert isinstance(found.pop(2), ValueError)
        assert found == {i: i + 1 if i < 2 else i for i in (0, 1, *range(3, 10))}
        assert not client.futures


def test_files_need_no_cluster() -> None:
    dask = pytest.importorskip("dask")
    before = dask.config.get("scheduler", None)
    with without_cluster():
        assert dask.config.get("scheduler") == "synchronous"
    assert dask.config.get("scheduler", None) == before
