from .annealed import (
    anneal_particles as anneal_particles,
)
from .core import (
    smc as smc,
)
