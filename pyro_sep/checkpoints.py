"""Priors on disk: safetensors with the network's config in the header, one file a source.

A set of priors is a folder of ``NAME.safetensors``, its sources in the order of their names. Or it
is a folder with a ``priors.json``: a list of its priors in order, as paths without suffix from the
folder, so that each may come from another set. The sets that ship lie in ``pyro_sep/weights``.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.files import written_whole
from pyro_sep.models.family import FAMILIES, build, family_of
from pyro_sep.models.waveform import WaveformConfig
from pyro_sep.priors import PRIORS, NetworkPrior, WaveformPrior

SHIPPED = Path(__file__).parent / "weights"
ORACLE = "toy/oracle"
ORDER_FILE = "priors.json"
FORMAT = "pyro_sep.{}.1"
FORMATS = {FORMAT.format(family): family for family in FAMILIES}


def save_prior(prior: NetworkPrior, path: Path) -> None:
    """Write a prior's weights and config as one safetensors file, whole or not at all.

    Raises:
        ValueError: a prior without weights.
    """
    config = prior.network.config
    if isinstance(config, WaveformConfig):
        raise ValueError(
            f"prior: got the true prior of {prior.name!r}, expected a trained one; "
            f"it needs no file: load_priors({ORACLE!r})"
        )
    metadata = {
        "format": FORMAT.format(family_of(config)),
        "name": prior.name,
        "sample_rate": str(prior.sample_rate),
        "config": json.dumps(dataclasses.asdict(config)),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in _state(prior).items()}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata)


def load_prior(path: Path, device: torch.device | str = "cpu") -> NetworkPrior:
    """Read one prior.

    Raises:
        ValueError: not a safetensors file, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); train it again or copy it anew"
        ) from None
    family = FORMATS.get(metadata.get("format", ""))
    if family is None:
        raise ValueError(
            f"{path}: got format {metadata.get('format')!r}, expected one of {', '.join(FORMATS)}; "
            "train the prior with `pyro-sep train`"
        )
    with _foreign(path):
        network = build(FAMILIES[family].config(**json.loads(metadata["config"])))
        network.load_state_dict(tensors)
        name, sample_rate = metadata["name"], int(metadata["sample_rate"])
    return PRIORS[family](network.to(device), name=name, sample_rate=sample_rate)


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
    if name_or_folder == ORACLE:
        return {name: WaveformPrior.of(name).to(device) for name in WAVEFORMS}
    folder = Path(name_or_folder)
    shipped = {
        path.relative_to(SHIPPED).as_posix(): path
        for path in sorted(SHIPPED.rglob("*"))
        if path.is_dir()
    }
    folder = shipped.get(str(name_or_folder), folder)  # by name: "." is the working folder
    if not folder.is_dir():
        raise ValueError(
            f"priors: got {str(name_or_folder)!r}, "
            f"expected a shipped set ({', '.join([*shipped, ORACLE])}) or a folder"
        )
    paths = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    if (folder / ORDER_FILE).exists():
        files = [folder / f"{entry}.safetensors" for entry in _order(folder / ORDER_FILE)]
        paths = {path.stem: path for path in files}
        if len(paths) < len(files):
            raise ValueError(
                f"{folder / ORDER_FILE}: got a source twice, expected one prior of each"
            )
    if not paths:
        raise ValueError(f"{folder}: no *.safetensors in it; train priors with `pyro-sep train`")
    priors = {name: load_prior(path, device) for name, path in paths.items()}
    rates = {prior.sample_rate for prior in priors.values()}
    if len(rates) > 1:
        raise ValueError(
            f"{folder}: priors of differing sample rates {sorted(rates)}; expected one"
        )
    return priors


def choose_priors(priors: Mapping[str, NetworkPrior], names: str) -> dict[str, NetworkPrior]:
    """Those of a set that are named, separated by commas, in that order.

    Raises:
        ValueError: a name that the set does not hold.
    """
    chosen = names.split(",")
    if missing := [name for name in chosen if name not in priors]:
        raise ValueError(f"sources: got {missing[0]!r}, expected some of {', '.join(priors)}")
    return {name: priors[name] for name in chosen}


def _order(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text())
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a JSON list of names; write it anew, or delete it")
    return names


def _state(prior: NetworkPrior) -> dict[str, torch.Tensor]:
    return prior.network.state_dict()


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Turn what a wrong header or wrong tensors raise into one line."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: weights do not fit their config ({reason})") from None
