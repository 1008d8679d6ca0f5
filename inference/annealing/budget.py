"""How many gradients a run will take."""

from pyro_sep.inference.annealing.evaluator import FORWARD
from pyro_sep.inference.annealing.recombination import AFTER, BEFORE, WINDOW
from pyro_sep.inference.annealing.settings import REPLICA_LEVELS, SCREENED, SWAP_EVERY, Annealing
from pyro_sep.inference.posterior import TANGENTS


def count_gradients(
    settings: Annealing,
    count: int,
    may_be_silent: bool,
    average: bool,
    overlap: float = 1.0,
    clean: int = TANGENTS,
) -> float:
    """About how many gradients of a frame of ``count`` sources each chain takes.

    Searches are assumed to succeed; ``average`` is that of :func:`anneal`, and ``overlap`` the
    length of all sections together, in lengths of the frame; 0 where chains begin from sources
    that are given, and nothing is searched. ``clean`` are those of a clean draw.
    """
    cross = FORWARD * count  # every source under every prior
    swap = cross if settings.swaps and count > 1 else 0
    cooling = len(settings.cooling_sigmas if overlap else settings.initial_sigmas)
    chain = cooling + settings.warmup + settings.draws * (settings.thin + clean + swap)
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
