from .driver import (
    anneal as anneal,
)
from .schedules import (
    geometric_ladder as geometric_ladder,
)
from .schedules import (
    polynomial_decay as polynomial_decay,
)
from .schedules import (
    start_level as start_level,
)
from .schedules import (
    two_rate_ladder as two_rate_ladder,
)
from .settings import (
    Annealing as Annealing,
)
