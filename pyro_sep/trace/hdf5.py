"""What a netCDF file holds, asked before it is read: HDF5 can refer to much that is not in it.

Links to other files or paths are refused. A variable that lies in another file (external storage,
virtual datasets), lacks chunks, or goes through a filter of others, has a fault, and is not read.
"""

import math
import struct
from collections.abc import Mapping, Set
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from pyro_sep.trace.layout import Stored, TraceError, groups_of

FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
INTERNAL = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST"}
HEAP = b"GCOL\x01\0\0\0"  # how it begins
ATTRIBUTE_MAX = 1 << 10  # values
TEXT_BYTES = 16  # of a reference to a text in the file's heap


def stored_variables(path: Path) -> dict[str, dict[str, Stored]]:
    """Variables of a file by name and group of a trace; no others, and no groups below these.

    Args:
        path: of the file.

    Raises:
        OSError: no HDF5 file.
        TraceError: a link.
    """
    _check_heaps(path)
    with h5py.File(path, "r") as file:
        _check_links(file)
        groups = {name: file[name] for name in groups_of(file)}
        for group in groups.values():
            _check_links(group)
        return {
            name: {
                key: _stored(key, part)
                for key, part in group.items()
                if isinstance(part, h5py.Dataset)
            }
            for name, group in groups.items()
            if isinstance(group, h5py.Group)
        }


def read(path: Path, chosen: Mapping[str, Set[str]]) -> xr.DataTree:
    """Those variables of a file, in memory, and the attributes of the file.

    By h5py alone: readers of netCDF take what other variables claim for sizes of these.

    Args:
        path: of the file.
        chosen: their names by group, all without a fault.
    """
    with h5py.File(path, "r") as file:
        groups = {"/": xr.Dataset(attrs=_attributes(file))}
        for group, names in chosen.items():
            parts = {name: _variable(name, file[group][name]) for name in sorted(names)}
            groups[group] = xr.decode_cf(xr.Dataset(parts), decode_times=False)
    return xr.DataTree.from_dict(groups)


def _variable(name: str, dataset: h5py.Dataset) -> xr.Variable:
    if h5py.check_string_dtype(dataset.dtype) is None:
        values = dataset[()]
    else:
        values = np.array(dataset.asstr()[()], dtype=str)
    return xr.Variable(_dims(name, dataset), values, _attributes(dataset))


def _attributes(owner: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes without those by which HDF5 and netCDF tell dimensions; one number is no array."""
    plain = {}
    for name in owner.attrs:
        if name not in INTERNAL and not name.startswith("_N"):
            value = _attribute(owner, name)
            value = "" if isinstance(value, h5py.Empty) else value
            single = isinstance(value, np.ndarray) and value.shape == (1,)
            plain[name] = value[0] if single else value
    return plain


def _attribute(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute, whose size is looked at before it is read."""
    shape = h5py.h5a.open(owner.id, name.encode()).shape
    if math.prod(shape or ()) > ATTRIBUTE_MAX:
        raise TraceError(f"got the attribute {name:.80} of {owner.name} of shape {shape}")
    return owner.attrs[name]


def _check_heaps(path: Path) -> None:
    """Raise TraceError where HDF5 would read a heap of texts for ever: an object of no size."""
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        at = content.find(HEAP)
        while at >= 0:
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            end, place = min(at + size, len(content)), at + 16
            while place + 16 <= end:
                index, length = struct.unpack_from("<H6xQ", content, place)
                step = 16 + -(-length // 8) * 8 if index else length
                if step < 16:
                    raise TraceError(f"got a heap with an object of {step} bytes")
                place += step
            at = content.find(HEAP, at + 1)


def _check_links(group: h5py.Group) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise TraceError(f"got a link at {group.name}/{name}, expected what it leads to")


def _stored(name: str, dataset: h5py.Dataset) -> Stored:
    sizes = dict(zip(_dims(name, dataset), dataset.shape, strict=False))
    if len(sizes) != len(dataset.shape):
        sizes = {"": 0}  # a dimension without a name, or one twice: no variable of a trace
    text = h5py.check_string_dtype(dataset.dtype) is not None
    item = TEXT_BYTES if text else dataset.dtype.itemsize
    nbytes = item * math.prod(_padded(dataset))
    return Stored(sizes, "U" if text else dataset.dtype.kind, nbytes, _fault(dataset, nbytes))


def _dims(name: str, dataset: h5py.Dataset) -> list[str]:
    """Names of the dimensions; a dimension's own variable is called after it."""
    there = set(dataset.attrs)
    if "CLASS" in there and _attribute(dataset, "CLASS") == b"DIMENSION_SCALE":
        return [name]
    if "DIMENSION_LIST" not in there:
        return []
    scales = _attribute(dataset, "DIMENSION_LIST")  # references
    names = [h5py.h5r.get_name(scale[0], dataset.id) or b"" for scale in scales]
    return [path.decode().rpartition("/")[2] for path in names]


def _padded(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Shape of all chunks together."""
    chunks = dataset.chunks or (1,) * len(dataset.shape)
    pairs = zip(dataset.shape, chunks, strict=True)
    return tuple(-(-size // chunk) * chunk for size, chunk in pairs)


def _fault(dataset: h5py.Dataset, nbytes: int) -> str:
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if dataset.external or dataset.is_virtual:
        return "in another file"
    if filters - FILTERS:
        return f"through the filters {sorted(filters - FILTERS)}"
    if dataset.chunks:
        pairs = zip(dataset.shape, dataset.chunks, strict=True)
        wanted = math.prod(-(-size // chunk) for size, chunk in pairs)
        return "with missing chunks" if dataset.id.get_num_chunks() != wanted else ""
    return "without its values" if dataset.id.get_storage_size() != nbytes else ""
