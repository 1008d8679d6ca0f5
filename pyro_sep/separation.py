"""One call from a mixture to posterior draws of its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from math import prod
from os import PathLike
from statistics import mean
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.inference.annealed import anneal
from pyro_sep.inference.checkpoint import Checkpoint
from pyro_sep.inference.draws import Draws
from pyro_sep.inference.schedules import start_level
from pyro_sep.inference.settings import Annealing
from pyro_sep.kept import Kept, Trace, TraceInMemory, TraceOnDisk
from pyro_sep.latent_mixing import Infer, known_mixing, start_mixing
from pyro_sep.mixing import NOISE_SCALE, Mixing, frame_time
from pyro_sep.posterior import AnnealedPosterior, at_draws
from pyro_sep.presence import SpikeAndSlab
from pyro_sep.priors import Prior, Priors, WaveformPrior, misfit
from pyro_sep.store import TraceStore
from pyro_sep.trace import ESTIMATES, FINGERPRINT, best_chain, build_trace

SIGMA_MIN = 0.05  # highest last noise level, full scale 1
FLOOR_SHARE = 0.45  # of the sources' RMS, where they are quiet: below it priors of music know less
EXACT_NATS = (2.5, 40.0)  # evidence of a frame between which an exact prior chooses the modes
TURN_SHARE = 0.7  # modes have been chosen where sigma is this share of the sources' RMS
CONSTRAINTS = ("gaussian", "exact")  # how the sources are tied to their mixture
MIN_TIME = 256  # audio samples; less holds no period of a low tone


@dataclass(frozen=True)
class Separation:
    """Sources of one mixture.

    Attributes:
        sources: posterior mean ``(source, time)``, over the chain of the highest mean log posterior
            or all chains: that of the expected clean sources given each noisy draw, which errs less
            than the mean of the draws in the trace.
        names: of the sources, in order.
        sample_rate: in Hz.
        trace: all draws of all chains, see :mod:`pyro_sep.trace`.
        shares: what each source adds to the mixture, the posterior mean of a_k s_k, over the same
            chains, ``(source, time)``.
        presence: where it was inferred, the posterior probability that each source is present
            ``(source,)``, by the draws of the same chains.
    """

    sources: Tensor
    names: tuple[str, ...]
    sample_rate: int
    trace: xr.DataTree
    shares: Tensor
    presence: Tensor | None = None


def separate(mixture: Tensor, priors: Priors, **options: Any) -> Separation:
    """Separate one mixture ``(time,)``; options are those of :func:`separate_batch`.

    ``true_sources`` are ``(source, time)``, and ``store`` is one path in place of ``stores``.

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
    if (store := options.pop("store", None)) is not None:
        options["stores"] = [store]
    return separate_batch(mixture[None], priors, true_sources=true_sources, **options)[0]


def separate_batch(
    mixtures: Tensor,
    priors: Priors,
    *,
    gains: Sequence[float] | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: str | None = None,
    absent: str | None = None,
    estimate: str = "best",
    seed: int = 0,
    true_sources: Tensor | None = None,
    progress: bool = False,
    attrs: Mapping[str, Any] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    stores: Sequence[str | PathLike[str]] | None = None,
    **annealing: Any,
) -> list[Separation]:
    """Separate mixtures of one length, all chains of all of them at once.

    Args:
        mixtures: ``(mixture, time)`` at the priors' sample rate, on the priors' device.
        priors: of the sources, by name; :func:`pyro_sep.load_priors`.
        gains: a_k; all 1/N where None, the mixture is then the mean of its sources, silent ones
            included; unknown where "infer", each between 0.2 and 2, see
            :mod:`pyro_sep.latent_mixing`.
        noise_scale: gamma, std of the mixture's own noise; unknown where "infer".
        constraint: ``"gaussian"``, the likelihood of that noise, or ``"exact"``: the sources add up
            to the mixture, whatever the noise_scale; see
            :class:`~pyro_sep.posterior.AnnealedPosterior`. By default ``"gaussian"`` where
            presence, gains or noise are inferred, else :func:`default_constraint`.
        absent: ``"infer"`` where each source may be silent, which its prior then allows for with
            probability 1/2, see :mod:`pyro_sep.presence`; all are present where None.
        estimate: ``"best"``, the mean of the chain of the highest mean log posterior, or
            ``"mean"``, of all chains. A frame of tones holds one decision or two, and chains that
            took it otherwise differ by tens of nats: the best one is right. A second of music holds
            many, of which each chain takes some wrong, and their mean is nearer the truth than any.
        seed: of all randomness.
        true_sources: ``(mixture, source, time)`` where known; goes into the trace, nowhere else.
        progress: show a bar.
        attrs: further attributes of the traces.
        checkpoint: file that a long run writes its state to, and goes on from where it was killed,
            to the very same draws; it stays when the run is done. Not written where None.
        stores: a path per mixture, ``NAME.zarr``: draws go there as they are made, the traces are
            opened there and read where they are used. All draws stay in memory where None.
        annealing: fields of :class:`~pyro_sep.inference.settings.Annealing` other than their
            defaults; the ladder's ends follow from the frame and the priors.

    Raises:
        ValueError: mixtures that are short, silent or not finite; gains, rates or settings that do
            not fit; a checkpoint that is damaged or of another run; a store that is none.
        OSError: a checkpoint or store that cannot be written.
    """
    check_mixtures(mixtures)
    mixing = known_mixing(priors, gains, noise_scale)
    inferred = (isinstance(gains, str), isinstance(noise_scale, str))
    if constraint is None:
        # experiments/presence.py: 40 mixtures of 40 are right by the likelihood, 3 of 5 if exact.
        constraint = "gaussian" if absent or any(inferred) else default_constraint(mixing)
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"constraint: got {constraint!r}, expected one of {', '.join(CONSTRAINTS)}"
        )
    if any(inferred) and (constraint == "exact" or stores is not None):
        raise ValueError(
            "gains: got 'infer', or noise_scale did, with an exact constraint or a store, expected "
            "neither; give their numbers"
        )
    if estimate not in ESTIMATES:
        raise ValueError(f"estimate: got {estimate!r}, expected one of {', '.join(ESTIMATES)}")
    if absent not in (None, "infer"):
        raise ValueError(
            f"absent: got {absent!r}, expected 'infer', or None where all sources are present"
        )
    rates = {prior.sample_rate for prior in priors.values()}
    if len(rates) > 1:
        raise ValueError(f"priors: got sample rates {sorted(rates)} in Hz, expected one")
    settings = Annealing(**(default_ladder(priors, mixtures.shape[-1]) | annealing))
    silenced = [SpikeAndSlab(prior) for prior in priors.values()] if absent else []
    laws: Sequence[Prior] = silenced or tuple(priors.values())
    torch.set_flush_denormal(True)  # gradients near zero are ten times slower otherwise
    run = {"seed": seed, "noise_scale": noise_scale, "constraint": constraint, "absent": absent}
    known = run | {"gains": gains or mixing.gains, "stores": stores is not None} | asdict(settings)
    traces = _traces(mixtures, priors, mixing, true_sources, stores, settings)

    def extras(draws: Draws) -> dict[str, Tensor]:
        noisy, sigma = draws.noisy, settings.sigma_min
        own = {"misfit": at_draws(misfit, tuple(priors.values()), noisy, sigma)}
        if silenced:
            own["presence"] = at_draws(SpikeAndSlab.presence, silenced, noisy, sigma)
        return draws.mixing | own

    def posterior(lanes: Tensor) -> AnnealedPosterior:
        own = start_mixing(lanes, priors, mixing, *inferred) if any(inferred) else mixing
        return AnnealedPosterior(lanes, laws, own, constraint == "exact")

    fingerprints = _fingerprints(priors, mixtures)
    digest = sha256(mixtures.cpu().numpy().tobytes()).hexdigest()[:12]
    known |= {"mixture": f"{digest} {tuple(mixtures.shape)}"} | fingerprints
    kept = Kept(traces, estimate, mixtures.shape[-1], extras)
    descent = anneal(
        mixtures,
        posterior,
        settings,
        torch.Generator(mixtures.device).manual_seed(seed),
        kept,
        None if checkpoint is None else Checkpoint(checkpoint, known),
        progress,
    )
    about = {"estimate": estimate, "settings": asdict(settings), "gradients": descent.gradients}
    root = run | about | fingerprints | dict(attrs or {})
    rate, results = rates.pop(), zip(kept.means(), kept.finish(descent.warmup, root), strict=True)
    return [
        Separation(
            mean["sources"],
            tuple(priors),
            rate,
            trace,
            mean.get("shares", mixing.weights(mean["sources"]) * mean["sources"]),
            mean.get("presence"),
        )
        for mean, trace in results
    ]


def describe(
    noisy: Tensor,
    mixture: Tensor,
    priors: Priors,
    mixing: Mixing,
    sigma: float,
    *,
    seed: int = 0,
    true_sources: Tensor | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Separation:
    """The separation that draws from elsewhere amount to, such as those of Pyro's own NUTS.

    Args:
        noisy: draws of :func:`pyro_sep.mixing.model` at ``sigma``, ``(chain, draw, source, time)``.
        mixture: ``(time,)``.
        priors: of the sources, by name.
        mixing: gains and noise.
        sigma: noise level of the draws.
        seed: of the clean draws that go with them.
        true_sources: ``(source, time)`` where known.
        attrs: attributes of the trace.
    """
    lanes = noisy.flatten(0, 1)
    target = AnnealedPosterior(mixture.expand(len(lanes), -1), tuple(priors.values()), mixing)
    evaluation = target.evaluate(lanes, sigma)
    generator = torch.Generator(mixture.device).manual_seed(seed)
    clean, means = (
        part.reshape(noisy.shape)[..., : mixture.shape[-1]].cpu()  # what was heard
        for part in target.draw_clean(lanes, evaluation, sigma, generator)
    )
    lp = evaluation.log_density.reshape(noisy.shape[:2]).cpu()
    rate = next(iter(priors.values())).sample_rate
    trace = build_trace(
        sources=clean,
        lp=lp,
        log_prior=evaluation.parts.reshape(noisy.shape[:3]).cpu(),
        misfit=at_draws(misfit, tuple(priors.values()), noisy, sigma).cpu(),
        stats={},
        warmup_stats={},
        mixture=mixture.cpu(),
        gains=mixing.gains,
        source_names=tuple(priors),
        sample_rate=rate,
        true_sources=None if true_sources is None else true_sources.cpu(),
        attrs=attrs or {},
    )
    estimate = means[best_chain(trace)].mean(0)
    shares = mixing.weights(estimate) * estimate
    return Separation(estimate, tuple(priors), rate, trace, shares)


def default_ladder(priors: Priors, time: int) -> dict[str, float]:
    """Ends and turn of the ladder, from the frame and what the priors know.

    A learned prior knows little where the evidence of a frame is a few nats, and the ladder starts
    lower. An exact one decides there, all at once, and the ladder is slow from before until after.
    """
    low = max(prior.sigmas[0] for prior in priors.values())
    high = min(prior.sigmas[1] for prior in priors.values())
    level = mean(prior.level for prior in priors.values())
    start, turn = start_level(time, level), TURN_SHARE * level
    if _are_exact(priors):
        start, turn = (start_level(time, level, nats) for nats in EXACT_NATS)
    return {
        "sigma_max": min(start, high),
        "sigma_min": max(min(SIGMA_MIN, FLOOR_SHARE * level), low),
        "sigma_turn": turn,
    }


def default_constraint(mixing: Mixing) -> str:
    r"""How sources that are all present, by known gains, are tied to their mixture.

    Noisy sources hold on to their modes by the evidence of their own samples, which goes with
    :math:`1 / \sigma^2`. The mixture tells of the clean sources up to noise of variance
    :math:`2 \sigma^2 \sum_k a_k^2 + \gamma^2` under the Gaussian likelihood, and half as much where
    sources add up to it: then it has said twice the nats by the time the modes freeze. So the
    constraint is exact unless the mixture has noise of its own to speak of, gamma above the
    default.
    """
    return "exact" if mixing.noise_scale <= NOISE_SCALE else "gaussian"


def _are_exact(priors: Priors) -> bool:
    """Whether nothing in them is learned."""
    return all(isinstance(prior, WaveformPrior) for prior in priors.values())


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


def _traces(
    mixtures: Tensor,
    priors: Priors,
    mixing: Mixing,
    true_sources: Tensor | None,
    stores: Sequence[str | PathLike[str]] | None,
    settings: Annealing,
) -> list[Trace]:
    """A trace of each mixture, to be filled."""
    builds = [
        partial(
            build_trace,
            mixture=mixture.cpu(),
            gains=mixing.gains,
            source_names=tuple(priors),
            sample_rate=next(iter(priors.values())).sample_rate,
            true_sources=None if true_sources is None else true_sources[i].cpu(),
        )
        for i, mixture in enumerate(mixtures)
    ]
    if stores is None:
        return [TraceInMemory(build) for build in builds]
    if len(stores) != len(builds):
        raise ValueError(f"stores: got {len(stores)} paths, expected {len(builds)}, one a mixture")
    return [
        TraceOnDisk(build, TraceStore(path, settings.draws))
        for build, path in zip(builds, stores, strict=True)
    ]


def _fingerprints(priors: Priors, mixtures: Tensor) -> dict[str, float]:
    """By what priors are known again: what each says of some noise as long as the mixtures."""
    time = frame_time(priors.values(), mixtures.shape[-1])
    noise = torch.randn(1, time, generator=torch.Generator().manual_seed(0)).to(mixtures)
    return {
        f"{FINGERPRINT}{name}": float(
            prior.frame(time).condition(prod(prior.sigmas) ** 0.5).log_prob(prior.level * noise)
        )
        for name, prior in priors.items()
    }
