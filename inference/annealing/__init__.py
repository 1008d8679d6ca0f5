"""A search for the modes of the annealed posterior, then a chain of draws in each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
