r"""Simulation-based calibration: do draws follow the posterior that they claim to follow?

Let a truth be drawn from the prior, data from the model given it, and L independent draws from the
posterior given the data. Truth and draws then have one law, and for every scalar function f the
rank of the truth

.. math:: r = \#\{l : f(x_l) < f(x)\}

is uniform on 0 to L over many simulations (Talts et al. 2018, arXiv 1804.06788). Ranks pile up at
both ends where the draws are too narrow, in the middle where they are too wide, at one end where
they are biased.

Uniform ranks have counts :math:`R_i = \#\{r \le i\} \sim \mathrm{Bin}(N, z_i)`,
:math:`z_i = (i + 1) / (L + 1)`, in N simulations. Their test takes the most extreme of all,

.. math:: \min_i \, 2 \min \{ P(R \le R_i), \, P(R \ge R_i) \}

whose law is simulated; where a count would be more extreme than that allows, the band of the
empirical distribution function ends, so that all of it is within the band at once with the given
probability (Säilynoja, Bürkner & Vehtari 2022, arXiv 2103.10522).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

NOMINAL = (0.5, 0.8, 0.95)  # probability of the central intervals
REPLICATES = 10_000  # of uniform ranks: a p-value of 0.05 has a standard error of 0.002


def ranks(true: ArrayLike, draws: ArrayLike, generator: np.random.Generator) -> NDArray[np.int64]:
    """Ranks of the truth among the draws: how many are below it. Ties are broken at random.

    Args:
        true: values of the truth, ``(simulation, ...)``.
        draws: of independent draws, ``(simulation, draw, ...)``.
        generator: source of randomness for ties.

    Returns:
        ``(simulation, ...)``.

    Raises:
        ValueError: shapes that do not fit, no draws, or values that are not finite.

    >>> draws = np.arange(9.0)[None]
    >>> ranks(np.array([2.5]), draws, np.random.default_rng(0))
    array([3])
    """
    true, draws = np.asarray(true), np.asarray(draws)
    wanted = (*true.shape[:1], *draws.shape[1:2], *true.shape[1:])
    if draws.shape != wanted or draws.ndim < 2 or draws.shape[1] < 1:
        raise ValueError(
            f"draws: got shape {draws.shape} for a truth of shape {true.shape}, expected a draw "
            "dimension after the first"
        )
    if not (np.isfinite(true).all() and np.isfinite(draws).all()):
        raise ValueError("draws: got NaN or infinity, expected finite values; the sampler diverged")
    below = (draws < true[:, None]).sum(1)
    equal = (draws == true[:, None]).sum(1)
    return below + generator.integers(0, equal, endpoint=True)


def coverage(
    ranks: NDArray[np.int64],
    draws: int,
    generator: np.random.Generator,
    nominal: Sequence[float] = NOMINAL,
) -> NDArray[np.float64]:
    r"""Share of the simulations whose truth is in the central interval of its draws.

    .. math:: \bigl| u - \tfrac{1}{2} \bigr| < \tfrac{p}{2}, \qquad u = \frac{r + v}{L + 1}, \quad
              v \sim U[0, 1)

    An interval that ends between two draws takes the nearer or the farther one at random, so that
    uniform ranks are covered with probability p exactly, however few the draws.

    Args:
        ranks: of :func:`ranks`, ``(simulation, ...)``.
        draws: L.
        generator: source of randomness.
        nominal: p, probability of each interval.

    Returns:
        ``(interval, ...)``; its Monte Carlo error is :func:`coverage_error`.

    >>> found = np.arange(1_000) % 10
    >>> coverage(found, 9, np.random.default_rng(0), nominal=[0.5]).round(1)
    array([0.5])
    """
    place = (ranks + generator.random(ranks.shape)) / (draws + 1)
    return np.stack([(abs(place - 0.5) < p / 2).mean(0) for p in nominal])


def coverage_error(simulations: int, nominal: Sequence[float] = NOMINAL) -> NDArray[np.float64]:
    r"""Standard error of the :func:`coverage` of calibrated draws, :math:`\sqrt{p (1 - p) / N}`."""
    p = np.asarray(nominal)
    return np.sqrt(p * (1 - p) / simulations)


@dataclass(frozen=True)
class RankTest:
    """Test of uniform ranks, and the simultaneous band of their distribution function.

    Attributes:
        simulations: N.
        draws: L.
        null: statistics of uniform ranks, sorted.

    >>> RankTest.simulate(20, 9, np.random.default_rng(0)).simulations
    20
    """

    simulations: int
    draws: int
    null: NDArray[np.float64]

    @classmethod
    def simulate(cls, simulations: int, draws: int, generator: np.random.Generator) -> Self:
        """The test of ``simulations`` ranks on 0 to ``draws``.

        Raises:
            ValueError: no simulations or no draws.
        """
        if simulations < 1 or draws < 1:
            raise ValueError(
                f"ranks: got {simulations} simulations of {draws} draws, expected at least one"
            )
        uniform = np.full(draws + 1, 1 / (draws + 1))
        histograms = generator.multinomial(simulations, uniform, REPLICATES)
        counts = histograms.cumsum(1)[:, :-1]
        return cls(simulations, draws, np.sort(_statistic(counts, _tails(simulations, draws))))

    @property
    def points(self) -> NDArray[np.float64]:
        """z, where the distribution function is judged, ``(draw,)``."""
        return _points(self.draws)

    def counts(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ranks at or below 0, 1, ..., L - 1, ``(..., draw)``, of ranks ``(simulation, ...)``."""
        return (ranks[..., None] <= np.arange(self.draws)).sum(0)

    def p_value(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability of ranks as far from uniform, ``(...)``, of ranks ``(simulation, ...)``.

        Raises:
            ValueError: not as many ranks as the test is for.
        """
        if len(ranks) != self.simulations:
            raise ValueError(f"ranks: got {len(ranks)}, expected {self.simulations} of them")
        statistic = _statistic(self.counts(ranks), _tails(self.simulations, self.draws))
        return (1 + np.searchsorted(self.null, statistic, "right")) / (1 + len(self.null))

    def band(self, probability: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest distribution function ``(draw,)`` of uniform ranks, all at once.

        Args:
            probability: that all of it is within.
        """
        critical = self.null[int((1 - probability) * len(self.null))]
        within = _tails(self.simulations, self.draws) >= critical
        low, high = within.argmax(0), self.simulations - within[::-1].argmax(0)
        return low / self.simulations, high / self.simulations


def _points(draws: int) -> NDArray[np.float64]:
    return np.arange(1, draws + 1) / (draws + 1)


def _tails(simulations: int, draws: int) -> NDArray[np.float64]:
    """Probability of a count as extreme as 0 to N, ``(count, draw)``."""
    counts, points = np.arange(simulations + 1)[:, None], _points(draws)
    below = binom.cdf(counts, simulations, points)
    above = binom.sf(counts - 1, simulations, points)
    return 2 * np.minimum(below, above)


def _statistic(counts: NDArray[np.int64], tails: NDArray[np.float64]) -> NDArray[np.float64]:
    return tails[counts, np.arange(tails.shape[1])].min(-1)
