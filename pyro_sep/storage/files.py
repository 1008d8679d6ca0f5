"""Files that are written whole or not at all, and folders that one run at a time writes to."""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # on Windows, where what a killed run was writing stays
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".pyro-sep-"  # how the name of a file begins that is being written
LOCK = ".pyro-sep.lock"
MEGABYTE = 1_000_000
MARKED = 65_536  # bytes in which a mark is looked for


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` once the block has succeeded.

    The temporary file lies in the same folder, since a rename is atomic within one file system
    only, and keeps the suffix, by which many writers choose the format. Its content is on the disk
    before it is renamed, so that a power cut leaves the old file or the new one. Whatever ends the
    block early, an interrupt included, removes it and leaves an older file at ``path`` as it was;
    what a killed process was writing is removed by the next one that writes to the folder.

    Args:
        path: the file to write.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        IsADirectoryError: ``path`` is a folder.
        OSError: the block or the renaming failed with it.
    """
    path = Path(path)
    _check_place(path)
    remove_leftovers(path.parent)
    try:
        with _temporary(path) as temporary:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            with suppress(OSError):  # not every system can
                _flush(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: could not be written ({reason}); check space and rights") from error


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write bytes, as :func:`atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it for this run: another run that wants it fails at once.

    What a killed run was writing there is removed. Folders that were made here and are empty at the
    end go again.

    Raises:
        OSError: the folder cannot be made or written to, or another run holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OSError(
            f"{folder}: got another run that writes to it now, expected none; wait for its end, or "
            "give another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{folder}: cannot be written to ({reason}); give another folder") from None
    try:
        remove_leftovers(folder)
        for scratch in folder.glob(f"{TEMPORARY}*/"):
            shutil.rmtree(scratch)
        yield
    finally:
        with suppress(OSError):  # before it is let go: who waits for it then takes a new one
            (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            for path in made:
                path.rmdir()


def check_space(folder: Path, needed: int, remedy: str) -> None:
    """Raise OSError where so many bytes do not fit on the disk of a folder.

    Args:
        folder: that is there, or is to be made.
        needed: bytes.
        remedy: what to do, beside freeing some.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{folder}: got {free / MEGABYTE:.1f} MB of free space, expected "
            f"{needed / MEGABYTE:.1f} MB; free some, or {remedy}"
        )


def check_output(path: Path, mark: str, inputs: Collection[Path] = ()) -> None:
    """Raise unless a file can be written where nothing is, or what the same command wrote before.

    Args:
        path: of the file.
        mark: text near the beginning of such files, by which they are known.
        inputs: files that the command reads.

    Raises:
        ValueError: an input, or another file.
        OSError: a folder, or no folder to write to.
    """
    _check_place(path)
    if not path.exists():
        return
    if any(is_same(path, other) for other in inputs):
        raise ValueError(f"{path}: got an input of this command as --out, expected another name")
    if not has_mark(path, mark):
        raise ValueError(
            f"{path}: got a file that this command did not write, expected none; move it, or give "
            "another --out"
        )


def has_mark(path: Path, mark: str) -> bool:
    """Whether a file is there that has a mark near its beginning."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark.encode() in file.read(MARKED)


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _check_place(path: Path) -> None:
    """Raise OSError where no file can be."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder; what is being written stays."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError), _opened(path, os.O_RDWR) as descriptor:
            if _lock(descriptor):
                path.unlink()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, locked as long as it is being written."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
        with _opened(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            if _lock(descriptor) is False or not temporary.exists():
                continue  # another process took it for a leftover before it was locked
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            return


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether a file could be locked; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flush(path: Path) -> None:
    """Have the system write a file, or what a folder lists, to the disk."""
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def save_json(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a mapping as JSON, whole or not at all.

    JSON knows no NaN, which R-hat is for a single chain: what is not finite becomes null, and what
    is of no JSON type its text.
    """
    strict = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(strict, indent=1) + "\n")
