"""How many gradients a run will take."""

from pyro_sep.inference.annealing.evaluator import FORWARD
from pyro_sep.inference.annealing.recombination import AFTER, BEFORE, WINDOW
from pyro_sep.inference.annealing.sections import sections_of
from pyro_sep.inference.annealing.settings import REPLICA_LEVELS, SCREENED, SWAP_EVERY, Annealing
from pyro_sep.inference.posterior import AnnealedPosterior


def count_gradients(
    settings: Annealing, target: AnnealedPosterior, average: bool, searched: bool = True
) -> float:
    """About how many gradients of a frame of the target each chain takes.

    Searches are assumed to succeed; ``average`` is that of :func:`anneal`. Where chains begin from
    sources that are given, nothing is ``searched``.
    """
    count, may_be_silent = len(target.priors), target.may_be_silent
    starts, length = sections_of(target, settings.section)
    overlap = len(starts) * length / target.frame if searched else 0.0
    cross = FORWARD * count  # every source under every prior
    swap = cross if settings.swaps and count > 1 else 0
    cooling = len(settings.cooling_sigmas if searched else settings.initial_sigmas)
    draw = settings.thin + target.clean_gradients + swap
    chain = cooling + settings.warmup + settings.draws * draw
    if average:
        return overlap * settings.candidates * (settings.levels + 1) + chain
    sigmas, rounds = settings.search_sigmas, settings.rounds(count, may_be_silent)
    left = [
        min([n for level, n in settings.halving if sigma < level], default=settings.candidates)
        for sigma in sigmas
    ]
    above = [n for n, sigma in zip(left, sigmas, strict=True) if sigma >= settings.sigma_freeze]
    tried = 1 + min(SCREENED, count * (count - 1) // 2) + (count if may_be_silent else 0)
    search = sum(left) + cross * sum(above[::SWAP_EVERY]) + 1  # for the misfit
    search += sum(len(each.sigmas) * tried + cross for each in rounds)
    if settings.replicas:
        spliced = (BEFORE + WINDOW + AFTER) / WINDOW  # audio evaluated for each sample replaced
        search += settings.replicas * REPLICA_LEVELS + FORWARD * (settings.replicas + 2) * spliced
    return overlap * search + chain
