"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` once the block has succeeded.

    The temporary file lies in the same folder, since a rename is atomic within one file system
    only, and keeps the suffix, by which many writers choose the format. Whatever ends the block
    early, an interrupt included, removes it and leaves an older file at ``path`` as it was.

    Args:
        path: the file to write.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        IsADirectoryError: ``path`` is a folder.
        OSError: the block or the renaming failed with it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: could not be written ({reason}); check space and rights") from error
    finally:
        temporary.unlink(missing_ok=True)
