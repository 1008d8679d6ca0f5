r"""A prior of a source that may be silent, by which presence is inferred.

With probability q, the absence, the clean source is exact silence, otherwise it is drawn from its
prior: the spike and the slab of Mitchell & Beauchamp (1988, Bayesian variable selection in linear
regression). At noise level sigma both are densities,

.. math:: p_\sigma(x) = (1 - q) \, p_{k,\sigma}(x) + q \, \mathcal{N}(x; 0, \sigma^2 I)

so every sampler takes it like any other prior, and the posterior probability that source k is
present is the mean, over posterior draws of the noisy x, of the slab's share in this sum.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Size, Tensor

from pyro_sep.checks.arguments import number
from pyro_sep.priors.base import UNSTATED, Prior, gain_error, misfit

ABSENCE = 0.5  # presence and silence are equally probable


class SpikeAndSlab(TorchDistribution):
    """The prior of a source that may be silent, plus white noise.

    ``event_shape`` is the wrapped prior's, ``batch_shape`` that of ``sigma``.

    Args:
        prior: of the source where it is present, a Pyro distribution.
        absence: q, the probability that it is silent.
        sigma: noise level, scalar or a batch; the lowest that the prior knows where None.

    Raises:
        ValueError: an absence that is not between 0 and 1; a noise level that the prior refuses.

    >>> from pyro_sep.priors.waveform import WaveformPrior
    >>> prior = SpikeAndSlab(WaveformPrior.of("sine").frame(256), sigma=0.1)
    >>> tone = (torch.arange(256) / 8).sin()
    >>> prior.presence(torch.stack([0.9 * tone, 0 * tone])).round()
    tensor([1., 0.])
    """

    arg_constraints = {"sigma": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False
    may_be_silent = True

    def __init__(
        self, prior: Prior, absence: float = ABSENCE, sigma: float | Tensor | None = None
    ) -> None:
        expected = (
            "above 0, below 1; where it is known, take the prior itself, or leave the source out"
        )
        self.absence = number("absence", absence, expected, 0, 1)
        level = prior.sigmas[0] if sigma is None else sigma
        self.prior = prior.condition(level)
        self.sigma = torch.as_tensor(getattr(self.prior, "sigma", level))
        self.name, self.sample_rate = prior.name, prior.sample_rate
        self.gain_error, self.channels = gain_error(prior), getattr(prior, "channels", 1)
        for what, default in UNSTATED.items():
            setattr(self, what, getattr(prior, what, default))
        event_shape = cast(TorchDistribution, prior).event_shape
        super().__init__(self.sigma.shape, event_shape, validate_args=False)

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the prior knows."""
        return self.prior.sigmas

    @property
    def rms(self) -> float:
        """RMS of the clean source where it is present, full scale 1."""
        return self.prior.rms

    @property
    def multiple(self) -> int:
        """A frame's audio samples are a multiple of this."""
        return self.prior.multiple

    def condition(self, sigma: float | Tensor) -> "SpikeAndSlab":
        """The law at noise level ``sigma``."""
        return SpikeAndSlab(self.prior, self.absence, sigma)

    def frame(self, time: int) -> "SpikeAndSlab":
        """The law of a frame of ``time`` audio samples."""
        return SpikeAndSlab(self.prior.frame(time), self.absence, self.sigma)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SpikeAndSlab":
        """The same law over a larger batch."""
        return self.condition(self.sigma.expand(Size(batch_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noisy audio ``sample_shape + batch + (time,)``, each frame present or silent."""
        present = cast(TorchDistribution, self.prior).sample(Size(sample_shape))
        silent = self.sigma.to(present)[..., None] * torch.randn_like(present)
        absent = torch.rand_like(present[..., :1]) < self.absence
        return torch.where(absent, silent, present)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time: ``value.shape[:-1]`` broadcast with the batch."""
        return torch.logaddexp(self.log_joint(value, True), self.log_joint(value, False))

    def log_odds(self, value: Tensor) -> Tensor:
        r"""Log posterior odds that the source of noisy audio is present, of ``log_prob``'s shape.

        .. math:: \log \frac{(1 - q) \, p_{k,\sigma}(x)}{q \, \mathcal{N}(x; 0, \sigma^2 I)}
        """
        return self.log_joint(value, True) - self.log_joint(value, False)

    def presence(self, value: Tensor) -> Tensor:
        """Posterior probability that the source of noisy audio is present."""
        return self.log_odds(value).sigmoid()

    def misfit(self, value: Tensor) -> Tensor:
        """How much noisy audio surprises the likelier of source and silence, ``log_prob``'s shape.

        See :meth:`pyro_sep.priors.NetworkPrior.misfit`; of silence, the mean square of what is
        standard normal then.
        """
        silence = (value / self.sigma.to(value)[..., None]).square().mean(-1)
        return torch.where(self.log_odds(value) > 0, misfit(self.prior, value), silence)

    def log_joint(self, value: Tensor, present: bool) -> Tensor:
        """Log density of noisy audio and that its source is present, or silent."""
        if present:
            return math.log1p(-self.absence) + self.prior.log_prob(value)
        noise = Normal(0.0, self.sigma.to(value)[..., None], validate_args=False)
        return cast(Tensor, math.log(self.absence) + noise.log_prob(value).sum(-1))
