"""Arguments as people have them in hand: what they are taken for, or one line that says why not.

The module does not import torch: the command line reads the defaults of its options by it.
"""

import math
import operator
import sys
from collections.abc import Collection
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def number(
    name: str,
    value: Any,
    expected: str = "a finite number",
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """A number of any type, but for truth values, as a float.

    Args:
        name: of the argument.
        value: as it was given.
        expected: what to say of it.
        above: the number is above it.
        below: the number is below it.

    Raises:
        ValueError: it is no number, or not between the two.

    >>> number("step_size", np.float32(0.5), "a positive number", above=0)
    0.5
    """
    value = _scalar(value)
    try:
        taken = math.nan if not isinstance(value, Real) or _is_truth(value) else float(value)
    except OverflowError:
        taken = math.inf
    if not above < taken < below:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return taken


def positive(name: str, value: Any) -> float:
    """A positive finite number, as a float; see :func:`number`."""
    return number(name, value, "a positive number", above=0)


def whole(name: str, value: Any, expected: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number of any integer type, as an int.

    Raises:
        ValueError: it is of no integer type, or not from ``least`` to ``most``.

    >>> whole("seed", np.int64(7), "a whole number from 0 on")
    7
    """
    value = _scalar(value)
    try:
        taken = None if _is_truth(value) else operator.index(value)
    except TypeError:
        taken = None
    if taken is None or not least <= taken <= most:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return taken


def flag(name: str, value: Any) -> bool:
    """A truth value.

    Raises:
        ValueError: it is none.
    """
    value = _scalar(value)
    if not _is_truth(value):
        raise ValueError(f"{name}: got {shown(value)}, expected True or False")
    return bool(value)


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of some words.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(choices)}")
    return value


def numbers(name: str, value: Any, expected: str) -> tuple[float, ...]:
    """Numbers in a row, as a list, a tuple, an array or a tensor; see :func:`number`."""
    row = value.tolist() if _is_array(value) and value.ndim == 1 else value
    try:
        if not isinstance(row, list | tuple):
            raise ValueError
        return tuple(number(name, part) for part in row)
    except ValueError:
        raise ValueError(f"{name}: got {shown(row)}, expected {expected}") from None


def audio(name: str, value: Any, device: "torch.device | None" = None) -> "Tensor":
    """Audio of any type of floats as a tensor in float32, without a gradient: a copy.

    Args:
        name: of the argument.
        value: what NumPy or torch take for an array, full scale 1. Integers are refused: how far
            their scale reaches, their type does not say for sure.
        device: of the result; that of the audio where None.

    Raises:
        ValueError: it is of no type of floats, sparse, or without content.

    >>> audio("mixture", [0.1, 0.2]).dtype
    torch.float32
    """
    import torch

    if not isinstance(value, torch.Tensor):
        value = _from_numpy(name, value)
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_meta or value.is_nested or value.layout != torch.strided:
        kind = "a tensor without content" if value.is_meta else "a sparse or nested tensor"
    elif value.is_floating_point():
        return value.detach().to(device, torch.float32, copy=True)
    raise _no_audio(name, kind)


def shown(value: Any) -> str:
    """What was given, in a part of a line.

    >>> shown(np.zeros((2, 3)))
    'an array of shape (2, 3)'
    """
    if _is_array(value) and value.ndim:
        kind = "an array" if isinstance(value, np.ndarray) else "a tensor"
        return f"{kind} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _from_numpy(name: str, value: Any) -> "Tensor":
    """Audio that is no tensor, of any byte order, in float32."""
    import torch

    if isinstance(value, list | tuple):  # torch takes no list of tensors, NumPy none with gradients
        value = [part.detach().cpu().float() if _is_floats(part) else part for part in value]
    try:
        array = np.asarray(value)
        if np.ma.is_masked(value):
            raise ValueError("masked values")
    except Exception as error:  # there is no end to what a foreign __array__ raises
        reason = str(error).splitlines()[0].split(". ")[0]
        raise _no_audio(name, f"{type(value).__name__} ({reason})") from None
    if array.dtype.kind != "f":
        raise _no_audio(name, shown(value) if array.dtype.kind in "OSU" else array.dtype.name)
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32))


def _no_audio(name: str, got: str) -> ValueError:
    remedy = "give what soundfile.read gives, or a dense tensor"
    if got.startswith(("int", "uint", "qint", "quint")):
        remedy = "divide by the full scale of the type: int16 by 32768, int32 by 2147483648"
    return ValueError(f"{name}: got {got}, expected audio in floats, full scale 1; {remedy}")


def _is_floats(value: Any) -> bool:
    is_tensor = _is_array(value) and not isinstance(value, np.ndarray)
    return bool(is_tensor and value.is_floating_point() and not value.is_meta)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _scalar(value: Any) -> Any:
    """What a tensor or an array without axes holds."""
    holds = _is_array(value) and value.ndim == 0
    return value.item() if holds and not getattr(value, "is_meta", False) else value


def _is_array(value: Any) -> bool:
    """Whether it is an array or a tensor; there are no tensors before torch is imported."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))
