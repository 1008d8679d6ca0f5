r"""The toy waveforms: sine, sawtooth, square and triangle tones, and their mixtures.

A source is a curve with three parameters, sampled (not band-limited) at 16 kHz:

.. math:: s(t) = A \, w(f t / r + \phi), \qquad
          f \sim U[27, 4186)\ \mathrm{Hz}, \quad A \sim U[0.8, 1), \quad \phi \sim U[0, 1)

with :math:`w` one of :data:`WAVEFORMS`, of period one and range [-1, 1], and r = 16,000 Hz. A
mixture is the mean of its sources. Frank & Ilse 2020 (arXiv 2011.01761), section 5.1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.data.seeds import generator_of

SAMPLE_RATE = 16_000
WAVEFORMS = ("sine", "saw", "square", "triangle")
SPLIT_SIZES = {"train": 5_000, "test": 1_500}
FREQUENCIES = (27.0, 4186.0)  # Hz: the lowest and the highest key of a piano
AMPLITUDES = (0.8, 1.0)


class ToyMixture(NamedTuple):
    """A mixture of toy tones with the sources it was made from.

    Attributes:
        mixture: the mean of the sources, ``(time,)``.
        sources: ``(source, time)``, full scale 1.
        frequencies: of the tones in Hz, ``(source,)``.

    >>> toy_mixture("test", 0, ("sine", "saw"), 256).sources.shape
    torch.Size([2, 256])
    """

    mixture: Tensor
    sources: Tensor
    frequencies: Tensor


def waveform(name: str, phase: Tensor) -> Tensor:
    """Value of a unit waveform at a phase counted in periods.

    Args:
        name: one of :data:`WAVEFORMS`.
        phase: any shape; only its fractional part matters.

    Raises:
        ValueError: unknown waveform.
    """
    p = phase.remainder(1)
    if name == "sine":
        return torch.sin(2 * math.pi * p)
    if name == "saw":
        return 2 * p - 1
    if name == "square":
        return 1 - 2 * (p >= 0.5).to(p.dtype)
    if name == "triangle":
        return 1 - 4 * ((p + 0.25).remainder(1) - 0.5).abs()
    raise ValueError(f"waveform: got {name!r}, expected one of {', '.join(WAVEFORMS)}")


def draw_sources(
    name: str, count: int, time: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw tones of one waveform with random frequency, amplitude and phase.

    Args:
        name: one of :data:`WAVEFORMS`.
        count: number of tones.
        time: audio samples per tone, at :data:`SAMPLE_RATE`.
        generator: source of randomness; torch's global one where None.

    Returns:
        Sources ``(count, time)`` in float32 and their frequencies ``(count,)`` in Hz.

    >>> draw_sources("square", 3, 256, torch.Generator().manual_seed(0))[0].shape
    torch.Size([3, 256])
    """
    u = torch.rand(count, 3, dtype=torch.float64, generator=generator)
    frequency = FREQUENCIES[0] + (FREQUENCIES[1] - FREQUENCIES[0]) * u[:, :1]
    amplitude = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * u[:, 1:2]
    # float64: at one second a phase counts thousands of periods.
    phase = frequency / SAMPLE_RATE * torch.arange(time, dtype=torch.float64) + u[:, 2:]
    return (amplitude * waveform(name, phase)).float(), frequency[:, 0]


def toy_mixture(
    split: str, index: int, sources: Sequence[str] = WAVEFORMS, time: int = SAMPLE_RATE
) -> ToyMixture:
    """One mixture of the toy data set, a pure function of its arguments.

    The tone of a waveform depends on (split, index, waveform) alone: a mixture of two sources holds
    the same tones as the mixture of four, and a shorter one is the beginning of the longer.

    Args:
        split: ``"train"`` (5,000 mixtures) or ``"test"`` (1,500).
        index: which mixture, from 0.
        sources: waveforms to mix, in order; the mixture is their mean.
        time: audio samples; one second in the paper.

    Raises:
        ValueError: unknown split or waveform, index out of range, no source.

    >>> example = toy_mixture("test", 0, ("sine", "saw"), 256)
    >>> torch.allclose(example.mixture, example.sources.mean(0))
    True
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLIT_SIZES)}")
    if not 0 <= index < SPLIT_SIZES[split]:
        raise ValueError(f"index: got {index}, expected 0 to {SPLIT_SIZES[split] - 1} for {split}")
    if not sources:
        raise ValueError("sources: got none, expected at least one waveform")
    tones, frequencies = [], []
    for name in sources:
        generator = generator_of(f"{split}/{index}/{name}")
        tone, frequency = draw_sources(name, 1, time, generator)
        tones.append(tone[0])
        frequencies.append(frequency[0])
    stacked = torch.stack(tones)
    return ToyMixture(stacked.mean(0), stacked, torch.stack(frequencies))
