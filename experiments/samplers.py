"""Samplers of the annealed posterior that several experiments compare."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from _common import stacked, timed
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import TransformReparam
from torch import Tensor
from torch.nn.functional import pad

from pyro_sep.data.toy import ToyMixture
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.smc.annealed import anneal_particles
from pyro_sep.inference.smc.core import systematic
from pyro_sep.inference.state import Evaluation
from pyro_sep.inference.steps.langevin import langevin_proposal
from pyro_sep.mixing.known import Mixing, frame_time, model
from pyro_sep.priors.base import Priors
from pyro_sep.priors.networks import FloWaveNetPrior
from pyro_sep.priors.waveform import WaveformPrior
from pyro_sep.separation.api import Separation, separate_batch, separation_from_draws
from pyro_sep.separation.presets import resolve_settings

Sampler = Callable[[Sequence[ToyMixture], Priors, int], list[Separation]]

CHAINS = 2
EXACT_LEVELS = 40  # of noise under the oracle, which chooses modes all at once
PARTICLES = 16
SHARE = 0.6  # of the particles' effective sample size that a step of the noise level keeps
WARMUP, DRAWS = 30, 30  # of HMC and NUTS
TRAJECTORY = 4.0  # of HMC, in units of sigma
TRAJECTORY_STEPS = 128  # of HMC at most: the oracle's narrow modes allow only short steps
TREE_DEPTH = 4  # of NUTS: 15 steps at most
STEP_SIZE = 0.1  # of overdamped Langevin dynamics, in units of sigma^2; the stability bound is 1


@dataclass(frozen=True)
class CountedPosterior(AnnealedPosterior):
    """The annealed posterior, with a count of its gradients."""

    calls: list[int] = field(default_factory=list, kw_only=True)

    def evaluate(self, sources: Tensor, sigma: float) -> Evaluation:
        """Log density and gradient, counted."""
        self.calls.append(len(sources))
        return super().evaluate(sources, sigma)


def annealed(**settings: Any) -> Sampler:
    """A sampler: the annealed driver with these settings, a Gaussian mixture by default.

    Under the oracle it has :data:`EXACT_LEVELS` noise levels.
    """
    options = {"constraint": "gaussian", "chains": CHAINS} | settings

    def sampler(items: Sequence[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
        exact = all(isinstance(prior, WaveformPrior) for prior in priors.values())
        ladder = {"levels": EXACT_LEVELS} if exact else {}
        return separate_batch(stacked(items)[0], priors, seed=seed, **ladder, **options)

    return sampler


def overdamped(
    target: AnnealedPosterior, sigmas: Iterable[float], steps: int, generator: torch.Generator
) -> Iterator[tuple[float, Tensor, Evaluation, Tensor]]:
    """Yield each step of annealed overdamped Langevin dynamics, ``steps`` at each noise level.

    Yields:
        The noise level, the position before the step, its evaluation, and the position after it.
    """
    position = None
    for sigma in sigmas:
        for _ in range(steps):
            position = target.start(sigma, generator) if position is None else position
            evaluation = target.evaluate(position, sigma)
            step_size = STEP_SIZE * sigma**2
            after = langevin_proposal(position, evaluation.gradient, step_size, generator=generator)
            yield sigma, position, evaluation, after
            position = after


def smc(items: Sequence[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
    """Sequential Monte Carlo down the ladder; draws are those that a last resampling leaves."""
    results, mixing = [], Mixing.mean(len(priors))
    for i, item in enumerate(items):
        generator = torch.Generator().manual_seed(seed + i)
        target = CountedPosterior(
            item.mixture.expand(PARTICLES, -1), tuple(priors.values()), mixing
        )
        plan = resolve_settings(priors, len(item.mixture))
        ladder = (plan.sigma_max, plan.sigma_freeze, plan.sigma_min)
        population = anneal_particles(target, *ladder, generator, share=SHARE)
        kept = population.position[systematic(population.log_weight, generator)]
        attrs = {"gradients": sum(target.calls), "log_evidence": population.log_evidence}
        results.append(
            separation_from_draws(
                kept[None], item.mixture, priors, mixing, plan.sigma_min, attrs=attrs
            )
        )
    return results


class PyroChains(NamedTuple):
    """Draws of a kernel of Pyro's."""

    noisy: Tensor  # (chain, draw, source, time)
    gradients: int
    seconds: float  # of the CPU
    divergences: int


def pyro_chains(
    kernel: Callable[..., Any],
    mixture: Tensor,
    priors: Priors,
    sigma: float,
    starts: Iterable[Tensor],
    draws: int,
    warmup: int,
    *,
    latent: Collection[str] = (),
    thin: int = 1,
    progress: bool = False,
) -> PyroChains:
    """Chains of a kernel of Pyro's on the posterior at one noise level, one after the other.

    Args:
        kernel: of a Pyro model; it takes ``init_strategy``.
        mixture: ``(time,)``, the mean of the sources.
        priors: of the sources, by name.
        sigma: noise level.
        starts: of each chain, ``(source, frame)``.
        draws: per chain.
        warmup: steps before them.
        latent: sources with flow priors that move in the flow's latent space, where the prior is
            white noise (:class:`pyro.infer.reparam.TransformReparam`).
        thin: steps per draw.
        progress: show bars.
    """
    mixing, time = Mixing.mean(len(priors)), frame_time(priors.values(), len(mixture))
    flows = {name: priors[name].frame(time).condition(sigma).transforms[0] for name in latent}
    calls = Counted(lambda: model(mixture, priors, mixing, sigma))
    target = poutine.reparam(calls, dict.fromkeys(flows, TransformReparam()))

    def run(start: Tensor) -> MCMC:
        values = dict(zip(priors, start, strict=True))  # Pyro maps them to the latent space
        options = {"num_samples": draws * thin, "warmup_steps": warmup}
        started = kernel(target, init_strategy=init_to_value(values=values))
        chain = MCMC(started, **options, disable_progbar=not progress)
        chain.run()
        return chain

    @torch.no_grad()
    def audio(chain: MCMC) -> Tensor:
        found = chain.get_samples()
        parts = [
            flows[name](found[f"{name}_base"]) if name in flows else found[name] for name in priors
        ]
        return torch.stack(parts, 1)[thin - 1 :: thin]

    chains, seconds = timed(lambda: [run(start) for start in starts])
    divergences = sum(len(chain.diagnostics()["divergences"]["chain 0"]) for chain in chains)
    return PyroChains(torch.stack([audio(c) for c in chains]), calls.count, seconds, divergences)


class Counted:
    """A Pyro model that counts its runs; under Pyro's kernels there is one per gradient."""

    def __init__(self, model: Callable[[], Tensor]) -> None:
        self.model, self.count = model, 0

    def __call__(self) -> Tensor:
        """Run the model."""
        self.count += 1
        return self.model()


def from_the_mixture(kernel: Callable[..., HMC]) -> Sampler:
    """A sampler: a kernel at the last noise level, every chain from the mixture plus noise."""

    def sampler(items: Sequence[ToyMixture], priors: Priors, seed: int) -> list[Separation]:
        return [
            separate_from_the_mixture(kernel, item.mixture, priors, seed + i)
            for i, item in enumerate(items)
        ]

    return sampler


def separate_from_the_mixture(
    kernel: Callable[..., HMC], mixture: Tensor, priors: Priors, seed: int
) -> Separation:
    """A separation by :data:`CHAINS` chains; NUTS moves in the latent space of flow priors."""
    pyro.set_rng_seed(seed)
    mixing, time = Mixing.mean(len(priors)), frame_time(priors.values(), len(mixture))
    sigma = resolve_settings(priors, len(mixture)).sigma_min
    flows = [name for name, prior in priors.items() if isinstance(prior, FloWaveNetPrior)]
    padded = pad(mixture, (0, time - len(mixture)))
    chains = pyro_chains(
        lambda target, **options: kernel(target, sigma, **options),
        mixture,
        priors,
        sigma,
        (
            torch.stack([padded + sigma * torch.randn_like(padded) for _ in priors])
            for _ in range(CHAINS)
        ),
        DRAWS,
        WARMUP,
        latent=flows if kernel is nuts else (),
    )
    attrs = {"gradients": chains.gradients}
    return separation_from_draws(chains.noisy, mixture, priors, mixing, sigma, attrs=attrs)


class BoundedHMC(HMC):
    """HMC with at most :data:`TRAJECTORY_STEPS` steps per trajectory."""

    @property
    def num_steps(self) -> int:
        """Steps per trajectory."""
        return min(super().num_steps, TRAJECTORY_STEPS)


def hmc(target: Callable[..., Any], sigma: float, **options: Any) -> HMC:
    """HMC with trajectories of one length, in steps whose size adapts."""
    return BoundedHMC(
        target,
        step_size=sigma / 4,
        trajectory_length=TRAJECTORY * sigma,
        adapt_mass_matrix=False,
        **options,
    )


def nuts(target: Callable[..., Any], sigma: float, **options: Any) -> NUTS:
    """NUTS with trees of at most depth :data:`TREE_DEPTH`."""
    return NUTS(target, step_size=sigma / 4, max_tree_depth=TREE_DEPTH, **options)


SAMPLERS: Mapping[str, Sampler] = {
    "langevin": annealed(),
    "exact": annealed(constraint="exact"),
    "sgld": annealed(persistence=0.0),
    "mala": annealed(persistence=0.0, adjusted=True),
    "smc": smc,
    "hmc": from_the_mixture(hmc),
    "nuts": from_the_mixture(nuts),
}
