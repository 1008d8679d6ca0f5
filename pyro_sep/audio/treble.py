r"""How much a source sounds above the band that its prior hears.

A prior at rate r hears up to r / 2. Its source goes on above: cymbals far, a bass hardly. From
recordings of that source alone, for each half octave j above r / 2,

.. math:: \rho_j = \overline{P_j} \Big/ \overline{P_{\mathrm{top}}}

with P the power per hertz in that half octave and in the topmost octave of the band, which ends 5 %
below r / 2 where resampling leaves little, averaged over all recordings and moments. By these
ratios :mod:`pyro_sep.audio.wiener` expects the power of a stem above the band from what it has near
its top.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_sep.audio.stft import frame_size, transform

BAND = 0.95  # of a Nyquist frequency: above, resampling leaves little
BLOCK = 1 << 21  # audio samples that are transformed at once, to bound the memory
HALVES = 8  # half octaves at most: 32 kHz above a band of 2 kHz


def known_bins(rate: int, to_rate: int) -> int:
    """Bins of a transform at ``to_rate`` that priors at ``rate`` hear."""
    return int(BAND * min(rate, to_rate) / to_rate * (frame_size(to_rate) // 2))


def half_octaves(rate: int, to_rate: int) -> Tensor:
    """The half octave above ``rate / 2`` in which each bin lies of a transform at ``to_rate``.

    Those at the edge of the band belong to the first.

    >>> half_octaves(4_000, 16_000)[[0, 256, 512, 1024]]
    tensor([0, 0, 2, 4])
    """
    frequency = torch.fft.rfftfreq(frame_size(to_rate), 1 / to_rate)
    return (2 * torch.log2(2 * frequency.clamp(min=rate / 2) / rate) + 1e-6).long()


def measure(samples: Tensor, rate: int, band_rate: int) -> Tensor:
    """Energies of a recording, from which :func:`ratios` follow; those of several add up.

    Args:
        samples: ``(time,)``.
        rate: of them, in Hz.
        band_rate: of the prior, in Hz.

    Returns:
        ``(2, half octave)`` in double precision: the energy per bin in each half octave, and that
        in the topmost octave of the band; zeros where the recording does not have all of the half
        octave.
    """
    found = torch.zeros(2, HALVES, dtype=torch.float64)
    size, known = frame_size(rate), known_bins(band_rate, rate)
    whole = int(2 * math.log2(max(BAND * rate / band_rate, 1.0)))  # half octaves that it has
    if not whole or not known:
        return found
    energy = torch.zeros(size // 2 + 1, dtype=torch.float64)
    for block in samples.split(BLOCK):
        energy += transform(block, rate).abs().square().sum(-1, dtype=torch.float64)
    place = half_octaves(band_rate, rate)
    for half in range(min(whole, HALVES)):
        inside = place == half
        inside[:known] = False
        found[:, half] = torch.stack([energy[inside].mean(), energy[known // 2 : known].mean()])
    return found


def mean_energies(recordings: Iterable[tuple[Tensor, int]], band_rate: int) -> Tensor:
    """Mean of :func:`measure` per second of all recordings.

    Args:
        recordings: ``(time,)`` and its rate in Hz, of each.
        band_rate: of the prior, in Hz.
    """
    found, seconds = torch.zeros(2, HALVES, dtype=torch.float64), 0.0
    for samples, rate in recordings:
        found += measure(samples, rate, band_rate)
        seconds += len(samples) / rate
    return found / max(seconds, 1.0)


def ratios(energies: Tensor) -> tuple[float, ...]:
    r"""The :math:`\rho_j` of half octaves that were heard, from the lowest on.

    >>> ratios(torch.tensor([[2.0, 1.0, 0.0], [4.0, 4.0, 0.0]]))
    (0.5, 0.25)
    """
    heard = int((energies[1] > 0).long().cumprod(0).sum())
    values = energies[0, :heard] / energies[1, :heard]
    return tuple(round(value, 4) for value in values.tolist())


def expected_ratios(treble: Sequence[float], rate: int, to_rate: int) -> Tensor:
    """What each bin of a transform at ``to_rate`` has of the power of the topmost octave.

    Above the half octaves that are known the last one goes on.

    Args:
        treble: :func:`ratios` of the source.
        rate: of its prior, in Hz.
        to_rate: in Hz.
    """
    return torch.tensor(treble)[half_octaves(rate, to_rate).clamp(max=len(treble) - 1)]
