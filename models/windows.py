r"""Sums over long audio in bounded memory.

A causal density is a sum over time of terms that see a bounded past,

.. math:: f(x) = \sum_t f_t(x_{t-P}, \dots, x_t),

so a window of it needs the P samples before it and nothing else: windows that overlap by P give the
very sum, and the very gradient, that all of the audio at once would give. A window's gradient is
taken along with its value, so that what the network computed for it can be forgotten.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WINDOW = 1 << 15  # audio samples


def sum_over_time(terms: Callable[[Tensor], Tensor], x: Tensor, past: int) -> Tensor:
    """Sum of causal terms over all of the audio, ``(batch,)``.

    More than one window has a gradient with respect to the audio alone, and no second one.

    Args:
        terms: of audio ``(batch, time)``, each of them ``(batch, time)``; what comes before the
            audio is, to them, silence.
        x: audio ``(batch, time)``.
        past: P in audio samples.
    """
    if x.shape[-1] <= WINDOW:
        return terms(x).sum(-1)
    total: Tensor = _Windows.apply(x, terms, past)
    return total


class _Windows(torch.autograd.Function):
    """The sum, window by window, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, terms: Callable[[Tensor], Tensor], past: int) -> Tensor:
        total, differentiate = torch.zeros_like(x[:, 0]), ctx.needs_input_grad[0]
        gradient = torch.zeros_like(x) if differentiate else None
        for start in range(0, x.shape[-1], WINDOW):
            lead = min(start, past)
            window = slice(start - lead, start + WINDOW)
            part = x[:, window].detach().requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate):
                value = terms(part)[:, lead:].sum(-1)
                if gradient is not None:
                    gradient[:, window] += torch.autograd.grad(value.sum(), part)[0]
            total += value.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return weight[:, None] * gradient, None, None
