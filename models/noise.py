"""Embedding of the noise level, an input of every network."""

import torch
from torch import Tensor, nn

FEATURES = 16
CHANNELS = 64
SIGMA_FLOOR = 1e-5  # full scale 1; below the rounding of 16-bit audio, which is taken as no noise
NOISE_POWER_MIN = 1e-8  # what divides a spectrum where there is no noise


def noise_power(sigma: Tensor, sigma_data: float) -> Tensor:
    """Variance of the noise in audio that is scaled to unit variance, of sigma's shape."""
    variance = sigma.square()
    return (variance / (sigma_data**2 + variance)).clamp_min(NOISE_POWER_MIN)


class NoiseEmbedding(nn.Sequential):
    """Embeds log sigma, and whatever else holds for the whole frame: ``(batch, 64)``.

    Sines and cosines of log sigma, then two layers; Karras et al. 2022 (arXiv 2206.00364).

    Args:
        extra: further inputs.
    """

    def __init__(self, extra: int = 0) -> None:
        super().__init__(
            nn.Linear(2 * FEATURES + extra, CHANNELS),
            nn.SiLU(),
            nn.Linear(CHANNELS, CHANNELS),
            nn.SiLU(),
        )

    def forward(self, sigma: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed ``sigma (batch,)`` and ``extra (extra,)``."""
        octaves = torch.linspace(-2, 1, FEATURES, dtype=sigma.dtype, device=sigma.device)
        angles = sigma.clamp_min(SIGMA_FLOOR).log()[:, None] * octaves.exp2()
        parts = [angles.sin(), angles.cos()]
        if extra is not None:
            parts.append(extra.expand(len(sigma), -1))
        return super().forward(torch.cat(parts, -1))
