"""Tiny networks of both families, for tests of what is built on them."""

import torch

from pyro_sep.models.flowavenet import FloWaveNetConfig
from pyro_sep.models.wavenet import WaveNetConfig

WAVENET = WaveNetConfig(
    width=8, layers=2, hop=4, past=4, spectra=(8,), components=4, head_width=8, head_past=2
)
NESTED = FloWaveNetConfig(
    squeeze=4, flows=2, components=3, layers=2, width=8, spectra=(16,), head_width=8, head_reach=2
)
HALVES = FloWaveNetConfig(
    partition="halves",
    blocks=2,
    squeeze=2,
    flows=2,
    coupling="affine",
    layers=2,
    width=8,
    spectra=(),
)


def randomise(network: torch.nn.Module, std: float = 0.4) -> None:
    """Make random what starts at zero, or no output would depend on its inputs."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
