r"""What a long, very noisy past says about the next samples: a causal spectral extrapolator.

Before each hop the last W samples y are analysed twice, with a window w for power and with a
complex window v for extrapolation, and every bin b that stands out of the known noise is continued
as a tone:

.. math:: \hat y_n = \mathrm{Re} \sum_b g_b \, E_b \, e^{2 \pi i b n / W}, \qquad
          E_b = \sum_t v_t \, y_t \, e^{-2 \pi i b t / W}, \quad -B \le n < \mathrm{hop}

.. math:: g_b = \frac{P_b^2}{\sum_{|d| \le 2} P_{b+d}^2 + \tau(\sigma)}, \qquad
          P_b = \Bigl|\sum_t w_t y_t e^{-2 \pi i b t / W}\Bigr|^2 \Big/ \sigma_y^2

P is the power over that of the noise alone (mean one), so the gate is a Wiener gain shared among
the bins of one peak: nearly one over a lobe that carries a tone, nearly zero on noise. The rule is
the same for every frequency, which is what makes it quick to learn; w is fixed, v and tau are
learned. v starts at the least-squares continuation of a tone that lies within 3/4 bin of b.

Shapes: ``frames (batch, token, W)`` -> ``(batch, token, B + hop)``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACK = 16  # samples of the denoised recent past that come with the extrapolation
LOBE = 2  # bins to either side of a peak that share its power
GATE_START = 2.5  # log tau at the start: noise alone opens the gate by some per cent


class SpectralExtrapolator(nn.Module):
    """See the module's docstring.

    Args:
        window: W in audio samples.
        hop: audio samples to extrapolate.
        embedding: channels of the embedded noise level.
    """

    def __init__(self, window: int, hop: int, embedding: int) -> None:
        super().__init__()
        self.window = window
        self.outputs = BACK + hop
        analysis = _rising_window(window)
        continuation = torch.view_as_real(_continuation_window(analysis)).T
        self.continuation = nn.Parameter(continuation.contiguous().to(torch.get_default_dtype()))
        self.threshold = nn.Linear(embedding, 1)
        nn.init.zeros_(self.threshold.weight)
        nn.init.constant_(self.threshold.bias, GATE_START)
        self.analysis: Tensor
        self.basis: Tensor
        dtype = torch.get_default_dtype()
        self.register_buffer("analysis", analysis.to(dtype), persistent=False)
        self.register_buffer("basis", _tone_basis(window, hop).to(dtype), persistent=False)

    def forward(self, frames: Tensor, noise: Tensor, noise_power: Tensor) -> Tensor:
        """Denoised recent past and extrapolation ``(batch, token, BACK + hop)``.

        Args:
            frames: the samples before each token ``(batch, token, W)``.
            noise: embedded noise level ``(batch, embedding)``.
            noise_power: variance of the noise in ``frames``, ``(batch,)``.
        """
        spectrum = torch.fft.rfft(frames * self.analysis)
        power = (spectrum.real.square() + spectrum.imag.square()) / noise_power[:, None, None]
        energy = power.square()
        lobe = (2 * LOBE + 1) * F.avg_pool1d(energy, 2 * LOBE + 1, 1, LOBE)
        gate = energy / (lobe + self.threshold(noise).exp()[:, None])
        # The FFT of a real signal under a complex window, by two real ones.
        real, imag = (torch.fft.rfft(frames * part) for part in self.continuation)
        tones = torch.stack([(real.real - imag.imag) * gate, (real.imag + imag.real) * gate], -1)
        return tones.flatten(2) @ self.basis


def _rising_window(length: int) -> Tensor:
    """Sine-squared rise from the far past to the present, unit energy."""
    u = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    window = torch.sin(math.pi / 2 * u).square()
    return window / window.square().sum().sqrt()


def _continuation_window(analysis: Tensor) -> Tensor:
    """Complex window under which a tone near a bin has unit amplitude and its phase of the present.

    A combination of 2 * LOBE + 1 neighbouring bins is a modulated window. Their weights solve a
    ridge regression over tones within 3/4 bin.
    """
    length = len(analysis)
    since = torch.arange(length, dtype=torch.float64) - length
    offsets = torch.linspace(-0.75, 0.75, 61, dtype=torch.float64)
    bins = torch.arange(-LOBE, LOBE + 1, dtype=torch.float64)
    turns = (offsets[:, None] - bins)[..., None] * since / length
    response = 0.5 * (torch.exp(2j * math.pi * turns) * analysis).sum(-1)
    ridge = 0.05 * len(offsets) * torch.eye(len(bins), dtype=response.dtype)
    target = torch.ones(len(offsets), dtype=response.dtype)
    weights = torch.linalg.solve(response.mH @ response + ridge, response.mH @ target)
    modulation = torch.exp(-2j * math.pi * bins[:, None] * since / length)
    return analysis * (weights[:, None] * modulation).sum(0)


def _tone_basis(window: int, hop: int) -> Tensor:
    """Each bin's real and imaginary part to samples -BACK to hop: ``(2 * bin, sample)``."""
    n = torch.arange(-BACK, hop, dtype=torch.float64)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)
    angles = 2 * math.pi * bins[:, None] * n / window
    return torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1)
