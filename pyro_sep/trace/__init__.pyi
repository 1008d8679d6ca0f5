from .dataset import (
    best_chain as best_chain,
)
from .dataset import (
    build_trace as build_trace,
)
from .dataset import (
    load_trace as load_trace,
)
from .dataset import (
    log_likelihood as log_likelihood,
)
from .dataset import (
    save_trace as save_trace,
)
from .dataset import (
    to_arviz as to_arviz,
)
