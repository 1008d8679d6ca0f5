"""Use the package as it is installed without extras: its exports, and a separation of two tones."""

import sys

import pyro_sep
from pyro_sep.data.toy import toy_mixture
from pyro_sep.inference import MALA, SGLD, PreconditionedSGLD
from pyro_sep.priors import WaveNetPrior, load_priors, train_prior
from pyro_sep.trace import to_arviz

assert all((MALA, SGLD, PreconditionedSGLD, WaveNetPrior, train_prior))
priors = {name: load_priors("toy")[name] for name in ("sine", "saw")}
mixture = toy_mixture("test", 0, tuple(priors), 1_600).mixture
budget = {"preset": "quick", "levels": 6, "chains": 1, "candidates": 1, "draws": 2}
result = pyro_sep.separate(mixture, priors, **budget)
assert result.sources.shape == (2, 1_600)
to_arviz(result.trace)
refused = ""
try:
    pyro_sep.separate(mixture, priors, **budget, store="draws.zarr")
except ValueError as error:
    refused = str(error)
assert refused.endswith("pip install 'pyro-sep[zarr]'"), refused
sys.stdout.write(f"pyro-sep {pyro_sep.__version__} separates without extras\n")
