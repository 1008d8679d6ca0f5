r"""The SI-SDR to expect of every stem of a mixture whose true sources are unknown.

One figure z of a stem needs no truth and tells much of its SI-SDR y, both in dB. Where the estimate
is the mean of all chains, z is the SI-SDR of one chain's mean against another's, on average over
the pairs. Where it is of one explanation, z is the SI-SDR of the estimate if a draw were the truth,
on average over the draws. z is wrong by an error :math:`e = y - z` that separations of known
mixtures tell. Sorted, the errors of n stems make an interval for the stem of another mixture,

.. math:: \bigl[\, z + e_{(l)}, \; z + e_{(n + 1 - l)} \bigr], \qquad
          l = \lfloor (n + 1) (1 - p) / 2 \rfloor

as in :mod:`pyro_sep.diagnostics.conformal` (split conformal prediction, Lei et al. 2018, arXiv
1604.04173), but of one list of errors for all sources of a set, two to four at a time, and for
mixtures of several lengths. The interval holds y for about a share p of the stems of mixtures that
are like those it was learned from and were separated alike. Errors of one mixture depend on each
other, so that p is less certain than n suggests; ``experiments/expected_scores.py`` measures the
share on further mixtures.

A set of priors that ships has a file expected_scores.json beside its weights. A trace is known to
be of the set by the fingerprints of its priors.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pyro_sep.diagnostics.conformal import central_rank, expected, is_same, kind_of
from pyro_sep.diagnostics.verdict import Verdict, diagnose
from pyro_sep.storage.files import save_json
from pyro_sep.trace.dataset import FINGERPRINT

PROBABILITY = 0.8  # of an interval
FILE = "expected_scores.json"
RANGED = ("samples", "count")  # of a kind: what may lie between the least and the most learned

#: Verdicts of separations that explain their mixture. Of others nothing was learned.
EXPLAINED = (Verdict.TRUSTED, Verdict.CHAINS, Verdict.ONE_CHAIN)


class Clue(NamedTuple):
    """What a separation tells of the SI-SDR of its stems, without the truth.

    Attributes:
        kind: what must be alike, or in range, for one separation to tell of another.
        priors: fingerprint of each source's prior.
        figures: z in dB of each source.
    """

    kind: dict[str, Any]
    priors: dict[str, float]
    figures: dict[str, float]


class ScoreErrors(BaseModel):
    """How far the figures of known mixtures were from their SI-SDR, and for which others it tells.

    Attributes:
        kind: entries of :attr:`Clue.kind` that all of them had in common.
        ranges: least and most of the others, :data:`RANGED`.
        priors: fingerprint of each source's prior.
        errors: e in dB of every stem, sorted.

    >>> kind, priors = {"samples": 256, "count": 2}, {"sine": -1.5, "saw": 2.5}
    >>> clues = [Clue(kind, priors, {"sine": 20.0, "saw": 18.0 + i}) for i in range(9)]
    >>> known = ScoreErrors.learn(clues, [{"sine": 19.0, "saw": 15.0 + i} for i in range(9)])
    >>> known.intervals(Clue(kind, {"sine": -1.5}, {"sine": 30.0}), 0.8)
    {'sine': (27.0, 29.0)}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: dict[str, Any]
    ranges: dict[str, tuple[int, int]]
    priors: dict[str, FiniteFloat]
    errors: list[FiniteFloat]

    @classmethod
    def learn(cls, clues: Sequence[Clue], scores: Sequence[Mapping[str, float]]) -> Self:
        """Learn from separations of mixtures whose sources are known.

        Args:
            clues: of each separation.
            scores: SI-SDR in dB of each separation's stems, by source.
        """
        kinds = [clue.kind for clue in clues]
        ranges = {name: [kind[name] for kind in kinds] for name in RANGED}
        errors = [
            score[name] - z
            for clue, score in zip(clues, scores, strict=True)
            for name, z in clue.figures.items()
        ]
        return cls(
            kind={
                name: value
                for name, value in kinds[0].items()
                if name not in RANGED and all(is_same(value, kind.get(name)) for kind in kinds)
            },
            ranges={name: (min(values), max(values)) for name, values in ranges.items()},
            priors={name: value for clue in clues for name, value in clue.priors.items()},
            errors=sorted(round(error, 3) for error in errors),
        )

    def fits(self, clue: Clue) -> bool:
        """Whether a separation is of the kind that this was learned from."""
        return (
            all(is_same(value, clue.kind.get(name)) for name, value in self.kind.items())
            and all(low <= clue.kind[name] <= high for name, (low, high) in self.ranges.items())
            and all(is_same(value, self.priors.get(name)) for name, value in clue.priors.items())
        )

    def intervals(self, clue: Clue, probability: float) -> dict[str, tuple[float, float]]:
        """The central interval of every stem's SI-SDR in dB, of a separation that fits.

        Raises:
            ValueError: a probability for which there are too few errors.
        """
        count = len(self.errors)
        rank = central_rank(count, probability)
        low, high = self.errors[rank - 1], self.errors[count - rank]
        return {name: (z + low, z + high) for name, z in clue.figures.items()}

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        save_json(self.model_dump(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote."""
        return cls.model_validate_json(Path(path).read_bytes())


def expected_scores(
    trace: xr.DataTree, probability: float = PROBABILITY
) -> dict[str, tuple[float, float]] | None:
    """An interval in dB that holds each stem's SI-SDR with a probability, without the truth.

    Of the stem at the rate of the priors, mono, as ``separate --native`` writes it. See
    :mod:`pyro_sep.diagnostics.score_intervals`.

    Args:
        trace: of :func:`pyro_sep.separate`.
        probability: that an interval holds the SI-SDR, over mixtures like those learned from.

    Returns:
        The least and the largest SI-SDR of each source; None where nothing was learned of such a
        separation: other priors than those that ship, other settings than the default ones,
        another length or number of sources, or sources that do not explain the mixture.

    Raises:
        ValueError: a probability for which too little was learned.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> expected_scores(tree) is None  # nothing was learned of one source
    True
    """
    try:
        clue = clue_of(trace)
    except ValueError:  # a trace of another sampler, or a silent stem
        return None
    for known in shipped_errors():
        if known.fits(clue) and explains(trace) and np.isfinite([*clue.figures.values()]).all():
            return known.intervals(clue, probability)
    return None


def format_scores(scores: Mapping[str, tuple[float, float]]) -> str:
    """Intervals of :data:`PROBABILITY` in words, in one line.

    >>> format_scores({"sine": (21.96, 27.01), "saw": (-1.2, 4.0)})
    'sine 22 to 27 dB, saw -1 to 4 dB (80 %, for mixtures like those it was learned from)'
    """
    cells = [f"{name} {low:.0f} to {high:.0f} dB" for name, (low, high) in scores.items()]
    share = f"{100 * PROBABILITY:.0f} %"
    return f"{', '.join(cells)} ({share}, for mixtures like those it was learned from)"


def explains(trace: xr.DataTree) -> bool:
    """Whether the sources explain the mixture, by the verdict of :func:`pyro_sep.diagnose`."""
    return diagnose(trace).verdict in EXPLAINED


def clue_of(trace: xr.DataTree) -> Clue:
    """What a trace tells of the SI-SDR of its stems.

    Raises:
        ValueError: a trace that does not say how it was made.
    """
    kind: dict[str, Any] = kind_of(trace)
    names, gains = kind.pop("sources"), kind.pop("gains")
    priors = {name: kind.pop(f"{FINGERPRINT}{name}") for name in names}
    kind |= {"count": len(names), "mixing": _rule(gains)}
    figure = _between_chains if kind["estimate"] == "mean" else _by_draws
    return Clue(kind, priors, dict(zip(names, figure(trace), strict=True)))


@cache
def shipped_errors() -> tuple[ScoreErrors, ...]:
    """What was learned of the sets of priors that ship."""
    from pyro_sep.priors.io import SHIPPED  # here alone: it needs torch

    return tuple(ScoreErrors.load(path) for path in sorted(SHIPPED.rglob(FILE)))


def _rule(gains: Any) -> str:
    """How a mixture was made: the sum of its sources, their mean, or otherwise."""
    rules = {"sum": 1.0, "mean": 1 / len(gains)}
    known = not isinstance(gains, str)
    return next((rule for rule in rules if known and np.allclose(gains, rules[rule])), "other")


def _by_draws(trace: xr.DataTree) -> list[float]:
    """SI-SDR of the estimate if a draw were the truth, of each source."""
    return expected(trace)["si_sdr"].values.tolist()


def _between_chains(trace: xr.DataTree) -> list[float]:
    """SI-SDR of a chain's mean against another's, of each source; NaN of one chain."""
    import torch

    from pyro_sep.evaluation.metrics import si_sdr

    sources = trace["posterior"].to_dataset()["sources"].mean("draw")
    means = torch.from_numpy(sources.transpose("chain", "source", "time").values)
    pairs = [si_sdr(one, other) for one, other in permutations(means, 2)]
    return torch.stack(pairs).mean(0).tolist() if pairs else [math.nan] * means.shape[1]
