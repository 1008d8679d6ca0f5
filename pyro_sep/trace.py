"""Posterior draws as an ``xarray.DataTree``, in ArviZ's groups, and their files.

Needs NumPy and xarray only: a trace is read without torch. One seed gives one file, byte for byte:
no time of day is written.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_sep.files import written_whole

PACKAGES = ("torch", "pyro-ppl", "arviz", "xarray")
TINY = float(np.finfo(np.float32).tiny)
ESTIMATES = ("best", "mean")  # of which chains an estimate is the mean: the best one, or all
FINGERPRINT = "prior of "  # attributes: of a source, by whose value its prior is known again


def build_trace(
    *,
    sources: ArrayLike,
    lp: ArrayLike,
    log_prior: ArrayLike,
    stats: Mapping[str, ArrayLike],
    warmup_stats: Mapping[str, ArrayLike],
    mixture: ArrayLike,
    gains: ArrayLike,
    source_names: Sequence[str],
    sample_rate: int,
    true_sources: ArrayLike | None,
    attrs: Mapping[str, Any],
    misfit: ArrayLike | None = None,
    presence: ArrayLike | None = None,
    noise_scale: ArrayLike | None = None,
) -> xr.DataTree:
    r"""Gather the draws of all chains, what is known of the mixture, and how it was run.

    The posterior holds, beside the draws :math:`s_k`, three scalars per source: ``log_prior`` and

    .. math:: \mathrm{level} = 10 \log_{10} \frac{1}{T} \sum_t s_t^2, \qquad
              \mathrm{centroid} = \frac{\sum_f f \, |S_f|}{\sum_f |S_f|}

    in dB re full scale and in Hz, S the discrete Fourier transform of s. The posterior predictive
    is the noiseless :math:`\sum_k a_k s_k`.

    Args:
        sources: draws ``(chain, draw, source, time)``.
        lp: unnormalised log posterior ``(chain, draw)``, in nats.
        log_prior: log density of each source under its prior ``(chain, draw, source)``, in nats.
        stats: further statistics of the sampler, each ``(chain, draw)``.
        warmup_stats: the same before the first draw, each ``(chain, warm-up draw)``.
        mixture: the audio that was separated, ``(time,)``.
        gains: a_k, ``(source,)``; or, where they were inferred, draws ``(chain, draw, source)``,
            which go to the posterior too, and their means to the constants.
        source_names: a name per source.
        sample_rate: in Hz.
        true_sources: ``(source, time)``, or None where unknown.
        attrs: settings of the run; what is no string or number is kept as JSON.
        misfit: how much each noisy source surprises its prior ``(chain, draw, source)``, see
            :meth:`pyro_sep.priors.NetworkPrior.misfit`; a variable of the posterior where known.
        presence: probability that each source is present ``(chain, draw, source)``; a variable of
            the posterior where it was inferred.
        noise_scale: draws of gamma ``(chain, draw)``, or None where it is known.

    Returns:
        Groups ``posterior``, ``sample_stats``, ``warmup_sample_stats``, ``posterior_predictive``,
        ``observed_data`` and ``constant_data``; floats in float32, ``time`` in seconds.

    Raises:
        ValueError: a shape that does not fit the others.
    """
    draws = _array("sources", sources, (None, None, len(source_names), None))
    chain, draw, source, time = draws.shape
    observed = _array("mixture", mixture, (time,))
    inferred = np.ndim(gains) == 3
    weights = _array("gains", gains, (chain, draw, source) if inferred else (source,))
    coords = {
        "chain": np.arange(chain),
        "draw": np.arange(draw),
        "source": np.array(source_names, dtype=str),
        "time": xr.Variable("time", np.arange(time) / sample_rate, {"units": "s"}),
    }
    posterior: dict[str, Any] = {
        "sources": (("chain", "draw", "source", "time"), draws),
        "level": (("chain", "draw", "source"), level(draws), {"units": "dB"}),
        "centroid": (("chain", "draw", "source"), centroid(draws, sample_rate), {"units": "Hz"}),
        "log_prior": (
            ("chain", "draw", "source"),
            _array("log_prior", log_prior, (chain, draw, source)),
        ),
    }
    for name, values in (("misfit", misfit), ("presence", presence)):
        if values is not None:
            posterior[name] = (
                ("chain", "draw", "source"),
                _array(name, values, (chain, draw, source)),
            )
    if inferred:
        posterior["gains"] = (("chain", "draw", "source"), weights)
    if noise_scale is not None:
        gamma = _array("noise_scale", noise_scale, (chain, draw))
        posterior["noise_scale"] = (("chain", "draw"), gamma)
    predictive = np.einsum("...k,...kt->...t", weights, draws)
    expected = weights.mean((0, 1)) if inferred else weights
    constant: dict[str, Any] = {"gains": ("source", expected), "sample_rate": sample_rate}
    if true_sources is not None:
        constant["true_sources"] = (
            ("source", "time"),
            _array("true_sources", true_sources, (source, time)),
        )
    groups = {
        "posterior": _group(posterior, coords),
        "sample_stats": _stats({**stats, "lp": lp}, (chain, draw)),
        "posterior_predictive": _group(
            {"mixture": (("chain", "draw", "time"), predictive)}, coords
        ),
        "observed_data": _group({"mixture": ("time", observed)}, coords),
        "constant_data": _group(constant, coords),
    }
    if warmup_stats:
        groups["warmup_sample_stats"] = _stats(warmup_stats, (chain, None))
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {**{key: _plain(value) for key, value in attrs.items()}, **_versions()}
    return tree


def save_trace(tree: xr.DataTree, path: str | PathLike[str]) -> None:
    """Write a trace as compressed netCDF, whole or not at all.

    Args:
        tree: the trace.
        path: where to; ``.nc`` is the usual suffix.

    Raises:
        OSError: the file cannot be written.
    """
    encoding = {
        node.path: {
            name: {"zlib": True, "shuffle": True}
            for name, variable in node.to_dataset().variables.items()
            if variable.ndim and variable.dtype.kind in "fiu"
        }
        for node in tree.subtree
    }
    with written_whole(path) as temporary:
        # Asked beforehand: where the disk fills up under it, HDF5 ends the whole process.
        free = shutil.disk_usage(temporary.parent).free
        if free < tree.nbytes:
            raise OSError(f"got {free} bytes free, expected {tree.nbytes}")
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)


def load_trace(path: str | PathLike[str]) -> xr.DataTree:
    """Read a netCDF trace into memory and close its file, or open a Zarr store.

    What a store holds is read where it is used.

    Args:
        path: a file of :func:`save_trace`, or a store of :mod:`pyro_sep.store`, ``.zarr``.

    Raises:
        FileNotFoundError: no such file or store.
        ValueError: neither netCDF nor Zarr, damaged, unfinished, or without a posterior.
    """
    path = Path(path)
    stored = path.suffix == ".zarr"
    if not (path.is_dir() if stored else path.is_file()):
        raise FileNotFoundError(f"{path}: no such {'store' if stored else 'file'}; check the path")
    try:
        if stored:
            tree = xr.open_datatree(path, engine="zarr", consolidated=False)
        else:
            with xr.open_datatree(path, engine="h5netcdf") as opened:
                tree = opened.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        kind = "Zarr store" if stored else "netCDF file"
        raise ValueError(
            f"{path}: got no readable {kind}, expected a trace; separate the mixture again"
        ) from error
    if stored and "inference_library" not in tree.attrs:
        raise ValueError(
            f"{path}: got a trace that is not finished, expected all draws; run it to its end"
        )
    if "posterior" not in tree.children:
        raise ValueError(
            f"{path}: got groups {sorted(tree.children)}, expected 'posterior' among them; "
            "give a trace written by this package"
        )
    return tree


def to_arviz(tree: xr.DataTree) -> Any:
    """The trace as ArviZ takes it: the tree itself from 1.0 on, ``InferenceData`` before.

    Args:
        tree: the trace.
    """
    if not version("arviz").startswith("0."):
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz
    return arviz.InferenceData.from_datatree(tree)


def chosen_chains(lp: NDArray[Any], estimate: str) -> list[int]:
    """Numbers of the chains that an estimate is the mean of.

    Args:
        lp: mean log posterior of every chain ``(chain,)``; NaN of one that diverged.
        estimate: ``"best"``, the chain of the highest, or ``"mean"``, all that did not diverge.
    """
    sound = np.flatnonzero(np.isfinite(lp)).tolist()
    if estimate == "mean" and sound:
        return sound
    return [int(np.where(np.isnan(lp), -np.inf, lp).argmax())]


def best_chain(tree: xr.DataTree) -> int:
    """Number of the chain of the highest mean log posterior; one with a NaN is the lowest."""
    return chosen_chains(_mean_lp(tree), "best")[0]


def estimate_chains(tree: xr.DataTree) -> list[int]:
    """Those that the estimate is the mean of, as the attribute ``estimate`` says, or the best."""
    return chosen_chains(_mean_lp(tree), tree.attrs.get("estimate", "best"))


def _mean_lp(tree: xr.DataTree) -> NDArray[Any]:
    lp = tree["sample_stats"].to_dataset()["lp"].mean("draw", skipna=False)
    return lp.transpose("chain").values


def level(sources: NDArray[Any]) -> NDArray[Any]:
    """Level of audio ``(..., time)`` in dB re full scale, as in :func:`build_trace`."""
    power = np.square(sources).mean(-1)
    return (10 * np.log10(np.maximum(power, TINY))).astype(np.float32)


def centroid(sources: NDArray[Any], sample_rate: int) -> NDArray[Any]:
    """Spectral centroid of audio ``(..., time)`` in Hz, as in :func:`build_trace`."""
    magnitude = np.abs(np.fft.rfft(sources))
    frequency = np.fft.rfftfreq(sources.shape[-1], 1 / sample_rate)
    mean = magnitude @ frequency / np.maximum(magnitude.sum(-1), TINY)
    return np.asarray(mean, dtype=np.float32)


def _array(name: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Values in float32 (integers and truths as they are), checked against a shape (None: any)."""
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(
        want in (None, got) for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {array.shape}, expected ({wanted})")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _group(variables: Mapping[str, Any], coords: Mapping[str, Any]) -> xr.Dataset:
    """A group with those coordinates that its variables use."""
    dataset = xr.Dataset(dict(variables))
    return dataset.assign_coords({name: coords[str(name)] for name in dataset.dims})


def _stats(stats: Mapping[str, ArrayLike], shape: tuple[int | None, ...]) -> xr.Dataset:
    """A group of sampler statistics, all of one shape (chain, draw)."""
    variables: dict[str, NDArray[Any]] = {}
    for name, values in stats.items():
        variables[name] = _array(name, values, shape)
        shape = variables[name].shape
    chain, draw = shape
    return _group(
        {name: (("chain", "draw"), array) for name, array in variables.items()},
        {"chain": np.arange(chain or 0), "draw": np.arange(draw or 0)},
    )


def _plain(value: Any) -> str | int | float:
    """A value that netCDF stores as an attribute; JSON where it is no string or number."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))


def _versions() -> dict[str, str]:
    """The library that made the trace and the packages that it stands on."""
    versions = {"inference_library": "pyro_sep", "inference_library_version": _version("pyro-sep")}
    return versions | {f"{name.replace('-', '_')}_version": _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source checkout, or a reader's machine without torch
        return "not installed"
