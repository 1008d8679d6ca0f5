"""Two channels of audio: apart, interleaved in one frame, and as their mean and half difference.

All functions take tensors and arrays of NumPy or xarray alike, so they import none of these.
"""

from typing import Any

CHANNELS = 2
SIDE = "side"  # variable of a trace: half of left less right
Sound = Any  # an array of NumPy or xarray, or a tensor


def interleave(channels: Sound) -> Sound:
    """Audio ``(..., channel, time)`` as one frame ``(..., channel * time)``: L R L R ...

    >>> import numpy as np
    >>> interleave(np.array([[1, 2], [10, 20]]))
    array([ 1, 10,  2, 20])
    """
    *batch, count, time = channels.shape
    return channels.swapaxes(-1, -2).reshape(*batch, count * time)


def deinterleave(frame: Sound, channels: int = CHANNELS) -> Sound:
    """The channels ``(..., channel, time)`` of a frame of :func:`interleave`.

    >>> import numpy as np
    >>> deinterleave(np.array([1, 10, 2, 20]))
    array([[ 1,  2],
           [10, 20]])
    """
    *batch, time = frame.shape
    return frame.reshape(*batch, time // channels, channels).swapaxes(-1, -2)


def mean_and_half(left: Sound, right: Sound) -> tuple[Sound, Sound]:
    """Mean of two channels, and half their difference."""
    return (left + right) / 2, (left - right) / 2


def mid_and_side(frames: Sound, channels: int) -> tuple[Sound, Sound | None]:
    """Mean and half the difference of two channels, interleaved in audio ``(..., time)``.

    Audio of one channel is its own mean, and has no difference: None.

    >>> import numpy as np
    >>> mid_and_side(np.array([1.0, 3.0, 2.0, 2.0]), 2)
    (array([2., 2.]), array([-1.,  0.]))
    """
    if channels == 1:
        return frames, None
    return mean_and_half(frames[..., 0::2], frames[..., 1::2])


def left_and_right(mid: Sound, side: Sound | None) -> list[Sound]:
    """The channels of which there is the mean and half the difference; the mean where None."""
    return [mid] if side is None else [mid + side, mid - side]


def side_of(name: str) -> str:
    """The variable of a trace with half the difference of the channels of another."""
    return SIDE if name in ("sources", "mixture") else f"{name}_{SIDE}"
