"""The state of a run in one file that tells of any damage: the format of all checkpoints.

A file is what ``torch.save`` writes, a ZIP archive whose comment is a seal
(:mod:`pyro_sep.storage.seals`). So a file that is cut off, damaged, foreign, of another kind or of
another version is known before anything of it is unpickled. What is unpickled are tensors and plain
values (``weights_only``), and no more of them than the file has bytes.
"""

import io
import pickletools
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from pyro_sep.storage.files import atomic_write_bytes
from pyro_sep.storage.seals import check_seal, seal_length, sealed

VERSION = 2  # 1 had neither its number nor a checksum in it
CALLED = re.compile(r"torch._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict")


def save_state(path: str | PathLike[str], kind: str, state: Mapping[str, Any]) -> None:
    """Write a state of tensors, plain values, and lists and dicts of them, whole or not at all.

    Args:
        path: of the file.
        kind: of the run, such as ``"training"``.
        state: what :func:`load_state` gives back.

    Raises:
        OSError: the file cannot be written.
    """
    archive = io.BytesIO()  # torch.save raises anything but OSError where the disk is full
    torch.save(dict(state), archive)
    archive.seek(-2, io.SEEK_END)  # the length of the comment, which torch leaves empty
    archive.write(struct.pack("<H", seal_length(_format(kind))))
    atomic_write_bytes(path, sealed(archive.getbuffer(), _format(kind)))


def load_state(path: str | PathLike[str], kind: str) -> dict[str, Any]:
    """The state that :func:`save_state` wrote, on the CPU.

    Args:
        path: of the file.
        kind: of the run.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or no state of this kind and version.
    """
    with readable(path, kind):
        check_seal(Path(path), _format(kind))
        content = Path(path).read_bytes()
        _check_archive(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(map(_is_whole, _tensors(state))):
            raise ValueError("it claims more than is there")
        return state


@contextmanager
def readable(path: str | PathLike[str], kind: str) -> Iterator[None]:
    """Turn all that comes of a state which is not what it should be into one line.

    Raises:
        ValueError: anything but an OSError was raised in the block.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # there is no end to what foreign values raise
        reason = "a part of it is not what it should be"
        if isinstance(error, KeyError):
            reason = f"it lacks {error}"
        elif type(error) is ValueError and str(error):
            reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: got no readable checkpoint ({reason}), expected that of a {kind}; delete it "
            "to start anew"
        ) from error


def check_like(name: str, value: Any, like: Any) -> None:
    """Raise ValueError unless a part of a state has the types, shapes and keys of another.

    Args:
        name: of the part.
        value: the part.
        like: what it should be like; an entry of a dict, list or tensor may differ in its value.
    """
    same = type(value) is type(like)
    if isinstance(like, Tensor) and same:
        same = (value.dtype, value.shape) == (like.dtype, like.shape)
    elif isinstance(like, dict) and same:
        same = value.keys() == like.keys()
    elif isinstance(like, list | tuple) and same:
        same = len(value) == len(like)
    if not same:
        raise ValueError(f"{name} is {_brief(value)} in place of {_brief(like)}")
    if isinstance(like, dict):
        for key in like:
            check_like(f"{name} {key}", value[key], like[key])
    elif isinstance(like, list | tuple):
        for i, (part, other) in enumerate(zip(value, like, strict=True)):
            check_like(f"{name} {i}", part, other)


def check_shapes(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError unless tensors of a part are of floats and of these shapes."""
    floats = all(isinstance(part, Tensor) and part.is_floating_point() for part in tensors)
    if not floats or [tuple(part.shape) for part in tensors] != list(shapes):
        raise ValueError(f"{name} is {[_brief(part) for part in tensors]} in place of {shapes}")


def _format(kind: str) -> str:
    return f"{kind}.{VERSION}"


def _check_archive(content: bytes) -> None:
    """Raise ValueError where an archive would grow as it is read, or calls for what is not ours."""
    with ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("it claims more than is there")
        (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            called = argument if opcode.name == "GLOBAL" else ""
            if opcode.name == "STACK_GLOBAL" or (called and not CALLED.fullmatch(str(called))):
                raise ValueError(f"it calls for {called!r}")


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is on the CPU, and no view of more than its storage."""
    claimed = tensor.numel() * tensor.element_size()
    return tensor.is_cpu and claimed <= tensor.untyped_storage().nbytes()


def _tensors(state: Any) -> Iterator[Tensor]:
    """All tensors of a state; what is in it twice is visited once."""
    seen, left = set(), [state]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def _brief(value: Any) -> str:
    """What there is to say of a part in a line."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:9]))}"[:100]
    sized = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return f"a {type(value).__name__}{sized}"
