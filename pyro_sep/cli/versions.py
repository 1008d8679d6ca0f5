"""What ``pyro-sep --version`` prints, for reports of faults."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "pyro-ppl", "arviz")  # those whose behaviour differs between versions


def versions() -> str:
    """A line each for pyro-sep, Python, torch, Pyro, ArviZ and the platform; imports none."""
    lines = [
        f"pyro-sep {installed('pyro-sep')}",
        f"python {platform.python_version()}",
        *(f"{name} {installed(name)}" for name in PACKAGES),
        f"platform {platform.platform()}",
    ]
    return "\n".join(lines)


def installed(name: str) -> str:
    """The version of an installed distribution, from its metadata."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
