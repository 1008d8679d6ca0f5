"""Whatever NumPy and torch take is taken; all else is one line."""

import array
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_sep.checks.arguments import (
    audio,
    choice,
    flag,
    number,
    positive,
    shown,
    whole,
)

WAVE = np.sin(np.arange(300) / 9)
TAKEN = {
    "float64": WAVE,
    "float16": WAVE.astype("f2"),
    "big-endian": WAVE.astype(">f4"),
    "longdouble": WAVE.astype(np.longdouble),
    "backwards": WAVE[::-1][::-1],
    "strided": np.stack([WAVE, WAVE], 1)[:, 0],
    "read-only": np.frombuffer(WAVE.tobytes()),
    "list": WAVE.tolist(),
    "tuple": tuple(WAVE),
    "list of tensors": list(torch.tensor(WAVE).requires_grad_()),
    "array.array": array.array("d", WAVE),
    "memoryview": memoryview(WAVE),
    "DataArray": xr.DataArray(WAVE),
    "tensor": torch.tensor(WAVE),
    "bfloat16": torch.tensor(WAVE).bfloat16(),
    "gradient": torch.tensor(WAVE).requires_grad_(),
    "parameter": torch.nn.Parameter(torch.tensor(WAVE)),
    "conjugate": torch.tensor(WAVE + 0j).conj().real,
    "expanded": torch.tensor(WAVE)[:, None].expand(-1, 2)[:, 1],
}


@pytest.mark.parametrize("value", TAKEN.values(), ids=TAKEN)
def test_audio_of_any_type_of_floats(value: Any) -> None:
    taken = audio("mixture", value)
    assert (taken.dtype, taken.shape, taken.requires_grad) == (torch.float32, (300,), False)
    rough = 1e-2 if getattr(value, "dtype", None) in (torch.bfloat16, np.float16) else 1e-7
    assert np.abs(taken.numpy() - WAVE).max() < rough


def test_audio_is_a_copy() -> None:
    for value in (torch.ones(3), np.ones(3, "f4")):
        audio("mixture", value).mul_(2)
        assert float(value.sum()) == 3


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_type_and_device_do_not_matter(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"), torch.inference_mode():
            taken = audio("mixture", WAVE.tolist())
    finally:
        torch.set_default_dtype(torch.float32)
    assert (taken.dtype, taken.device.type) == (torch.float32, "cpu")


class Odd:
    """Raises what it will."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise KeyError("first line\nsecond line")


REFUSED = {
    "int16": np.ones(300, "i2"),
    "uint8": np.ones(300, "u1"),
    "int tensor": torch.ones(300, dtype=torch.int32),
    "list of int": [0, 1],
    "complex": WAVE + 0j,
    "complex tensor": torch.tensor(WAVE + 0j),
    "bool": WAVE > 0,
    "bool tensor": torch.tensor(WAVE > 0),
    "object": np.array([0.1, None]),
    "string": "mixture.wav",
    "bytes": b"RIFF",
    "strings": ["0.1"],
    "None": None,
    "mapping": {"mixture": WAVE},
    "generator": (x for x in WAVE),
    "ragged": [[0.1], [0.1, 0.2]],
    "masked": np.ma.masked_less(WAVE, 0),
    "dates": WAVE.astype("M8[s]"),
    "records": np.zeros(3, "f4,f4"),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.ones(3, device="meta"),
    "odd": Odd(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_audio_is_said_in_a_line(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^mixture: got .+, expected audio in floats") as caught:
        audio("mixture", REFUSED[kind])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    assert ("int16 by 32768" in message) == ("int" in kind)


NUMBERS = (0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2), torch.tensor(0.5), np.array(0.5))
NO_NUMBERS = (True, np.True_, "0.5", None, [0.5], 0.5j, Decimal("0.5"), torch.ones(1), object())
INTEGERS = (3, np.int8(3), np.uint64(3), torch.tensor(3), np.array(3))
NO_INTEGERS = (3.0, np.float64(3), "3", None, True, np.True_, [3], torch.tensor(3.0), torch.ones(2))


def test_numbers_of_any_type() -> None:
    assert [number("x", value) for value in NUMBERS] == [0.5] * len(NUMBERS)
    assert [whole("n", value, "a count") for value in INTEGERS] == [3] * len(INTEGERS)
    assert {type(whole("n", value, "a count")) for value in INTEGERS} == {int}
    assert [flag("b", value) for value in (True, np.True_, torch.tensor(True))] == [True] * 3
    assert choice("word", "exact", ("exact", "gaussian")) == "exact"


@pytest.mark.parametrize(
    ("take", "values"),
    [
        (lambda value: number("x", value), (*NO_NUMBERS, float("nan"), float("inf"), 10**400)),
        (lambda value: positive("x", value), (0, -0.5, np.float32(-1), float("nan"))),
        (lambda value: number("x", value, "a share", 0, 1), (0, 1, -0.5, 1.5)),
        (lambda value: whole("x", value, "a count"), (*NO_INTEGERS, -1, 2**63, 10**400)),
        (lambda value: flag("x", value), (0, 1, "no", None, [True])),
        (lambda value: choice("x", value, ("a", "b")), ("c", "", None, ["a"], WAVE, 1)),
    ],
)
def test_what_is_none_is_said_in_a_line(take: Callable[[Any], Any], values: tuple[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=r"^x: got .+, expected .+") as caught:
            take(value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 150


def test_what_was_given_is_shown_in_a_part_of_a_line() -> None:
    assert shown(torch.zeros(2, 3)) == "a tensor of shape (2, 3)"
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 999)) == 80
