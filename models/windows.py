r"""Log densities of long audio in bounded memory.

A log density whose terms each see P audio samples before their own and F after it,

.. math:: f(x) = \sum_t f_t(x_{t-P}, \dots, x_{t+F}),

need not be evaluated at once. Where two windows overlap by P + F, what is missing at the end of one
of them the overlap by itself misses too, so that for :math:`a \le b \le c \le d`

.. math:: f(x_{a:d}) = f(x_{a:c}) + f(x_{b:d}) - f(x_{b:c}), \qquad c - b = P + F,

and so on for more windows: the very sum, and the very gradient, up to rounding. A window's gradient
is taken along with its value, so that what the network computed for it can be forgotten.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WINDOW = 1 << 15  # audio samples

LogDensity = Callable[[Tensor], Tensor]


def in_windows(
    log_density: LogDensity, x: Tensor, window: int, past: int, future: int = 0, hop: int = 1
) -> Tensor:
    """Log density of all of the audio, ``(batch,)``.

    More than one window has a gradient with respect to the audio alone, and no second one.

    Args:
        log_density: of audio ``(batch, time)``, ``(batch,)``; what comes before and after the audio
            is, to it, silence.
        x: audio ``(batch, time)``.
        window: audio samples by which windows advance, or P + F where that is more: then none is
            evaluated more than three times.
        past: P in audio samples.
        future: F in audio samples.
        hop: windows begin at multiples of it; all three lengths are rounded up to such.
    """
    past, future = (-(-reach // hop) * hop for reach in (past, future))
    advance = -(-max(window, past + future) // hop) * hop
    cuts = range(advance, x.shape[-1] - future, advance)
    if not cuts:
        return log_density(x)
    total: Tensor = _Windows.apply(x, log_density, cuts, past, future)
    return total


class _Windows(torch.autograd.Function):
    """The log density, window by window, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_density: LogDensity, cuts: range, past: int, future: int
    ) -> Tensor:
        total, differentiate = torch.zeros_like(x[:, 0]), ctx.needs_input_grad[0]
        gradient = torch.zeros_like(x) if differentiate else None
        for window, sign in _windows(x.shape[-1], cuts, past, future):
            part = x[:, window].detach().requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate):
                value = sign * log_density(part)
                if gradient is not None:
                    gradient[:, window] += torch.autograd.grad(value.sum(), part)[0]
            total += value.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return weight[:, None] * gradient, None, None, None, None


def _windows(time: int, cuts: range, past: int, future: int) -> Iterator[tuple[slice, int]]:
    """Windows that count once, and their overlaps, which are taken off again."""
    starts = [0, *(cut - past for cut in cuts)]
    ends = [*(cut + future for cut in cuts), time]
    yield from ((slice(start, end), 1) for start, end in zip(starts, ends, strict=True))
    yield from ((slice(cut - past, cut + future), -1) for cut in cuts)
