r"""The estimate of a trace: the posterior mean of its sources.

Of the most probable mode it is the plain mean of draws. Of all chains, ``estimate="mean"``, it is
estimated from few of them: a second of music holds many decisions, of which each chain takes some
wrong, and the error of the mean of C chains is what they disagree about. So that mean is shrunk.
With M_ck the short-time Fourier transform of the mean contribution of source k over the draws of
chain c, in every cell

.. math::
    \bar M_k = \frac1C \sum_c M_{ck}, \qquad
    V_k = \frac{1}{C (C - 1)} \sum_c |M_{ck} - \bar M_k|^2, \qquad
    w_k = \Bigl[ 1 - \frac{2 V_k}{|\bar M_k|^2} \Bigr]_+

V is the variance of the mean. By w the mean is shrunk, in the manner of James & Stein, towards what
a Wiener filter makes of the levels, which chains agree on more than on phases:

.. math::
    \hat S_k = w_k \bar M_k + (1 - w_k) \, r_k \sum_j \bar M_j, \qquad
    r_k = \frac{A_k}{\sum_j A_j}, \qquad A_k^2 = \frac1C \sum_c |M_{ck}|^2

What these lack of the sum of the means is given back to them by the same shares r. So the sum of
the contributions stays what it was, and so does what all chains agree on.

James & Stein 1961 (Berkeley Symp. Math. Statist. Prob. 4.1, "Estimation with quadratic loss");
Efron & Morris 1973 (JASA 68, "Stein's estimation rule and its competitors") for the positive part;
Liutkus & Badeau 2015 (ICASSP, "Generalized Wiener filtering with fractional power spectrograms")
for the filter, at the exponent 1. This exponent, the factor 2 and the length of the transform were
chosen on training excerpts of music.

Two channels are one frame, left and right interleaved: its low frequencies are their mean, its high
ones their difference. To shrink these by themselves was a little worse on guitars.
"""

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from pyro_sep.trace.channels import deinterleave, interleave
from pyro_sep.trace.dataset import TINY, in_channels
from pyro_sep.trace.draws import by_chain, estimate_draws, select_draws

FRAME = 0.128  # seconds of a transform, which takes the power of two next to it: 2,048 at 16 kHz
SHRINKAGE = 2.0  # times the variance


def estimate_sources(tree: xr.DataTree) -> xr.DataArray:
    """Posterior mean of the sources ``(source, time)``, by the equations above.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`; what is not finite, in a chain that
            diverged, is silence. Of two channels it is their mean.

    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * np.sin(np.arange(256) / 8)
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> estimate_sources(tree).dims
    ('source', 'time')
    """
    return estimate_channels(tree).mean("channel")


def estimate_channels(tree: xr.DataTree) -> xr.DataArray:
    """As :func:`estimate_sources`, of both channels: ``(source, channel, time)``.

    A trace of mono audio has one.
    """
    posterior, known = tree["posterior"].to_dataset(), tree["constant_data"].to_dataset()
    own = by_chain(estimate_draws(tree))
    parts = []
    for k in range(posterior.sizes["source"]):  # the draws of one source are read at a time
        heard = in_channels(posterior.isel(source=k), "sources")
        mean = [select_draws(heard, draws).mean("draw").values for draws in own]
        parts.append(np.nan_to_num(mean, posinf=0, neginf=0))
    means = np.stack(parts, 1)  # (chain, source, channel, time)
    estimate, channels = means[0], means.shape[-2]
    if len(means) > 1:
        gains, rate = known["gains"].values[:, None], int(known["sample_rate"])
        frames = interleave(gains[..., None] * means)
        estimate = deinterleave(shrunk_mean(frames, rate * channels) / gains, channels)
    return xr.DataArray(estimate, {"source": posterior["source"]}, ("source", "channel", "time"))


def shrunk_mean(contributions: NDArray[np.floating], rate: int) -> NDArray[np.floating]:
    """Posterior mean of contributions, by the equations above.

    Args:
        contributions: means over the draws of several chains, ``(chain, source, time)``.
        rate: in Hz.

    Returns:
        ``(source, time)``; their sum is that of the means over the chains.

    >>> same = np.ones((2, 1, 4_000))
    >>> bool(np.allclose(shrunk_mean(same, 16_000), 1))
    True
    >>> opposite = np.stack([np.ones((2, 4_000)), -np.ones((2, 4_000))])
    >>> bool(np.allclose(shrunk_mean(opposite, 16_000), 0))
    True
    """
    count, _, time = contributions.shape
    size = 2 ** max(2, round(math.log2(FRAME * rate)))
    transform = ShortTimeFFT(hann(size, sym=False), size // 4, rate)
    # A transform needs some audio: what is shorter goes on in silence.
    audio = np.pad(contributions, ((0, 0), (0, 0), (0, max(0, size - time))))
    cells = np.stack([transform.stft(chain).astype(np.complex64) for chain in audio])
    centre, power = cells.mean(0), np.square(np.abs(cells)).mean(0)
    agreed = np.square(np.abs(centre))
    variance = (power - agreed) / (count - 1)  # of the mean, from the chains' spread about it
    weight = (agreed - SHRINKAGE * variance).clip(0, agreed) / np.maximum(agreed, TINY)
    level, total = np.sqrt(power), centre.sum(0)
    share = level / np.maximum(level.sum(0), TINY)
    shrunk = weight * centre + (1 - weight) * share * total
    shrunk += share * (total - shrunk.sum(0))
    found: NDArray[np.floating] = transform.istft(shrunk, k1=audio.shape[-1])
    return found[:, :time].astype(contributions.dtype)
