"""`pyro-sep separate` of many recordings at once, by the workers of a Dask cluster."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_sep.checks.names import printable
from pyro_sep.cli.outcomes import confirm_long, say_outcome
from pyro_sep.cli.program import Batch, say
from pyro_sep.progress import duration

if TYPE_CHECKING:
    from pyro_sep.results.plan import Job, Plan

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Separate so many recordings at once, in a process of one core each."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|FILE", help="Separate by the workers of a Dask cluster that is running."
    ),
]


def separate_by_workers(
    plan: "Plan",
    jobs: "Sequence[Job]",
    batch: Batch,
    workers: int | None,
    scheduler: str | None,
    device: str,
) -> None:
    """Separate recordings side by side, and say what came of each as it is done.

    Raises:
        ValueError: a number of workers and a scheduler; no Dask.
        OSError: no scheduler or no workers answer, or not any more.
    """
    from pyro_sep.results.many import separate_each
    from pyro_sep.workers import connected, local_cluster

    if workers is not None and scheduler is not None:
        raise ValueError(
            "workers: got --scheduler too, expected one of the two; a cluster has its own workers"
        )
    whole = predicted(plan, jobs)
    with local_cluster(workers or 1) if scheduler is None else connected(scheduler) as client:
        count = max(1, len(client.nthreads()))
        say(f"{count} workers; progress also at {client.dashboard_link}", err=True)
        if whole is not None:
            say(f"all of it: about {duration(whole / count)}", err=True)
            confirm_long(whole / count)
        try:
            for outcome in separate_each(plan, jobs, client, device, progress=True):
                for note in outcome.notes:
                    say(f"{printable(outcome.path)}: {note}", err=True)
                if outcome.error:
                    batch.fail(outcome.error)
                else:
                    say_outcome(outcome)
        except KeyboardInterrupt:
            print("\nthe same command goes on: what is finished stays", file=sys.stderr)
            raise
    if batch.failed:
        say(f"{batch.failed} failed; the same command tries them again", err=True)


def predicted(plan: "Plan", jobs: "Sequence[Job]") -> float | None:
    """Seconds of one core for all that is not finished, by the cost of the first of it.

    Others are taken to cost as much as their files are larger, or the same if they are excerpts or
    sections. None where no recording can be read.
    """
    from pyro_sep.data.tracks import SUMMARY

    left = [job for job in jobs if not (job.folder / SUMMARY).exists() and job.path.is_file()]
    sizes = [job.path.stat().st_size if job.duration is None else 0 for job in left]
    for job, size in zip(left, sizes, strict=True):
        try:
            cost = plan.cost(job, plan.load(job))
        except (ValueError, OSError):  # said when its turn comes
            continue
        if cost is not None:
            return cost.seconds * (sum(sizes) / size if size else len(left))
    return None
