"""Runs that are killed at any moment, and disks that fill up, lose nothing."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyro_sep.storage.files import LOCK, TEMPORARY

SCRIPT = Path(sys.executable).with_name("pyro-sep")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
KILLS = 12
SEPARATE = ("--priors", "toy/oracle", "--stems", "sine,square", "--levels", "12", "--draws", "20")
TRAIN = ("--source", "toy:sine", "--steps", "40", "--batch", "1", "--time", "256")

pytestmark = pytest.mark.slow


def command(*arguments: str | Path) -> list[str]:
    return [str(SCRIPT), *map(str, arguments)]


def finish(arguments: list[str]) -> None:
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kill_at_random(arguments: list[str], seconds: float, seed: int) -> int:
    """Start a command again and again, kill it at random moments; how often it was killed."""
    generator, killed = random.Random(seed), 0
    for _ in range(KILLS):
        with subprocess.Popen(
            arguments, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(generator.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
    return killed


def hidden(folder: Path) -> list[str]:
    """Temporary files and locks that were left anywhere below a folder."""
    return [path.name for path in folder.rglob(".*") if path.name.startswith((TEMPORARY, LOCK))]


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    t = np.arange(1_600) / 16_000
    audio = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sign(np.sin(2 * np.pi * 330 * t))
    soundfile.write(tmp_path / "tone.wav", audio, 16_000)
    return tmp_path / "tone.wav"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_separation_that_is_killed_at_any_moment(tone: Path, tmp_path: Path, seed: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    use = command("separate", tone, *SEPARATE, "--residual", "--write-draws", "2", "--out")
    started = time.monotonic()
    finish([*use, str(whole)])
    seconds = time.monotonic() - started
    assert kill_at_random([*use, str(cut)], seconds, seed)
    finish([*use, str(cut)])
    files = [sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) for out in (whole, cut)]
    assert files[0] == files[1]
    assert hidden(cut) == []
    assert (cut / "tone/trace.nc").read_bytes() == (whole / "tone/trace.nc").read_bytes()
    for name in ("sine.wav", "residual.wav", "draws/square_02.wav"):
        audio = [soundfile.read(out / "tone" / name)[0] for out in (whole, cut)]
        assert np.array_equal(*audio)


def test_a_training_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    use = command("train", *TRAIN, "--out")
    started = time.monotonic()
    finish([*use, str(whole)])
    seconds = time.monotonic() - started
    assert kill_at_random([*use, str(cut)], seconds, 2)
    finish([*use, str(cut)])
    weights = [(out / "sine.safetensors").read_bytes() for out in (whole, cut)]
    assert weights[0] == weights[1]
    assert hidden(cut) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that the tests can fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes."""
    (disk / "filling").unlink(missing_ok=True)
    size = shutil.disk_usage(disk).free - free
    (disk / "filling").write_bytes(bytes(max(0, size)))


def assert_refused(arguments: list[str]) -> None:
    """One line, exit code 2; it was neither a bug nor a signal that ended the command."""
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    last = done.stderr.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("pyro-sep: ")
    assert "Traceback" not in done.stderr


def test_a_separation_on_a_disk_that_fills_up(tone: Path, small_disk: Path) -> None:
    use = command("separate", tone, *SEPARATE, "--out", small_disk / "out")
    for free in (0, 4_096, 60_000, 800_000, 2_500_000):
        fill(small_disk, free)
        assert_refused(use)
        assert hidden(small_disk) == []
        assert not (small_disk / "out" / "tone" / "summary.json").exists()
    fill(small_disk, 8_000_000)
    finish(use)
    assert (small_disk / "out" / "tone" / "summary.json").exists()


def test_a_training_on_a_disk_that_fills_up(small_disk: Path) -> None:
    use = command("train", *TRAIN, "--out", small_disk / "out")
    for free in (0, 4_096, 100_000, 1_000_000):
        fill(small_disk, free)
        assert_refused(use)
        assert hidden(small_disk) == []
        assert not list(small_disk.rglob("*.safetensors"))
