"""Posterior draws as an ``xarray.DataTree``, in ArviZ's groups, and their files.

Needs NumPy and xarray only: a trace is read without torch. One seed gives one file, byte for byte:
no time of day is written.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_sep.checks.optional import import_optional
from pyro_sep.storage.files import atomic_write_bytes
from pyro_sep.storage.seals import check_seal, sealed
from pyro_sep.trace import hdf5, zarr_store
from pyro_sep.trace.channels import SIDE, left_and_right, mid_and_side, side_of
from pyro_sep.trace.layout import MODES, SEARCH, SEARCH_DIMS, TraceError, check, choose
from pyro_sep.workers import without_cluster

if TYPE_CHECKING:
    import arviz

PACKAGES = ("torch", "pyro-ppl", "arviz", "xarray")
TRACE = "trace.nc"  # name of the file among results
FORMAT = "trace.1"  # of a netCDF file
NETCDF_NAMES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")  # of attributes
NAME_MAX = 1_000  # characters
TINY = float(np.finfo(np.float32).tiny)
TREBLE = "treble"  # attribute: what each source has above the band, see pyro_sep.audio.treble
CHANNEL_TIME = (-2, -1)  # axes of audio of several channels
Axis = int | tuple[int, ...]
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
    attrs: Mapping[str, object],
    misfit: ArrayLike | None = None,
    presence: ArrayLike | None = None,
    noise_scale: ArrayLike | None = None,
    search_stats: Mapping[str, ArrayLike] | None = None,
    modes: Mapping[str, ArrayLike] | None = None,
    initial: ArrayLike | None = None,
    initial_lp: ArrayLike | None = None,
    channels: int = 1,
) -> xr.DataTree:
    r"""The trace of a separation: draws of all chains, mixture, and settings.

    Beside the draws :math:`s_k`, the posterior has three scalars per source: ``log_prior`` and

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
        misfit: how implausible each noisy source is under its prior ``(chain, draw, source)``, see
            :meth:`pyro_sep.priors.NetworkPrior.misfit`; a variable of the posterior where known.
        presence: probability that each source is present ``(chain, draw, source)``; a variable of
            the posterior where it was inferred.
        noise_scale: draws of gamma ``(chain, draw)``, or None where it is known.
        search_stats: of the candidates of a search: ``log_prior`` in nats ``(chain, section,
            candidate, level, source)``, NaN below the level where a candidate was dropped;
            ``noise_level`` ``(level,)``; and ``length``, the audio samples of a section.
        modes: ``label``, the number of the mode of every draw, and ``weight``, of every draw in the
            posterior, which add up to 1, both ``(chain, draw)``; and ``probability`` of every mode,
            falling, ``(mode,)``.
        initial: stems that the chains began from, contributions ``(source, time)``; None where they
            began from a search. A constant, with the mean and std of ``initial_lp``.
        initial_lp: log posterior of these with noise of the draws' level ``(noise,)``, in nats, see
            :mod:`pyro_sep.separation.initial`.
        channels: of all audio, interleaved where there are two. The trace has
            their mean then, and half of left less right as ``side`` in the groups posterior,
            posterior predictive and observed data, and as ``initial_side`` and
            ``true_sources_side`` among the constants; :func:`in_channels` gives both channels.
            Level and centroid are those of both.

    Returns:
        Groups ``posterior``, ``sample_stats``, ``warmup_sample_stats``, ``posterior_predictive``,
        ``observed_data``, ``constant_data`` and, where given, ``search_stats`` and ``modes``;
        floats in float32, ``time`` in seconds.

    Raises:
        ValueError: a shape that does not fit the others.

    >>> trace = build_trace(
    ...     sources=np.zeros((1, 5, 2, 8)),
    ...     lp=np.zeros((1, 5)),
    ...     log_prior=np.zeros((1, 5, 2)),
    ...     stats={},
    ...     warmup_stats={},
    ...     mixture=np.zeros(8),
    ...     gains=[0.5, 0.5],
    ...     source_names=["sine", "saw"],
    ...     sample_rate=16_000,
    ...     true_sources=None,
    ...     attrs={"noise_scale": 0.001},
    ... )
    >>> dict(trace["posterior"]["sources"].sizes)
    {'chain': 1, 'draw': 5, 'source': 2, 'time': 8}
    >>> log_likelihood(trace)["mixture"].dims
    ('chain', 'draw', 'time')
    >>> list(to_arviz(trace).log_likelihood)
    ['mixture']
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_trace(trace, f"{folder}/trace.nc")
    ...     load_trace(f"{folder}/trace.nc").identical(trace)
    True
    """
    frames = _array("sources", sources, (None, None, len(source_names), None))
    draws, side = mid_and_side(frames, channels)
    chain, draw, source, time = draws.shape
    observed, own_side = mid_and_side(_array("mixture", mixture, (channels * time,)), channels)
    inferred = np.ndim(gains) == 3
    weights = _array("gains", gains, (chain, draw, source) if inferred else (source,))
    coords = {
        "chain": np.arange(chain),
        "draw": np.arange(draw),
        "source": np.array(source_names, dtype=str),
        "time": xr.Variable("time", np.arange(time) / sample_rate, {"units": "s"}),
    }
    each = ("chain", "draw", "source")
    centre = centroid(np.stack(left_and_right(draws, side), -2), sample_rate, CHANNEL_TIME)
    posterior: dict[str, Any] = {
        "sources": ((*each, "time"), draws),
        "level_db": (each, level_db(frames), {"units": "dB"}),
        "centroid": (each, centre, {"units": "Hz"}),
    }
    for name, values in {"log_prior": log_prior, "misfit": misfit, "presence": presence}.items():
        if values is not None:
            posterior[name] = (each, _array(name, values, (chain, draw, source)))
    if side is not None:
        posterior[SIDE] = ((*each, "time"), side)
    if inferred:
        posterior["gains"] = (each, weights)
    if noise_scale is not None:
        gamma = _array("noise_scale", noise_scale, (chain, draw))
        posterior["noise_scale"] = (("chain", "draw"), gamma)
    predictive = {"mixture": _mixed(weights, draws)}
    audio = {"mixture": observed}
    if side is not None and own_side is not None:
        predictive[SIDE], audio[SIDE] = _mixed(weights, side), own_side
    expected = weights.mean((0, 1)) if inferred else weights
    constant: dict[str, Any] = {"gains": ("source", expected), "sample_rate": sample_rate}
    if true_sources is not None:
        true = _array("true_sources", true_sources, (source, channels * time))
        constant |= with_side("true_sources", ("source", "time"), true, channels)
    if initial is not None and initial_lp is not None:
        densities = _array("initial_lp", initial_lp, (None,))
        stems = _array("initial", initial, (source, channels * time))
        constant |= with_side("initial", ("source", "time"), stems, channels)
        constant |= {"initial_lp": densities.mean(), "initial_lp_std": densities.std(ddof=1)}
    groups = {
        "posterior": _group(posterior, coords),
        "sample_stats": _stats({**stats, "lp": lp}, (chain, draw)),
        "posterior_predictive": _group(
            {name: (("chain", "draw", "time"), part) for name, part in predictive.items()}, coords
        ),
        "observed_data": _group({name: ("time", part) for name, part in audio.items()}, coords),
        "constant_data": _group(constant, coords),
    }
    if warmup_stats:
        groups["warmup_sample_stats"] = _stats(warmup_stats, (chain, None))
    if search_stats is not None:
        dims = {"log_prior": SEARCH_DIMS, "noise_level": ("level",), "length": ()}
        found = {name: (dims[name], _floats(part)) for name, part in search_stats.items()}
        search = xr.Dataset(found)
        numbers = {name: np.arange(size) for name, size in search.sizes.items()}
        groups[SEARCH] = search.assign_coords({**numbers, "source": coords["source"]})
    if modes is not None:
        axes: dict[str, Any] = dict.fromkeys(("label", "weight"), ("chain", "draw"))
        axes["probability"] = ("mode",)
        told = xr.Dataset({name: (axis, _floats(modes[name])) for name, axis in axes.items()})
        groups[MODES] = told.assign_coords({dim: np.arange(n) for dim, n in told.sizes.items()})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {**plain_attrs(attrs), **_versions()}
    return tree


def in_channels(data: xr.Dataset, name: str) -> xr.DataArray:
    """Both channels of an audio variable of a trace, ``(..., channel, time)``; one of mono audio.

    Args:
        data: a group of a trace, or some of its draws.
        name: of the variable: ``sources``, ``mixture``, ``initial`` or ``true_sources``.

    >>> audio = xr.Dataset({"mixture": ("time", [2.0, 2.0]), "side": ("time", [-1.0, 0.0])})
    >>> in_channels(audio, "mixture").values
    array([[1., 2.],
           [3., 2.]])
    """
    mid, side = data[name], data.get(side_of(name))
    if side is None:
        return mid.expand_dims("channel", -2)
    both = xr.concat(left_and_right(mid, side), "channel")
    return both.transpose(..., "channel", "time")


def with_side(
    name: str, dims: tuple[str, ...], frames: NDArray[Any], channels: int
) -> dict[str, Any]:
    """An audio variable, and its side where the frames have two channels interleaved."""
    mid, side = mid_and_side(frames, channels)
    return {name: (dims, mid)} | ({} if side is None else {side_of(name): (dims, side)})


def treble_of(tree: xr.DataTree) -> list[tuple[float, ...]]:
    """What each source of a trace has above the band, by :mod:`pyro_sep.audio.treble`.

    Empty of a source whose prior does not say it, and where what the trace says is nothing of this
    kind.
    """
    names = tree["posterior"].to_dataset()["source"].values.tolist()
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        known = json.loads(tree.attrs.get(TREBLE, "{}"))
        found = [tuple(map(float, known.get(name, ()))) for name in names]
        if all(0 <= ratio < math.inf for ratios in found for ratio in ratios):
            return found
    return [()] * len(names)


def save_trace(tree: xr.DataTree, path: str | PathLike[str]) -> None:
    """Write a trace as compressed netCDF with a checksum at its end, whole or not at all.

    :func:`build_trace` has an example.

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
    # Into memory first: where the disk fills up under it, HDF5 ends the whole process.
    with without_cluster():
        content = tree.to_netcdf(engine="h5netcdf", encoding=encoding)
    atomic_write_bytes(path, sealed(content, FORMAT))


def load_trace(path: str | PathLike[str]) -> xr.DataTree:
    """Read a netCDF trace into memory and close its file, or open a Zarr store.

    The variables of a store are read where they are used. :func:`build_trace` has an example.

    Args:
        path: a file of :func:`save_trace`, or a store of :mod:`pyro_sep.trace.zarr_store`,
            ``.zarr``.

    Raises:
        FileNotFoundError: no such file or store.
        ValueError: neither netCDF nor Zarr, damaged, unfinished, or no trace of this package; one
            that refers to other files, or claims more memory than a file of its size can hold; a
            store without the package zarr.
    """
    path = Path(path)
    stored = path.suffix == ".zarr"
    if not (path.is_dir() if stored else path.is_file()):
        if path.exists():
            got, expected = ("a file", "a store") if stored else ("a folder or device", "trace.nc")
            raise ValueError(f"{path}: got {got}, expected {expected}; check the path")
        raise FileNotFoundError(f"{path}: no such {'store' if stored else 'file'}; check the path")
    if stored:
        import_optional("zarr", path, "zarr")
    try:
        tree = _open_store(path) if stored else _read_file(path)
        check(tree)
    except TraceError as error:
        raise ValueError(f"{path}: {error}; separate the mixture again") from error
    except Exception as error:  # there is no end to what foreign bytes raise
        kind = "Zarr store" if stored else "netCDF file"
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: got no readable {kind} ({reason:.200}), expected a trace; separate the "
            "mixture again"
        ) from error
    return tree


def _read_file(path: Path) -> xr.DataTree:
    """A netCDF file, in memory."""
    check_seal(path, FORMAT)  # of damaged files HDF5 may read for ever
    chosen = choose(hdf5.stored_variables(path), path.stat().st_size)
    return hdf5.read(path, chosen)


def _open_store(path: Path) -> xr.DataTree:
    """A Zarr store, whose variables are not in memory."""
    attrs = zarr_store.stored_attributes(path)
    if attrs is None:
        raise TraceError("got a trace that is not finished, expected all draws")
    there = zarr_store.stored_variables(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    opened = {"/": xr.Dataset(attrs=attrs)}
    for group, names in choose(there, size).items():
        others = list(there[group].keys() - names)
        opened[group] = xr.open_dataset(
            path, engine="zarr", group=group, consolidated=False, drop_variables=others
        )
    return xr.DataTree.from_dict(opened)


def to_arviz(tree: xr.DataTree) -> "xr.DataTree | arviz.InferenceData":
    """The trace in ArviZ's type: a ``DataTree`` from 1.0 on, ``InferenceData`` before.

    It has one more group, ``log_likelihood``, for ``arviz.loo`` and ``waic``; see
    :func:`log_likelihood`. Where sources add up to their mixture exactly (attribute ``constraint``
    of the trace) there is no likelihood and no such group, which is what ArviZ then reports.

    Args:
        tree: the trace.
    """
    groups = {path: node.to_dataset(inherit=False) for path, node in tree.subtree_with_keys}
    for own in (MODES, SEARCH):  # ArviZ knows no such group
        groups.pop(own, None)
    likelihood = log_likelihood(tree)
    if likelihood is not None:
        groups["log_likelihood"] = likelihood
    full = xr.DataTree.from_dict(groups)
    if not version("arviz").startswith("0."):
        return full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz
    return arviz.InferenceData.from_datatree(full)


def log_likelihood(tree: xr.DataTree) -> xr.Dataset | None:
    r"""Log likelihood of every audio sample of the mixture given every draw, in nats.

    .. math:: \log \mathcal{N}\bigl(m_t; \textstyle\sum_k a_k s_{k,t}, \gamma^2\bigr)

    Of two channels it is the sum over both.

    Draws of clean sources are conditioned on their mixture, so it is higher than that of the
    mixture's noise.

    Args:
        tree: the trace.

    Returns:
        ``mixture`` with dims ``(chain, draw, time)``; None where the trace has no noise level, or
        sources that add up to their mixture exactly.
    """
    gamma = tree.attrs.get("noise_scale")
    if "noise_scale" in tree["posterior"]:
        gamma = tree["posterior"].to_dataset()["noise_scale"]
    if tree.attrs.get("constraint") == "exact" or gamma is None or isinstance(gamma, str):
        return None
    off = (tree["observed_data"].to_dataset() - tree["posterior_predictive"].to_dataset()) / gamma
    density = sum(
        -(part**2) / 2 - np.log(gamma) - np.log(2 * np.pi) / 2
        for part in left_and_right(off["mixture"], off.get(SIDE))
    )
    return density.transpose("chain", "draw", "time").rename("mixture").to_dataset()


def _mixed(weights: NDArray[Any], sources: NDArray[Any]) -> NDArray[Any]:
    """Sum over sources ``(..., source, time)``, each times its gain."""
    mixed: NDArray[Any] = np.einsum("...k,...kt->...t", weights, sources)
    return mixed


def level_db(audio: NDArray[Any], axis: Axis = -1) -> NDArray[Any]:
    """Level of audio ``(..., time)`` in dB re full scale, as in :func:`build_trace`.

    Args:
        audio: full scale 1.
        axis: time; ``(-2, -1)`` for the level of all channels of audio ``(..., channel, time)``.
    """
    power = np.square(audio).mean(axis)
    return (10 * np.log10(np.maximum(power, TINY))).astype(np.float32)


def centroid(audio: NDArray[Any], sample_rate: int, axis: Axis = -1) -> NDArray[Any]:
    """Spectral centroid of audio ``(..., time)`` in Hz, as in :func:`build_trace`.

    Args:
        audio: full scale 1.
        sample_rate: in Hz.
        axis: as in :func:`level_db`.
    """
    magnitude = np.abs(np.fft.rfft(audio))
    frequency = np.fft.rfftfreq(audio.shape[-1], 1 / sample_rate)
    weighted = (magnitude @ frequency)[..., None].sum(axis)
    mean = weighted / np.maximum(magnitude.sum(axis), TINY)
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
    return _floats(array)


def _floats(values: ArrayLike) -> NDArray[Any]:
    """Values, floats among them in float32."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _group(variables: Mapping[str, Any], coords: Mapping[str, Any]) -> xr.Dataset:
    """A group of variables with the coordinates of their dimensions."""
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


def plain_attrs(attrs: Any) -> dict[str, str | int | float]:
    """Attributes as netCDF stores them; JSON where one is no string or number.

    Raises:
        ValueError: no mapping of names to values, or a value that JSON cannot hold either.
    """
    if not isinstance(attrs, Mapping):
        raise ValueError(f"attrs: got a {type(attrs).__name__}, expected a mapping of names")
    plain = {}
    for name, value in attrs.items():
        if not isinstance(name, str) or not _is_name(name):
            raise ValueError(
                f"attrs: got the name {name!r:.80}, expected a word without a slash, and none that "
                "netCDF uses itself"
            )
        try:
            plain[name] = _plain(value)
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"attrs: got a {type(value).__name__} as {name!r} ({reason}), expected a string, a "
                "number, or what JSON can hold"
            ) from None
    return plain


def _plain(value: Any) -> str | int | float:
    """A value that netCDF stores as an attribute; JSON where it is no string or number."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and not _is_text(value):
        raise ValueError("no text in UTF-8")
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if whole or isinstance(value, str | float):
        return value
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))


def _is_name(name: str) -> bool:
    """Whether an attribute may have a name."""
    reserved = name in NETCDF_NAMES or name.startswith("_")
    return 0 < len(name) <= NAME_MAX and "/" not in name and _is_text(name) and not reserved


def _is_text(text: str) -> bool:
    """Whether netCDF can hold a text: UTF-8 without NUL."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _versions() -> dict[str, str]:
    """The library that made the trace and the packages that it stands on."""
    versions = {"inference_library": "pyro_sep", "inference_library_version": _version("pyro-sep")}
    return versions | {f"{name.replace('-', '_')}_version": _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source checkout, or a reader's machine without torch
        return "not installed"
