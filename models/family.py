"""The families of networks, by name."""

from typing import NamedTuple

from pyro_sep.models import flowavenet, wavenet
from pyro_sep.models.flowavenet import FloWaveNet, FloWaveNetConfig
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig

Network = WaveNet | FloWaveNet
NetworkConfig = WaveNetConfig | FloWaveNetConfig


class Family(NamedTuple):
    """What there is of one kind of network."""

    network: type[WaveNet] | type[FloWaveNet]
    config: type[WaveNetConfig] | type[FloWaveNetConfig]
    sizes: dict[str, WaveNetConfig] | dict[str, FloWaveNetConfig]


FAMILIES = {
    "wavenet": Family(WaveNet, WaveNetConfig, wavenet.CONFIGS),
    "flow": Family(FloWaveNet, FloWaveNetConfig, flowavenet.CONFIGS),
}


def family_of(config: NetworkConfig) -> str:
    """Name of a config's family."""
    return next(name for name, family in FAMILIES.items() if isinstance(config, family.config))


def build(config: NetworkConfig) -> Network:
    """An untrained network of a config's family."""
    return WaveNet(config) if isinstance(config, WaveNetConfig) else FloWaveNet(config)
