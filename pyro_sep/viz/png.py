"""Figures as PNG of 256 colours: a quarter of the size, and no difference to the eye."""

import warnings
from io import BytesIO
from os import PathLike

from matplotlib.figure import Figure
from PIL import Image

from pyro_sep.storage.files import atomic_write_bytes

DPI = 150


def encode(figure: Figure, dpi: int = DPI, transparent: bool = False) -> bytes:
    """The PNG of a figure."""
    drawn, file = BytesIO(), BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a name: a box stands for it
        figure.savefig(drawn, format="png", dpi=dpi, transparent=transparent)
    Image.open(drawn).quantize(256, method=Image.Quantize.FASTOCTREE).save(file, format="png")
    return file.getvalue()


def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: the figure.
        path: where to; ``.png`` is the usual suffix.

    Raises:
        OSError: the file cannot be written.
    """
    atomic_write_bytes(path, encode(figure))
