"""Probabilistic audio source separation with deep generative priors, in Pyro."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_sep.checkpoints import load_priors
    from pyro_sep.cost import Cost, estimate_cost
    from pyro_sep.separation import Separation, separate

__all__ = ["Cost", "Separation", "estimate_cost", "load_priors", "separate"]

_HOMES = {
    "Cost": "pyro_sep.cost",
    "Separation": "pyro_sep.separation",
    "estimate_cost": "pyro_sep.cost",
    "load_priors": "pyro_sep.checkpoints",
    "separate": "pyro_sep.separation",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that traces can be read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pyro_sep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
