"""What is said of a recording that was separated."""

from pathlib import Path

import pytest

from pyro_sep.cli.outcomes import say_outcome
from pyro_sep.results.plan import Outcome


def test_stems_that_are_silent_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("STEMS/song")
    say_outcome(
        Outcome(Path("song.wav"), folder, ("bass.wav",), silent={"bass": 10.0, "vocals": 3.0})
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{folder}: bass.wav",
        f"{folder}: written as silence, being below -50 dB of full scale: "
        "bass for 10 s, vocals for 3 s",
    ]
    say_outcome(Outcome(Path("song.wav"), folder, ("bass.wav",)))
    assert len(capsys.readouterr().out.splitlines()) == 1
