r"""Draws from the posterior of every mixture: a search for its modes, then a chain in each.

Every chain has its own search (:mod:`~pyro_sep.inference.annealing.search`), so chains are
independent; what is found in sections of a long frame is joined
(:mod:`~pyro_sep.inference.annealing.sections`). The search determines where the chain starts, not
the law of the draws, which is that of the chain at the last level
(:mod:`~pyro_sep.inference.annealing.chain`).

Unknown gains are equal until it is settled which source explains what, since priors hardly
distinguish quiet sources there and one of a large gain would explain the whole mixture; below that
level they are updated with the sources (:mod:`~pyro_sep.inference.steps.gains`).

A run with a checkpoint writes its whole state after every stage and, at most once a minute, after a
block of draws; if it is killed, it continues from there to the same draws bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sep.inference.annealing.budget import count_gradients
from pyro_sep.inference.annealing.chain import begin, cool, draw
from pyro_sep.inference.annealing.checkpoint import KIND, Checkpoint
from pyro_sep.inference.annealing.draws import Recorder, Statistics, history_by_chain
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.run import Run
from pyro_sep.inference.annealing.search import search
from pyro_sep.inference.annealing.sections import grow
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.progress import Progress
from pyro_sep.storage.states import readable

GROUP = 1 << 22  # audio samples of candidates that are searched together, to bound the memory


class SearchInfo(NamedTuple):
    """What the searches of a run came to."""

    tries: Tensor  # (mixture, chain), searches of the section that took most
    found: Tensor  # (mixture, chain), share of sections that are plausible under the priors
    log_prior: Tensor  # nats, (mixture, chain, section, candidate, level, source)
    length: int  # audio samples of a section


class RunInfo(NamedTuple):
    """How a run came to its draws, and what it cost."""

    warmup: Statistics  # of every step of the chains before the draws
    gradients: int  # evaluations per mixture, those of candidates included
    search: SearchInfo | None  # None where sources were given


def anneal(
    mixtures: Tensor,
    posterior: Callable[[Tensor], AnnealedPosterior],
    settings: Annealing,
    generator: torch.Generator,
    recorder: Recorder,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    average: bool = False,
    initial: Tensor | None = None,
) -> RunInfo:
    """Search for modes of the posterior, then draw from it; all chains of all mixtures at once.

    Args:
        mixtures: ``(mixture, time)``.
        posterior: of a batch of chains, given the mixture of each ``(batch, time)``.
        settings: ladder and budget.
        generator: source of randomness, on the mixtures' device.
        recorder: of the draws.
        checkpoint: where this run was killed, it continues; the file remains when it is done.
        progress: show a bar.
        average: start from the mean of a search's candidates in place of the best.
        initial: clean sources ``(mixture, source, frame)`` from which every chain of a mixture
            begins, without a search.

    Raises:
        ValueError: a checkpoint that is damaged or of another run.
        OSError: a checkpoint that cannot be written.

    >>> from pyro_sep.inference.annealing.draws import MemoryRecorder
    >>> from pyro_sep.mixing.known import Mixing
    >>> from pyro_sep.priors.io import load_priors
    >>> priors = [load_priors("toy/oracle")["square"]] * 2
    >>> least = dict.fromkeys(("tries", "candidates", "cooling", "warmup", "draws", "thin"), 1)
    >>> settings = Annealing(2.0, 1.0, 0.5, levels=6, replicas=0, **least)
    >>> recorder = MemoryRecorder()
    >>> info = anneal(
    ...     0.1 * torch.arange(256).sin()[None],
    ...     lambda batch: AnnealedPosterior(batch, priors, Mixing.mean(2)),
    ...     settings,
    ...     torch.Generator().manual_seed(0),
    ...     recorder,
    ... )
    >>> recorder.draws.sources.shape
    torch.Size([1, 1, 1, 2, 256])
    """
    target = posterior(mixtures.repeat_interleave(settings.chains, 0))
    saved = None if checkpoint is None else checkpoint.load()
    audio = len(mixtures) * len(target.priors) * target.frame
    with Progress(progress) as shown:
        given = None if initial is None else initial.repeat_interleave(settings.chains, 0)
        run = Run(target, Evaluator(settings, generator, shown), given)
        expected = count_gradients(settings, target, average, searched=initial is None)
        shown.total = settings.chains * audio * expected
        if checkpoint is not None and saved:
            with readable(checkpoint.path, KIND):
                run.restore(saved["run"])
                recorder.restore(saved["recorder"])
            shown.resume(run.evaluator.cost)

        def save() -> None:
            if checkpoint is not None:
                checkpoint.save({"run": run.state(), "recorder": recorder.state()})

        for stage in _plan(run, average)[run.stage :]:
            stage()
            run.stage += 1
            save()
        for first, draws in draw(run, len(mixtures)):
            recorder.add(draws, first)
            if run.drawn == settings.draws or (checkpoint is not None and checkpoint.due):
                save()
        shown.finish()
    shape = (len(mixtures), settings.chains)
    warmup, gradients = history_by_chain(run.history, *shape), round(run.evaluator.cost / audio)
    return RunInfo(warmup, gradients, _searched(run, shape) if run.starts else None)


def _searched(run: Run, shape: tuple[int, int]) -> SearchInfo:
    """What was searched, by mixture and chain."""
    return SearchInfo(
        torch.stack(run.tries, 1).amax(1).reshape(shape),
        torch.stack(run.plausible, 1).float().mean(1).reshape(shape),
        torch.stack(run.traced, 1).unflatten(0, shape),
        run.length,
    )


def _plan(run: Run, average: bool) -> list[Callable[[], None]]:
    """The stages before the draws, in order."""
    searches = [partial(_search_section, run, start, average) for start in run.starts]
    sigmas = run.sigmas
    levels = [
        partial(cool, run, sigma, lower)
        for sigma, lower in zip(sigmas, (*sigmas[1:], sigmas[-1]), strict=True)
    ]
    grown = partial(_grow_sections, run, average)
    return [*searches, grown, partial(begin, run), *levels]


def _search_section(run: Run, start: int, average: bool) -> None:
    """Search the section that starts at an audio sample, in groups that fit the memory."""
    padding = run.target.frame - run.target.mixture.shape[-1]
    section = run.target.section(slice(start, start + run.length - padding))
    size = len(section.priors) * run.length * run.settings.candidates
    indices = torch.arange(len(section.mixture), device=section.mixture.device)
    parts = indices.split(max(1, GROUP // size))
    groups = [search(section.select(part), run.evaluator, average) for part in parts]
    run.clean.append(torch.cat([group.clean for group in groups]))
    run.tries.append(torch.cat([group.tries for group in groups]))
    run.plausible.append(torch.cat([group.plausible for group in groups]))
    run.traced.append(torch.cat([group.traced for group in groups]))
    for part, group in zip(parts, groups, strict=True):
        run.target = run.target.update(part, group.target)


def _grow_sections(run: Run, average: bool) -> None:
    """Search the sections that failed again, each with its neighbour held fixed."""
    if len(run.starts) > 1 and not average:
        plausible = torch.stack(run.plausible, 1)
        run.clean, plausible = grow(run.target, run.clean, plausible, run.starts, run.evaluator)
        run.plausible = list(plausible.unbind(1))
