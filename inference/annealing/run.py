"""The state of a run between two of its stages, which a checkpoint holds and restores."""

from math import inf, log
from typing import Any

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyro_sep.inference.annealing.draws import Statistics
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.sections import sections_of
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import Evaluation, UnderdampedState
from pyro_sep.storage.states import check_like, check_shapes


class Run:
    """What a run has reached; the target is the posterior of all chains of all mixtures.

    Clean sources ``(batch, source, frame)`` that are given take the place of a search.
    """

    plain = ("stage", "step_size", "drawn", "contributions", "assignment")  # as they are

    def __init__(
        self, target: AnnealedPosterior, evaluator: Evaluator, initial: Tensor | None = None
    ) -> None:
        self.target, self.evaluator, self.initial = target, evaluator, initial
        self.settings = settings = evaluator.settings
        self.starts, self.length = sections_of(target, settings.section)
        if initial is not None:
            self.starts, self.length = [], target.frame  # nothing is searched
        self.sigmas = settings.cooling_sigmas if initial is None else settings.initial_sigmas
        self.stages = len(self.starts) + 2 + len(self.sigmas)  # before the draws
        self.stage = 0  # the next one
        self.clean: list[Tensor] = []  # of every section searched, (batch, source, length)
        self.tries: list[Tensor] = []  # (batch,)
        self.plausible: list[Tensor] = []  # (batch,)
        self.traced: list[Tensor] = []  # (batch, candidate, level, source), see Result
        self.history: list[Statistics] = []  # of every step before the draws
        self.step_size = settings.step_size  # in units of sigma
        self.adaptation = DualAveraging(prox_center=log(settings.step_size))
        self.chain: UnderdampedState | None = None
        self.drawn = 0
        self.contributions: Tensor | None = None  # of the sources to the mixture, before the draws
        self.assignment: Tensor | None = None  # (batch, source), see Draws

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs: tensors, numbers, lists and dicts of them."""
        state = {name: getattr(self, name) for name in self.plain}
        state |= {"sections": [self.clean, self.tries, self.plausible], "traced": self.traced}
        state |= {"cost": self.evaluator.cost, "generator": self.evaluator.generator.get_state()}
        history = [torch.stack(parts) for parts in zip(*self.history, strict=True)]
        state |= {"history": history, "target": self.target.latents()}
        state["adaptation"] = {k: float(v) for k, v in vars(self.adaptation).items()}
        if self.chain:
            state["chain"] = [*self.chain[:2], *self.chain.evaluation]
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned, on the CPU.

        Raises:
            ValueError: a part that does not fit this run, or is of another moment than the others.
        """
        self._check(state)
        device = self.target.mixture.device

        def moved(parts: list[Tensor]) -> list[Tensor]:
            return [part.to(device) for part in parts]

        for name in self.plain:
            value = state[name]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.clean, self.tries, self.plausible = map(moved, state["sections"])
        self.traced = moved(state["traced"])
        self.evaluator.cost = state["cost"]
        self.evaluator.generator.set_state(state["generator"])
        steps = zip(*moved(state["history"]), strict=True)
        self.history = [Statistics._make(step) for step in steps]
        self.target = self.target.with_latents(
            {name: part.to(device) for name, part in state["target"].items()}
        )
        vars(self.adaptation).update(state["adaptation"])
        if "chain" in state:
            position, velocity, *evaluation = moved(state["chain"])
            self.chain = UnderdampedState(position, velocity, Evaluation._make(evaluation))

    @property
    def _traced_shape(self) -> tuple[int, ...]:
        settings, source = self.settings, len(self.target.priors)
        levels = len(settings.search_sigmas)
        return len(self.target.mixture), settings.candidates, levels, source

    def _check(self, state: dict[str, Any]) -> None:
        """Raise unless the parts of a state fit this run and each other."""
        stage, drawn, cost = state["stage"], state["drawn"], state["cost"]
        check_like("run", [stage, drawn, state["step_size"], cost], [0, 0, 1.0, 1.0])
        if min(stage, drawn, cost) < 0 or stage > self.stages or drawn > self.settings.draws:
            raise ValueError("it is further than this run goes")
        if (drawn and stage < self.stages) or not 0 < state["step_size"] < inf:
            raise ValueError("its parts are of different moments")
        searched = min(stage, len(self.starts))
        cooled = max(0, stage - len(self.starts) - 2)
        begun = stage > len(self.starts) + 1
        batch, source = len(self.target.mixture), len(self.target.priors)
        whole, section = (batch, source, self.target.frame), (batch, source, self.length)
        clean, tries, plausible = state["sections"]
        check_shapes("sections", clean, [] if begun else [section] * searched)
        flags = [part.float() for part in (*tries, *plausible)]
        check_shapes("sections", flags, [(batch,)] * 2 * searched)
        check_shapes("traced", state["traced"], [self._traced_shape] * searched)
        contributions = [] if state["contributions"] is None else [state["contributions"]]
        check_shapes("contributions", contributions, [whole] if drawn else [])
        orders = [] if state["assignment"] is None else [state["assignment"].float()]
        check_shapes("assignment", orders, [(batch, source)] if drawn else [])
        check_like("adaptation", state["adaptation"], dict.fromkeys(state["adaptation"], 0.0))
        if not vars(self.adaptation).keys() <= state["adaptation"].keys():
            raise ValueError("its adaptation lacks a number")
        check_like("target", state["target"], self.target.latents())
        steps = cooled - 1 + self.settings.warmup if stage == self.stages else cooled
        others = len(Statistics._fields) - 2
        shapes = [(steps, batch), (steps, batch, source), *[(steps, batch)] * others]
        check_shapes("history", state["history"], shapes if steps else [])
        chain = [whole, whole, (batch,), whole, (batch, source)]
        check_shapes("chain", state.get("chain", []), chain if begun else [])
