"""One call from a mixture to posterior draws of its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.annealed import Draws, Statistics, anneal
from pyro_sep.inference.schedules import start_level
from pyro_sep.inference.settings import Annealing
from pyro_sep.latent_mixing import Infer, known_mixing, start_mixing
from pyro_sep.mixing import NOISE_SCALE, Mixing
from pyro_sep.posterior import AnnealedPosterior
from pyro_sep.priors import Priors
from pyro_sep.trace import build_trace

SIGMA_MIN = 0.05  # highest last noise level, full scale 1
FLOOR_SHARE = 0.08  # of the sources' RMS, where they are quiet
TURN_SHARE = 0.7  # modes have been chosen where sigma is this share of the sources' RMS
CONSTRAINTS = ("gaussian", "exact")  # how the sources are tied to their mixture
MIN_TIME = 256  # audio samples; less holds no period of a low tone


@dataclass(frozen=True)
class Separation:
    """Sources of one mixture.

    Attributes:
        sources: posterior mean of the chain of the highest mean log posterior, ``(source, time)``.
        names: of the sources, in order.
        sample_rate: in Hz.
        trace: all draws of all chains, see :mod:`pyro_sep.trace`.
    """

    sources: Tensor
    names: tuple[str, ...]
    sample_rate: int
    trace: xr.DataTree


def separate(mixture: Tensor, priors: Priors, **options: Any) -> Separation:
    """Separate one mixture ``(time,)``; options are those of :func:`separate_batch`.

    Raises:
        ValueError: bad audio or settings, see :func:`separate_batch`.
    """
    if mixture.dim() != 1:
        raise ValueError(
            f"mixture: got shape {tuple(mixture.shape)}, expected (time,); mix down to mono first"
        )
    true_sources = options.pop("true_sources", None)
    if true_sources is not None:
        true_sources = true_sources[None]
    return separate_batch(mixture[None], priors, true_sources=true_sources, **options)[0]


def separate_batch(
    mixtures: Tensor,
    priors: Priors,
    *,
    gains: Sequence[float] | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: str = "gaussian",
    seed: int = 0,
    true_sources: Tensor | None = None,
    progress: bool = False,
    attrs: Mapping[str, Any] | None = None,
    **annealing: Any,
) -> list[Separation]:
    """Separate mixtures of one length, all chains of all of them at once.

    Args:
        mixtures: ``(mixture, time)`` at the priors' sample rate, on the priors' device.
        priors: of the sources, by name; :func:`pyro_sep.load_priors`.
        gains: a_k; all 1/N where None, the mixture is then the mean of its sources; unknown where
            "infer", each between 0.2 and 2, see :mod:`pyro_sep.latent_mixing`.
        noise_scale: gamma, std of the mixture's own noise; unknown where "infer".
        constraint: ``"gaussian"``, the likelihood of that noise, or ``"exact"``: the sources add up
            to the mixture, whatever the noise_scale; see
            :class:`~pyro_sep.posterior.AnnealedPosterior`.
        seed: of all randomness.
        true_sources: ``(mixture, source, time)`` where known; goes into the trace, nowhere else.
        progress: show a bar.
        attrs: further attributes of the traces.
        annealing: fields of :class:`~pyro_sep.inference.settings.Annealing` other than their
            defaults; the ladder's ends follow from the frame and the priors.

    Raises:
        ValueError: mixtures that are short, silent or not finite; gains, rates or settings that do
            not fit.
    """
    check_mixtures(mixtures)
    mixing = known_mixing(priors, gains, noise_scale)
    inferred = (isinstance(gains, str), isinstance(noise_scale, str))
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"constraint: got {constraint!r}, expected one of {', '.join(CONSTRAINTS)}"
        )
    if constraint == "exact" and any(inferred):
        raise ValueError(
            "constraint: got 'exact' with gains or noise_scale to infer, expected 'gaussian'; "
            "give their numbers for an exact mixture"
        )
    rates = {prior.sample_rate for prior in priors.values()}
    if len(rates) > 1:
        raise ValueError(f"priors: got sample rates {sorted(rates)} in Hz, expected one")
    settings = Annealing(**(default_ladder(priors, mixtures.shape[-1]) | annealing))
    torch.set_flush_denormal(True)  # gradients near zero are ten times slower otherwise
    generator = torch.Generator(mixtures.device).manual_seed(seed)

    def posterior(lanes: Tensor) -> AnnealedPosterior:
        own = start_mixing(lanes, priors, mixing, *inferred) if any(inferred) else mixing
        return AnnealedPosterior(lanes, tuple(priors.values()), own, constraint == "exact")

    draws = anneal(mixtures, posterior, settings, generator, progress)
    root = {
        "seed": seed,
        "noise_scale": noise_scale,
        "constraint": constraint,
        "settings": asdict(settings),
        "gradients": draws.gradients,
        **(attrs or {}),
    }
    return [
        _result(draws, i, mixtures[i], priors, mixing, inferred, true_sources, root)
        for i in range(len(mixtures))
    ]


def default_ladder(priors: Priors, time: int) -> dict[str, float]:
    """Ends and turn of the ladder, from the frame and what the priors know."""
    low = max(prior.sigmas[0] for prior in priors.values())
    high = min(prior.sigmas[1] for prior in priors.values())
    level = mean(prior.level for prior in priors.values())
    return {
        "sigma_max": min(start_level(time, level), high),
        "sigma_min": max(min(SIGMA_MIN, FLOOR_SHARE * level), low),
        "sigma_turn": TURN_SHARE * level,
    }


def check_mixtures(mixtures: Tensor) -> None:
    """Raise ValueError unless mixtures ``(mixture, time)`` can be separated."""
    if mixtures.dim() != 2:
        raise ValueError(f"mixtures: got shape {tuple(mixtures.shape)}, expected (mixture, time)")
    if mixtures.shape[-1] < MIN_TIME:
        raise ValueError(
            f"mixture: got {mixtures.shape[-1]} audio samples, expected at least {MIN_TIME}; "
            "record a longer one"
        )
    if not bool(mixtures.isfinite().all()):
        raise ValueError("mixture: got NaN or infinity, expected finite audio; export it again")
    if bool((mixtures.abs().amax(-1) < 1e-6).any()):
        raise ValueError("mixture: got silence, expected audio with sources in it")


def _result(
    draws: Draws,
    index: int,
    mixture: Tensor,
    priors: Priors,
    mixing: Mixing,
    inferred: tuple[bool, bool],
    true_sources: Tensor | None,
    attrs: Mapping[str, Any],
) -> Separation:
    sources = draws.sources[index, ..., : mixture.shape[-1]].cpu()  # what was heard
    kept, warmup = (_stats(part, index) for part in (draws.statistics, draws.warmup))
    names = tuple(priors)
    sample_rate = next(iter(priors.values())).sample_rate
    trace = build_trace(
        sources=sources.numpy(),
        lp=kept.pop("lp"),
        log_prior=kept.pop("log_prior"),
        stats=kept,
        warmup_stats={name: part for name, part in warmup.items() if name != "log_prior"},
        mixture=mixture.cpu().numpy(),
        gains=draws.gains[index].cpu().numpy() if inferred[0] else mixing.gains,
        noise_scale=draws.noise_scale[index].cpu().numpy() if inferred[1] else None,
        source_names=names,
        sample_rate=sample_rate,
        true_sources=None if true_sources is None else true_sources[index].cpu().numpy(),
        attrs=attrs,
    )
    best = draws.statistics.lp[index].mean(1).nan_to_num(nan=-torch.inf).argmax()
    return Separation(sources[best].mean(0), names, sample_rate, trace)


def _stats(statistics: Statistics, index: int) -> dict[str, Any]:
    """Arrays of one mixture, by name."""
    return {name: part[index].cpu().numpy() for name, part in statistics._asdict().items()}
