"""Whether the chains agree, from the scalar summaries of the draws."""

import warnings

import numpy as np
import xarray as xr

SUMMARIES = ("level", "centroid", "log_prior")


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
