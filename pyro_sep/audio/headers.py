"""Headers whose sizes were not known when they were written, as into a pipe, or are too large.

ffmpeg, sox, GStreamer and recorders that were killed write 0 or the largest number. libsndfile
knows the largest of WAV, AU and W64, and ffmpeg's AIFF; others are mended here as the file is read.
"""

import io
import os
import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

UNKNOWN = 2**62  # bytes from which on nobody has counted them
ENDLESS = b"\xff\xff\xff\xff"


class Patch(NamedTuple):
    """Bytes to read in place of those that are there."""

    start: int
    content: bytes


class Patched(io.FileIO):
    """A file, as if some of its bytes were others.

    Args:
        descriptor: of the file, which stays open.
        patch: the other bytes.
    """

    def __init__(self, descriptor: int, patch: Patch) -> None:
        super().__init__(descriptor, closefd=False)
        self._patch = patch

    def readinto(self, buffer: Any) -> int:
        """Read as :meth:`io.FileIO.readinto`."""
        position, count = self.tell(), super().readinto(buffer)
        start, content = self._patch
        first, last = max(start, position), min(start + len(content), position + count)
        if first < last:
            view = memoryview(buffer).cast("B")
            view[first - position : last - position] = content[first - start : last - start]
        return count


def mended(file: IO[bytes]) -> Patch | None:
    """What to read in place of a size that nobody counted; None where nothing is to be mended."""
    file.seek(0)
    head = file.read(36)
    if head.startswith(b"RF64"):  # whose data chunk has the size of an endless RIFF
        return None if 0 < _rf64_size(head) < UNKNOWN else Patch(0, b"RIFF")
    if head.startswith(b".snd") and head[8:12] == bytes(4):
        return Patch(8, ENDLESS)
    if head.startswith(b"RIFF"):
        for start, size, rest in _chunks(file, 12, "<4sI", b"data"):
            if size == 0 and rest and not _is_chunk(file, start + 8, rest):
                return Patch(start + 4, ENDLESS)
    if head.startswith(b"caff"):
        for start, size, rest in _chunks(file, 8, ">4sq", b"data"):
            if size < 0:
                return Patch(start + 4, struct.pack(">q", rest))
    return None


def lacks_bytes(file: IO[bytes]) -> bool:
    """Whether a CAF or RF64 is shorter than its header; of other formats libsndfile says so."""
    file.seek(0)
    head = file.read(36)
    if head.startswith(b"RF64"):
        size = _rf64_size(head)
        return size < UNKNOWN and size > os.fstat(file.fileno()).st_size
    return head.startswith(b"caff") and any(
        size > rest for _, size, rest in _chunks(file, 8, ">4sq", b"data")
    )


def _rf64_size(head: bytes) -> int:
    """Bytes of audio in a RF64 by its header, 0 where it does not say."""
    return int.from_bytes(head[28:36], "little") if head[12:16] == b"ds64" else 0


def _chunks(file: IO[bytes], start: int, form: str, name: bytes) -> Iterator[tuple[int, int, int]]:
    """Of the first chunk of a name, where it begins, its size, and the bytes that there are."""
    length, header = os.fstat(file.fileno()).st_size, struct.calcsize(form)
    while start + header <= length:
        file.seek(start)
        found, size = struct.unpack(form, file.read(header))
        if found == name:
            yield start, size, length - start - header
            return
        if size < 0:
            return
        start += header + size + (size % 2 if form.startswith("<") else 0)


def _is_chunk(file: IO[bytes], start: int, rest: int) -> bool:
    """Whether a chunk follows, as after a WAV that is empty."""
    file.seek(start)
    name, size = file.read(4), file.read(4)
    return name.isalnum() and len(size) == 4 and struct.unpack("<I", size)[0] <= rest - 8
