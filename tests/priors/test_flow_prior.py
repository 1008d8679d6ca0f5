"""A flow's prior as a transformed distribution: the transform, ``rsample``, and its latent."""

import copy
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from networks import HALVES, NESTED, levels, noise, random_network
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import TransformReparam
from torch import Tensor

from pyro_sep.mixing.known import Mixing, model
from pyro_sep.models.flowavenet import FloWaveNetConfig
from pyro_sep.priors.networks import FloWaveNetPrior, FlowTransform

TIME = 8
CONFIGS = {
    "mixture": NESTED,
    "spline": replace(NESTED, coupling="spline"),
    "affine": HALVES,
}


def prior_of(config: FloWaveNetConfig, name: str = "saw", seed: int = 0) -> FloWaveNetPrior:
    network = copy.deepcopy(random_network(config, seed))
    return FloWaveNetPrior(network, name=name, sample_rate=16_000, time=TIME)


@pytest.fixture(params=CONFIGS)
def prior(request: pytest.FixtureRequest) -> FloWaveNetPrior:
    return prior_of(CONFIGS[request.param])


def white(z: Tensor) -> Tensor:
    """Log density of standard normal frames."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def test_it_is_a_white_law_under_one_transform(prior: FloWaveNetPrior) -> None:
    law = prior.condition(levels(0.1, 2.0))
    assert isinstance(law, dist.TransformedDistribution)
    (transform,) = law.transforms
    assert isinstance(transform, FlowTransform)
    assert transform.network is law.network
    assert torch.equal(transform.sigma, law.sigma)
    assert (transform.bijective, transform.event_dim) == (True, 1)
    assert (law.base_dist.batch_shape, law.base_dist.event_shape) == ((2,), (TIME,))
    z = noise(3, 2, TIME)
    assert torch.allclose(law.base_dist.log_prob(z), white(z), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, TIME), (3, 1, TIME), (3, 2, TIME), (TIME,)], ids=str)
def test_the_density_is_that_of_a_transformed_distribution(
    prior: FloWaveNetPrior, shape: tuple[int, ...]
) -> None:
    x = 0.6 * noise(*shape)
    for sigma in (levels(0.1, 2.0), 0.5):
        law = prior.condition(sigma)
        expected = dist.TransformedDistribution.log_prob(law, x)
        assert law.log_prob(x).shape == expected.shape
        assert torch.allclose(law.log_prob(x), expected, rtol=1e-11)


def test_the_transform_and_its_inverse(prior: FloWaveNetPrior) -> None:
    (transform,) = prior.condition(levels(0.1, 2.0)).transforms
    z = noise(3, 2, TIME)
    x = transform(z)
    assert x.shape == z.shape
    assert torch.allclose(transform.inv(x), z, atol=1e-8)
    assert torch.allclose(transform(transform.inv(x)), x, atol=1e-8)
    assert transform.inv.inv is transform
    log_det = transform.log_abs_det_jacobian(z, x)
    assert log_det.shape == (3, 2)
    assert torch.allclose(transform.inv.log_abs_det_jacobian(x, z), -log_det, rtol=1e-12)
    # Each row goes by its own noise level.
    for index, sigma in enumerate((0.1, 2.0)):
        (alone,) = prior.condition(sigma).transforms
        assert torch.allclose(alone(z[:, index]), x[:, index], atol=1e-8)
        assert torch.allclose(
            alone.log_abs_det_jacobian(z[:, index], x[:, index]), log_det[:, index], atol=1e-8
        )


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_the_log_determinant_is_that_of_the_jacobian(prior: FloWaveNetPrior, sigma: float) -> None:
    (transform,) = prior.condition(sigma).transforms
    z, step = noise(TIME), 1e-5
    jacobian = torch.autograd.functional.jacobian(transform, z)
    nudges = step * torch.eye(TIME, dtype=torch.float64)
    differences = ((transform(z + nudges) - transform(z - nudges)) / (2 * step)).T
    # Error of order step^2, and of the inverse's rounding, near 1e-12, over the step.
    assert torch.allclose(jacobian, differences, rtol=1e-5, atol=1e-6)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(transform.log_abs_det_jacobian(z, transform(z)), expected, atol=1e-8)
    inverse = torch.autograd.functional.jacobian(transform.inv, transform(z))
    assert torch.allclose(inverse @ jacobian, torch.eye(TIME).double(), atol=1e-7)


def test_the_transform_keeps_nothing(prior: FloWaveNetPrior) -> None:
    (transform,) = prior.condition(0.5).transforms
    assert transform._cache_size == 0
    z = noise(TIME)
    x = transform(z)
    z.mul_(0.5)
    assert torch.equal(transform(z), transform(z.clone()))
    assert not torch.allclose(transform(z), x, rtol=1e-3)
    latent = transform.inv(x)
    x.mul_(0.5)
    assert torch.equal(transform.inv(x), transform.inv(x.clone()))
    assert not torch.allclose(transform.inv(x), latent, rtol=1e-3)
    # Were the latent kept, its gradient by the audio would not be found.
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(transform.inv(leaf).sum(), leaf)
    assert (gradient != 0).all()


def test_transforms_are_equal_where_network_and_noise_are(prior: FloWaveNetPrior) -> None:
    (transform,) = prior.condition(0.5).transforms
    assert transform == prior.condition(0.5).transforms[0]
    assert transform != prior.condition(0.6).transforms[0]
    assert transform != prior.condition(levels(0.5, 0.5)).transforms[0]
    assert transform != copy.deepcopy(prior).condition(0.5).transforms[0]
    assert transform != dist.transforms.ExpTransform()


def test_draws_are_transformed_white_noise(prior: FloWaveNetPrior) -> None:
    law = prior.condition(levels(0.1, 2.0))
    for draw in (law.rsample, law.sample):
        torch.manual_seed(5)
        x = draw(torch.Size((3,)))
        torch.manual_seed(5)
        z = law.base_dist.sample(torch.Size((3,)))
        assert torch.equal(x, law.transforms[0](z))


def test_draws_have_the_gradient_of_the_noise_level(prior: FloWaveNetPrior) -> None:
    """d x / d sigma at one latent: the pathwise gradient."""

    def drawn(sigma: Tensor) -> Tensor:
        torch.manual_seed(2)
        return prior.condition(sigma).rsample(torch.Size((3,)))

    sigma, step = levels(0.2, 1.5).requires_grad_(), 1e-5
    x = drawn(sigma)
    assert x.requires_grad
    weights = noise(*x.shape)
    (gradient,) = torch.autograd.grad((weights * x).sum(), sigma)
    above, below = ((weights * drawn(sigma.detach() + sign * step)) for sign in (1, -1))
    expected = ((above - below) / (2 * step)).sum((0, 2))
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert not prior.condition(sigma).sample().requires_grad


def test_the_score_of_a_draw_reaches_its_latent(prior: FloWaveNetPrior) -> None:
    """Through the inverse and back: d log p(x(z)) / dz = -z - d log|det dx/dz| / dz."""
    law = prior.condition(0.5)
    (transform,) = law.transforms
    z, step = noise(TIME).requires_grad_(), 1e-5
    (gradient,) = torch.autograd.grad(law.log_prob(transform(z)), z)
    nudges = step * torch.eye(TIME, dtype=torch.float64)
    with torch.no_grad():
        above, below = (
            white(z + sign * nudges)
            - transform.log_abs_det_jacobian(z, transform(z + sign * nudges))
            for sign in (1, -1)
        )
    assert torch.allclose(gradient, (above - below) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.fixture
def duet() -> dict[str, FloWaveNetPrior]:
    return {"saw": prior_of(NESTED), "sine": prior_of(HALVES, "sine", seed=1)}


def reparametrised(priors: dict[str, FloWaveNetPrior]):  # type: ignore[no-untyped-def]
    return poutine.reparam(model, {name: TransformReparam() for name in priors})


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("time", [TIME, TIME - 1])
def test_reparametrised_the_joint_gains_the_log_determinant(
    duet: dict[str, FloWaveNetPrior], sigma: float, time: int
) -> None:
    mixing, mixture = Mixing((0.4, 1.3), 0.1), noise(time, seed=3)
    z = dict(zip(duet, noise(2, TIME), strict=True))
    conditioned = poutine.condition(
        reparametrised(duet), {f"{name}_base": value for name, value in z.items()}
    )
    moved = poutine.trace(conditioned).get_trace(mixture, duet, mixing, sigma)
    transforms = {name: prior.condition(sigma).transforms[0] for name, prior in duet.items()}
    x = {name: transforms[name](value) for name, value in z.items()}
    for name in duet:
        # The latent is white, and its value maps back to the audio of the model.
        node = moved.nodes[f"{name}_base"]
        assert torch.allclose(node["fn"].log_prob(z[name]), white(z[name]), rtol=1e-12)
        assert torch.equal(moved.nodes[name]["value"], x[name])
    assert torch.equal(moved.nodes["_RETURN"]["value"], torch.stack(list(x.values())))
    plain = poutine.trace(poutine.condition(model, x)).get_trace(mixture, duet, mixing, sigma)
    log_det = sum(transforms[name].log_abs_det_jacobian(z[name], x[name]) for name in duet)
    expected = plain.log_prob_sum() + log_det
    assert torch.allclose(moved.log_prob_sum(), expected, rtol=1e-9, atol=1e-8)
    likelihood = moved.nodes["mixture"]["fn"].log_prob(mixture)
    by_hand = likelihood + sum(white(value) for value in z.values())
    assert torch.allclose(moved.log_prob_sum(), by_hand, rtol=1e-10)


def test_reparametrised_the_latent_is_drawn_white(duet: dict[str, FloWaveNetPrior]) -> None:
    pyro.set_rng_seed(0)
    recorded = poutine.trace(reparametrised(duet)).get_trace(noise(TIME), duet, Mixing.mean(2), 0.5)
    assert list(recorded.stochastic_nodes) == ["saw_base", "sine_base"]
    for name, prior in duet.items():
        (transform,) = prior.condition(0.5).transforms
        z = recorded.nodes[f"{name}_base"]["value"]
        assert torch.equal(recorded.nodes[name]["value"], transform(z))


def test_reparametrised_in_a_plate(prior: FloWaveNetPrior) -> None:
    sigmas = levels(0.2, 1.0)

    def frames() -> Tensor:
        with pyro.plate("source", 2), pyro.plate("frame", 3):
            return pyro.sample("x", prior.condition(sigmas))

    pyro.set_rng_seed(0)
    recorded = poutine.trace(poutine.reparam(frames, {"x": TransformReparam()})).get_trace()
    z, x = recorded.nodes["x_base"]["value"], recorded.nodes["x"]["value"]
    assert z.shape == x.shape == (3, 2, TIME)
    assert torch.allclose(prior.condition(sigmas).transforms[0](z), x, atol=1e-8)
    assert torch.allclose(recorded.log_prob_sum(), white(z).sum(), rtol=1e-12)


def test_nuts_walks_in_the_latent(duet: dict[str, FloWaveNetPrior]) -> None:
    mixing, mixture = Mixing.mean(2, 0.1), noise(TIME, seed=3)
    start = {f"{name}_base": z for name, z in zip(duet, noise(2, TIME), strict=True)}
    pyro.set_rng_seed(0)
    moved = reparametrised(duet)
    kernel = NUTS(moved, init_strategy=init_to_value(values=start), max_tree_depth=2)
    kernel.setup(2, mixture, duet, mixing, 0.5)
    assert set(kernel.initial_params) == set(start)
    conditioned = poutine.trace(poutine.condition(moved, start))
    joint = conditioned.get_trace(mixture, duet, mixing, 0.5).log_prob_sum()
    assert torch.allclose(kernel.potential_fn(start), -joint, rtol=1e-12)
    params = kernel.initial_params
    for _ in range(3):
        params = kernel.sample(params)
    assert all((params[name] != start[name]).all() for name in start)
