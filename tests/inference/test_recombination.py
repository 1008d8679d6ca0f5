import math

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.recombination import WINDOW, recombine, refine
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.mixing.latent import start_mixing
from pyro_sep.progress import Progress

SIGMA = 0.1
LEVELS = torch.tensor([1.0, -0.5])
SETTINGS = Annealing(1.5, 0.3, SIGMA, levels=6, replicas=3)


class Near(GaussianPrior):
    """Every audio sample is near the level; frames are multiples of some number."""

    def condition(self, sigma: float) -> "Near":
        return Near(self.name, self.rms, self.event_shape[0], sigma, self.multiple)

    def frame(self, time: int) -> "Near":
        return Near(self.name, self.rms, time, self.sigma, self.multiple)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.shape[-1:] == self.event_shape
        std = math.hypot(0.1, self.sigma)
        return torch.distributions.Normal(self.rms, std).log_prob(value).sum(-1)


def evaluator() -> Evaluator:
    return Evaluator(SETTINGS, torch.Generator().manual_seed(0), Progress(False, 1.0))


def near(time: int, batch: int, multiple: int = 1, exact: bool = False) -> AnnealedPosterior:
    priors = [
        Near("up", float(LEVELS[0]), multiple, multiple=multiple),
        Near("down", float(LEVELS[1])),
    ]
    return AnnealedPosterior(LEVELS.mean().expand(batch, time), priors, Mixing.mean(2), exact)


def wrong_at(target: AnnealedPosterior, windows: set[int], by: float = 0.8) -> Tensor:
    """Sources that add up to the mixture and are wrong in some windows: ``(source, frame)``."""
    clean = LEVELS[:, None].repeat(1, target.frame)
    for i in windows:
        clean[:, i * WINDOW : (i + 1) * WINDOW] += torch.tensor([[by], [-by]])
    return clean


#: Audio samples of the mixture, and what frames are a multiple of.
FRAMES = [(64, 1), (300, 1), (512, 1), (1_000, 1), (1_000, 7), (999, 8), (1_000, 48), (1_500, 256)]


@pytest.mark.parametrize(("time", "multiple"), FRAMES)
def test_windows_are_those_of_whoever_is_right(time: int, multiple: int) -> None:
    target = near(time, 2, multiple)
    frame = frame_time(target.priors, time)
    count = -(-frame // WINDOW)
    everywhere = set(range(count))
    # In the second chain it is another one that is right; the last window is a short one.
    first = torch.stack([wrong_at(target, {0, count - 1}), wrong_at(target, everywhere - {1})])
    others = torch.stack(
        [
            torch.stack([wrong_at(target, everywhere - {0}), wrong_at(target, everywhere)]),
            torch.stack([wrong_at(target, {0, 1}), wrong_at(target, everywhere - {0})]),
        ]
    )
    others = torch.cat([others, wrong_at(target, everywhere - {count - 1}).expand(2, 1, 2, -1)], 1)
    clean = recombine(Found(target, first, torch.zeros(2)), others, SIGMA, evaluator())
    assert torch.equal(clean, LEVELS[:, None].expand(2, 2, frame))


def test_where_all_are_wrong_the_least_wrong_stays() -> None:
    target = near(3 * WINDOW, 1)
    first = wrong_at(target, {1}, 0.5)[None]
    others = torch.stack([wrong_at(target, {0, 1}, by) for by in (0.9, -0.3, 0.4)])[None]
    clean = recombine(Found(target, first, torch.zeros(1)), others, SIGMA, evaluator())
    assert torch.equal(clean[0], wrong_at(target, {1}, -0.3))


def test_the_mixture_is_kept() -> None:
    """Whatever is put together: every one of the parts adds up to it."""
    generator = torch.Generator().manual_seed(1)
    target = near(700, 3, exact=True)
    parts = target.tie(torch.randn(3, 2, 700, generator=generator))
    others = torch.stack(
        [target.tie(torch.randn(3, 2, 700, generator=generator)) for _ in range(4)], 1
    )
    clean = recombine(Found(target, parts, torch.zeros(3)), others, SIGMA, evaluator())
    assert torch.allclose(clean.mean(1), target.mixture, atol=1e-5)
    options = torch.cat([parts[:, None], others], 1)
    chosen = set()
    for start in range(0, 700, WINDOW):
        window = slice(start, start + WINDOW)
        same = (options[..., window] == clean[:, None, :, window]).all(-1).all(-1)
        assert (same.sum(1) == 1).all()
        chosen |= set(same.int().argmax(1).tolist())
    assert len(chosen) > 2


@pytest.mark.parametrize("time", [1_000, 2_000, 4_000])
def test_the_cost_is_linear_in_the_frame(time: int) -> None:
    target, work = near(time, 1), evaluator()
    clean = wrong_at(target, set())[None]
    recombine(Found(target, clean, torch.zeros(1)), clean[:, None], SIGMA, work)
    windows = -(-time // WINDOW)
    assert work.cost == pytest.approx(windows * 2 * 2 * 512 / 3)


@pytest.mark.parametrize(("time", "multiple"), FRAMES)
@pytest.mark.parametrize("exact", [False, True])
def test_replicas_mend_what_is_wrong_at_single_moments(
    time: int, multiple: int, exact: bool
) -> None:
    target = near(time, 2, multiple, exact)
    clean = torch.stack([wrong_at(target, {0}), wrong_at(target, {1})])
    result = refine(Found(target, clean, torch.zeros(2)), evaluator())
    assert result.clean.shape == clean.shape
    error = (result.clean - LEVELS[:, None]).square().mean((-1, -2)).sqrt()
    assert (error < 0.2).all()
    assert result.target.mixture.shape == target.mixture.shape
    if exact:
        heard = target.mixing.mix(result.clean)[..., :time]
        assert torch.allclose(heard, target.mixture, atol=1e-5)


def test_without_replicas_all_is_as_it_is() -> None:
    settings = Annealing(1.5, 0.3, SIGMA, levels=6, replicas=0)
    target, work = near(300, 2), Evaluator(settings, torch.Generator(), Progress(False, 1.0))
    found = Found(target, torch.zeros(2, 2, 300), torch.zeros(2))
    assert refine(found, work) is found
    assert work.cost == 0


def test_where_gains_are_unknown_the_best_replica_is_taken_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows of replicas with other gains would not add up to the mixture."""
    monkeypatch.delattr("pyro_sep.inference.annealing.recombination.recombine")
    priors = {"up": Near("up", 1.0), "down": Near("down", -0.5)}
    mixture = torch.full((2, 300), 0.25)
    latent = start_mixing(mixture, priors, Mixing.mean(2), True, False)
    target = AnnealedPosterior(mixture, list(priors.values()), latent)
    found = Found(target, torch.zeros(2, 2, 300), torch.zeros(2))
    result = refine(found, evaluator())
    gains = result.target.latents()["gains"]
    assert gains.shape == (2, 2)
    assert not torch.equal(gains, target.latents()["gains"])
    heard = (gains[..., None] * result.clean).sum(1)
    assert torch.allclose(heard, mixture, atol=0.01)
