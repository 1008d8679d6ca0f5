r"""Search for the modes of a posterior: denoise, add fresh noise, keep the best.

One evaluation a level. From noisy sources x at level sigma a step goes to the clean ones expected
there and adds noise of the next level, none of the old:

.. math:: x \leftarrow D_\sigma(x) + \sigma' n, \qquad D_\sigma(x) = x + \sigma^2 \nabla
          \log p_\sigma(x \mid m)

so early decisions are open for as long as the noise lets them be: decoupled annealing (Zhang et al.
2024, DAPS, arXiv 2407.01521) with a single denoising step. It finds modes and does not sample:
along directions that the posterior leaves open its variance is half of what it should be.

Several candidates of every lane go down side by side, the best by log density go on (successive
halving, Jamieson & Talwalkar 2016, arXiv 1502.07943). Then
:mod:`~pyro_sep.inference.annealing.swaps` mends tones in the wrong hands, and
:mod:`~pyro_sep.inference.annealing.recombination` what is wrong at single moments. Audio of a mode
that is right surprises its priors no more than their own draws do
(:meth:`pyro_sep.priors.NetworkPrior.misfit`); where it does, the search has failed, which can be
seen without the truth, and is begun anew.

Where a frame holds more decisions than any candidate takes right, as music does, log densities do
not tell the better candidate; the mean of all is nearer to the truth than any (``average``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found, Given, descend, repeat
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.recombination import refine
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.annealing.swaps import mend
from pyro_sep.inference.posterior import AnnealedPosterior, at_draws
from pyro_sep.priors.base import misfit

MISFIT = 1.1  # of right modes, at most, where a frame is long; wrong ones have 1.3 and more
MISFIT_ERRORS = 3.0  # standard errors of a frame's misfit, that come on top


class Result(NamedTuple):
    """What was found in every lane, and how."""

    target: AnnealedPosterior  # of the lanes
    clean: Tensor  # (lane, source, frame)
    tries: Tensor  # (lane,) how many searches it took
    known: Tensor  # (lane,) whether the priors know what was found


def candidates(
    target: AnnealedPosterior,
    settings: Annealing,
    evaluator: Evaluator,
    average: bool,
    given: Given | None = None,
) -> Found:
    """The best candidate of every lane, or the mean of all."""
    group = settings.candidates
    lanes = repeat(target, group)
    if given is not None:
        given = Given(given.clean.repeat_interleave(group, 0), given.where)
    start = lanes.start(settings.sigma_max, evaluator.generator)
    if given is not None:
        start = lanes.tie(start + given.hold(torch.zeros_like(start)))
    if not average:
        return descend(
            lanes,
            start,
            settings.search_sigmas,
            settings,
            evaluator,
            averaged=2,
            group=group,
            halving=settings.halving,
            exchange=given is None,
            given=given,
        )
    found = descend(lanes, start, settings.search_sigmas, settings, evaluator)
    clean, log_density = (
        part.reshape(-1, group, *part.shape[1:]).mean(1)
        for part in (found.clean, found.log_density)
    )
    first = torch.arange(len(clean), device=clean.device) * group
    return Found(found.target.select(first), clean, log_density)


def is_known(found: Found, sigma: float, evaluator: Evaluator) -> Tensor:
    """Whether the priors know what was found, in every lane; true where they cannot say."""
    noisy = found.clean + sigma * evaluator.noise(found.target, found.clean)
    evaluator.count(noisy, 1.0)
    surprise = at_draws(misfit, found.target.priors, noisy, sigma)
    bound = MISFIT + MISFIT_ERRORS * (2 / found.target.mixture.shape[-1]) ** 0.5
    return (surprise.nan_to_num(nan=0.0) <= bound).all(-1)


def attempt(
    target: AnnealedPosterior, settings: Annealing, evaluator: Evaluator, average: bool
) -> Found:
    """One search in every lane."""
    found = candidates(target, settings, evaluator, average)
    rounds = [] if average else settings.rounds(len(target.priors), target.may_be_silent)
    for i, held in enumerate(rounds):
        if target.may_be_silent and i == 0:
            noisy = found.clean + held.sigmas[-1] * evaluator.noise(found.target, found.clean)
            decided = found.target.decide(noisy, held.sigmas[-1], evaluator.generator)
            found = found._replace(target=decided)
        found = mend(found, held, settings, evaluator)
    if target.may_be_silent:  # densities have it open again which are present
        found = found._replace(target=found.target.with_latents(found.target.mixing.latents()))
    return found


def search(
    target: AnnealedPosterior, settings: Annealing, evaluator: Evaluator, average: bool
) -> Result:
    """Clean sources of every lane, and whether it is a mode that the priors know.

    Args:
        target: posterior of the lanes.
        settings: of the run.
        evaluator: of densities.
        average: the mean of the candidates in place of the best, see the module's docstring.
    """
    found = attempt(target, settings, evaluator, average)
    tries = torch.ones_like(found.log_density, dtype=torch.long)
    known = torch.ones_like(tries, dtype=torch.bool)
    if average:
        return Result(found.target, found.clean, tries, known)
    known = is_known(found, settings.sigma_min, evaluator)
    for _ in range(1, settings.tries):
        lanes = (~known).nonzero()[:, 0]
        if not len(lanes):
            break
        other = attempt(target.select(lanes), settings, evaluator, average)
        tries[lanes] += 1
        better = is_known(other, settings.sigma_min, evaluator)
        known[lanes] = better
        taken = better | (other.log_density > found.log_density[lanes])
        found = found.update(lanes[taken], other.select(taken.nonzero()[:, 0]))
    found = refine(found, settings, evaluator)
    return Result(found.target, found.clean, tries, known)
