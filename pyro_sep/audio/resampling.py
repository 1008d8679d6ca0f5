"""Sample rates: those that audio may have, and from one to another."""

import math

import soxr
import torch
import torchaudio.functional
from torch import Tensor

RATES = (1_000, 768_000)  # Hz: below there is no music, above no converter
MAX_KERNEL = 2**20  # taps of a polyphase filter; 44,100 Hz to 16,000 Hz takes 441 x 160


def check_rate(owner: object, rate: int) -> None:
    """Raise ValueError, in which the owner is named, unless audio may have a rate in Hz."""
    low, high = RATES
    if not low <= rate <= high:
        raise ValueError(
            f"{owner}: got a sample rate of {rate} Hz, expected {low} to {high} Hz; convert it"
        )


def resample(samples: Tensor, from_rate: int, to_rate: int, time: int | None = None) -> Tensor:
    """Resample to another rate, without a shift of phase, in memory and time of the audio's size.

    With both rates divided by what they have in common, a polyphase filter has a table of one by
    the other. torchaudio's is used where that is small, as it is between all usual rates; between
    others, such as 44,099 Hz and 16,000 Hz, soxr's, which interpolates its table.

    Args:
        samples: ``(..., time)`` at ``from_rate``.
        from_rate: rate of ``samples``, in Hz.
        to_rate: rate of the result, in Hz.
        time: length of the result; what is longer is cropped, what is shorter padded with zeros.
            All there is where None, its duration rounded up to audio samples.

    Returns:
        ``(..., time)`` at ``to_rate``.

    Raises:
        ValueError: a rate that audio may not have, a negative length.

    >>> resample(torch.zeros(2, 441), 44_100, 16_000).shape
    torch.Size([2, 160])
    """
    if time is not None and time < 0:
        raise ValueError(f"time: got {time}, expected 0 or more audio samples")
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        check_rate(name, rate)
    common = math.gcd(from_rate, to_rate)
    if from_rate // common * (to_rate // common) <= MAX_KERNEL:
        resampled = torchaudio.functional.resample(samples, from_rate, to_rate)
    else:
        resampled = _interpolated(samples, from_rate, to_rate)
    return resampled if time is None else _fit(resampled, time)


def _interpolated(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    frames = samples.detach().cpu().reshape(-1, samples.shape[-1]).T.contiguous()
    made = soxr.resample(frames.numpy(), from_rate, to_rate, quality="VHQ")
    time = -(-samples.shape[-1] * to_rate // from_rate)
    resampled = _fit(torch.from_numpy(made.T.copy()), time)
    return resampled.reshape(*samples.shape[:-1], time).to(samples)


def _fit(samples: Tensor, time: int) -> Tensor:
    """The first audio samples, and zeros where there are fewer."""
    samples = samples[..., :time]
    return torch.nn.functional.pad(samples, (0, time - samples.shape[-1]))
