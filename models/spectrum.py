r"""What a long, very noisy surrounding says about samples not seen: tones continued by spectra.

**Extrapolation**, for causal networks. Before each hop the last W samples y are analysed twice,
with a window w for power and with a complex window v for extrapolation, and every bin b that stands
out of the known noise is continued as a tone:

.. math:: \hat y_n = \mathrm{Re} \sum_b g_b \, E_b \, e^{2 \pi i b n / W}, \qquad
          E_b = \sum_t v_t \, y_t \, e^{-2 \pi i b t / W}, \quad -B \le n < \mathrm{hop}

.. math:: g_b = \frac{P_b^2}{\sum_{|d| \le 2} P_{b+d}^2 + \tau(\sigma)}, \qquad
          P_b = \Bigl|\sum_t w_t y_t e^{-2 \pi i b t / W}\Bigr|^2 \Big/ \sigma_y^2

P is the power over that of the noise alone (mean one), so the gate is a Wiener gain shared among
the bins of one peak: nearly one over a lobe that carries a tone, nearly zero on noise. The rule is
the same for every frequency, which is what makes it quick to learn; w is fixed, v and tau are
learned. v starts at the least-squares continuation of a tone that lies within 3/4 bin of b.

**Interpolation**, for couplings. The W samples lie around the hop, a share q of them is known and
the others are zero. Where the known ones are scattered, a tone's images in the other bins are as
weak as noise, and they add to it: P and E are over q, and the threshold gains a share of the mean
power, :math:`\tau(\sigma) + \iota(\sigma) \bar P^2`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACK = 16  # samples of the denoised recent past that come with the extrapolation
LOBE = 2  # bins to either side of a peak that share its power
GATE_START = 2.5  # log tau at the start: noise alone opens the gate by some per cent
THRESHOLD_STARTS = (5.0, 2.0)  # log tau and log iota of an interpolation at the start


class SpectralExtrapolator(nn.Module):
    """Tones of the past, continued; see the module's docstring.

    Args:
        window: W in audio samples.
        hop: audio samples to extrapolate.
        embedding: channels of the embedded noise level.
    """

    def __init__(self, window: int, hop: int, embedding: int) -> None:
        super().__init__()
        self.window = window
        self.outputs = BACK + hop
        u = (torch.arange(window, dtype=torch.float64) + 0.5) / window
        analysis = _unit_energy(torch.sin(math.pi / 2 * u).square())  # rises to the present
        continuation = torch.view_as_real(_continuation_window(analysis, window)).T
        self.continuation = nn.Parameter(continuation.contiguous().to(torch.get_default_dtype()))
        self.threshold = nn.Linear(embedding, 1)
        nn.init.zeros_(self.threshold.weight)
        nn.init.constant_(self.threshold.bias, GATE_START)
        self.analysis: Tensor
        self.basis: Tensor
        dtype = torch.get_default_dtype()
        self.register_buffer("analysis", analysis.to(dtype), persistent=False)
        basis = _tone_basis(window, torch.arange(-BACK, hop))
        self.register_buffer("basis", basis.to(dtype), persistent=False)

    def forward(self, frames: Tensor, noise: Tensor, noise_power: Tensor) -> Tensor:
        """Denoised recent past and extrapolation ``(batch, token, BACK + hop)``.

        Args:
            frames: the samples before each token ``(batch, token, W)``.
            noise: embedded noise level ``(batch, embedding)``.
            noise_power: variance of the noise in ``frames``, ``(batch,)``.
        """
        power = _power(frames * self.analysis) / noise_power[:, None, None]
        gate = _gate(power, self.threshold(noise).exp()[:, None])
        # The FFT of a real signal under a complex window, by two real ones.
        real, imag = (torch.fft.rfft(frames * part) for part in self.continuation)
        tones = torch.stack([(real.real - imag.imag) * gate, (real.imag + imag.real) * gate], -1)
        return tones.flatten(2) @ self.basis


class SpectralInterpolator(nn.Module):
    """Tones of the surroundings, at the hop in their middle; see the module's docstring.

    Args:
        window: W in audio samples.
        hop: audio samples to interpolate.
        embedding: channels of the embedded noise level.
    """

    def __init__(self, window: int, hop: int, embedding: int) -> None:
        super().__init__()
        u = (torch.arange(window, dtype=torch.float64) + 0.5) / window
        analysis = _unit_energy(torch.sin(math.pi * u).square())
        # Symmetric about the middle, so the window of the tones at the middle is real.
        continuation = _continuation_window(analysis, (window - 1) / 2).real
        dtype = torch.get_default_dtype()
        self.continuation = nn.Parameter(continuation.to(dtype))
        self.thresholds = nn.Linear(embedding, 2)
        nn.init.zeros_(self.thresholds.weight)
        with torch.no_grad():
            self.thresholds.bias.copy_(torch.tensor(THRESHOLD_STARTS))
        self.analysis: Tensor
        self.basis: Tensor
        self.register_buffer("analysis", analysis.to(dtype), persistent=False)
        first = (window - hop) // 2
        basis = _tone_basis(window, torch.arange(first, first + hop))
        self.register_buffer("basis", basis.to(dtype), persistent=False)

    def forward(self, frames: Tensor, noise: Tensor, noise_power: Tensor, known: float) -> Tensor:
        """Interpolation ``(batch, token, hop)``.

        Args:
            frames: the samples around each token, zero where unknown, ``(batch, token, W)``.
            noise: embedded noise level ``(batch, embedding)``.
            noise_power: variance of the noise in the known samples, ``(batch,)``.
            known: share of the samples that are known.
        """
        power = _power(frames * self.analysis) / (known * noise_power[:, None, None])
        noise_floor, image_floor = self.thresholds(noise).exp()[:, None].chunk(2, -1)
        gate = _gate(power, noise_floor + image_floor * power.mean(-1, keepdim=True).square())
        spectrum = torch.fft.rfft(frames * self.continuation) * (gate / known)
        return torch.view_as_real(spectrum).flatten(2) @ self.basis


def _power(frames: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(frames)
    return spectrum.real.square() + spectrum.imag.square()


def _gate(power: Tensor, threshold: Tensor) -> Tensor:
    """Wiener gain of each bin, shared among the bins of one peak."""
    energy = power.square()
    width = 2 * LOBE + 1
    return energy / (width * F.avg_pool1d(energy, width, 1, LOBE) + threshold)


def _unit_energy(window: Tensor) -> Tensor:
    return window / window.square().sum().sqrt()


def _continuation_window(analysis: Tensor, origin: float) -> Tensor:
    """Complex window under which a tone near a bin has unit amplitude and its phase at the origin.

    A combination of 2 * LOBE + 1 neighbouring bins is a modulated window. Their weights solve a
    ridge regression over tones within 3/4 bin.
    """
    length = len(analysis)
    since = torch.arange(length, dtype=torch.float64) - origin
    offsets = torch.linspace(-0.75, 0.75, 61, dtype=torch.float64)
    bins = torch.arange(-LOBE, LOBE + 1, dtype=torch.float64)
    turns = (offsets[:, None] - bins)[..., None] * since / length
    response = 0.5 * (torch.exp(2j * math.pi * turns) * analysis).sum(-1)
    ridge = 0.05 * len(offsets) * torch.eye(len(bins), dtype=response.dtype)
    target = torch.ones(len(offsets), dtype=response.dtype)
    weights = torch.linalg.solve(response.mH @ response + ridge, response.mH @ target)
    modulation = torch.exp(-2j * math.pi * bins[:, None] * since / length)
    return analysis * (weights[:, None] * modulation).sum(0)


def _tone_basis(window: int, samples: Tensor) -> Tensor:
    """Each bin's real and imaginary part at samples of the frame: ``(2 * bin, sample)``."""
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)
    angles = 2 * math.pi * bins[:, None] * samples / window
    return torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1)
