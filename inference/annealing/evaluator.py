"""What the parts of a run share: settings, evaluations that are counted, and one generator."""

import torch
from torch import Tensor

from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation
from pyro_sep.progress import Progress

FORWARD = 1 / 3  # cost of a log density without its gradient, in gradients


class Evaluator:
    """Densities and gradients of posteriors under the settings of a run.

    All noise is from the generator; ``progress`` is told of the cost.
    """

    def __init__(self, settings: Annealing, generator: torch.Generator, progress: Progress) -> None:
        self.settings, self.generator, self.progress = settings, generator, progress
        self.cost = 0.0  # of all evaluations so far, in gradients of one source's audio sample

    def count(self, position: Tensor, share: float = 1.0) -> None:
        """Add the evaluation of sources ``(batch, source, frame)`` to the cost."""
        self.cost += share * position.numel()
        self.progress.advance(share * position.numel())

    def evaluate(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Evaluation:
        """Log density and gradient."""
        self.count(position)
        return target.evaluate(position, sigma)

    def log_density(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Tensor:
        """Log density without its gradient."""
        self.count(position, FORWARD)
        return target.log_density(position, sigma)

    def cross_log_prior(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> Tensor:
        """Log density of every source under every prior."""
        self.count(position, FORWARD * len(target.priors))
        return target.cross_log_prior(position, sigma)

    def noise(self, target: AnnealedPosterior, like: Tensor) -> Tensor:
        """Standard normal noise, projected onto the plane of moves if the mixture is exact."""
        return target.project(torch.empty_like(like).normal_(generator=self.generator))
