"""What a user names as an input: a file, or a pipe that is read once."""

import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

from pyro_sep.checks.names import printable

MAX_PIPE = 4 * 2**30  # bytes; a pipe such as /dev/zero may have no end
BLOCK = 2**20


@contextmanager
def open_input(path: str | PathLike[str]) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a file that is open, unbuffered since libsndfile moves its position, and its path.

    A pipe, such as ``<(ffmpeg ... -)`` in a shell, is copied to a temporary file, since decoders
    go back and forth.

    Args:
        path: in any encoding.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a device, or a pipe of more than 4 GiB.
        OSError: it cannot be read.
    """
    path, owner = Path(path), printable(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{owner}: got a folder, expected an audio file; name a file in it")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise ValueError(f"{owner}: got a device, expected a file or a pipe; name a file")
        file = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{owner}: no such file; check the path") from error
    except OSError as error:
        raise OSError(f"{owner}: cannot be read ({error.strerror}); check its rights") from error
    with file:
        if stat.S_ISREG(mode):
            yield file, path
        else:
            with tempfile.NamedTemporaryFile(prefix="pyro-sep-") as copy:
                _copy(file, copy, owner)
                with open(copy.name, "rb", buffering=0) as copied:
                    yield copied, Path(copy.name)


def _copy(pipe: IO[bytes], copy: IO[bytes], owner: str) -> None:
    try:
        while block := pipe.read(BLOCK):
            if copy.tell() + len(block) > MAX_PIPE:
                raise ValueError(
                    f"{owner}: got a pipe of more than {MAX_PIPE // 2**30} GiB, expected less; "
                    "write it to a file"
                )
            copy.write(block)
        copy.flush()
    except OSError as error:
        raise OSError(f"{owner}: could not be copied ({error.strerror}); check space") from error
