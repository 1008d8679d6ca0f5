"""The command line: train and audit priors, separate recordings, diagnose and evaluate."""

import sys
import time as clock
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyro_sep.audio.resampling import RATES
from pyro_sep.checks.names import printable
from pyro_sep.cli.program import (
    Batch,
    listed,
    mixing_options,
    one_of,
    resumable,
    run,
    say,
    torch_device,
)
from pyro_sep.inference.annealing.schedules import MIN_LEVELS
from pyro_sep.models.train import TrainConfig

if TYPE_CHECKING:
    from pyro_sep.data.tracks import Track

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Probabilistic audio source separation with deep generative priors.",
)

MusdbRoot = Annotated[
    Path | None, typer.Option(help="Root of musdb18, or one .stem.mp4; nothing is downloaded.")
]
References = Annotated[
    Path | None, typer.Option(help="Folder with TRACK/STEM.wav, in place of musdb18.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="Of `pyro-sep calibrate`: also intervals that cover."),
]
FLOW_SCORE_WEIGHT = 0.3
AUDIT_FRAMES = 32
AUDIT_TIME = 2_048
LONG = 3_600.0  # seconds; whoever starts more is asked


@app.command()
def train(
    source: Annotated[
        str,
        typer.Option(
            help="toy:WAVEFORM, a folder of audio of one source, FOLDER:STEM, musdb:STEM."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors and its model card.")],
    family: Annotated[str, typer.Option(help="Network: wavenet or flow.")] = "wavenet",
    size: Annotated[str, typer.Option(help="toy, toy-deep, music, or the paper's.")] = "toy",
    recipe: Annotated[
        str,
        typer.Option(help="conditional: one network, all noise levels; serial: one per level."),
    ] = "conditional",
    steps: Annotated[int, typer.Option(min=1)] = TrainConfig.steps,
    batch: Annotated[int, typer.Option(min=1)] = TrainConfig.batch,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = TrainConfig.time,
    learning_rate: Annotated[float, typer.Option(min=0)] = TrainConfig.learning_rate,
    score_weight: Annotated[
        float | None, typer.Option(min=0, help="Of score matching; 0.3 for a flow, else 0.")
    ] = None,
    gain_db: Annotated[
        float, typer.Option(min=0, help="Frames are made louder or softer by up to so much.")
    ] = TrainConfig.gain_db,
    seed: int = 0,
    sample_rate: Annotated[int, typer.Option(min=RATES[0], max=RATES[1])] = 16_000,
    musdb: MusdbRoot = None,
    device: str = "cpu",
) -> None:
    """Learn the prior of a source from isolated recordings of it; goes on where it was cut off."""
    from pyro_sep.data.source import fingerprint, open_source, training_rms
    from pyro_sep.data.tracks import check_source_name
    from pyro_sep.models.registry import FAMILIES
    from pyro_sep.models.train import CHECKPOINT, SERIAL_SIGMAS, fit, fit_serially
    from pyro_sep.priors.base import PRIORS
    from pyro_sep.priors.model_card import check_free, save_with_card, train_command
    from pyro_sep.storage.files import only_run

    one_of("family", family, FAMILIES)
    one_of("size", size, FAMILIES[family].sizes)
    one_of("recipe", recipe, ("conditional", "serial"))
    torch_device(device)
    audio = open_source(source, sample_rate, time, musdb)
    check_source_name(audio.name)
    if audio.sample_rate != sample_rate:
        raise ValueError(
            f"sample_rate: got {sample_rate} Hz for {source}, expected {audio.sample_rate}, its own"
        )
    for note in audio.notes:
        say(note, err=True)
    if score_weight is None:
        score_weight = FLOW_SCORE_WEIGHT if (family, recipe) == ("flow", "conditional") else 0.0
    config = TrainConfig(
        steps=steps,
        batch=batch,
        time=time,
        learning_rate=learning_rate,
        score_weight=score_weight,
        gain_db=gain_db,
        seed=seed,
    )
    level = training_rms(audio, time, seed)
    network_config = replace(FAMILIES[family].sizes[size], sigma_data=level)
    run_folder, name = out / f"{audio.name}.run", f"{audio.name}.safetensors"
    serial = recipe == "serial"
    places = {sigma: out / f"sigma-{sigma:g}" for sigma in SERIAL_SIGMAS}
    check_free([folder / name for folder in (places.values() if serial else [out])], run_folder)
    arguments = (audio.draw, run_folder, network_config, config, device)
    known = fingerprint(audio, time, seed)
    started = clock.monotonic()
    with resumable(run_folder if serial else run_folder / CHECKPOINT), only_run(run_folder):
        if serial:
            levels = fit_serially(*arguments, audio=known)
            networks = {places[sigma]: network for sigma, network in levels.items()}
        else:
            networks = {out: fit(*arguments, audio=known)}
    seconds = clock.monotonic() - started
    settings = {"family": family, "size": size, "recipe": recipe, "sample_rate": sample_rate}
    settings |= asdict(config)
    command = train_command(source, settings)
    held_out = audio.held_out(AUDIT_FRAMES, AUDIT_TIME)
    for folder, network in networks.items():
        prior = PRIORS[family](network.cpu(), name=audio.name, sample_rate=audio.sample_rate)
        path = save_with_card(folder, prior, source, command, settings, seconds, held_out)
        say(f"{path}: prior of {audio.name}, its model card beside it")


@app.command("audit")
def audit_command(
    priors: Annotated[str, typer.Option(help="A set that ships, or a folder of priors.")] = "toy",
    source: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SOURCE, as for train; by default toy or, if given, musdb stems."),
    ] = None,
    musdb: MusdbRoot = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.png.")] = None,
    frames: Annotated[int, typer.Option(min=1)] = AUDIT_FRAMES,
    time: Annotated[int, typer.Option(min=16, help="Audio samples per frame.")] = AUDIT_TIME,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Say whether priors may be used: every prior on every source at every noise level."""
    from pyro_sep.data.source import default_spec, open_source
    from pyro_sep.priors.auditing import SIGMAS, UNIT, audit, format_audit, known_levels, save_audit
    from pyro_sep.priors.io import load_priors
    from pyro_sep.storage.files import check_output, only_run
    from pyro_sep.viz.plots import plot_audit, save_figure

    if wrong := [entry for entry in source or [] if "=" not in entry]:
        raise ValueError(f"source: got {wrong[0]!r}, expected NAME=SOURCE")
    loaded = load_priors(priors, torch_device(device))
    if not known_levels(loaded):
        raise ValueError(
            f"priors: got none that all know of the levels {', '.join(map(str, SIGMAS))}, expected "
            "one; name priors of one range"
        )
    specs = {name: default_spec(name, musdb) for name in loaded} | dict(
        entry.split("=", 1) for entry in source or []
    )
    rate = next(iter(loaded.values())).sample_rate
    audio = {
        name: open_source(spec, rate, time, musdb).held_out(frames, time).to(device)
        for name, spec in specs.items()
    }
    with nullcontext() if out is None else only_run(out):
        if out is not None:
            check_output(out / "audit.json", UNIT)
            if not (out / "audit.json").exists():
                check_output(out / "audit.png", UNIT)
        table = audit(loaded, audio, seed=seed, progress=True)
        say(format_audit(table))
        if out is not None:
            save_audit(table, out / "audit.json")
            save_figure(plot_audit(table), out / "audit.png")


@app.command("separate")
def separate_command(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Audio of any rate and channels; the mixture of a .stem.mp4."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; each file's results go to its DIR/TRACK.")],
    priors: Annotated[
        str | None, typer.Option(help="A set that ships, such as music or toy, or a folder.")
    ] = None,
    stems: Annotated[
        str | None, typer.Option(help="Those of the set that are in there, by commas.")
    ] = None,
    gains: Annotated[
        str | None,
        typer.Option(help="One per source, by commas, or infer; by default 1, of toy tones 1/N."),
    ] = None,
    noise_scale: Annotated[
        str | None, typer.Option(help="Std of the mixture's own noise, a number or infer.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Of an excerpt, in seconds.")] = 0.0,
    duration: Annotated[
        float | None, typer.Option(min=0, help="Of an excerpt, in seconds; to the end by default.")
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="Separate one channel, 1, 2, ..., or side, half of 1 less 2; else all."),
    ] = None,
    seed: int = 0,
    preset: Annotated[
        str | None,
        typer.Option(help="quick, standard or thorough; by default quick, of toy tones standard."),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(min=1, help="Independent chains; else the preset's.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Of a search, side by side; else the preset's.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=MIN_LEVELS, help="Noise levels; else the preset's.")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws per chain, all in trace.nc; else the preset's."),
    ] = None,
    presence: Annotated[
        str | None, typer.Option(help="infer: sources may be absent; say which are there.")
    ] = None,
    estimate: Annotated[
        str | None,
        typer.Option(
            help="mean, of all chains, or best, of one; by default mean, of toy tones best."
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--report", help="Also report.html, to listen.")] = False,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also residual.wav: what no prior explains.")
    ] = False,
    write_draws: Annotated[
        int, typer.Option(min=0, help="So many draws of each stem as audio, draws/STEM_01.wav.")
    ] = 0,
    native: Annotated[
        bool, typer.Option("--native", help="Stems mono, at the priors' rate: as drawn.")
    ] = False,
    audio_format: Annotated[str, typer.Option("--format", help="Of stems: wav or flac.")] = "wav",
    segment: Annotated[
        float | None,
        typer.Option(help="Seconds evaluated at once: less takes less memory, to the same result."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Separate anew what was separated with these settings.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how long it takes, and write nothing.")
    ] = False,
    device: str = "cpu",
) -> None:
    """Separate recordings: DIR/TRACK/STEM.wav, trace.nc, separation.png, summary.json.

    Stems have the recording's rate and channels, and add up to it with the residual. A run that was
    cut off goes on where it was, when it is started again; what was finished is not done again. No
    file is overwritten but those of a former run. A file that fails does not stop the others.
    """
    from pyro_sep.audio.io import FORMATS, Recording, load_audio
    from pyro_sep.data.tracks import MIXTURE
    from pyro_sep.diagnostics.convergence import diagnose, format_verdict
    from pyro_sep.mixing.known import are_tones, usual_gains
    from pyro_sep.models.train import CHECKPOINT
    from pyro_sep.priors.io import choose_priors, load_priors, shipped_sets
    from pyro_sep.results.recordings import (
        check_disk,
        check_recording,
        is_separated,
        result_names,
        separate_recording,
        track_folders,
    )
    from pyro_sep.results.stems import StemFiles
    from pyro_sep.results.writer import REPORT
    from pyro_sep.separation.api import PRESETS, RESOLVED, resolve_settings
    from pyro_sep.separation.cost import Cost, estimate_cost
    from pyro_sep.trace.dataset import ESTIMATES, TRACE

    one_of("format", audio_format, FORMATS)
    if estimate is not None:
        one_of("estimate", estimate, ESTIMATES)
    if preset is not None:
        one_of("preset", preset, PRESETS)
    if presence is not None:
        one_of("presence", presence, ("infer",))
    given = mixing_options(gains, noise_scale)
    place = torch_device(device)
    if priors is None:
        raise ValueError(
            f"priors: got none, expected a shipped set ({', '.join(shipped_sets())}) or a folder; "
            "give --priors music for bass, drums, vocals and other"
        )
    loaded = load_priors(priors, place)
    chosen = loaded if stems is None else choose_priors(loaded, stems)
    rate = next(iter(chosen.values())).sample_rate
    budget = {"chains": chains, "candidates": candidates, "levels": levels, "draws": draws}
    options: dict[str, Any] = {"gains": usual_gains(chosen)} | given
    options |= {"presence": presence, "seed": seed}
    options |= {name: value for name, value in budget.items() if value is not None}
    options["estimate"] = estimate or ("best" if are_tones(chosen) else "mean")
    options["preset"] = preset or ("standard" if are_tones(chosen) else "quick")
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
    before = "separated before with these settings; --force does it anew"
    batch = Batch()
    folders = track_folders(recordings, out, names, batch.file)

    def with_attrs(path: Path, recording: Recording) -> dict[str, Any]:
        title = folders[path].name if path.stem.lower() == MIXTURE else path.name
        attrs = {"mixture": printable(title), "notes": list(recording.notes)}
        return options | {"attrs": attrs}

    plan: dict[Path, tuple[Cost | None, Recording | None]] = {}
    for path, folder in folders.items():
        with batch.file(path), resumable(folder / CHECKPOINT):
            recording = load_audio(path, rate, start, duration, channel)
            own = with_attrs(path, recording)
            done = not force and is_separated(recording, chosen, folder, files, place, **own)
            cost = None
            if not done:
                check_recording(recording, files)
                check_disk(recording, chosen, folder, files, own)
                cost = estimate_cost(recording.samples, chosen, **own)
            once = len(folders) == 1 or not path.is_file()  # a pipe is read once
            plan[path] = cost, recording if once else None
            if dry_run:
                say(f"{printable(path)}: {before if cost is None else cost}")
    if not dry_run:
        confirm_long(sum(cost.seconds for cost, _ in plan.values() if cost is not None))
    for path, (cost, kept) in ({} if dry_run else plan).items():
        folder = folders[path]
        checkpoint = folder / CHECKPOINT
        with batch.file(path), resumable(checkpoint):
            if cost is not None:
                say(f"{printable(path)}: {cost}")
            recording = kept or load_audio(path, rate, start, duration, channel)
            for note in recording.notes:
                say(f"{printable(path)}: {note}", err=True)
            own = with_attrs(path, recording)
            result, written = separate_recording(
                recording, chosen, folder, files, place, force=force, progress=True, **own
            )
            if result is None:
                say(f"{printable(folder)}: {before}")
            else:
                say(f"{printable(folder)}: {', '.join(written)}")
            if result is not None and result.presence is not None:
                pairs = zip(result.names, result.presence.tolist(), strict=True)
                cells = ", ".join(f"{name} {probability:.2f}" for name, probability in pairs)
                say(f"probability of presence: {cells}")
            if page and not (result is None and (folder / REPORT).exists()):
                report_command(folder / TRACE, folder / REPORT)
            if result is not None:
                say(f"{printable(folder)}: {format_verdict(diagnose(result.trace))}")
    if batch.failed:
        raise typer.Exit(2)


def confirm_long(seconds: float) -> None:
    """Ask before hours of work where there is somebody to ask; elsewhere warn."""
    from pyro_sep.progress import duration

    if seconds <= LONG:
        return
    about = f"all of it takes about {duration(seconds)}"
    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"{about}; go on?", abort=True, err=True)
    else:
        remedy = "interrupt it and take a smaller --preset, or --duration of an excerpt"
        say(f"{about}; if that is too long, {remedy}", err=True)


@app.command("diagnose")
def diagnose_command(
    trace: Annotated[Path, typer.Argument(help="trace.nc that `pyro-sep separate` wrote.")],
    calibration: CalibrationFile = None,
) -> None:
    """Say whether a separation may be trusted: chains, draws, priors and mixture."""
    from pyro_sep.diagnostics.conformal import ConformalCalibration, format_intervals
    from pyro_sep.diagnostics.convergence import diagnose, format_diagnosis
    from pyro_sep.trace.dataset import load_trace

    tree = load_trace(trace)
    say(format_diagnosis(diagnose(tree)))
    if calibration is not None:
        say(format_intervals(ConformalCalibration.load(calibration), tree))


@app.command("report")
def report_command(
    trace: Annotated[Path, typer.Argument(help="trace.nc that `pyro-sep separate` wrote.")],
    out: Annotated[Path, typer.Option(help="The page, one HTML file that needs no other.")],
    calibration: CalibrationFile = None,
) -> None:
    """Write a page to listen to a separation, see its uncertainty, and judge it."""
    from pyro_sep.diagnostics.conformal import ConformalCalibration
    from pyro_sep.storage.files import check_output
    from pyro_sep.trace.dataset import load_trace
    from pyro_sep.viz.report import REPORT_MARK, write_report

    check_output(out, REPORT_MARK, [trace, *([calibration] if calibration else [])])
    known = None if calibration is None else ConformalCalibration.load(calibration)
    write_report(load_trace(trace), out, known)
    say(f"{out}: open it in a browser")


@app.command("calibrate")
def calibrate_command(
    estimates: Annotated[Path, typer.Argument(help="Folder with TRACK/trace.nc.")],
    out: Annotated[Path, typer.Option(help="The file, JSON.")],
    musdb: MusdbRoot = None,
    references: References = None,
) -> None:
    """Learn from separated tracks whose stems are known how far to trust others of the kind."""
    from pyro_sep.diagnostics.conformal import CALIBRATION_MARK, ConformalCalibration
    from pyro_sep.evaluation.tracks import traces_with_truth
    from pyro_sep.storage.files import check_output

    check_output(out, CALIBRATION_MARK)
    batch, truth = Batch(), reference_tracks(musdb, references)
    learned = ConformalCalibration.of(traces_with_truth(estimates, truth, batch.file))
    learned.save(out)
    count, sources = learned.errors.sizes["mixture"], ", ".join(learned.kind["sources"])
    say(f"{out}: of {count} mixtures of {sources}")
    if batch.failed:
        raise typer.Exit(2)


@app.command("evaluate")
def evaluate_command(
    estimates: Annotated[Path, typer.Argument(help="Folder with TRACK/STEM.wav.")],
    musdb: MusdbRoot = None,
    references: References = None,
    stems: Annotated[
        str | None, typer.Option(help="Those that were mixed, by commas; by default all.")
    ] = None,
    bss_eval: Annotated[
        bool, typer.Option("--bss-eval", help="Also BSS Eval v4: minutes a track.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for scores.csv and museval's.")] = None,
) -> None:
    """Judge separated tracks whose stems are known: SI-SDR, its improvement, and BSS Eval."""
    from pyro_sep.checks.names import cell
    from pyro_sep.data.tracks import stems_folder
    from pyro_sep.evaluation.tracks import check_references, evaluate, summarise, write_windows
    from pyro_sep.storage.files import atomic_write, check_output, only_run

    truth, tracks = reference_tracks(musdb, references), stems_folder(estimates)
    check_references(tracks, truth)
    mixed = listed("stems", stems) if stems else []
    batch, scores = Batch(), []
    with nullcontext() if out is None else only_run(out):
        if out is not None:
            for name in ("scores", "summary"):
                check_output(out / f"{name}.csv", "SI-SDR")
        for estimate in tracks:
            with batch.file(Path(estimate.name)):
                (track,) = evaluate([estimate], truth, mixed, bss_eval)
                for note in track.notes:
                    say(f"{track.name}: {note}", err=True)
                say(f"{track.name}\n{track.table.to_string(float_format='{:.2f}'.format)}")
                scores.append(track)
                if out is not None:
                    write_windows(track, out)
        if scores:
            table, summary = summarise(scores)
            say(f"medians\n{summary.to_string(float_format='{:.2f}'.format)}")
        if scores and out is not None:
            for name, frame in (("scores", table), ("summary", summary)):
                with atomic_write(out / f"{name}.csv") as partial:
                    frame.rename(index=cell).to_csv(partial)
    if batch.failed:
        raise typer.Exit(2)


def reference_tracks(musdb: Path | None, references: Path | None) -> "list[Track]":
    """Tracks whose stems are known, of one place or the other."""
    from pyro_sep.data.musdb import musdb_tracks
    from pyro_sep.data.tracks import stems_folder

    if (musdb is None) == (references is None):
        raise ValueError("references: expected one of --musdb ROOT and --references FOLDER")
    return musdb_tracks(musdb) if musdb is not None else stems_folder(references or Path())


def main() -> None:
    """Run the command line."""
    run(app)
