r"""The exact density of a toy waveform in white noise, by quadrature over its three parameters.

.. math:: p_\sigma(x) = \int \mathcal{N}(x; A \, w_{f, \phi}, \sigma^2 I) \; p(f) p(A) p(\phi) \,
          df \, dA \, d\phi

with :math:`w_{f, \phi}` the sampled unit waveform and f, A and phi as in
:mod:`pyro_sep.data.toy`. Against noise alone a tone has the log likelihood ratio
:math:`(A b - A^2 c / 2) / \sigma^2`, where :math:`b = \langle x, w \rangle` and
:math:`c = \|w\|^2`.

The integral over A is a Gaussian's. Frequency and phase, the latter at the middle of the frame,
where the two are uncorrelated, are cells of a grid:

1. coarse: b at all frequencies at once, from the first harmonics of the waveform and the spectrum
   of x at their multiples;
2. fine: the best cells are split into nine, again and again, down to the width of the posterior;
   a tone is found as in a zoom. What was not split keeps its part of the integral.

The search has no gradient, the sum over the cells that it found does: the score is exact for the
quadrature. Its error is that of the grid, see the tests.
"""

import math
from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from pyro_sep.data.toy import (
    AMPLITUDES,
    FREQUENCIES,
    SAMPLE_RATE,
    WAVEFORMS,
    draw_sources,
    waveform,
)

HARMONICS = 15  # of the coarse grid
PHASES = 32  # of the coarse grid
BEAM = 12  # cells split at each stage, and more for short frames, whose posteriors are wide
BEAM_COST = 4096  # audio samples times cells that are never too many
NEGLIGIBLE = 25.0  # nats under the best: fine cells below are left out
STAGES = 8  # splits at most: to a thousandth of the coarse cells and beyond
NODES = 4  # Gauss-Legendre, over the amplitudes of the coarse cells


@dataclass(frozen=True)
class WaveformConfig:
    """Which waveform, and the noise levels that may be asked for.

    Raises:
        ValueError: unknown waveform.
    """

    waveform: str = "sine"
    sigma_min: float = 0.01
    sigma_max: float = 5.0

    def __post_init__(self) -> None:
        if self.waveform not in WAVEFORMS:
            raise ValueError(
                f"waveform: got {self.waveform!r}, expected one of {', '.join(WAVEFORMS)}"
            )

    @property
    def power(self) -> float:
        """Mean square of the wave of amplitude 1."""
        return float(waveform(self.waveform, _period()).square().mean())

    @property
    def sigma_data(self) -> float:
        """RMS of the clean source."""
        low, high = AMPLITUDES
        return math.sqrt((low**2 + low * high + high**2) / 3 * self.power)

    @property
    def multiple(self) -> int:
        """Any frame will do."""
        return 1


class Waveform(nn.Module):
    """Log density and draws of a toy waveform plus noise; nothing in it is learned.

    Args:
        config: which waveform.
    """

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.config, self.power = config, config.power
        period = _period()
        values = torch.fft.rfft(waveform(config.waveform, period)) / len(period)
        shift = torch.exp(-1j * math.pi * torch.arange(len(values)) / len(period))
        series = (values * shift)[1 : HARMONICS + 1]
        # A parameter, so that the module has a dtype and a device: (harmonic, real and imaginary).
        self.series = nn.Parameter(
            torch.view_as_real(series).to(torch.get_default_dtype()), requires_grad=False
        )

    def log_prob(self, value: Tensor, sigma: Tensor) -> Tensor:
        """Log density ``(row,)`` in nats of noisy audio ``(row, time)`` at noise levels ``(row,)``.

        It has a gradient with respect to the audio.
        """
        result = value.new_zeros(len(value))
        for level in sigma.unique().tolist():  # the grid depends on it
            rows = (sigma == level).nonzero()[:, 0]
            result = result.index_put((rows,), self._log_prob(value[rows], level))
        return result

    def _log_prob(self, value: Tensor, sigma: float) -> Tensor:
        time = value.shape[-1]
        coarse, frequency, area = self._coarse(value, sigma)
        cells = (coarse + area).flatten(1)
        chosen = cells.topk(min(max(BEAM, BEAM_COST // time), cells.shape[1]), dim=1).indices
        x = value.double()
        leaves = self._zoom(x.detach(), sigma, chosen, frequency)
        rest = cells.scatter(1, chosen, -torch.inf).logsumexp(1)
        ratio = torch.logaddexp(rest, self._leaf_ratio(x, sigma, *leaves).logsumexp(1))
        noise = math.log(sigma) + 0.5 * math.log(2 * math.pi)
        return (ratio - 0.5 * (x / sigma).square().sum(1) - time * noise).to(value.dtype)

    @torch.no_grad()
    def sample(self, time: int, sigma: Tensor) -> Tensor:
        """Draw noisy audio ``(row, time)`` at noise levels ``(row,)``."""
        clean = draw_sources(self.config.waveform, len(sigma), time)[0].to(sigma)
        return clean + sigma[:, None] * torch.randn_like(clean)

    def _coarse(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log ratio ``(row, frequency, phase)``, frequencies in Hz, log area ``(frequency, 1)``."""
        time = x.shape[-1]
        size = 2 ** math.ceil(math.log2(8 * time))
        width = SAMPLE_RATE / size
        low, high = FREQUENCIES
        bins = torch.arange(round(low / width), round(high / width) + 1, device=x.device)
        frequency = bins * width
        inside = (frequency + width / 2).clamp(max=high) - (frequency - width / 2).clamp(min=low)
        area = (inside.double() / (high - low) / PHASES).log()[:, None]
        order = torch.arange(1, HARMONICS + 1, device=x.device)[:, None]
        spectrum = torch.fft.fft(x, size)[:, order * bins % size]
        # The time of phase zero is the middle of the frame.
        turn = (order * bins * (time - 1) % (2 * size)).to(x) * (math.pi / size)
        series = torch.view_as_complex(self.series.to(x.dtype))[:, None]
        terms = series * torch.polar(torch.ones_like(turn), turn).mul(spectrum).conj()
        padded = torch.nn.functional.pad(terms.transpose(1, 2), (1, PHASES // 2 - HARMONICS))
        b = torch.fft.irfft(padded, PHASES) * PHASES
        energy = self.power * time
        ratios = []
        for node, weight in zip(*leggauss(NODES), strict=True):  # on [-1, 1]
            amplitude = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * (1 + float(node)) / 2
            exponent = (amplitude * b - amplitude**2 * energy / 2) / sigma**2
            ratios.append(exponent + math.log(weight / 2))
        return torch.stack(ratios).logsumexp(0).double(), frequency, area

    @torch.no_grad()
    def _zoom(
        self, x: Tensor, sigma: float, chosen: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies in Hz, phases and log areas of the best fine cells, each ``(row, leaf)``."""
        time, beam = x.shape[-1], chosen.shape[1]
        frequency, phase = grid.double()[chosen // PHASES], (chosen % PHASES).double() / PHASES
        width, height = float(grid[1] - grid[0]), 1 / PHASES
        target = self._resolution(time, sigma)
        third = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device=x.device) / 3
        found = []
        for stage in range(STAGES):
            frequency = (frequency[..., None, None] + width * third[:, None]).expand(
                *frequency.shape, 3, 3
            )
            phase = (phase[..., None, None] + height * third).expand_as(frequency)
            frequency, phase = frequency.flatten(1), phase.flatten(1)
            width, height = width / 3, height / 3
            inside = (frequency >= FREQUENCIES[0]) & (frequency < FREQUENCIES[1])
            frequency = frequency.clamp(*FREQUENCIES)
            value = self._peak_ratio(x, sigma, frequency, phase)
            value = value + math.log(width * height / (FREQUENCIES[1] - FREQUENCIES[0]))
            value = value.masked_fill(~inside, -torch.inf)
            last = height <= target or stage == STAGES - 1
            order = value.argsort(dim=1, descending=True)
            keep = order[:, : 0 if last else beam]
            area = torch.full_like(value, math.log(width * height))
            found.append(
                [t.gather(1, order[:, keep.shape[1] :]) for t in (value, frequency, phase, area)]
            )
            if last:
                break
            frequency, phase = frequency.gather(1, keep), phase.gather(1, keep)
        value, frequency, phase, area = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        weighty = (value > value.amax(1, keepdim=True) - NEGLIGIBLE).sum(1).max()
        best = value.topk(int(weighty), dim=1).indices
        area = area - math.log(FREQUENCIES[1] - FREQUENCIES[0])
        area = area.masked_fill(value.isinf(), -torch.inf)
        return frequency.gather(1, best), phase.gather(1, best), area.gather(1, best)

    def _resolution(self, time: int, sigma: float) -> float:
        """Height of a cell, in periods, at which the zoom ends: below the posterior's width."""
        smooth = sigma * math.sqrt(2 / time) / (2 * math.pi * AMPLITUDES[1]) / 1.5
        if self.config.waveform in ("sine", "triangle"):
            return smooth
        # A jump moves over one audio sample after another, each at a price.
        return min(smooth, max(1 / (8 * time), sigma**2 / (6 * time)))

    def _peak_ratio(self, x: Tensor, sigma: float, frequency: Tensor, phase: Tensor) -> Tensor:
        """Log ratio at the best amplitude, for the search, ``(row, cell)``."""
        waves = self._waves(frequency, phase, x.shape[-1], torch.float32)
        b = torch.einsum("rct,rt->rc", waves, x.float())
        c = waves.square().sum(-1)
        amplitude = (b / c).clamp(*AMPLITUDES)
        return ((amplitude * b - amplitude**2 * c / 2) / sigma**2).double()

    def _leaf_ratio(
        self, x: Tensor, sigma: float, frequency: Tensor, phase: Tensor, area: Tensor
    ) -> Tensor:
        """Log of each leaf's part of the integral over A, f and phi, against noise alone."""
        waves = self._waves(frequency, phase, x.shape[-1], torch.float64)
        b = torch.einsum("rct,rt->rc", waves, x)
        c = waves.square().sum(-1)
        spread = sigma / c.sqrt()  # of the amplitude
        low, high = ((edge - b / c) / spread for edge in AMPLITUDES)
        prior = math.log(AMPLITUDES[1] - AMPLITUDES[0])
        mass = _log_normal_mass(low, high) + spread.log() + 0.5 * math.log(2 * math.pi) - prior
        return b.square() / (2 * c * sigma**2) + mass + area

    def _waves(self, frequency: Tensor, phase: Tensor, time: int, dtype: torch.dtype) -> Tensor:
        """Unit waves ``(row, cell, time)``; phases counted in integers, exact at any time."""
        scale = 2.0**32
        step = (frequency / (2 * SAMPLE_RATE) * scale).round().long().to(torch.int32)
        start = (phase * scale).round().long().to(torch.int32)
        steps = torch.arange(1 - time, time, 2, dtype=torch.int32, device=phase.device)
        turns = step[..., None] * steps + start[..., None]  # wraps at a period
        return waveform(self.config.waveform, turns.to(dtype) / scale)


def _period() -> Tensor:
    """Phases of one period, in the middle of their cells: no jump falls on one."""
    return (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """Log of the standard normal's mass between two points, accurate in both tails."""
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log1p(-(lower - upper).exp())
