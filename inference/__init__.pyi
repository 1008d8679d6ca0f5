from .annealing import (
    Annealing as Annealing,
)
from .annealing import (
    anneal as anneal,
)
from .annealing import (
    geometric_ladder as geometric_ladder,
)
from .annealing import (
    polynomial_decay as polynomial_decay,
)
from .annealing import (
    start_level as start_level,
)
from .annealing import (
    two_rate_ladder as two_rate_ladder,
)
from .kernels import (
    MALA as MALA,
)
from .kernels import (
    SGLD as SGLD,
)
from .kernels import (
    PreconditionedSGLD as PreconditionedSGLD,
)
from .posterior import (
    AnnealedPosterior as AnnealedPosterior,
)
from .smc import (
    anneal_particles as anneal_particles,
)
