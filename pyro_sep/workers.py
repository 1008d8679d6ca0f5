"""Work that is spread over processes and machines by Dask (https://distributed.dask.org).

A worker is a process of one thread: what it computes does not depend on how many there are.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from pyro_sep.checks.optional import import_optional

if TYPE_CHECKING:
    from distributed import Client

EXTRA = "dask"
AHEAD = 2  # jobs per worker that are handed out: one runs, one waits
CONNECT_SECONDS = 20
OF_WORKERS = {  # in place of Dask's: its MALLOC_TRIM_THRESHOLD_ makes torch ask for memory anew
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1
    ),
    "distributed.worker.profile.enabled": False,
}
STARTS = 3
WORKER_SECONDS = 60
Result = TypeVar("Result")


class LostError(OSError):
    """The scheduler went away, or with it what it was told to compute."""


@contextmanager
def local_cluster(count: int) -> Iterator["Client"]:
    """A client of so many new processes of one thread each on this machine, which end with it.

    Raises:
        ValueError: fewer than one; no Dask.
    """
    if count < 1:
        raise ValueError(f"workers: got {count}, expected at least 1")
    distributed = import_optional("distributed", "workers", EXTRA)
    options = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    options |= {"silence_logs": logging.CRITICAL}
    options["memory_limit"] = 0  # a share each would end a long recording while others need little
    with (
        import_optional("dask", "workers", EXTRA).config.set(OF_WORKERS),
        started(partial(distributed.LocalCluster, **options)) as cluster,
        started(partial(distributed.Client, cluster)) as client,
    ):
        yield client


def started(start: Callable[[], Result]) -> Result:
    """What Dask starts, tried again where its thread was not there within ten seconds.

    Dask waits no longer, and then fails by an assertion; a machine may be that busy.
    """
    for _ in range(STARTS - 1):
        with suppress(AssertionError):
            return start()
    return start()


@contextmanager
def connected(scheduler: str) -> Iterator["Client"]:
    """A client of a cluster that is there.

    Args:
        scheduler: its address, such as ``tcp://HOST:8786``, or the path of its scheduler file.

    Raises:
        ValueError: no Dask; what is no address.
        OSError: nobody answers, or there are no workers.
    """
    distributed = import_optional("distributed", "scheduler", EXTRA)
    known = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = distributed.Client(**known, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError, LookupError, AssertionError) as error:  # Dask's own
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"scheduler: got no answer from {scheduler!r}, expected a Dask scheduler's address or "
            "file; start one with `dask scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)  # which may be starting
        except TimeoutError:
            raise OSError(
                f"scheduler: got no worker within {WORKER_SECONDS} s, expected at least one; start "
                "some with `dask worker ADDRESS --nthreads 1`"
            ) from None
        yield client


def spread(
    client: "Client", function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, Result | BaseException]]:
    """The results of ``function(*job)`` with the numbers of their jobs, as they are ready.

    The function, with all that it holds, is sent to each worker once. Jobs are taken from their
    iterable as workers need them. A job whose worker dies is given to another one.

    Args:
        client: of workers of one thread.
        function: whose modules the workers can import.
        jobs: arguments of each call.

    Returns:
        For each job its number and the result, or the exception that it raised.

    Raises:
        ValueError: workers of more threads than one.
        LostError: the scheduler went away.
    """
    check_threads(client)
    distributed = import_optional("distributed", "client", EXTRA)
    lost = distributed.comm.CommClosedError
    name = f"pyro_sep-{token_hex(8)}"
    numbered, address = enumerate(jobs), client.scheduler_info()["address"]
    numbers: dict[Any, int] = {}
    ready = distributed.as_completed()

    def hand_out() -> None:
        room = max(1, AHEAD * len(client.nthreads())) - len(numbers)
        for number, job in islice(numbered, max(0, room)):
            future = client.submit(partial(_call, name), *job, key=f"{name}-{number}")
            numbers[future] = number
            ready.add(future)

    try:
        client.register_plugin(_held(distributed.WorkerPlugin, function), name)
        hand_out()
        while numbers:
            future = next(ready)
            if future.cancelled() or client.status != "running":
                raise lost
            error = future.exception()
            if isinstance(error, distributed.scheduler.KilledWorker):
                error = OSError(
                    f"got {error.allowed_failures + 1} workers that died of it, expected one that "
                    "has the memory; give fewer chains, or a smaller --segment"
                )
            yield numbers.pop(future), future.result() if error is None else error
            future.release()
            hand_out()
    except (lost, TimeoutError):
        raise LostError(
            f"scheduler: got no more answer from {address}, expected it; what is finished stays: "
            "start the same command again"
        ) from None
    finally:
        if client.status == "running":
            client.cancel(list(numbers))
            client.unregister_worker_plugin(name)


@contextmanager
def without_cluster() -> Iterator[None]:
    """Write files without a lock of the cluster, which xarray takes where there is a client.

    It fails for what is written to memory, and no other process writes there.
    """
    dask = sys.modules.get("dask")
    with nullcontext() if dask is None else dask.config.set(scheduler="synchronous"):
        yield


def check_threads(client: "Client") -> None:
    """Raise ValueError where a worker has several threads, whose state of torch is one."""
    for address, threads in client.nthreads().items():
        if threads > 1:
            raise ValueError(
                f"scheduler: got a worker of {threads} threads at {address}, expected one thread "
                "each; start them with `dask worker ADDRESS --nthreads 1 --nworkers NUMBER`"
            )


def _held(base: Any, function: Callable[..., Any]) -> Any:
    """A plugin by which each worker holds a function."""

    class Held(base):
        def __init__(self) -> None:
            self.function = function

    return Held()


def _call(name: str, *job: Any) -> Any:
    from distributed import get_worker

    held: Any = get_worker().plugins[name]
    return held.function(*job)
