"""The command ``pyro-sep separate``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyro_sep.checks.names import printable
from pyro_sep.cli.many import Scheduler, Workers, separate_by_workers
from pyro_sep.cli.options import Device, listed, mixing_options, torch_device
from pyro_sep.cli.outcomes import BEFORE, confirm_long, say_outcome
from pyro_sep.cli.program import Batch, say
from pyro_sep.progress import resumable

if TYPE_CHECKING:
    from pyro_sep.audio.io import Recording
    from pyro_sep.results.plan import Job, Outcome, Plan
    from pyro_sep.separation.cost import Cost


def separate(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Audio of any rate and channels; the mixture of a .stem.mp4."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; each file's results go to its OUT/TRACK.")],
    priors: Annotated[
        str | None,
        typer.Option(
            help="Required: a set that ships, as music-4k, or a folder; several joined by +."
        ),
    ] = None,
    stems: Annotated[
        str | None, typer.Option(help="Sources of the set that are in the mixture, by commas.")
    ] = None,
    gains: Annotated[
        str | None,
        typer.Option(help="One per source, by commas, or infer; by default as the set says."),
    ] = None,
    noise_scale: Annotated[
        str | None, typer.Option(help="Std of the mixture's own noise, a number or infer.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Start of an excerpt, in seconds.")] = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(min=0, help="Length of an excerpt, in seconds; to the end by default."),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="Channel 1, 2, ..., or side, half of 1 less 2; by default their mean."),
    ] = None,
    wide: Annotated[
        str | None,
        typer.Option(
            help="Sources that play another take on each side, by commas, as double-tracked "
            "guitars do; the others are in the centre, and both channels are separated at once."
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Folder with SOURCE.wav or TRACK/SOURCE.wav of another separator; chains begin "
            "from these stems, and nothing is searched."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    preset: Annotated[
        Literal["quick", "standard", "thorough"] | None,
        typer.Option(
            help="How much is computed; by default quick, or standard for tones and at 4 kHz."
        ),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(min=1, help="Independent chains; else the preset's.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, help="Candidates of a chain's search; else the preset's."),
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Noise levels; else the preset's.")] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws per chain, all in trace.nc; else the preset's."),
    ] = None,
    presence: Annotated[
        Literal["infer"] | None,
        typer.Option(help="infer: sources may be absent; the probability of each is printed."),
    ] = None,
    estimate: Annotated[
        Literal["mode", "mean"] | None,
        typer.Option(help="Mean of the best explanation, or of all draws; by default the set's."),
    ] = None,
    page: Annotated[bool, typer.Option("--report", help="Also report.html, to listen.")] = False,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also residual.wav: what the stems leave out.")
    ] = False,
    write_draws: Annotated[
        int, typer.Option(min=0, help="Number of draws of each stem as audio, draws/STEM_01.wav.")
    ] = 0,
    native: Annotated[
        bool,
        typer.Option("--native", help="Stems at the priors' rate, mono without --wide: as drawn."),
    ] = False,
    audio_format: Annotated[
        Literal["wav", "flac"], typer.Option("--format", help="Format of the stems.")
    ] = "wav",
    segment: Annotated[
        float | None,
        typer.Option(help="Seconds evaluated at once: less takes less memory, to the same result."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Separate again what is finished already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how long it takes, and write nothing.")
    ] = False,
    device: Device = "cpu",
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Separate recordings: OUT/TRACK/STEM.wav, trace.nc, separation.png, summary.json.

    Stems have the recording's rate and channels, and add up to it with the residual. A run that was
    cut off goes on from its checkpoint when it is started again; finished recordings are skipped.
    Only files of a former run are overwritten. A file that fails does not stop the others.
    """
    from pyro_sep.priors.base import sample_rate_of
    from pyro_sep.priors.io import choose_priors, load_priors, shipped_sets
    from pyro_sep.priors.stereo import in_stereo
    from pyro_sep.results.plan import Plan
    from pyro_sep.results.sections import jobs_of
    from pyro_sep.results.stems import StemFiles
    from pyro_sep.separation.presets import RESOLVED, resolve_settings

    settings: dict[str, Any] = {
        "preset": preset,
        "estimate": estimate,
        "presence": presence,
        "draws": draws,
    }
    settings |= {"chains": chains, "candidates": candidates, "levels": levels}
    options = {name: value for name, value in settings.items() if value is not None}
    options |= mixing_options(gains, noise_scale)
    spread = workers is not None or scheduler is not None
    place = torch_device("cpu" if spread else device)  # of workers each on its own
    if priors is None:
        raise ValueError(
            f"priors: got none, expected a shipped set ({', '.join(shipped_sets())}) or a folder; "
            "give --priors music-4k for bass, drums, vocals and other"
        )
    loaded = load_priors(priors, place)
    chosen = loaded if stems is None else choose_priors(loaded, stems)
    rate = sample_rate_of(chosen)
    resolved = {name: options[name] for name in RESOLVED if name in options}
    drawn = resolve_settings(chosen, rate, **resolved).draws
    if write_draws > drawn:
        raise ValueError(
            f"write-draws: got {write_draws}, expected at most {drawn}, which are drawn per chain; "
            "give more --draws"
        )
    if segment is not None:
        chosen = {name: prior.in_segments(segment) for name, prior in chosen.items()}
    if wide is not None:
        chosen = in_stereo(chosen, listed("wide", wide))
    plan = Plan(
        priors=chosen,
        files=StemFiles(audio_format, native, residual, write_draws),
        channel=channel,
        initial=initial,
        options=options,
        seed=seed,
        device=place,
        force=force,
        page=page,
    )
    batch = Batch()
    folders = plan.folders(recordings, out, batch.file)
    jobs = jobs_of(folders, start, duration, batch.file)
    if spread and not dry_run:
        separate_by_workers(plan, jobs, batch, workers, scheduler, device)
    else:
        separate_here(plan, jobs, batch, dry_run)
    batch.end()


def separate_here(plan: "Plan", jobs: "Sequence[Job]", batch: Batch, dry_run: bool) -> None:
    """Separate recordings one after another, once the cost of all is known and said."""
    from pyro_sep.models.train import CHECKPOINT
    from pyro_sep.results.sections import with_tracks

    costs: list[tuple[Job, Cost | None, Recording | None]] = []
    for job in jobs:
        with batch.file(job.path), resumable(job.folder / CHECKPOINT):
            recording = plan.load(job)
            cost = plan.cost(job, recording, previewed=True)
            once = len(jobs) == 1 or not job.path.is_file()  # a pipe is read once
            costs.append((job, cost, recording if once else None))
            if dry_run:
                say(f"{job_name(job)}: {BEFORE if cost is None else cost}")
    if dry_run:
        return
    confirm_long(sum(cost.seconds for _, cost, _ in costs if cost is not None))

    def outcomes() -> "Iterator[Outcome]":
        for job, cost, kept in costs:
            with batch.file(job.path), resumable(job.folder / CHECKPOINT):
                if cost is not None:
                    say(f"{job_name(job)}: {cost}")
                recording = kept or plan.load(job)
                for note in recording.notes:
                    say(f"{job_name(job)}: {note}", err=True)
                if cost is not None and (expected := plan.preview(job, recording)):
                    say(f"{job_name(job)}: {expected}", err=True)
                yield plan.run(job, recording, progress=True)

    for outcome in with_tracks(outcomes(), jobs):
        if outcome.error:
            batch.fail(outcome.error)
        else:
            say_outcome(outcome)


def job_name(job: "Job") -> str:
    """The file, and the section of it."""
    part = "" if job.section is None else f", section {job.section}"
    return f"{printable(job.path)}{part}"
