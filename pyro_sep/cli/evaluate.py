"""The command ``pyro-sep evaluate``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import MusdbRoot, References, listed, reference_tracks
from pyro_sep.cli.program import Batch, say


def evaluate(
    estimates: Annotated[Path, typer.Argument(help="Folder with TRACK/STEM.wav.")],
    musdb: MusdbRoot = None,
    references: References = None,
    stems: Annotated[
        str | None, typer.Option(help="Stems that were mixed, by commas; by default all.")
    ] = None,
    bss_eval: Annotated[
        bool, typer.Option("--bss-eval", help="Also BSS Eval v4: minutes a track.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for scores.csv and museval's.")] = None,
) -> None:
    """Score separated tracks with known stems: SI-SDR, its improvement, and BSS Eval."""
    from pyro_sep.checks.names import cell
    from pyro_sep.data.tracks import stems_folder
    from pyro_sep.evaluation import tracks
    from pyro_sep.storage.files import atomic_write, check_output, only_run

    truth, separated = reference_tracks(musdb, references), stems_folder(estimates)
    mixed = listed("stems", stems) if stems else []
    judged = tracks.evaluate(separated, truth, mixed, bss_eval)
    batch, scores = Batch(), []
    with nullcontext() if out is None else only_run(out):
        if out is not None:
            for name in ("scores", "summary"):
                check_output(out / f"{name}.csv", "SI-SDR")
        for estimate in separated:
            with batch.file(Path(estimate.name)):
                track = next(judged)
                for note in track.notes:
                    say(f"{track.name}: {note}", err=True)
                say(f"{track.name}\n{track.table.to_string(float_format='{:.2f}'.format)}")
                scores.append(track)
                if out is not None:
                    tracks.write_windows(track, out)
        if scores:
            table, summary = tracks.summarise(scores)
            say(f"medians\n{summary.to_string(float_format='{:.2f}'.format)}")
        if scores and out is not None:
            for name, frame in (("scores", table), ("summary", summary)):
                with atomic_write(out / f"{name}.csv") as partial:
                    frame.rename(index=cell).to_csv(partial)
    batch.end()
