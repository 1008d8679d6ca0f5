from .mala import (
    MALA as MALA,
)
from .preconditioned import (
    PreconditionedSGLD as PreconditionedSGLD,
)
from .sgld import (
    SGLD as SGLD,
)
