"""Joint density of noisy sources and their mixture, for many chains, with its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_sep.inference.langevin import Evaluation
from pyro_sep.mixing import Mixing, frame_time
from pyro_sep.priors import Prior

CHUNK = 1 << 15  # audio samples evaluated at once: what fits the caches, and bounds the memory


@dataclass(frozen=True)
class AnnealedPosterior:
    r"""Log posterior at every noise level sigma, up to the evidence.

    .. math:: \log p_\sigma(x \mid m) = \sum_k \log p_{k,\sigma}(x_k)
              + \log \mathcal{N}\bigl(m; \textstyle\sum_k a_k x_k,
              (\sigma^2 \sum_k a_k^2 + \gamma^2) I\bigr) + \text{const}

    The same density as :func:`pyro_sep.mixing.model`, vectorised. A lane is one chain on one
    mixture.

    Attributes:
        mixture: ``(lane, time)``.
        priors: one per source.
        mixing: gains and noise.
    """

    mixture: Tensor
    priors: Sequence[Prior]
    mixing: Mixing

    @property
    def frame(self) -> int:
        """Audio samples of a source: those of the mixture, or a few more that are not heard."""
        return frame_time(self.priors, self.mixture.shape[-1])

    def take(self, lanes: Tensor) -> "AnnealedPosterior":
        """The posterior of some lanes."""
        return AnnealedPosterior(self.mixture[lanes], self.priors, self.mixing)

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """Log density ``(lane,)``, its gradient, and the log priors ``(lane, source)`` as parts."""
        log_priors, gradients = [], []
        for k, prior in enumerate(self.priors):
            law = prior.frame(sources.shape[-1]).condition(sigma)
            pairs = [_value_and_gradient(law, part) for part in _chunks(sources[:, k])]
            log_priors.append(torch.cat([value for value, _ in pairs]))
            gradients.append(torch.cat([gradient for _, gradient in pairs]))
        parts = torch.stack(log_priors, 1)
        log_likelihood = self.mixing.log_likelihood(self.mixture, sources, sigma)
        pull = self.mixing.score(self.mixture, sources, sigma)
        return Evaluation(parts.sum(1) + log_likelihood, torch.stack(gradients, 1) + pull, parts)

    @torch.no_grad()
    def log_density(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density ``(lane,)`` without its gradient."""
        total = self.mixing.log_likelihood(self.mixture, sources, sigma).double()
        for k, prior in enumerate(self.priors):
            law = prior.frame(sources.shape[-1]).condition(sigma)
            total += torch.cat([law.log_prob(part) for part in _chunks(sources[:, k])])
        return total

    @torch.no_grad()
    def cross_log_prior(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density of the share of source j in the mixture under prior i: ``(lane, i, j)``.

        The share :math:`a_j x_j` is, to source i, the audio :math:`a_j x_j / a_i`.
        """
        weights = self.mixing.weights(sources)
        lanes, count, time = sources.shape
        rows = []
        for gain, prior in zip(weights[:, 0], self.priors, strict=True):
            law = prior.frame(time).condition(sigma)
            shares = (sources * weights / gain).flatten(0, 1)
            values = torch.cat([law.log_prob(part) for part in _chunks(shares)])
            rows.append(values.reshape(lanes, count))
        return torch.stack(rows, 1)

    def denoise(self, sources: Tensor, evaluation: Evaluation, sigma: float) -> Tensor:
        r"""Clean sources expected from noisy ones (Tweedie), conditioned on the mixture.

        .. math:: \mathbb{E}[s_k \mid x_k] = x_k + \sigma^2 \nabla \log p_{k,\sigma}(x_k)

        Robbins 1956; the mixture enters as in :meth:`pyro_sep.mixing.Mixing.condition_on`.

        Args:
            sources: noisy sources ``(lane, source, time)``.
            evaluation: of this posterior, at the sources.
            sigma: their noise level.
        """
        score = evaluation.gradient - self.mixing.score(self.mixture, sources, sigma)
        return self.mixing.condition_on(self.mixture, sources + sigma**2 * score, sigma)


def _value_and_gradient(law: Prior, value: Tensor) -> tuple[Tensor, Tensor]:
    value = value.detach().requires_grad_()
    log_prob = law.log_prob(value)
    (gradient,) = torch.autograd.grad(log_prob.sum(), value)
    return log_prob.detach(), gradient


def _chunks(frames: Tensor) -> tuple[Tensor, ...]:
    """Parts of ``(lane, time)`` of at most CHUNK audio samples, or of one lane."""
    return frames.split(max(1, CHUNK // frames.shape[-1]))
