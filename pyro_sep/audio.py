"""Audio files, sample rates, frames and mu-law cells."""

import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from pyro_sep.files import written_whole
from pyro_sep.streams import STEM_MP4, read_stream

FORMATS = {"wav": "FLOAT", "flac": "PCM_24"}  # that are written, and what their samples are
UNKNOWN_SIZE = 0x7FFFF000  # bytes from which on it is what sox or ffmpeg write into a pipe


class Recording(NamedTuple):
    """An audio file as read, mono and at the rate asked for."""

    samples: Tensor  # (time,), float32, full scale is 1
    sample_rate: int  # Hz
    original: Tensor  # (channel, time), as in the file
    original_rate: int  # Hz
    notes: tuple[str, ...]  # what was done to the audio, a line each


def load_audio(
    path: str | PathLike[str], sample_rate: int, start: float = 0.0, duration: float | None = None
) -> Recording:
    """Read an audio file, mix it down to mono by the mean of its channels, and resample it.

    Args:
        path: a file in any format that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...), or a
            .stem.mp4, of which the mixture is read; that needs ffmpeg.
        sample_rate: rate of the samples returned, in Hz.
        start: of the excerpt to take, in seconds.
        duration: of the excerpt in seconds, at most until the end, which None stands for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not audio, a WAV, AIFF, FLAC or .stem.mp4 that is cut off, no audio
            samples, NaN or infinity; an excerpt that holds nothing; no ffmpeg for a .stem.mp4.
    """
    whole, original_rate = read_audio(path)
    first = round(start * original_rate)
    last = None if duration is None else first + round(duration * original_rate)
    channels = whole[:, first:last]
    if start < 0 or channels.shape[-1] == 0:
        asked = "" if duration is None else f" of {duration:g} s"
        raise ValueError(
            f"{path}: got an excerpt{asked} from {start:g} s on, expected one that holds some of "
            f"its {whole.shape[-1] / original_rate:.3f} s; start earlier, or take more"
        )
    notes = []
    if channels.shape[-1] < whole.shape[-1]:
        length = channels.shape[-1] / original_rate
        notes.append(f"cut to {length:.3f} s from {first / original_rate:.3f} s on")
    if len(channels) > 1:
        notes.append(f"mixed down from {len(channels)} channels")
    if original_rate != sample_rate:
        notes.append(f"resampled from {original_rate} Hz to {sample_rate} Hz")
    samples = torchaudio.functional.resample(channels.mean(0), original_rate, sample_rate)
    return Recording(samples, sample_rate, channels, original_rate, tuple(notes))


def read_audio(path: str | PathLike[str]) -> tuple[Tensor, int]:
    """Read an audio file as it is.

    Of an MP3 or OGG that is cut off, streams which need not say how long they are, what there is.

    Args:
        path: as in :func:`load_audio`.

    Returns:
        ``(channel, time)`` in float32, full scale is 1, and the rate in Hz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`load_audio`, but for excerpts.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected an audio file; name a file in it")
    if path.name.endswith(STEM_MP4):
        channels, rate = read_stream(path, "mixture")
    else:
        channels, rate = _read_file(path)
    if channels.shape[-1] == 0:
        raise ValueError(f"{path}: got 0 audio samples, expected at least 1; record it again")
    if not channels.isfinite().all():
        raise ValueError(f"{path}: got NaN or infinity, expected finite samples; export it again")
    return channels, rate


def _read_file(path: Path) -> tuple[Tensor, int]:
    """Audio ``(channel, time)`` by libsndfile, and its rate."""
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            cut_off = _lacks_bytes(file.extra_info)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: header-less .raw
        reason = str(error).rsplit(": ", 1)[-1]
        raise ValueError(
            f"{path}: got no readable audio ({reason}), expected WAV, FLAC, OGG, MP3 or .stem.mp4; "
            "convert or replace the file"
        ) from error
    if cut_off:
        raise ValueError(
            f"{path}: got {len(frames)} audio samples, expected more by its header; "
            "the file is cut off, copy it again"
        )
    return torch.from_numpy(frames).T, rate


def _lacks_bytes(log: str) -> bool:
    """Whether libsndfile's log of a WAV or AIFF says that its audio is longer than the file."""
    sizes = re.search(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return sizes is not None and int(sizes[2]) < int(sizes[1]) < UNKNOWN_SIZE


def resample(samples: Tensor, from_rate: int, to_rate: int, time: int) -> Tensor:
    """Resample to another rate and to an exact length.

    Args:
        samples: ``(..., time)`` at ``from_rate``.
        from_rate: rate of ``samples``, in Hz.
        to_rate: rate of the result, in Hz.
        time: length of the result; what is longer is cropped, what is shorter padded with zeros.

    Returns:
        ``(..., time)`` at ``to_rate``.

    Raises:
        ValueError: a rate that is not positive, a negative length.
    """
    if time < 0:
        raise ValueError(f"time: got {time}, expected 0 or more audio samples")
    resampled = torchaudio.functional.resample(samples, from_rate, to_rate)[..., :time]
    return torch.nn.functional.pad(resampled, (0, time - resampled.shape[-1]))


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
    peak = float(samples.abs().max()) if samples.numel() else 0.0
    if audio_format == "flac" and peak > 1:
        raise ValueError(f"{path}: got a peak of {peak:.3g}, expected at most 1 in a FLAC; use WAV")
    frames = samples.detach().cpu().float().numpy().T
    try:
        with written_whole(path) as temporary:
            soundfile.write(
                temporary, frames, sample_rate, FORMATS[audio_format], format=audio_format.upper()
            )
    except soundfile.LibsndfileError as error:
        reason = error.error_string
        raise OSError(f"{path}: could not be written ({reason}); check space and rights") from error


def audio_files(folder: str | PathLike[str]) -> list[Path]:
    """The audio files in a folder and all below it, by suffix, in sorted order.

    Args:
        folder: where to look.

    Raises:
        ValueError: not a folder, or no audio file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of audio files; no such folder")
    # A raw file has no header: its rate and sample format are unknown.
    formats = {name.lower() for name in soundfile.available_formats()} - {"raw"}
    formats |= {"aif", "flac", "mp3", "ogg", "opus"}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower()[1:] in formats and p.is_file())
    if not found:
        raise ValueError(f"{folder}: got no audio file, expected WAV, FLAC, OGG or MP3 in it")
    return found


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
    """
    if samples.ndim != 1:
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected (time,)")
    if time < 1:
        raise ValueError(f"time: got {time}, expected at least 1 audio sample per frame")
    count = len(samples) // time
    frames = samples[: count * time].reshape(count, time)
    return frames[frames.square().mean(1) >= 10 ** (threshold_db / 10)]


def mu_law_bins(bins: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cells of mu-law quantisation, which partition [-1, 1].

    With :math:`\mu` = bins - 1 and :math:`F^{-1}` the expansion
    (:func:`torchaudio.functional.mu_law_decoding`), cell k has the centre and the edges

    .. math:: c_k = F^{-1}(2 k / \mu - 1), \qquad
              e_k = F^{-1}\bigl(2 (k - \tfrac{1}{2}) / \mu - 1\bigr)

    clipped to [-1, 1]: an edge is the midpoint of two centres in the companded domain, so that
    :func:`torchaudio.functional.mu_law_encoding` sends :math:`[e_k, e_{k+1})` to k. A categorical
    head with logits l is then the piecewise constant density, in nats per audio sample,

    .. math:: \log p(x) = \log \mathrm{softmax}(l)_k - \log(e_{k+1} - e_k),
              \qquad x \in [e_k, e_{k+1})

    WaveNet, van den Oord et al. 2016 (arXiv 1609.03499), section 2.2.

    Args:
        bins: number of cells, 256 in the paper.

    Returns:
        Edges ``(bins + 1,)``, centres ``(bins,)`` and widths ``(bins,)``, in float32.

    Raises:
        ValueError: fewer than 2 bins.
    """
    if bins < 2:
        raise ValueError(f"bins: got {bins}, expected at least 2")
    # float64: the cells about 0 are thousands of times narrower than 1.
    positions = torch.arange(bins + 1, dtype=torch.float64)
    centres = torchaudio.functional.mu_law_decoding(positions[:-1], bins)
    edges = torchaudio.functional.mu_law_decoding((positions - 0.5).clamp(0, bins - 1), bins)
    return edges.float(), centres.float(), edges.diff().float()
