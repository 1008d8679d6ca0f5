"""Tiny networks of both families, and their inputs, for tests of what is built on them."""

import functools

import torch
from torch import Tensor

from pyro_sep.models.flowavenet import FloWaveNetConfig
from pyro_sep.models.registry import Network, NetworkConfig, build
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


@functools.cache
def random_network(config: NetworkConfig, seed: int = 0) -> Network:
    """In float64, and the same one at every call: copy it."""
    torch.manual_seed(seed)
    network = build(config)
    randomise(network)
    return network.double()


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def levels(*sigmas: float) -> Tensor:
    return torch.tensor(sigmas, dtype=torch.float64)
