import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from networks import noise
from nflows.transforms.coupling import CouplingTransform
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_sep.models.couplings import (
    COUPLINGS,
    SPLINE_BOUND,
    Kind,
    MixtureCoupling,
    _LogNdtri,
    coupling,
)

KINDS: tuple[Kind, ...] = get_args(Kind)
COMPONENTS = 3
MASK = [0, 1, 1, 0, 1]  # 2 channels stay, 3 are mapped
BATCH, TOKENS = 2, 4
Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Stub(nn.Module):
    """Parameters from the channels that stay, at three tokens, and from the context."""

    hidden_channels = 1

    def __init__(self, in_channels: int, out_channels: int, std: float = 0.4) -> None:
        super().__init__()
        self.read = nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1))
        self.tell = nn.Linear(1, out_channels)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        return self.read(inputs.tanh()) + self.tell(context[:, None])[..., None, None]


class Constant(nn.Module):
    """The same parameters ``(parameter,)`` for every sample."""

    hidden_channels = 1

    def __init__(self, parameters: Tensor) -> None:
        super().__init__()
        self.register_buffer("parameters_of_all", parameters)
        self.parameters_of_all: Tensor

    def forward(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return self.parameters_of_all[:, None, None].expand(len(inputs), -1, 1, inputs.shape[-1])


def stubbed(kind: Kind, std: float = 0.4) -> CouplingTransform:
    torch.manual_seed(0)
    return coupling(kind, MASK, lambda i, o: Stub(i, o, std), COMPONENTS).double()


def constant(kind: Kind, parameters: Tensor, components: int) -> CouplingTransform:
    """Two channels, of which the second is mapped by given parameters."""
    return coupling(kind, [0, 1], lambda i, o: Constant(parameters), components)


def frames(scale: float = 1.0) -> Tensor:
    return scale * noise(BATCH, len(MASK), 1, TOKENS)


def context() -> Tensor:
    return torch.tensor([0.3, -1.2], dtype=torch.float64)


def jacobian(function: Map, x: Tensor) -> Tensor:
    """Jacobian of each frame of a batch: ``(batch, output, input)``."""

    def together(x: Tensor) -> Tensor:  # frames of a batch do not mix
        return function(x, context())[0].flatten(1).sum(0)

    return torch.autograd.functional.jacobian(together, x).flatten(2).movedim(1, 0)


def density(kind: Kind, parameters: Tensor, x: Tensor) -> Tensor:
    """Log density of samples ``(sample,)`` where z of the mapped channel is standard normal."""
    components = len(parameters) // 3 if kind == "mixture" else 1
    frames = torch.stack([torch.zeros_like(x), x], 1)[..., None, None]
    z, log_det = constant(kind, parameters, components)(frames)
    return log_det - 0.5 * (z[:, 1, 0, 0].square() + math.log(2 * math.pi))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 30, 300])
def test_round_trip(kind: Kind, scale: float) -> None:
    transform, x = stubbed(kind), frames(scale)
    with torch.no_grad():
        z, log_det = transform(x, context())
        back, log_det_back = transform.inverse(z, context())
    assert (back - x).abs().max() < 1e-9
    assert torch.allclose(log_det_back, -log_det, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # from the other side
        y, log_det = transform.inverse(x, context())
        back, log_det_back = transform(y, context())
    assert (back - x).abs().max() < 1e-9
    assert torch.allclose(log_det_back, -log_det, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_in_float32(kind: Kind) -> None:
    transform, x = stubbed(kind).float(), frames().float()
    with torch.no_grad():
        z, log_det = transform(x, context().float())
        back, log_det_back = transform.inverse(z, context().float())
    assert z.dtype == log_det.dtype == back.dtype == log_det_back.dtype == torch.float32
    assert (back - x).abs().max() < 1e-4
    assert (log_det_back + log_det).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_masked_channels_change_each_by_itself(kind: Kind) -> None:
    transform, x = stubbed(kind), frames()
    z, _ = transform(x, context())
    mapped = torch.tensor(MASK) > 0
    assert torch.equal(z[:, ~mapped], x[:, ~mapped])
    assert ((z - x)[:, mapped].abs() > 1e-3).all()
    kept = ~mapped.repeat_interleave(TOKENS)
    for slopes in jacobian(transform.forward, x):
        own = slopes[~kept][:, ~kept]
        assert (own.diagonal() > 0).all()  # increasing
        assert torch.equal(own, own.diagonal().diag())
        assert (slopes[~kept][:, kept] != 0).any()
        assert torch.equal(slopes[kept], torch.eye(len(kept), dtype=torch.float64)[kept])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 5])  # of 5, a third lies beyond the splines
def test_the_log_determinant_is_the_jacobians(kind: Kind, scale: float) -> None:
    transform, x = stubbed(kind), frames(scale)
    z, log_det = transform(x, context())
    forward = jacobian(transform.forward, x)
    assert torch.allclose(torch.linalg.slogdet(forward).logabsdet, log_det, rtol=1e-10, atol=1e-10)
    assert (log_det.abs() > 0.1).all()
    inverse = jacobian(transform.inverse, z.detach())
    _, log_det_back = transform.inverse(z, context())
    assert torch.allclose(torch.linalg.slogdet(inverse).logabsdet, -log_det, atol=1e-9)
    assert torch.allclose(log_det_back, -log_det, atol=1e-9)
    assert torch.allclose(inverse, torch.linalg.inv(forward), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_gradients_are_finite_differences(kind: Kind, way: str) -> None:
    """Of outputs and log-determinant, by the network's parameters and by the inputs."""
    transform, weights = stubbed(kind), noise(BATCH, len(MASK), 1, TOKENS, seed=3)
    inputs = nn.Parameter(frames(1.5))
    variables = [inputs, *transform.transform_net.parameters()]

    def read() -> Tensor:
        outputs, log_det = getattr(transform, way)(inputs, context())
        return (weights * outputs).sum() + log_det @ context()

    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(read(), variables))
    start = nn.utils.parameters_to_vector(variables).detach()
    step = 1e-5  # error of order step^2 and of rounding / step
    for seed in range(8):
        direction = noise(len(start), seed=seed) * (noise(len(start), seed=seed + 100) > 1)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * step * direction, variables)
            values.append(read().item())
        expected = (values[0] - values[1]) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 30, 300])
def test_zero_parameters_are_the_identity(kind: Kind, scale: float) -> None:
    transform, x = stubbed(kind, std=0), frames(scale)
    for outputs, log_det in (transform(x, context()), transform.inverse(x, context())):
        assert torch.allclose(outputs, x, rtol=1e-13, atol=1e-13)
        # The mixture's is a difference of squares, each rounded.
        assert log_det.abs().max() < 1e-13 * (1 + scale**2)


def test_the_ends_of_a_spline_belong_to_it() -> None:
    transform = stubbed("spline", std=0)
    x = frames()
    x[:, [1, 2, 4]] = torch.tensor([SPLINE_BOUND, -SPLINE_BOUND] * 2, dtype=torch.float64)
    for outputs, log_det in (transform(x, context()), transform.inverse(x, context())):
        assert torch.allclose(outputs, x, rtol=1e-13)
        assert log_det.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_the_stated_size_is_asked_for(kind: Kind) -> None:
    sizes: list[tuple[int, int]] = []

    def network(in_channels: int, out_channels: int) -> nn.Module:
        sizes.append((in_channels, out_channels))
        return Stub(in_channels, out_channels)

    coupling(kind, MASK, network, COMPONENTS)
    assert sizes == [(2, 3 * COUPLINGS[kind].per_sample(COMPONENTS))]
    assert COUPLINGS[kind].per_sample(4) == {"affine": 2, "spline": 13, "mixture": 12}[kind]


@pytest.mark.parametrize("kind", ["affine", "mixture"])
@pytest.mark.parametrize("variance", [0.01, 0.3, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_smoothing_is_the_convolution_with_the_noise(
    kind: Kind, variance: float, seed: int
) -> None:
    raw = 1.5 * noise(COUPLINGS[kind].per_sample(4), seed=seed)
    nothing, given = raw.new_zeros(1), raw.new_tensor([variance])
    smooth = COUPLINGS[kind].smooth
    scales = smooth(raw, nothing)[-1 if kind == "affine" else -4 :].exp()
    # The rectangle rule of a product of Gaussians is exact to exp(-2 pi^2 (std / step)^2): here at
    # three steps per std of the narrower factor, far below rounding.
    step = min(float(scales.min()), math.sqrt(variance)) / 3
    limit = 4 + 9 * float(scales.max())
    s = torch.arange(-limit, limit, step, dtype=torch.float64)
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    kernel = Normal(s, given.sqrt()).log_prob(x[:, None]).exp()
    clean = density(kind, smooth(raw, nothing), s).exp()
    noisy = density(kind, smooth(raw, given), x).exp()
    assert torch.allclose(kernel @ clean * step, noisy, rtol=1e-8, atol=1e-13)
    assert float(clean.sum() * step) == pytest.approx(1, abs=1e-9)


def test_smoothing_broadcasts_the_variance_over_frames() -> None:
    raw, variance = noise(2, 3, 5, 12), torch.tensor([0.1, 2.0], dtype=torch.float64)
    for kind in KINDS:
        parts = raw[..., : COUPLINGS[kind].per_sample(4)]
        smooth = COUPLINGS[kind].smooth(parts, variance[:, None, None, None])
        assert smooth.shape == parts.shape
        for i in range(2):
            alone = COUPLINGS[kind].smooth(parts[i, 2, 4], variance[i : i + 1])
            assert torch.allclose(smooth[i, 2, 4], alone, rtol=1e-14)


def test_smoothing_a_spline_widens_its_affine_step() -> None:
    raw, variance = noise(7, 13), torch.tensor([0.4], dtype=torch.float64)
    smooth = COUPLINGS["spline"].smooth(raw, variance)
    assert torch.equal(smooth[:, :2], COUPLINGS["affine"].smooth(raw[:, :2], variance))
    assert torch.equal(smooth[:, 2:], raw[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_source_is_no_narrower_than_the_noise(kind: Kind) -> None:
    raw = torch.full((COUPLINGS[kind].per_sample(4),), -100.0, dtype=torch.float64)
    for variance, expected in ((0.0, 0.002), (0.09, math.hypot(0.3, 0.002))):
        smooth = COUPLINGS[kind].smooth(raw, raw.new_tensor([variance]))
        log_scale = smooth[1] if kind != "mixture" else smooth[-1]
        assert float(log_scale.exp()) == pytest.approx(expected, rel=1e-12)


def mixture_of(parameters: Tensor) -> MixtureSameFamily:
    logits, mean, log_scale = parameters.chunk(3, -1)
    return MixtureSameFamily(Categorical(logits=logits), Normal(mean, log_scale.exp()))


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_a_mixtures_density_is_the_librarys(scale: float) -> None:
    transform, x = stubbed("mixture"), frames(scale)
    z, log_det = transform(x, context())
    parameters = transform.transform_net(x[:, [0, 3]], context())
    law = mixture_of(parameters.unflatten(1, (3, -1)).movedim(2, -1))
    expected = law.log_prob(x[:, [1, 2, 4]]).sum((1, 2, 3))
    normal = Normal(x.new_zeros(()), 1).log_prob(z[:, [1, 2, 4]]).sum((1, 2, 3))
    assert torch.allclose(normal + log_det, expected, rtol=1e-11)
    # And z is the normal quantile of the distribution function.
    if scale == 1:
        assert torch.allclose(
            torch.special.ndtr(z[:, [1, 2, 4]]), law.cdf(x[:, [1, 2, 4]]), rtol=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [5.0, 40.0, 200.0, 900.0])
def test_tails_of_a_mixture(dtype: torch.dtype, distance: float) -> None:
    raw = noise(12).to(dtype)
    parameters = nn.Parameter(COUPLINGS["mixture"].smooth(raw, raw.new_tensor([1e-4])))
    widest = float(parameters.detach()[-4:].exp().max())
    x = torch.tensor([-distance * widest, distance * widest], dtype=dtype).requires_grad_()
    value = density("mixture", parameters, x)
    gradients = torch.autograd.grad(value.sum(), [x, parameters])
    # Two squares of z, up to distance^2, come and go.
    rounding = 10 * torch.finfo(dtype).eps
    expected = mixture_of(parameters.double()).log_prob(x.double())
    assert torch.allclose(value.double(), expected, rtol=rounding, atol=rounding)
    for gradient in gradients:
        assert gradient.isfinite().all()
    (score,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(gradients[0], score, rtol=rounding)


def test_the_furthest_tails_in_float32() -> None:
    """Where a chain of a small noise level is sent off: 1e3 at a std of 0.02 is 5e4 stds."""
    parameters = torch.tensor([0.3, 0.0, -0.2, 0.4, 0.0, 0.1]).requires_grad_()
    x = torch.logspace(4, 5, 400).requires_grad_()
    value = density("mixture", parameters, x)
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), [x, parameters]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [40.0, 300.0])
def test_the_inverse_of_far_latents(dtype: torch.dtype, distance: float) -> None:
    raw = noise(12).to(dtype)
    parameters = nn.Parameter(COUPLINGS["mixture"].smooth(raw, raw.new_tensor([1e-4])))
    z = torch.tensor([-distance, distance], dtype=dtype).requires_grad_()
    latents = torch.stack([torch.zeros_like(z), z], 1)[..., None, None]
    transform = constant("mixture", parameters, 4)
    x, log_det = transform.inverse(latents)
    back, _ = transform(x)
    assert torch.allclose(back, latents, rtol=100 * torch.finfo(dtype).eps)
    for gradient in torch.autograd.grad(x.sum() + log_det.sum(), [z, parameters]):
        assert gradient.isfinite().all()


def test_between_modes_hundreds_of_stds_apart() -> None:
    """In float32: the score is finite, and the inverse of what falls between them too."""
    parameters = torch.tensor([0.0, 0.0, -3.0, 3.0, -5.0, -5.0]).requires_grad_()
    x = torch.linspace(-4, 4, 801).requires_grad_()
    value = density("mixture", parameters, x)
    expected = mixture_of(parameters.double()).log_prob(x.double())
    assert torch.allclose(value.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(value.sum(), [x, parameters]):
        assert gradient.isfinite().all()
    z = torch.cat([torch.linspace(-4, 4, 401), torch.logspace(-6, -1, 50)])
    latents = torch.stack([torch.zeros_like(z), z], 1)[..., None, None]
    transform = constant("mixture", parameters, 2)
    x, log_det = transform.inverse(latents)
    # The rounding of x, up to 3, over the scale.
    tolerance = 10 * 3 * torch.finfo(torch.float32).eps * math.exp(5)
    assert torch.allclose(transform(x)[0], latents, rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad(x.sum() + log_det[z.abs() > 0.1].sum(), parameters)
    assert gradient.isfinite().all()


def test_the_slope_at_the_median() -> None:
    """Where both tails weigh the same to the last digit, as at a sample of digital silence."""
    parameters = torch.tensor([0.0, 0.0, -1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    transform = constant("mixture", parameters, 2)
    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64).requires_grad_()
    z, log_det = transform(x)
    (gradient,) = torch.autograd.grad(z[:, 1].sum(), x)
    assert float(gradient[0, 1]) == pytest.approx(float(log_det.detach().exp()), rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_log_ndtri_inverts_log_ndtr(dtype: torch.dtype, tolerance: float) -> None:
    log_half = math.log(0.5)
    log_probability = -torch.logspace(math.log10(-log_half), 6, 5_001, dtype=torch.float64)
    near = torch.linspace(log_half, -90, 5_001, dtype=torch.float64)  # both rules and their seam
    log_probability = torch.cat([log_probability, near]).clamp_max(log_half).to(dtype)
    log_probability.requires_grad_()
    z = _LogNdtri.apply(log_probability)
    assert z.dtype == dtype
    assert torch.allclose(torch.special.log_ndtr(z), log_probability, rtol=tolerance)
    (slope,) = torch.autograd.grad(z.sum(), log_probability)
    exact = z.detach().double()  # d log Phi / dz = phi / Phi
    hazard = Normal(exact.new_zeros(()), 1).log_prob(exact) - torch.special.log_ndtr(exact)
    # The hazard is the exponential of a difference of numbers as large as log p.
    loose = 4 * torch.finfo(dtype).eps * (250 + float(log_probability.detach().abs().max()))
    assert torch.allclose(slope.double() * hazard.exp(), torch.ones_like(hazard), atol=loose)
    assert float(_LogNdtri.apply(torch.tensor([log_half], dtype=dtype)).abs()) < 1e-6


def test_a_mixture_of_one_is_affine() -> None:
    parameters = torch.tensor([0.7, -0.4, 0.3], dtype=torch.float64)
    x = frames()[:, :2]
    one, affine = constant("mixture", parameters, 1), constant("affine", parameters[1:], 1)
    for left, right in zip(one(x), affine(x), strict=True):
        assert torch.allclose(left, right, rtol=1e-12, atol=1e-13)
    for left, right in zip(one.inverse(x), affine.inverse(x), strict=True):
        assert torch.allclose(left, right, rtol=1e-12, atol=1e-13)
    assert isinstance(one, MixtureCoupling)
