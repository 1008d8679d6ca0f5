r"""Priors over the audio of one source, as Pyro distributions.

A prior is conditioned on a noise level: ``prior.condition(sigma)`` is the law of
:math:`x = s + \sigma n`, with s a clean source and n standard normal noise. Its ``log_prob`` is a
log density over the whole event, summed over time, in nats.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_sep.models.wavenet import WaveNet


class Prior(Protocol):
    """What separation asks of a prior; every family of priors has it."""

    name: str
    sample_rate: int

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the prior knows."""

    @property
    def level(self) -> float:
        """RMS of the clean source, full scale 1."""

    def condition(self, sigma: float | Tensor) -> Self:
        """The law of the source plus white noise of std sigma."""

    def frame(self, time: int) -> Self:
        """The law of a frame of ``time`` audio samples."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time."""


Priors = Mapping[str, Prior]


class WaveNetPrior(TorchDistribution):
    r"""Smoothed autoregressive prior, a :class:`~pyro_sep.models.wavenet.WaveNet`.

    .. math:: \log p_\sigma(x) = \sum_t \log \sum_c \pi_c(x_{<t}, \sigma) \,
              \mathcal{N}(x_t; \mu_c(x_{<t}, \sigma), s_c^2(x_{<t}, \sigma) + \sigma^2)

    ``event_shape`` is ``(time,)``, ``batch_shape`` that of ``sigma``. The network's weights take no
    gradient; ``log_prob`` has one with respect to its value. Jayaram & Thickstun 2021 (arXiv
    2105.08164).

    Args:
        network: a trained network.
        name: what the source is called.
        sample_rate: of the audio, in Hz.
        time: audio samples per event.
        sigma: noise level, scalar or a batch; the lowest known one where None.

    Raises:
        ValueError: sigma outside the range that the network was trained for, or no time.
    """

    arg_constraints = {"sigma": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        network: WaveNet,
        *,
        name: str,
        sample_rate: int,
        time: int = 16_000,
        sigma: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.name = name
        self.sample_rate = sample_rate
        if time < 1:
            raise ValueError(f"time: got {time}, expected at least one audio sample")
        reference = next(network.parameters())
        level = self.sigmas[0] if sigma is None else sigma
        self.sigma = torch.as_tensor(level, dtype=reference.dtype, device=reference.device)
        low, high = self.sigmas
        if not bool(((self.sigma > low * 0.9999) & (self.sigma < high * 1.0001)).all()):
            raise ValueError(
                f"sigma: got {self.sigma.tolist()}, expected {low:g} to {high:g}, "
                f"the noise levels that the prior of {name!r} was trained for"
            )
        super().__init__(self.sigma.shape, Size((time,)), validate_args=validate_args)

    @property
    def sigmas(self) -> tuple[float, float]:
        """Lowest and highest noise level that the network was trained for."""
        return self.network.config.sigma_min, self.network.config.sigma_max

    @property
    def level(self) -> float:
        """RMS of the clean source, full scale 1."""
        return self.network.config.sigma_data

    def condition(self, sigma: float | Tensor) -> "WaveNetPrior":
        """The law of the source plus white noise of std ``sigma``."""
        return self._with(sigma=sigma)

    def frame(self, time: int) -> "WaveNetPrior":
        """The law of a frame of ``time`` audio samples."""
        return self._with(time=time)

    def to(self, *args: Any, **kwargs: Any) -> "WaveNetPrior":
        """Move the network in place, like ``torch.nn.Module.to``; the prior on what it became."""
        self.network.to(*args, **kwargs)
        return self._with()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "WaveNetPrior":
        """The same law over a larger batch."""
        return self._with(sigma=self.sigma.expand(Size(batch_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noisy audio, one audio sample after another, ``sample_shape + batch + (time,)``."""
        shape = self._extended_shape(Size(sample_shape))
        sigma = self.sigma.expand(shape[:-1]).reshape(-1)
        return self.network.sample(shape[-1], sigma).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, summed over time: ``value.shape[:-1]`` broadcast with the batch."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        flat = value.expand(*shape, value.shape[-1]).reshape(-1, value.shape[-1])
        return self.network.log_prob(flat, self.sigma.expand(shape).reshape(-1)).reshape(shape)

    def _with(self, **changes: Any) -> "WaveNetPrior":
        kept: dict[str, Any] = {
            "time": self.event_shape[0],
            "sigma": self.sigma,
            "validate_args": self._validate_args,
        }
        return WaveNetPrior(
            self.network, name=self.name, sample_rate=self.sample_rate, **(kept | changes)
        )
