from .api import Separation, separate, separate_batch, separation_from_draws
from .cost import Cost, estimate_cost
from .presets import PRESETS, default_preset, resolve_settings

__all__ = [
    "PRESETS",
    "Cost",
    "Separation",
    "default_preset",
    "estimate_cost",
    "resolve_settings",
    "separate",
    "separate_batch",
    "separation_from_draws",
]
