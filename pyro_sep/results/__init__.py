"""Folders of results, of one recording or many: stems, trace, picture, summary."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
