"""Files that are written whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def load_figures(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> list[Any]:
    """What :func:`save_json` kept of an experiment: ``mixtures``, those of these ``settings``.

    Args:
        path: the file; none are there yet where it does not exist.
        settings: that the figures must have been made with.

    Raises:
        ValueError: they were made with others.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        raise ValueError(
            f"{path}: got figures of {content['settings']}, expected {settings}; give another --out"
        )
    return list(content["mixtures"])


def save_json(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a mapping as JSON, whole or not at all.

    JSON knows no NaN, which R-hat is for a single chain: what is not finite becomes null, and what
    is of no JSON type its text.
    """
    strict = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(strict, indent=1) + "\n")
