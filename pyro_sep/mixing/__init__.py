"""How sources add up to a mixture: a Pyro model, with known or latent gains and noise."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
