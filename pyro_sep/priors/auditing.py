r"""May these priors be used? Every prior on every source at every noise level.

The excess of a prior on audio x noised at sigma is its mean log density per audio sample over what
white noise of std sigma itself has,

.. math:: \frac{1}{T} \log p_\sigma(x) + \frac{1}{2} \log(2 \pi e \sigma^2)

in nats. Zero is the ceiling: a prior that knew the source to the last digit would see only noise.
A set of priors is *discriminative* at a level when each source's own prior has the highest excess
on it, and each prior's highest excess is on its own source. The first is what Bayes' rule needs;
the second fails where one source is easier to predict than another by any prior. Inputs are noised
at the level they are judged at. Clean inputs, as Frank & Ilse 2020 (arXiv 2011.01761) judged, lack
the noise that the law expects, and their ceiling is half a nat.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from pyro_sep.models.arithmetic import plain_arithmetic
from pyro_sep.priors.base import Priors, known_sigmas
from pyro_sep.priors.stereo import check_mono
from pyro_sep.storage.files import save_json

UNIT = "nats per audio sample over the noise"
#: The paper's noise levels, and those where an annealed sampler chooses its modes.
SIGMAS = (0.01, 0.027, 0.077, 0.129, 0.359, 1.0, 2.0)
#: A search decides which source explains what between the last two levels, and details between the
#: first two.
DETAILS, MODES, START = 0.02, 0.3, 1.0
DEFINITION = """\
discriminative: every prior has its highest excess on its own source, and every source has its
highest excess under its own prior"""


@torch.no_grad()
@plain_arithmetic()
def audit(
    priors: Priors,
    audio: Mapping[str, Tensor],
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    progress: bool = False,
    noised: bool = True,
) -> xr.DataArray:
    """Excess of every prior on every source at every noise level.

    Args:
        priors: by source name.
        audio: held-out clean audio of each source, ``(frame, time)``, under the same names.
        sigmas: noise levels; those of :data:`SIGMAS` that all priors know where None.
        seed: of the noise, which is the same for all priors.
        progress: show a bar.
        noised: noise the audio at the level it is judged at; else it stays clean.

    Returns:
        Nats per audio sample with dims ``(sigma, prior, source)``.

    Raises:
        ValueError: priors of two channels; audio of a source without a prior or the other way
            round, or a source without a frame.

    >>> from pyro_sep.data import open_source
    >>> from pyro_sep.priors import load_priors
    >>> priors = load_priors("toy/oracle")
    >>> sources = {name: open_source(f"toy:{name}", 16_000, 1_024) for name in priors}
    >>> audio = {name: source.held_out(2, 1_024) for name, source in sources.items()}
    >>> table = audit(priors, audio, sigmas=[0.359])
    >>> discriminative(table)
    {0.359: True}
    """
    check_mono(priors)
    if set(priors) != set(audio):
        raise ValueError(f"audio: got {sorted(audio)}, expected the priors' names {sorted(priors)}")
    if empty := [name for name, frames in audio.items() if not len(frames)]:
        raise ValueError(
            f"audio: got no held-out frame of {audio[empty[0]].shape[-1]} audio samples of "
            f"{', '.join(empty)} that is not silent, expected one at least; add recordings, or "
            "audit by shorter frames"
        )
    if sigmas is None:
        sigmas = known_levels(priors)
    names = list(priors)
    table = np.zeros((len(sigmas), len(names), len(names)))
    with tqdm(total=table.size, unit="cell", disable=not progress) as bar:
        for i, sigma in enumerate(sigmas):
            entropy = noise_entropy(sigma)
            for k, source in enumerate(names):
                generator = torch.Generator().manual_seed(seed)
                clean = audio[source]
                noise = torch.randn(clean.shape, generator=generator)
                value = clean + sigma * noise.to(clean) if noised else clean
                for j, name in enumerate(names):
                    law = priors[name].frame(clean.shape[-1]).condition(sigma)
                    table[i, j, k] = law.log_prob(value).mean().item() / clean.shape[-1] + entropy
                    bar.update()
    return xr.DataArray(
        table,
        coords={"sigma": list(sigmas), "prior": names, "source": names},
        dims=("sigma", "prior", "source"),
        name="excess",
        attrs={"units": "nat per audio sample"},
    )


def known_levels(priors: Priors) -> list[float]:
    """Those of :data:`SIGMAS` that all priors know."""
    low, high = known_sigmas(priors)
    return [sigma for sigma in SIGMAS if low <= sigma <= high]


def noise_entropy(sigma: float) -> float:
    """Entropy of white noise of std sigma, in nats per audio sample."""
    return 0.5 * math.log(2 * math.pi * math.e * sigma**2)


def own_wins(table: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Per prior, whether its own source is its best; per source, whether its own prior is best.

    The second is what Bayes' rule compares: laws on one and the same audio.
    """
    return (
        table.idxmax("source") == table["prior"],
        table.idxmax("prior") == table["source"],
    )


def discriminative(table: xr.DataArray) -> dict[float, bool]:
    """Whether the priors tell the sources apart, per noise level; see the module's docstring."""
    by_prior, by_source = own_wins(table)
    both = by_prior.all("prior") & by_source.all("source")
    return dict(zip(table.sigma.values.tolist(), both.values.tolist(), strict=True))


def recommend(table: xr.DataArray) -> str:
    """Whether to separate with these priors, in one line: use them, with care, or do not.

    Bayes' rule compares the priors on one and the same audio. That each source is likeliest under
    its own prior is needed at all levels at which details are decided; where it holds at those at
    which a search chooses its modes too, nothing is left to ask for.
    """
    if table.sizes["prior"] < 2:
        return "not known; one prior has nothing to be compared with, audit it beside others"
    if not bool(np.isfinite(table).all()):
        return "do not use them; a prior gives no finite density"
    by_source = own_wins(table)[1].transpose("sigma", "source")
    fails = {
        float(sigma): table["source"].values[~level].tolist()
        for sigma, level in zip(table.sigma.values, by_source.values, strict=True)
    }
    judged = {sigma: names for sigma, names in fails.items() if DETAILS <= sigma <= START}
    confused = {sigma: names for sigma, names in judged.items() if names}
    if confused:
        sigma = min(confused)
        names = ", ".join(confused[sigma])
        why = f"at sigma {sigma:g} another prior explains {names} better than its own"
        return f"do not use them; {why}" if sigma < MODES else f"use them with care; {why}"
    if not (max(judged, default=0.0) >= MODES > min(judged, default=MODES)):
        levels = f"between {DETAILS:g} and {MODES:g}, and between {MODES:g} and {START:g}"
        return f"use them with care; the audit has no noise levels {levels}"
    return "use them; every source is likeliest under its own prior"


def format_audit(table: xr.DataArray) -> str:
    """The table as text, one row per level and prior, one verdict per level, and an answer."""
    names = [str(name) for name in table.source.values]
    width = max(9, *(len(name) + 2 for name in names))
    lines = ["excess in nats per audio sample over the noise (0 is the ceiling)", DEFINITION]
    lines.append(f"{'sigma':>7} {'prior':>{width}} |" + "".join(f"{n:>{width}}" for n in names))
    verdicts, by_source = discriminative(table), own_wins(table)[1].all("source")
    for sigma, level in zip(table.sigma.values, table, strict=True):
        for name, row in zip(names, level.values, strict=True):
            cells = "".join(f"{value:>{width}.3f}" for value in row)
            lines.append(f"{sigma:>7g} {name:>{width}} |{cells}")
        verdict = "discriminative" if verdicts[float(sigma)] else "NOT discriminative"
        if by_source.sel(sigma=sigma) and not verdicts[float(sigma)]:
            verdict += ", but each source is likeliest under its own prior"
        lines.append(f"sigma {sigma:g}: {verdict}")
    return "\n".join([*lines, f"answer: {recommend(table)}"])


def save_audit(table: xr.DataArray, path: Path) -> None:
    """Write the table and its verdicts as JSON, whole or not at all."""
    content = {
        "unit": UNIT,
        "sigmas": [float(sigma) for sigma in table.sigma.values],
        "names": [str(name) for name in table.prior.values],
        "excess[sigma][prior][source]": np.round(table.values, 4).tolist(),
        "discriminative": {
            f"{sigma:g}": verdict for sigma, verdict in discriminative(table).items()
        },
    }
    save_json(content, path)
