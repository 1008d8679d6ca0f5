"""Whether the draws of a separation may be trusted, and if not, what is wrong with them."""

import math
import warnings
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import numpy as np
import xarray as xr

from pyro_sep.trace.dataset import TINY, best_chain

SUMMARIES = ("level_db", "centroid", "log_prior")

#: Vehtari et al. 2021 (arXiv 1903.08008) ask for an R-hat below this and an ESS of 400 of 4 chains.
R_HAT_MAX = 1.01
ESS_PER_CHAIN = 100

#: Where the difference of two chains is 10 dB below their mean power.
AGREEMENT_MIN = 1 - 0.1 / 2

#: Twice the mean square that a prior expects of audio it knows; toy tones of another source have
#: more, ``test_diagnostics.py``. A prior that expects much is surprised by little: music seldom.
MISFIT_MAX = 2.0

#: Where the misfit is not known. A calibrated Gaussian prediction misses the noisy audio by
#: exp(-excess) sigma: at -1 it misses the audio by sqrt(e^2 - 1) = 2.5 sigma.
EXCESS_MIN = -1.0

#: In dB. The default noise_scale is below it for any mixture above -20 dB re full scale.
RESIDUAL_MAX = -40.0

NEEDED = {
    "posterior": ("sources", *SUMMARIES),
    "sample_stats": ("lp",),
    "posterior_predictive": ("mixture",),
    "observed_data": ("mixture",),
    "constant_data": ("gains",),
}


class Verdict(StrEnum):
    """What is the matter with a trace; the first that holds, in this order.

    >>> Verdict.CONVERGED.value
    'converged'
    """

    RESIDUAL = "residual too large"
    PRIOR = "prior unsuitable"
    ONE_CHAIN = "one chain, nothing to compare"
    MODES = "modes disagree"
    SHORT = "one mode, too few draws"
    CONVERGED = "converged"


MEANING = {
    Verdict.RESIDUAL: "the sources do not add up to the mixture; were gains and noise_scale right?",
    Verdict.PRIOR: (
        "the best chain holds audio the priors do not expect; ask `pyro-sep audit`, or if the "
        "priors are good, a larger --preset or more --candidates"
    ),
    Verdict.ONE_CHAIN: "R-hat and agreement need two chains or more; separate with more --chains",
    Verdict.MODES: "chains hold different audio; give a larger --preset or more --candidates",
    Verdict.SHORT: "chains hold the same audio, but the spread of the draws is not to be trusted",
    Verdict.CONVERGED: "chains agree, and the draws are enough",
}


@dataclass(frozen=True)
class SourceDiagnosis:
    """Figures of one source; NaN where the trace does not tell.

    Attributes:
        name: of the source.
        r_hat: the worst over :data:`SUMMARIES`.
        ess_bulk: the worst over :data:`SUMMARIES`.
        ess_per_gradient: ``ess_bulk`` by the gradient evaluations of all chains.
        agreement: of the chains' audio, see :func:`audio_agreement`.
        excess: nats per audio sample, see :func:`prior_excess`.
        misfit: see :func:`prior_misfit`.
    """

    name: str
    r_hat: float
    ess_bulk: float
    ess_per_gradient: float
    agreement: float
    excess: float
    misfit: float


@dataclass(frozen=True)
class Diagnosis:
    """Figures of a trace and what follows.

    Attributes:
        sources: in their order.
        residual: see :func:`mixture_residual`, in dB.
        gradients: of the log posterior, that the sampler counted; NaN where it did not.
        verdict: what follows.
        blamed: names of the sources that the verdict is about; empty where it is about all.

    >>> Diagnosis((), -60.0, 1e4, Verdict.CONVERGED, ()).residual
    -60.0
    """

    sources: tuple[SourceDiagnosis, ...]
    residual: float
    gradients: float
    verdict: Verdict
    blamed: tuple[str, ...]


def diagnose(trace: xr.DataTree) -> Diagnosis:
    """Judge a trace by its own content: chains, draws, priors and mixture.

    The verdict is about what was found, not about the truth: chains that all hold the same wrong
    mode pass where the priors know it as well, or expect so much that it does not surprise them.

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
    agreement, excess, misfit = audio_agreement(trace), prior_excess(trace), prior_misfit(trace)
    gradients, residual = float(trace.attrs.get("gradients", math.nan)), mixture_residual(trace)
    rows = tuple(
        SourceDiagnosis(
            name=str(name),
            r_hat=float(r_hat[k]),
            ess_bulk=float(ess_bulk[k]),
            ess_per_gradient=float(ess_bulk[k]) / gradients,
            agreement=float(agreement[k]),
            excess=float(excess[k]),
            misfit=float(misfit[k]),
        )
        for k, name in enumerate(r_hat["source"].values)
    )
    verdict, blamed = _judge(rows, residual, trace["posterior"].sizes["chain"])
    return Diagnosis(rows, residual, gradients, verdict, blamed)


def chain_agreement(tree: xr.DataTree) -> xr.Dataset:
    r"""Rank-normalised split R-hat and bulk effective sample size of each source's summaries.

    Both are ArviZ's: Rank-normalization, folding, and localization: an improved R-hat, Vehtari et
    al. 2021 (arXiv 1903.08008). The audio itself is left alone: it has thousands of components.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        ``r_hat`` and ``ess_bulk``, dims ``(summary, source)``, over :data:`SUMMARIES`. NaN where
        ArviZ has no answer: R-hat of a constant, of a single chain or of fewer than 4 draws, ESS of
        fewer than 4 draws.
    """
    posterior = tree["posterior"].to_dataset()[list(SUMMARIES)]
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    undefined = posterior.isel(chain=0, draw=0, drop=True) * np.nan
    with warnings.catch_warnings():
        # FutureWarning: ArviZ 0.23 at import. RuntimeWarning: a constant divides 0 by 0.
        warnings.simplefilter("ignore")
        import arviz

        r_hat = arviz.rhat(posterior) if chains >= 2 and draws >= 4 else undefined
        ess_bulk = arviz.ess(posterior, method="bulk") if draws >= 4 else undefined
    return xr.Dataset(
        {"r_hat": r_hat.to_dataarray("summary"), "ess_bulk": ess_bulk.to_dataarray("summary")}
    )


def audio_agreement(tree: xr.DataTree) -> xr.DataArray:
    r"""How far the chains hold the same audio, per source: that of the two most unlike chains.

    .. math:: 1 - \max_{c \ne d} \frac{\sum_t (\bar s_{c,t} - \bar s_{d,t})^2}
              {\sum_t \bigl(\overline{s_{c,t}^2} + \overline{s_{d,t}^2}\bigr)}

    with means over the draws of chains c and d. 1: the same audio; 0: nothing in common; below 0:
    polarity is opposite. Draws that spread count as alike where their means are. A source that all
    chains hold absent has no audio to compare, only what is left of the mixture: there it is 1.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        dims ``(source,)``; NaN for a single chain.
    """
    sources = tree["posterior"].to_dataset()["sources"]
    mean = sources.mean("draw", skipna=False)
    power = (sources**2).mean("draw").sum("time")
    pairs = [
        1
        - ((mean.isel(chain=c) - mean.isel(chain=d)) ** 2).sum("time", skipna=False)
        / (power.isel(chain=c) + power.isel(chain=d)).clip(min=TINY)
        for c, d in combinations(range(sources.sizes["chain"]), 2)
    ]
    if not pairs:
        return power.isel(chain=0) * np.nan
    agreement = xr.concat(pairs, "pair").min("pair", skipna=False)
    if "presence" not in tree["posterior"]:
        return agreement
    presence = tree["posterior"].to_dataset()["presence"].mean("draw", skipna=False)
    return agreement.where(~(presence < 0.5).all("chain"), 1.0)


def prior_excess(tree: xr.DataTree) -> xr.DataArray:
    r"""Log prior of the best chain over what the noise alone has, per source and audio sample.

    .. math:: \frac{1}{T} \overline{\log p_{k,\sigma}(x_k)} + \tfrac{1}{2} \log(2 \pi e \sigma^2)
              - \frac{c \, a_k^2}{\sum_j a_j^2}

    in nats, the mean over the draws of the chain with the highest mean ``lp``. It compares with
    the excess of :func:`pyro_sep.priors.audit`: zero is a prior that knows all but the noise. The
    last term is the gain from the mixture: its likelihood of variance :math:`\sigma^2 \sum_j
    a_j^2` halves the variance of the noise along the gains, c = 1/4; where the sources add up to it
    exactly there is none, c = 1/2. T are the audio samples of the mixture; a prior that had to take
    a few more counts too high.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        dims ``(source,)``; NaN where the statistics lack ``noise_level``.
    """
    stats, posterior = tree["sample_stats"].to_dataset(), tree["posterior"].to_dataset()
    gain_energy = tree["constant_data"].to_dataset()["gains"] ** 2
    best = best_chain(tree)
    log_prior = posterior["log_prior"].isel(chain=best).mean("draw", skipna=False)
    per_sample = log_prior / posterior.sizes["time"]
    if "noise_level" not in stats:
        return per_sample * np.nan
    sigma = float(stats["noise_level"].isel(chain=best, draw=-1))
    floor = 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    gained = 0.5 if tree.attrs.get("constraint") == "exact" else 0.25
    return per_sample + floor - gained * gain_energy / gain_energy.sum()


def prior_misfit(tree: xr.DataTree) -> xr.DataArray:
    """How much the best chain's sources surprise their priors, the mean over its draws.

    At most 1 where a prior knows the source, see :meth:`pyro_sep.priors.NetworkPrior.misfit`: noise
    that the mixture has settled is missing from it.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        dims ``(source,)``; NaN where the trace does not tell, and of sources that are absent.
    """
    posterior = tree["posterior"].to_dataset().isel(chain=best_chain(tree))
    if "misfit" not in posterior:
        return posterior["log_prior"].isel(draw=0, drop=True) * np.nan
    misfit = posterior["misfit"].mean("draw", skipna=False)
    if "presence" not in posterior:
        return misfit
    return misfit.where(posterior["presence"].mean("draw") >= 0.5)


def mixture_residual(tree: xr.DataTree) -> float:
    """Power of what the draws of a chain leave of the mixture, in dB of its own; the worst chain.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
    """
    observed = tree["observed_data"].to_dataset()["mixture"]
    left = tree["posterior_predictive"].to_dataset()["mixture"] - observed
    power = (left**2).mean(("draw", "time"), skipna=False).max("chain", skipna=False)
    ratio = float(power) / max(float((observed**2).mean()), TINY)
    return 10 * math.log10(max(ratio, TINY))


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """The figures as text, one row per source, and the verdict.

    >>> sine = SourceDiagnosis("sine", 1.0, 400.0, 0.04, 0.99, 0.0, 1.0)
    >>> diagnosis = Diagnosis((sine,), -60.0, 1e4, Verdict.CONVERGED, ())
    >>> format_diagnosis(diagnosis).splitlines()[-1]
    'verdict: converged; chains agree, and the draws are enough'
    """
    width = max(8, *(len(row.name) + 2 for row in diagnosis.sources))
    lines = [
        f"{'source':<{width}}{'R-hat':>8}{'bulk ESS':>10}{'ESS/gradient':>14}"
        f"{'agreement':>11}{'excess':>9}{'misfit':>9}"
    ]
    lines += [
        f"{row.name:<{width}}{row.r_hat:>8.3f}{row.ess_bulk:>10.1f}{row.ess_per_gradient:>14.2g}"
        f"{row.agreement:>11.3f}{row.excess:>9.2f}{row.misfit:>9.2f}"
        for row in diagnosis.sources
    ]
    lines.append(f"residual: {diagnosis.residual:.1f} dB of the mixture")
    lines.append(f"gradient evaluations: {diagnosis.gradients:,.0f}")
    return "\n".join([*lines, format_verdict(diagnosis)])


def format_verdict(diagnosis: Diagnosis) -> str:
    """The verdict, whom it is about, and what to do, in one line."""
    blamed = f" ({', '.join(diagnosis.blamed)})" if diagnosis.blamed else ""
    return f"verdict: {diagnosis.verdict}{blamed}; {MEANING[diagnosis.verdict]}"


def _judge(
    rows: tuple[SourceDiagnosis, ...], residual: float, chains: int
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and the sources that it is about; written so that NaN passes no test.

    But what is not known of a prior blames nobody.
    """
    if not residual < RESIDUAL_MAX:
        return Verdict.RESIDUAL, ()
    if strange := tuple(row.name for row in rows if _is_strange(row)):
        return Verdict.PRIOR, strange
    if chains < 2:
        return Verdict.ONE_CHAIN, ()
    if apart := tuple(row.name for row in rows if not row.agreement >= AGREEMENT_MIN):
        return Verdict.MODES, apart
    enough = ESS_PER_CHAIN * chains
    if short := tuple(
        row.name for row in rows if not (row.r_hat < R_HAT_MAX and row.ess_bulk >= enough)
    ):
        return Verdict.SHORT, short
    return Verdict.CONVERGED, ()


def _is_strange(row: SourceDiagnosis) -> bool:
    """Whether the prior does not expect such audio."""
    return row.excess < EXCESS_MIN if math.isnan(row.misfit) else row.misfit > MISFIT_MAX


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
