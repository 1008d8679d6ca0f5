"""Import every module of the installed package, and make sure that no generic name came with it."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import pyro_sep

checkout = Path(__file__).resolve().parent.parent
assert checkout not in Path(pyro_sep.__file__).resolve().parents, pyro_sep.__file__
names = [module.name for module in pkgutil.walk_packages(pyro_sep.__path__, "pyro_sep.")]
assert {"pyro_sep.models.wavenet", "pyro_sep.inference.kernels.sgld"} <= set(names), names
for name in names:
    importlib.import_module(name)
for generic in ("models", "inference"):
    assert importlib.util.find_spec(generic) is None, f"{generic} reached site-packages"
priors = pyro_sep.load_priors("toy")
assert list(priors) == ["sine", "saw", "square", "triangle"], priors
sys.stdout.write(f"{len(names)} modules imported\n")
