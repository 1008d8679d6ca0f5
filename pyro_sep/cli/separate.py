"""The command ``pyro-sep separate``."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyro_sep.checks.names import printable
from pyro_sep.cli.options import Device, mixing_options, torch_device
from pyro_sep.cli.program import Batch, say
from pyro_sep.cli.report import report as write_page
from pyro_sep.progress import duration as in_words
from pyro_sep.progress import resumable

if TYPE_CHECKING:
    import torch

    from pyro_sep.audio.io import Recording
    from pyro_sep.priors.base import Prior
    from pyro_sep.results.stems import StemFiles
    from pyro_sep.separation.cost import Cost

LONG = 3_600.0  # seconds; the command asks before it takes longer
BEFORE = "separated before with these settings; --force does it anew"


def separate(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Audio of any rate and channels; the mixture of a .stem.mp4."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; each file's results go to its OUT/TRACK.")],
    priors: Annotated[
        str | None, typer.Option(help="A set that ships, such as music or toy, or a folder.")
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
        typer.Option(help="Separate one channel, 1, 2, ..., or side, half of 1 less 2; else all."),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Folder with SOURCE.wav or TRACK/SOURCE.wav of another separator; chains begin "
            "from these stems, and nothing is searched."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    preset: Annotated[
        Literal["quick", "standard", "thorough"] | None,
        typer.Option(help="How much is computed; by default quick, for toy tones standard."),
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
        Literal["mean", "best"] | None,
        typer.Option(help="Mean of all draws, or of the best explanation; by default the set's."),
    ] = None,
    page: Annotated[bool, typer.Option("--report", help="Also report.html, to listen.")] = False,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also residual.wav: what no prior explains.")
    ] = False,
    write_draws: Annotated[
        int, typer.Option(min=0, help="Number of draws of each stem as audio, draws/STEM_01.wav.")
    ] = 0,
    native: Annotated[
        bool, typer.Option("--native", help="Stems mono, at the priors' rate: as drawn.")
    ] = False,
    audio_format: Annotated[
        Literal["wav", "flac"], typer.Option("--format", help="Of the stems.")
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
) -> None:
    """Separate recordings: OUT/TRACK/STEM.wav, trace.nc, separation.png, summary.json.

    Stems have the recording's rate and channels, and add up to it with the residual. A run that was
    cut off goes on from its checkpoint when it is started again; finished recordings are skipped.
    Only files of a former run are overwritten. A file that fails does not stop the others.
    """
    from pyro_sep.models.train import CHECKPOINT
    from pyro_sep.priors.io import choose_priors, load_priors, shipped_sets
    from pyro_sep.results.recordings import result_names, track_folders
    from pyro_sep.results.stems import StemFiles
    from pyro_sep.results.writer import REPORT
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
    place = torch_device(device)
    if priors is None:
        raise ValueError(
            f"priors: got none, expected a shipped set ({', '.join(shipped_sets())}) or a folder; "
            "give --priors music for bass, drums, vocals and other"
        )
    loaded = load_priors(priors, place)
    chosen = loaded if stems is None else choose_priors(loaded, stems)
    rate = next(iter(chosen.values())).sample_rate
    resolved = {name: options[name] for name in RESOLVED if name in options}
    drawn = resolve_settings(chosen, rate, **resolved).draws
    if write_draws > drawn:
        raise ValueError(
            f"write-draws: got {write_draws}, expected at most {drawn}, which are drawn per chain; "
            "give more --draws"
        )
    if segment is not None:
        chosen = {name: prior.in_segments(segment) for name, prior in chosen.items()}
    files = StemFiles(audio_format, native, residual, write_draws)
    names = result_names(chosen, files) + [REPORT] * page
    batch = Batch()
    excerpt = (rate, start, duration, channel)
    jobs = [
        Job(path, folder, excerpt, chosen, files, place, options, seed, force, page, initial)
        for path, folder in track_folders(recordings, out, names, batch.file).items()
    ]
    plan: list[tuple[Job, Cost | None, Recording | None]] = []
    for job in jobs:
        with batch.file(job.path), resumable(job.folder / CHECKPOINT):
            recording = job.load()
            cost = job.cost(recording)
            once = len(jobs) == 1 or not job.path.is_file()  # a pipe is read once
            plan.append((job, cost, recording if once else None))
            if dry_run:
                say(f"{printable(job.path)}: {BEFORE if cost is None else cost}")
    if not dry_run:
        confirm_long(sum(cost.seconds for _, cost, _ in plan if cost is not None))
    for job, cost, kept in [] if dry_run else plan:
        with batch.file(job.path), resumable(job.folder / CHECKPOINT):
            if cost is not None:
                say(f"{printable(job.path)}: {cost}")
            job.run(kept or job.load())
    batch.end()


@dataclass(frozen=True)
class Job:
    """A recording, and how it is separated.

    Attributes:
        path: of the recording.
        folder: of its results.
        excerpt: sample rate of the priors, start, duration, and channel.
        priors: of the sources, by name.
        files: which stems are written.
        device: of the priors.
        options: of :func:`~pyro_sep.separate` that decide the cost.
        seed: of all randomness.
        force: separate again what is finished.
        page: write a report too.
        initial: folder of the stems to begin from, or of a folder TRACK with them.
    """

    path: Path
    folder: Path
    excerpt: "tuple[int, float, float | None, str | None]"
    priors: "Mapping[str, Prior]"
    files: "StemFiles"
    device: "torch.device"
    options: Mapping[str, Any]
    seed: int
    force: bool
    page: bool
    initial: Path | None

    def load(self) -> "Recording":
        """The recording at the priors' rate."""
        from pyro_sep.audio.io import load_audio

        return load_audio(self.path, *self.excerpt)

    def own_options(self, recording: "Recording") -> dict[str, Any]:
        """All options of :func:`~pyro_sep.separate` for this recording."""
        from pyro_sep.data.stems import load_stems
        from pyro_sep.data.tracks import MIXTURE

        title = self.folder.name if self.path.stem.lower() == MIXTURE else self.path.name
        attrs = {"mixture": printable(title), "notes": list(recording.notes)}
        options = {**self.options, "seed": self.seed, "attrs": attrs}
        if self.initial is not None:
            own = self.initial / self.folder.name
            folder, rate = own if own.is_dir() else self.initial, recording.sample_rate
            time = len(recording.samples)
            options["initial"] = load_stems(folder, self.priors, rate, time, *self.excerpt[1:])
        return options

    def cost(self, recording: "Recording") -> "Cost | None":
        """The cost of the separation; None where it is finished already.

        Raises:
            ValueError: a recording that cannot be separated.
            OSError: too little space for the results.
        """
        from pyro_sep.results.recordings import check_disk, check_recording, is_separated
        from pyro_sep.separation.cost import estimate_cost

        options = self.own_options(recording)
        results = (recording, self.priors, self.folder, self.files)
        if not self.force and is_separated(*results, self.device, **options):
            return None
        check_recording(recording, self.files)
        check_disk(*results, options)
        initial = options.get("initial")
        return estimate_cost(recording.samples, self.priors, initial=initial, **self.options)

    def run(self, recording: "Recording") -> None:
        """Separate the recording, and say what was written and whether to trust it."""
        from pyro_sep.diagnostics.initial import compare_initial, format_initial
        from pyro_sep.diagnostics.score_intervals import expected_scores, format_scores
        from pyro_sep.diagnostics.verdict import diagnose, format_verdict
        from pyro_sep.results.recordings import separate_recording
        from pyro_sep.results.writer import REPORT
        from pyro_sep.trace.dataset import TRACE

        for note in recording.notes:
            say(f"{printable(self.path)}: {note}", err=True)
        result, written = separate_recording(
            recording,
            self.priors,
            self.folder,
            self.files,
            self.device,
            force=self.force,
            progress=True,
            **self.own_options(recording),
        )
        say(f"{printable(self.folder)}: {BEFORE if result is None else ', '.join(written)}")
        if result is not None and result.presence is not None:
            pairs = zip(result.names, result.presence.tolist(), strict=True)
            cells = ", ".join(f"{name} {probability:.2f}" for name, probability in pairs)
            say(f"probability of presence: {cells}")
        if result is not None and (moved := compare_initial(result.trace)) is not None:
            say(format_initial(moved))
        if self.page and not (result is None and (self.folder / REPORT).exists()):
            write_page(self.folder / TRACE, self.folder / REPORT)
        if result is not None:
            if (scores := expected_scores(result.trace)) is not None:
                say(f"{printable(self.folder)}: expected SI-SDR {format_scores(scores)}")
            say(f"{printable(self.folder)}: {format_verdict(diagnose(result.trace))}")


def confirm_long(seconds: float) -> None:
    """Ask before work of hours where a user can answer; elsewhere warn."""
    if seconds <= LONG:
        return
    about = f"all of it takes about {in_words(seconds)}"
    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"{about}; go on?", abort=True, err=True)
    else:
        remedy = "interrupt it and take a smaller --preset, or --duration of an excerpt"
        say(f"{about}; if that is too long, {remedy}", err=True)
