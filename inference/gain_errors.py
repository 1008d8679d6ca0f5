r"""Gain errors of denoised sources, from the mixture: a linear regression.

A learned prior tells the shape of a source better than its amplitude. What it gets wrong of the
amplitude it gets wrong in all audio samples alike, so the error adds up in a level, and its density
is as sure of the amplitude as if each sample erred by itself. The mixture knows the amplitude. With
clean sources :math:`D_k` that a prior expects, and gain errors :math:`\varepsilon_k`,

.. math:: m = \sum_k a_k (1 + \varepsilon_k) D_k + \tau n, \qquad
          \varepsilon_k \sim \mathcal{N}(0, \delta_k^2), \quad n \sim \mathcal{N}(0, I)

:math:`\tau` is the std of the annealed likelihood, and :math:`\delta_k` the prior's ``gain_error``.
The posterior of the errors is normal.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GainErrors(NamedTuple):
    """The law of the gain errors of all sources, given the mixture, in units of ``std``."""

    center: Tensor  # (batch, source)
    root: Tensor  # (batch, source, source), lower Cholesky factor of the precision
    std: Tensor  # (source,), before the mixture was seen

    @property
    def mean(self) -> Tensor:
        """Expected errors ``(batch, source)``."""
        return self.std * self.center

    def draw(self, generator: torch.Generator) -> Tensor:
        """A draw of the errors ``(batch, source)``."""
        normal = torch.empty_like(self.center).normal_(generator=generator)
        apart = torch.linalg.solve_triangular(self.root.mT, normal[..., None], upper=True)
        return self.std * (self.center + apart[..., 0])


def fit_gain_errors(contributions: Tensor, residual: Tensor, std: Tensor) -> GainErrors:
    """The law of the gain errors, given what the denoised sources leave of the mixture.

    Args:
        contributions: of the denoised sources to the mixture, ``(batch, source, time)``, in units
            of tau.
        residual: of the mixture, ``(batch, time)``, likewise.
        std: delta of each source; 0 where there is no error.
    """
    shapes = std[:, None] * contributions
    precision = torch.eye(len(std)).to(shapes) + shapes @ shapes.mT
    root = torch.linalg.cholesky(precision)
    center = torch.cholesky_solve(shapes @ residual[..., None], root)
    return GainErrors(center[..., 0], root, std)
