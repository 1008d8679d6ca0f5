"""Long frames as sections that overlap, each searched by itself, and put together again.

The evidence of a frame grows with its length, and modes freeze by it: where a long frame's do,
learned priors cannot tell sources apart yet, and a search of the whole is lost. A section of the
length at which they can is found by itself. Sources are told apart by their priors, so sections
fit together without being matched, and the cost is linear in the length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

OVERLAP_SHARE = 8  # sections overlap by their length divided by this


def section_starts(frame: int, length: int, multiple: int) -> list[int]:
    """Where sections of a frame start; they overlap and cover it.

    Args:
        frame: audio samples.
        length: of a section; one as long as the frame where it is longer.
        multiple: of which the starts are.

    >>> section_starts(4096, 2048, 1)
    [0, 1024, 2048]
    """
    last = max(0, frame - length)
    count = -(-last // (length - length // OVERLAP_SHARE))
    starts = [last * i // count // multiple * multiple for i in range(count)]
    return [*starts, last]


def join(sections: Tensor, starts: Sequence[int]) -> Tensor:
    """Audio ``(lane, source, frame)`` of its sections ``(lane, section, source, length)``.

    In the first half of an overlap the earlier section is heard, whose prior has heard more of the
    past by then; in the second half the later one is faded in.
    """
    length = sections.shape[-1]
    whole = sections[:, 0]
    for i, start in enumerate(starts[1:], 1):
        section = sections[:, i]
        overlap = whole.shape[-1] - start
        fade = torch.linspace(-1, 1, overlap, device=whole.device, dtype=whole.dtype).clamp(min=0)
        mixed = whole[..., start:] * (1 - fade) + section[..., :overlap] * fade
        whole = torch.cat([whole[..., :start], mixed, section[..., overlap:length]], -1)
    return whole
