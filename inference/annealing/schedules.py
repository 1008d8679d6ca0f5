r"""Noise ladders and step-size schedules.

Which tones a frame holds is decided at noise levels where the evidence of the whole frame is some
tens to hundreds of nats. A source of RMS r in T samples of noise sigma carries
:math:`T r^2 / (2 \sigma^2)` nats against silence, so the ladder starts at

.. math:: \sigma_{max} = r \sqrt{T / (2 E)}, \qquad E = 100 \text{ nats}

and falls geometrically. Song & Ermon 2020 (arXiv 2006.09011) choose the top for the same reason.
"""

import math
from collections.abc import Callable

from pyro_sep.checks.arguments import number, whole

START_NATS = 100.0
MIN_LEVELS = 6  # of a ladder of two rates: five sixths and a rest


def start_level(time: int, rms: float, nats: float = START_NATS) -> float:
    """Noise level at which a source of this RMS in ``time`` audio samples carries these nats.

    >>> start_level(200, 0.5)
    0.5
    """
    return rms * math.sqrt(time / (2 * nats))


def geometric_ladder(sigma_max: float, sigma_min: float, levels: int) -> tuple[float, ...]:
    """``levels`` noise levels, falling from ``sigma_max`` to ``sigma_min`` by a constant factor.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max`` and there are at least two levels.

    >>> geometric_ladder(4.0, 1.0, 3)
    (4.0, 2.0, 1.0)
    """
    sigma_max, sigma_min = (number("ladder", end) for end in (sigma_max, sigma_min))
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"ladder: got {sigma_max:g} down to {sigma_min:g}, expected 0 < sigma_min < sigma_max"
        )
    levels = whole("levels", levels, "at least 2", 2)
    ratio = (sigma_min / sigma_max) ** (1 / (levels - 1))
    return (*(sigma_max * ratio**i for i in range(levels - 1)), sigma_min)


def two_rate_ladder(
    sigma_max: float, sigma_mid: float, sigma_min: float, levels: int
) -> tuple[float, ...]:
    """Five sixths of the levels down to ``sigma_mid``, the rest faster to ``sigma_min``.

    Modes are chosen above ``sigma_mid``, where the ladder must be slow, and refined below it.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_mid < sigma_max`` and there are at least
            :data:`MIN_LEVELS` levels.

    >>> [round(sigma, 2) for sigma in two_rate_ladder(16.0, 1.0, 0.1, 6)]
    [16.0, 8.0, 4.0, 2.0, 1.0, 0.1]
    """
    levels = whole("levels", levels, f"at least {MIN_LEVELS}", MIN_LEVELS)
    above = 5 * levels // 6
    below = geometric_ladder(sigma_mid, sigma_min, levels - above + 1)
    return geometric_ladder(sigma_max, sigma_mid, above) + below[1:]


def polynomial_decay(first: float, offset: float, power: float) -> Callable[[int], float]:
    r"""Welling & Teh's schedule :math:`\eta_t = \eta_0 (1 + t / b)^{-\kappa}`.

    Args:
        first: eta_0, the first step size.
        offset: b, in steps.
        power: kappa, in (1/2, 1] for convergence.

    Raises:
        ValueError: a number out of its range.

    >>> schedule = polynomial_decay(0.1, offset=10.0, power=1.0)
    >>> schedule(0), schedule(10)
    (0.1, 0.05)
    """
    numbers = {"first": first, "offset": offset, "power": power}
    first, offset, power = (number(name, value) for name, value in numbers.items())
    if not (first > 0 and offset > 0 and 0.5 < power <= 1):
        raise ValueError(
            f"polynomial_decay: got first {first:g}, offset {offset:g}, power {power:g}; "
            "expected first > 0, offset > 0, 1/2 < power <= 1"
        )
    return lambda step: first * (1 + step / offset) ** -power
