"""A trace on disk while it grows: a Zarr store to which draws are written block by block.

The store has its full size from the first block on. Groups without draws, and the attributes, are
written last: a store without attributes is not finished. Every chunk has a checksum. Needs no
torch.
"""

import math
import struct
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter

from pyro_sep.checks.optional import import_optional
from pyro_sep.trace.layout import GROUPS, Stored, TraceError, groups_of

#: Groups that grow with the draws.
DRAWN = ("posterior", "sample_stats", "posterior_predictive", "log_likelihood")
FORMAT: dict[str, Any] = {"zarr_format": 2, "consolidated": False}  # 3 has no strings yet
METADATA_MAX = 1 << 20  # bytes
BLOSC_HEADER, CHECKSUM = 16, 4  # bytes
LZ4_MAX = 300  # by which LZ4 can compress, and a little more


class TraceStore:
    """A trace of ``draws`` draws per chain, written block by block.

    Args:
        path: of the store, ``.zarr``; an older store is replaced by the first block.
        draws: per chain.

    Raises:
        ValueError: a path of another suffix, or of something that is no Zarr store; no zarr.
    """

    def __init__(self, path: str | PathLike[str], draws: int) -> None:
        self.path, self.draws = Path(path), draws
        self._zarr = import_optional("zarr", "store", "zarr")
        if self.path.suffix != ".zarr":
            raise ValueError(f"store: got {self.path}, expected a name that ends in .zarr")
        strange = {path.name for path in self.path.glob("*/")} - {*GROUPS}
        if self.path.exists() and (strange or not (self.path / ".zgroup").exists()):
            raise ValueError(
                f"store: got {self.path}, which is there and is no store of a trace, expected a "
                "new one; give another name"
            )

    def add(self, block: xr.DataTree, first: int) -> None:
        """Write a trace of some draws, the first of which has this number.

        Blocks come in order, all but the last of one size; the same block may come again.

        Raises:
            OSError: the store cannot be written to.
        """
        with self._written():
            if first == 0:
                xr.Dataset().to_zarr(self.path, mode="w", **FORMAT)
            for name in DRAWN:
                if name in block.children:
                    self._add(name, block[name].to_dataset(), first)

    def _add(self, name: str, group: xr.Dataset, first: int) -> None:
        if first == 0:
            self._create(name, group)
            return
        fixed = [key for key, part in group.variables.items() if "draw" not in part.dims]
        region = {"draw": slice(first, first + group.sizes["draw"])}
        group.drop_vars(fixed).to_zarr(self.path, group=name, region=region, consolidated=False)

    def _create(self, name: str, group: xr.Dataset) -> None:
        """Write the first block, a chunk per chain and source, and make room for the others."""
        single = {"chain": 1, "source": 1}
        encoding = _encoding(group)
        for key, array in group.data_vars.items():
            chunks = tuple(single.get(str(dim), array.sizes[dim]) for dim in array.dims)
            encoding[key]["chunks"] = chunks
        group.to_zarr(self.path, group=name, mode="w", encoding=encoding, **FORMAT)
        arrays: Any = self._zarr.open_group(self.path / name, mode="r+")
        for key, part in group.variables.items():
            sizes = {**part.sizes, "draw": self.draws}
            arrays[key].resize(tuple(sizes[dim] for dim in part.dims))
        arrays["draw"][:] = np.arange(self.draws)

    def check(self, lp: ArrayLike, draw: int) -> None:
        """Check that the store has a draw, by its log posterior ``(chain,)``.

        Raises:
            ValueError: no store, or one of other draws.
        """
        try:
            stats = xr.open_zarr(self.path, group="sample_stats", chunks=None, consolidated=False)
            same = np.array_equal(stats["lp"][:, draw], np.asarray(lp, np.float32), equal_nan=True)
        except Exception:  # there is no end to what a damaged store raises
            same = False
        if not same:
            raise ValueError(
                f"store: got {self.path} without the draws of its checkpoint, expected {draw + 1} "
                "of them; put it back, or delete the checkpoint"
            )

    def finish(self, tree: xr.DataTree) -> None:
        """Write the groups of a trace that do not grow with the draws, and then its attributes.

        Raises:
            OSError: the store cannot be written to.
        """
        with self._written():
            for name in tree.children:
                if name not in DRAWN:
                    group = tree[name].to_dataset()
                    encoding = _encoding(group)
                    group.to_zarr(self.path, group=name, mode="w", encoding=encoding, **FORMAT)
            xr.Dataset(attrs=tree.attrs).to_zarr(self.path, mode="a", **FORMAT)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Write chunks of zeros too, so that none is missing; name a store that is not writable."""
        try:
            with self._zarr.config.set({"array.write_empty_chunks": True}):
                yield
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"{self.path}: could not be written ({reason}); check space and rights"
            ) from error


class _Codec(BaseModel):
    """A codec of chunks: bytes are reordered, given a checksum, or compressed."""

    model_config = ConfigDict(strict=True)
    id: Literal["shuffle", "crc32", "blosc"]
    elementsize: int = Field(1, ge=1, le=1 << 12)


class _Array(BaseModel):
    """The metadata of an array, ``.zarray``."""

    model_config = ConfigDict(strict=True)
    zarr_format: Literal[2]
    shape: list[NonNegativeInt] = Field(max_length=8)
    chunks: list[PositiveInt] = Field(max_length=8)
    dtype: Annotated[str, Field(pattern=r"^([<|]b1|[<|][iuf][1248]|<U\d{1,4})$")]
    order: Literal["C"]
    compressor: _Codec
    filters: list[_Codec] | None = Field(max_length=4)
    dimension_separator: Literal["."] = "."

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk as it is read."""
        return np.dtype(self.dtype).itemsize * math.prod(self.chunks)

    @property
    def counts(self) -> list[int]:
        """Numbers of chunks along the dimensions."""
        return [-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True)]

    def decodes(self, content: bytes) -> bool:
        """Whether this is the content of a chunk."""
        from numcodecs import get_codec

        codecs = [self.compressor, *reversed(self.filters or [])]
        sums = CHECKSUM * [codec.id for codec in codecs].count("crc32")
        if len(content) < BLOSC_HEADER or self.compressor.id != "blosc":
            return False
        nbytes, _, own = struct.unpack_from("<III", content, 4)
        if nbytes != self.chunk_bytes + sums or own != len(content) or nbytes > own * LZ4_MAX:
            return False
        value: Any = content
        for codec in codecs:
            options = {"elementsize": codec.elementsize} if codec.id == "shuffle" else {}
            value = get_codec({"id": codec.id, **options}).decode(value)
        return memoryview(value).nbytes == self.chunk_bytes


class _Attributes(BaseModel):
    """Those of an array, ``.zattrs``."""

    model_config = ConfigDict(strict=True)
    dims: list[str] = Field(alias="_ARRAY_DIMENSIONS", max_length=8)


def stored_variables(path: Path) -> dict[str, dict[str, Stored]]:
    """Variables of a store by name and group of a trace, each of whose chunks was decoded once.

    So damage is found here, and not when parts of a store are read later. One chunk at a time is
    in memory.

    Args:
        path: of the store.

    Raises:
        ValueError: a link, a group that is none, or an array that is not like those of a trace.
    """
    found: dict[str, dict[str, Stored]] = {}
    for name in groups_of(entry.name for entry in path.iterdir() if entry.is_dir()):
        _read(path / name / ".zgroup")
        arrays = [entry for entry in _entries(path / name) if (entry / ".zarray").exists()]
        found[name] = {array.name: _stored(array) for array in arrays}
    return found


def stored_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of a store; None of one that is not finished.

    Raises:
        ValueError: no store.
    """
    _read(path / ".zgroup")
    if not (path / ".zattrs").exists():
        return None
    attributes = TypeAdapter(dict[str, str | int | float])
    return attributes.validate_json(_read(path / ".zattrs"), strict=True) or None


def _entries(folder: Path) -> list[Path]:
    entries = list(folder.iterdir())
    if links := [entry for entry in (folder, *entries) if entry.is_symlink()]:
        raise TraceError(f"got a link, {links[0].name}, expected what it leads to")
    return entries


def _read(path: Path) -> bytes:
    """Metadata of a store."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > METADATA_MAX:
        raise ValueError(f"there is no {path.name} of a store in {path.parent.name}")
    return path.read_bytes()


def _stored(folder: Path) -> Stored:
    entries = _entries(folder)
    array = _Array.model_validate_json(_read(folder / ".zarray"))
    dims = _Attributes.model_validate_json(_read(folder / ".zattrs")).dims
    if not len(array.shape) == len(array.chunks) == len(dims) == len(set(dims)):
        raise TraceError(f"got {folder.name} of different numbers of dimensions")
    fault = _fault(array, {path.name: path for path in entries if path.name[0] != "."})
    sizes = dict(zip(dims, array.shape, strict=True))
    nbytes = array.chunk_bytes * math.prod(array.counts)
    return Stored(sizes, np.dtype(array.dtype).kind, nbytes, fault)


def _fault(array: _Array, files: dict[str, Path]) -> str:
    """What is wrong with the chunks of an array; empty if nothing is."""
    if len(files) != math.prod(array.counts):
        return "with missing chunks"
    for place in product(*map(range, array.counts)):
        name = ".".join(map(str, place)) or "0"
        if name not in files:
            return "with missing chunks"
        try:
            whole = array.decodes(files[name].read_bytes())
        except Exception:  # there is no end to what a damaged chunk raises
            whole = False
        if not whole:
            return f"with a damaged chunk {name}"
    return ""


def _encoding(group: xr.Dataset) -> dict[Hashable, dict[str, Any]]:
    """Checksums of all chunks, after their bytes are put in an order that is easily compressed."""
    from numcodecs import CRC32, Shuffle

    return {
        key: {"filters": [Shuffle(max(1, part.dtype.itemsize)), CRC32()]}
        for key, part in group.variables.items()
    }
