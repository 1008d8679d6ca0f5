"""From a mixture to posterior draws of its sources, in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
import xarray as xr
from torch import Tensor

from pyro_sep.checks.arguments import audio, positive, whole
from pyro_sep.inference.annealing.checkpoint import Checkpoint
from pyro_sep.inference.annealing.draws import Draws
from pyro_sep.inference.annealing.driver import anneal
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior, at_draws
from pyro_sep.mixing.known import NOISE_SCALE, Mixing, check_count, frame_time
from pyro_sep.mixing.latent import Gains, Infer
from pyro_sep.models.arithmetic import CPU, sampling_arithmetic
from pyro_sep.priors.base import (
    Estimate,
    Priors,
    check_priors,
    device_of,
    misfit,
    sample_rate_of,
    treble,
)
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.priors.stereo import channels_of
from pyro_sep.separation.groups import GroupedDraws
from pyro_sep.separation.initial import COST, Initial, prepare
from pyro_sep.separation.inputs import (
    Audio,
    FilePath,
    axes,
    check_finite,
    check_separable,
    checked_attrs,
    checked_path,
    checked_sources,
    checked_stores,
    digest,
    fingerprints,
    interleaved,
    one_mixture,
)
from pyro_sep.separation.presets import (
    FIELDS,
    Constraint,
    Preset,
    resolve_estimate,
)
from pyro_sep.separation.problem import pose
from pyro_sep.separation.recorder import DrawRecorder, MemoryBackend, ZarrBackend
from pyro_sep.trace.channels import mid_and_side
from pyro_sep.trace.dataset import TREBLE, build_trace
from pyro_sep.trace.draws import best_chain

#: Standard error of a learned prior's log density, nats per audio sample, at the last level: two
#: tones of one prior swapped, 1,260 and 1,000 Hz, differ by up to 0.08 from the true odds.
DENSITY_ERROR = 0.05
SEEDS = "a whole number from 0 to 2^63 - 1"


@dataclass(frozen=True)
class Separation:
    """The separated sources of one mixture, with all draws.

    Attributes:
        sources: posterior mean ``(source, time)``, over the draws of
            :func:`pyro_sep.trace.estimate_draws`; that of several chains is shrunk where they
            disagree, see :mod:`pyro_sep.trace.estimate`. It is made from the expected clean sources
            given each noisy draw, whose error is less than that of the draws in the trace.
        names: of the sources, in order.
        sample_rate: in Hz.
        trace: all draws of all chains, see :mod:`pyro_sep.trace.dataset`.
        contributions: posterior mean of a_k s_k, the part of the mixture that each source is, over
            the same draws, ``(source, time)``.
        presence: posterior probability that each source is present ``(source,)``, by the same
            draws; None where it was not inferred.
        side: of priors of two channels (:func:`pyro_sep.priors.in_stereo`) half the difference of
            the contributions to the left and the right channel, ``(source, time)``; sources and
            contributions are the means of both channels then. None where audio is mono.

    >>> from pyro_sep.separation import separate
    >>> from pyro_sep.priors.io import load_priors
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> result = separate(mixture, sine, levels=6, candidates=1, replicas=0, draws=2)
    >>> bool((result.contributions.sum(0) - mixture).abs().max() < 1e-3)
    True
    """

    sources: Tensor
    names: tuple[str, ...]
    sample_rate: int
    trace: xr.DataTree
    contributions: Tensor
    presence: Tensor | None = None
    side: Tensor | None = None


def separate(
    mixture: Audio,
    priors: Priors,
    *,
    gains: Gains | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: Constraint | None = None,
    presence: Infer | None = None,
    estimate: Estimate | None = None,
    preset: Preset | None = None,
    seed: int = 0,
    initial: Audio | None = None,
    true_sources: Audio | None = None,
    progress: bool = False,
    attrs: Mapping[str, object] | None = None,
    checkpoint: FilePath | None = None,
    store: FilePath | None = None,
    settings: Annealing | None = None,
    sigma_max: float | None = None,
    sigma_freeze: float | None = None,
    sigma_min: float | None = None,
    tries: int | None = None,
    candidates: int | None = None,
    levels: int | None = None,
    swaps: int | None = None,
    replicas: int | None = None,
    section: int | None = None,
    chains: int | None = None,
    cooling: int | None = None,
    warmup: int | None = None,
    draws: int | None = None,
    thin: int | None = None,
    step_size: float | None = None,
    persistence: float | None = None,
    adjusted: bool | None = None,
) -> Separation:
    """The separation of one mixture ``(time,)``, or ``(channel, time)`` where priors are stereo.

    The options are those of :func:`separate_batch`, but for ``initial`` and ``true_sources``, which
    are ``(source, time)``, and ``store``, which is one path.

    Raises:
        ValueError: bad audio or settings, see :func:`separate_batch`.

    >>> from pyro_sep.priors.io import load_priors
    >>> toy = load_priors("toy/oracle")
    >>> mixture = 0.1 * torch.arange(256).sin()
    >>> duo = {name: toy[name] for name in ("sine", "saw")}
    >>> result = separate(mixture, duo, levels=6, candidates=1, replicas=0, draws=2)
    >>> result.names, result.sources.shape
    (('sine', 'saw'), torch.Size([2, 256]))
    """
    options = {key: value for key, value in locals().items() if key not in ("mixture", "priors")}
    check_priors(priors)
    observed = one_mixture(mixture, priors)
    for name in ("initial", "true_sources"):
        if options[name] is not None:
            shape, expected = (len(priors), *observed.shape), axes("source", priors)
            options[name] = checked_sources(name, options[name], shape, expected)[None]
    if store is not None:
        options["store"] = [store]
    return separate_batch(observed[None], priors, **options)[0]


@sampling_arithmetic()
def separate_batch(  # noqa: D417
    mixtures: Audio,
    priors: Priors,
    *,
    gains: Gains | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: Constraint | None = None,
    presence: Infer | None = None,
    estimate: Estimate | None = None,
    preset: Preset | None = None,
    seed: int = 0,
    initial: Audio | None = None,
    true_sources: Audio | None = None,
    progress: bool = False,
    attrs: Mapping[str, object] | None = None,
    checkpoint: FilePath | None = None,
    store: Sequence[FilePath] | None = None,
    settings: Annealing | None = None,
    sigma_max: float | None = None,
    sigma_freeze: float | None = None,
    sigma_min: float | None = None,
    tries: int | None = None,
    candidates: int | None = None,
    levels: int | None = None,
    swaps: int | None = None,
    replicas: int | None = None,
    section: int | None = None,
    chains: int | None = None,
    cooling: int | None = None,
    warmup: int | None = None,
    draws: int | None = None,
    thin: int | None = None,
    step_size: float | None = None,
    persistence: float | None = None,
    adjusted: bool | None = None,
) -> list[Separation]:
    """The separations of mixtures of one length, which are sampled side by side.

    Audio may be of any type of floats, a list, an array or a tensor: it is converted to float32 on
    the priors' device, without a gradient, and the results are on the device that it came from.
    Integers are refused, since their type does not say for sure what their full scale is. The
    caller's modes of torch change no draw: ``no_grad``, ``inference_mode``, ``autocast``, the
    default type and device.

    Args:
        mixtures: ``(mixture, time)`` at the priors' sample rate, full scale 1; with priors of two
            channels ``(mixture, channel, time)``, and other audio likewise.
        priors: of the sources, by name; :func:`pyro_sep.load_priors`, for two channels also
            :func:`pyro_sep.priors.in_stereo`.
        gains: a_k; ``"infer"`` where they are unknown, each between 0.2 and 2, see
            :mod:`pyro_sep.mixing.latent`. By default those that the priors state: 1 where a
            mixture is the sum of its sources, 1/N where it is their mean, silent ones included.
        noise_scale: gamma, std of the mixture's own noise; ``"infer"`` where it is unknown.
        constraint: ``"gaussian"``, the likelihood of that noise, or ``"exact"``: the sources add up
            to the mixture, whatever the noise_scale; see
            :class:`~pyro_sep.inference.AnnealedPosterior`. By default ``"gaussian"`` where
            presence, gains or noise are inferred, else
            :func:`~pyro_sep.separation.presets.default_constraint`.
        presence: ``"infer"`` where each source may be silent, with a prior probability of 1/2, see
            :mod:`pyro_sep.priors.spike_slab`; all sources are present where None.
        estimate: ``"mode"``, the mean of the most probable explanation of the mixture, or
            ``"mean"``, of all draws by their weights; by default the one that the priors state. A
            frame of tones holds one decision or two: the most probable explanation is right. A
            second of music holds many decisions, of which each chain takes some wrong: the mean of
            all chains is nearer the truth than any of them. See :mod:`pyro_sep.separation.modes`
            and :mod:`pyro_sep.trace.estimate`.
        preset: ``"quick"``, ``"standard"`` or ``"thorough"``, the budget, see
            :data:`~pyro_sep.separation.PRESETS`; by default that of
            :func:`~pyro_sep.separation.default_preset`. :func:`pyro_sep.estimate_cost` predicts the
            time.
        seed: of all randomness.
        initial: stems of another separator ``(mixture, source, time)``, contributions a_k s_k, from
            which all chains begin without a search; see :mod:`pyro_sep.separation.initial`, and
            :func:`pyro_sep.data.load_stems` for files. Gains, noise and presence must be known.
        true_sources: ``(mixture, source, time)`` where known; they are only stored in the trace.
        progress: show a bar.
        attrs: further attributes of the traces.
        checkpoint: file for the state of a long run, from which a killed run continues to the same
            draws; it stays when the run is done. Not written where None.
        store: a path per mixture, ``NAME.zarr``: draws are written there as they are made, and the
            traces are read from there where they are used. Draws stay in memory where None.
        settings: of the sampler, in place of the preset's. The options after it, from ``sigma_max``
            to ``adjusted``, are its fields, see :class:`~pyro_sep.inference.Annealing`; those that
            are given take precedence over settings and preset.

    Raises:
        ValueError: mixtures that are short, silent or not finite; priors, gains, rates or settings
            that do not fit; initial stems that are not of these mixtures; a checkpoint
            that is damaged or of another run; a path that is no store.
        OSError: a checkpoint or store that cannot be written.

    >>> from pyro_sep.priors.io import load_priors
    >>> toy = load_priors("toy/oracle")
    >>> mixtures = 0.1 * torch.arange(512).sin().reshape(2, 256)
    >>> duo = {name: toy[name] for name in ("sine", "saw")}
    >>> results = separate_batch(mixtures, duo, levels=6, candidates=1, replicas=0, draws=2)
    >>> len(results), results[0].trace["posterior"]["sources"].dims
    (2, ('chain', 'draw', 'source', 'time'))
    """
    given = {name: value for name, value in locals().items() if name in FIELDS}
    problem = pose(
        mixtures,
        priors,
        given,
        gains=gains,
        noise_scale=noise_scale,
        constraint=constraint,
        presence=presence,
        estimate=estimate,
        preset=preset,
        initial=initial,
        settings=settings,
        stored=store is not None,
    )
    home = mixtures.device if isinstance(mixtures, Tensor) else CPU
    observed, mixing, plan = problem.frames, problem.mixing, problem.settings
    seed = whole("seed", seed, SEEDS)
    truth: Sequence[Tensor | None] = [None] * len(observed)
    if true_sources is not None:
        count, *rest = problem.mixtures.shape
        shape, expected = (count, len(priors), *rest), axes("mixture, source", priors)
        true = checked_sources("true_sources", true_sources, shape, expected)
        truth = list(interleaved(true, priors))
    own_attrs = checked_attrs(attrs)
    place = None if checkpoint is None else checked_path("checkpoint", checkpoint)
    rate, channels = sample_rate_of(priors), channels_of(priors)
    known: dict[str, Any] = {
        "gains": mixing.gains,
        "source_names": tuple(priors),
        "sample_rate": rate,
        "channels": channels,
    }
    begun: Initial | None = None
    starts: Sequence[dict[str, Any]] = [{}] * len(observed)
    if problem.stems is not None:
        begun = prepare(problem.stems, problem.posterior(observed), mixing, plan.sigma_min, seed)
        starts = [
            {"initial": stem.cpu(), "initial_lp": lp.cpu()}
            for stem, lp in zip(begun.stems, begun.lp, strict=True)
        ]
    builds = [
        partial(build_trace, mixture=mixture.cpu(), true_sources=true, **known, **start)
        for mixture, true, start in zip(observed, truth, starts, strict=True)
    ]
    backends: list[MemoryBackend | ZarrBackend] = [*map(MemoryBackend, builds)]
    if store is not None:
        paths = checked_stores(store, len(builds))
        backends = [ZarrBackend(*pair, plan.draws) for pair in zip(builds, paths, strict=True)]

    def extras(block: Draws) -> dict[str, Tensor]:
        noisy, sigma = block.noisy, plan.sigma_min
        own = {"misfit": at_draws(misfit, tuple(priors.values()), noisy, sigma)}
        if presence is not None:
            laws = cast(Sequence[SpikeAndSlab], problem.laws)
            own["presence"] = at_draws(SpikeAndSlab.presence, laws, noisy, sigma)
        return block.mixing | own

    def log_density(i: int, noisy: Tensor) -> Tensor:
        target = problem.posterior(observed[i].expand(len(noisy), -1))
        return target.log_density(noisy.to(observed.device), plan.sigma_min).cpu()

    weighed = not (problem.average or problem.inferred)  # others have too many modes, or latents
    exact = all(getattr(prior, "is_exact", False) for prior in priors.values())
    groups = GroupedDraws(
        observed,
        mixing.gains,
        rate * channels,
        log_density if weighed else None,
        0.0 if exact else DENSITY_ERROR * observed.shape[-1],
    )
    run: dict[str, Any] = {
        "seed": seed,
        "noise_scale": "infer" if problem.infer_noise else mixing.noise_scale,
        "constraint": problem.constraint,
        "presence": presence,
    }
    prints, places = fingerprints(priors, observed), {}
    if channels > 1:
        places = {"places": {name: getattr(prior, "place", "") for name, prior in priors.items()}}
    identity = run | {"gains": "infer" if problem.infer_gains else mixing.gains}
    identity |= {"estimate": problem.estimate, "store": store is not None, **asdict(plan)}
    identity |= {"sources": list(priors), "mixture": digest(observed), **prints, **places}
    identity |= {"initial": None if begun is None else digest(begun.stems)}
    recorder = DrawRecorder(backends, problem.estimate, groups, extras)
    info = anneal(
        observed,
        problem.posterior,
        plan,
        torch.Generator(observed.device).manual_seed(seed),
        recorder,
        None if place is None else Checkpoint(place, identity),
        progress,
        problem.average,
        None if begun is None else begun.sources,
    )
    gradients = info.gradients + (0 if begun is None else round(COST))
    about: dict[str, Any] = {"estimate": problem.estimate, "settings": asdict(plan)}
    about["gradients"] = gradients
    about[TREBLE] = treble(priors)
    about |= places
    search = {"noise_level": plan.search_sigmas}
    results = []
    for trace, means in recorder.finish(info, run | about | prints | own_attrs, search):
        parts = {name: part.to(home) for name, part in means.items()}
        sources = parts["sources"]
        contributions = parts.get("contributions", mixing.weights(sources) * sources)
        sources, _ = mid_and_side(sources, channels)
        contributions, side = mid_and_side(contributions, channels)
        probability = parts.get("presence")
        results.append(
            Separation(sources, tuple(priors), rate, trace, contributions, probability, side)
        )
    return results


@sampling_arithmetic()
def separation_from_draws(
    noisy: Audio,
    mixture: Audio,
    priors: Priors,
    mixing: Mixing,
    sigma: float,
    *,
    seed: int = 0,
    true_sources: Audio | None = None,
    attrs: Mapping[str, object] | None = None,
) -> Separation:
    """The separation of draws from another sampler, such as Pyro's own NUTS.

    Args:
        noisy: draws of :func:`pyro_sep.mixing.model` at ``sigma``, ``(chain, draw, source, time)``.
        mixture: ``(time,)``, as of :func:`separate`.
        priors: of the sources, by name.
        mixing: gains and noise.
        sigma: noise level of the draws.
        seed: of the clean draws that go with them.
        true_sources: ``(source, time)`` where known.
        attrs: attributes of the trace.

    Raises:
        ValueError: audio, priors, gains or numbers that are none or do not fit.

    >>> from pyro_sep.priors.io import load_priors
    >>> priors = {name: load_priors("toy/oracle")[name] for name in ("sine", "saw")}
    >>> noisy, mixture = torch.randn(1, 3, 2, 256), torch.ones(256)
    >>> result = separation_from_draws(noisy, mixture, priors, Mixing.mean(2), sigma=1.0)
    >>> dict(result.trace["posterior"]["sources"].sizes)
    {'chain': 1, 'draw': 3, 'source': 2, 'time': 256}
    """
    check_separable(priors)
    check_count(priors, mixing)
    noisy = audio("noisy", noisy, device_of(priors))
    given, channels = one_mixture(mixture, priors).to(noisy.device), channels_of(priors)
    check_finite("mixture", given)
    mixture = interleaved(given, priors)
    frame = frame_time(priors.values(), len(mixture))
    if noisy.ndim != 4 or noisy.shape[2:] != (len(priors), frame) or not noisy.numel():
        raise ValueError(
            f"noisy: got shape {tuple(noisy.shape)}, expected (chain, draw, {len(priors)}, {frame})"
        )
    sigma, seed = positive("sigma", sigma), whole("seed", seed, SEEDS)
    if true_sources is not None:
        shape = (len(priors), *given.shape)
        true = checked_sources("true_sources", true_sources, shape, axes("source", priors))
        true_sources = interleaved(true, priors)
    batch = noisy.flatten(0, 1)
    target = AnnealedPosterior(
        mixture.expand(len(batch), -1),
        tuple(priors.values()),
        mixing,
        by_spectrum=resolve_estimate(priors) == "mean",
    )
    evaluation = target.evaluate(batch, sigma)
    generator = torch.Generator(mixture.device).manual_seed(seed)
    clean, means = (
        part.reshape(noisy.shape)[..., : mixture.shape[-1]].cpu()
        for part in target.draw_clean(batch, evaluation, sigma, generator)
    )
    lp = evaluation.log_density.reshape(noisy.shape[:2]).cpu()
    rate = sample_rate_of(priors)
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
        channels=channels,
        true_sources=true_sources,
        attrs={
            "noise_scale": mixing.noise_scale,
            "constraint": "gaussian",
            TREBLE: treble(priors),
        }
        | dict(attrs or {}),
    )
    estimate = means[best_chain(trace)].mean(0)
    contributions, side = mid_and_side(mixing.weights(estimate) * estimate, channels)
    estimate, _ = mid_and_side(estimate, channels)
    return Separation(estimate, tuple(priors), rate, trace, contributions, side=side)
