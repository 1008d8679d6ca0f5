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
   of x at their multiples; only the best frequencies go on;
2. fine: the best cells are split into nine, again and again, down to the width of the posterior;
   a tone is found as in a zoom. What was not split keeps its part of the integral.

The search has no gradient, the sum over the cells that it found does: the score is exact for the
quadrature. Its error is that of the grid, see the tests. Rows go through in groups that stay in
the processor's cache.
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

HARMONICS = 15  # of the coarse grid, less those under a hundredth of the strongest
PHASES = 32  # of the coarse grid
OFFSET = 0.618  # of these, in cells: on none falls a jump at a simple ratio of frequency and rate
KEPT = 512  # best frequencies of the coarse grid; the others hold under 0.1 nats, at sigma 5
BEAM = 12  # cells split at each stage, and more for short frames, whose posteriors are wide
BEAM_COST = 4096  # audio samples times cells that are never too many
NEGLIGIBLE = 12.0  # nats under the best: fine cells below are left out
STAGES = 8  # splits at most: to a thousandth of the coarse cells and beyond
NODES, WEIGHTS = (rule.tolist() for rule in leggauss(4))  # over the amplitudes of coarse cells
FINE = 0.1  # sigma from which float32 will do: it errs by some 1e-5 in b, hence 0.001 nats
CACHE = 98_304  # audio samples times cells to split, of the rows that are done together


@dataclass(frozen=True)
class WaveformConfig:
    """Configuration of the exact prior of a toy tone.

    Attributes:
        waveform: ``"sine"``, ``"saw"``, ``"square"`` or ``"triangle"``.
        sigma_min: lowest noise level at which the prior can be evaluated, full scale 1.
        sigma_max: highest one.

    Raises:
        ValueError: unknown waveform.

    >>> WaveformConfig("saw").sigma_min
    0.01
    """

    waveform: str = "sine"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

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

    >>> Waveform(WaveformConfig("saw")).log_prob(torch.zeros(3, 256), torch.ones(3)).shape
    torch.Size([3])
    """

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.config, self.power = config, config.power
        period = _period()
        values = torch.fft.rfft(waveform(config.waveform, period)) / len(period)
        shift = torch.exp(-1j * math.pi * torch.arange(len(values)) / len(period))
        series = (values * shift)[: HARMONICS + 1]
        orders = (series.abs() > 0.01 * series.abs().amax()).nonzero()[:, 0]
        phase = (torch.arange(PHASES, dtype=torch.float64) + OFFSET) / PHASES
        basis = 2 * series[orders] * torch.exp(2j * math.pi * phase[:, None] * orders)
        basis = torch.view_as_real(basis).mT.flatten(1).to(torch.get_default_dtype())
        self.orders = orders.tolist()
        # A parameter, so that the module has a dtype and a device: (phase, part and order).
        self.basis = nn.Parameter(basis, requires_grad=False)

    def log_prob(self, value: Tensor, sigma: Tensor) -> Tensor:
        """Log density ``(row,)`` in nats of noisy audio ``(row, time)`` at noise levels ``(row,)``.

        It has a gradient with respect to the audio.
        """
        result = value.new_zeros(len(value))
        group = max(1, CACHE // max(BEAM * value.shape[-1], BEAM_COST))  # rows
        for level in sigma.unique().tolist():  # the grid depends on it
            rows = (sigma == level).nonzero()[:, 0]
            parts = [self._log_prob(x, level) for x in value[rows].split(group)]
            result = result.index_put((rows,), torch.cat(parts))
        return result

    def _log_prob(self, x: Tensor, sigma: float) -> Tensor:
        time = x.shape[-1]
        *cells, rest = self._coarse(x, sigma)
        leaves = self._zoom(x.detach(), sigma, *cells)
        ratio = torch.logaddexp(rest, self._leaf_ratio(x, sigma, *leaves).logsumexp(1))
        noise = math.log(sigma) + 0.5 * math.log(2 * math.pi)
        return (ratio - 0.5 * (x.double() / sigma).square().sum(1) - time * noise).to(x.dtype)

    def squared_scores(self, value: Tensor, sigma: Tensor) -> Tensor:
        """NaN ``(batch,)``: audio samples are not predicted one by one."""
        return torch.full_like(value[:, 0], math.nan)

    @torch.no_grad()
    def sample(self, time: int, sigma: Tensor) -> Tensor:
        """Draw noisy audio ``(row, time)`` at noise levels ``(row,)``."""
        clean = draw_sources(self.config.waveform, len(sigma), time)[0].to(sigma)
        return clean + sigma[:, None] * torch.randn_like(clean)

    def _coarse(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies in Hz and phases of the best cells ``(row, cell)``, log ratio of the rest."""
        time, width = x.shape[-1], _coarse_width(x.shape[-1])
        size = round(SAMPLE_RATE / width)
        centred = torch.nn.functional.pad(x, (0, size - time)).roll(-(time // 2), 1)
        spectrum = torch.view_as_real(torch.fft.fft(centred)).mT  # (row, part, bin)
        basis = self.basis.to(x)
        bins = self._best_bins(spectrum.detach(), basis, width)
        multiples = torch.tensor(self.orders, device=x.device)[:, None] * bins[:, None] % size
        parts = spectrum.gather(2, multiples.flatten(1)[:, None].expand(-1, 2, -1))
        b = (basis @ parts.reshape(len(x), basis.shape[1], -1)).flatten(1)
        # At one amplitude the ratio grows with b.
        beam = min(max(BEAM, BEAM_COST // time), b.shape[1] - 1)
        top, order = b.detach().topk(beam + 1, dim=1)
        chosen, peak = order[:, :beam], top[:, beam:]
        others = b.scatter(1, chosen, -torch.inf) - peak
        frequency = bins.double() * width
        inside = (frequency + width / 2).clamp(max=FREQUENCIES[1])
        inside = inside - (frequency - width / 2).clamp(min=FREQUENCIES[0])
        area = inside.to(x).repeat(1, PHASES) / (FREQUENCIES[1] - FREQUENCIES[0]) / PHASES
        ratios = []
        for node, weight in zip(NODES, WEIGHTS, strict=True):  # on [-1, 1]
            amplitude = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * (1 + node) / 2
            # exp is slow where it underflows.
            mass = ((others * (amplitude / sigma**2)).clamp(-80).exp() * area).sum(1)
            exponent = (amplitude * peak[:, 0] - amplitude**2 * self.power * time / 2) / sigma**2
            ratios.append(exponent.double() + mass.log() + math.log(weight / 2))
        phase = (chosen // bins.shape[1] + OFFSET).double() / PHASES
        frequency = frequency.gather(1, chosen % bins.shape[1])
        return frequency, phase, torch.stack(ratios).logsumexp(0)

    def _best_bins(self, spectrum: Tensor, basis: Tensor, width: float) -> Tensor:
        """The coarse frequencies ``(row, bin)`` with the largest b, in units of their width."""
        low, high = (round(edge / width) for edge in FREQUENCIES)
        periods = spectrum.repeat(1, 1, -(-(self.orders[-1] * high + 1) // spectrum.shape[2]))
        parts = torch.stack([periods[..., k * low : k * high + 1 : k] for k in self.orders], 2)
        best = (basis @ parts.flatten(1, 2)).amax(1)
        return low + best.topk(min(KEPT, best.shape[1]), dim=1).indices

    @torch.no_grad()
    def _zoom(
        self, x: Tensor, sigma: float, frequency: Tensor, phase: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies in Hz, phases and log areas of the best fine cells, each ``(row, leaf)``."""
        time, beam = x.shape[-1], frequency.shape[1]
        width, height = _coarse_width(time), 1 / PHASES
        target = self._resolution(time, sigma)
        third = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device=x.device) / 3
        across, along = torch.cartesian_prod(third, third).unbind(1)
        found = []
        for stage in range(STAGES):
            frequency = (frequency[..., None] + width * across).flatten(1)
            phase = (phase[..., None] + height * along).flatten(1)
            width, height = width / 3, height / 3
            inside = (frequency >= FREQUENCIES[0]) & (frequency < FREQUENCIES[1])
            frequency = frequency.clamp(*FREQUENCIES)
            area = torch.full_like(
                frequency, math.log(width * height / (FREQUENCIES[1] - FREQUENCIES[0]))
            )
            value = self._peak_ratio(x, sigma, frequency, phase) + area
            value = value.masked_fill(~inside, -torch.inf)
            last = height <= target or stage == STAGES - 1
            keep = value.topk(0 if last else beam, dim=1).indices
            found.append((value.scatter(1, keep, -torch.inf), frequency, phase, area))
            if last:
                break
            frequency, phase = frequency.gather(1, keep), phase.gather(1, keep)
        value, frequency, phase, area = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        weighty = value > value.amax(1, keepdim=True) - NEGLIGIBLE
        best = value.topk(int(weighty.sum(1).max()), dim=1).indices
        area = area.masked_fill(~weighty, -torch.inf)
        return frequency.gather(1, best), phase.gather(1, best), area.gather(1, best)

    def _resolution(self, time: int, sigma: float) -> float:
        """Height of a cell, in periods, at which the zoom ends: below the posterior's width."""
        smooth = sigma * math.sqrt(2 / time) / (2 * math.pi * AMPLITUDES[1])
        if self.config.waveform in ("sine", "triangle"):
            return smooth
        # A jump moves over one audio sample after another, each at a price.
        return min(smooth / 1.5, max(1 / (8 * time), sigma**2 / (6 * time)))

    def _peak_ratio(self, x: Tensor, sigma: float, frequency: Tensor, phase: Tensor) -> Tensor:
        """Log ratio at the best amplitude, for the search, ``(row, cell)``."""
        b, c = self._products(x.float(), frequency, phase)
        amplitude = (b / c).clamp(*AMPLITUDES)
        return (amplitude * b - amplitude**2 * c / 2) / sigma**2

    def _leaf_ratio(
        self, x: Tensor, sigma: float, frequency: Tensor, phase: Tensor, area: Tensor
    ) -> Tensor:
        """Log of each leaf's part of the integral over A, f and phi, against noise alone."""
        b, c = self._products(x if sigma >= FINE else x.double(), frequency, phase)
        spread = sigma / c.sqrt()  # of the amplitude
        low, high = ((edge - b / c) / spread for edge in AMPLITUDES)
        prior = math.log(AMPLITUDES[1] - AMPLITUDES[0])
        mass = _log_normal_mass(low, high) + spread.log() + 0.5 * math.log(2 * math.pi) - prior
        return b.square() / (2 * c * sigma**2) + mass + area

    def _products(self, x: Tensor, frequency: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Of audio and unit waves, b = <x, w>, and of these alone, c = |w|^2: ``(row, cell)``."""
        waves = self._waves(frequency, phase, x.shape[-1]).to(x.dtype)
        b = torch.bmm(x[:, None], waves.mT)[:, 0]
        return b.double(), torch.linalg.vector_norm(waves, dim=2).double().square()

    @torch.no_grad()
    def _waves(self, frequency: Tensor, phase: Tensor, time: int) -> Tensor:
        """Unit waves ``(row, cell, time)`` in float32, those of :func:`waveform`.

        Phases are counted in integers: exact at any time, they wrap at a period, to [-1/2, 1/2).
        """
        name, scale = self.config.waveform, 2.0**32
        step = (frequency / SAMPLE_RATE * scale).round().long().to(torch.int32)
        start = phase + {"saw": 0.5, "triangle": -0.25}.get(name, 0.0)
        start = (start * scale).round().long().to(torch.int32)
        steps = torch.arange(time, dtype=torch.int32, device=phase.device) - time // 2
        turns = (step[..., None] * steps).add_(start[..., None])
        if name == "square":
            return turns.bitwise_right_shift_(31).bitwise_or_(1).float()
        wave = turns.float()
        if name == "sine":
            return wave.mul_(2 * math.pi / scale).sin_()
        wave.mul_(2 / scale)
        return wave if name == "saw" else wave.abs_().mul_(-2).add_(1)


def _coarse_width(time: int) -> float:
    """Hz between the coarse frequencies: an eighth of what the frame can resolve, or less."""
    return float(SAMPLE_RATE / 2 ** math.ceil(math.log2(8 * time)))


def _period() -> Tensor:
    """Phases of one period, in the middle of their cells: no jump falls on one."""
    return (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """Log of the standard normal's mass between two points, accurate in both tails."""
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log1p(-(lower - upper).exp())
