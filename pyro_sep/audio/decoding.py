"""Audio as it is decoded, block by block: headers only hint at how much there is."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**18  # values that are decoded at once


class Decoder(ABC):
    """Audio samples of a file, in their order.

    Attributes:
        rate: in Hz.
        channels: how many there are.
    """

    rate: int
    channels: int

    @abstractmethod
    def read(self, count: int) -> NDArray[np.float32]:
        """The next ``(time, channel)``, at most so many audio samples, and none at the end.

        Raises:
            ValueError: damaged audio, or an end before that of which the header speaks.
        """

    def skip(self, count: int) -> int:
        """Leave out so many audio samples, or all that are left; returns how many these were."""
        skipped = 0
        while skipped < count and len(block := self.read(min(self.block, count - skipped))):
            skipped += len(block)
        return skipped

    def take(self, count: int | None = None) -> NDArray[np.float32]:
        """The next ``(time, channel)``, to the end where None."""
        blocks: list[NDArray[np.float32]] = []
        left = count
        while left is None or left > 0:
            block = self.read(self.block if left is None else min(self.block, left))
            if not len(block):
                break
            blocks.append(block)
            left = None if left is None else left - len(block)
        return np.concatenate(blocks) if blocks else np.empty((0, self.channels), np.float32)

    @property
    def block(self) -> int:
        """Audio samples that are decoded at once."""
        return max(1, BLOCK // self.channels)
