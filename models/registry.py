"""The families of networks, by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
    """An untrained network of a config's family.

    >>> type(build(WaveNetConfig(width=8, layers=2))).__name__
    'WaveNet'
    """
    return WaveNet(config) if isinstance(config, WaveNetConfig) else FloWaveNet(config)


def empty_weights(config: NetworkConfig) -> dict[str, Tensor]:
    """Weights of a config's network by name, on "meta": they have shapes and take no memory."""
    with _WithoutMemory():
        return dict(build(config).state_dict())


class _WithoutMemory(TorchFunctionMode):
    """Layers that are built in it have weights on "meta"; all of torch's are made by ``empty``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)
