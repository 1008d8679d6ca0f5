from .known import Mixing, default_gains, level_gain, model
from .latent import LatentMixing

__all__ = ["LatentMixing", "Mixing", "default_gains", "level_gain", "model"]
