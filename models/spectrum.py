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
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACK = 16  # samples of the denoised recent past that come with the extrapolation
BLOCK = 1 << 18  # audio samples of frames that are analysed at once: what fits the caches
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
        law = self._law(noise, noise_power)
        block = _block(frames)
        return torch.cat([_extrapolate(part, *law) for part in frames.split(block, 1)], 1)

    def with_pullback(
        self, audio: Tensor, noise: Tensor, noise_power: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The extrapolation, and the map from its gradient to that of the audio, by hand.

        Both are for fixed weights, and neither is differentiable.

        Args:
            audio: the samples before all of the tokens ``(batch, (token - 1) * hop + W)``.
            noise: embedded noise level ``(batch, embedding)``.
            noise_power: variance of the noise in the audio, ``(batch,)``.
        """
        hop = self.outputs - BACK
        law = self._law(noise, noise_power)
        frames = audio.unfold(1, self.window, hop)
        block = _block(frames)
        parts = [_extrapolate_with_pullback(part, *law) for part in frames.split(block, 1)]

        def back(gradient: Tensor) -> Tensor:
            total = torch.zeros_like(audio)
            for i, (part, (_, pull)) in enumerate(
                zip(gradient.split(block, 1), parts, strict=True)
            ):
                folded = fold(pull(part), hop)
                total[:, i * block * hop :][:, : folded.shape[1]] += folded
            return total

        return torch.cat([out for out, _ in parts], 1), back

    def _law(self, noise: Tensor, noise_power: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Threshold of the gate, windows of power and of extrapolation, and basis."""
        return (
            self.threshold(noise).exp()[:, None],
            self.analysis * noise_power.rsqrt()[:, None, None],
            self.continuation,
            self.basis,
        )


def _block(frames: Tensor) -> int:
    """Tokens that are analysed at once."""
    return max(1, BLOCK // (len(frames) * frames.shape[-1]))


def fold(frames: Tensor, hop: int) -> Tensor:
    """Sum of overlapping frames ``(batch, token, W)``, each a hop after the one before.

    It is the transpose of ``unfold(1, W, hop)``: ``(batch, (token - 1) * hop + W)``.

    >>> fold(torch.ones(1, 2, 3), 2)
    tensor([[1., 1., 2., 1., 1.]])
    """
    batch, tokens, window = frames.shape
    size = [batch, (tokens - 1) * hop + window]
    audio: Tensor = torch.ops.aten.unfold_backward(frames, size, 1, window, hop)
    return audio


def _extrapolate(
    frames: Tensor, threshold: Tensor, analysis: Tensor, continuation: Tensor, basis: Tensor
) -> Tensor:
    """The extrapolation, with gradients of every order with respect to every argument."""
    gate, _ = _gate(_power(_spectrum(frames * analysis)), threshold)
    return _real_parts(_tones(frames, continuation) * gate) @ basis


def _extrapolate_with_pullback(
    frames: Tensor, threshold: Tensor, analysis: Tensor, continuation: Tensor, basis: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""What :func:`_extrapolate` computes, and the map from its gradient to that of the frames.

    Let S be the spectrum under the window w over the noise's std, so that P = |S|^2; D the
    denominator of the gate g = P^2 / D; and T the gradient with respect to the gated tones g E,
    which the basis takes back from that of the extrapolation. A bar stands for the gradient with
    respect to a quantity. By the chain rule, bin by bin,

    .. math:: \bar E = g T, \qquad \bar S = 4 S P \Bigl(q - \sum_{|d| \le 2} (q g)_{b+d}\Bigr),
              \qquad q = \mathrm{Re}(E^* T) / D

    and for the frames, with R^T the transpose of the real FFT (:func:`_transposed_spectrum`),

    .. math:: \bar y = w \, R^T \bar S + \mathrm{Re}(v) \, R^T \bar E
              + \mathrm{Im}(v) \, R^T (-i \bar E) .
    """
    window = frames.shape[-1]
    spectrum, tones = _spectrum(frames * analysis), _tones(frames, continuation)
    power = _power(spectrum)
    gate, shared = _gate(power, threshold)
    out = _real_parts(tones * gate) @ basis
    half = _half(window, gate)  # of R^T, on real numbers and not on complex ones
    spectrum *= power * (4 * half)

    def back(gradient: Tensor) -> Tensor:
        into = gradient.contiguous() @ basis.T
        into = torch.view_as_complex(into.view(*into.shape[:-1], -1, 2))
        share = (tones.conj() * into).real / shared
        slope = spectrum * share.sub_(_over_lobe(share * gate))
        into *= gate * half
        inverse = partial(torch.fft.irfft, n=window, norm="forward")
        frames = inverse(slope).mul_(analysis)
        frames.addcmul_(continuation[0], inverse(into))
        return frames.addcmul_(continuation[1], inverse(into.mul_(-1j)))

    return out, back


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
        power = _power(_spectrum(frames * self.analysis)) / (known * noise_power[:, None, None])
        noise_floor, image_floor = self.thresholds(noise).exp()[:, None].chunk(2, -1)
        gate, _ = _gate(power, noise_floor + image_floor * power.mean(-1, keepdim=True).square())
        return _real_parts(_spectrum(frames * self.continuation) * (gate / known)) @ self.basis


class _Spectrum(torch.autograd.Function):
    """The FFT of real frames; its gradient is one real inverse FFT, where torch's is complex."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        """Bins from zero to half the rate."""
        ctx.window = frames.shape[-1]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient with respect to the frames."""
        return _transposed_spectrum(gradient, ctx.window)


def _spectrum(frames: Tensor) -> Tensor:
    """Bins from zero to half the rate."""
    by_hand = may_be_by_hand(frames)
    bins: Tensor = _Spectrum.apply(frames) if by_hand else torch.fft.rfft(frames)
    return bins


def may_be_by_hand(frames: Tensor) -> bool:
    """Whether a gradient is asked for, and by autograd.

    The transforms of torch.func, which nest, take the derivatives of torch's own functions: torch
    2.14 loses those of a Function that two forward modes go through.
    """
    transformed = torch._C._are_functorch_transforms_active()
    return frames.requires_grad and torch.is_grad_enabled() and not transformed


def _transposed_spectrum(bins: Tensor, window: int) -> Tensor:
    r"""Real part of :math:`\sum_b Z_b e^{2 \pi i b t / W}` over the bins of a real FFT."""
    return torch.fft.irfft(bins * _half(window, bins.real), n=window, norm="forward")


def _half(window: int, like: Tensor) -> Tensor:
    """By bin, what makes up for an inverse real FFT's counting those twice that it mirrors."""
    half = torch.full((window // 2 + 1,), 0.5, dtype=like.dtype, device=like.device)
    half[0] = 1
    if window % 2 == 0:
        half[-1] = 1
    return half


def _tones(frames: Tensor, continuation: Tensor) -> Tensor:
    """The FFT of real frames under a complex window, by two real ones."""
    real, imag = (_spectrum(frames * part) for part in continuation)
    return torch.add(real, imag, alpha=1j)


def _real_parts(bins: Tensor) -> Tensor:
    """Real and imaginary parts in turn, as the rows of a basis of tones."""
    return torch.view_as_real(bins).flatten(-2)


def _power(spectrum: Tensor) -> Tensor:
    return (spectrum * spectrum.conj()).real


def _gate(power: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Wiener gain of each bin, shared among the bins of one peak, and its denominator."""
    energy = power.square()
    shared = _over_lobe(energy) + threshold
    return energy / shared, shared


def _over_lobe(energy: Tensor) -> Tensor:
    """Sum over the bins of a lobe around each bin, zero beyond the ends; its own transpose."""
    bins, padded = energy.shape[-1], F.pad(energy, (LOBE, LOBE))
    total = padded[..., :bins] + padded[..., 1 : bins + 1]
    for shift in range(2, 2 * LOBE + 1):
        total += padded[..., shift : shift + bins]
    return total


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
