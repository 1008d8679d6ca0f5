"""Joint density of noisy sources and their mixture, for many chains, with its gradient."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.steps.permutation import reassign
from pyro_sep.mixing.known import LinearMixing, frame_time
from pyro_sep.models.threads import in_threads
from pyro_sep.priors.base import Prior
from pyro_sep.priors.spike_slab import SpikeAndSlab

CHUNK = 1 << 15  # audio samples evaluated at once: what fits the caches, and bounds the memory
NUDGE = 0.1  # of sigma: priors are linear so far, and rounding in float32 does not show
TANGENTS = 2  # gradients of a clean draw
P = TypeVar("P", bound=Prior)


@dataclass(frozen=True)
class AnnealedPosterior:
    r"""Log posterior at every noise level sigma, up to the evidence.

    .. math:: \log p_\sigma(x \mid m) = \sum_k \log p_{k,\sigma}(x_k)
              + \log \mathcal{N}\bigl(m; \textstyle\sum_k a_k x_k,
              (\sigma^2 \sum_k a_k^2 + \gamma^2) I\bigr) + \text{const}

    The same density as :func:`pyro_sep.mixing.model`, vectorised. A lane is one chain on one
    mixture.

    Where the mixture is exact, the noisy sources add up to it at every level, :math:`\sum_k a_k x_k
    = m`, and their density is that of the priors on this plane ("Dirac" in Mariani et al. 2023,
    arXiv 2302.02257). Gradients and noise are projected onto it orthogonally, which treats all
    sources alike.

    Gains and noise that are not known belong to the lane, with their own log prior at that level:
    :class:`pyro_sep.mixing.LatentMixing`. So does which sources are present, where it is
    decided; the density is then the joint one with that, and silence costs no prior's evaluation.

    Attributes:
        mixture: ``(lane, time)``.
        priors: one per source.
        mixing: gains and noise.
        exact: whether the sources add up to the mixture.
        present: ``(lane, source)``, of priors that may be silent
            (:class:`pyro_sep.priors.SpikeAndSlab`); not decided where None.
    """

    mixture: Tensor
    priors: Sequence[Prior]
    mixing: LinearMixing
    exact: bool = False
    present: Tensor | None = None

    @property
    def may_be_silent(self) -> bool:
        """Whether the priors leave open which sources are present."""
        return all(isinstance(prior, SpikeAndSlab) for prior in self.priors)

    @property
    def frame(self) -> int:
        """Audio samples of a source: those of the mixture, or a few more that are not heard."""
        return frame_time(self.priors, self.mixture.shape[-1])

    def select(self, lanes: Tensor) -> "AnnealedPosterior":
        """The posterior of some lanes."""
        present = None if self.present is None else self.present[lanes]
        mixing = self.mixing.select(lanes)
        return replace(self, mixture=self.mixture[lanes], mixing=mixing, present=present)

    def update(self, lanes: Tensor, other: "AnnealedPosterior") -> "AnnealedPosterior":
        """With what belongs to the lane from another, in some lanes."""
        present = self.present
        if present is not None and other.present is not None:
            present = present.index_copy(0, lanes, other.present)
        return replace(self, mixing=self.mixing.update(lanes, other.mixing), present=present)

    def section(self, samples: slice) -> "AnnealedPosterior":
        """The posterior of some audio samples of the frame by themselves."""
        return replace(self, mixture=self.mixture[:, samples])

    def latents(self) -> dict[str, Tensor]:
        """What belongs to the lane, by name."""
        present = {} if self.present is None else {"present": self.present}
        return self.mixing.latents() | present

    def with_latents(self, unknown: Mapping[str, Tensor]) -> "AnnealedPosterior":
        """With these values of :meth:`unknown`."""
        return replace(
            self, mixing=self.mixing.with_latents(unknown), present=unknown.get("present")
        )

    def start(self, sigma: float, generator: torch.Generator | None = None) -> Tensor:
        """White noise of std sigma ``(lane, source, frame)``, moved to the mixture if exact."""
        shape = (len(self.mixture), len(self.priors), self.frame)
        position = sigma * self.mixture.new_empty(shape).normal_(generator=generator)
        return self.tie(position)

    def tie(self, sources: Tensor) -> Tensor:
        """Sources ``(lane, source, frame)``, moved to the mixture if exact."""
        return self._explain(sources, self.mixture) if self.exact else sources

    def project(self, direction: Tensor) -> Tensor:
        """What of a direction ``(lane, source, frame)`` a chain may follow: all, unless exact."""
        return self._explain(direction, torch.zeros_like(self.mixture)) if self.exact else direction

    def _explain(self, sources: Tensor, mixture: Tensor) -> Tensor:
        """The nearest sources that add up to the mixture."""
        residual = self.mixing.residual(mixture, sources) / self.mixing.gain_energy
        return sources + self.mixing.weights(sources) * residual[..., None, :]

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """Log density ``(lane,)``, its gradient, and the log priors ``(lane, source)`` as parts."""
        parts, gradient = sources.new_empty(sources.shape[:2]), torch.empty_like(sources)
        jobs = [
            (k, lanes, log_prob)
            for k in range(len(self.priors))
            for lanes, log_prob in self._laws(k, sources[:, k], self._present(k), sigma)
        ]

        def work(job: tuple[int, Tensor, Callable[[Tensor], Tensor]]) -> None:
            k, lanes, log_prob = job
            parts[lanes, k], gradient[lanes, k] = _value_and_gradient(log_prob, sources[lanes, k])

        in_threads(work, jobs)
        if self.exact:
            return Evaluation(parts.sum(1), self.project(gradient), parts)
        pull = self.mixing.score(self.mixture, sources, sigma)
        return Evaluation(parts.sum(1) + self._log_mixing(sources, sigma), gradient + pull, parts)

    def _present(self, k: int) -> Tensor | None:
        """Whether source k is present ``(lane,)``, where that has been decided."""
        return None if self.present is None else self.present[:, k]

    def _laws(
        self, k: int, frames: Tensor, present: Tensor | None, sigma: float
    ) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Log densities under prior k, and the rows of frames ``(row, time)`` that each is for.

        At most CHUNK audio samples at once, or one row.
        """
        law = self.priors[k].frame(frames.shape[-1]).condition(sigma)
        rows = torch.arange(len(frames), device=frames.device)
        groups: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [(rows, law.log_prob)]
        if present is not None:
            joint = cast(SpikeAndSlab, law).log_joint
            groups = [
                (rows[present], partial(joint, present=True)),
                (rows[~present], partial(joint, present=False)),
            ]
        for group, log_prob in groups:
            for part in group.split(max(1, CHUNK // frames.shape[-1])):
                if len(part):
                    yield part, log_prob

    def _log_mixing(self, sources: Tensor, sigma: float) -> Tensor:
        log_likelihood = self.mixing.log_likelihood(self.mixture, sources, sigma)
        return log_likelihood + self.mixing.log_prior()

    def remix(
        self, mixing: LinearMixing, sources: Tensor, evaluation: Evaluation, sigma: float
    ) -> tuple["AnnealedPosterior", Evaluation]:
        """With other gains and noise, and the evaluation of the same sources: no prior is asked."""
        other = replace(self, mixing=mixing)
        before = self.mixing.score(self.mixture, sources, sigma)
        gradient = evaluation.gradient + (mixing.score(self.mixture, sources, sigma) - before)
        log_density = evaluation.parts.sum(1) + other._log_mixing(sources, sigma)
        return other, Evaluation(log_density, gradient, evaluation.parts)

    def reassign(self, sources: Tensor, assignment: Tensor) -> tuple["AnnealedPosterior", Tensor]:
        """After an exchange: known gains stay, all else goes along with what is exchanged."""
        moved = reassign(sources, assignment, self.mixing.fixed_weights(sources))
        present = None if self.present is None else self.present.gather(1, assignment)
        return replace(self, mixing=self.mixing.reassign(assignment), present=present), moved

    @torch.no_grad()
    def decide(
        self, sources: Tensor, sigma: float, generator: torch.Generator | None = None
    ) -> "AnnealedPosterior":
        """With a draw of which sources are present, given noisy ones: a Gibbs update."""
        log_odds = sources.new_empty(sources.shape[:2])
        for k, prior in enumerate(self.priors):
            law = cast(SpikeAndSlab, prior.frame(sources.shape[-1]).condition(sigma))
            for lanes, _ in self._laws(k, sources[:, k], None, sigma):
                log_odds[lanes, k] = law.log_odds(sources[lanes, k])
        uniform = torch.empty_like(log_odds).uniform_(generator=generator)
        return replace(self, present=uniform < log_odds.sigmoid())

    def flip(self, clean: Tensor, flipped: Tensor) -> tuple["AnnealedPosterior", Tensor]:
        """With silent sources woken and others silenced, where flipped ``(lane, source)``."""
        present = cast(Tensor, self.present)
        silent = torch.zeros_like(clean)
        return replace(self, present=present ^ flipped), torch.where(
            flipped[..., None], silent, clean
        )

    @torch.no_grad()
    def log_density(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density ``(lane,)`` without its gradient."""
        total = torch.zeros(len(sources), dtype=torch.float64, device=sources.device)
        if not self.exact:
            total += self._log_mixing(sources, sigma)
        for k in range(len(self.priors)):
            for lanes, log_prob in self._laws(k, sources[:, k], self._present(k), sigma):
                total[lanes] += log_prob(sources[lanes, k])
        return total

    @torch.no_grad()
    def cross_log_prior(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density of the share of source j in the mixture under prior i: ``(lane, i, j)``.

        The share :math:`a_j x_j` is, to source i, the audio :math:`a_j x_j / a_i`; or
        :math:`x_j` as it is, where gains are not known and go along. That it is present or silent
        goes along too.
        """
        weights = self.mixing.fixed_weights(sources)
        lanes, count, _ = sources.shape
        present = None if self.present is None else self.present.flatten()
        cross = sources.new_empty(lanes * count, count)
        for k, gain in enumerate(weights[:, 0]):
            contributions = (sources * weights / gain).flatten(0, 1)
            for rows, log_prob in self._laws(k, contributions, present, sigma):
                cross[rows, k] = log_prob(contributions[rows])
        return cross.reshape(lanes, count, count).mT

    def denoise(self, sources: Tensor, evaluation: Evaluation, sigma: float) -> Tensor:
        r"""Clean sources expected from noisy ones (Tweedie), conditioned on the mixture.

        .. math:: \mathbb{E}[s_k \mid x_k] = x_k + \sigma^2 \nabla \log p_{k,\sigma}(x_k)

        Robbins 1956; the mixture enters as in :meth:`pyro_sep.mixing.Mixing.condition_on`.

        Args:
            sources: noisy sources ``(lane, source, time)``.
            evaluation: of this posterior, at the sources.
            sigma: their noise level.
        """
        return self._condition(self._tweedie(sources, evaluation, sigma), sigma)

    def draw_clean(
        self, sources: Tensor, evaluation: Evaluation, sigma: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""A draw of the clean sources given noisy ones, and their mean.

        Both are conditioned on the mixture, the mean is that of :meth:`denoise`.

        The law of clean sources has the mean :math:`D(x)` of Tweedie's formula and the covariance
        :math:`\sigma^2 J`, :math:`J = dD / dx` (Efron 2011, J. Am. Stat. Assoc. 106), and is
        treated as normal. J is symmetric with eigenvalues from 0 to 1: with standard normal n and
        c = 2,

        .. math:: s = D(x) + \sigma \bigl(I - (I - J)^c\bigr) n

        has that covariance where sources lie on a manifold, whose J is a projector onto its
        tangents, and a variance within 20 % of it in directions of eigenvalues above 0.27; below
        it is too narrow. Products with J are differences of D, a gradient each.

        In the annealed likelihood the mixture has noise of its own, as much as that of x. So if x
        are posterior draws, s are those of

        .. math:: p(s \mid m) \propto \mathcal{N}\bigl(m; \textstyle\sum_k a_k s_k, (2 \sigma^2
                  \sum_k a_k^2 + \gamma^2) I\bigr) \prod_k p_k(s_k)

        before they are conditioned on the mixture, which takes out the errors that it refutes.
        Where the priors are right this is wider than the posterior under gamma alone.

        Args:
            sources: noisy sources ``(lane, source, time)``.
            evaluation: of this posterior, at the sources.
            sigma: their noise level.
            generator: source of randomness; :data:`TANGENTS` gradients are evaluated.

        Returns:
            Draw and mean, each ``(lane, source, time)``.
        """
        mean = self._tweedie(sources, evaluation, sigma)
        noise = self.project(torch.empty_like(sources).normal_(generator=generator))
        spread = torch.zeros_like(noise)
        for _ in range(TANGENTS):
            nudged = sources + NUDGE * sigma * (noise - spread)
            moved = self._tweedie(nudged, self.evaluate(nudged, sigma), sigma) - mean
            spread = spread + moved / (NUDGE * sigma)
        return self._condition(mean + sigma * spread, sigma), self._condition(mean, sigma)

    def _tweedie(self, sources: Tensor, evaluation: Evaluation, sigma: float) -> Tensor:
        score = evaluation.gradient
        if not self.exact:
            score = score - self.mixing.score(self.mixture, sources, sigma)
        return sources + sigma**2 * score

    def _condition(self, clean: Tensor, sigma: float) -> Tensor:
        return clean if self.exact else self.mixing.condition_on(self.mixture, clean, sigma)


@torch.no_grad()
def at_draws(
    function: Callable[[P, Tensor], Tensor], priors: Sequence[P], noisy: Tensor, sigma: float
) -> Tensor:
    """What there is to say of each source under its prior, at every draw: ``(..., source)``.

    Args:
        function: of a prior at the noise level and noisy audio ``(row, frame)``, ``(row,)``.
        priors: one per source.
        noisy: draws of the sources ``(..., source, frame)``.
        sigma: their noise level.
    """
    frame, columns = noisy.shape[-1], []
    for k, prior in enumerate(priors):
        law = prior.frame(frame).condition(sigma)
        rows = noisy[..., k, :].reshape(-1, frame).split(max(1, CHUNK // frame))
        columns.append(torch.cat([function(law, part) for part in rows]))
    return torch.stack(columns, -1).reshape(noisy.shape[:-1])


def _value_and_gradient(
    log_prob: Callable[[Tensor], Tensor], value: Tensor
) -> tuple[Tensor, Tensor]:
    value = value.detach().requires_grad_()
    result = log_prob(value)
    (gradient,) = torch.autograd.grad(result.sum(), value)
    return result.detach(), gradient
