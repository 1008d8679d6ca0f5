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

Where both channels are known, sources differ in how much of them is in the difference of the
channels: with :math:`\rho_k` the ratio of its power to that of the mean, near the top of the band,
and M and S the powers of the recording's mean and difference, averaged over 200 Hz and 0.3 s, these
powers P_k are changed so that they explain both,

.. math:: P_k \leftarrow \frac{P_k}{1 + \rho_k} \Bigl(\frac{M}{\sum_j P_j}
          + \rho_k \frac{S}{\sum_j \rho_j P_j}\Bigr)

in three steps of non-negative matrix factorisation by Kullback-Leibler divergence (Lee & Seung
2001, NIPS, "Algorithms for non-negative matrix factorization"). More would follow single cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.audio.stft import frame_size, inverse, transform
from pyro_sep.audio.treble import expected_ratios, known_bins
from pyro_sep.trace.channels import left_and_right, mean_and_half

AVERAGED = 1.6  # seconds of the window of an average
SMOOTH_HZ, SMOOTH_SECONDS = 200.0, 0.3  # windows of the powers of mean and difference
STEPS = 3
CENTRED = 1e-3  # of the mean's power: a source with less of it in the difference is in the centre
TINY = torch.finfo(torch.float32).tiny ** 0.5  # of powers that are divided by


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
    time = recording.shape[-1]
    if contributions.ndim == 2:
        parts = _parts(contributions, mixture, rate, to_rate, time)
        return _filtered(parts, _powers(parts, rate, to_rate, treble), recording, to_rate)
    heard, mixed, whole = (
        torch.stack(mean_and_half(*channels.unbind(-2)), -2)
        for channels in (contributions, mixture, recording)
    )
    both = [_parts(heard[:, i], mixed[i], rate, to_rate, time) for i in range(2)]
    powers = [_powers(parts, rate, to_rate, treble) for parts in both]
    if rate < to_rate:
        _explain_both(powers[0], powers[1], whole, known_bins(rate, to_rate), to_rate)
    mid, side = (
        _filtered(parts, power, whole[[i]], to_rate)[:, 0]
        for i, (parts, power) in enumerate(zip(both, powers, strict=True))
    )
    return torch.stack(left_and_right(mid, side), 1)


def _parts(contributions: Tensor, mixture: Tensor, rate: int, to_rate: int, time: int) -> Tensor:
    """Contributions, and what they leave of their mixture, at the recording's rate."""
    left = (mixture - contributions.sum(0))[None]
    return resample(torch.cat([contributions, left]), rate, to_rate, time)


def _powers(parts: Tensor, rate: int, to_rate: int, treble: Sequence[Sequence[float]]) -> Tensor:
    """Powers ``(part, frequency, frame)`` of all parts, above the band those to be expected."""
    powers = torch.stack([transform(part, to_rate).abs().square() for part in parts])
    if rate == to_rate:
        return powers
    known = known_bins(rate, to_rate)
    top = _topmost(powers, known)
    powers[:, known:] = ((top + _averaged(top, _frames(AVERAGED, to_rate))) / 2)[:, None]
    if rate < to_rate and treble and all(treble):
        for power, own in zip(powers, treble, strict=False):  # what is left has none of its own
            power[known:] *= expected_ratios(own, rate, to_rate)[known:, None].to(power)
    return powers


def _topmost(powers: Tensor, known: int) -> Tensor:
    """Powers ``(part, frame)`` in the topmost half octave of the known frequencies."""
    return powers[:, round(known / 2**0.5) : known].mean(1)


def _explain_both(mid: Tensor, side: Tensor, whole: Tensor, known: int, to_rate: int) -> None:
    """Change the powers above the band, of mean and difference, by the equation above."""
    near = [_topmost(powers[:-1], known).mean(-1) for powers in (mid, side)]
    ratio = near[1] / near[0].clamp(min=TINY)
    ratio = torch.where(ratio < CENTRED, 0, ratio)[:, None, None]
    reach = round(SMOOTH_HZ / 2 * frame_size(to_rate) / to_rate)
    heard = []
    for row in whole:
        power = transform(row, to_rate)[known:].abs().square()
        power = _averaged(_averaged(power.T, reach).T, _frames(SMOOTH_SECONDS, to_rate))
        heard.append(power)
    found = mid[:-1, known:].clamp(min=TINY)
    for _ in range(STEPS):
        explained = [part.sum(0).clamp(min=TINY) for part in (found, ratio * found)]
        pull = heard[0] / explained[0] + ratio * heard[1] / explained[1]
        found = found * pull / (1 + ratio)
    mid[:-1, known:], side[:-1, known:] = found, ratio * found
    mid[-1, known:], side[-1, known:] = 0, 0


def _filtered(parts: Tensor, powers: Tensor, recording: Tensor, rate: int) -> Tensor:
    """Stems ``(source, channel, time)``: the parts, and what they lack by their powers."""
    total = powers.sum(0).clamp(min=torch.finfo(recording.dtype).tiny)
    rest, time = transform(recording - parts.sum(0), rate), recording.shape[-1]
    filtered = [inverse(power / total * rest, rate, time) for power in powers[:-1]]
    return parts[:-1, None] + torch.stack(filtered)


def _frames(seconds: float, rate: int) -> int:
    """Frames of half a window of so many seconds."""
    return round(seconds / 2 * rate / (frame_size(rate) // 4))


def _averaged(power: Tensor, reach: int) -> Tensor:
    """Powers ``(row, place)``, each averaged with those up to a reach away (Hann window)."""
    window = torch.hann_window(2 * reach + 1, periodic=False).to(power)[None, None]
    total = F.conv1d(power[:, None], window, padding=reach)
    weight = F.conv1d(torch.ones_like(power[:1, None]), window, padding=reach)
    return (total / weight)[:, 0]
