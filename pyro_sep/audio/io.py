"""Audio files, mono or as they are, and frames of audio."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor

from pyro_sep.audio.decoding import Decoder
from pyro_sep.audio.inputs import open_input
from pyro_sep.audio.resampling import check_rate, resample
from pyro_sep.audio.soundfiles import NotBySoundfileError, soundfile_decoder
from pyro_sep.audio.streams import STEM_MP4, STREAMS, missing_program, stream_decoder
from pyro_sep.checks.names import printable
from pyro_sep.storage.files import atomic_write_bytes
from pyro_sep.trace.channels import CHANNELS, SIDE, mean_and_half

FORMATS = {"wav": "FLOAT", "flac": "PCM_24"}  # that are written, and what their samples are
CANCELLED_DB = -20.0  # of two channels' mean to the channels, from where on they cancel
GONE_DB = -60.0  # from where on nothing is left of them but rounding
ENDLESS = 2**62  # audio samples


class Recording(NamedTuple):
    """An audio file as read, mono and at the rate asked for.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", torch.zeros(2, 441), 44_100)
    ...     recording = load_audio(f"{folder}/a.wav", 16_000)
    >>> recording.notes
    ('mixed down from 2 channels', 'resampled from 44100 Hz to 16000 Hz')
    """

    samples: Tensor  # (time,), float32, full scale is 1; (channel, time) where stereo was asked for
    sample_rate: int  # Hz
    original: Tensor  # (channel, time), as in the file; the channel alone where one was asked for
    original_rate: int  # Hz
    notes: tuple[str, ...]  # what was done to the audio, a line each


def load_audio(
    path: str | PathLike[str],
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    stereo: bool = False,
) -> Recording:
    """Read an audio file, mix it down to mono by the mean of its channels, and resample it.

    Args:
        path: a file in any format that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...), or, where
            ffmpeg is installed, ffmpeg (M4A, WMA, WavPack, ...); a pipe of one; or a .stem.mp4, of
            which the mixture is read, by ffmpeg.
        sample_rate: rate of the samples returned, in Hz.
        start: of the excerpt to take, in seconds. What is before it and after it is not held.
        duration: of the excerpt in seconds, at most until the end, which None stands for.
        channel: in place of the mean of all, one by its number from 1, or ``"side"``, half the
            difference of two.
        stereo: both channels, ``(channel, time)``, in place of their mean.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder or a device, not audio, a file that is cut off, a rate below 1 kHz or
            above 768 kHz, no audio samples, NaN or infinity; an excerpt that holds nothing; a
            channel that is not there; channels that cancel; no ffmpeg for a file that needs it.
        OSError: the file cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", torch.zeros(2, 441), 44_100)
    ...     recording = load_audio(f"{folder}/a.wav", 16_000)
    >>> recording.samples.shape, recording.original.shape
    (torch.Size([160]), torch.Size([2, 441]))
    """
    excerpt = _read(path, start, duration)
    channels, rate, notes = excerpt.channels, excerpt.rate, list(excerpt.notes)
    owner = printable(path)
    if stereo and (channel is not None or len(channels) != CHANNELS):
        got = f"{len(channels)} channels" if channel is None else f"channel {channel}"
        raise ValueError(
            f"{owner}: got {got}, expected both of two channels, by which sources are told apart; "
            "give audio of two, or separate in mono, without wide sources"
        )
    if channel is not None:
        channels, note = chosen_channel(owner, channels, channel)
        notes.append(note)
    elif len(channels) > 1 and not stereo:
        notes.append(f"mixed down from {len(channels)} channels")
        notes += _cancelled(owner, channels)
    if rate != sample_rate:
        notes.append(f"resampled from {rate} Hz to {sample_rate} Hz")
    samples = resample(channels if stereo else channels.mean(0), rate, sample_rate)
    return Recording(samples, sample_rate, channels, rate, tuple(notes))


def read_audio(path: str | PathLike[str]) -> tuple[Tensor, int]:
    """Read an audio file as it is.

    Of an MP3 that is cut off and does not say how long it is, what there is.

    Args:
        path: as in :func:`load_audio`.

    Returns:
        ``(channel, time)`` in float32, full scale is 1, and the rate in Hz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`load_audio`, but for excerpts and channels.
        OSError: the file cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", torch.zeros(2, 441), 44_100)
    ...     audio, rate = read_audio(f"{folder}/a.wav")
    >>> audio.shape, rate
    (torch.Size([2, 441]), 44100)
    """
    excerpt = _read(path)
    return excerpt.channels, excerpt.rate


def audio_length(path: str | PathLike[str]) -> tuple[int, int]:
    """How many audio samples a file has, and its rate in Hz; it is decoded, and not held.

    Raises:
        ValueError: as :func:`read_audio`.
        OSError: the file cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", torch.zeros(2, 441), 44_100)
    ...     audio_length(f"{folder}/a.wav")
    (441, 44100)
    """
    with _decoder(path) as decoder:
        return decoder.skip(ENDLESS), decoder.rate


class _Excerpt(NamedTuple):
    channels: Tensor  # (channel, time)
    rate: int
    notes: list[str]


def _read(path: str | PathLike[str], start: float = 0.0, duration: float | None = None) -> _Excerpt:
    """A part of a file, or all of it."""
    owner = printable(path)
    with _decoder(path) as decoder:
        rate = decoder.rate
        check_rate(owner, rate)
        length = math.inf if duration is None else duration
        valid = start >= 0 and length > 0  # and neither is NaN
        first, count = (_time(start, rate), _time(length, rate)) if valid else (0, 0)
        before = decoder.skip(first)
        frames = decoder.take(count + 1)  # one more says whether there is more
        if first == 0 and count == ENDLESS and not len(frames):
            raise ValueError(f"{owner}: got 0 audio samples, expected at least 1; record it again")
        if not len(frames[:count]):
            total = before + len(frames) + decoder.skip(ENDLESS)
            asked = "" if duration is None else f" of {duration:g} s"
            raise ValueError(
                f"{owner}: got an excerpt{asked} from {start:g} s on, expected one that holds some "
                f"of its {total / rate:.3f} s; start earlier, or take more"
            )
    channels = torch.from_numpy(frames[:count]).T
    if not channels.isfinite().all():
        raise ValueError(f"{owner}: got NaN or infinity, expected finite samples; export it again")
    notes = []
    if first or len(frames) > count:
        kept = channels.shape[-1] / rate
        notes.append(f"cut to {kept:.3f} s from {first / rate:.3f} s on")
    return _Excerpt(channels, rate, notes)


def _time(seconds: float, rate: int) -> int:
    """Audio samples of a time, which may be infinite."""
    return round(min(seconds * rate, ENDLESS))


@contextmanager
def _decoder(path: str | PathLike[str]) -> Iterator[Decoder]:
    """Decode a file from its beginning: by libsndfile, else by ffmpeg."""
    owner = printable(path)
    with open_input(path) as (file, place), ExitStack() as stack:
        if Path(path).name.lower().endswith(STEM_MP4):
            mixture = stream_decoder(place, owner, STREAMS["mixture"], "mixture")
            yield stack.enter_context(mixture)
            return
        try:
            decoder = stack.enter_context(soundfile_decoder(file, owner))
        except NotBySoundfileError as error:
            if program := missing_program():
                raise ValueError(
                    f"{owner}: got no readable audio ({error}), expected WAV, FLAC, OGG or MP3, or "
                    f"{program}, which also reads M4A, WMA and others; convert the file, or "
                    "apt-get install ffmpeg"
                ) from error
            decoder = stack.enter_context(stream_decoder(place, owner))
        yield decoder


def chosen_channel(owner: str, channels: Tensor, channel: int | str) -> tuple[Tensor, str]:
    """A channel ``(1, time)`` by its number or as the side, and what to say of it.

    Raises:
        ValueError: a channel that is not there; the message begins with the owner's name.
    """
    if channel == SIDE and len(channels) == CHANNELS:
        _, side = mean_and_half(*channels)
        return side[None], "took the side, half the difference of its 2 channels"
    try:
        number = int(channel)
    except ValueError:
        number = 0
    if not 1 <= number <= len(channels):
        expected = f"1 to {len(channels)}" + (f" or {SIDE}" if len(channels) == CHANNELS else "")
        raise ValueError(
            f"{owner}: got channel {channel}, expected {expected}; it has {len(channels)}"
        )
    return channels[number - 1 : number], f"took channel {number} of {len(channels)}"


def _cancelled(owner: str, channels: Tensor) -> list[str]:
    """What to say where the mean of channels is far softer than they are.

    That of N channels which have nothing in common is N times, of two 3 dB, softer than they are.
    """
    powers = channels.square().mean(1, dtype=torch.float64)
    kept = float(channels.mean(0).square().mean(dtype=torch.float64))
    whole = float(powers.mean()) * 2 / len(channels)
    if whole == 0 or kept >= whole * 10 ** (CANCELLED_DB / 10):
        return []
    lost = "nothing" if kept == 0 else f"{10 * math.log10(kept / whole):.0f} dB"
    said = f"the channels cancel: of their level, {lost} is left in mono, as if one is phase "
    said += f"inverted; take one by --channel 1, or half the difference of two by --channel {SIDE}"
    if kept < whole * 10 ** (GONE_DB / 10):
        raise ValueError(f"{owner}: got nothing to separate, expected mono audio; {said}")
    return [said]


def save_audio(path: str | PathLike[str], samples: Tensor, sample_rate: int) -> None:
    """Write a WAV of 32-bit floats or a FLAC of 24 bits, whole or not at all.

    Samples read back from a WAV are equal bit for bit, also beyond full scale. The files of two
    runs differ in four bytes: libsndfile writes the time of day into the PEAK chunk. Those of a
    FLAC are rounded to 2^-23, 138 dB below full scale, beyond which there are none.

    Args:
        path: where to; the name ends in ``.wav`` or ``.flac``.
        samples: ``(time,)`` or ``(channel, time)``, full scale is 1.
        sample_rate: in Hz.

    Raises:
        ValueError: another suffix, another shape, NaN or infinity, a FLAC beyond full scale.
        OSError: the file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_audio(f"{folder}/a.wav", torch.zeros(2, 441), 44_100)
    ...     read_audio(f"{folder}/a.wav")[0].shape
    torch.Size([2, 441])
    """
    path = Path(path)
    audio_format = path.suffix.lower()[1:]
    if audio_format not in FORMATS:
        raise ValueError(
            f"{path}: got suffix {path.suffix!r}, expected '.wav' or '.flac'; rename it"
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)}, expected (time,) or (channel, time)"
        )
    if not samples.isfinite().all():
        raise ValueError(f"{path}: got NaN or infinity to write, expected finite samples")
    if audio_format == "flac":
        check_peak(path, samples)
    atomic_write_bytes(path, encoded(samples, sample_rate, audio_format))


def encoded(samples: Tensor, sample_rate: int, audio_format: str) -> memoryview:
    """The bytes of a file of samples ``(time,)`` or ``(channel, time)``.

    Raises:
        ValueError: more channels or another rate than the format can have.
    """
    content = BytesIO()  # not a file: libsndfile does not notice that a disk is full
    frames = samples.detach().cpu().float().numpy().T
    subtype, name = FORMATS[audio_format], audio_format.upper()
    try:
        soundfile.write(content, frames, sample_rate, subtype, format=name)
    except soundfile.LibsndfileError as error:
        channels = 1 if samples.ndim == 1 else len(samples)
        raise ValueError(
            f"format: got {channels} channels at {sample_rate} Hz for {name}, expected what it can "
            "hold; use wav, or fewer channels"
        ) from error
    return content.getbuffer()


def check_peak(path: str | PathLike[str], samples: Tensor) -> None:
    """Raise ValueError where samples are beyond full scale, which ends a FLAC."""
    peak = float(samples.abs().max()) if samples.numel() else 0.0
    if peak > 1:
        raise ValueError(f"{path}: got a peak of {peak:.3g}, expected at most 1 in a FLAC; use WAV")


def active_frames(samples: Tensor, time: int, threshold_db: float = -60.0) -> Tensor:
    r"""Cut audio into non-overlapping frames and drop the silent ones.

    A frame x is kept where its level reaches the threshold:

    .. math:: 10 \log_{10} \frac{1}{T} \sum_t x_t^2 \ge \mathrm{threshold}

    Args:
        samples: ``(time,)``, full scale is 1; a last frame that is not full is dropped.
        time: audio samples per frame.
        threshold_db: level in dB re full scale.

    Returns:
        ``(frame, time)``, possibly with no frame.

    Raises:
        ValueError: not ``(time,)``, or frames of no audio sample.

    >>> active_frames(torch.cat([torch.zeros(256), torch.ones(256)]), 128).shape
    torch.Size([2, 128])
    """
    if samples.ndim != 1:
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected (time,)")
    if time < 1:
        raise ValueError(f"time: got {time}, expected at least 1 audio sample per frame")
    count = len(samples) // time
    frames = samples[: count * time].reshape(count, time)
    return frames[frames.square().mean(1) >= 10 ** (threshold_db / 10)]
