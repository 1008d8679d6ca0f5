"""Audio decoded by ffmpeg, and processed as records are: equaliser, compressor, echo, codec."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from rendering.levels import Array

RATE = 44_100
RAW = ("-f", "f32le", "-ac", "1", "-ar", str(RATE))  # how ffmpeg reads audio of ours
BANDS = (60, 150, 400, 1_000, 2_500, 6_000)  # Hz, of the equaliser
#: What is done to the sum of the stems of a record: glue, level, peaks.
MASTER = (
    "firequalizer=gain_entry='entry(60,1);entry(400,-1);entry(2500,1);entry(9000,2)',"
    "acompressor=threshold=0.1:ratio=3:attack=15:release=150:makeup=2,"
    "asoftclip=type=tanh,alimiter=level=0:limit=0.9:attack=2:release=40"
)
LOSSY = {"mp3": ("libmp3lame", (96, 192)), "m4a": ("aac", (96, 160))}  # codec, kbit/s


def check_ffmpeg() -> None:
    """Raise ValueError where there is no ffmpeg."""
    if shutil.which("ffmpeg") is None:
        raise ValueError("ffmpeg: not found, expected it on the path; apt-get install ffmpeg")


def decode(path: Path, reads: tuple[str, ...] = (), channels: int = 1) -> Array:
    """Audio of a file at :data:`RATE`, mono ``(time,)`` or of so many channels ``(time, channel)``.

    ``reads`` says how raw samples lie in it.

    Raises:
        ValueError: ffmpeg cannot read it.
    """
    raw = _ffmpeg(path, "-f", "f32le", "-", reads=reads, channels=channels)
    audio = np.frombuffer(raw, np.float32).astype(np.float64)
    return audio if channels == 1 else audio.reshape(-1, channels)


def mastered(samples: Array) -> Array:
    """A sum of stems ``(time,)`` as it is released: equaliser, compressor, soft clipping, limiter.

    It is as long as the sum and begins with it: the limiter looks ahead, which is taken off.
    """
    return _as_long(_aligned(_filtered(samples, MASTER), samples), len(samples))


def _aligned(heard: Array, samples: Array) -> Array:
    """Audio less the delay that it has behind other audio."""
    size = 2 * max(len(heard), len(samples))
    spectrum = np.fft.rfft(heard, size) * np.fft.rfft(samples, size).conj()
    delay = int(np.argmax(np.fft.irfft(spectrum, size)[:RATE]))
    return heard[delay:]


def _as_long(samples: Array, time: int) -> Array:
    """Audio of so many samples, the end cut off or silent."""
    return np.pad(samples[:time], (0, max(0, time - len(samples))))


def transposed(samples: Array, semitones: int) -> Array:
    """Audio ``(time,)`` played faster, and so higher by some semitones; below 0, slower."""
    rate = round(RATE * 2 ** (semitones / 12))
    return _filtered(samples, f"asetrate={rate},aresample={RATE}")


def processed(samples: Array, rng: np.random.Generator) -> Array:
    """Audio ``(time,)`` as it might stand in a record, at the level that it had.

    Each of these is drawn by lot: an equaliser of a few decibels, a compressor, soft clipping, an
    echo, and MP3 or AAC.
    """
    gains = ";".join(f"entry({band},{rng.normal(0, 3):.1f})" for band in BANDS)
    chain = [f"firequalizer=gain_entry='{gains}'"]
    if rng.random() < 0.7:
        threshold, ratio = 10 ** (rng.uniform(-30, -14) / 20), rng.uniform(2, 6)
        attack, release = rng.uniform(3, 30), rng.uniform(50, 300)
        chain.append(
            f"acompressor=threshold={threshold:.4f}:ratio={ratio:.1f}:attack={attack:.0f}"
            f":release={release:.0f}"
        )
    if rng.random() < 0.3:
        chain.append(f"volume={rng.uniform(3, 12):.0f}dB,asoftclip=type=tanh")
    if rng.random() < 0.4:
        delays = "|".join(f"{delay:.0f}" for delay in np.sort(rng.uniform(15, 120, 4)))
        decays = "|".join(f"{decay:.2f}" for decay in -np.sort(-rng.uniform(0.02, 0.25, 4)))
        chain.append(f"aecho=1:0.8:{delays}:{decays}")
    suffix, coded = "f32", ("-f", "f32le")
    if rng.random() < 0.3:
        suffix = ("mp3", "m4a")[rng.integers(2)]
        codec, (low, high) = LOSSY[suffix]
        coded = ("-c:a", codec, "-b:a", f"{rng.integers(low, high)}k")
    heard = _as_long(_filtered(samples, ",".join(chain), suffix, coded), len(samples))
    power = np.square(heard).mean()
    return heard * np.sqrt(np.square(samples).mean() / power) if power else heard


def _filtered(
    samples: Array, chain: str, suffix: str = "f32", coded: tuple[str, ...] = ("-f", "f32le")
) -> Array:
    """Audio after filters of ffmpeg, coded in this way and decoded again."""
    with tempfile.TemporaryDirectory() as folder:
        raw, made = Path(folder) / "in.f32", Path(folder) / f"out.{suffix}"
        raw.write_bytes(samples.astype(np.float32).tobytes())
        _ffmpeg(raw, "-af", chain, *coded, str(made), reads=RAW)
        return decode(made, RAW if suffix == "f32" else ())


def _ffmpeg(path: Path, *arguments: str, reads: tuple[str, ...] = (), channels: int = 1) -> bytes:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", *reads, "-i", f"file:{path}"]
    one = ["-map_metadata", "-1", "-ac", str(channels), "-ar", str(RATE)]
    done = subprocess.run([*command, *one, *arguments], capture_output=True)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason"])[-1]
        raise ValueError(f"{path}: ffmpeg failed ({reason}), expected audio; is the file whole?")
    return done.stdout
