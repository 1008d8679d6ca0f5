r"""Draws from the posterior of every mixture: a search for its modes, then a chain in each.

The search (:mod:`~pyro_sep.inference.annealing.search`) of every chain is its own, so chains are
independent; what it found in sections of a long frame is put together
(:mod:`~pyro_sep.inference.annealing.sections`). It says where the chain starts, and has no part in
the law of the draws, which is that of the chain at the last level:

* it starts from the clean sources that were found and noise of a few times the last level, in which
  what a search gets wrong in a mode's details drowns, and comes down through a few levels;
* it follows underdamped Langevin dynamics on the posterior of the noisy sources
  (:class:`pyro_sep.inference.AnnealedPosterior`) with step size :math:`h = \kappa \sigma`, in which
  the curvature, at most :math:`2 / \sigma^2`, is the same at all levels. Song & Ermon 2019 (arXiv
  1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942);
* steps are not adjusted, :mod:`~pyro_sep.inference.steps.underdamped`, exact on Gaussians and
  stable at long steps; or by a Metropolis test, :mod:`~pyro_sep.inference.steps.ghmc`, exact at
  any, where the step size adapts to the acceptance (dual averaging) on the way and stays as it is
  for the draws.

At the last level draws are kept, and with each one of the clean sources given it and the mixture,
and their mean (:meth:`pyro_sep.inference.AnnealedPosterior.draw_clean`).

Unknown gains and noise belong to the lane (:mod:`~pyro_sep.inference.steps.gains`). Gains stay
alike while it is open who explains what: priors do not mind quiet sources there, so one of a large
gain would take the whole mixture. Then they are updated beside the sources, and in the chain traded
for amplitudes. Noise follows where overtones tell: earlier it would take what no source explains
yet.

Draws leave in blocks. A run with a checkpoint writes its whole state after every stage of its plan
and, once a minute, after a block of draws; killed, it goes on from there to the very same draws.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import exp, inf, log
from typing import Any, NamedTuple, cast

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyro_sep.inference.annealing.checkpoint import Checkpoint
from pyro_sep.inference.annealing.draws import Draws, History, Sink, Statistics, by_chain
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.search import search
from pyro_sep.inference.annealing.sections import grow, join, split
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.kernels.sgld import Evaluation
from pyro_sep.inference.posterior import TANGENTS, AnnealedPosterior
from pyro_sep.inference.steps.gains import RESCALE_EVERY, rescale
from pyro_sep.inference.steps.ghmc import adjusted_step
from pyro_sep.inference.steps.underdamped import UnderdampedState, underdamped_step
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.mixing.latent import LatentMixing
from pyro_sep.progress import Progress
from pyro_sep.storage.states import check_like, check_shapes

BLOCK = 10  # draws that leave together
GROUP = 1 << 22  # audio samples of candidates that are searched together, to bound the memory


class Descent(NamedTuple):
    """How a run came to its draws, and what it cost."""

    warmup: Statistics  # of every step of the chains before the draws
    gradients: int  # evaluations per mixture, those of candidates included
    tries: Tensor  # (mixture, chain), searches of the section that took most
    found: Tensor  # (mixture, chain), share of sections in which the priors know what was found


def anneal(
    mixtures: Tensor,
    posterior: Callable[[Tensor], AnnealedPosterior],
    settings: Annealing,
    generator: torch.Generator,
    sink: Sink,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    average: bool = False,
) -> Descent:
    """Separate mixtures, all chains of all mixtures at once.

    Args:
        mixtures: ``(mixture, time)``.
        posterior: of lanes, given the mixture of each ``(lane, time)``.
        settings: ladder and budget.
        generator: source of randomness, on the mixtures' device.
        sink: takes the draws.
        checkpoint: where this run was cut off, it goes on; the file stays when it is done.
        progress: show how far it is.
        average: start from the mean of a search's candidates in place of the best.

    Raises:
        ValueError: a checkpoint that is damaged or of another run.
        OSError: a checkpoint that cannot be written.
    """
    target = posterior(mixtures.repeat_interleave(settings.chains, 0))
    saved = None if checkpoint is None else checkpoint.load()
    with Progress(progress) as shown:
        walk = _Walk(target, settings, Evaluator(generator, shown), average)
        kind = (len(target.priors), target.may_be_silent, average)
        overlap = len(walk.starts) * walk.length / target.frame
        shown.total = len(target.mixture) * len(target.priors) * target.frame
        shown.total *= settings.gradients(*kind, overlap)
        plan = walk.plan()
        if checkpoint is not None and saved:
            with checkpoint.readable():
                walk.restore(saved["walk"], len(plan))
                sink.restore(saved["sink"])
            shown.resume(walk.evaluator.cost)

        def save() -> None:
            if checkpoint is not None:
                checkpoint.save({"walk": walk.state(), "sink": sink.state()})

        for stage in plan[walk.stage :]:
            stage()
            walk.stage += 1
            save()
        for first, draws in walk.draw(len(mixtures)):
            sink.add(draws, first)
            if walk.drawn == settings.draws or (checkpoint is not None and checkpoint.due):
                save()
        shown.finish()
    shape = (len(mixtures), settings.chains)
    whole = len(mixtures) * len(target.priors) * target.frame
    return Descent(
        walk.history.by_chain(*shape),
        round(walk.evaluator.cost / whole),
        torch.stack(walk.tries, 1).amax(1).reshape(shape),
        torch.stack(walk.found, 1).float().mean(1).reshape(shape),
    )


class _Walk:
    """Lanes of chains, their search and their way to the draws."""

    kept = ("stage", "step_size", "drawn", "contributions")

    def __init__(
        self, target: AnnealedPosterior, settings: Annealing, evaluator: Evaluator, average: bool
    ) -> None:
        self.target, self.settings, self.evaluator = target, settings, evaluator
        self.average = average
        self.history = History()
        self.stage = 0  # of the plan, the next one
        self.step_size = settings.step_size  # in units of sigma
        self.adaptation = DualAveraging(prox_center=log(settings.step_size))
        # Gains, noise and presence are those of the whole frame.
        whole = target.may_be_silent or not isinstance(target.mixing, Mixing)
        section = target.frame if whole else settings.section
        self.starts, self.length = split(target.frame, section, frame_time(target.priors, 1))
        self.clean: list[Tensor] = []  # of every section, (lane, source, length)
        self.tries: list[Tensor] = []
        self.found: list[Tensor] = []
        self.chain: UnderdampedState | None = None  # where the chains are
        self.drawn = 0
        self.contributions: Tensor | None = None  # of the sources in the mixture, before the draws

    def plan(self) -> list[Callable[[], None]]:
        """What is done before the draws, in order."""
        sections = [partial(self.search, start) for start in self.starts]
        sigmas = self.settings.cooling_sigmas
        levels = [
            partial(self.cool, sigma, lower)
            for sigma, lower in zip(sigmas, (*sigmas[1:], sigmas[-1]), strict=True)
        ]
        return [*sections, self.grow, self.begin, *levels]

    def state(self) -> dict[str, Any]:
        """All that a walk goes on from, between two stages or two blocks of draws."""
        state = {name: getattr(self, name) for name in self.kept}
        state |= {"sections": [self.clean, self.tries, self.found], "cost": self.evaluator.cost}
        state |= {"generator": self.evaluator.generator.get_state()}
        state |= {"history": self.history.state(), "target": self.target.latents()}
        state["adaptation"] = {k: float(v) for k, v in vars(self.adaptation).items()}
        if self.chain:
            position, velocity, evaluation = self.chain
            state["chain"] = [position, velocity, *evaluation]
        return state

    def restore(self, state: dict[str, Any], stages: int) -> None:
        """Go on from what :meth:`state` gave.

        Args:
            state: on the CPU.
            stages: of the plan.

        Raises:
            ValueError: a part that does not fit this walk, or is of another moment than the others.
        """
        self._check(state, stages)
        device = self.target.mixture.device
        for name in self.kept:
            value = state[name]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.clean, self.tries, self.found = (
            [part.to(device) for part in parts] for parts in state["sections"]
        )
        self.evaluator.cost = state["cost"]
        self.evaluator.generator.set_state(state["generator"])
        self.history.restore([part.to(device) for part in state["history"]])
        self.target = self.target.with_latents(
            {name: part.to(device) for name, part in state["target"].items()}
        )
        vars(self.adaptation).update(state["adaptation"])
        if "chain" in state:
            position, velocity, *evaluation = (part.to(device) for part in state["chain"])
            self.chain = UnderdampedState(position, velocity, Evaluation._make(evaluation))

    def _check(self, state: dict[str, Any], stages: int) -> None:
        """Raise unless a state is one of this walk's."""
        stage, drawn, cost = state["stage"], state["drawn"], state["cost"]
        check_like("walk", [stage, drawn, state["step_size"], cost], [0, 0, 1.0, 1.0])
        if min(stage, drawn, cost) < 0 or max(stage / stages, drawn / self.settings.draws) > 1:
            raise ValueError("it is further than this run goes")
        sections = len(self.starts)
        searched = min(stage, sections)
        begun, cooled = stage > sections + 1, max(0, stage - sections - 2)
        if (drawn and stage < stages) or not 0 < state["step_size"] < inf:
            raise ValueError("its parts are of different moments")
        lane, source = len(self.target.mixture), len(self.target.priors)
        whole = (lane, source, self.target.frame)
        clean, tries, found = state["sections"]
        section = (lane, source, self.length)
        check_shapes("sections", clean, [] if begun else [section] * searched)
        flags = [part.float() for part in (*tries, *found)]
        check_shapes("sections", flags, [(lane,)] * 2 * searched)
        contributions = [] if state["contributions"] is None else [state["contributions"]]
        check_shapes("contributions", contributions, [whole] if drawn else [])
        adaptation = dict.fromkeys(state["adaptation"], 0.0)
        check_like("adaptation", state["adaptation"], adaptation)
        if not vars(self.adaptation).keys() <= adaptation.keys():
            raise ValueError("its adaptation lacks a number")
        check_like("target", state["target"], self.target.latents())
        steps = cooled - 1 + self.settings.warmup if stage == stages else cooled
        others = len(Statistics._fields) - 2
        shapes = [(steps, lane), (steps, lane, source), *[(steps, lane)] * others]
        check_shapes("history", state["history"], shapes if steps else [])
        chain = [whole, whole, (lane,), whole, (lane, source)]
        check_shapes("chain", state.get("chain", []), chain if begun else [])

    def search(self, start: int) -> None:
        """What is found in one section of every lane."""
        unheard = self.target.frame - self.target.mixture.shape[-1]
        rows = self.target.section(slice(start, start + self.length - unheard))
        size = len(rows.priors) * self.length * self.settings.candidates
        lanes = torch.arange(len(rows.mixture), device=rows.mixture.device)
        groups = [
            search(rows.select(part), self.settings, self.evaluator, self.average)
            for part in lanes.split(max(1, GROUP // size))
        ]
        clean, tries, found = (
            torch.cat([getattr(group, name) for group in groups])
            for name in ("clean", "tries", "known")
        )
        self.clean.append(clean)
        self.tries.append(tries)
        self.found.append(found)
        unknown = [group.target.latents() for group in groups]
        self.target = self.target.with_latents(
            {name: torch.cat([part[name] for part in unknown]) for name in unknown[0]}
        )

    def grow(self) -> None:
        """Sections whose search failed, from their neighbours."""
        if len(self.starts) > 1 and not self.average:
            known = torch.stack(self.found, 1)
            self.clean, known = grow(
                self.target, self.clean, known, self.starts, self.settings, self.evaluator
            )
            self.found = list(known.unbind(1))

    def begin(self) -> None:
        """Put the sections together, and add noise."""
        clean, sigma = join(self.clean, self.starts), self.settings.cooling_sigmas[0]
        position = self.target.tie(clean) + sigma * self.evaluator.noise(self.target, clean)
        velocity = self.evaluator.noise(self.target, clean)
        evaluation = self.evaluator.evaluate(self.target, position, sigma)
        self.chain, self.clean = UnderdampedState(position, velocity, evaluation), []

    def cool(self, sigma: float, lower: float) -> None:
        """A step at one level, and on to a lower one; at the last level all before the draws."""
        state = cast(UnderdampedState, self.chain)
        contributions = self._shares(state, sigma)
        for step in range(1, 1 + (self.settings.warmup if sigma == lower else 1)):
            state, acceptance_rate = self._step(state, sigma)
            self.history.add(state, acceptance_rate, sigma, self.step_size * sigma)
            if self.settings.adjusted:
                self.adaptation.step(
                    self.settings.target_acceptance - float(acceptance_rate.mean())
                )
                self.step_size = exp(self.adaptation.get_state()[0])
            if step % RESCALE_EVERY == 0:
                state = self._rescale(state, contributions, sigma)
        if sigma == lower and self.settings.adjusted:
            self.step_size = exp(self.adaptation.get_state()[1])
        self.chain = state if sigma == lower else self._lower(state, sigma, lower)

    def _lower(self, state: UnderdampedState, sigma: float, lower: float) -> UnderdampedState:
        """The state with less of its noise.

        Noise takes the directions to clean sources with it, so gradients grow as levels fall; only
        a Metropolis test needs the density that is true there.
        """
        clean = self.target.denoise(state.position, state.evaluation, sigma)
        position = clean + lower / sigma * (state.position - clean)
        evaluation = state.evaluation._replace(gradient=sigma / lower * state.evaluation.gradient)
        if self.settings.adjusted:
            evaluation = self.evaluator.evaluate(self.target, position, lower)
        return UnderdampedState(position, state.velocity, evaluation)

    def draw(self, mixtures: int) -> Iterator[tuple[int, Draws]]:
        """Blocks of draws at the last level, and the number of the first draw of each."""
        sigma, total, thin = self.settings.sigma_min, self.settings.draws, self.settings.thin
        state = cast(UnderdampedState, self.chain)
        if self.contributions is None:
            self.contributions = self._shares(state, sigma)
        while self.drawn < total:
            first, kept, clean, means, noisy, mixing = self.drawn, History(), [], [], [], []
            for step in range(1, min(BLOCK, total - first) * thin + 1):
                state, acceptance_rate = self._step(state, sigma)
                if step % RESCALE_EVERY == 0:
                    state = self._rescale(state, self.contributions, sigma)
                if step % thin == 0:
                    kept.add(state, acceptance_rate, sigma, self.step_size * sigma)
                    drawn, mean = self.target.draw_clean(
                        state.position, state.evaluation, sigma, self.evaluator.generator
                    )
                    self.evaluator.count(state.position, TANGENTS)
                    clean.append(drawn)
                    means.append(mean)
                    noisy.append(state.position)
                    mixing.append(self.target.mixing.latents())
            self.chain, self.drawn = state, first + len(clean)
            shape = (mixtures, self.settings.chains)
            unknown = {n: by_chain([part[n] for part in mixing], *shape) for n in mixing[0]}
            yield (
                first,
                Draws(
                    by_chain(clean, *shape),
                    by_chain(means, *shape),
                    by_chain(noisy, *shape),
                    kept.by_chain(*shape),
                    unknown,
                ),
            )

    def _step(self, state: UnderdampedState, sigma: float) -> tuple[UnderdampedState, Tensor]:
        """One step, then of unknown gains and noise, and its probability ``(lane,)``."""
        target = self.target

        def evaluate(position: Tensor) -> Evaluation:
            return self.evaluator.evaluate(target, position, sigma)

        how = (self.step_size * sigma, self.settings.persistence, self.evaluator.generator)
        if self.settings.adjusted:
            state, acceptance_rate = adjusted_step(state, evaluate, *how, target.project)
        else:
            state = underdamped_step(state, evaluate, *how, target.project)
            acceptance_rate = torch.ones_like(state.evaluation.log_density)
        noise = sigma <= self.settings.sigma_detail
        self.target, evaluation = self.evaluator.follow(
            target, state.position, state.evaluation, sigma, noise
        )
        return state._replace(evaluation=evaluation), acceptance_rate

    def _shares(self, state: UnderdampedState, sigma: float) -> Tensor:
        """What the sources are in the mixture, as it seems now."""
        clean = self.target.denoise(state.position, state.evaluation, sigma)
        return self.target.mixing.weights(clean) * clean

    def _rescale(
        self, state: UnderdampedState, contributions: Tensor, sigma: float
    ) -> UnderdampedState:
        """Trade gains for amplitudes, where gains are unknown."""
        mixing = self.target.mixing
        if not (isinstance(mixing, LatentMixing) and mixing.infer_gains):
            return state

        def evaluate(target: AnnealedPosterior, position: Tensor) -> Evaluation:
            return self.evaluator.evaluate(target, position, sigma)

        self.target, state = rescale(
            self.target, mixing, state, contributions, evaluate, self.evaluator.generator
        )
        return state
