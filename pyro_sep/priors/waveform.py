"""The exact prior of a toy waveform, an oracle for the sampler."""

from typing import Self

from pyro_sep.data.toy import SAMPLE_RATE
from pyro_sep.models.arithmetic import plain_arithmetic
from pyro_sep.models.waveform import Waveform, WaveformConfig
from pyro_sep.priors.networks import SamplingPrior


class WaveformPrior(SamplingPrior):
    r"""The exact prior of a toy waveform, a :class:`~pyro_sep.models.waveform.Waveform`.

    .. math:: p_\sigma(x) = \int \mathcal{N}(x; A \, w_{f, \phi}, \sigma^2 I) \;
              p(f) p(A) p(\phi) \, df \, dA \, d\phi

    No learned prior can be better, so errors of a separation under it are those of the sampler.
    Arguments, shapes and errors are those of :class:`NetworkPrior`.

    >>> prior = WaveformPrior.of("saw").frame(256).condition(0.1)
    >>> prior.log_prob(prior.sample()).shape
    torch.Size([])
    """

    network: Waveform
    is_exact = True

    @classmethod
    def of(cls, name: str) -> Self:
        """The prior of a waveform of :data:`pyro_sep.data.toy.WAVEFORMS`."""
        with plain_arithmetic():
            network = Waveform(WaveformConfig(name))
        return cls(network, name=name, sample_rate=SAMPLE_RATE, mixing="mean", estimate="mode")

    def in_segments(self, seconds: float) -> Self:
        """Nothing: the density of a waveform is no sum over time.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"segment: got {seconds:g} s for the true prior of {self.name!r}, expected a trained "
            "one; the true one evaluates all of a frame at once, take a shorter excerpt"
        )
