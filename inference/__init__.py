"""Samplers: kernels for Pyro's MCMC, pure steps, the annealed driver, and SMC."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
