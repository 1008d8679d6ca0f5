from .dataset import build_trace, in_channels, load_trace, log_likelihood, save_trace, to_arviz
from .draws import best_chain, estimate_draws, mode_draws, mode_probabilities, select_draws
from .estimate import estimate_sources

__all__ = [
    "best_chain",
    "build_trace",
    "estimate_draws",
    "estimate_sources",
    "in_channels",
    "load_trace",
    "log_likelihood",
    "mode_draws",
    "mode_probabilities",
    "save_trace",
    "select_draws",
    "to_arviz",
]
