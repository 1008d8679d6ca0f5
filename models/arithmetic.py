"""Modes of torch in which results do not depend on the caller's: context managers, decorators."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Compute in float32, by default on the CPU, and without autocast.

    Under autocast a density of thousands of nats would be summed in bfloat16, of 8 bits.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), plain_arithmetic():
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                modes.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device() != CPU:
            modes.enter_context(CPU)
        if dtype != torch.float32:
            modes.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        precision = torch.get_float32_matmul_precision()
        if precision != "highest":
            modes.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        yield


@contextmanager
def sampling_arithmetic() -> Iterator[None]:
    """:func:`plain_arithmetic` with gradients, for a sampler: under ``no_grad`` and the like too.

    Denormal numbers are flushed to zero: gradients near zero are ten times slower otherwise.

    >>> with torch.inference_mode(), sampling_arithmetic():
    ...     torch.ones(2, requires_grad=True).sum().requires_grad
    True
    """
    with torch.inference_mode(False), torch.enable_grad(), plain_arithmetic(), denormals_flushed():
        yield


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flush denormal numbers to zero in the calling thread, inside of the block.

    >>> with denormals_flushed():
    ...     print(sys.float_info.min / 2)
    0.0
    >>> sys.float_info.min / 2 > 0
    True
    """
    before = _flushes()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes() -> bool:
    """Whether denormal numbers are flushed to zero, which torch has no function to ask."""
    return sys.float_info.min / 2 == 0.0
