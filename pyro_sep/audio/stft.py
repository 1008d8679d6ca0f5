"""The short-time Fourier transform in which powers of sources are compared."""

import math

import torch
from torch import Tensor

FRAME = 0.1  # seconds; a transform takes the power of two next to it, 4096 at 44.1 kHz


def frame_size(rate: int) -> int:
    """Audio samples of a transform at a rate in Hz."""
    return 2 ** round(math.log2(FRAME * rate))


def window(rate: int, like: Tensor) -> Tensor:
    """Weights of the audio samples of a transform, in the type of ``like``."""
    return torch.hann_window(frame_size(rate), dtype=like.dtype, device=like.device)


def transform(samples: Tensor, rate: int) -> Tensor:
    """Short-time Fourier transform ``(..., frequency, frame)`` of ``(..., time)`` at a rate in Hz.

    Audio is padded by silence: it may be shorter than a frame.
    """
    size = frame_size(rate)
    rows = samples.reshape(-1, samples.shape[-1])
    found = torch.stft(
        rows,
        size,
        size // 4,
        window=window(rate, samples),
        pad_mode="constant",
        return_complex=True,
    )
    return found.reshape(*samples.shape[:-1], *found.shape[-2:])


def inverse(cells: Tensor, rate: int, time: int) -> Tensor:
    """Audio ``(..., time)`` of which ``(..., frequency, frame)`` is the transform.

    >>> noise = torch.randn(2, 3, 5_000)
    >>> bool(torch.allclose(inverse(transform(noise, 16_000), 16_000, 5_000), noise, atol=1e-5))
    True
    """
    size, weights = frame_size(rate), window(rate, cells.real)
    rows = torch.istft(cells.flatten(0, -3), size, size // 4, window=weights, length=time)
    return rows.reshape(*cells.shape[:-2], time)
