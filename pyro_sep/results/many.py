"""Separates a collection of recordings, in this process or by the workers of a Dask cluster.

The unit of work is a recording, with all of its chains: they share one stream of random numbers and
one evaluation of the networks, so a recording has the same draws wherever it is separated.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from pyro_sep.audio.io import Recording
from pyro_sep.checks.arguments import whole
from pyro_sep.checks.errors import one_line
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.mixing.known import NOISE_SCALE
from pyro_sep.mixing.latent import Gains, Infer
from pyro_sep.models.arithmetic import CPU
from pyro_sep.priors.base import Estimate, Priors, device_of, sample_rate_of
from pyro_sep.progress import Progress
from pyro_sep.results.plan import Job, Outcome, Plan, failure
from pyro_sep.results.sections import jobs_of, with_tracks
from pyro_sep.results.stems import StemFiles
from pyro_sep.results.writer import receive_results
from pyro_sep.separation.api import SEEDS
from pyro_sep.separation.inputs import FilePath, check_separable
from pyro_sep.separation.presets import Constraint, Preset, resolve_settings
from pyro_sep.storage.files import TEMPORARY
from pyro_sep.workers import spread

if TYPE_CHECKING:
    from distributed import Client


def separate_many(
    recordings: Sequence[FilePath],
    priors: Priors,
    out: FilePath,
    *,
    client: "Client | None" = None,
    device: str | None = None,
    files: StemFiles | None = None,
    report: bool = False,
    force: bool = False,
    progress: bool = False,
    seed: int = 0,
    gains: Gains | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: Constraint | None = None,
    presence: Infer | None = None,
    estimate: Estimate | None = None,
    preset: Preset | None = None,
    settings: Annealing | None = None,
    **fields: float | None,
) -> list[Outcome]:
    """Separate audio files of any length, each into a folder of results, ``OUT/TRACK``.

    Every recording is separated as :func:`pyro_sep.separate` does it with these options, and has
    the same draws, whatever the number of workers. One that fails does not stop the others. The
    same call again skips what is finished and continues what was cut off. Recordings longer than
    two minutes are separated in sections, in bounded memory (:mod:`pyro_sep.results.sections`).

    Args:
        recordings: audio files of any rate and channels.
        priors: of the sources, by name. Each worker gets them once.
        out: parent of the folders of results.
        client: a ``distributed.Client`` whose workers have one thread each; this process does the
            work where None. Where the workers see these files and ``out``, they read and write
            there themselves, and what a worker that died had begun goes on from its checkpoint.
            Otherwise audio and results are sent.
        device: where the priors compute, on each worker; where they are if None.
        files: which stems; a WAV per source where None.
        report: also write ``report.html``.
        force: separate again what is finished.
        progress: show one bar over all recordings.
        seed: of all randomness of each recording.
        gains: as of :func:`pyro_sep.separate`, and so are the options after it.
        noise_scale: likewise.
        constraint: likewise.
        presence: likewise.
        estimate: likewise.
        preset: likewise.
        settings: likewise.
        fields: of :class:`~pyro_sep.inference.Annealing`, likewise.

    Returns:
        What came of each recording, in their order.

    Raises:
        ValueError: bad priors or settings; workers of several threads.
        OSError: the scheduler went away; what is finished stays.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from pyro_sep import load_priors, separate_many
    >>> from pyro_sep.audio import save_audio
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> least = {"levels": 6, "candidates": 1, "replicas": 0, "cooling": 1, "draws": 4}
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", 0.9 * (torch.arange(256) / 8).sin(), 16_000)
    ...     names = [f"{folder}/a.wav", f"{folder}/none.wav"]
    ...     done, failed = separate_many(names, sine, f"{folder}/out", **least)
    >>> done.written
    ('sine.wav', 'trace.nc', 'separation.png', 'summary.json')
    >>> failed.error.endswith("no such file; check the path")
    True
    """
    check_separable(priors)
    chosen = {
        **{"gains": gains, "noise_scale": noise_scale, "constraint": constraint},
        **{"presence": presence, "estimate": estimate, "preset": preset, "settings": settings},
        **fields,
    }
    if noise_scale == NOISE_SCALE:  # what is not said is not a part of a run's identity
        del chosen["noise_scale"]
    rate = sample_rate_of(priors)
    resolve_settings(priors, rate, estimate, preset, settings, **fields)
    plan = Plan(
        priors=priors,
        files=files or StemFiles(),
        channel=None,
        initial=None,
        options={name: value for name, value in chosen.items() if value is not None},
        seed=whole("seed", seed, SEEDS),
        device=device_of(priors) or CPU,
        force=force,
        page=report,
    )
    found: dict[Path, Outcome] = {}
    paths = [Path(path) for path in recordings]

    @contextmanager
    def attempt(path: Path) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            found[path] = Outcome(path, Path(out), error=one_line(error, path))

    jobs = jobs_of(plan.folders(paths, Path(out), attempt), 0.0, None, attempt)
    each = separate_each(plan, jobs, client, device, progress)
    found |= {outcome.path: outcome for outcome in each}  # of a long one the last: of all of it
    return [found[path] for path in paths]


def separate_each(
    plan: Plan,
    jobs: Sequence[Job],
    client: "Client | None",
    device: str | None,
    progress: bool,
) -> Iterator[Outcome]:
    """What came of each job, as it is done, and of a long recording once all its sections are.

    The other arguments are those of :func:`separate_many`.

    Raises:
        ValueError: workers of several threads.
        OSError: the scheduler went away.
    """
    found: Iterator[Outcome]
    if client is None:
        here = plan if device is None else plan.on(torch.device(device))
        found = map(here.attempt, jobs)
    else:
        found = _by_workers(plan, jobs, client, device)
    with Progress(progress, max(1, len(jobs))) as shown:
        yield from with_tracks(_counted(found, len(jobs), client, shown), jobs)
        shown.finish()


def _counted(
    outcomes: Iterator[Outcome], total: int, client: "Client | None", shown: Progress
) -> Iterator[Outcome]:
    """The outcomes; how many there are is shown."""
    failed = 0
    for count, outcome in enumerate(outcomes, start=1):
        failed += outcome.failed
        workers = 1 if client is None else len(client.nthreads())
        running = min(workers, total - count)
        shown.note(f"{count - failed} finished, {running} running, {failed} failed")
        shown.advance(1)
        yield outcome


def _by_workers(
    plan: Plan, jobs: Sequence[Job], client: "Client", device: str | None
) -> Iterator[Outcome]:
    """The outcomes of a cluster, as they are ready."""
    shared = _see_same_files(client, jobs)
    sent: list[Job] = []
    early: list[Outcome] = []  # of what needs no worker

    def calls() -> Iterator[tuple[Job, Recording | None]]:
        for job in jobs:
            recording = None
            if not (shared and job.path.is_file()):  # a pipe is read here
                try:
                    recording = plan.load(job)
                    if not shared and plan.is_done(job, recording):
                        early.append(Outcome(job.path, job.folder, notes=recording.notes))
                        continue
                except Exception as error:
                    early.append(failure(job, error))
                    continue
            sent.append(job)
            path, folder = job.path.absolute(), job.folder.absolute()
            yield replace(job, path=path, folder=folder), recording

    for number, result in spread(client, _Attempt(plan, device, shared), calls()):
        yield from early
        early.clear()
        yield _received(sent[number], result)
    yield from early


def _received(job: Job, result: "tuple[Outcome, dict[str, bytes]] | BaseException") -> Outcome:
    """The outcome of a job that a worker did, whose results are written if it sent them."""
    if isinstance(result, BaseException):
        return failure(job, result)
    outcome, files = result
    try:
        if files:
            receive_results(files, job.folder)
    except OSError as error:
        return failure(job, error)
    return replace(outcome, path=job.path, folder=job.folder)


@dataclass(frozen=True)
class _Attempt:
    """Separates a recording on a worker; gives the outcome, and the files that have to be sent."""

    plan: Plan
    device: str | None
    shared: bool

    @cached_property
    def moved(self) -> Plan:
        """The plan with its priors on the worker's device."""
        return self.plan if self.device is None else self.plan.on(torch.device(self.device))

    def __call__(self, job: Job, recording: Recording | None) -> tuple[Outcome, dict[str, bytes]]:
        gc.collect()  # figures and traces of the one before, which are cycles
        if self.shared:
            return self.moved.attempt(job, recording), {}
        with TemporaryDirectory() as parent:
            there = Path(parent) / job.folder.relative_to(job.track.parent)
            outcome = self.moved.attempt(replace(job, folder=there), recording)
            files = [] if outcome.failed else [file for file in there.rglob("*") if file.is_file()]
            return outcome, {f.relative_to(there).as_posix(): f.read_bytes() for f in files}


def _see_same_files(client: "Client", jobs: Sequence[Job]) -> bool:
    """Whether all workers see the recordings and the folders of results, by one of each."""
    if not jobs:
        return True
    path, folder = jobs[0].path.absolute(), jobs[0].folder.absolute()
    there = next(parent for parent in folder.parents if parent.is_dir())
    with NamedTemporaryFile(dir=there, prefix=TEMPORARY) as token:
        seen = [Path(token.name), *([path] if path.is_file() else [])]
        sizes = [(file, file.stat().st_size) for file in seen]
        return all(client.run(_sees, sizes).values())


def _sees(sizes: Sequence[tuple[Path, int]]) -> bool:
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes)
