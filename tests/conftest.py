"""Gaussian priors, whose posteriors are known in closed form."""

import math
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from matplotlib.figure import Figure
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors

MakePriors = Callable[..., Priors]

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def pictures_without_layout(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw each picture once, as it is: its layout would take a third of a short separation.

    Pictures in tests/viz, and of commands that run in a process of their own, are laid out.
    """
    if "viz" not in request.path.parts:
        monkeypatch.setattr(Figure, "get_layout_engine", lambda self: None)


@pytest.fixture
def one_after_another(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chains in this process, however many processors the machine has."""
    monkeypatch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 1)
    with pytest.warns(UserWarning, match="Chains will be drawn sequentially"):
        yield


class GaussianPrior(TorchDistribution):
    """White Gaussian audio of RMS ``level``; noisy, each sample is N(0, level^2 + sigma^2)."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False
    sigmas = (1e-3, 10.0)
    sample_rate = 16_000

    def __init__(
        self, name: str, level: float, time: int = 8, sigma: float = 1e-3, multiple: int = 1
    ) -> None:
        if time % multiple:
            raise ValueError(f"time: got {time}, expected a multiple of {multiple}")
        self.name, self.rms, self.sigma, self.multiple = name, level, sigma, multiple
        self.mixing, self.estimate = "mean", "mode"
        super().__init__(Size(), Size((time,)), validate_args=False)

    @property
    def variance(self) -> float:
        return self.rms**2 + self.sigma**2

    def condition(self, sigma: float) -> "GaussianPrior":
        return GaussianPrior(self.name, self.rms, self.event_shape[0], sigma, self.multiple)

    def frame(self, time: int) -> "GaussianPrior":
        return GaussianPrior(self.name, self.rms, time, self.sigma, self.multiple)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return math.sqrt(self.variance) * torch.randn(*sample_shape, *self.event_shape)

    def misfit(self, value: Tensor) -> Tensor:
        return value.square().mean(-1) / self.variance

    def log_prob(self, value: Tensor) -> Tensor:
        exponent = value.square() / self.variance
        return -0.5 * (exponent + math.log(2 * math.pi * self.variance)).sum(-1)


@pytest.fixture
def gaussian_priors() -> Callable[..., dict[str, GaussianPrior]]:
    """Priors by level, named ``one``, ``two``, and so on; their multiples are 1 by default."""
    names = ("one", "two", "three", "four", "five", "six")

    def make(*levels: float, multiples: Sequence[int] = (1,) * 6) -> dict[str, GaussianPrior]:
        return {
            name: GaussianPrior(name, level, 8 * multiple, multiple=multiple)
            for name, level, multiple in zip(names, levels, multiples, strict=False)
        }

    return make


@pytest.fixture
def gaussian_posterior() -> Callable[[Sequence[float], Mixing, float], tuple[Tensor, Tensor]]:
    """Law of the noisy sources of one audio sample m: mean ``pull * m`` and covariance.

    The covariance of sources and mixture together, conditioned on the mixture.
    """

    def law(levels: Sequence[float], mixing: Mixing, sigma: float) -> tuple[Tensor, Tensor]:
        gains = torch.tensor(mixing.gains, dtype=torch.float64)
        powers = [level**2 + sigma**2 for level in levels]
        prior = torch.diag(torch.tensor(powers, dtype=torch.float64))
        noise = sigma**2 * sum(gain**2 for gain in mixing.gains) + mixing.noise_scale**2
        with_mixture = prior @ gains
        variance = gains @ prior @ gains + noise
        return with_mixture / variance, prior - torch.outer(with_mixture, with_mixture) / variance

    return law
