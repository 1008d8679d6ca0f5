"""Figures that tell whether the chains of a separation agree, and with what the priors expect."""

import math
import warnings
from itertools import combinations

import numpy as np
import xarray as xr

from pyro_sep.trace.dataset import TINY, in_channels
from pyro_sep.trace.draws import by_chain, estimate_draws, select_draws

SUMMARIES = ("level_db", "centroid", "log_prior")
AGREEMENT_SECONDS = 0.5  # of a window: music has a note or a beat in it
QUIET_DB = -40.0  # of a source's loudest window, below which it is not heard


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

    with means over the draws of chains c and d, and sums over all channels too. 1: the same audio;
    0: nothing in common; below 0: polarity is opposite. Draws that spread count as alike where
    their means are. A source that all chains hold absent has no audio to compare, only what is left
    of the mixture: there it is 1.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        dims ``(source,)``; NaN for a single chain.
    """
    means, power = _chain_means(tree)
    return _agreement(tree, means.sizes["time"], means, power).isel(time=0, drop=True)


def agreement_over_time(tree: xr.DataTree, seconds: float = AGREEMENT_SECONDS) -> xr.DataArray:
    """As :func:`audio_agreement`, in windows of a recording.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
        seconds: length of a window; the last one is longer by what is left.

    Returns:
        dims ``(source, time)`` with the start of each window in seconds; NaN for a single chain,
        and where a source is 40 dB below its loudest window: what differs there is not heard.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> few = {"levels": 6, "candidates": 1, "replicas": 0, "cooling": 1, "chains": 2, "draws": 4}
    >>> tree = separate(0.9 * (torch.arange(512) / 8).sin(), sine, **few).trace
    >>> dict(agreement_over_time(tree, 0.016).sizes)
    {'source': 1, 'time': 2}
    """
    means, power = _chain_means(tree)
    rate = int(tree["constant_data"].to_dataset()["sample_rate"])
    width = min(max(1, round(seconds * rate)), means.sizes["time"])
    agreement = _agreement(tree, width, means, power)
    level = _windows(power, width).max("chain")
    heard = level > level.max("time") * 10 ** (QUIET_DB / 10)
    return agreement.where(heard).assign_coords(time=np.arange(len(level["time"])) * width / rate)


def _chain_means(tree: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Over draws, the mean ``(chain, source, channel, time)``, the power ``(chain, source, time)``.

    The power is a sum over channels.
    """
    sources = in_channels(tree["posterior"].to_dataset(), "sources")
    means = sources.mean("draw", skipna=False).transpose("chain", "source", "channel", "time")
    power = (sources**2).mean("draw").sum("channel", skipna=False)
    return means, power.transpose("chain", "source", "time")


def _windows(values: xr.DataArray, width: int) -> xr.DataArray:
    """Sums over windows of ``width`` along time; the last one is longer by what is left."""
    starts = np.arange(values.sizes["time"] // width) * width
    sums = np.add.reduceat(values.values, starts, axis=values.get_axis_num("time"))
    return xr.DataArray(sums, {"source": values["source"]}, values.dims)


def _agreement(
    tree: xr.DataTree, width: int, means: xr.DataArray, power: xr.DataArray
) -> xr.DataArray:
    """As in :func:`audio_agreement`, ``(source, time)`` in windows of so many audio samples."""
    total = _windows(power, width)
    pairs = [
        1
        - _windows(((means[c] - means[d]) ** 2).sum("channel", skipna=False), width)
        / (total.isel(chain=c) + total.isel(chain=d)).clip(min=TINY)
        for c, d in combinations(range(means.sizes["chain"]), 2)
    ]
    if not pairs:
        return total.isel(chain=0) * np.nan
    agreement = xr.concat(pairs, "pair").min("pair", skipna=False)
    if "presence" not in tree["posterior"]:
        return agreement
    presence = tree["posterior"].to_dataset()["presence"].mean("draw", skipna=False)
    return agreement.where(~(presence < 0.5).all("chain"), 1.0)


def prior_misfit(tree: xr.DataTree) -> xr.DataArray:
    """How much the sources surprise their priors, mean over draws of the estimate, worst chain.

    At most 1 where a prior knows the source, see :meth:`pyro_sep.priors.NetworkPrior.misfit`: noise
    that the mixture has settled is missing from it.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.

    Returns:
        dims ``(source,)``; NaN where the trace does not tell, and of sources that are absent.
    """
    posterior = tree["posterior"].to_dataset()
    if "misfit" not in posterior:
        return posterior["log_prior"].isel(chain=0, draw=0, drop=True) * np.nan
    draws = estimate_draws(tree)
    means = [select_draws(posterior["misfit"], own).mean("draw") for own in by_chain(draws)]
    misfit = xr.concat(means, "chain").max("chain")
    if "presence" not in posterior:
        return misfit
    return misfit.where(~(select_draws(posterior["presence"], draws).mean("draw") < 0.5))


def absent_contributions(tree: xr.DataTree) -> dict[str, float]:
    """Power of what absent sources add to the mixture all the same, in dB of the mixture's.

    Of the estimate's draws, by name of the source; empty where no source is absent.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
    """
    posterior, draws = tree["posterior"].to_dataset(), estimate_draws(tree)
    if "presence" not in posterior:
        return {}
    absent = select_draws(posterior["presence"], draws).mean("draw") < 0.5
    gains = tree["constant_data"].to_dataset()["gains"]
    means = in_channels(select_draws(posterior, draws).mean("draw"), "sources")
    power = ((gains * means) ** 2).mean(("channel", "time"))
    mixture = float((in_channels(tree["observed_data"].to_dataset(), "mixture") ** 2).mean())
    return {
        str(name): 10 * math.log10(max(float(power.sel(source=name)) / max(mixture, TINY), TINY))
        for name in absent["source"].values[absent.values]
    }


def mixture_residual(tree: xr.DataTree) -> float:
    """Power of what the draws of a chain leave of the mixture, in dB of its own; the worst chain.

    Args:
        tree: a trace of :func:`pyro_sep.trace.build_trace`.
    """
    observed = in_channels(tree["observed_data"].to_dataset(), "mixture")
    left = in_channels(tree["posterior_predictive"].to_dataset(), "mixture") - observed
    power = (left**2).mean(("draw", "channel", "time"), skipna=False).max("chain", skipna=False)
    ratio = float(power) / max(float((observed**2).mean()), TINY)
    return 10 * math.log10(max(ratio, TINY))
