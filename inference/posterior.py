"""The annealed posterior: density of noisy sources given their mixture, with its gradient."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from pyro_sep.inference.conditioning import divide
from pyro_sep.inference.gain_errors import GainErrors, fit_gain_errors
from pyro_sep.inference.state import Evaluation
from pyro_sep.inference.steps.permutation import reassign
from pyro_sep.mixing.known import LinearMixing, frame_time
from pyro_sep.models.threads import in_threads
from pyro_sep.priors.base import Prior, gain_error
from pyro_sep.priors.spike_slab import SpikeAndSlab

CHUNK = 1 << 15  # audio samples evaluated at once: they fit the caches, and bound the memory
NUDGE = 0.1  # of sigma, for differences: priors are about linear within it, and it is far above
#              the rounding of float32
TANGENTS = 2  # gradients of a clean draw, for its spread
REFITS = 2  # further ones, where a prior errs in gains
OVERSHOOT = 1.5  # a third of a source's gain error passes as part of the others, at a first look
P = TypeVar("P", bound=Prior)


@dataclass(frozen=True)
class AnnealedPosterior:
    r"""Log posterior of the noisy sources of mixtures at every noise level, up to a constant.

    .. math:: \log p_\sigma(x \mid m) = \sum_k \log p_{k,\sigma}(x_k)
              + \log \mathcal{N}\bigl(m; \textstyle\sum_k a_k x_k,
              (\sigma^2 \sum_k a_k^2 + \gamma^2) I\bigr) + \text{const}

    The same density as :func:`pyro_sep.mixing.model`, for a batch of chains, each on a mixture.

    Where the mixture is exact, the noisy sources add up to it at every level, :math:`\sum_k a_k x_k
    = m`, and their density is that of the priors on this plane ("Dirac" in Mariani et al. 2023,
    arXiv 2302.02257). Gradients and noise are projected onto it orthogonally, which treats all
    sources alike.

    Unknown gains and noise (:class:`pyro_sep.mixing.LatentMixing`) have a value for every chain,
    and their log prior is part of the density. Likewise ``present``, where it is decided: the
    density is then the joint one of sources and presence, and silent sources cost no evaluation of
    a prior.

    Attributes:
        mixture: ``(batch, time)``.
        priors: one per source.
        mixing: gains and noise.
        exact: whether the sources add up to the mixture.
        present: whether each source is present ``(batch, source)``, of priors that may be silent
            (:class:`pyro_sep.priors.SpikeAndSlab`); not decided where None.
        by_spectrum: whether what clean draws lack of the mixture is divided by their spectra, as of
            recordings (:mod:`~pyro_sep.inference.conditioning`); else among all alike.

    >>> from pyro_sep.mixing.known import Mixing
    >>> from pyro_sep.priors.io import load_priors
    >>> priors = load_priors("toy/oracle")
    >>> mixture = 0.1 * torch.arange(256).sin()[None]
    >>> target = AnnealedPosterior(mixture, list(priors.values()), Mixing.mean(len(priors)))
    >>> target.evaluate(target.start(0.5), 0.5).gradient.shape == (1, len(priors), 256)
    True
    """

    mixture: Tensor
    priors: Sequence[Prior]
    mixing: LinearMixing
    exact: bool = False
    present: Tensor | None = None
    by_spectrum: bool = False

    @property
    def may_be_silent(self) -> bool:
        """Whether the priors leave open which sources are present."""
        return all(getattr(prior, "may_be_silent", False) for prior in self.priors)

    @property
    def errs_in_gains(self) -> bool:
        """Whether a prior is known to be wrong about gains."""
        return any(map(gain_error, self.priors))

    @property
    def clean_gradients(self) -> int:
        """Gradients that a clean draw takes."""
        return TANGENTS + (self.exact and self.by_spectrum) + REFITS * self.errs_in_gains

    @property
    def frame(self) -> int:
        """Audio samples of a source, as many as of the mixture or a few more."""
        return frame_time(self.priors, self.mixture.shape[-1])

    def select(self, indices: Tensor) -> "AnnealedPosterior":
        """The posterior restricted to a subset of the batch."""
        present = None if self.present is None else self.present[indices]
        mixing = self.mixing.select(indices)
        return replace(self, mixture=self.mixture[indices], mixing=mixing, present=present)

    def update(self, indices: Tensor, other: "AnnealedPosterior") -> "AnnealedPosterior":
        """The posterior with the latents of another one in a subset of the batch."""
        present = self.present
        if present is not None and other.present is not None:
            present = present.index_copy(0, indices, other.present)
        return replace(self, mixing=self.mixing.update(indices, other.mixing), present=present)

    def section(self, samples: slice) -> "AnnealedPosterior":
        """The posterior of a section of the frame by itself."""
        return replace(self, mixture=self.mixture[:, samples])

    def latents(self) -> dict[str, Tensor]:
        """Unknown gains and noise, and presence where it is decided, ``(batch, ...)`` by name."""
        present = {} if self.present is None else {"present": self.present}
        return self.mixing.latents() | present

    def with_latents(self, latents: Mapping[str, Tensor]) -> "AnnealedPosterior":
        """The posterior with these values of :meth:`latents`."""
        return replace(
            self, mixing=self.mixing.with_latents(latents), present=latents.get("present")
        )

    def start(self, sigma: float, generator: torch.Generator | None = None) -> Tensor:
        """White noise of std sigma ``(batch, source, frame)``, moved to the mixture if exact."""
        shape = (len(self.mixture), len(self.priors), self.frame)
        position = sigma * self.mixture.new_empty(shape).normal_(generator=generator)
        return self.tie(position)

    def tie(self, sources: Tensor) -> Tensor:
        """Sources ``(batch, source, frame)``, moved to the mixture if exact."""
        return self._explain(sources, self.mixture) if self.exact else sources

    def project(self, direction: Tensor) -> Tensor:
        """A direction ``(batch, source, frame)``, projected onto the plane of moves if exact."""
        return self._explain(direction, torch.zeros_like(self.mixture)) if self.exact else direction

    def _explain(self, sources: Tensor, mixture: Tensor) -> Tensor:
        """The nearest sources that add up to the mixture."""
        residual = self.mixing.residual(mixture, sources) / self.mixing.gain_energy
        return sources + self.mixing.weights(sources) * residual[..., None, :]

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """Log density ``(batch,)``, its gradient, and log priors ``(batch, source)`` as parts."""
        parts, gradient = sources.new_empty(sources.shape[:2]), torch.empty_like(sources)
        jobs = [
            (k, rows, log_prob)
            for k in range(len(self.priors))
            for rows, log_prob in self._laws(k, sources[:, k], self._present(k), sigma)
        ]

        def work(job: tuple[int, Tensor, Callable[[Tensor], Tensor]]) -> None:
            k, rows, log_prob = job
            parts[rows, k], gradient[rows, k] = _value_and_gradient(log_prob, sources[rows, k])

        in_threads(work, jobs)
        if self.exact:
            return Evaluation(parts.sum(1), self.project(gradient), parts)
        pull = self.mixing.score(self.mixture, sources, sigma)
        return Evaluation(parts.sum(1) + self._log_mixing(sources, sigma), gradient + pull, parts)

    def _present(self, k: int) -> Tensor | None:
        """Whether source k is present ``(batch,)``, where that has been decided."""
        return None if self.present is None else self.present[:, k]

    def _laws(
        self, k: int, frames: Tensor, present: Tensor | None, sigma: float
    ) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Rows of frames ``(row, time)``, and a log density under prior k for them, in chunks.

        A chunk has at most CHUNK audio samples, or one row.
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
        """Posterior and evaluation with other gains and noise, without evaluating the priors."""
        other = replace(self, mixing=mixing)
        before = self.mixing.score(self.mixture, sources, sigma)
        gradient = evaluation.gradient + (mixing.score(self.mixture, sources, sigma) - before)
        log_density = evaluation.parts.sum(1) + other._log_mixing(sources, sigma)
        return other, Evaluation(log_density, gradient, evaluation.parts)

    def reassign(self, sources: Tensor, assignment: Tensor) -> tuple["AnnealedPosterior", Tensor]:
        """Posterior and sources after swaps, which known gains do not follow and latents do."""
        moved = reassign(sources, assignment, self.mixing.fixed_weights(sources))
        present = None if self.present is None else self.present.gather(1, assignment)
        return replace(self, mixing=self.mixing.reassign(assignment), present=present), moved

    @torch.no_grad()
    def decide(
        self, sources: Tensor, sigma: float, generator: torch.Generator | None = None
    ) -> "AnnealedPosterior":
        """The posterior with a draw of which sources are present, given noisy ones (Gibbs)."""
        priors = cast(Sequence[SpikeAndSlab], self.priors)
        log_odds = at_draws(SpikeAndSlab.log_odds, priors, sources, sigma)
        uniform = torch.empty_like(log_odds).uniform_(generator=generator)
        return replace(self, present=uniform < log_odds.sigmoid())

    def flip(self, clean: Tensor, flipped: Tensor) -> tuple["AnnealedPosterior", Tensor]:
        """Posterior and clean sources with another presence where flipped ``(batch, source)``."""
        present = cast(Tensor, self.present)
        return replace(self, present=present ^ flipped), clean.masked_fill(flipped[..., None], 0)

    @torch.no_grad()
    def log_density(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density ``(batch,)`` without its gradient."""
        total = torch.zeros(len(sources), dtype=torch.float64, device=sources.device)
        if not self.exact:
            total += self._log_mixing(sources, sigma)
        for k in range(len(self.priors)):
            for rows, log_prob in self._laws(k, sources[:, k], self._present(k), sigma):
                total[rows] += log_prob(sources[rows, k])
        return total

    @torch.no_grad()
    def cross_log_prior(self, sources: Tensor, sigma: float) -> Tensor:
        """Log density of source j's contribution under prior i: ``(batch, i, j)``.

        The contribution :math:`a_j x_j` is, as source i, the audio :math:`a_j x_j / a_i`; or
        :math:`x_j` unchanged where gains are unknown, which are swapped too. So is presence.
        """
        weights = self.mixing.fixed_weights(sources)
        batch, count, _ = sources.shape
        present = None if self.present is None else self.present.flatten()
        cross = sources.new_empty(batch * count, count)
        for k, gain in enumerate(weights[:, 0]):
            contributions = (sources * weights / gain).flatten(0, 1)
            for rows, log_prob in self._laws(k, contributions, present, sigma):
                cross[rows, k] = log_prob(contributions[rows])
        return cross.reshape(batch, count, count).mT

    def denoise(self, sources: Tensor, evaluation: Evaluation, sigma: float) -> Tensor:
        r"""Clean sources expected from noisy ones (Tweedie), conditioned on the mixture.

        .. math:: \mathbb{E}[s_k \mid x_k] = x_k + \sigma^2 \nabla \log p_{k,\sigma}(x_k)

        Robbins 1956; the mixture enters as in :meth:`pyro_sep.mixing.Mixing.condition_on`.

        Args:
            sources: noisy sources ``(batch, source, time)``.
            evaluation: of this posterior, at the sources.
            sigma: their noise level.
        """
        return self._condition(self._tweedie(sources, evaluation, sigma), sigma)

    def draw_clean(
        self, sources: Tensor, evaluation: Evaluation, sigma: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""A draw of the clean sources given noisy ones, and their mean, that of :meth:`denoise`.

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

        before draw and mean are conditioned on the mixture, which removes the errors that it rules
        out; ``by_spectrum`` with the covariance above. Where the priors are right this is wider
        than the posterior under gamma alone.

        Where priors err in gains (``gain_error`` above 0), the errors are drawn given the mixture
        first, see :mod:`~pyro_sep.inference.gain_errors`: D is taken at the noisy sources whose
        gains are corrected by what is expected of their errors, and once more with the errors left.

        Args:
            sources: noisy sources ``(batch, source, time)``.
            evaluation: of this posterior, at the sources.
            sigma: their noise level.
            generator: source of randomness; :attr:`clean_gradients` are evaluated.

        Returns:
            Draw and mean, each ``(batch, source, time)``.
        """
        noisy, expected = sources, self._tweedie(sources, evaluation, sigma)
        if self.exact and self.by_spectrum:  # the projected gradient has lost what they lack
            expected = self._expected(sources, sigma)
        drawn = mean = expected
        if self.errs_in_gains:
            first = self._expected(sources, sigma)
            errors = self._gain_errors(first, sigma).mean
            noisy = self.tie(sources + OVERSHOOT * errors[..., None] * first)
            expected = self._expected(noisy, sigma)
            left = self._gain_errors(expected, sigma)
            drawn = (1 + left.draw(generator)[..., None]) * expected
            mean = (1 + left.mean[..., None]) * expected
            if not self.by_spectrum:
                drawn, mean = self.tie(drawn), self.tie(mean)
        noise = self.project(torch.empty_like(sources).normal_(generator=generator))
        spread = torch.zeros_like(noise)
        for _ in range(TANGENTS):
            nudged = noisy + NUDGE * sigma * (noise - spread)
            moved = self.project(self._expected(nudged, sigma) - expected)
            spread = spread + moved / (NUDGE * sigma)
        drawn = drawn + sigma * spread
        if self.by_spectrum:
            return self._divide(drawn, expected, sigma), self._divide(mean, expected, sigma)
        return self._condition(drawn, sigma), self._condition(mean, sigma)

    def _divide(self, clean: Tensor, expected: Tensor, sigma: float) -> Tensor:
        """Clean sources, conditioned on the mixture by the spectra of those expected."""
        prior, mixing = self.priors[0], self.mixing
        lacking, noise = mixing.residual(self.mixture, clean), mixing.noise(clean)
        noise = torch.zeros_like(noise) if self.exact else noise
        law = (prior.sample_rate, getattr(prior, "channels", 1))
        given = divide(lacking, expected, mixing.weights(clean), noise, sigma, *law)
        return self.tie(clean + given)  # up to rounding it is there already

    def _gain_errors(self, clean: Tensor, sigma: float) -> GainErrors:
        """The law of the gain errors of denoised sources, which need not add up to the mixture."""
        heard = self.mixture.shape[-1]
        contributions = (self.mixing.weights(clean) * clean)[..., :heard]
        residual = self.mixing.residual(self.mixture, clean)[..., :heard]
        scale = torch.as_tensor(self.mixing.scale_at(sigma)).to(clean)
        std = clean.new_tensor([gain_error(prior) for prior in self.priors])
        return fit_gain_errors(contributions / scale[..., None], residual / scale, std)

    def _expected(self, sources: Tensor, sigma: float) -> Tensor:
        """Clean sources expected from noisy ones by the priors alone."""
        free = replace(self, exact=False)
        return free._tweedie(sources, free.evaluate(sources, sigma), sigma)

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
    """A function of each prior and its source, at every draw: ``(..., source)``.

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
