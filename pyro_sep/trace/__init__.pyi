from .dataset import best_chain, build_trace, load_trace, log_likelihood, save_trace, to_arviz

__all__ = ["best_chain", "build_trace", "load_trace", "log_likelihood", "save_trace", "to_arviz"]
