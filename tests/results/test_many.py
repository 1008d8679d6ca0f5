"""Many recordings: as one alone, whatever happens to a worker, a file or the scheduler."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import torch
from matplotlib.figure import Figure

from pyro_sep.audio.io import save_audio
from pyro_sep.data.tracks import SUMMARY
from pyro_sep.priors.base import Prior
from pyro_sep.priors.io import load_priors
from pyro_sep.results import many, separate_many
from pyro_sep.trace.dataset import TRACE, load_trace
from pyro_sep.workers import LostError, connected, local_cluster

pytest.importorskip("distributed")

BUDGET = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "cooling": 1, "draws": 3}
COUNT, BAD = 10, 4  # recordings, and which of them is no audio
TIME = 256
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    return {"sine": load_priors("toy/oracle")["sine"]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    found = [folder / f"{i}.wav" for i in range(COUNT)]
    for i, path in enumerate(found):
        save_audio(path, 0.5 * (torch.arange(TIME) / (4 + i)).sin(), 16_000)
    found[BAD].write_bytes(b"RIFF and no more")
    return found


@pytest.fixture(scope="module")
def alone(paths: list[Path], priors: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results without Dask."""
    out = tmp_path_factory.mktemp("alone")
    found = separate_many(paths, priors, out, **BUDGET)
    assert [outcome.failed for outcome in found] == [i == BAD for i in range(COUNT)]
    return out


def plain_pictures() -> None:
    """Draw pictures without a layout, as the tests do in their own process."""
    Figure.get_layout_engine = lambda self: None  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with local_cluster(2) as client:
        client.run(plain_pictures)
        yield client


def kill_one(pids: dict[str, int], out: Path, killed: list[str]) -> None:
    """Kill a worker once a separation has a checkpoint."""
    while not [*out.glob("*/checkpoint.pt")]:
        time.sleep(0.005)
    killed.append(next(iter(pids)))
    os.kill(pids[killed[0]], signal.SIGKILL)


def same_draws(out: Path, alone: Path, numbers: list[int]) -> bool:
    """Whether the traces of these recordings are equal; HDF5 may order one in several ways."""
    places = [f"{number}/{TRACE}" for number in numbers]
    return all(load_trace(out / p).identical(load_trace(alone / p)) for p in places)


def test_a_killed_worker_and_a_bad_file_change_nothing_else(
    client: Any, paths: list[Path], priors: Any, alone: Path, tmp_path: Path
) -> None:
    killed: list[str] = []
    pids = client.run(os.getpid)
    killer = threading.Thread(target=kill_one, args=(pids, tmp_path, killed))
    killer.start()
    found = separate_many(paths, priors, tmp_path, client=client, **BUDGET)
    killer.join()
    assert killed[0] not in client.run(os.getpid)  # it died, and another took its place or will
    assert [outcome.path for outcome in found] == paths
    assert found[BAD].error.startswith(f"{paths[BAD]}: got no readable audio")
    assert "\n" not in found[BAD].error
    good = [i for i in range(COUNT) if i != BAD]
    assert not any(found[i].failed for i in good)
    assert same_draws(tmp_path, alone, good)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(i) for i in good]
    assert not [*tmp_path.glob("*/checkpoint.pt")]
    again = separate_many(paths, priors, tmp_path, client=client, **BUDGET)
    assert [outcome.written for outcome in again] == [()] * COUNT
    assert [outcome.failed for outcome in again] == [i == BAD for i in range(COUNT)]


def test_audio_and_results_are_sent_where_files_are_not_shared(
    client: Any,
    paths: list[Path],
    priors: Any,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(many, "_see_same_files", lambda *_: False)
    use = [paths[0], paths[BAD]]
    done, bad = separate_many(use, priors, tmp_path, client=client, **BUDGET)
    assert bad.error.startswith(f"{paths[BAD]}: got no readable audio")
    assert (done.path, done.folder, done.error) == (use[0], tmp_path / "0", "")
    assert sorted(os.listdir(tmp_path / "0")) == sorted(done.written)
    assert same_draws(tmp_path, alone, [0])
    assert separate_many(use, priors, tmp_path, client=client, **BUDGET)[0].written == ()


def test_workers_of_several_threads_are_refused(
    client: Any, paths: list[Path], priors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(client), "nthreads", lambda self: {"tcp://a": 8})
    with pytest.raises(ValueError, match="got a worker of 8 threads at tcp://a, expected one"):
        separate_many(paths, priors, tmp_path, client=client, **BUDGET)


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, arguments)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_when_the_scheduler_dies_what_is_finished_stays(
    paths: list[Path], priors: Any, alone: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "scheduler.json", tmp_path / "out"
    use = [path for i, path in enumerate(paths) if i != BAD]
    place = ("--scheduler-file", file)
    scheduler = start("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", *place)
    while not file.exists():
        time.sleep(0.05)
    worker = start("worker", *place, "--nthreads", "1", "--no-nanny", "--no-dashboard")

    def kill() -> None:
        while not [*out.glob(f"*/{SUMMARY}")]:
            time.sleep(0.01)
        scheduler.kill()

    killer = threading.Thread(target=kill)
    try:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            connected(str(file)) as client,
        ):
            killer.start()
            with pytest.raises(LostError, match="what is finished stays: start the same"):
                separate_many(use, priors, out, client=client, **BUDGET)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    killer.join()
    finished = {path: path.stat().st_mtime_ns for path in out.glob(f"*/{SUMMARY}")}
    assert 0 < len(finished) < len(use)
    assert not any(outcome.failed for outcome in separate_many(use, priors, out, **BUDGET))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert same_draws(out, alone, [i for i in range(COUNT) if i != BAD])
