import logging
import warnings

import numpy as np
import pytest
import xarray as xr

from pyro_sep.diagnostics import SUMMARIES, chain_agreement


def trace(values: np.ndarray) -> xr.DataTree:
    """A trace whose three summaries are these (chain, draw, source) values, without audio."""
    dims = ("chain", "draw", "source")
    names = [f"s{k}" for k in range(values.shape[-1])]
    posterior = xr.Dataset(dict.fromkeys(SUMMARIES, (dims, values)), {"source": names})
    return xr.DataTree.from_dict({"posterior": posterior})


def quietly(tree: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> xr.Dataset:
    # At the method: ArviZ's logger is not among those of the logging module.
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: records.append(record))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = chain_agreement(tree)
    assert not records
    return table


def test_agreeing_and_disagreeing_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(4, 500, 2))
    values[0, :, 1] += 10  # one chain of the second source is elsewhere
    table = quietly(trace(values), monkeypatch)
    assert table["r_hat"].dims == ("summary", "source")
    assert table["summary"].values.tolist() == list(SUMMARIES)
    for name in SUMMARIES:
        agree = table.sel(summary=name, source="s0")
        differ = table.sel(summary=name, source="s1")
        assert agree["r_hat"] < 1.01
        # Independent draws: the ESS is their number, 2000, within its own Monte Carlo error.
        assert 1500 < agree["ess_bulk"] < 2500
        assert differ["r_hat"] > 1.5
        assert differ["ess_bulk"] < 20


def test_correlated_draws_are_worth_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    rho, draws = 0.8, 4000
    noise = np.random.default_rng(1).normal(size=(4, draws, 1))
    values = noise.copy()
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    ess = quietly(trace(values), monkeypatch)["ess_bulk"].values
    # AR(1): ESS = N (1 - rho) / (1 + rho).
    assert ess == pytest.approx(4 * draws / 9, rel=0.2)


@pytest.mark.parametrize("shape", [(1, 100, 2), (2, 3, 2)])
def test_too_little_for_r_hat(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    table = quietly(trace(np.random.default_rng(0).normal(size=shape)), monkeypatch)
    assert np.isnan(table["r_hat"]).all()
    assert np.isfinite(table["ess_bulk"]).all() == (shape[1] >= 4)
    assert table["source"].values.tolist() == ["s0", "s1"]


def test_constant_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(2, 100, 2))
    values[..., 1] = -120
    r_hat = quietly(trace(values), monkeypatch)["r_hat"]
    assert np.isfinite(r_hat.sel(source="s0")).all()
    assert np.isnan(r_hat.sel(source="s1")).all()
