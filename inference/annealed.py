r"""Annealed Langevin dynamics down a ladder of noise levels.

At every level sigma the chain follows underdamped Langevin dynamics on the posterior of the noisy
sources (:class:`pyro_sep.posterior.AnnealedPosterior`) with step size :math:`h = \kappa \sigma`, in
which the curvature, at most :math:`2 / \sigma^2`, is the same at all levels. Song & Ermon 2019
(arXiv 1907.05600); for mixtures Jayaram & Thickstun 2020 (arXiv 2002.07942). Four things find the
mode:

* momentum crosses a frame's space in tens of steps;
* exchanges of what two sources explain (:mod:`~pyro_sep.inference.permutation`);
* explorers: every chain starts as several. Where the modes are being chosen the better half by mean
  log posterior goes on, where they have been the best one goes on as the chain. Chains share
  nothing, so they stay independent.
* tournaments (:mod:`~pyro_sep.inference.tournament`), with more than two sources: wrong modes are
  tones in the wrong hands. At the turn, and again where overtones stand out of the noise, every
  exchange of two sources is tried beside the sources as they are. The best by mean log posterior
  goes on, into another tournament where it is not the sources as they are. Where it is open which
  sources are present, it is drawn below the turn and tried as well; after the last tournament the
  densities have it open again.

Selection searches for modes: it leaves out the density of what it proposes. The law of the draws is
that of the chain at the last level, started in the mode that was found.

At the last level draws are kept, and with each one of the clean sources given it and the mixture,
and their mean (:meth:`pyro_sep.posterior.AnnealedPosterior.draw_clean`).

Unknown gains and noise belong to the lane (:mod:`~pyro_sep.inference.gains`). Gains stay alike down
to the turn: above it priors do not mind quiet sources, so one of a large gain would take the whole
mixture. Below it they are updated beside the sources, and traded for amplitudes. Noise follows
from the level of the second tournaments on: earlier it would take what no source explains yet.

Steps are uncorrected, :mod:`~pyro_sep.inference.underdamped`, exact on Gaussians and stable at long
steps; or Metropolis-corrected, :mod:`~pyro_sep.inference.ghmc`, exact at any, where the step size
of each level adapts to the acceptance (dual averaging) and stays as it is for the draws.

Draws leave in blocks. A run with a checkpoint writes its whole state after every stage of its plan
and, once a minute, after a block of draws; killed, it goes on from there to the very same draws.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import exp, inf, log
from typing import Any, NamedTuple

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor
from tqdm import tqdm

from pyro_sep.inference.checkpoint import Checkpoint
from pyro_sep.inference.draws import Draws, History, Sink, Statistics, by_chain
from pyro_sep.inference.gains import RESCALE_EVERY, rescale, update
from pyro_sep.inference.ghmc import corrected_step
from pyro_sep.inference.langevin import Evaluation
from pyro_sep.inference.permutation import draw_assignment
from pyro_sep.inference.settings import COMPARED_STEPS, Annealing, Tournament
from pyro_sep.inference.tournament import enter
from pyro_sep.inference.underdamped import UnderdampedState, init, underdamped_step
from pyro_sep.latent_mixing import LatentMixing
from pyro_sep.posterior import TANGENTS, AnnealedPosterior
from pyro_sep.states import check_like, check_shapes

BLOCK = 10  # draws that leave together


class Descent(NamedTuple):
    """How a run came to its draws, and what it cost."""

    warmup: Statistics  # of every step of the ladder
    gradients: int  # evaluations per mixture, those of explorers and tournaments included


def anneal(
    mixtures: Tensor,
    posterior: Callable[[Tensor], AnnealedPosterior],
    settings: Annealing,
    generator: torch.Generator,
    sink: Sink,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> Descent:
    """Separate mixtures, all chains of all mixtures at once.

    Args:
        mixtures: ``(mixture, time)``.
        posterior: of lanes, given the mixture of each ``(lane, time)``.
        settings: ladder and budget.
        generator: source of randomness, on the mixtures' device.
        sink: takes the draws.
        checkpoint: where this run was cut off, it goes on; the file stays when it is done.
        progress: show a bar with noise level and log posterior.

    Raises:
        ValueError: a checkpoint that is damaged or of another run.
        OSError: a checkpoint that cannot be written.
    """
    lanes = settings.chains * settings.explorers
    target = posterior(mixtures.repeat_interleave(lanes, 0))
    saved = None if checkpoint is None else checkpoint.load()
    total = settings.total_steps(len(target.priors), target.may_be_silent)
    plan = _plan(target, settings)
    with tqdm(total=total, unit="step", disable=not progress) as bar:
        walk = _Walk(target, settings, generator, bar)
        if checkpoint is not None and saved:
            with checkpoint.readable():
                walk.restore(saved["walk"], len(plan))
                sink.restore(saved["sink"])
            bar.initial = bar.n = walk.steps

        def save() -> None:
            if checkpoint is not None:
                checkpoint.save({"walk": walk.state(), "sink": sink.state()})

        for stage in plan[walk.stage :]:
            stage(walk)
            walk.stage += 1
            save()
        for first, draws in walk.draw(len(mixtures)):
            sink.add(draws, first)
            if walk.drawn == settings.draws or (checkpoint is not None and checkpoint.due):
                save()
    return Descent(
        walk.history.by_chain(len(mixtures), settings.chains), walk.evaluations // len(mixtures)
    )


def best_explorers(log_density: Tensor, explorers: int, count: int = 1) -> Tensor:
    """Lanes of the best explorers of every chain, by mean log density: ``(chain * count,)``.

    Args:
        log_density: ``(step, lane)``, the explorers of a chain side by side.
        explorers: per chain.
        count: how many of them to keep.
    """
    mean = log_density.mean(0).nan_to_num(nan=-torch.inf).reshape(-1, explorers)
    first = torch.arange(len(mean), device=mean.device)[:, None] * explorers
    return (first + mean.topk(count, dim=1).indices).reshape(-1)


def _plan(target: AnnealedPosterior, settings: Annealing) -> list[Callable[["_Walk"], None]]:
    """What a walk does before its draws, in order."""
    stages: list[Callable[[_Walk], None]] = []
    turn = settings.sigma_turn
    tournaments = settings.tournaments_at(len(target.priors), target.may_be_silent)
    for sigma in settings.sigmas:
        if sigma < 1.5 * turn:
            stages.append(partial(_Walk.keep_best, count=-(-settings.explorers // 2)))
        stages.append(partial(_Walk.settle, sigma=sigma, exchange=sigma >= turn))
        if sigma == turn:
            stages.append(partial(_Walk.keep_best, count=1))
        if sigma not in tournaments:
            continue
        if target.may_be_silent and sigma == max(tournaments):
            stages.append(partial(_Walk.decide, sigma=sigma))
        for i in range(tournaments[sigma].most):
            stages.append(
                partial(_Walk.hold_tournament, tournament=tournaments[sigma], first=i == 0)
            )
        if target.may_be_silent and sigma == min(tournaments):
            stages.append(_Walk.leave_open)
    return stages


class _Walk:
    """Lanes of chains on their way down the ladder."""

    kept = (
        *("stage", "steps", "evaluations", "explorers", "step_size", "drawn"),
        *("lanes", "open", "position", "shares"),
    )

    def __init__(
        self,
        target: AnnealedPosterior,
        settings: Annealing,
        generator: torch.Generator,
        bar: "tqdm[None]",
    ) -> None:
        self.target, self.settings, self.generator, self.bar = target, settings, generator, bar
        self.history = History()
        self.stage = 0  # of the plan, the next one
        self.steps = 0
        self.evaluations = 0  # of a lane's gradient
        self.explorers = settings.explorers
        self.step_size = settings.step_size  # in units of sigma
        self.position = target.start(settings.sigma_max, generator)
        self.lanes = torch.arange(len(self.position), device=self.position.device)  # that are left
        self.open = self.lanes[:0]  # which a tournament has just changed
        self.drawn = 0
        self.drawing: UnderdampedState | None = None  # after the last draw
        self.shares: Tensor | None = None  # of the sources in the mixture, before the draws

    def state(self) -> dict[str, Any]:
        """All that a walk goes on from, between two stages or two blocks of draws."""
        state = {name: getattr(self, name) for name in self.kept}
        state |= {"generator": self.generator.get_state(), "history": self.history.state()}
        state["target"] = self.target.unknown()
        if self.drawing:
            position, velocity, evaluation = self.drawing
            state["drawing"] = [position, velocity, *evaluation]
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
        device = self.position.device
        for name in self.kept:
            value = state[name]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.generator.set_state(state["generator"])
        self.history.restore([part.to(device) for part in state["history"]])
        target = self.target.take(self.lanes)
        self.target = target.know({name: part.to(device) for name, part in state["target"].items()})
        if "drawing" in state:
            position, velocity, *evaluation = (part.to(device) for part in state["drawing"])
            self.drawing = UnderdampedState(position, velocity, Evaluation._make(evaluation))

    def _check(self, state: dict[str, Any], stages: int) -> None:
        """Raise unless a state is one of this walk's."""
        lanes, part, drawn = state["lanes"], state["history"], state["drawn"]
        check_like("lanes", lanes, self.lanes[: len(lanes)])
        position = self.position[lanes]
        like = {name: getattr(self, name) for name in self.kept}
        like |= {"lanes": lanes, "open": self.lanes[: len(state["open"])], "position": position}
        like["shares"] = position if drawn else None
        check_like("walk", {name: state[name] for name in self.kept}, like)
        numbers = [state[name] for name in ("stage", "steps", "evaluations", "drawn")]
        alike = len(lanes) * self.explorers == len(self.lanes) * state["explorers"] > 0
        if min(numbers) < 0 or max(state["stage"] / stages, drawn / self.settings.draws) > 1:
            raise ValueError("it is further than this run goes")
        alike &= bool(part) or not state["steps"]
        if not alike or (drawn and state["stage"] < stages) or not 0 < state["step_size"] < inf:
            raise ValueError("its parts are of different moments")
        lane, source = position.shape[:2]
        unknown = self.target.take(lanes).unknown()
        if "present" in state["target"] and self.target.may_be_silent:
            unknown["present"] = torch.ones(lane, source, dtype=torch.bool)
        check_like("target", state["target"], unknown)
        steps = len(part[0]) if part else 0
        others = len(Statistics._fields) - 2
        shapes = [(steps, lane), (steps, lane, source), *[(steps, lane)] * others]
        check_shapes("history", part, shapes if part else [])
        whole = tuple(position.shape)
        drawing = [whole, whole, (lane,), whole, (lane, source)]
        check_shapes("drawing", state["drawing"] if drawn else [], drawing if drawn else [])

    def settle(self, sigma: float, exchange: bool) -> None:
        """All steps of one level."""
        state = self._start(self.target, self.position, sigma)
        shares = self._shares(state, sigma)
        adaptation = DualAveraging(prox_center=log(self.step_size))
        every = min(self.settings.exchange_every, self.settings.steps)
        for step in range(1, self.settings.steps + 1):
            self.target, state, acceptance_rate = self._step(self.target, state, sigma)
            self.history.add(state, acceptance_rate, sigma, self.step_size * sigma)
            if self.settings.corrected:
                adaptation.step(self.settings.target_acceptance - float(acceptance_rate.mean()))
                self.step_size = exp(adaptation.get_state()[0])
            if exchange and every and step % every == 0:
                state = self._exchange(state, sigma)
            elif not exchange and step % RESCALE_EVERY == 0:
                state = self._rescale(state, shares, sigma)
        if self.settings.corrected:
            self.step_size = exp(adaptation.get_state()[1])
        self.position = state.position

    def keep_best(self, count: int) -> None:
        """Go on with the explorers of every chain that were best over the last level."""
        if count >= self.explorers:
            return
        last = torch.stack([step.lp for step in self.history.steps[-self.settings.steps :]])
        best = best_explorers(last, self.explorers, count)
        self.explorers = count
        self.target, self.position = self.target.take(best), self.position[best]
        self.lanes = self.lanes[best]
        self.history.take(best)

    def decide(self, sigma: float) -> None:
        """Draw which sources are present."""
        self.target = self.target.decide(self.position, sigma, self.generator)

    def leave_open(self) -> None:
        """Leave it to the densities again which sources are present."""
        self.target = self.target.know(self.target.mixing.unknown())

    def hold_tournament(self, tournament: Tournament, first: bool) -> None:
        """Try all candidates, and go on with the best.

        The first at a level is held for all lanes, others for those that the last one changed.
        """
        sigma = tournament.sigmas[-1]
        if first:
            self.open = torch.arange(len(self.position), device=self.position.device)
        if not len(self.open):
            self.steps += tournament.total_steps
            self.bar.update(tournament.total_steps)
            return
        entrants = self.target.take(self.open), self.position[self.open]
        target, position, changed = enter(*entrants, tournament, self.generator)
        for level in tournament.sigmas:
            target, position, _ = self._run(target, position, level, tournament.steps)
        target, position, log_density = self._run(target, position, sigma, COMPARED_STEPS)
        best = best_explorers(log_density, len(position) // len(self.open))
        self.target = self.target.put(self.open, target.take(best))
        self.position = self.position.index_copy(0, self.open, position[best])
        self.open = self.open[changed[best]]

    def draw(self, mixtures: int) -> Iterator[tuple[int, Draws]]:
        """Blocks of draws at the last level, and the number of the first draw of each."""
        sigma, total, thin = self.settings.sigma_min, self.settings.draws, self.settings.thin
        state = self.drawing or self._start(self.target, self.position, sigma)
        if self.shares is None:
            self.shares = self._shares(state, sigma)
        while self.drawn < total:
            first, kept, clean, means, noisy, mixing = self.drawn, History(), [], [], [], []
            for step in range(1, min(BLOCK, total - first) * thin + 1):
                self.target, state, acceptance_rate = self._step(self.target, state, sigma)
                if step % RESCALE_EVERY == 0:
                    state = self._rescale(state, self.shares, sigma)
                if step % thin == 0:
                    kept.add(state, acceptance_rate, sigma, self.step_size * sigma)
                    drawn, mean = self.target.draw_clean(
                        state.position, state.evaluation, sigma, self.generator
                    )
                    self.evaluations += TANGENTS * len(state.position)
                    clean.append(drawn)
                    means.append(mean)
                    noisy.append(state.position)
                    mixing.append(self.target.mixing.unknown())
            self.drawing, self.drawn = state, first + len(clean)
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

    def _run(
        self, target: AnnealedPosterior, position: Tensor, sigma: float, steps: int
    ) -> tuple[AnnealedPosterior, Tensor, Tensor]:
        """Some steps at one level: the position, and the log density ``(step, lane)``."""
        state, log_density = self._start(target, position, sigma), []
        for _ in range(steps):
            target, state, _ = self._step(target, state, sigma)
            log_density.append(state.evaluation.log_density)
        return target, state.position, torch.stack(log_density)

    def _start(self, target: AnnealedPosterior, position: Tensor, sigma: float) -> UnderdampedState:
        return init(position, self._evaluate(target, sigma), self.generator, target.project)

    def _evaluate(self, target: AnnealedPosterior, sigma: float) -> Callable[[Tensor], Evaluation]:
        def evaluate(position: Tensor) -> Evaluation:
            self.evaluations += len(position)
            return target.evaluate(position, sigma)

        return evaluate

    def _step(
        self, target: AnnealedPosterior, state: UnderdampedState, sigma: float
    ) -> tuple[AnnealedPosterior, UnderdampedState, Tensor]:
        """One step, then of unknown gains and noise, and its probability ``(lane,)``."""
        self.bar.set_postfix(sigma=f"{sigma:.3f}", refresh=False)
        self.bar.update()
        self.steps += 1
        evaluate = self._evaluate(target, sigma)
        how = (self.step_size * sigma, self.settings.persistence, self.generator, target.project)
        if self.settings.corrected:
            state, acceptance_rate = corrected_step(state, evaluate, *how)
        else:
            state = underdamped_step(state, evaluate, *how)
            acceptance_rate = torch.ones_like(state.evaluation.log_density)
        if isinstance(target.mixing, LatentMixing) and sigma < self.settings.sigma_turn:
            mixing = update(
                target.mixing,
                target.mixture,
                state.position,
                sigma,
                self.generator,
                noise=sigma <= self.settings.sigma_refine,
            )
            target, evaluation = target.remix(mixing, state.position, state.evaluation, sigma)
            state = state._replace(evaluation=evaluation)
        return target, state, acceptance_rate

    def _exchange(self, state: UnderdampedState, sigma: float) -> UnderdampedState:
        cross = self.target.cross_log_prior(state.position, sigma)
        assignment = draw_assignment(cross, self.generator)
        self.target, position = self.target.reassign(state.position, assignment)
        return state._replace(
            position=position, evaluation=self._evaluate(self.target, sigma)(position)
        )

    def _shares(self, state: UnderdampedState, sigma: float) -> Tensor:
        """What the sources are in the mixture, as it seems now."""
        clean = self.target.denoise(state.position, state.evaluation, sigma)
        return self.target.mixing.weights(clean) * clean

    def _rescale(self, state: UnderdampedState, shares: Tensor, sigma: float) -> UnderdampedState:
        """Trade gains for amplitudes, where gains are unknown."""
        mixing = self.target.mixing
        if not (isinstance(mixing, LatentMixing) and mixing.infer_gains):
            return state

        def evaluate(target: AnnealedPosterior, position: Tensor) -> Evaluation:
            return self._evaluate(target, sigma)(position)

        self.target, state = rescale(self.target, mixing, state, shares, evaluate, self.generator)
        return state
