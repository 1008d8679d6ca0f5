r"""One training run on several processes, each with its share of every batch.

.. math:: \nabla L = \sum_r \nabla L_r, \qquad L_r = \frac{1}{B} \sum_{i \, \equiv \, r} \ell_i

Every process draws the same B frames, takes every R-th of them, and adds its loss and gradient to
those of the others: R processes train as one does, up to rounding. torchrun starts the processes,
on CPUs or GPUs, of one machine or several that share a folder; Lightning Fabric joins them.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pyro_sep.checks.optional import import_optional

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        fabric: what joins them; None where this process is alone.
    """

    fabric: "Fabric | None" = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.fabric is None or self.fabric.is_global_zero

    def check(self, batch: int) -> None:
        """Raise ValueError unless a batch has a frame for every process."""
        if self.fabric is not None and self.fabric.world_size > batch:
            raise ValueError(
                f"batch: got {batch} frames for {self.fabric.world_size} processes, expected at "
                "least one for each; start fewer processes"
            )

    def share(self, frames: int) -> slice:
        """Those of the first ``frames`` frames of a batch that are this process's."""
        if self.fabric is None:
            return slice(frames)
        return slice(self.fabric.global_rank, frames, self.fabric.world_size)

    def add(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Sum of the losses of all processes; each gradient becomes the sum of theirs, in place."""
        loss = loss.detach()
        if self.fabric is None:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        flat = cast(Tensor, self.fabric.all_reduce(flat, reduce_op="sum"))
        parts = flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[0]


def start_ranks(device: torch.device) -> tuple[Ranks, torch.device]:
    """Join the processes that torchrun has started; this one alone where it has not.

    Args:
        device: of what kind each process takes one.

    Returns:
        The processes, and this one's device.

    Raises:
        ValueError: there are several, and Lightning Fabric is not installed.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(), device
    lightning = import_optional("lightning_fabric", f"torchrun of {size} processes", "train")
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = size // local
    fabric = lightning.Fabric(
        accelerator=device.type, strategy="ddp", devices=local, num_nodes=nodes
    )
    fabric.launch()
    return Ranks(fabric), fabric.device
