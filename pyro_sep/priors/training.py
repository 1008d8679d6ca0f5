"""Learn the prior of a source from isolated recordings of it."""


def train_prior() -> None:
    """Not yet."""
