"""What the caller has set of torch is put back, and changes nothing in between."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pyro_sep.models.arithmetic import denormals_flushed, plain_arithmetic, sampling_arithmetic

Manager = Callable[[], Any]


@pytest.fixture(autouse=True)
def kept() -> None:
    """Denormal numbers are there, whatever another test has set for its process."""
    torch.set_flush_denormal(False)


def denormals() -> tuple[bool, bool, bool, bool]:
    """Whether torch, in small and large tensors, NumPy and Python keep such a number."""
    small, large = (torch.full((size,), 1e-42) * torch.ones(size) for size in (1, 1 << 18))
    array = np.full(8, 1e-42, "f4") * np.float32(1)
    return bool(small.all()), bool(large.all()), bool(array.all()), sys.float_info.min / 2 > 0


@contextmanager
def unusual(dtype: torch.dtype) -> Iterator[None]:
    """Other defaults of torch."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("manager", [denormals_flushed, sampling_arithmetic])
def test_denormals_are_back_after_an_error(manager: Manager) -> None:
    assert all(denormals())

    @manager()
    def fail() -> None:
        assert not denormals()[0]
        with manager():
            pass
        assert not denormals()[0]  # those of the block around it
        raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert all(denormals())


def test_who_had_denormals_flushed_keeps_it() -> None:
    torch.set_flush_denormal(True)
    try:
        with denormals_flushed():
            assert not denormals()[0]
        assert not denormals()[0]
    finally:
        torch.set_flush_denormal(False)


def test_denormals_of_another_thread_are_left_alone() -> None:
    found: list[bool] = []
    with denormals_flushed():
        thread = threading.Thread(target=lambda: found.append(denormals()[0]))
        thread.start()
        thread.join()
    assert all(denormals())
    assert len(found) == 1


@pytest.mark.parametrize("manager", [plain_arithmetic, sampling_arithmetic])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_plain_arithmetic_is_float32_on_the_cpu(manager: Manager, dtype: torch.dtype) -> None:
    @manager()
    def fail() -> None:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert (product.dtype, product.device.type) == (torch.float32, "cpu")
        raise RuntimeError("within")

    with unusual(dtype):
        with pytest.raises(RuntimeError, match="within"):
            fail()
        assert torch.get_default_dtype() == dtype
        assert torch.get_default_device().type == "meta"
        assert torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_sampler_has_gradients(mode: Manager) -> None:
    @sampling_arithmetic()
    def gradient(of: torch.Tensor) -> torch.Tensor:
        x = of.clone().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x)[0]

    with mode():
        x = torch.ones(2)
        assert gradient(x).tolist() == [2, 2]
        assert not torch.is_grad_enabled()
