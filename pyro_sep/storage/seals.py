"""A checksum at the end of a file: damage is known before a reader of its format sees the file.

Readers of HDF5 and ZIP take no notice of a line at the end of a file. Ours holds the file's format
and version and the SHA-256 of all that precedes the digits::

    pyro_sep.training.2 <64 hexadecimal digits>

It guards against damage alone. Who means harm can seal a file anew, so what is read is checked too.
"""

import hashlib
import os
import re
from pathlib import Path

DIGITS = 2 * hashlib.sha256().digest_size
PREFIX = b"pyro_sep."
SEAL = re.compile(rb"(pyro_sep\.\w+\.\d+) [0-9a-f]{64}$")
BLOCK = 1 << 20  # bytes


def seal_length(kind: str) -> int:
    """Bytes of a seal of this format."""
    return len(_head(kind)) + DIGITS


def sealed(content: bytes | memoryview, kind: str) -> bytes:
    """Content and its seal.

    Args:
        content: of a file.
        kind: its format and version, such as ``"trace.1"``.
    """
    body = bytes(content) + _head(kind)
    return body + hashlib.sha256(body).hexdigest().encode()


def check_seal(path: Path, kind: str) -> None:
    """Raise ValueError, which says what a file is, unless it is whole and of this format.

    Args:
        path: of the file.
        kind: its format and version.

    Raises:
        OSError: it cannot be read.
    """
    if not os.path.isfile(path):  # a device has no end
        raise OSError(f"{path}: got no regular file, expected one; give another name")
    size, head = os.path.getsize(path), _head(kind)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(max(0, size - 2 * DIGITS))  # formats have short names
        end = file.read()
        if not end[:-DIGITS].endswith(head):
            raise ValueError(_what_else(end))
        file.seek(0)
        left = size - DIGITS
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest().encode() != end[-DIGITS:]:
        raise ValueError("it is damaged")


def _head(kind: str) -> bytes:
    return PREFIX + kind.encode() + b" "


def _what_else(end: bytes) -> str:
    """What a file is that does not end as it should."""
    if found := SEAL.search(end):
        return f"it is of the format {found[1].decode()!r}"
    return "it is cut off, damaged, or of another version" if end else "it is empty"
