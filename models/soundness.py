r"""Which weights are sound, so that a run that diverges goes back to the last that were.

Weights are sound where all are finite and none is beyond :data:`WEIGHT_MAX`, and in training where
moreover a batch has a finite loss under them,

.. math:: L \le \mathrm{median}(L_1, \dots, L_n) + 3 \text{ nats per audio sample},

the median that of the last 100 losses for which this held. A loss is a code length, the logarithm
of a likelihood, and may be negative; so what is tolerated is a difference of losses, which is a
factor of e^3 = 20 in the likelihood of every audio sample. Losses that are above it do not enter
the median: a run that only grows worse does not get used to it.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_MAX = 1e10  # trained weights are far below 1e3
TOLERATED = 3.0  # nats per audio sample
MEDIAN_OF = 100  # losses


class Losses:
    """The losses of a run whose median decides.

    Args:
        last: those of the same run until now.
    """

    def __init__(self, last: Iterable[float] = ()) -> None:
        self.last = deque(last, MEDIAN_OF)

    def are_sound_with(self, loss: float) -> bool:
        """Whether a loss is finite and about as low as the last ones; any finite one at first."""
        return math.isfinite(loss) and (not self.last or loss <= median(self.last) + TOLERATED)

    def add(self, loss: float) -> bool:
        """Take a loss in where it is sound; whether it is."""
        sound = self.are_sound_with(loss)
        if sound:
            self.last.append(loss)
        return sound


def unsound_weight(weights: "Mapping[str, Tensor]") -> str | None:
    """Name of a tensor with NaN, infinity, or more than :data:`WEIGHT_MAX`; None of sound ones.

    Args:
        weights: those of a network by name.
    """
    return next(
        (
            name
            for name, weight in weights.items()
            if weight.is_floating_point()
            and weight.numel()
            and not bool(weight.abs().amax() <= WEIGHT_MAX)
        ),
        None,
    )
