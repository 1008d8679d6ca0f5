"""Whether the stems of a separation may be trusted, and if not, why.

Stems are trusted where the sources add up to the mixture, every one of them is audio that its prior
expects, the search says that it succeeded, and independent chains found the same audio. A single
chain, or several from the same initial stems, will do where a mixture is one decision
(``estimate="mode"``): there a wrong one surprises the priors. The truth is not needed, and not
known: chains that agree on a wrong separation are trusted where the priors expect it as well.

That the stems are right does not make the bands around them right: that takes many draws, see
:class:`Diagnosis`.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import xarray as xr

from pyro_sep.diagnostics.convergence import (
    SUMMARIES,
    absent_contributions,
    audio_agreement,
    chain_agreement,
    mixture_residual,
    prior_misfit,
)
from pyro_sep.diagnostics.disagreement import chains_apart, modes_apart
from pyro_sep.trace.dataset import TINY, in_channels
from pyro_sep.trace.draws import ALIKE, alternative_modes, chains_of_mode, mode_probabilities

#: Vehtari et al. 2021 (arXiv 1903.08008) ask for an R-hat below this and an ESS of 400 of 4 chains.
R_HAT_MAX = 1.01
ESS_PER_CHAIN = 100

#: Where the difference of two chains is 10 dB below their mean power.
AGREEMENT_MIN = 1 - ALIKE / 2

#: Twice the mean square that a prior expects of audio it knows; toy tones of another source have
#: more, ``test_verdict.py``. A prior that expects much is surprised by little: music seldom.
MISFIT_MAX = 2.0

#: Of a right explanation the misfit is a mean of T squared standard normals or, as the mixture has
#: settled a part of the noise, less. This many standard errors above 1, one chain is not enough.
ALONE_ERRORS = 2.0

#: In dB. The default noise_scale is below it for any mixture above -20 dB re full scale. Where a
#: mixture has noise of its own, its sources may miss it by twice the noise's power.
RESIDUAL_MAX = -40.0
NOISE_SHARE = 2.0
NOISE_MAX = -3.0  # dB: sources that miss half of the mixture explain nothing

#: In dB of the mixture: a source that is absent adds less than this.
ABSENT_MAX = -20.0

EXPECTED = "every source is what its prior expects"
CHAIN = ("chain", "give more --chains")
MORE = "give a larger --preset or more --candidates"
MANY = "as chains mostly do in music: listen, and go by the SI-SDR to expect where it is told"

NEEDED = {
    "posterior": ("sources", *SUMMARIES),
    "sample_stats": ("lp",),
    "posterior_predictive": ("mixture",),
    "observed_data": ("mixture",),
    "constant_data": ("gains",),
}


class Verdict(StrEnum):
    """Whether to trust the stems of a trace; the first reason against it, in this order.

    >>> Verdict.TRUSTED.value
    'trusted'
    """

    RESIDUAL = "residual too large"
    PRIOR = "prior surprised"
    SEARCH = "search failed"
    ONE_CHAIN = "one chain, nothing to compare"
    ONE_START = "one start, nothing to compare"
    MODES = "several explanations"
    CHAINS = "chains disagree"
    TRUSTED = "trusted"


@dataclass(frozen=True)
class SourceDiagnosis:
    """Figures of one source; NaN where the trace does not tell.

    Attributes:
        name: of the source.
        r_hat: the worst over level, centroid and log prior.
        ess_bulk: the worst over level, centroid and log prior.
        ess_per_gradient: ``ess_bulk`` by the gradient evaluations of all chains.
        agreement: of the chains' audio; 1 is the same audio, 0 nothing in common.
        misfit: how much the audio surprises its prior; at most 1 is expected.
    """

    name: str
    r_hat: float
    ess_bulk: float
    ess_per_gradient: float
    agreement: float
    misfit: float


@dataclass(frozen=True)
class Diagnosis:
    """Figures of a trace and what follows.

    Attributes:
        sources: in their order.
        residual: power of what the sources leave of the mixture, in dB of its own.
        gradients: of the log posterior, that the sampler counted; NaN where it did not.
        verdict: what follows.
        blamed: names of the sources that the verdict is about; empty where it is about all.
        reason: why, and what to do, in words.
        bands: why the bands around the stems are not what they say; empty where they are.

    >>> diagnosis = Diagnosis((), -60.0, 1e4, Verdict.TRUSTED, (), "chains agree", "")
    >>> diagnosis.trusted
    True
    """

    sources: tuple[SourceDiagnosis, ...]
    residual: float
    gradients: float
    verdict: Verdict
    blamed: tuple[str, ...]
    reason: str
    bands: str

    @property
    def trusted(self) -> bool:
        """Whether the stems may be used."""
        return self.verdict is Verdict.TRUSTED


def diagnose(trace: xr.DataTree) -> Diagnosis:
    """Judge a trace by its own content: chains, draws, priors and mixture.

    Args:
        trace: of :func:`pyro_sep.separate` or :func:`pyro_sep.trace.build_trace`.

    Raises:
        ValueError: a tree that lacks what such a trace holds.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> diagnose(tree).verdict.value
    'one chain, nothing to compare'
    """
    _check(trace)
    worst = chain_agreement(trace)
    r_hat = worst["r_hat"].max("summary", skipna=False)
    ess_bulk = worst["ess_bulk"].min("summary", skipna=False)
    agreement, misfit = audio_agreement(trace), prior_misfit(trace)
    gradients, residual = _number(trace, "gradients", math.nan), mixture_residual(trace)
    rows = tuple(
        SourceDiagnosis(
            name=str(name),
            r_hat=float(r_hat[k]),
            ess_bulk=float(ess_bulk[k]),
            ess_per_gradient=float(ess_bulk[k]) / gradients if gradients else math.nan,
            agreement=float(agreement[k]),
            misfit=float(misfit[k]),
        )
        for k, name in enumerate(r_hat["source"].values)
    )
    verdict, blamed, reason = _judge(trace, rows, residual)
    bands = _judge_bands(rows, trace["posterior"].sizes["chain"])
    return Diagnosis(rows, residual, gradients, verdict, blamed, reason, bands)


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """The figures as text, one row per source, and the verdict.

    >>> sine = SourceDiagnosis("sine", 1.0, 400.0, 0.04, 0.99, 1.0)
    >>> diagnosis = Diagnosis((sine,), -60.0, 1e4, Verdict.TRUSTED, (), "chains agree", "")
    >>> format_diagnosis(diagnosis).splitlines()[-1]
    'verdict: trusted; chains agree'
    """
    width = max([8, *(len(row.name) + 2 for row in diagnosis.sources)])
    lines = [
        f"{'source':<{width}}{'R-hat':>8}{'bulk ESS':>10}{'ESS/gradient':>14}"
        f"{'agreement':>11}{'misfit':>9}"
    ]
    lines += [
        f"{row.name:<{width}}{row.r_hat:>8.3f}{row.ess_bulk:>10.1f}{row.ess_per_gradient:>14.2g}"
        f"{row.agreement:>11.3f}{row.misfit:>9.2f}"
        for row in diagnosis.sources
    ]
    lines.append(f"residual: {diagnosis.residual:.1f} dB of the mixture")
    lines.append(f"gradient evaluations: {diagnosis.gradients:,.0f}")
    if diagnosis.bands:
        lines.append(f"bands: {diagnosis.bands}")
    return "\n".join([*lines, format_verdict(diagnosis)])


def format_verdict(diagnosis: Diagnosis) -> str:
    """The verdict, whom it is about, and why, in one line."""
    if diagnosis.trusted:
        return f"verdict: {diagnosis.verdict}; {diagnosis.reason}"
    blamed = f" ({', '.join(diagnosis.blamed)})" if diagnosis.blamed else ""
    return f"verdict: not trusted, {diagnosis.verdict}{blamed}; {diagnosis.reason}"


def _judge(
    trace: xr.DataTree, rows: tuple[SourceDiagnosis, ...], residual: float
) -> tuple[Verdict, tuple[str, ...], str]:
    """The verdict, the sources that it is about, and why; written so that NaN passes no test.

    But what is not known of a prior blames nobody.
    """
    chains = trace["posterior"].sizes["chain"]
    finite = math.isfinite(residual) and bool(np.isfinite(trace["sample_stats"]["lp"]).all())
    if not finite:
        return Verdict.RESIDUAL, (), "a chain diverged, its draws are not finite; separate anew"
    if not residual < max(RESIDUAL_MAX, _noise_db(trace)):
        why = f"the sources miss {100 * 10 ** (residual / 10):.2g} % of the mixture's power"
        return Verdict.RESIDUAL, (), f"{why}; were gains and noise_scale right?"
    if strange := tuple(row.name for row in rows if row.misfit > MISFIT_MAX):
        why = "the audio is not what the prior expects: is this source in the mixture, and has the "
        return Verdict.PRIOR, strange, f"{why}prior heard such a sound? If so, {MORE}"
    contributions = absent_contributions(trace)
    if loud := tuple(name for name, level in contributions.items() if level > ABSENT_MAX):
        why = "it is judged absent, but its stem holds audio, which no prior expects"
        return Verdict.PRIOR, loud, f"{why}; is another source in the mixture?"
    if not _number(trace, "search_found", 1.0) >= 1:
        why = "in places the search found nothing that the priors expect"
        return Verdict.SEARCH, (), f"{why}; {MORE}"
    unjudged = any(math.isnan(row.misfit) and row.name not in contributions for row in rows)
    expected = "the sources add up to the mixture" if unjudged else EXPECTED
    if others := alternative_modes(trace):
        apart, why = modes_apart(trace)
        chances = ", ".join(f"{mode_probabilities(trace)[mode]:.0%}" for mode in (0, *others))
        return Verdict.MODES, apart, f"{why} (probabilities {chances}); listen to both, or {MORE}"
    told = bool(mode_probabilities(trace)) and trace.attrs.get("estimate") == "mode"
    agreeing = chains_of_mode(trace, 0) if told else chains
    begun = "initial" in trace["constant_data"]  # chains of one start may agree for that reason
    if agreeing < 2 or begun:
        alone = Verdict.ONE_START if begun else Verdict.ONE_CHAIN
        one, more = ("start", "separate without initial stems, and compare") if begun else CHAIN
        if unjudged or trace.attrs.get("estimate") != "mode":
            return alone, (), f"what one {one} led to may be chance; {more}"
        most = 1 + ALONE_ERRORS * math.sqrt(2 / trace["posterior"].sizes["time"])
        if doubtful := tuple(row.name for row in rows if row.misfit > most):
            why = f"one {one} is enough where the misfit is at most {most:.2f}; {more}"
            return alone, doubtful, why
        return Verdict.TRUSTED, (), expected
    apart = tuple(row.name for row in rows if not row.agreement >= AGREEMENT_MIN)
    if apart and not told:
        remedy = MANY if trace.attrs.get("estimate") == "mean" else MORE
        return Verdict.CHAINS, apart, f"{chains_apart(trace, apart)}; {remedy}"
    return Verdict.TRUSTED, (), f"{expected}, and {agreeing} chains agree"


def _noise_db(trace: xr.DataTree) -> float:
    """Power of what sources may miss of a noisy mixture, in dB of the mixture's."""
    posterior, observed = trace["posterior"].to_dataset(), trace["observed_data"].to_dataset()
    std = _number(trace, "noise_scale", 0.0)
    if "noise_scale" in posterior:
        std = float(posterior["noise_scale"].mean("draw").max())
    power = NOISE_SHARE * std**2 / max(float((in_channels(observed, "mixture") ** 2).mean()), TINY)
    return min(10 * math.log10(max(power, TINY)), NOISE_MAX) if math.isfinite(power) else -math.inf


def _number(trace: xr.DataTree, name: str, default: float) -> float:
    """An attribute of the trace that is a number; NaN where it is none."""
    value = trace.attrs.get(name, default)
    return float(value) if isinstance(value, int | float | np.number) else math.nan


def _judge_bands(rows: tuple[SourceDiagnosis, ...], chains: int) -> str:
    """Why draws are too few for bands; NaN passes no test."""
    enough = ESS_PER_CHAIN * chains
    short = [
        row
        for row in rows
        if not (row.ess_bulk >= enough and (chains < 2 or row.r_hat < R_HAT_MAX))
    ]
    if not short:
        return "" if chains > 1 else "of one chain, which tells of one mode; give more --chains"
    if any(math.isnan(row.ess_bulk) for row in short):
        return "unknown: too few draws to tell; give more --draws"
    least = min(row.ess_bulk for row in short)
    names, largest = ", ".join(row.name for row in short), max(row.r_hat for row in short)
    far = chains > 1 and not largest < R_HAT_MAX
    r_hat = "is unknown" if math.isnan(largest) else f"{largest:.2f}"
    apart = f", and R-hat {r_hat}, below {R_HAT_MAX} is good" if far else ""
    draws = f"{least:.0f} independent draws, at least {enough} are needed"
    return f"rough ({names}): {draws}{apart}; give more --draws"


def _check(trace: xr.DataTree) -> None:
    missing = [
        f"{group}/{name}"
        for group, names in NEEDED.items()
        for name in names
        if group not in trace.children or name not in trace[group]
    ]
    if missing:
        raise ValueError(
            f"trace: got none of {', '.join(missing)}, expected all of them; "
            "give a trace written by this package"
        )
