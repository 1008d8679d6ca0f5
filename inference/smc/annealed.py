r"""Sequential Monte Carlo down the ladder of noise levels, with the evidence of the mixture.

The path of :mod:`~pyro_sep.inference.smc.core` starts at a normal whose evidence is known: the
posterior at the highest noise level, had every source a white Gaussian prior of variance :math:`v_k
= r_k^2 + \sigma_{max}^2`, r its RMS:

.. math:: \log Z_0 = \log \mathcal{N}\bigl(m; 0, (\textstyle\sum_k a_k^2 v_k + \sigma_{max}^2 \sum_k
          a_k^2 + \gamma^2) I\bigr)

A geometric bridge leads to the true priors, then sigma falls to its lowest. There the evidence is
that of the mixture under noise of twice the annealed variance,

.. math:: Z_1 = \int \mathcal{N}\bigl(m; \textstyle\sum_k a_k s_k, (2 \sigma_{min}^2
          \sum_k a_k^2 + \gamma^2) I\bigr) \prod_k p_k(s_k) \, ds

Between levels particles follow underdamped Langevin dynamics and, above ``sigma_freeze``, swap what
two sources explain. Velocities are resampled with their particles. Unadjusted steps are exact on
Gaussians alone, so on other priors the evidence has a bias; Metropolis-adjusted ones
(:mod:`~pyro_sep.inference.steps.ghmc`) have none, and their size follows the acceptance from level
to level.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_sep.inference.annealing.settings import PERSISTENT_ACCEPTANCE, Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.core import smc
from pyro_sep.inference.state import Evaluation, Population, UnderdampedState
from pyro_sep.inference.steps.ghmc import adjusted_step
from pyro_sep.inference.steps.permutation import draw_assignment, reassign
from pyro_sep.inference.steps.underdamped import underdamped_step

BRIDGE = 0.1  # part of the path that leads from Gaussian to true priors


def anneal_particles(
    target: AnnealedPosterior,
    sigma_max: float,
    sigma_freeze: float,
    sigma_min: float,
    generator: torch.Generator,
    steps: int = 2,
    share: float = 0.9,
    adjusted: bool = False,
) -> Population:
    """Particles ``(particle, source, frame)`` at the lowest noise level, and the log evidence.

    Args:
        target: posterior of the particles, all on one mixture.
        sigma_max: first noise level.
        sigma_freeze: level below which sources are not swapped.
        sigma_min: last noise level.
        generator: source of randomness, on the mixture's device.
        steps: Langevin steps between levels, one gradient each.
        share: see :func:`~pyro_sep.inference.smc.core.smc`.
        adjusted: by a Metropolis test of every step.

    >>> from pyro_sep.mixing.known import Mixing
    >>> from pyro_sep.priors.io import load_priors
    >>> priors = [load_priors("toy/oracle")["square"]]
    >>> mixture = 0.1 * torch.arange(64).sin().expand(4, -1)
    >>> target = AnnealedPosterior(mixture, priors, Mixing((1.0,)))
    >>> generator = torch.Generator().manual_seed(0)
    >>> anneal_particles(target, 2.0, 2.0, 1.5, generator, steps=1, share=0.5).position.shape
    torch.Size([4, 1, 64])
    """
    path = _Path(target, sigma_max, sigma_freeze, sigma_min, generator, steps, adjusted)

    def move(particles: Tensor, t: float) -> Tensor:
        return torch.stack(path.move(particles[:, 0], particles[:, 1], t), 1)

    position = path.draw()
    velocity = torch.empty_like(position).normal_(generator=generator)
    particles = torch.stack([position, velocity], 1)
    result = smc(particles, lambda p, t: path.log_density(p[:, 0], t), move, share, generator)
    return result._replace(
        position=result.position[:, 0], log_evidence=result.log_evidence + path.log_evidence
    )


@dataclass
class _Path:
    """Path from the Gaussian posterior to that of the lowest noise level, with moves along it."""

    target: AnnealedPosterior
    sigma_max: float
    sigma_freeze: float
    sigma_min: float
    generator: torch.Generator
    steps: int
    adjusted: bool
    step_size: float = Annealing.step_size  # in units of sigma

    @cached_property
    def scales(self) -> Tensor:
        """Std of the noisy sources under Gaussian priors ``(source, 1)``."""
        scales = [[math.hypot(prior.rms, self.sigma_max)] for prior in self.target.priors]
        return self.target.mixture.new_tensor(scales)

    def sigma(self, t: float) -> float:
        """Noise level at t."""
        share = max(0.0, (t - BRIDGE) / (1 - BRIDGE))
        return self.sigma_max ** (1 - share) * self.sigma_min**share

    @property
    def log_evidence(self) -> float:
        """Log evidence of the Gaussian posterior."""
        mixture = self.target.mixture[0]
        return float(Normal(0.0, self._mixture_variance().sqrt()).log_prob(mixture.double()).sum())

    def draw(self) -> Tensor:
        """Exact draws from the Gaussian posterior: those of its prior, corrected by residuals."""
        mixture, mixing = self.target.mixture, self.target.mixing
        shape = (len(mixture), len(self.scales), self.target.frame)
        sources = mixture.new_empty(shape).normal_(generator=self.generator) * self.scales
        noise = torch.empty_like(mixture).normal_(generator=self.generator)
        residual = mixing.residual(mixture + mixing.scale_at(self.sigma_max) * noise, sources)
        pull = mixing.weights(sources) * self.scales**2 / self._mixture_variance().to(sources)
        return sources + pull * residual[:, None]

    def _mixture_variance(self) -> Tensor:
        gains = self.target.mixing.weights(self.scales)
        own = self.target.mixing.scale_at(self.sigma_max) ** 2
        return (gains * self.scales).double().square().sum() + own

    def log_density(self, position: Tensor, t: float) -> Tensor:
        """Log density of the particles at t."""
        log_density = self.target.log_density(position, self.sigma(t))
        if t < BRIDGE:
            gaussian = self._log_gaussian(position)
            return gaussian + t / BRIDGE * (log_density - gaussian)
        return log_density

    def _log_gaussian(self, position: Tensor) -> Tensor:
        prior = Normal(torch.zeros_like(self.scales), self.scales).log_prob(position).sum((1, 2))
        mixing = self.target.mixing
        return prior + mixing.log_likelihood(self.target.mixture, position, self.sigma_max)

    def move(self, position: Tensor, velocity: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Positions and velocities after Langevin steps and, above sigma_freeze, swaps before."""
        sigma = self.sigma(t)
        evaluate = partial(self.target.evaluate, sigma=sigma)
        if t < BRIDGE:
            evaluate = partial(self._evaluate_bridge, share=t / BRIDGE)
        elif sigma >= self.sigma_freeze:
            cross = self.target.cross_log_prior(position, sigma)
            assignment = draw_assignment(cross, self.generator)
            position = reassign(position, assignment, self.target.mixing.weights(position))
        state = UnderdampedState(position, velocity, evaluate(position))
        step = adjusted_step if self.adjusted else underdamped_step
        for _ in range(self.steps):
            size = self.step_size * sigma
            state, info = step(state, evaluate, size, Annealing.persistence, self.generator)
            if self.adjusted:
                acceptance_rate = float(info.acceptance_rate.mean())
                self.step_size *= math.exp(acceptance_rate - PERSISTENT_ACCEPTANCE)
        return state.position, state.velocity

    def _evaluate_bridge(self, position: Tensor, share: float) -> Evaluation:
        full = self.target.evaluate(position, self.sigma_max)
        pull = self.target.mixing.score(self.target.mixture, position, self.sigma_max)
        gaussian = pull - position / self.scales**2
        log_gaussian = self._log_gaussian(position)
        return full._replace(
            log_density=log_gaussian + share * (full.log_density - log_gaussian),
            gradient=gaussian + share * (full.gradient - gaussian),
        )
