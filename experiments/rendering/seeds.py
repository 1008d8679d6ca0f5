"""Random numbers that depend on a name alone, so that no track depends on the ones before it."""

import hashlib

import numpy as np


def generator(*key: str | int) -> np.random.Generator:
    """A generator seeded by a name."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
