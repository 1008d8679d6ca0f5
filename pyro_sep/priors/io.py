"""Priors on disk: safetensors with the network's config in the header, one file a source.

A set of priors is a folder with a ``priors.json``::

    {"priors": ["wavenet/sine", "wavenet/saw"], "mixing": "mean", "estimate": "mode"}

``priors`` are its priors in order, as paths without suffix from the folder, so that each may come
from another set. ``mixing`` says whether a mixture is the sum of its sources or their mean, and
``estimate`` which estimate suits (:func:`pyro_sep.separate`). A folder of ``NAME.safetensors``
without a ``priors.json`` is of recordings: their mixture is a sum, its estimate the mean, and the
sources are in the order of their names. The sets that ship lie in ``pyro_sep/weights``.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_sep.audio.resampling import check_rate
from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.data.tracks import check_source_name, check_source_names
from pyro_sep.models.arithmetic import plain_arithmetic
from pyro_sep.models.registry import FAMILIES, NetworkConfig, build, empty_weights, family_of
from pyro_sep.models.soundness import WEIGHT_MAX, unsound_weight
from pyro_sep.models.waveform import WaveformConfig
from pyro_sep.priors.base import UNSTATED, Estimate, MixingRule, stated
from pyro_sep.priors.networks import PRIORS, NetworkPrior
from pyro_sep.priors.waveform import WaveformPrior
from pyro_sep.storage.files import atomic_write_bytes, save_json

SHIPPED = Path(__file__).parent.parent / "weights"
ORACLE = "toy/oracle"
JOIN = "+"  # of several sets
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
SET_FILE = "priors.json"
SET_LOCK = ".pyro-sep-priors.lock"
FORMAT = "pyro_sep.{}.1"
FORMATS = {FORMAT.format(family): family for family in FAMILIES}
SET_BYTES = 1 << 20  # of a priors.json at most
ASCENTS = 2  # folders that an entry of it may go up: to a neighbour of the set, or of what holds it


class PriorSet(NamedTuple):
    """The content of a ``priors.json``."""

    priors: list[str]
    mixing: str
    estimate: str


def add_to_set(folder: Path, prior: NetworkPrior) -> Path:
    """Write a prior to NAME.safetensors and its name to the folder's priors.json; the former path.

    Several processes may add to one folder at the same time.

    Args:
        folder: of the set, made where it is missing.
        prior: whose ``mixing`` and ``estimate`` become those of the set where it has no priors yet.

    Raises:
        ValueError: a set of another mixing or estimate; a prior that :func:`save_prior` refuses.
        OSError: the folder cannot be written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     add_to_set(Path(folder), load_priors("toy/wavenet")["sine"]).name
    ...     load_priors(folder)["sine"].mixing
    'sine.safetensors'
    'mean'
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prior.name}.safetensors"
    with FileLock(folder / SET_LOCK):
        try:
            check_set(folder, prior.mixing, prior.estimate)
            entries = {PurePosixPath(entry).name: entry for entry in _read_set(folder).priors}
            save_prior(prior, path)
            names = [*(entries | {prior.name: prior.name}).values()]
            content = PriorSet(names, prior.mixing, prior.estimate)
            save_json(content._asdict(), folder / SET_FILE)
        finally:  # before it is released: a process that waits for it then makes a new one
            (folder / SET_LOCK).unlink(missing_ok=True)
    return path


def check_set(folder: Path, mixing: str, estimate: str) -> None:
    """Raise ValueError where a folder holds a set of another mixing or estimate."""
    if not folder.is_dir():
        return
    names, *there = _read_set(folder)
    if names and there != [mixing, estimate]:
        raise ValueError(
            f"{folder}: got priors of mixing {there[0]!r} and estimate {there[1]!r}, expected "
            f"{mixing!r} and {estimate!r}; give another folder"
        )


def save_priors(priors: Mapping[str, NetworkPrior], folder: str | PathLike[str]) -> None:
    """Write a set of priors that :func:`load_priors` reads: their weights, and a priors.json.

    Args:
        priors: by source name, of one mixing and one estimate.
        folder: made where it is missing; priors of other sources that it holds stay in the set.

    Raises:
        ValueError: a name that is not its prior's; priors of sets that differ; a prior that
            :func:`add_to_set` refuses.
        OSError: the folder cannot be written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_priors(choose_priors(load_priors("toy/wavenet"), "saw, sine"), Path(folder))
    ...     list(load_priors(folder))
    ['saw', 'sine']
    """
    for prior in priors.values():
        _check_network(prior)
    if wrong := [name for name, prior in priors.items() if name != prior.name]:
        raise ValueError(
            f"priors: got {wrong[0]!r} for the prior of {priors[wrong[0]].name!r}, expected its "
            "own name"
        )
    for what in ("mixing", "estimate"):
        stated(priors, what, "save them as two sets")
    for prior in priors.values():
        add_to_set(Path(folder), prior)


def save_prior(prior: NetworkPrior, path: Path) -> None:
    """Write a prior's weights and config as one safetensors file, whole or not at all.

    Raises:
        ValueError: a prior without weights or with some that are not finite, a name that a source
            may not have (:func:`~pyro_sep.data.tracks.check_source_name`).
        OSError: the file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_prior(load_priors("toy/wavenet")["sine"], Path(folder) / "tone.safetensors")
    ...     load_prior(Path(folder) / "tone.safetensors").name
    'sine'
    """
    _check_network(prior)
    config = prior.network.config
    if isinstance(config, WaveformConfig):
        raise ValueError(
            f"prior: got the true prior of {prior.name!r}, expected a trained one; "
            f"it needs no file: load_priors({ORACLE!r})"
        )
    check_source_name(prior.name)
    check_source_name(Path(path).stem)
    check_rate("prior", prior.sample_rate)
    weights = prior.network.state_dict()
    _check_sound("prior", weights)
    metadata = {
        "format": FORMAT.format(family_of(config)),
        "name": prior.name,
        "sample_rate": str(prior.sample_rate),
        "config": json.dumps(dataclasses.asdict(config)),
        "treble": json.dumps(prior.treble),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    atomic_write_bytes(path, _in_order(save(tensors, metadata)))


def _check_network(prior: Any) -> None:
    """Raise ValueError for a prior without a network of its own, such as one of two channels."""
    if not isinstance(prior, NetworkPrior):
        own = "; save the prior of its mono audio, prior.mono" if hasattr(prior, "mono") else ""
        raise ValueError(f"prior: got a {type(prior).__name__}, expected a NetworkPrior{own}")


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose metadata are sorted; its writer has them in random order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


@plain_arithmetic()
def load_prior(path: Path, device: torch.device | str = "cpu") -> NetworkPrior:
    """The prior in a file of :func:`save_prior`, where there is an example.

    The config in the header is compared with the tensors in the file before memory is allocated.

    Raises:
        ValueError: not a safetensors file, not one of ours, weights that do not fit their config or
            are not finite, or a name that a source may not have.
    """
    with _readable(path), safe_open(_file(path), framework="pt") as file:
        metadata = file.metadata() or {}
        family = FORMATS.get(metadata.get("format", ""))
        if family is not None:
            with _foreign(path):
                config, name, sample_rate, treble = _header(family, metadata)
                _check_shapes(file, config)
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if family is None:
        raise ValueError(
            f"{path}: got format {metadata.get('format')!r:.80}, expected one of "
            f"{', '.join(FORMATS)}; train the prior with `pyro-sep train`"
        )
    _check_sound(path, tensors)
    with _foreign(path):
        network = build(config)
        network.load_state_dict(tensors)
        return PRIORS[family](network.to(device), name=name, sample_rate=sample_rate, treble=treble)


def _file(path: Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    return path


def _header(
    family: str, metadata: Mapping[str, str]
) -> tuple[NetworkConfig, str, int, list[float]]:
    """Config, name of the source, sample rate and treble, none in files from before it was kept."""
    values = dict(json.loads(metadata["config"]))
    if values.get("companding") == "linear":  # of files from before that was the only one
        del values["companding"]
    config = FAMILIES[family].config(**values)
    if absent := [part for part in ("sigma_data", "sigma_min", "sigma_max") if part not in values]:
        raise ValueError(f"config: got none of {absent[0]}, expected it")
    name, sample_rate = metadata["name"], int(metadata["sample_rate"])
    check_source_name(name)
    check_rate("sample_rate", sample_rate)
    return config, name, sample_rate, json.loads(metadata.get("treble", "[]"))


def _check_shapes(file: Any, config: NetworkConfig) -> None:
    """Raise ValueError unless the tensors of a file are those of a config, by name and shape."""
    weights = empty_weights(config)
    wanted = {name: list(weight.shape) for name, weight in weights.items()}
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    shapes = {key: part.get_shape() for key, part in slices.items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            raise ValueError(
                f"{name:.80}: got shape {shapes.get(name)}, expected {wanted.get(name)}"
            )
        dtype = slices[name].get_dtype()
        if (dtype in FLOATS) != weights[name].is_floating_point():
            raise ValueError(f"{name}: got numbers of type {dtype}, expected {weights[name].dtype}")


def _check_sound(owner: object, weights: Mapping[str, Tensor]) -> None:
    if strange := unsound_weight(weights):
        raise ValueError(
            f"{owner}: got NaN, infinity or more than {WEIGHT_MAX:g} in the weights {strange}, "
            "expected finite ones; train them again with a smaller learning rate"
        )


@plain_arithmetic()
def load_priors(
    name_or_folder: str | Path, device: torch.device | str = "cpu"
) -> dict[str, NetworkPrior]:
    """A set of priors by source name, in the set's order.

    Each prior states the set's ``mixing`` and ``estimate``, which are the defaults of
    :func:`pyro_sep.separate`.

    Args:
        name_or_folder: a set that ships, or a folder; several of them joined by ``+``, such as
            ``"music+MINE"``. ``"toy"`` holds for each source the prior that is best by measurement,
            ``"toy/wavenet"`` and ``"toy/flow"`` those of one family, ``"toy/oracle"`` the true
            ones, :class:`~pyro_sep.priors.WaveformPrior`.
        device: where the networks go.

    Raises:
        ValueError: no such set or folder, a file that is not a prior, a source that two of the sets
            have, differing sample rates.

    >>> list(load_priors("toy"))
    ['sine', 'saw', 'square', 'triangle']
    """
    whole = str(name_or_folder)
    parts = [whole] if Path(whole).is_dir() else whole.split(JOIN)
    sets = [_load_set(part, device) for part in parts]
    priors = {name: prior for known in sets for name, prior in known.items()}
    if len(priors) < sum(map(len, sets)):
        twice = next(name for name in priors if sum(name in known for known in sets) > 1)
        raise ValueError(
            f"priors: got two of the source {twice!r} in {whole!r}, expected one of each"
        )
    rates = {prior.sample_rate for prior in priors.values()}
    if len(rates) > 1:
        raise ValueError(f"{whole}: priors of differing sample rates {sorted(rates)}; expected one")
    return priors


def _load_set(name_or_folder: str, device: torch.device | str) -> dict[str, NetworkPrior]:
    """The priors of one set or folder."""
    name = name_or_folder.rstrip("/") or name_or_folder
    if name == ORACLE:
        return {name: WaveformPrior.of(name).to(device) for name in WAVEFORMS}
    folder = _shipped().get(name, Path(name))  # by name: "." is the working folder
    if not name or not folder.is_dir():
        raise ValueError(
            f"priors: got {name_or_folder!r}, "
            f"expected a shipped set ({', '.join(shipped_sets())}) or a folder"
        )
    content = _read_set(folder)
    paths = {PurePosixPath(e).name: folder / f"{e}.safetensors" for e in content.priors}
    if len(paths) < len(content.priors):
        raise ValueError(f"{folder / SET_FILE}: got a source twice, expected one prior of each")
    try:
        check_source_names(paths)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if not paths:
        raise ValueError(f"{folder}: no *.safetensors in it; train priors with `pyro-sep train`")
    priors = {name: load_prior(path, device) for name, path in paths.items()}
    for prior in priors.values():
        prior.mixing, prior.estimate = content.mixing, content.estimate
    return priors


def shipped_sets() -> list[str]:
    """Names of the sets that ship.

    >>> shipped_sets()
    ['guitar', 'guitar-16k', 'music', 'music-4k', 'toy', 'toy/flow', 'toy/wavenet', 'toy/oracle']
    """
    return [*_shipped(), ORACLE]


def _shipped() -> dict[str, Path]:
    """Folders of the sets that ship, by name."""
    folders = [path for path in sorted(SHIPPED.rglob("*")) if path.is_dir()]
    return {path.relative_to(SHIPPED).as_posix(): path for path in folders}


def choose_priors(priors: Mapping[str, NetworkPrior], names: str) -> dict[str, NetworkPrior]:
    """The priors of a set by their names, separated by commas, in that order.

    Raises:
        ValueError: a name that the set does not have, a name twice, or an empty one.

    >>> list(choose_priors(load_priors("toy/oracle"), "saw, sine"))
    ['saw', 'sine']
    """
    chosen = [name.strip() for name in names.split(",")]
    if missing := [name for name in chosen if name not in priors]:
        raise ValueError(f"sources: got {missing[0]!r}, expected some of {', '.join(priors)}")
    if twice := [name for name, count in Counter(chosen).items() if count > 1]:
        raise ValueError(f"sources: got {twice[0]!r} twice, expected each once")
    return {name: priors[name] for name in chosen}


def _read_set(folder: Path) -> PriorSet:
    """The set of priors in a folder: what its priors.json says, or all weights that are there."""
    path = folder / SET_FILE
    if not os.path.lexists(path):
        names = sorted(path.stem for path in folder.glob("*.safetensors"))
        names = [name for name in names if not name.startswith(".")]  # of systems, not of users
        return PriorSet(names, **UNSTATED)
    content = None
    if path.is_file() and path.stat().st_size <= SET_BYTES:
        with suppress(ValueError, TypeError, RecursionError):
            content = PriorSet(**json.loads(path.read_text(encoding="utf-8")))
    if content is None or not _is_sound(content):
        raise ValueError(
            f'{path}: expected {{"priors": [NAME, ...], "mixing": "sum" or "mean", "estimate": '
            '"mode" or "mean"}; write it anew, or delete it'
        )
    if wrong := [entry for entry in content.priors if not _is_near(entry)]:
        raise ValueError(
            f"{path}: got the entry {wrong[0]!r:.80}, expected a path from the folder without "
            "suffix, such as wavenet/sine or ../wavenet/sine"
        )
    return content


def _is_sound(content: PriorSet) -> bool:
    """Whether the values of a priors.json are of the right types."""
    listed = isinstance(content.priors, list) and all(isinstance(e, str) for e in content.priors)
    return (
        listed and content.mixing in get_args(MixingRule) and content.estimate in get_args(Estimate)
    )


def _is_near(entry: str) -> bool:
    """Whether an entry is a path from the set's folder that goes up a little at most."""
    path = PurePosixPath(entry)
    ups = path.parts.count("..")
    goes_up_first = ".." not in path.parts[ups:]
    return bool(path.name) and not path.is_absolute() and ups <= ASCENTS and goes_up_first


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise the errors of a file that is no safetensors file as a ValueError of one line."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a readable safetensors file ({reason}); train it again or copy it anew"
        ) from None


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Raise the errors of a wrong header or wrong tensors as a ValueError of one line."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: weights do not fit their config ({reason})") from None
