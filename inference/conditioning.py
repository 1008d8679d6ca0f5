r"""What clean sources lack of their mixture, divided among them by their spectra.

Given noisy sources x at level sigma, clean ones have the mean :math:`D_k(x_k)` and the covariance
:math:`\sigma^2 J_k` (:meth:`pyro_sep.inference.AnnealedPosterior.draw_clean`). The mixture with its
noise gamma is the sum of all, so by Gaussian conditioning source k is given

.. math:: a_k J_k \Bigl(\sum_j a_j^2 J_j + \frac{\gamma^2}{\sigma^2}\Bigr)^{-1} r, \qquad
          r = m - \sum_j a_j s_j

Far below the noise a source has a small J: what the sources lack of the mixture there is hardly
its own, and is that of whichever source sounds. The J of learned densities is too inexact to be
inverted. So it is taken to be that of a Gaussian source of the power S in every cell of a
short-time Fourier transform, which is denoised by a Wiener filter:

.. math:: J = \frac{S}{S + \sigma^2}, \qquad |D|^2 = \frac{S^2}{S + \sigma^2}, \qquad
          S = \tfrac12 \Bigl(|D|^2 + \sqrt{|D|^4 + 4 \sigma^2 |D|^2}\Bigr)

with sigma^2 the power of the noise in a cell. Of two channels, their mean and half difference have
spectra of their own.

The covariance of a diffusion posterior for its conditioning: Boys et al. 2023 (arXiv 2310.06721),
Rozet et al. 2024 (arXiv 2405.13712); Wiener filters of mixtures: Benaroya et al. 2003 (ICASSP).
"""

import torch
from torch import Tensor

from pyro_sep.audio.stft import inverse, transform, window
from pyro_sep.trace.channels import interleave, left_and_right, mid_and_side

LEAST = 1e-9  # J of a source that is silent: where all are, each is given the same


def divide(
    lacking: Tensor,
    expected: Tensor,
    weights: Tensor,
    noise: Tensor,
    sigma: float,
    rate: int,
    channels: int = 1,
) -> Tensor:
    """What each source is given of what all lack of their mixture, by the equations above.

    Args:
        lacking: r, ``(batch, time)``; of two channels, left and right interleaved.
        expected: D(x), ``(batch, source, time)``.
        weights: the gains ``(..., source, 1)``.
        noise: gamma, ``(...)``, a scalar or of every element of the batch.
        sigma: noise level of x.
        rate: audio samples a second of a channel.
        channels: 1 or 2.

    Returns:
        ``(batch, source, time)``; without noise of the mixture the gains times these add up to
        ``lacking``.

    >>> tone, silence = (torch.arange(800) / 4).sin(), torch.zeros(800)
    >>> given = divide(0.1 * tone[None], torch.stack([tone, silence])[None], torch.ones(2, 1),
    ...                torch.zeros(()), sigma=0.1, rate=8_000)
    >>> (given.square().mean(-1)[0] / (0.1 * tone).square().mean()).round(decimals=2)
    tensor([1., 0.])
    """
    variance = sigma**2 / channels  # of the noise of one channel, or of a row of two
    energy = float(window(rate, expected).square().sum())
    power = transform(_rows(expected, channels), rate).abs().square() / (variance * energy)
    prior = (power + (power.square() + 4 * power).sqrt()) / 2  # S in units of the noise
    gain = (prior / (1 + prior)).clamp(min=LEAST)
    gains, rest = weights[..., None, None], (noise / sigma).square().reshape(-1, 1, 1, 1, 1)
    share = gains * gain / ((gains.square() * gain).sum(-4, keepdim=True) + rest)
    cells = share * transform(_rows(lacking, channels), rate)[..., None, :, :, :]
    return _frame(inverse(cells, rate, lacking.shape[-1] // channels))


def _rows(frame: Tensor, channels: int) -> Tensor:
    """Audio ``(..., row, time)`` of independent noise: the channel, or mid and side."""
    mid, side = mid_and_side(frame, channels)
    return mid[..., None, :] if side is None else torch.stack([mid, side], -2)


def _frame(rows: Tensor) -> Tensor:
    """The frame ``(..., time)`` of rows ``(..., row, time)``."""
    mid, side = rows.unbind(-2) if rows.shape[-2] > 1 else (rows[..., 0, :], None)
    return interleave(torch.stack(left_and_right(mid, side), -2))
