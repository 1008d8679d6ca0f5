"""Randomness that a name decides, the same on every machine."""

from hashlib import sha256

import torch


def generator_of(text: str) -> torch.Generator:
    """A generator whose seed is a hash of a text.

    >>> generator_of("test/0/sine").initial_seed()
    510554794703093095
    """
    seed = int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
