"""Priors on disk: safetensors with the network's config in the header, one file a source.

A set of priors is a folder of ``NAME.safetensors``, its sources in the order of their names. Or it
is a folder with a ``priors.json``: a list of its priors in order, as paths without suffix from the
folder, so that each may come from another set. The sets that ship lie in ``pyro_sep/weights``.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch
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
from pyro_sep.priors.base import PRIORS, NetworkPrior, WaveformPrior
from pyro_sep.storage.files import atomic_write_bytes

SHIPPED = Path(__file__).parent.parent / "weights"
ORACLE = "toy/oracle"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
ORDER_FILE = "priors.json"
FORMAT = "pyro_sep.{}.1"
FORMATS = {FORMAT.format(family): family for family in FAMILIES}
ORDER_BYTES = 1 << 20  # of a priors.json at most
ASCENTS = 2  # folders that an entry of it may go up: to a neighbour of the set, or of what holds it


def save_prior(prior: NetworkPrior, path: Path) -> None:
    """Write a prior's weights and config as one safetensors file, whole or not at all.

    Raises:
        ValueError: a prior without weights or with some that are not finite, a name that a source
            may not have (:func:`~pyro_sep.data.tracks.check_source_name`).
        OSError: the file cannot be written.
    """
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
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    atomic_write_bytes(path, _in_order(save(tensors, metadata)))


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
    """Read one prior.

    What a header claims is compared with the tensors in the file before memory is taken for it.

    Raises:
        ValueError: not a safetensors file, not one of ours, weights that do not fit their config or
            are not finite, or a name that a source may not have.
    """
    with _readable(path), safe_open(_file(path), framework="pt") as file:
        metadata = file.metadata() or {}
        family = FORMATS.get(metadata.get("format", ""))
        if family is not None:
            with _foreign(path):
                config, name, sample_rate = _header(family, metadata)
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
    return PRIORS[family](network.to(device), name=name, sample_rate=sample_rate)


def _file(path: Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    return path


def _header(family: str, metadata: Mapping[str, str]) -> tuple[NetworkConfig, str, int]:
    """Config, name of the source and sample rate."""
    values = json.loads(metadata["config"])
    config = FAMILIES[family].config(**values)
    if absent := [part for part in ("sigma_data", "sigma_min", "sigma_max") if part not in values]:
        raise ValueError(f"config: got none of {absent[0]}, expected it")
    name, sample_rate = metadata["name"], int(metadata["sample_rate"])
    check_source_name(name)
    check_rate("sample_rate", sample_rate)
    return config, name, sample_rate


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

    Args:
        name_or_folder: a set that ships, or a folder. ``"toy"`` holds for each source the prior
            that is best by measurement, ``"toy/wavenet"`` and ``"toy/flow"`` those of one family,
            ``"toy/oracle"`` the true ones, :class:`~pyro_sep.priors.WaveformPrior`.
        device: where the networks go.

    Raises:
        ValueError: no such set or folder, a file that is not a prior, differing sample rates.
    """
    name = str(name_or_folder).rstrip("/") or str(name_or_folder)
    if name == ORACLE:
        return {name: WaveformPrior.of(name).to(device) for name in WAVEFORMS}
    folder = _shipped().get(name, Path(name))  # by name: "." is the working folder
    if not name or not folder.is_dir():
        raise ValueError(
            f"priors: got {str(name_or_folder)!r}, "
            f"expected a shipped set ({', '.join(shipped_sets())}) or a folder"
        )
    files = _files(folder)
    paths = {path.stem: path for path in files}
    if len(paths) < len(files):
        raise ValueError(f"{folder / ORDER_FILE}: got a source twice, expected one prior of each")
    try:
        check_source_names(paths)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if not paths:
        raise ValueError(f"{folder}: no *.safetensors in it; train priors with `pyro-sep train`")
    priors = {name: load_prior(path, device) for name, path in paths.items()}
    rates = {prior.sample_rate for prior in priors.values()}
    if len(rates) > 1:
        raise ValueError(
            f"{folder}: priors of differing sample rates {sorted(rates)}; expected one"
        )
    return priors


def shipped_sets() -> list[str]:
    """Names of the sets that ship."""
    return [*_shipped(), ORACLE]


def _shipped() -> dict[str, Path]:
    """Folders of the sets that ship, by name."""
    folders = [path for path in sorted(SHIPPED.rglob("*")) if path.is_dir()]
    return {path.relative_to(SHIPPED).as_posix(): path for path in folders}


def choose_priors(priors: Mapping[str, NetworkPrior], names: str) -> dict[str, NetworkPrior]:
    """Those of a set that are named, separated by commas, in that order; spaces do not matter.

    Raises:
        ValueError: a name that the set does not hold, a name twice, or an empty one.
    """
    chosen = [name.strip() for name in names.split(",")]
    if missing := [name for name in chosen if name not in priors]:
        raise ValueError(f"sources: got {missing[0]!r}, expected some of {', '.join(priors)}")
    if twice := [name for name, count in Counter(chosen).items() if count > 1]:
        raise ValueError(f"sources: got {twice[0]!r} twice, expected each once")
    return {name: priors[name] for name in chosen}


def _files(folder: Path) -> list[Path]:
    """The priors of a set, in its order."""
    if os.path.lexists(folder / ORDER_FILE):
        return [folder / f"{entry}.safetensors" for entry in _order(folder / ORDER_FILE)]
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if not path.name.startswith(".")]  # of systems, not of users


def _order(path: Path) -> list[str]:
    names = None
    if path.is_file() and path.stat().st_size <= ORDER_BYTES:
        with suppress(ValueError, RecursionError):
            names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a JSON list of names; write it anew, or delete it")
    if wrong := [name for name in names if not _is_near(name)]:
        raise ValueError(
            f"{path}: got the entry {wrong[0]!r:.80}, expected a path from the folder without "
            "suffix, such as wavenet/sine or ../wavenet/sine"
        )
    return names


def _is_near(entry: str) -> bool:
    """Whether an entry is a path from the set's folder that goes up a little at most."""
    path = PurePosixPath(entry)
    ups = path.parts.count("..")
    goes_up_first = ".." not in path.parts[ups:]
    return bool(path.name) and not path.is_absolute() and ups <= ASCENTS and goes_up_first


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what comes of a file that is no safetensors file into one line."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a readable safetensors file ({reason}); train it again or copy it anew"
        ) from None


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Turn what a wrong header or wrong tensors raise into one line."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: weights do not fit their config ({reason})") from None
