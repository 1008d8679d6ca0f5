import sys
from collections.abc import Callable

import pytest

from pyro_sep import progress
from pyro_sep.progress import LINE_SECONDS, Progress, duration

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that goes on by so many seconds when it is told to."""
    now = [1_000.0]
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    monkeypatch.setattr(progress, "clock", clock)

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


Wait = Callable[[float], None]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5_399, "90 min"),
        (5_400, "1.5 h"),
        (1e6, "277.8 h"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_a_line_comes_every_half_minute(wait: Wait, capsys: Capture) -> None:
    with Progress(True, 1_000.0) as shown:
        said = []
        for _ in range(20):  # 10 seconds each
            wait(10.0)
            shown.advance(20.0)
            said.append(capsys.readouterr().err)
        shown.finish()
    assert LINE_SECONDS == 30
    lines = [(i, line) for i, line in enumerate(said) if line]
    assert [i for i, _ in lines] == [2, 5, 8, 11, 14, 17]
    assert [line for _, line in lines[:2]] == ["6 %, 8 min left\n", "12 %, 7 min left\n"]
    assert capsys.readouterr().out == ""


def test_it_says_nothing_unless_it_is_to(wait: Wait, capsys: Capture) -> None:
    with Progress(False, 10.0) as shown:
        for _ in range(5):
            wait(100.0)
            shown.advance(1.0)
        shown.finish()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert shown.done == 10.0


def test_a_total_may_turn_out_larger(wait: Wait, capsys: Capture) -> None:
    with Progress(True, 100.0) as shown:
        wait(40.0)
        shown.advance(80.0)
        wait(40.0)
        shown.advance(80.0)
        wait(40.0)
        shown.advance(80.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["80 %, 10 s left", "99 %, 0 s left", "99 %, 0 s left"]


@pytest.mark.parametrize(("step", "left"), [(10.0, "80 s"), (25.0, "20 s"), (45.0, "2 s")])
def test_what_an_earlier_run_did_took_no_time_in_this(
    wait: Wait, capsys: Capture, step: float, left: str
) -> None:
    with Progress(True, 100.0) as shown:
        shown.resume(50.0)
        wait(20.0)
        shown.advance(step / 2)
        assert capsys.readouterr().err == ""
        wait(20.0)
        shown.advance(step / 2)
        spent = 40.0
    percent = int(50 + step)
    expected = spent * (50 - step) / step
    line = capsys.readouterr().err
    assert line == f"{percent} %, {duration(expected)} left\n"


def test_in_a_terminal_there_is_a_bar(
    wait: Wait, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(True, 10.0) as shown:
        wait(100.0)
        shown.advance(5.0)
        shown.advance(50.0)  # 100 % is for the end
        shown.finish()
    text = capsys.readouterr().err
    assert "100%" in text
    assert "%, " not in text.replace("left", "")
    assert text.splitlines()[-1].count("%") >= 1


def test_the_bar_of_a_run_that_goes_on_is_where_it_was(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(True, 10.0) as shown:
        shown.resume(4.0)
        assert shown._bar.n == 40
        shown.advance(2.0)
        assert shown._bar.n == 60
        shown.finish()
        assert shown._bar.n == 100
