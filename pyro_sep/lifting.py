r"""From the posterior, mono and at the priors' rate, to stems as the recording has them.

A Wiener filter on every channel of the recording: with S_k(f, t) the short-time Fourier transform
of the k-th share, resampled, and R that of what they leave of the mixture,

.. math:: \hat X_{kc} = \frac{|S_k|^2}{\sum_j |S_j|^2 + |R|^2} X_c

the generalised Wiener filter of Liutkus & Badeau 2015 (ICASSP, "Generalized Wiener filtering with
fractional power spectrograms") at the exponent 2. The panorama, the phase and what lies above the
priors' band are those of the recording.

Above that band the posterior says nothing. There each frame's ratios are those of the energies in
the topmost octave of the band: what is brightest below goes on above.
"""

import math

import torch
from torch import Tensor

from pyro_sep.audio import resample

FRAME = 0.064  # seconds, in whose neighbourhood the power of two is that a transform takes
BAND = 0.8  # of the lower Nyquist frequency: above, resampling lets aliases through


def lift(shares: Tensor, mixture: Tensor, rate: int, recording: Tensor, to_rate: int) -> Tensor:
    """Stems of every channel of a recording, by the filter above.

    They add up to the recording but for what the mixture has beside its shares, which is
    ``recording - stems.sum(0)``.

    Args:
        shares: what each source adds to the mixture, ``(source, time)``.
        mixture: ``(time,)``; the recording, mixed down.
        rate: of shares and mixture, in Hz.
        recording: ``(channel, recording time)``.
        to_rate: of the recording, in Hz.

    Returns:
        ``(source, channel, recording time)``.
    """
    time = recording.shape[-1]
    size = 2 ** round(math.log2(FRAME * to_rate))
    window = torch.hann_window(size, dtype=recording.dtype, device=recording.device)

    def transform(audio: Tensor) -> Tensor:
        # Padded by silence: a recording may be shorter than a window.
        return torch.stft(
            audio, size, size // 4, window=window, pad_mode="constant", return_complex=True
        )

    parts = [*shares, mixture - shares.sum(0)]
    powers = [transform(resample(part, rate, to_rate, time)).abs().square() for part in parts]
    if rate != to_rate:
        known = int(BAND * min(rate, to_rate) / to_rate * (size // 2))
        for power in powers:
            power[known:] = power[known // 2 : known].mean(0)
    total = torch.stack(powers).sum(0).clamp(min=torch.finfo(recording.dtype).tiny)
    spectra = transform(recording)
    return torch.stack(
        [
            torch.istft(power / total * spectra, size, size // 4, window=window, length=time)
            for power in powers[:-1]
        ]
    )
