"""Names that users gave to files and sources, as text that nothing interprets."""

FORMULA = ("=", "+", "-", "@")  # how a cell begins that a spreadsheet computes


def printable(text: object) -> str:
    r"""Text for a terminal: what does not print, or moves the cursor, as its escape.

    Bytes of a file name that are no UTF-8, which Python holds as lone surrogates, do not print
    either.

    >>> printable("caf\udce9\x1b[2J")
    'caf\\udce9\\x1b[2J'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def literal(name: object) -> str:
    r"""A name in a picture: dollar signs are no mathematics.

    >>> literal("Ke$ha")
    'Ke\\$ha'
    """
    return printable(name).replace("$", r"\$")


def cell(name: object) -> str:
    """A name in a CSV: an apostrophe before what a spreadsheet would compute.

    >>> cell("=1+1"), cell("bass")
    ("'=1+1", 'bass')
    """
    text = printable(name)
    return f"'{text}" if text.startswith(FORMULA) else text
