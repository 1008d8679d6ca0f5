import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_sep.storage.files import (
    LOCK,
    TEMPORARY,
    atomic_write,
    atomic_write_bytes,
    only_run,
    save_json,
)

WRITES_AND_WAITS = """
import sys, time
from pathlib import Path
from pyro_sep.storage.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
HOLDS_AND_WAITS = """
import sys, time
from pathlib import Path
from pyro_sep.storage.files import only_run
with only_run(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(600)
"""


def start(code: str, path: Path) -> "subprocess.Popen[bytes]":
    """A process that has come to its wait."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stdout=subprocess.PIPE,
        # A shell makes its background processes, and those that they start, ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def test_what_a_killed_process_was_writing_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    process = start(WRITES_AND_WAITS, path)
    (half,) = os.listdir(tmp_path)
    assert half.startswith(TEMPORARY)
    save_json({"b": 1}, tmp_path / "b.json")
    assert sorted(os.listdir(tmp_path)) == [half, "b.json"]  # it is still being written
    kill(process)
    save_json({"c": 1}, tmp_path / "c.json")
    assert sorted(os.listdir(tmp_path)) == ["b.json", "c.json"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    process = start(WRITES_AND_WAITS, tmp_path / "a.json")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert os.listdir(tmp_path) == []


def write_half(path: Path, error: Exception) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("no errno")])
def test_what_fails_leaves_the_old_file(tmp_path: Path, error: OSError) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    reason = error.strerror or "no errno"
    with pytest.raises(OSError, match=rf"a\.bin: could not be written \({reason}\)"):
        write_half(path, error)
    with pytest.raises(ZeroDivisionError):
        write_half(path, ZeroDivisionError())
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; create it first$"):
        atomic_write_bytes(tmp_path / "none" / "a", b"")
    with pytest.raises(IsADirectoryError, match=r"is a folder; give the name of a file$"):
        atomic_write_bytes(tmp_path, b"")


def test_the_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(HOLDS_AND_WAITS, folder)
    with (
        pytest.raises(OSError, match=r"out: got another run that writes to it now"),
        only_run(folder),
    ):
        pytest.fail("two runs hold the folder")
    assert os.listdir(folder) == [LOCK]
    kill(process)
    with only_run(folder):
        assert os.listdir(folder) == [LOCK]
    assert os.listdir(folder) == []


def test_a_run_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with only_run(tmp_path):
        with pytest.raises(OSError, match="another run"), only_run(tmp_path):
            pytest.fail("two runs hold the folder")
        with only_run(tmp_path / "other"):
            pass


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with only_run(tmp_path / "made" / "below"):
        pass
    assert os.listdir(tmp_path) == []
    (tmp_path / "there").mkdir()
    with only_run(tmp_path / "there"):
        pass
    with only_run(tmp_path / "full"):
        (tmp_path / "full" / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["full", "there"]
    assert os.listdir(tmp_path / "full") == ["a"]


def test_a_run_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}0123").mkdir()
    (tmp_path / f"{TEMPORARY}0123" / "a.wav").touch()
    (tmp_path / f"{TEMPORARY}4567.wav").touch()
    (tmp_path / "kept.wav").touch()
    with only_run(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [LOCK, "kept.wav"]


@pytest.mark.parametrize(("below", "reason"), [("", "File exists"), ("below", "Not a directory")])
def test_a_folder_that_cannot_be(tmp_path: Path, below: str, reason: str) -> None:
    (tmp_path / "file").write_text("kept")
    folder = tmp_path / "file" / below
    with pytest.raises(OSError, match=rf"cannot be written to \({reason}\)"), only_run(folder):
        pytest.fail("a file is no folder")
    assert (tmp_path / "file").read_text() == "kept"
