"""What the numbers of a network's config may be, so that a file's config costs no more than it is.

A config comes from the header of a file too. Its integers are bounded so that building the network
without its weights is a matter of milliseconds and megabytes; how large the weights are is then
compared with those in the file.
"""

TABLE_MAX = 1 << 24  # entries of the fixed tables of a spectrum: 64 MB
SPECTRA_MAX = 16
WINDOW_MAX = 1 << 16  # audio samples: 4 s at 16 kHz
LEVEL_MAX = 1e6  # full scale 1


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless a value is an integer from ``low`` to ``high``."""
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: got {value!r:.80}, expected an integer from {low} to {high}")


def check_levels(sigma_data: object, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless sources are heard, and noise levels are a range.

    Args:
        sigma_data: RMS of the sources, full scale 1.
        sigma_min: lowest noise level.
        sigma_max: highest noise level; both are 0 for clean audio alone.
    """
    if not _is_level(sigma_data) or not sigma_data:
        raise ValueError(
            f"sigma_data: got {sigma_data!r:.80}, expected above 0, up to {LEVEL_MAX:g}"
        )
    known = _is_level(sigma_min) and _is_level(sigma_max)
    if not known or sigma_min > sigma_max or sigma_min == 0 < sigma_max:
        raise ValueError(
            f"sigma_min, sigma_max: got {sigma_min!r:.80}, {sigma_max!r:.80}, "
            "expected 0 < sigma_min <= sigma_max, or 0 for both"
        )


def _is_level(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= LEVEL_MAX


def check_spectra(spectra: object, hop: int) -> tuple[int, ...]:
    """Windows of spectra as a tuple; they come as a list from JSON.

    Args:
        spectra: the windows in audio samples.
        hop: audio samples that each of them is continued by.

    Raises:
        ValueError: no list of windows, or tables of more than :data:`TABLE_MAX` entries.
    """
    if not isinstance(spectra, list | tuple) or len(spectra) > SPECTRA_MAX:
        raise ValueError(f"spectra: got {spectra!r:.80}, expected up to {SPECTRA_MAX} windows")
    for window in spectra:
        check_integer("spectra", window, 2, min(WINDOW_MAX, TABLE_MAX // hop))
    return tuple(spectra)
