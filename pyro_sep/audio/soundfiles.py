"""Audio by libsndfile, to the end of a file and never beyond what is known of it."""

import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from pyro_sep.audio.decoding import Decoder
from pyro_sep.audio.headers import Patched, lacks_bytes, mended

UNKNOWN = 2**62  # audio samples from which on nobody has counted them
# Sizes that writers into a pipe give, who do not know them: up to 4 KiB below 2 or 4 GB, or more.
UNKNOWN_SIZES = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 0x100000000))
SIZE = re.compile(
    r"^ *(?:data|SSND|Data Size|Data length|riff|Riff size) *:? (\d+) \(?should be (\d+)", re.M
)
SEEKS_EXACTLY = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # and a FLAC's samples, PCM too
# The first frame of an MP3 may say how many there are: silence, then a word.
COUNTED = re.compile(rb"\xff[\xe2-\xff]..(?:..)?\0{9,32}(?:Xing|Info)", re.DOTALL)
PAGE, FIRST_PAGE = re.compile(rb"OggS\0[\0\1\4\5]"), re.compile(rb"OggS\0[\2\3\6\7]")
TAG_SIZE = 128  # bytes of an ID3v1 tag
LAST_PAGE = 4  # the bit that says so


class NotBySoundfileError(ValueError):
    """Libsndfile does not know the format, or cannot read all of the file; ffmpeg perhaps can."""


@contextmanager
def soundfile_decoder(file: IO[bytes], owner: str) -> Iterator[Decoder]:
    """Decode a file from its beginning.

    Args:
        file: a regular file that is open; its position moves.
        owner: how it is called in errors.

    Raises:
        NotBySoundfileError: see there.
        ValueError: a file that is cut off.
    """
    if lacks_bytes(file):
        raise ValueError(_cut_off(owner, "less audio", "all of its header"))
    patch, tagged = mended(file), _is_tagged(file)
    file.seek(0)
    with ExitStack() as stack:
        mended_file = file.fileno() if patch is None else Patched(file.fileno(), patch)
        opened = stack.enter_context(_opened(mended_file))
        mp3 = opened.subtype.startswith("MPEG") and opened.format != "MP3"
        if opened.format == "VOC" or mp3:
            raise NotBySoundfileError(f"{opened.format} of {opened.subtype}, which it misreads")
        if opened.format == "FLAC" and tagged:
            raise NotBySoundfileError("a tag at its end, which it takes for audio")
        if opened.format in ("MP3", "OGG"):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if opened.format == "OGG" and not _ends(content):
                    raise ValueError(_cut_off(owner, "no last page", "one"))
                if _joined(content, opened.format):
                    raise NotBySoundfileError("several files end to end, of which it reads one")
        if _lacks_bytes(opened.extra_info):
            raise ValueError(_cut_off(owner, f"{opened.frames} samples", "more by its header"))
        if opened.format == "MP3":
            # Of a file that it may seek in, libsndfile guesses the length, and stops there.
            opened = stack.enter_context(_opened(stack.enter_context(_piped(file))))
        yield _SoundFileDecoder(opened, owner)


class _Onward(soundfile.SoundFile):
    """Reads on and on.

    soundfile seeks after each block to where it is already, which is inexact in an MP3, and fails
    at the end of a FLAC of unknown length.
    """

    def seekable(self) -> bool:
        return False


class _SoundFileDecoder(Decoder):
    def __init__(self, file: soundfile.SoundFile, owner: str) -> None:
        self.rate, self.channels = file.samplerate, file.channels
        self._file, self._owner, self._position = file, owner, 0

    def read(self, count: int) -> NDArray[np.float32]:
        try:
            block = self._file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{self._owner}: got no readable audio after {self._position} audio samples "
                f"({error.error_string}); the file is damaged or cut off, copy it again"
            ) from error
        self._position += len(block)
        if not len(block) and self._position < self._file.frames < UNKNOWN:
            got, expected = f"{self._position} samples", str(self._file.frames)
            raise ValueError(_cut_off(self._owner, got, expected))
        return block

    def skip(self, count: int) -> int:
        frames = self._file.frames
        if not self._file.subtype.startswith(SEEKS_EXACTLY) or frames >= UNKNOWN:
            return super().skip(count)
        try:
            skipped = self._file.seek(min(count, frames - self._position), soundfile.SEEK_CUR)
        except soundfile.LibsndfileError:  # an unseekable file
            return super().skip(count)
        skipped, self._position = skipped - self._position, skipped
        return skipped


@contextmanager
def _opened(file: int | Patched) -> Iterator[soundfile.SoundFile]:
    """By descriptor, since libsndfile takes no name that is not UTF-8."""
    try:
        opened = _Onward(file, closefd=False)
    except soundfile.LibsndfileError as error:
        raise NotBySoundfileError(error.error_string) from error
    with opened:
        yield opened


@contextmanager
def _piped(file: IO[bytes]) -> Iterator[int]:
    """The end of a pipe where a file comes out."""
    out, into = os.pipe()
    file.seek(0)
    thread = Thread(target=_pump, args=(file, into), daemon=True)
    thread.start()
    try:
        yield out
    finally:
        os.close(out)
        thread.join()


def _pump(file: IO[bytes], into: int) -> None:
    with suppress(BrokenPipeError), open(into, "wb") as pipe:
        shutil.copyfileobj(file, pipe)


def _is_tagged(file: IO[bytes]) -> bool:
    """Whether a file ends with an ID3v1 tag, as some programs append to any audio."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAG_SIZE))
    return file.read(3) == b"TAG"


def _lacks_bytes(log: str) -> bool:
    """Whether libsndfile's log says that a file is shorter than its header."""
    return "Seems to be a truncated file" in log or any(
        int(real) < int(size) < UNKNOWN and not any(int(size) in sizes for sizes in UNKNOWN_SIZES)
        for size, real in SIZE.findall(log)
    )


def _ends(content: mmap.mmap) -> bool:
    """Whether an OGG has its last page, and all of it."""
    page = content.rfind(b"OggS")
    lengths = (
        content[page + 27 : page + 27 + content[page + 26]] if page + 27 <= len(content) else b""
    )
    end = page + 27 + len(lengths) + sum(lengths)
    return len(lengths) > 0 and bool(content[page + 5] & LAST_PAGE) and end <= len(content)


def _joined(content: mmap.mmap, audio_format: str) -> bool:
    """Whether an MP3 or OGG is several files, one after the other; libsndfile reads the first."""
    if audio_format == "MP3":
        return len(COUNTED.findall(content)) > 1
    page = PAGE.search(content)
    return page is not None and FIRST_PAGE.search(content, page.end()) is not None


def _cut_off(owner: str, got: str, expected: str) -> str:
    return f"{owner}: got {got}, expected {expected}; the file is cut off, copy it again"
