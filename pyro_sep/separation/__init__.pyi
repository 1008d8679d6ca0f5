from .api import Separation, separate, separate_batch, separation_from_draws
from .cost import Cost, estimate_cost
from .presets import PRESETS, resolve_settings

__all__ = [
    "PRESETS",
    "Cost",
    "Separation",
    "estimate_cost",
    "resolve_settings",
    "separate",
    "separate_batch",
    "separation_from_draws",
]
