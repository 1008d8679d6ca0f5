"""What a network is told of the noise level, and which levels it may be trained for."""

import torch
from torch import Tensor, nn

FEATURES = 16
CHANNELS = 64
SIGMA_FLOOR = 1e-5  # full scale 1; below the rounding of 16-bit audio, which is taken as no noise
NOISE_POWER_MIN = 1e-8  # what divides a spectrum where there is no noise


def check_levels(sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless noise levels are a range, or 0 for clean audio alone."""
    if not 0 <= sigma_min <= sigma_max or (sigma_min == 0 < sigma_max):
        raise ValueError(
            f"sigma_min, sigma_max: got {sigma_min}, {sigma_max}, "
            "expected 0 < sigma_min <= sigma_max, or 0 for both"
        )


def noise_power(sigma: Tensor, sigma_data: float) -> Tensor:
    """Variance of the noise in audio that is scaled to unit variance, of sigma's shape."""
    variance = sigma.square()
    return (variance / (sigma_data**2 + variance)).clamp_min(NOISE_POWER_MIN)


class NoiseEmbedding(nn.Sequential):
    """Embeds log sigma, and whatever else holds for the whole frame: ``(batch, 64)``.

    Sines and cosines of log sigma, then two layers; Karras et al. 2022 (arXiv 2206.00364).

    Args:
        extra: further numbers that are told.
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
        told = [angles.sin(), angles.cos()]
        if extra is not None:
            told.append(extra.expand(len(sigma), -1))
        return super().forward(torch.cat(told, -1))
