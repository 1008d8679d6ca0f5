from .annealing.driver import anneal
from .annealing.schedules import geometric_ladder, polynomial_decay, start_level, two_rate_ladder
from .annealing.settings import Annealing
from .kernels.mala import MALA
from .kernels.preconditioned import PreconditionedSGLD
from .kernels.sgld import SGLD
from .posterior import AnnealedPosterior
from .smc.annealed import anneal_particles
from .state import LangevinState, PreconditionedState, UnderdampedState
from .steps.ghmc import adjusted_step
from .steps.langevin import langevin_step
from .steps.mala import mala_step
from .steps.preconditioned import preconditioned_step
from .steps.underdamped import underdamped_step

__all__ = [
    "MALA",
    "SGLD",
    "AnnealedPosterior",
    "Annealing",
    "LangevinState",
    "PreconditionedSGLD",
    "PreconditionedState",
    "UnderdampedState",
    "adjusted_step",
    "anneal",
    "anneal_particles",
    "geometric_ladder",
    "langevin_step",
    "mala_step",
    "polynomial_decay",
    "preconditioned_step",
    "start_level",
    "two_rate_ladder",
    "underdamped_step",
]
