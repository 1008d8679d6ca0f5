"""How good a separation is, where the true sources are known, and whether it adds up."""

import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    r"""Scale-invariant signal-to-distortion ratio, in dB.

    With the mean over time taken off both the estimate :math:`\hat s` and the reference s,

    .. math:: \mathrm{SI\text{-}SDR} = 10 \log_{10}
              \frac{\lVert \alpha s \rVert^2}{\lVert \alpha s - \hat s \rVert^2},
              \qquad \alpha = \frac{\hat s^\top s}{\lVert s \rVert^2}

    SDR - half-baked or well done? Le Roux et al. 2019 (arXiv 1811.02508), equation 5. A silent
    (constant) estimate holds nothing of the reference: minus infinity.

    Args:
        estimate: ``(..., time)``.
        reference: ``(..., time)``; the leading dimensions broadcast.

    Returns:
        ``(...)`` in dB, in the estimate's dtype.

    Raises:
        ValueError: the lengths differ, or a reference is silent.

    >>> tone = (torch.arange(256) / 8).sin()
    >>> noisy = tone + 0.1 * (torch.arange(256) / 3).cos()
    >>> round(si_sdr(noisy, tone).item())
    20
    """
    if estimate.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"estimate: got {estimate.shape[-1]} audio samples, expected the reference's "
            f"{reference.shape[-1]}; crop or pad one of them"
        )
    if silent(reference).any():
        raise ValueError(
            "reference: got silence, expected sound; SI-SDR is undefined, leave it out"
        )
    # float64: torchmetrics adds the dtype's epsilon to each energy, which in float32 is as loud as
    # a quiet frame.
    preds, target = torch.broadcast_tensors(estimate.double(), reference.double())
    ratio = scale_invariant_signal_distortion_ratio(preds, target, zero_mean=True)
    return torch.where(silent(preds), -torch.inf, ratio).to(estimate.dtype)


def si_sdr_improvement(estimate: Tensor, reference: Tensor, mixture: Tensor) -> Tensor:
    r"""How much closer to the reference the estimate is than the unseparated mixture, in dB.

    .. math:: \mathrm{SI\text{-}SDR}(\hat s, s) - \mathrm{SI\text{-}SDR}(m, s)

    Args:
        estimate: ``(..., time)``.
        reference: ``(..., time)``.
        mixture: ``(..., time)``; the leading dimensions of all three broadcast.

    Returns:
        ``(...)`` in dB.

    Raises:
        ValueError: the lengths differ, or a reference is silent.

    >>> tone, other = (torch.arange(256) / 8).sin(), (torch.arange(256) / 3).cos()
    >>> round(si_sdr_improvement(tone + 0.1 * other, tone, tone + other).item())
    20
    """
    return si_sdr(estimate, reference) - si_sdr(mixture, reference)


def residual_db(sources: Tensor, mixture: Tensor, gains: Tensor) -> Tensor:
    r"""Power that the weighted sources leave unexplained, relative to the mixture's, in dB.

    .. math:: 10 \log_{10}
              \frac{\lVert m - \sum_k a_k s_k \rVert^2}{\lVert m \rVert^2}

    Minus infinity where they add up to the mixture exactly.

    Args:
        sources: ``(..., source, time)``.
        mixture: ``(..., time)``.
        gains: ``(source,)``.

    Returns:
        ``(...)`` in dB, in the mixture's dtype.

    Raises:
        ValueError: the shapes do not fit, or the mixture is silent.

    >>> sources = torch.ones(2, 256)
    >>> residual_db(sources, torch.ones(256), torch.tensor([0.4, 0.5])).round().item()
    -20.0
    """
    if sources.shape[-2:] != (*gains.shape, mixture.shape[-1]):
        raise ValueError(
            f"sources: got shape {tuple(sources.shape)}, expected (..., source, time) = "
            f"(..., {', '.join(map(str, gains.shape))}, {mixture.shape[-1]})"
        )
    power = mixture.double().square().sum(-1)
    if (power == 0).any():
        raise ValueError("mixture: got silence, expected sound; there is nothing to explain in it")
    explained = torch.einsum("k,...kt->...t", gains.double(), sources.double())
    residual = (mixture.double() - explained).square().sum(-1)
    return (10 * torch.log10(residual / power)).to(mixture.dtype)


def silent(signal: Tensor) -> Tensor:
    """Where a signal ``(..., time)`` is constant, ``(...)``."""
    return signal.amax(-1) == signal.amin(-1)
