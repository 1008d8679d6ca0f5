r"""How sources make a mixture: the gains, the likelihood, and the Pyro model.

.. math:: p(m \mid s) = \mathcal{N}\bigl(m; \textstyle\sum_k a_k s_k, \gamma^2 I\bigr)

At noise level sigma the sources are :math:`x_k = s_k + \sigma n_k`, whose mixture carries the
noise of all of them, so the annealed likelihood has variance :math:`\sigma^2 \sum_k a_k^2 +
\gamma^2`.

Sources may be longer than their mixture, where a prior takes only frames of some multiple. The
likelihood does not depend on the audio samples beyond the mixture's end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self, cast

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.poutine.runtime import _PYRO_STACK
from torch import Size, Tensor

from pyro_sep.checks.arguments import numbers, positive, shown, whole
from pyro_sep.priors.base import Prior, Priors, check_priors, stated

#: Default std of the mixing noise, full scale 1: that of 10-bit audio, far below what is audible.
NOISE_SCALE = 1e-3
SMALLEST, LARGEST = 1e-7, 1e6  # of gains and noise: their squares are float32's
BATCH = "mixture batch "  # of plates
SITES = ("mixture", "gains", "noise_scale")  # of the model, besides the sources


def level_gain(mixture: Tensor, priors: Priors) -> Tensor:
    r"""One gain for all sources, with which the priors expect a mixture as loud as this one.

    .. math:: g^2 = \frac{1}{T} \sum_t m_t^2 \Big/ \sum_k r_k^2

    with r_k the RMS of source k: the gain in m = g sum_k s_k by which the powers of independent
    sources add up. A prior has learned how loud its source was in its recordings, which says little
    of how loud another record is.

    Args:
        mixture: ``(..., time)``.
        priors: of the sources, by name.

    Returns:
        ``(...)``.

    >>> from pyro_sep.priors.io import load_priors
    >>> level_gain(torch.tensor([[0.5, -0.5]]), {"sine": load_priors("toy/oracle")["sine"]}).shape
    torch.Size([1])
    """
    expected = sum(prior.rms**2 for prior in priors.values())
    return (mixture.square().mean(-1) / expected).sqrt()


class LinearMixing(ABC):
    """Gains and noise of a mixture: the base of :class:`Mixing`, where both are known.

    In :class:`~pyro_sep.mixing.LatentMixing` they are unknown, and each chain has its own.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """Sources that are mixed."""

    @property
    @abstractmethod
    def gain_energy(self) -> float | Tensor:
        """Sum of the squared gains, a number or a column ``(*batch, 1)``."""

    @abstractmethod
    def weights(self, like: Tensor) -> Tensor:
        """Gains as a column ``(*batch, source, 1)`` of a tensor's dtype and device."""

    @abstractmethod
    def scale_at(self, sigma: float) -> float | Tensor:
        """Std of the mixture given sources at noise level ``sigma``, as :attr:`gain_energy`."""

    @abstractmethod
    def noise(self, like: Tensor) -> Tensor:
        """The noise's std, ``(*batch,)``, of a tensor's dtype and device."""

    def select(self, indices: Tensor) -> Self:
        """The mixing restricted to a subset of the batch."""
        return self

    def update(self, indices: Tensor, other: Self) -> Self:
        """The mixing with the values of another one in a subset of the batch."""
        return self

    @property
    def has_latents(self) -> bool:
        """Whether gains or noise are unknown."""
        return bool(self.latents())

    def latents(self) -> dict[str, Tensor]:
        """Unknown gains and noise by name, ``(*batch, ...)``."""
        return {}

    def with_latents(self, latents: Mapping[str, Tensor]) -> Self:
        """The mixing with these values of :meth:`latents`."""
        return self

    def log_prior(self) -> float | Tensor:
        """Log prior density ``(*batch,)`` of unknown gains and noise, in nats."""
        return 0.0

    def fixed_weights(self, like: Tensor) -> Tensor:
        """Gains ``(source, 1)`` that stay when sources are swapped; 1 where they move too."""
        return self.weights(like)

    def reassign(self, assignment: Tensor) -> Self:
        """The mixing after sources are swapped by an assignment ``(batch, source)``."""
        return self

    def mix(self, sources: Tensor) -> Tensor:
        """Noise-free mixture ``(..., time)`` of sources ``(..., source, time)``."""
        return (self.weights(sources) * sources).sum(-2)

    def log_likelihood(self, mixture: Tensor, sources: Tensor, sigma: float) -> Tensor:
        """Log p(mixture | sources at noise level sigma), summed over time, in nats."""
        heard = self.mix(sources)[..., : mixture.shape[-1]]
        return dist.Normal(heard, self.scale_at(sigma)).log_prob(mixture).sum(-1)

    def score(self, mixture: Tensor, sources: Tensor, sigma: float) -> Tensor:
        r"""Gradient of :meth:`log_likelihood` by the sources, of their shape.

        .. math:: a_k (m - \textstyle\sum_j a_j x_j) / v_\sigma

        with v the square of :meth:`scale_at`.
        """
        residual = self.residual(mixture, sources) / self.scale_at(sigma) ** 2
        return self.weights(sources) * residual[..., None, :]

    def residual(self, mixture: Tensor, sources: Tensor) -> Tensor:
        """The mixture less that of the sources ``(..., time)``, 0 beyond the mixture's end."""
        heard = mixture.shape[-1]
        mixed = self.mix(sources)
        return F.pad(mixture - mixed[..., :heard], (0, mixed.shape[-1] - heard))

    def condition_on(self, mixture: Tensor, sources: Tensor, scale: float) -> Tensor:
        r"""Mean of sources known up to white errors of std ``scale``, given their mixture.

        .. math:: s_k + \frac{\tau^2 a_k}{\tau^2 \sum_j a_j^2 + \gamma^2}
                  \bigl(m - \textstyle\sum_j a_j s_j\bigr), \qquad \tau = \mathrm{scale}

        Gaussian conditioning; as gamma goes to 0 it is the mixture-consistent projection of
        Wisdom et al. 2019 (arXiv 1811.08521).
        """
        variance = scale**2 * self.gain_energy + self.noise(sources)[..., None] ** 2
        residual = scale**2 / variance * self.residual(mixture, sources)
        return sources + self.weights(sources) * residual[..., None, :]


@dataclass(frozen=True)
class Mixing(LinearMixing):
    """Known gains and noise of a mixture, the same in all chains.

    Attributes:
        gains: a_k, one per source; any list, array or tensor of numbers becomes a tuple.
        noise_scale: gamma, std of the mixture's own noise.

    Raises:
        ValueError: gains or noise that are no finite numbers, or 0.

    >>> Mixing([1, 0.5]).mix(torch.ones(2, 3))
    tensor([1.5000, 1.5000, 1.5000])
    """

    gains: tuple[float, ...]
    noise_scale: float = NOISE_SCALE

    def __post_init__(self) -> None:
        expected = f"a number of {SMALLEST:g} to {LARGEST:g}, or its negative, per source"
        gains = numbers("gains", self.gains, expected)
        if not gains or not all(SMALLEST <= abs(gain) <= LARGEST for gain in gains):
            raise ValueError(f"gains: got {gains}, expected {expected}")
        object.__setattr__(self, "gains", gains)  # whatever type they were given in
        scale = positive("noise_scale", self.noise_scale)
        if not SMALLEST <= scale <= LARGEST:
            raise ValueError(
                f"noise_scale: got {scale:g}, expected a number of {SMALLEST:g} to {LARGEST:g}"
            )
        object.__setattr__(self, "noise_scale", scale)

    @classmethod
    def mean(cls, count: int, noise_scale: float = NOISE_SCALE) -> "Mixing":
        """The mixing whose mixture is the mean of ``count`` sources."""
        count = whole("count", count, "at least one source", 1)
        return cls((1 / count,) * count, noise_scale)

    @property
    def count(self) -> int:
        """Sources that are mixed."""
        return len(self.gains)

    @property
    def gain_energy(self) -> float:
        """Sum of the squared gains."""
        return sum(gain**2 for gain in self.gains)

    def weights(self, like: Tensor) -> Tensor:
        """Gains as a column ``(source, 1)`` of a tensor's dtype and device."""
        return torch.tensor(self.gains, dtype=like.dtype, device=like.device)[:, None]

    def scale_at(self, sigma: float) -> float:
        """Std of the mixture given sources at noise level ``sigma``."""
        return (sigma**2 * self.gain_energy + self.noise_scale**2) ** 0.5

    def noise(self, like: Tensor) -> Tensor:
        """The noise's std, ``()``, of a tensor's dtype and device."""
        return torch.tensor(self.noise_scale, dtype=like.dtype, device=like.device)


def model(
    mixture: Tensor | None, priors: Priors, mixing: LinearMixing, sigma: float | None = None
) -> Tensor:
    """Pyro model of a mixture: one site per source, named after it, and ``mixture``.

    Gains and noise may be latent too: where ``mixing`` is
    :func:`pyro_sep.mixing.latent.draw_mixing`, which has sites of its own.

    It runs inside of ``pyro.plate``, under ``Predictive(parallel=True)`` and with
    ``vectorize_particles``. Each mixture of a batch has its own sources. A batch axis without a
    plate gets one, whose name is :data:`BATCH` followed by the number of the axis.

    Args:
        mixture: observed audio ``(*batch, time)``; None where it is to be drawn, as long as the
            frame of the priors.
        priors: prior of each source, in the order of the gains.
        mixing: gains and noise, with or without a batch.
        sigma: noise level of the sources; each prior's own where None (its lowest by default), with
            the likelihood's plain ``noise_scale``.

    Returns:
        The sources ``(*batch, source, frame)``, as long as their mixture or a little longer.

    Raises:
        ValueError: no priors, or one with the name of another site; another number of gains; a
            mixture that is no audio.

    >>> from pyro_sep.priors.io import load_priors
    >>> toy = load_priors("toy/oracle")
    >>> priors = {name: toy[name].frame(256) for name in ("sine", "saw")}
    >>> model(None, priors, Mixing.mean(2), sigma=0.1).shape
    torch.Size([2, 256])
    """
    check_priors(priors)
    check_count(priors, mixing)
    if taken := [name for name in priors if name in SITES]:
        raise ValueError(
            f"priors: got a source of the name {taken[0]!r}, which another site of the model has, "
            "expected another name; rename it"
        )
    floats = isinstance(mixture, Tensor) and mixture.ndim and mixture.is_floating_point()
    if mixture is not None and not floats:
        raise ValueError(
            f"mixture: got {shown(mixture)}, expected a tensor (..., time) of floats, or None to "
            "draw it"
        )
    time = _drawn_time(priors) if mixture is None else mixture.shape[-1]
    frame = frame_time(priors.values(), time)
    laws = {name: prior.frame(frame) for name, prior in priors.items()}
    if sigma is not None:
        laws = {name: law.condition(sigma) for name, law in laws.items()}
    with _own_plates(Size() if mixture is None else mixture.shape[:-1]):
        drawn = [pyro.sample(name, law) for name, law in laws.items()]  # type: ignore[arg-type]
        sources = torch.stack(torch.broadcast_tensors(*drawn), -2)
        heard = mixing.mix(sources)[..., :time]
        scale = mixing.scale_at(sigma or 0.0)
        scale = scale.to(heard.device) if isinstance(scale, Tensor) else scale
        pyro.sample("mixture", dist.Normal(heard, scale).to_event(1), obs=mixture)
    return sources


def _drawn_time(priors: Priors) -> int:
    """Audio samples of a mixture that is drawn: those of the shortest prior."""
    return min(cast(TorchDistribution, prior).event_shape[-1] for prior in priors.values())


@contextmanager
def _own_plates(batch: Size) -> Iterator[None]:
    """Plates for the axes of a batch that are in no plate yet."""
    taken = {getattr(messenger, "dim", None) for messenger in _PYRO_STACK}
    with ExitStack() as plates:
        for dim in range(-len(batch), 0):
            if batch[dim] > 1 and dim not in taken:
                plates.enter_context(pyro.plate(f"{BATCH}{dim}", batch[dim], dim=dim))
        yield


def frame_time(priors: Iterable[Prior], time: int) -> int:
    """Audio samples of the sources of a mixture of ``time``: a frame that all priors take."""
    multiple = math.lcm(*(prior.multiple for prior in priors))
    return -(-time // multiple) * multiple


def default_gains(priors: Priors) -> tuple[float, ...]:
    """Gains where a user gives none, by the ``mixing`` that the priors state.

    They are 1 where mixtures are sums of their sources, and 1/N where they are means of N.

    Raises:
        ValueError: priors of sets that differ in it.

    >>> from pyro_sep.priors.io import load_priors
    >>> default_gains(load_priors("toy/oracle"))
    (0.25, 0.25, 0.25, 0.25)
    """
    is_mean = stated(priors, "mixing", "give gains") == "mean"
    return (1 / len(priors) if is_mean else 1.0,) * len(priors)


def check_count(priors: Priors, mixing: LinearMixing) -> None:
    """Raise ValueError unless there is one gain per prior."""
    if not isinstance(mixing, LinearMixing):
        raise ValueError(f"mixing: got {shown(mixing)}, expected Mixing(gains, noise_scale)")
    if len(priors) != mixing.count:
        raise ValueError(
            f"gains: got {mixing.count} for {len(priors)} priors ({', '.join(priors)}); "
            "expected one per prior, in their order"
        )
