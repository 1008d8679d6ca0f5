"""How recordings are separated, and what came of each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from pyro_sep.audio.io import Recording, load_audio
from pyro_sep.checks.errors import one_line
from pyro_sep.checks.names import printable
from pyro_sep.data.stems import load_stems
from pyro_sep.data.tracks import MIXTURE, read_summary
from pyro_sep.diagnostics.initial import compare_initial, format_initial
from pyro_sep.diagnostics.score_intervals import expected_scores, format_scores
from pyro_sep.diagnostics.verdict import diagnose, format_verdict
from pyro_sep.priors.base import Priors, sample_rate_of
from pyro_sep.priors.stereo import channels_of
from pyro_sep.results.preview import excerpts, format_preview, preview
from pyro_sep.results.recordings import (
    check_disk,
    check_recording,
    describe_run,
    is_separated,
    result_names,
    separate_recording,
    track_folders,
)
from pyro_sep.results.stems import StemFiles
from pyro_sep.results.writer import REPORT, write_silence
from pyro_sep.separation.cost import Cost, estimate_cost
from pyro_sep.separation.inputs import SILENT
from pyro_sep.storage.files import check_output
from pyro_sep.trace.dataset import TRACE, load_trace
from pyro_sep.viz import report

SILENCE = "verdict: silence"


@dataclass(frozen=True)
class Job:
    """A recording that is separated at once, or a section of one.

    Attributes:
        path: of the recording.
        folder: of its results.
        start: in seconds.
        duration: in seconds; to the end where None.
        section: its number in a long recording, else None; see :mod:`pyro_sep.results.sections`.
    """

    path: Path
    folder: Path
    start: float = 0.0
    duration: float | None = None
    section: int | None = None

    @property
    def track(self) -> Path:
        """The folder of the whole recording."""
        return self.folder if self.section is None else self.folder.parents[1]


@dataclass(frozen=True)
class Outcome:
    """What came of one recording, or of a section of a long one.

    Attributes:
        path: of the recording.
        folder: of its results.
        written: names of the files and folders in it; none where all were there before.
        notes: what was done to the audio when it was read, a line each.
        presence: posterior probability of each source, where it was inferred.
        silent: for how many seconds a stem is written as silence, of those that are somewhere; None
            where nothing was separated.
        initial: where the draws went from initial stems, in words; empty where there were none.
        expected: SI-SDR of each stem to expect, in words; empty where it is not known.
        verdict: whether to trust the stems, in a line; empty where nothing was separated.
        error: why it failed, in a line; empty where it did not.

    >>> Outcome(Path("a.wav"), Path("out/a"), error="a.wav: no such file").failed
    True
    """

    path: Path
    folder: Path
    written: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    presence: Mapping[str, float] | None = None
    silent: Mapping[str, float] | None = None
    initial: str = ""
    expected: str = ""
    verdict: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether there are no results of it."""
        return bool(self.error)


@dataclass(frozen=True)
class Plan:
    """How recordings are separated: all but the files themselves.

    Attributes:
        priors: of the sources, by name.
        files: which stems are written.
        channel: that is separated; the mean of all where None.
        initial: folder of the stems to begin from, or of a folder TRACK with them.
        options: of :func:`~pyro_sep.separate` that decide the cost.
        seed: of all randomness of each recording.
        device: of the priors.
        force: separate again what is finished.
        page: write a report too.
    """

    priors: Priors
    files: StemFiles
    channel: str | None
    initial: Path | None
    options: Mapping[str, Any]
    seed: int
    device: torch.device
    force: bool
    page: bool

    def on(self, device: torch.device) -> Self:
        """The same with its priors on another device; those without networks have none."""
        moved = {
            name: prior.to(device) if hasattr(prior, "to") else prior
            for name, prior in self.priors.items()
        }
        return replace(self, priors=moved, device=device)

    def folders(
        self,
        paths: Sequence[Path],
        out: Path,
        attempt: Callable[[Path], AbstractContextManager[object]],
    ) -> dict[Path, Path]:
        """The folder of results of each file, see :func:`track_folders`."""
        names = result_names(self.priors, self.files) + [REPORT] * self.page
        return track_folders(paths, out, names, attempt)

    @property
    def stereo(self) -> bool:
        """Whether the priors are of two channels."""
        return channels_of(self.priors) > 1

    def load(self, job: Job) -> Recording:
        """The recording, or the section of it, at the priors' rate."""
        rate = sample_rate_of(self.priors)
        return load_audio(job.path, rate, job.start, job.duration, self.channel, self.stereo)

    def own_options(self, job: Job, recording: Recording) -> dict[str, Any]:
        """All options of :func:`~pyro_sep.separate` for a recording."""
        title = job.track.name if job.path.stem.lower() == MIXTURE else job.path.name
        attrs = {"mixture": printable(title), "notes": list(recording.notes)}
        attrs |= {} if self.channel is None else {"channel": str(self.channel)}
        options = {**self.options, "seed": self.seed + (job.section or 0), "attrs": attrs}
        if self.initial is not None:
            own = self.initial / job.track.name
            options["initial"] = load_stems(
                own if own.is_dir() else self.initial,
                self.priors,
                recording.sample_rate,
                recording.samples.shape[-1],
                job.start,
                job.duration,
                self.channel,
                self.stereo,
            )
        return options

    def is_done(self, job: Job, recording: Recording) -> bool:
        """Whether the recording was separated before in this way."""
        results = (recording, self.priors, job.folder, self.files, self.device)
        return not self.force and is_separated(*results, **self.own_options(job, recording))

    def cost(self, job: Job, recording: Recording, previewed: bool = False) -> Cost | None:
        """The cost of the separation; None where it is finished already, or silence.

        Args:
            job: the recording.
            recording: its audio.
            previewed: the cost of :meth:`preview` is part of it.

        Raises:
            ValueError: a recording that cannot be separated.
            OSError: too little space for the results.
        """
        if self.is_done(job, recording) or _is_silent(job, recording):
            return None
        check_recording(recording, self.files)
        options = self.own_options(job, recording)
        check_disk(recording, self.priors, job.folder, self.files, options)
        initial = options.get("initial")
        cost = estimate_cost(recording.samples, self.priors, initial=initial, **self.options)
        if not previewed or not self._has_preview(job):
            return cost
        first = sum(map(len, excerpts(recording)))
        return replace(cost, seconds=cost.seconds * (1 + first / recording.samples.shape[-1]))

    def preview(self, job: Job, recording: Recording) -> str:
        """What to expect of a long recording, in a line, see :mod:`pyro_sep.results.preview`.

        Empty of a short one, of later sections, with initial stems, of two channels, and where
        nothing is known.
        """
        if not self._has_preview(job) or _is_silent(job, recording):
            return ""
        found = preview(recording, self.priors, {**self.options, "seed": self.seed})
        return "" if found is None else format_preview(found)

    def _has_preview(self, job: Job) -> bool:
        return (job.section or 1) == 1 and self.initial is None and not self.stereo

    def run(self, job: Job, recording: Recording, progress: bool = False) -> Outcome:
        """Separate a recording, and write its results to its folder.

        Raises:
            ValueError: bad audio or settings.
            OSError: the folder cannot be written to, has too little space, or another run holds it.
        """
        folder, options = job.folder, self.own_options(job, recording)
        if _is_silent(job, recording):
            audio = (recording.original, recording.original_rate)
            if self.files.native:
                audio = (torch.atleast_2d(recording.samples), recording.sample_rate)
            run = describe_run(recording, self.priors, self.files, self.device, options)
            silent = write_silence(folder, self.priors, self.files, audio, run)
            return Outcome(job.path, folder, tuple(silent), recording.notes, verdict=SILENCE)
        result, written = separate_recording(
            recording,
            self.priors,
            folder,
            self.files,
            self.device,
            force=self.force,
            progress=progress,
            **options,
        )
        if self.page and not (result is None and (folder / REPORT).exists()):
            trace, page = folder / TRACE, folder / REPORT
            check_output(page, report.REPORT_MARK, [trace])
            original = (recording.original, recording.original_rate)
            report.write_report(load_trace(trace), page, recording=original)
            written = [*written, REPORT]
        outcome = Outcome(job.path, folder, tuple(written), recording.notes)
        if result is None:
            return outcome
        presence = None
        if result.presence is not None:
            presence = dict(zip(result.names, result.presence.tolist(), strict=True))
        moved, scores = compare_initial(result.trace), expected_scores(result.trace)
        return replace(
            outcome,
            presence=presence,
            silent=read_summary(folder)["silent_seconds"],
            initial="" if moved is None else format_initial(moved),
            expected="" if scores is None else format_scores(scores),
            verdict=format_verdict(diagnose(result.trace)),
        )

    def attempt(self, job: Job, recording: Recording | None = None) -> Outcome:
        """As :meth:`run`, of a recording that is read first where it is not given.

        An error is a part of the outcome: it does not end the work on other recordings.
        """
        try:
            return self.run(job, recording or self.load(job))
        except Exception as error:
            return failure(job, error)


def _is_silent(job: Job, recording: Recording) -> bool:
    """Whether it is a section in which nothing is heard, which has silent stems."""
    return job.section is not None and float(recording.samples.abs().max()) < SILENT


def failure(job: Job, error: BaseException) -> Outcome:
    """The outcome of a job that failed with an error."""
    return Outcome(job.path, job.folder, error=one_line(error, job.path))
