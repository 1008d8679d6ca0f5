import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import GaussianPrior
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_sep import Separation, load_priors, separate
from pyro_sep.inference.annealing.descent import Found
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.annealing.swaps import swap_search
from pyro_sep.inference.posterior import AnnealedPosterior, at_draws
from pyro_sep.mixing.known import Mixing, model
from pyro_sep.priors.base import stated
from pyro_sep.priors.spike_slab import ABSENCE, SpikeAndSlab
from pyro_sep.progress import Progress
from pyro_sep.separation.presets import default_ladder

LEVEL, SIGMA, ABSENT = 0.5, 0.2, 0.3


def law(time: int = 2, sigma: float = SIGMA, absence: float = ABSENT) -> SpikeAndSlab:
    return SpikeAndSlab(GaussianPrior("white", LEVEL, time), absence, sigma)


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)


def variances(sigma: float = SIGMA) -> tuple[float, float]:
    """Of an audio sample of a source that is present, and of one that is absent."""
    return LEVEL**2 + sigma**2, sigma**2


def log_joint(x: Tensor) -> list[Tensor]:
    """Closed form of present and absent."""
    terms = zip((1 - ABSENT, ABSENT), variances(), strict=True)
    return [
        math.log(share) - 0.5 * (x.square() / v + math.log(2 * math.pi * v)).sum(-1)
        for share, v in terms
    ]


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_density_integrates_to_one(sigma: float) -> None:
    # The rectangle rule errs by 2 exp(-2 pi^2 (sigma / step)^2), 5e-9 here, on Gaussians.
    edge = 7 * math.hypot(LEVEL, sigma)
    axis = torch.linspace(-edge, edge, int(2 * edge / sigma) + 1, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    total = law(sigma=sigma).log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-6)


def test_a_prior_that_may_be_silent_states_what_its_prior_states() -> None:
    priors = {"white": law().condition(0.5), "other": law().frame(4)}
    assert (stated(priors, "mixing", ""), stated(priors, "estimate", "")) == ("mean", "mode")


def test_presence_is_bayes_rule() -> None:
    x = noise(5, 3, 2)
    present, absent = log_joint(x)
    assert torch.allclose(law().log_prob(x), (present.exp() + absent.exp()).log())
    assert torch.allclose(law().presence(x), present.exp() / (present.exp() + absent.exp()))
    assert torch.allclose(law().log_odds(x), present - absent)
    assert float(law().presence(torch.zeros(2))) < 1 - ABSENT < float(law().presence(torch.ones(2)))


def test_odds_too_long_for_a_probability_stay_finite() -> None:
    x = torch.ones(20_000)
    assert float(law(20_000).log_odds(x)) > 1e4
    assert float(law(20_000).log_odds(1e-3 * x)) < -1e4
    for value, expected in ((x, 1.0), (1e-3 * x, 0.0)):
        assert float(law(20_000).presence(value)) == expected
        assert law(20_000).log_prob(value).isfinite()


def test_the_gradient_is_that_of_the_density() -> None:
    assert torch.autograd.gradcheck(law().log_prob, noise(4, 2).requires_grad_())


def test_tweedie_shrinks_by_the_presence() -> None:
    """E[s | x] is the probability of presence times the mean of the slab."""
    x = noise(6, 2).requires_grad_()
    (score,) = torch.autograd.grad(law().log_prob(x).sum(), x)
    x = x.detach()
    wiener = x * LEVEL**2 / variances()[0]
    assert torch.allclose(x + SIGMA**2 * score, law().presence(x)[:, None] * wiener, atol=1e-7)


def test_samples_are_silent_as_often_as_said() -> None:
    torch.manual_seed(0)
    count, time = 4_000, 200
    audio = law(time).sample((count,))
    assert audio.shape == (count, time)
    power = audio.square().mean(-1)
    # Powers of the two kinds are 0.29 and 0.04, spread by sqrt(2 / 200) = 10 %: 0.12 splits them.
    silent = power < 0.12
    error = math.sqrt(ABSENT * (1 - ABSENT) / count)
    assert float(silent.double().mean()) == pytest.approx(ABSENT, abs=4 * error)
    for kind, variance in zip((power[~silent], power[silent]), variances(), strict=True):
        tolerance = 4 * variance * math.sqrt(2 / (len(kind) * time))
        assert float(kind.mean()) == pytest.approx(variance, abs=tolerance)
    # A calibrated probability: its mean over draws is the share of those that are present.
    few = law(2).sample((count,))
    assert float(law(2).presence(few).mean()) == pytest.approx(1 - ABSENT, abs=4 * error)


def test_it_is_a_prior_and_a_pyro_distribution() -> None:
    prior = SpikeAndSlab(GaussianPrior("white", LEVEL, 8, multiple=4))
    assert isinstance(prior, TorchDistribution)
    assert (prior.name, prior.sample_rate, prior.absence) == ("white", 16_000, ABSENCE)
    assert (prior.sigmas, prior.rms, prior.multiple) == ((1e-3, 10.0), LEVEL, 4)
    assert float(prior.sigma) == pytest.approx(1e-3)
    changed = prior.condition(0.3).frame(12)
    assert (changed.event_shape, changed.batch_shape) == ((12,), ())
    assert float(changed.sigma) == pytest.approx(0.3)
    assert (changed.absence, changed.rms) == (ABSENCE, LEVEL)
    priors = {"white": prior}
    trace = pyro.poutine.trace(model).get_trace(torch.zeros(10), priors, Mixing((1.0,)), 0.3)
    assert trace.nodes["white"]["value"].shape == (12,)
    assert trace.log_prob_sum().isfinite()


def test_a_batch_of_noise_levels() -> None:
    saw = load_priors("toy")["saw"].frame(64)
    sigma = torch.tensor([[0.1], [2.0]])
    batch = SpikeAndSlab(saw, 0.2, sigma)
    assert (batch.batch_shape, batch.event_shape) == ((2, 1), (64,))
    torch.manual_seed(0)
    audio = batch.sample((3,))
    assert audio.shape == (3, 2, 1, 64)
    wide = batch.expand((2, 5))
    assert (wide.batch_shape, wide.absence) == ((2, 5), 0.2)
    assert wide.sample().shape == (2, 5, 64)
    for i, level in enumerate((0.1, 2.0)):
        alone = SpikeAndSlab(saw, 0.2, level)
        assert torch.allclose(batch.log_prob(audio)[:, i], alone.log_prob(audio[:, i]), rtol=1e-4)


@pytest.mark.parametrize("absence", [0.0, 1.0, -0.5, math.nan])
def test_what_is_no_probability_is_refused(absence: float) -> None:
    with pytest.raises(ValueError, match=r"^absence: got .*, expected above 0, below 1; where"):
        law(absence=absence)


def test_presence_of_draws_is_that_of_each() -> None:
    priors = [SpikeAndSlab(GaussianPrior("a", 0.5)), SpikeAndSlab(GaussianPrior("b", 0.9))]
    noisy = noise(3, 4, 2, 5)  # (chain, draw, source, time)
    presence = at_draws(SpikeAndSlab.presence, priors, noisy, 0.3)
    assert presence.shape == (3, 4, 2)
    for k, prior in enumerate(priors):
        expected = prior.frame(5).condition(0.3).presence(noisy[2, 1, k])
        assert torch.allclose(presence[2, 1, k], expected)


PERIODS = {"low": 20, "middle": 33, "high": 50}  # a frame, so tones are orthogonal


class Tone(GaussianPrior):
    """A tone of known frequency, its amplitude and phase Gaussian: a covariance of rank two."""

    def condition(self, sigma: float) -> "Tone":
        return Tone(self.name, self.rms, self.event_shape[0], float(sigma))

    def frame(self, time: int) -> "Tone":
        return Tone(self.name, self.rms, time, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        time, noise = self.event_shape[0], self.sigma**2
        angle = 2 * math.pi * PERIODS[self.name] / time * torch.arange(time)
        tone = math.sqrt(2 / time) * torch.stack([angle.cos(), angle.sin()])  # orthonormal
        power = noise + self.rms**2 * time / 2  # along each
        along = (value @ tone.T).square().sum(-1)
        exponent = value.square().sum(-1) / noise + along * (1 / power - 1 / noise)
        return -0.5 * (
            exponent + time * math.log(2 * math.pi * noise) + 2 * math.log(power / noise)
        )


TONES: dict[str, Any] = {name: Tone(name, 0.7) for name in PERIODS}
TIME = 256


@pytest.fixture(scope="module")
def result() -> Separation:
    """A mixture of two of the three tones."""
    angle = 2 * math.pi * torch.arange(TIME) / TIME
    sources = torch.stack([(20 * angle).sin(), 0 * angle, (50 * angle).cos()])
    budget: dict[str, Any] = {"chains": 2, "draws": 50}
    return separate(sources.mean(0), TONES, presence="infer", true_sources=sources, **budget)


def test_the_absent_source_is_found(result: Separation) -> None:
    assert result.names == ("low", "middle", "high")
    assert result.presence is not None
    assert result.presence.tolist() == pytest.approx([1, 0, 1], abs=0.02)
    truth = result.trace["constant_data"]["true_sources"].values
    # The amplitude is known to sigma / sqrt(T / 2), the mean of 50 correlated draws no worse.
    error = 0.05 / math.sqrt(TIME / 2)
    gain = result.sources.numpy() @ truth.T / (TIME / 2)
    assert np.diag(gain) == pytest.approx([1, 0, 1], abs=5 * error)


@pytest.mark.parametrize(
    "start",
    [(False, True, False), (True, True, True), (False, False, True), (False, True, True)],
)
def test_rounds_find_who_is_present(start: tuple[bool, ...]) -> None:
    angle, chains = 2 * math.pi * torch.arange(TIME) / TIME, 3
    sources = torch.stack([(20 * angle).sin(), 0 * angle, (50 * angle).cos()])
    target = AnnealedPosterior(
        sources.mean(0).expand(chains, -1),
        [SpikeAndSlab(tone) for tone in TONES.values()],
        Mixing.mean(3),
        present=torch.tensor(start).expand(chains, -1),
    )
    ladder: dict[str, Any] = default_ladder(TONES, TIME)
    settings = Annealing(**ladder)
    evaluator = Evaluator(settings, torch.Generator().manual_seed(0), Progress(False, 1.0))
    found = Found(target, torch.zeros(chains, 3, TIME), torch.zeros(chains))
    for held in settings.rounds(3, may_be_silent=True):
        found = swap_search(found, held, evaluator)
    assert found.target.present is not None
    # The middle tone may be present and so quiet that no one can tell.
    assert found.target.present[:, [0, 2]].all()
    power = found.clean.square().mean(-1)
    assert (power[:, 1] < 0.01).all()
    assert (power[:, [0, 2]] > 0.3).all()


def test_the_trace_holds_the_presence_of_every_draw(result: Separation) -> None:
    presence = result.trace["posterior"]["presence"]
    assert presence.dims == ("chain", "draw", "source")
    assert presence.shape == (2, 50, 3)
    assert bool(((presence >= 0) & (presence <= 1)).all())
    best = int(result.trace["sample_stats"]["lp"].mean("draw").argmax("chain"))
    assert result.presence is not None
    assert presence[best].mean("draw").values == pytest.approx(result.presence.numpy(), abs=1e-6)
    assert result.trace.attrs["presence"] == "infer"


def test_all_are_present_unless_asked() -> None:
    mixture = torch.sin(2 * math.pi * 20 / TIME * torch.arange(TIME)) / 3
    result = separate(mixture, TONES, levels=6, draws=2)
    assert result.presence is None
    assert "presence" not in result.trace["posterior"]
    with pytest.raises(
        ValueError, match=r"^presence: got 'maybe', expected 'infer', or None where"
    ):
        separate(mixture, TONES, presence="maybe")
