r"""From the posterior, mono and at the priors' rate, to stems as the recording has them.

The contributions S_k and what they leave of the mixture, R, are resampled. They add up to the
recording as far as the posterior knows it; the rest of each channel c, which is how it differs from
the mono mixture and all above the priors' band, is divided by a Wiener filter: with short-time
Fourier transforms, at each frequency and frame,

.. math:: \hat X_{kc} = S_k + \frac{|S_k|^2}{\sum_j |S_j|^2 + |R|^2}
          \Bigl(X_c - \sum_j S_j - R\Bigr)

Liutkus & Badeau 2015 (ICASSP, "Generalized Wiener filtering with fractional power spectrograms"),
at the exponent 2. So stems that are mixed down again are the posterior itself, and only panorama
and treble are the filter's; filtering the whole recording would give away the phases that the
posterior knows.

Above the band the posterior says nothing. There each frame's powers are those in the topmost half
octave of the band, times what such a source has above it (:mod:`pyro_sep.audio.treble`): what is
brightest below goes on above, cymbals further than a bass. One frame alone tells that poorly, so
half of the power is that of the frame, and half its average over about a second (Hann window of
1.6 s).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.audio.treble import expected_ratios, frame_size, known_bins, transform

AVERAGED = 1.6  # seconds of the window of an average


def wiener_upmix(
    contributions: Tensor,
    mixture: Tensor,
    rate: int,
    recording: Tensor,
    to_rate: int,
    treble: Sequence[Sequence[float]] = (),
) -> Tensor:
    """Stems of every channel of a recording, by the equation above.

    With the residual, ``recording - stems.sum(0)``, which is R and its part of the rest, they add
    up to the recording.

    Args:
        contributions: what each source adds to the mixture, ``(source, time)``; or to either
            channel of it, ``(source, channel, time)``. Their mean and half of their difference are
            filtered by themselves then, as a source in the centre has no part of the latter.
        mixture: ``(time,)``; the recording, mixed down; or ``(channel, time)``.
        rate: of contributions and mixture, in Hz.
        recording: ``(channel, recording time)``.
        to_rate: of the recording, in Hz.
        treble: of each source, :func:`pyro_sep.audio.treble.ratios`; 1 everywhere where that of a
            source is not known.

    Returns:
        ``(source, channel, recording time)``.
    """
    if contributions.ndim == 3:
        heard, mixed, whole = map(_mid_and_side, (contributions, mixture, recording))
        mid, side = (
            wiener_upmix(heard[:, i], mixed[i], rate, whole[[i]], to_rate, treble)[:, 0]
            for i in range(2)
        )
        return torch.stack([mid + side, mid - side], 1)
    time = recording.shape[-1]
    size = frame_size(to_rate)
    window = torch.hann_window(size, dtype=recording.dtype, device=recording.device)
    parts = resample(
        torch.cat([contributions, (mixture - contributions.sum(0))[None]]), rate, to_rate, time
    )
    powers = [transform(part, to_rate).abs().square() for part in parts]
    if rate != to_rate:
        known = known_bins(rate, to_rate)
        topmost = slice(round(known / 2**0.5), known)
        for power in powers:
            top = power[topmost].mean(0)
            power[known:] = (top + _averaged(top, to_rate)) / 2
    if rate < to_rate and treble and all(treble):
        for power, own in zip(powers, treble, strict=False):  # what is left has none of its own
            power[known:] *= expected_ratios(own, rate, to_rate)[known:, None].to(power)
    total = sum(powers[1:], powers[0]).clamp(min=torch.finfo(recording.dtype).tiny)
    rest = transform(recording - parts.sum(0), to_rate)
    filtered = [
        torch.istft(power / total * rest, size, size // 4, window=window, length=time)
        for power in powers[:-1]
    ]
    return parts[:-1, None] + torch.stack(filtered)


def _averaged(power: Tensor, rate: int) -> Tensor:
    """Powers ``(frame,)``, each averaged with those about it."""
    reach = round(AVERAGED / 2 * rate / (frame_size(rate) // 4))
    window = torch.hann_window(2 * reach + 1, periodic=False).to(power)[None, None]
    both = torch.stack([power, torch.ones_like(power)])[:, None]
    total, weight = F.conv1d(both, window, padding=reach)[:, 0]
    return total / weight


def _mid_and_side(channels: Tensor) -> Tensor:
    """Mean and half the difference of left and right ``(..., channel, time)``."""
    left, right = channels.unbind(-2)
    return torch.stack([(left + right) / 2, (left - right) / 2], -2)
