"""A trace on disk while it grows: a Zarr store that takes draws by region, block by block.

The store has its full size from the first block on. What is not drawn, and the attributes, are
written last: a store without attributes is not finished. Needs no torch.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike

DRAWN = ("posterior", "sample_stats", "posterior_predictive")  # groups that grow with the draws
FORMAT: dict[str, Any] = {"zarr_format": 2, "consolidated": False}  # 3 has no strings yet


class TraceStore:
    """A trace of ``draws`` draws per chain, written block by block.

    Args:
        path: of the store, ``.zarr``; an older store is replaced by the first block.
        draws: per chain.

    Raises:
        ValueError: a path of another suffix, or of something that is no Zarr store.
    """

    def __init__(self, path: str | PathLike[str], draws: int) -> None:
        self.path, self.draws = Path(path), draws
        if self.path.suffix != ".zarr":
            raise ValueError(f"store: got {self.path}, expected a name that ends in .zarr")
        if self.path.exists() and not (self.path / ".zgroup").exists():
            raise ValueError(
                f"store: got {self.path}, which is there and is no Zarr store, expected a new one; "
                "give another name"
            )

    def add(self, block: xr.DataTree, first: int) -> None:
        """Write a trace of some draws, the first of which has this number.

        Blocks come in order, all but the last of one size; the same block may come again.
        """
        if first == 0:
            xr.Dataset().to_zarr(self.path, mode="w", **FORMAT)
        for name in DRAWN:
            group = block[name].to_dataset()
            if first == 0:
                self._create(name, group)
            else:
                fixed = [key for key, part in group.variables.items() if "draw" not in part.dims]
                region = {"draw": slice(first, first + group.sizes["draw"])}
                group.drop_vars(fixed).to_zarr(
                    self.path, group=name, region=region, consolidated=False
                )

    def _create(self, name: str, group: xr.Dataset) -> None:
        """Write the first block, a chunk per chain and source, and make room for the others."""
        single = {"chain": 1, "source": 1}
        encoding = {
            key: {"chunks": tuple(single.get(str(dim), part.sizes[dim]) for dim in part.dims)}
            for key, part in group.data_vars.items()
        }
        group.to_zarr(self.path, group=name, mode="w", encoding=encoding, **FORMAT)
        arrays: Any = zarr.open_group(self.path / name, mode="r+")
        for key, part in group.variables.items():
            sizes = part.sizes | {"draw": self.draws}
            arrays[key].resize(tuple(sizes[dim] for dim in part.dims))
        arrays["draw"][:] = np.arange(self.draws)

    def check(self, lp: ArrayLike, draw: int) -> None:
        """See that a draw is there, by its log posterior ``(chain,)``.

        Raises:
            ValueError: no store, or one of other draws.
        """
        try:
            stats = xr.open_zarr(self.path, group="sample_stats", chunks=None, consolidated=False)
            same = np.array_equal(stats["lp"][:, draw], np.asarray(lp, np.float32), equal_nan=True)
        except (OSError, ValueError, KeyError, IndexError):
            same = False
        if not same:
            raise ValueError(
                f"store: got {self.path} without the draws of its checkpoint, expected {draw + 1} "
                "of them; put it back, or delete the checkpoint"
            )

    def finish(self, tree: xr.DataTree) -> None:
        """Write what does not grow with the draws of a trace, and its attributes last."""
        for name in tree.children:
            if name not in DRAWN:
                tree[name].to_dataset().to_zarr(self.path, group=name, mode="w", **FORMAT)
        xr.Dataset(attrs=tree.attrs).to_zarr(self.path, mode="a", **FORMAT)
