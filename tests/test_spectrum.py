import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_sep.models import spectrum
from pyro_sep.models.spectrum import BACK, LOBE, SpectralExtrapolator, SpectralInterpolator

HOP, EMBEDDING, FRAMES = 16, 4, 200
SIGMA, AMPLITUDE = 0.3, 0.9
BINS = (10.0, 10.25, 10.5, 40.37, 100.5)


def extrapolate(frames: torch.Tensor, sigma: float, log_tau: float | None = None) -> torch.Tensor:
    """What an untrained extrapolator makes of frames ``(frame, W)``: ``(frame, BACK + HOP)``."""
    extrapolator = SpectralExtrapolator(frames.shape[1], HOP, EMBEDDING).double()
    if log_tau is not None:
        torch.nn.init.constant_(extrapolator.threshold.bias, log_tau)
    noise = torch.randn(len(frames), EMBEDDING, dtype=torch.float64)
    power = torch.full((len(frames),), sigma**2, dtype=torch.float64)
    with torch.no_grad():
        return extrapolator(frames[:, None], noise, power)[:, 0]


def tones(window: int, frequency: float) -> torch.Tensor:
    """Tones of random phases, from W samples ago to the end of the hop."""
    phase = 2 * math.pi * torch.rand(FRAMES, 1, dtype=torch.float64)
    n = torch.arange(-window, HOP, dtype=torch.float64)
    return AMPLITUDE * torch.cos(2 * math.pi * frequency / window * n + phase)


def relative_error(window: int, frequency: float, sigma: float, log_tau: float | None) -> float:
    torch.manual_seed(0)
    clean = tones(window, frequency)
    noisy = clean[:, :window] + sigma * torch.randn(FRAMES, window, dtype=torch.float64)
    error = extrapolate(noisy, SIGMA, log_tau)[:, BACK:] - clean[:, window:]
    return float(error.square().mean() / clean.square().mean())


def test_forward_is_the_equation() -> None:
    window, sigma, n = 32, 0.4, torch.arange(-BACK, HOP, dtype=torch.float64)
    torch.manual_seed(0)
    extrapolator = SpectralExtrapolator(window, HOP, EMBEDDING).double().requires_grad_(False)
    extrapolator.continuation.normal_()
    extrapolator.threshold.weight.normal_()
    frames = torch.randn(2, 3, window, dtype=torch.float64)
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    power = torch.full((2,), sigma**2, dtype=torch.float64)
    out = extrapolator(frames, noise, power)
    since, bins = torch.arange(window).double(), torch.arange(window // 2 + 1).double()
    fourier = torch.exp(-2j * math.pi * bins[:, None] * since / window)
    v = torch.complex(*extrapolator.continuation)
    energy = ((extrapolator.analysis * frames).to(v.dtype) @ fourier.T).abs() ** 4 / sigma**4
    padded = torch.nn.functional.pad(energy, (LOBE, LOBE))
    lobe = sum(padded[..., d : d + len(bins)] for d in range(2 * LOBE + 1))
    gate = energy / (lobe + extrapolator.threshold(noise).exp()[:, None])
    tones = torch.exp(2j * math.pi * bins[:, None] * n / window)
    amplitudes = gate * ((v * frames) @ fourier.T)
    expected = (amplitudes @ tones).real
    # The cosines and sines of the continuation were rounded to float32 when it was built.
    rounding = torch.finfo(torch.float32).eps * amplitudes.abs().sum(-1, keepdim=True)
    assert ((out - expected).abs() < rounding).all()
    assert expected.abs().mean() > 1e4 * rounding.mean()


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("frequency", BINS)
def test_a_tone_in_noise_is_continued(window: int, frequency: float) -> None:
    # At the start, the gate is soft: what is certain is that silence, of error 1, is beaten.
    assert relative_error(window, frequency, SIGMA, None) < {256: 0.3, 1024: 0.6}[window]


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("frequency", BINS)
def test_a_strict_gate_leaves_the_error_of_the_linear_continuation(
    window: int, frequency: float
) -> None:
    # sigma^2 sum |v|^2 / 2 against A^2 / 2, where one bin carries the tone; the rest is leakage of
    # the lobes of a low tone and of its image: amplitudes of a tenth, 0.02 in power.
    v = SpectralExtrapolator(window, HOP, EMBEDDING).continuation.detach()
    linear = float((SIGMA / AMPLITUDE) ** 2 * v.square().sum())
    error = relative_error(window, frequency, SIGMA, 8.0)
    assert linear < 0.025
    assert 0.5 * linear < error < 1.5 * linear + 0.03
    assert relative_error(window, frequency, 0.0, 8.0) < 0.025


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("offset", [-0.75, -0.3, 0.0, 0.5, 0.75])
def test_a_bin_reads_the_amplitude_and_phase_of_a_tone_near_it(window: int, offset: float) -> None:
    extrapolator = SpectralExtrapolator(window, HOP, EMBEDDING)
    v = torch.complex(*extrapolator.continuation.double())
    n = torch.arange(-window, 0, dtype=torch.float64)
    phase = 0.7
    tone = AMPLITUDE * torch.cos(2 * math.pi * (50 + offset) / window * n + phase)
    read = (v * tone * torch.exp(-2j * math.pi * 50 * n / window)).sum()
    expected = AMPLITUDE * torch.polar(torch.tensor(1.0), torch.tensor(phase)).to(read.dtype)
    # The ridge costs a twentieth of the response at the edges, the tone's image 1 / (2 pi 100).
    assert abs(read - expected) < 0.1 * AMPLITUDE


@pytest.mark.parametrize("window", [256, 1024])
def test_noise_alone_is_attenuated(window: int) -> None:
    torch.manual_seed(0)
    noise = SIGMA * torch.randn(FRAMES, window, dtype=torch.float64)
    soft = extrapolate(noise, SIGMA)[:, BACK:].square().mean() / SIGMA**2
    hard = extrapolate(noise, SIGMA, 8.0)[:, BACK:].square().mean() / SIGMA**2
    assert soft < 0.25  # 6 dB
    assert hard < 0.01


def test_only_the_ratio_to_the_noise_counts() -> None:
    torch.manual_seed(0)
    frames = tones(256, 20.2)[:, :256] + SIGMA * torch.randn(FRAMES, 256, dtype=torch.float64)
    scaled = extrapolate(3 * frames, 3 * SIGMA)
    assert torch.allclose(scaled, 3 * extrapolate(frames, SIGMA), rtol=1e-10, atol=1e-12)


def test_silence_is_silence() -> None:
    assert not extrapolate(torch.zeros(3, 256, dtype=torch.float64), SIGMA).any()


WINDOWS = [8, 17, 32]  # the FFT of an odd one has no bin at half the rate


def small_extrapolator(window: int) -> tuple[SpectralExtrapolator, Callable[[Tensor], Tensor]]:
    """An extrapolator of random, fixed weights, and what it makes of frames ``(2, token, W)``."""
    torch.manual_seed(window)
    extrapolator = SpectralExtrapolator(window, 4, EMBEDDING).double().requires_grad_(False)
    extrapolator.continuation.normal_()
    extrapolator.threshold.weight.normal_()
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    power = torch.tensor([0.2, 0.7], dtype=torch.float64)
    return extrapolator, lambda frames: extrapolator(frames, noise, power)


def small_frames(window: int) -> Tensor:
    return torch.randn(2, 3, window, dtype=torch.float64)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_gradient_is_the_finite_difference(window: int) -> None:
    _, of = small_extrapolator(window)
    frames = small_frames(window).requires_grad_()
    assert torch.autograd.gradcheck(of, (frames,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(of, (frames,))


@pytest.mark.parametrize("window", WINDOWS)
def test_weights_that_are_trained_have_gradients_of_both_orders(window: int) -> None:
    extrapolator, _ = small_extrapolator(window)
    frames = small_frames(window)[:, :1].requires_grad_()
    power = torch.tensor([0.2, 0.7], dtype=torch.float64)
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64).requires_grad_()

    def of(
        frames: Tensor, noise: Tensor, power: Tensor, continuation: Tensor, bias: Tensor
    ) -> Tensor:
        weights = {"continuation": continuation, "threshold.bias": bias}
        out: Tensor = torch.func.functional_call(extrapolator, weights, (frames, noise, power))
        return out

    continuation, bias = extrapolator.continuation.clone(), extrapolator.threshold.bias.clone()
    trained = [part.requires_grad_() for part in (power, continuation, bias)]
    assert torch.autograd.gradcheck(of, (frames, noise, *trained))
    assert torch.autograd.gradgradcheck(of, (frames, noise, *trained))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [1, 3, 7])  # of a block
def test_the_pullback_is_the_gradient_by_autograd(
    window: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "BLOCK", tokens * 2 * window)
    extrapolator, _ = small_extrapolator(window)
    audio = torch.randn(2, 6 * 4 + window, dtype=torch.float64).requires_grad_()
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    power = torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = extrapolator(audio.unfold(1, window, 4), noise, power)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, audio, cotangent)
    with torch.no_grad():
        out, pullback = extrapolator.with_pullback(audio, noise, power)
        once, again = pullback(cotangent), pullback(cotangent)
    assert torch.allclose(out, expected, rtol=1e-11, atol=1e-13)
    assert torch.allclose(once, gradient, rtol=1e-11, atol=1e-12 * float(gradient.abs().max()))
    assert torch.equal(once, again)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("window", WINDOWS)
def test_transforms_of_the_gradient_agree(window: int) -> None:
    _, of = small_extrapolator(window)
    frame = small_frames(window)[0, 0]

    def read(frame: Tensor) -> Tensor:
        return of(frame.expand(2, 1, -1))[1, 0]

    def energy(frame: Tensor) -> Tensor:
        return read(frame).square().sum()

    func = torch.func
    jacobian = torch.autograd.functional.jacobian(read, frame)
    for other in (
        torch.autograd.functional.jacobian(read, frame, vectorize=True),
        func.jacrev(read)(frame),
        func.jacfwd(read)(frame),
    ):
        assert torch.allclose(other, jacobian, rtol=1e-10, atol=1e-10 * float(jacobian.abs().max()))
    hessian = torch.autograd.functional.hessian(energy, frame)
    for outer in (func.jacrev, func.jacfwd):
        for inner in (func.jacrev, func.jacfwd):
            other = outer(inner(energy))(frame)
            assert torch.allclose(
                other, hessian, rtol=1e-10, atol=1e-10 * float(hessian.abs().max())
            )
    frames = torch.stack([frame, 2 * frame, -frame])
    each = torch.stack([torch.func.grad(energy)(one) for one in frames])
    assert torch.allclose(func.vmap(func.grad(energy))(frames), each, rtol=1e-10)
    leaf = frames.requires_grad_()
    (through,) = torch.autograd.grad(func.vmap(energy)(leaf).sum(), leaf)
    assert torch.allclose(through, each, rtol=1e-10)


@pytest.mark.parametrize("window", WINDOWS)
def test_values_are_the_same_with_and_without_a_gradient(window: int) -> None:
    _, of = small_extrapolator(window)
    frames = small_frames(window)
    expected = of(frames.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(of(frames), expected)
    with torch.inference_mode():
        assert torch.equal(of(frames.clone()), expected)


def test_blocks_do_not_change_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, of = small_extrapolator(32)
    frames = torch.randn(2, 11, 32, dtype=torch.float64).requires_grad_()
    whole = of(frames)
    (gradient,) = torch.autograd.grad(whole.square().sum(), frames)
    for block in (1, 3 * 2 * 32, 10 * 2 * 32):  # a token, three and ten of them
        monkeypatch.setattr(spectrum, "BLOCK", block)
        parts = of(frames)
        assert torch.allclose(parts, whole, rtol=1e-12, atol=1e-12)
        (other,) = torch.autograd.grad(parts.square().sum(), frames)
        assert torch.allclose(other, gradient, rtol=1e-12, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize("window", [256, 1024])
def test_the_gradient_in_float32_has_its_rounding_alone(window: int) -> None:
    torch.manual_seed(0)
    frames = (tones(window, 20.2)[:8, :window] + SIGMA * torch.randn(8, window)).double()[:, None]
    noise, power = torch.randn(8, EMBEDDING), torch.full((8,), SIGMA**2)
    cotangent = torch.randn(8, 1, BACK + HOP)
    gradients: list[Tensor] = []
    for dtype in (torch.float32, torch.float64):
        extrapolator = SpectralExtrapolator(window, HOP, EMBEDDING).to(dtype).requires_grad_(False)
        leaf = frames.to(dtype, copy=True).requires_grad_()
        out = extrapolator(leaf, noise.to(dtype), power.to(dtype))
        gradients += torch.autograd.grad(out, leaf, cotangent.to(dtype))
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 3e-6
    assert gradients[0].dtype == torch.float32


SIDES = {256: 64, 1024: 64}  # hop in the middle, by window
STRICT = 4.0  # log iota that keeps a tone's images out


def interpolate(
    frames: torch.Tensor, sigma: float, share: float, log_iota: float | None = None
) -> torch.Tensor:
    """What an untrained interpolator makes of frames ``(frame, W)``: ``(frame, hop)``."""
    window = frames.shape[1]
    interpolator = SpectralInterpolator(window, SIDES[window], EMBEDDING).double()
    if log_iota is not None:
        torch.nn.init.constant_(interpolator.thresholds.bias[1:], log_iota)
    noise = torch.randn(len(frames), EMBEDDING, dtype=torch.float64)
    power = torch.full((len(frames),), sigma**2, dtype=torch.float64)
    with torch.no_grad():
        return interpolator(frames[:, None], noise, power, share)[:, 0]


def middle(frames: torch.Tensor) -> torch.Tensor:
    window = frames.shape[1]
    first = (window - SIDES[window]) // 2
    return frames[:, first : first + SIDES[window]]


def scattered(window: int) -> torch.Tensor:
    """A mask of half of a frame's samples."""
    return (torch.randperm(window) < window // 2).double()


def interpolation_error(
    frequency: float, sigma: float, mask: torch.Tensor, log_iota: float | None = None
) -> float:
    """Power of the error over that of the tone, and 1 where nothing is interpolated."""
    clean = tones(len(mask), frequency)[:, : len(mask)]
    noisy = clean + sigma * torch.randn(clean.shape, dtype=torch.float64)
    error = interpolate(mask * noisy, sigma, float(mask.mean()), log_iota) - middle(clean)
    return float(error.square().mean() / middle(clean).square().mean())


def linear_error(window: int, sigma: float, share: float) -> float:
    """Of one bin that carries the tone, with its window alone, under the noise and the images.

    Both are white: of variance sigma^2 / q, and A^2 / 2 (1 - q) / q by the mask's own variance.
    """
    v = SpectralInterpolator(window, SIDES[window], EMBEDDING).continuation.detach()
    variance = sigma**2 / share + AMPLITUDE**2 / 2 * (1 - share) / share
    return variance / AMPLITUDE**2 * float(v.square().sum())


@pytest.mark.parametrize(("window", "hop", "share"), [(32, 16, 0.5), (32, 4, 0.25), (17, 8, 1.0)])
def test_interpolation_is_the_equation(window: int, hop: int, share: float) -> None:
    torch.manual_seed(0)
    interpolator = SpectralInterpolator(window, hop, EMBEDDING).double().requires_grad_(False)
    interpolator.continuation.normal_()
    interpolator.thresholds.weight.normal_()
    frames = torch.randn(2, 3, window, dtype=torch.float64)
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    variance = torch.tensor([0.16, 0.5], dtype=torch.float64)
    out = interpolator(frames, noise, variance, share)
    assert out.shape == (2, 3, hop)
    since, bins = torch.arange(window).double(), torch.arange(window // 2 + 1).double()
    fourier = torch.exp(-2j * math.pi * bins[:, None] * since / window)
    analysis = torch.sin(math.pi * (since + 0.5) / window) ** 2
    analysis = analysis / analysis.square().sum().sqrt()
    spectrum = (analysis * frames).to(fourier.dtype) @ fourier.T
    power = spectrum.abs() ** 2 / (share * variance[:, None, None])
    padded = torch.nn.functional.pad(power.square(), (LOBE, LOBE))
    lobe = sum(padded[..., d : d + len(bins)] for d in range(2 * LOBE + 1))
    tau, iota = interpolator.thresholds(noise).exp().T[..., None, None]
    gate = power.square() / (lobe + tau + iota * power.mean(-1, keepdim=True) ** 2)
    n = (window - hop) // 2 + torch.arange(hop, dtype=torch.float64)
    waves = torch.exp(2j * math.pi * bins[:, None] * n / window)
    v = interpolator.continuation
    amplitudes = gate * ((v * frames).to(fourier.dtype) @ fourier.T) / share
    expected = (amplitudes @ waves).real
    # The window and the basis were rounded to float32 when they were built; the gate is quadratic
    # in the power, which is quadratic in the window.
    rounding = 8 * torch.finfo(torch.float32).eps * amplitudes.abs().sum(-1, keepdim=True)
    assert ((out - expected).abs() < rounding).all()
    assert expected.abs().mean() > 1e3 * rounding.mean()


@pytest.mark.parametrize("window", SIDES)
@pytest.mark.parametrize("frequency", BINS)
def test_a_tone_of_which_half_is_known_is_interpolated(window: int, frequency: float) -> None:
    torch.manual_seed(0)
    mask = scattered(window)
    linear = linear_error(window, 0.02, 0.5)
    assert linear < 0.03
    # The last term is leakage of the lobes of a low tone, and what images pass the gate.
    assert interpolation_error(frequency, 0.02, mask, STRICT) < 1.5 * linear + 0.03
    # At the start, the gate lets images in; silence, of error 1, is beaten.
    assert interpolation_error(frequency, 0.02, mask) < 0.95


@pytest.mark.parametrize("window", SIDES)
@pytest.mark.parametrize("frequency", BINS)
def test_a_tone_of_which_all_is_known_is_denoised(window: int, frequency: float) -> None:
    torch.manual_seed(0)
    everything = torch.ones(window, dtype=torch.float64)
    assert interpolation_error(frequency, 0.02, everything) < 0.005
    assert interpolation_error(frequency, SIGMA, everything) < 0.02


@pytest.mark.parametrize("window", SIDES)
@pytest.mark.parametrize("frequency", BINS)
def test_a_tone_as_loud_as_the_noise_is_interpolated(window: int, frequency: float) -> None:
    """Sigma is the tone's amplitude: a sample alone has 3 dB more noise than tone."""
    torch.manual_seed(0)
    error = interpolation_error(frequency, AMPLITUDE, scattered(window))
    assert error < {256: 0.4, 1024: 0.3}[window]  # 4 to 5 dB, where nothing has 0
    linear = linear_error(window, AMPLITUDE, 0.5)
    assert linear < {256: 0.15, 1024: 0.04}[window]
    error = interpolation_error(frequency, AMPLITUDE, scattered(window), STRICT)
    assert 0.5 * linear < error < linear + {256: 0.2, 1024: 0.12}[window]


@pytest.mark.parametrize("window", SIDES)
def test_a_regular_mask_has_images_that_are_tones(window: int) -> None:
    """Where every other sample is known, the tone's one alias is as strong as itself.

    Both are interpolated, so that the error is the alias.
    """
    torch.manual_seed(0)
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(window // 2)
    assert interpolation_error(40.37, 0.02, mask, STRICT) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("window", SIDES)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_noise_alone_is_not_interpolated(window: int, share: float) -> None:
    torch.manual_seed(0)
    mask = (torch.randperm(window) < share * window).double()
    noise = SIGMA * mask * torch.randn(FRAMES, window, dtype=torch.float64)
    power = interpolate(noise, SIGMA, share).square().mean() / SIGMA**2
    assert power < 0.05 / share  # 13 dB, over q as E is
    open_gate = interpolate(noise, 1e-3 * SIGMA, share).square().mean() / SIGMA**2
    assert open_gate > 3 * power  # it can fail: noise that is not known to be noise passes


@pytest.mark.parametrize("window", SIDES)
@pytest.mark.parametrize("offset", [-0.75, -0.3, 0.0, 0.5, 0.75])
def test_a_bin_reads_a_tone_near_it_at_the_middle(window: int, offset: float) -> None:
    v = SpectralInterpolator(window, SIDES[window], EMBEDDING).continuation.detach().double()
    n = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    phase = 0.7
    tone = AMPLITUDE * torch.cos(2 * math.pi * (50 + offset) / window * n + phase)
    read = (v * tone * torch.exp(-2j * math.pi * 50 * n / window)).sum()
    expected = AMPLITUDE * torch.polar(torch.tensor(1.0), torch.tensor(phase)).to(read.dtype)
    assert abs(read - expected) < 0.1 * AMPLITUDE


@pytest.mark.parametrize("window", SIDES)
def test_interpolation_has_no_direction(window: int) -> None:
    torch.manual_seed(0)
    frames = tones(window, 20.2)[:, :window] * scattered(window)
    forwards = interpolate(frames, SIGMA, 0.5)
    backwards = interpolate(frames.flip(1), SIGMA, 0.5).flip(1)
    assert torch.allclose(forwards, backwards, rtol=0, atol=1e-5)  # the float32 basis


def test_only_the_ratio_to_the_noise_counts_in_interpolation() -> None:
    torch.manual_seed(0)
    frames = scattered(256) * (tones(256, 20.2)[:, :256] + SIGMA * torch.randn(FRAMES, 256))
    scaled = interpolate(3 * frames, 3 * SIGMA, 0.5)
    assert torch.allclose(scaled, 3 * interpolate(frames, SIGMA, 0.5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [16, 17])
def test_the_gradients_of_interpolation_are_finite_differences(window: int) -> None:
    torch.manual_seed(0)
    interpolator = SpectralInterpolator(window, 8, EMBEDDING).double()
    frames = torch.randn(2, 1, window, dtype=torch.float64).requires_grad_()
    noise = torch.randn(2, EMBEDDING, dtype=torch.float64)
    power = torch.tensor([0.2, 0.7], dtype=torch.float64)

    def of(frames: Tensor, continuation: Tensor) -> Tensor:
        weights = {"continuation": continuation}
        out: Tensor = torch.func.functional_call(interpolator, weights, (frames, noise, power, 0.5))
        return out

    continuation = interpolator.continuation.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of, (frames, continuation))
    assert torch.autograd.gradgradcheck(of, (frames, continuation))


def test_silence_is_interpolated_as_silence() -> None:
    assert not interpolate(torch.zeros(3, 256, dtype=torch.float64), SIGMA, 0.5).any()
