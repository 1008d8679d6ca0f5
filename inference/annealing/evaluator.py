"""What a run evaluates: counted, shown, and with noise from one generator."""

import torch
from torch import Tensor

from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.steps.gains import follow
from pyro_sep.progress import Progress

FORWARD = 1 / 3  # of a gradient's cost, a density alone


class Evaluator:
    """Densities and gradients of posteriors.

    Args:
        generator: source of all noise.
        progress: is told the gradients of audio samples that were evaluated.

    Attributes:
        cost: of all so far, in gradients of one source's audio sample.
    """

    def __init__(self, generator: torch.Generator, progress: Progress) -> None:
        self.generator, self.progress = generator, progress
        self.cost = 0.0

    def count(self, position: Tensor, share: float = 1.0) -> None:
        """Note the evaluation of sources ``(lane, source, frame)``."""
        self.cost += share * position.numel()
        self.progress.advance(share * position.numel())

    def evaluate(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Evaluation:
        """Log density and gradient."""
        self.count(position)
        return target.evaluate(position, sigma)

    def log_density(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Tensor:
        """Log density alone."""
        self.count(position, FORWARD)
        return target.log_density(position, sigma)

    def cross_log_prior(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Tensor:
        """Log density of every source under every prior."""
        self.count(position, FORWARD * len(target.priors))
        return target.cross_log_prior(position, sigma)

    def follow(
        self,
        target: AnnealedPosterior,
        position: Tensor,
        evaluation: Evaluation,
        sigma: float,
        noise: bool,
    ) -> tuple[AnnealedPosterior, Evaluation]:
        """Update unknown gains and, if asked, noise (:mod:`~pyro_sep.inference.steps.gains`)."""
        return follow(target, position, evaluation, sigma, self.generator, noise)

    def noise(self, target: AnnealedPosterior, like: Tensor) -> Tensor:
        """Standard normal, in the directions that a chain may follow."""
        return target.project(torch.empty_like(like).normal_(generator=self.generator))
