"""What every step of a Markov chain does: ``(state) -> (state, info)``, whatever its state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.inference.state import (
    Evaluation,
    LangevinState,
    Params,
    PreconditionedState,
    StepInfo,
    UnderdampedState,
)
from pyro_sep.inference.steps.gains import JointState, rescale
from pyro_sep.inference.steps.ghmc import adjusted_step
from pyro_sep.inference.steps.langevin import langevin_step
from pyro_sep.inference.steps.mala import mala_step
from pyro_sep.inference.steps.preconditioned import preconditioned_step
from pyro_sep.inference.steps.underdamped import underdamped_step
from pyro_sep.mixing.latent import LatentMixing

BATCH, TIME, SIGMA = 7, 5, 0.3


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sites(params: Params) -> LangevinState:
    """Standard normal sites, a number and a vector."""
    potential = params["a"].square() / 2 + params["b"].square().sum(-1) / 2
    return LangevinState(params, potential, dict(params))


def white(position: Tensor) -> Evaluation:
    log_density = -position.square().sum(1) / 2
    return Evaluation(log_density, -position, log_density[:, None])


def broken(position: Tensor) -> Evaluation:
    return white(position)._replace(gradient=torch.full_like(position, torch.nan))


def broken_sites(params: Params) -> LangevinState:
    return sites(params)._replace(potential=torch.full((BATCH,), torch.inf).double())


def langevin() -> LangevinState:
    return sites({"a": normal(BATCH), "b": normal(BATCH, 3)})


def underdamped() -> UnderdampedState:
    position = normal(BATCH, 3)
    return UnderdampedState(position, position.flip(0), white(position))


def preconditioned() -> PreconditionedState:
    return PreconditionedState(*langevin(), {"a": normal(BATCH) ** 2, "b": normal(BATCH, 3) ** 2})


def joint() -> JointState:
    mixing = LatentMixing(1 + 0.1 * normal(BATCH, 2).tanh(), torch.full((BATCH,), 0.1).double())
    priors = [GaussianPrior("one", 0.5), GaussianPrior("two", 0.3)]
    target = AnnealedPosterior(normal(BATCH, TIME), priors, mixing)
    position = normal(BATCH, 2, TIME)
    return JointState(
        target, UnderdampedState(position, position, target.evaluate(position, SIGMA))
    )


def at_sigma(target: AnnealedPosterior, position: Tensor) -> Evaluation:
    return target.evaluate(position, SIGMA)


def broken_posterior(target: AnnealedPosterior, position: Tensor) -> Evaluation:
    evaluation = at_sigma(target, position)
    return evaluation._replace(log_density=torch.full_like(evaluation.log_density, torch.nan))


def rescale_step(state: JointState, evaluate: Any, generator: Any) -> tuple[JointState, StepInfo]:
    return rescale(state, evaluate, torch.ones_like(state.chain.position), generator)


#: A state, densities of which the second is nowhere finite, and the step.
STEPS: dict[str, tuple[Callable[[], Any], Any, Any, Callable[..., tuple[Any, StepInfo]]]] = {
    "langevin": (langevin, sites, broken_sites, lambda s, f, g: langevin_step(s, f, 0.1, 1.0, g)),
    "preconditioned": (
        preconditioned,
        sites,
        broken_sites,
        lambda s, f, g: preconditioned_step(s, f, 0.1, decay=0.9, generator=g),
    ),
    "mala": (langevin, sites, broken_sites, lambda s, f, g: mala_step(s, f, 0.1, g)),
    "underdamped": (
        underdamped,
        white,
        broken,
        lambda s, f, g: underdamped_step(s, f, 0.3, 0.9, g),
    ),
    "adjusted": (underdamped, white, broken, lambda s, f, g: adjusted_step(s, f, 0.3, 0.9, g)),
    "rescale": (joint, at_sigma, broken_posterior, rescale_step),
}
every_step = pytest.mark.parametrize(
    ("make", "evaluate", "nowhere", "step"), STEPS.values(), ids=STEPS
)


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, AnnealedPosterior):
        return [state.mixture, *state.latents().values()]
    parts = state.values() if isinstance(state, dict) else state
    return [tensor for part in parts for tensor in tensors(part)]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@every_step
def test_a_step_returns_a_state_of_the_same_kind_and_an_info(
    make: Any, evaluate: Any, nowhere: Any, step: Any
) -> None:
    state = make()
    after, info = step(state, evaluate, torch.Generator().manual_seed(0))
    assert type(after) is type(state)
    for old, new in zip(tensors(state), tensors(after), strict=True):
        assert (new.shape, new.device) == (old.shape, old.device)
        assert not new.requires_grad
    assert type(info) is StepInfo
    for part in info:
        assert part.shape == (BATCH,)
    assert not info.diverging.any()
    assert ((info.acceptance_rate > 0) & (info.acceptance_rate <= 1)).all()
    assert info.energy.isfinite().all()
    assert not same(after, state)


@every_step
def test_a_step_leaves_its_state_as_it_is(
    make: Any, evaluate: Any, nowhere: Any, step: Any
) -> None:
    state = make()
    step(state, evaluate, torch.Generator().manual_seed(0))
    assert same(state, make())
    with pytest.raises(AttributeError):
        setattr(state, state._fields[0], None)


@every_step
def test_the_generator_decides(make: Any, evaluate: Any, nowhere: Any, step: Any) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    runs = [step(make(), evaluate, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(runs[0], runs[1])
    assert not same(runs[0][0], runs[2][0])


@every_step
def test_a_step_to_where_nothing_is_finite_is_a_divergence(
    make: Any, evaluate: Any, nowhere: Any, step: Any
) -> None:
    state = make()
    after, info = step(state, nowhere, torch.Generator().manual_seed(0))
    assert info.diverging.all()
    rejects = step is not STEPS["underdamped"][3]  # whose steps are all accepted
    assert same(after[0], state[0]) == rejects
    assert (info.acceptance_rate == (0 if rejects else 1)).all()
