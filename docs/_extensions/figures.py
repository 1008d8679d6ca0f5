"""Figures of the results pages, read from the JSON files beside them."""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what the pages use."""
    return {"parallel_read_safe": True}
