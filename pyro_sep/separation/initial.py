r"""Stems of another separator, from which chains begin in place of a search.

Stems are contributions :math:`a_k s_k`; the sources are these divided by the known gains. Chains
begin from them with noise of the level at which they begin after a search, but at most of that at
which it is settled which source explains what
(:attr:`pyro_sep.inference.Annealing.initial_sigmas`): so details can change, and assignments not.

Whether the posterior prefers what the chains drew shows where both have the same noise. A draw is a
noisy source :math:`x_k` at the last level sigma, and the stems are noised alike,

.. math:: x_k = s_k + \sigma n_k, \qquad n_k \sim \mathcal{N}(0, I)

after they are moved to the mixture, and with noise that stays there, where it is exact. Were the
stems a draw of the clean posterior, so would they be of the noisy one, and their log density that
of a draw. Where a prior takes frames of some multiple alone, silence follows the stems in the last
one, which counts against them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.inference.annealing.evaluator import FORWARD
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.priors.base import Priors
from pyro_sep.separation.inputs import (
    SILENT_DB,
    Audio,
    axes,
    check_finite,
    checked_sources,
    interleaved,
)

NOISED = 8  # noises of the stems, whose log densities are compared with those of draws
COST = NOISED * FORWARD  # of them, in gradients of a mixture
SEARCHED = ("sigma_max", "tries", "candidates", "levels", "replicas", "section")  # by a search


class Initial(NamedTuple):
    """Stems that chains begin from, and how probable they are."""

    stems: Tensor  # (mixture, source, time), contributions
    sources: Tensor  # (mixture, source, frame)
    lp: Tensor  # (mixture, noise), log posterior of the noised sources, nats


def checked_initial(
    value: Audio, mixtures: Tensor, priors: Priors, options: Mapping[str, Any]
) -> Tensor:
    """Frames ``(mixture, source, time)`` of stems, on the device of their mixtures.

    A stem may be silent: its source rests. All may where the mixture is nearly silent.

    Args:
        value: the stems as they were given.
        mixtures: that they are of, ``(mixture, time)`` or ``(mixture, channel, time)``.
        priors: of the sources, by name.
        options: of the separation, by name; None where they were not given.

    Raises:
        ValueError: no audio, another shape, or stems that are not finite or of another mixture; an
            option that they leave no use for.
    """
    _check_options({name: given for name, given in options.items() if given is not None})
    shape = (len(mixtures), len(priors), *mixtures.shape[1:])
    stems = checked_sources("initial", value, shape, axes("mixture, source", priors))
    stems = stems.to(mixtures.device)
    check_finite("initial", stems)
    power, left = (a.flatten(1).square().mean(-1) for a in (mixtures, mixtures - stems.sum(1)))
    rest = (stems == 0).flatten(1).all(-1) & (power < 10 ** (SILENT_DB / 10))
    if bool(((left >= power) & ~rest).any()):
        raise ValueError(
            "initial: got stems whose sum is no nearer to the mixture than silence, expected "
            "contributions that add up to it; give the stems of this mixture, at its level"
        )
    return interleaved(stems, priors)


def _check_options(given: Mapping[str, Any]) -> None:
    if unknown := [name for name, value in given.items() if isinstance(value, str)]:
        raise ValueError(
            f"{unknown[0]}: got 'infer' beside initial stems, from which chains begin without a "
            "search, expected it to be known; leave out one of the two"
        )
    if unused := [name for name in SEARCHED if name in given]:
        raise ValueError(
            f"{unused[0]}: got {given[unused[0]]} beside initial stems, from which chains begin "
            "without a search, expected no setting of a search; leave it out"
        )


def prepare(
    stems: Tensor, target: AnnealedPosterior, mixing: Mixing, sigma: float, seed: int
) -> Initial:
    """Sources whose contributions are the stems, and their log density with noise.

    Args:
        stems: contributions ``(mixture, source, time)``.
        target: posterior of the mixtures.
        mixing: its gains.
        sigma: noise level of the draws.
        seed: of the noise.
    """
    sources = F.pad(stems / mixing.weights(stems), (0, target.frame - stems.shape[-1]))
    sources = target.tie(sources)
    generator = torch.Generator(sources.device).manual_seed(seed)
    densities = []
    for _ in range(NOISED):
        noise = target.project(torch.empty_like(sources).normal_(generator=generator))
        densities.append(target.log_density(sources + sigma * noise, sigma))
    return Initial(stems, sources, torch.stack(densities, 1))
