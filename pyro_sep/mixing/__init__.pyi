from .known import Mixing, default_gains, model
from .latent import LatentMixing

__all__ = ["LatentMixing", "Mixing", "default_gains", "model"]
