"""Sounds of a trace in the band of its recording, as stems are written.

Priors may hear less than people do. What the recording has above their band is divided among the
estimates as in :mod:`pyro_sep.audio.wiener`, and every other version of a source, such as a draw,
has the part of its estimate: above the band the posterior says nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_sep.trace.dataset import treble_of

if TYPE_CHECKING:  # a trace is shown without torch
    import torch

RATE = 16_000  # Hz, of what is heard, at most

Sound = NDArray[np.floating]


@dataclass(frozen=True)
class Listener:
    """Brings sounds of a trace to a higher rate.

    Attributes:
        own: rate of the trace, in Hz.
        rate: in Hz, of what is heard.
        mixture: ``(time,)``, at that rate.
        above: what each source has above the band of the priors ``(source, time)``, at that rate.
    """

    own: int
    rate: int
    mixture: Sound
    above: Sound

    def hear(self, sound: Sound, source: int | None = None, start: int = 0) -> Sound:
        """A sound at the rate of the listener.

        Args:
            sound: ``(time,)`` at the trace's own rate.
            source: whose part above the band is added; none where None.
            start: audio sample of the trace with which the sound begins.

        >>> listener = Listener(4_000, 4_000, np.zeros(4), np.zeros((1, 4)))
        >>> listener.hear(np.ones(2), 0)
        array([1., 1.])
        """
        if self.rate == self.own:
            return sound
        import torch

        from pyro_sep.audio.resampling import resample

        first = round(start * self.rate / self.own)
        time = min(round(len(sound) * self.rate / self.own), len(self.mixture) - first)
        heard: Sound = resample(torch.from_numpy(sound), self.own, self.rate, time).numpy()
        return heard if source is None else heard + self.above[source, first : first + time]


def listener(
    tree: xr.DataTree, estimates: Sound, recording: "tuple[torch.Tensor, int] | None" = None
) -> Listener:
    """The listener of a trace.

    Args:
        tree: of :func:`pyro_sep.separate` or :func:`pyro_sep.trace.load_trace`.
        estimates: of its sources, ``(source, time)``.
        recording: what was mixed down and resampled to the mixture of the trace; sounds are heard
            as they are in the trace where None.
    """
    own = int(tree["constant_data"].to_dataset()["sample_rate"])
    mixture = tree["observed_data"].to_dataset()["mixture"].values
    if recording is None or min(RATE, recording[1]) <= own:
        return Listener(own, own, mixture, np.zeros((0, 0)))
    import torch

    from pyro_sep.audio.resampling import resample
    from pyro_sep.audio.wiener import wiener_upmix

    samples, given = recording
    rate = min(RATE, given)
    whole = resample(samples.mean(0), given, rate)
    gains = tree["constant_data"].to_dataset()["gains"].values  # the means of inferred ones
    weights = torch.from_numpy(gains)[:, None].to(whole)
    contributions = weights * torch.from_numpy(estimates)
    heard, treble = torch.from_numpy(mixture), treble_of(tree)
    stems = wiener_upmix(contributions, heard, own, whole[None], rate, treble)[:, 0]
    above = (stems - resample(contributions, own, rate, len(whole))) / weights
    return Listener(own, rate, whole.numpy(), above.nan_to_num(0, 0, 0).numpy())
