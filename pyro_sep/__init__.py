"""Probabilistic audio source separation with deep generative priors, in Pyro."""

from importlib.metadata import version

import lazy_loader

__version__ = version("pyro-sep")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
