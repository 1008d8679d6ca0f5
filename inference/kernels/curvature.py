"""A stable step size of unadjusted Langevin dynamics, from a potential's largest curvature."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import vhp

from pyro_sep.inference.state import Params

#: Share of the stability bound 2 / lambda that a derived step size takes: bias of a variance 5 %.
STABLE_SHARE = 0.05
POWER_ITERATIONS = 20


def stable_step_size(potential_fn: Callable[[Params], Tensor], params: Params) -> float:
    """:data:`STABLE_SHARE` of the stability bound 2 / lambda of a step at ``params``.

    Raises:
        ValueError: the potential is flat or not finite there.
    """
    return 2 * STABLE_SHARE / largest_curvature(potential_fn, params)


def largest_curvature(potential_fn: Callable[[Params], Tensor], params: Params) -> float:
    """Largest absolute eigenvalue of a potential's Hessian at ``params``, by power iteration."""

    def potential(*point: Tensor) -> Tensor:
        return potential_fn(dict(zip(params, point, strict=True)))

    point = tuple(params.values())
    generator = torch.Generator().manual_seed(0)
    image = tuple(torch.randn(p.shape, generator=generator).to(p) for p in point)
    for _ in range(POWER_ITERATIONS):
        norm = _norm(image)
        _, image = vhp(potential, point, tuple(part / norm for part in image))
    return _norm(image)


def _norm(parts: tuple[Tensor, ...]) -> float:
    norm = math.sqrt(sum(float(part.square().sum()) for part in parts))
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            "step_size: got None, but the density is flat or not finite at the start, so no step "
            "size can be derived; give one"
        )
    return norm
