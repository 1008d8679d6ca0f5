"""The command ``pyro-sep calibrate``."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_sep.cli.options import MusdbRoot, References, reference_tracks
from pyro_sep.cli.program import Batch, say


def calibrate(
    estimates: Annotated[Path, typer.Argument(help="Folder with TRACK/trace.nc.")],
    out: Annotated[Path, typer.Option(help="The file, JSON.")],
    musdb: MusdbRoot = None,
    references: References = None,
) -> None:
    """Learn from tracks with known stems how wide the intervals of similar tracks must be."""
    from pyro_sep.diagnostics.conformal import (
        CALIBRATION_MARK,
        PROBABILITY,
        ConformalCalibration,
        least_mixtures,
    )
    from pyro_sep.evaluation.tracks import traces_with_truth
    from pyro_sep.storage.files import check_output

    check_output(out, CALIBRATION_MARK)
    batch, truth = Batch(), reference_tracks(musdb, references)
    learned = ConformalCalibration.of(traces_with_truth(estimates, truth, batch.file))
    learned.save(out)
    count, sources = learned.errors.sizes["mixture"], ", ".join(learned.sources)
    say(f"{out}: of {count} mixture{'s' * (count > 1)} of {sources}")
    if count < (least := least_mixtures(PROBABILITY)):
        need = f"intervals of {PROBABILITY:.0%} need {least}; give more tracks"
        say(f"{out}: {need}", err=True)
    batch.end()
