"""Audio by ffmpeg: the streams of a .stem.mp4, and formats that libsndfile lacks.

A .stem.mp4 holds a mixture and its stems in one file; M4A, WMA, WavPack and others hold one stream.
ffmpeg is given a local file and nothing else: no name of one is an address or an option to it, and
no playlist leads it to another file.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_sep.audio.decoding import Decoder
from pyro_sep.checks.names import printable

STEM_MP4 = ".stem.mp4"
STREAMS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}  # musdb18's order
SLACK = 0.1  # seconds by which a decoder may differ from the header
# ffmpeg's names of formats. Those of the second line do not say how long they are: ffprobe guesses.
CONTAINERS = (
    "aiff,ape,asf,au,caf,flac,matroska,mov,mp4,m4a,mpc,mpc8,ogg,tak,tta,voc,w64,wav,webm,wv"
)
BARE = "aac,ac3,amr,dts,eac3,mp3"
SURE = 50  # of 100, how sure ffprobe is of a format; less is a guess, as of random bytes
GUARDS = ("-protocol_whitelist", "file", "-format_whitelist", f"{CONTAINERS},{BARE}")


def missing_program() -> str | None:
    """That program of ffmpeg which is not installed."""
    return next((name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None), None)


def read_stream(path: Path, name: str) -> tuple[Tensor, int]:
    """Read one stream of a .stem.mp4 as it is.

    Args:
        path: the file.
        name: one of :data:`STREAMS`.

    Returns:
        ``(channel, time)`` in float32, full scale is 1, beyond which mixtures may go; and the rate
        in Hz.

    Raises:
        ValueError: ffmpeg is missing, no readable audio, or a file that is cut off.
    """
    with stream_decoder(path, printable(path), STREAMS[name], name) as decoder:
        return torch.from_numpy(decoder.take()).T, decoder.rate


@contextmanager
def stream_decoder(path: Path, owner: str, index: int = 0, name: str = "it") -> Iterator[Decoder]:
    """Decode an audio stream of a file.

    Args:
        path: the file.
        owner: how it is called in errors.
        index: of the stream, among those of audio.
        name: of the stream, in errors.

    Raises:
        ValueError: ffmpeg is missing, or no readable audio.
    """
    if program := missing_program():
        raise ValueError(
            f"{owner}: got no decoder ({program} is not on the path), expected ffmpeg and ffprobe; "
            "apt-get install ffmpeg"
        )
    info, expected = _probe(path, owner, index, name)
    options = ["-map", f"0:a:{index}", "-f", "f32le"]
    options += ["-ar", str(info["sample_rate"]), "-ac", str(info["channels"])]
    command = ["ffmpeg", "-v", "error", "-nostdin", *GUARDS, "-i", _url(path), *options, "-"]
    with (
        tempfile.TemporaryFile() as report,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=report) as process,
    ):
        try:
            yield _FfmpegDecoder(process, report, info, expected, f"{owner}: {{}} of {name}")
        finally:
            process.kill()


class _FfmpegDecoder(Decoder):
    def __init__(
        self,
        process: subprocess.Popen[bytes],
        report: IO[bytes],
        info: dict[str, Any],
        expected: int,
        said: str,
    ) -> None:
        self.rate, self.channels = int(info["sample_rate"]), int(info["channels"])
        self._process, self._report, self._said = process, report, said
        self._expected, self._got = expected, 0

    def read(self, count: int) -> NDArray[np.float32]:
        assert self._process.stdout is not None
        content = self._process.stdout.read(count * self.channels * 4)
        values = len(content) // (self.channels * 4) * self.channels
        block = np.frombuffer(content, "<f4", values).reshape(-1, self.channels)
        self._got += len(block)
        if not len(block):
            self._check_end()
        return block

    def _check_end(self) -> None:
        if self._process.wait() and not self._got:
            self._report.seek(0)
            reason = _last_words(self._report.read())
            raise ValueError(
                self._said.format("got no readable audio") + f" ({reason}); replace the file"
            )
        if self._got < self._expected - SLACK * self.rate:
            raise ValueError(
                self._said.format(f"got {self._got} audio samples")
                + f", expected {self._expected}; the file is cut off, copy it again"
            )


def _probe(path: Path, owner: str, index: int, name: str) -> tuple[dict[str, Any], int]:
    """What ffprobe knows of a stream, and how many audio samples there should be at least."""
    command = ["ffprobe", "-v", "error", *GUARDS, "-of", "json", "-show_streams", "-show_format"]
    done = subprocess.run([*command, "-select_streams", "a", "-i", _url(path)], capture_output=True)
    try:
        found = json.loads(done.stdout)
        stream, form = found["streams"][index], found["format"]
        if form["probe_score"] < SURE or int(stream["sample_rate"]) < 1:
            raise ValueError
        ticks = stream.get("duration_ts", 0) * Fraction(stream["time_base"])
        seconds = ticks or float(form.get("duration", 0))
        if int(stream["channels"]) < 1:
            raise ValueError
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        reason = _last_words(done.stderr) or "no such stream in it"
        raise ValueError(
            f"{owner}: got no readable audio of {name} ({reason}); replace the file"
        ) from error
    known = not set(form["format_name"].split(",")) & set(BARE.split(","))
    return stream, round(seconds * int(stream["sample_rate"])) if known else 0


def _url(path: Path) -> str:
    """A path that ffmpeg takes for nothing but a file."""
    return f"file:{os.path.abspath(path)}"


def _last_words(report: bytes) -> str:
    """What ffmpeg or ffprobe printed last, without the file's name."""
    lines = report.decode(errors="replace").strip().splitlines()
    return printable(re.sub(r"\[.*?\] ", "", lines[-1]).rpartition(": ")[2]) if lines else ""
