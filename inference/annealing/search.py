r"""Search for the modes of a posterior: denoise, add fresh noise, keep the best.

One evaluation a level. From noisy sources x at level sigma a step goes to the clean ones expected
there and adds noise of the next level, none of the old:

.. math:: x \leftarrow D_\sigma(x) + \sigma' n, \qquad D_\sigma(x) = x + \sigma^2 \nabla
          \log p_\sigma(x \mid m)

so early decisions remain open while the noise is high: decoupled annealing (Zhang et al. 2024,
DAPS, arXiv 2407.01521) with a single denoising step. It finds modes and does not sample: along
directions that the posterior leaves open its variance is half of what it should be.

Several candidates of each chain are denoised side by side, and the best by log density continue
(successive halving, Jamieson & Talwalkar 2016, arXiv 1502.07943). Then a swap search
(:mod:`~pyro_sep.inference.annealing.swaps`) corrects tones that were assigned to the wrong source,
and :mod:`~pyro_sep.inference.annealing.recombination` what is wrong at single moments. A right mode
surprises its priors no more than their own draws do (:meth:`pyro_sep.priors.NetworkPrior.misfit`);
where what was found does, the search has failed, which shows without the truth, and is repeated.

Where a frame holds more decisions than any candidate takes right, as music does, log densities do
not tell the better candidate; the mean of all is nearer to the truth than any (``average``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import AVERAGED, Found, descend, repeat
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.recombination import refine
from pyro_sep.inference.annealing.swaps import swap_search
from pyro_sep.inference.posterior import AnnealedPosterior, at_draws
from pyro_sep.priors.base import misfit

MISFIT = 1.1  # of right modes, at most, where a frame is long; wrong ones have 1.3 and more
MISFIT_ERRORS = 3.0  # standard errors of a frame's misfit, in addition


class Result(NamedTuple):
    """What a search found, and how, for every chain of the batch."""

    target: AnnealedPosterior
    clean: Tensor  # (batch, source, frame)
    tries: Tensor  # (batch,), number of searches
    plausible: Tensor  # (batch,), see is_plausible
    traced: (
        Tensor  # (batch, candidate, level, source), see descend; NaN below a dropped one's level
    )


def candidates(
    target: AnnealedPosterior,
    evaluator: Evaluator,
    average: bool,
    given: Tensor | None = None,
    traced: Tensor | None = None,
) -> Found:
    """The best candidate of every chain, or the mean of all.

    See ``given`` and ``traced`` in :func:`descend`; the latter is ``(batch, candidate, level,
    source)`` here.
    """
    settings = evaluator.settings
    group, sigmas = settings.candidates, settings.search_sigmas
    repeated = repeat(target, group)
    start = repeated.start(settings.sigma_max, evaluator.generator)
    if given is not None:
        given = given.repeat_interleave(group, 0)
        start = repeated.tie(start + given.nan_to_num(nan=0.0))
    traced = None if traced is None else traced.flatten(0, 1)  # a view: what is filled is given
    if not average:
        return descend(
            repeated,
            start,
            sigmas,
            evaluator,
            averaged=AVERAGED,
            group=group,
            halving=settings.halving,
            swap=given is None,
            given=given,
            traced=traced,
        )
    found = descend(repeated, start, sigmas, evaluator, traced=traced)
    first = torch.arange(len(target.mixture), device=start.device) * group
    means = (p.reshape(-1, group, *p.shape[1:]).mean(1) for p in (found.clean, found.log_density))
    return Found(found.target.select(first), *means)


def is_plausible(found: Found, evaluator: Evaluator) -> Tensor:
    """Whether what was found surprises its priors no more than their own draws do, ``(batch,)``.

    True where the priors cannot tell.
    """
    sigma = evaluator.settings.sigma_min
    noisy = found.clean + sigma * evaluator.noise(found.target, found.clean)
    evaluator.count(noisy)
    surprise = at_draws(misfit, found.target.priors, noisy, sigma)
    bound = MISFIT + MISFIT_ERRORS * (2 / found.target.mixture.shape[-1]) ** 0.5
    return (surprise.nan_to_num(nan=0.0) <= bound).all(-1)


def attempt(
    target: AnnealedPosterior, evaluator: Evaluator, average: bool, traced: Tensor | None = None
) -> Found:
    """What one search finds; see ``traced`` in :func:`candidates`."""
    found = candidates(target, evaluator, average, None, traced)
    if average:
        return found
    rounds = evaluator.settings.rounds(len(target.priors), target.may_be_silent)
    for i, held in enumerate(rounds):
        if target.may_be_silent and i == 0:
            sigma = held.sigmas[-1]
            noisy = found.clean + sigma * evaluator.noise(found.target, found.clean)
            decided = found.target.decide(noisy, sigma, evaluator.generator)
            found = found._replace(target=decided)
        found = swap_search(found, held, evaluator)
    # Presence is undecided again, and densities are those of either.
    return found._replace(target=found.target.with_latents(found.target.mixing.latents()))


def search(target: AnnealedPosterior, evaluator: Evaluator, average: bool) -> Result:
    """Clean sources of every chain, those of its best search, and whether they are plausible.

    A search ends with its best candidate, or with the mean of all where ``average``.
    """
    settings = evaluator.settings
    shape = (settings.candidates, len(settings.search_sigmas), len(target.priors))
    traced = target.mixture.new_full((len(target.mixture), *shape), torch.nan)
    found = attempt(target, evaluator, average, traced)
    tries = torch.ones_like(found.log_density, dtype=torch.long)
    if average:
        return Result(found.target, found.clean, tries, tries > 0, traced)
    plausible = is_plausible(found, evaluator)
    for _ in range(1, settings.tries):
        failed = (~plausible).nonzero()[:, 0]
        if not len(failed):
            break
        tried = torch.full_like(traced[failed], torch.nan)
        other = attempt(target.select(failed), evaluator, average, tried)
        tries[failed] += 1
        better = is_plausible(other, evaluator)
        plausible[failed] = better
        taken = better | (other.log_density > found.log_density[failed])
        found = found.update(failed[taken], other.select(taken.nonzero()[:, 0]))
        traced[failed[taken]] = tried[taken]
    found = refine(found, evaluator)
    return Result(found.target, found.clean, tries, plausible, traced)
