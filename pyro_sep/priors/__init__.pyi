from .auditing import audit
from .base import Prior, Priors
from .io import (
    add_to_set,
    choose_priors,
    load_prior,
    load_priors,
    save_prior,
    save_priors,
    shipped_sets,
)
from .networks import FloWaveNetPrior, NetworkPrior, WaveNetPrior
from .spike_slab import SpikeAndSlab
from .stereo import StereoPrior, in_stereo
from .training import train_prior
from .waveform import WaveformPrior

__all__ = [
    "FloWaveNetPrior",
    "NetworkPrior",
    "Prior",
    "Priors",
    "SpikeAndSlab",
    "StereoPrior",
    "WaveNetPrior",
    "WaveformPrior",
    "add_to_set",
    "audit",
    "choose_priors",
    "in_stereo",
    "load_prior",
    "load_priors",
    "save_prior",
    "save_priors",
    "shipped_sets",
    "train_prior",
]
