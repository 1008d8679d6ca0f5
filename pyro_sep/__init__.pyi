from . import (
    audio as audio,
)
from . import (
    data as data,
)
from . import (
    diagnostics as diagnostics,
)
from . import (
    evaluation as evaluation,
)
from . import (
    inference as inference,
)
from . import (
    mixing as mixing,
)
from . import (
    models as models,
)
from . import (
    priors as priors,
)
from . import (
    results as results,
)
from . import (
    separation as separation,
)
from . import (
    trace as trace,
)
from . import (
    viz as viz,
)
from .diagnostics import (
    diagnose as diagnose,
)
from .mixing import (
    Mixing as Mixing,
)
from .priors import (
    load_priors as load_priors,
)
from .priors import (
    train_prior as train_prior,
)
from .results import (
    separate_many as separate_many,
)
from .separation import (
    Cost as Cost,
)
from .separation import (
    Separation as Separation,
)
from .separation import (
    estimate_cost as estimate_cost,
)
from .separation import (
    separate as separate,
)
from .separation import (
    separate_batch as separate_batch,
)
from .trace import (
    load_trace as load_trace,
)

__version__: str
