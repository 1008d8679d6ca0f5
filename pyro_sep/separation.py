"""One call from a mixture to posterior draws of its sources."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import sha256
from math import prod
from os import PathLike
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_sep.arguments import audio, choice, known_options, positive, shown, whole
from pyro_sep.data.tracks import check_source_name
from pyro_sep.inference.annealed import anneal
from pyro_sep.inference.checkpoint import Checkpoint
from pyro_sep.inference.draws import Draws
from pyro_sep.inference.schedules import start_level
from pyro_sep.inference.settings import Annealing
from pyro_sep.kept import Kept, Trace, TraceInMemory, TraceOnDisk
from pyro_sep.latent_mixing import Gains, Infer, known_mixing, start_mixing
from pyro_sep.mixing import NOISE_SCALE, Mixing, check_count, frame_time
from pyro_sep.models.arithmetic import plain_arithmetic, sampling_arithmetic
from pyro_sep.posterior import AnnealedPosterior, at_draws
from pyro_sep.presence import SpikeAndSlab
from pyro_sep.priors import Prior, Priors, WaveformPrior, check_priors, device_of, misfit
from pyro_sep.store import TraceStore
from pyro_sep.trace import ESTIMATES, FINGERPRINT, best_chain, build_trace, plain_attrs

SIGMA_MIN = 0.05  # highest last noise level, full scale 1
FLOOR_SHARE = 0.45  # of the sources' RMS, where they are quiet: below it priors of music know less
FREEZE_NATS = 2_000.0  # evidence of a frame at which learned priors have chosen the modes, or
FREEZE_SHARE = 0.7  # noise of this share of the sources' RMS, where that is less
EXACT_NATS = (2.5, 40.0)  # between these an exact prior chooses them
SONG_START = 2.0  # of the sources' RMS, where a frame holds many decisions: none is of the whole
SECTION, SONG_SECTION = 2_048, 160_000  # audio samples that are searched at once
CONSTRAINTS = ("gaussian", "exact")  # how the sources are tied to their mixture
MIN_TIME = 256  # audio samples; less holds no period of a low tone
MAX_PEAK = 100.0  # full scale 1; beyond it audio has another scale, such as that of integers
SAID = (
    *("seed", "noise_scale", "constraint", "absent", "estimate", "settings", "gradients"),
    *("search_tries", "search_found"),
)
POSITIONAL = ("mixtures", "priors", "annealing")
Audio = ArrayLike | Tensor

SONG = {"candidates": 6, "levels": 8, "warmup": 4, "draws": 6, "thin": 1}

#: Budgets by name, for frames of few decisions (``estimate="best"``) and of many (``"mean"``):
#: fields of :class:`~pyro_sep.inference.settings.Annealing` other than its defaults.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "quick": {
        "best": {"levels": 36, "replicas": 3, "warmup": 4},
        "mean": SONG | {"candidates": 4, "cooling": 24},
    },
    "standard": {"best": {}, "mean": SONG | {"cooling": 40, "chains": 2}},
    "thorough": {
        "best": {"candidates": 8, "tries": 6, "replicas": 16, "chains": 2, "draws": 50},
        "mean": SONG | {"cooling": 100, "chains": 4, "draws": 20},
    },
}


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


def separate(mixture: Audio, priors: Priors, **options: Any) -> Separation:
    """Separate one mixture ``(time,)``; options are those of :func:`separate_batch`.

    ``true_sources`` are ``(source, time)``, and ``store`` is one path in place of ``stores``.

    Raises:
        ValueError: bad audio or settings, see :func:`separate_batch`.
    """
    known_options(options, (*OPTIONS, "store"))
    _check_separable(priors)
    mixture = audio("mixture", mixture)
    if mixture.ndim != 1:
        remedy = "mix down to mono first, or give separate_batch a mixture a row"
        if mixture.ndim == 2 and 1 in mixture.shape:
            remedy = f"give mixture{'[0]' if len(mixture) == 1 else '[:, 0]'}, its one channel"
        raise ValueError(f"mixture: got shape {tuple(mixture.shape)}, expected (time,); {remedy}")
    if (truth := options.pop("true_sources", None)) is not None:
        shape = (len(priors), len(mixture))
        options["true_sources"] = _true_sources(truth, shape, "(source, time)")[None]
    if (store := options.pop("store", None)) is not None:
        if options.get("stores") is not None:
            raise ValueError("store: got stores too, expected one of the two; leave stores out")
        options["stores"] = [store]
    return separate_batch(mixture[None], priors, **options)[0]


@sampling_arithmetic()
def separate_batch(
    mixtures: Audio,
    priors: Priors,
    *,
    gains: Gains | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: str | None = None,
    absent: str | None = None,
    estimate: str = "best",
    preset: str = "standard",
    seed: int = 0,
    true_sources: Audio | None = None,
    progress: bool = False,
    attrs: Mapping[str, Any] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    stores: Sequence[str | PathLike[str]] | None = None,
    **annealing: Any,
) -> list[Separation]:
    """Separate mixtures of one length, all chains of all of them at once.

    Audio may be of any type of floats, a list, an array or a tensor: it is taken as float32 on the
    priors' device, without a gradient. Integers are refused, since their type does not say for sure
    how far their scale reaches. What the caller has set of torch changes no draw: ``no_grad``,
    ``inference_mode``, ``autocast``, the default type and device.

    Args:
        mixtures: ``(mixture, time)`` at the priors' sample rate, full scale 1.
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
        preset: ``"quick"``, ``"standard"`` or ``"thorough"``, how much is spent, see
            :data:`PRESETS`; :func:`pyro_sep.estimate_cost` says how long it takes.
        annealing: fields of :class:`~pyro_sep.inference.settings.Annealing` other than the
            preset's, see :func:`resolve_settings`.

    Raises:
        ValueError: mixtures that are short, silent or not finite; priors, gains, rates or settings
            that are none or do not fit; an unknown option; a checkpoint that is damaged or of
            another run; a store that is none.
        OSError: a checkpoint or store that cannot be written.
    """
    known_options(annealing, OPTIONS)
    mixing = known_mixing(priors, gains, noise_scale)
    mixtures = audio("mixtures", mixtures, device_of(priors))
    check_mixtures(mixtures)
    inferred = (isinstance(gains, str), isinstance(noise_scale, str))
    if absent is not None and not (isinstance(absent, str) and absent == "infer"):
        raise ValueError(
            f"absent: got {shown(absent)}, expected 'infer', or None where all sources are present"
        )
    constraint = _constraint(constraint, mixing, bool(absent), any(inferred), stores is not None)
    settings = resolve_settings(priors, mixtures.shape[-1], estimate, preset, **annealing)
    seed = whole("seed", seed, "a whole number from 0 to 2^63 - 1")
    if true_sources is not None:
        shape = (len(mixtures), len(priors), mixtures.shape[-1])
        true_sources = _true_sources(true_sources, shape, "(mixture, source, time)")
    attrs = _own_attrs(attrs)
    place = None if checkpoint is None else _path("checkpoint", checkpoint)
    silenced = [SpikeAndSlab(prior) for prior in priors.values()] if absent else []
    laws: Sequence[Prior] = silenced or tuple(priors.values())
    run: dict[str, Any] = {
        "seed": seed,
        "noise_scale": "infer" if inferred[1] else mixing.noise_scale,
        "constraint": constraint,
        "absent": absent,
    }
    known = run | {"gains": "infer" if inferred[0] else mixing.gains, "stores": stores is not None}
    known |= asdict(settings) | {"sources": list(priors)}
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

    prints = fingerprints(priors, mixtures)
    digest = sha256(mixtures.cpu().numpy().tobytes()).hexdigest()[:12]
    known |= {"mixture": f"{digest} {tuple(mixtures.shape)}"} | prints
    kept = Kept(traces, estimate, mixtures.shape[-1], extras)
    descent = anneal(
        mixtures,
        posterior,
        settings,
        torch.Generator(mixtures.device).manual_seed(seed),
        kept,
        None if place is None else Checkpoint(place, known),
        progress,
        estimate == "mean",
    )
    about = {"estimate": estimate, "settings": asdict(settings), "gradients": descent.gradients}
    root = run | about | prints | attrs
    rate = next(iter(priors.values())).sample_rate
    results = zip(kept.means(), kept.finish(descent, root), strict=True)
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


@sampling_arithmetic()
def describe(
    noisy: Audio,
    mixture: Audio,
    priors: Priors,
    mixing: Mixing,
    sigma: float,
    *,
    seed: int = 0,
    true_sources: Audio | None = None,
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

    Raises:
        ValueError: audio, priors, gains or numbers that are none or do not fit.
    """
    _check_separable(priors)
    check_count(priors, mixing)
    noisy, mixture = (
        audio(name, value, device_of(priors))
        for name, value in (("noisy", noisy), ("mixture", mixture))
    )
    if mixture.ndim != 1:
        raise ValueError(f"mixture: got shape {tuple(mixture.shape)}, expected (time,)")
    frame = frame_time(priors.values(), len(mixture))
    if noisy.ndim != 4 or noisy.shape[2:] != (len(priors), frame) or not noisy.numel():
        raise ValueError(
            f"noisy: got shape {tuple(noisy.shape)}, expected (chain, draw, {len(priors)}, {frame})"
        )
    sigma, seed = positive("sigma", sigma), whole("seed", seed, "a whole number from 0 to 2^63 - 1")
    if true_sources is not None:
        shape = (len(priors), len(mixture))
        true_sources = _true_sources(true_sources, shape, "(source, time)")
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
        true_sources=true_sources,
        attrs={"noise_scale": mixing.noise_scale, "constraint": "gaussian"} | dict(attrs or {}),
    )
    estimate = means[best_chain(trace)].mean(0)
    shares = mixing.weights(estimate) * estimate
    return Separation(estimate, tuple(priors), rate, trace, shares)


#: Settings of a run, by name.
SETTINGS = tuple(field.name for field in fields(Annealing))

#: Options of :func:`resolve_settings`.
RESOLVED = ("estimate", "preset", *SETTINGS)

#: Options of :func:`separate_batch`, settings of a run among them.
OPTIONS = (
    *(name for name in inspect.signature(separate_batch).parameters if name not in POSITIONAL),
    *SETTINGS,
)


def resolve_settings(
    priors: Priors, time: int, estimate: str = "best", preset: str = "standard", **annealing: Any
) -> Annealing:
    """Settings of a run: the ladder of the priors, the preset's budget, and what is given.

    Args:
        priors: of the sources, by name.
        time: audio samples of the mixtures.
        estimate: ``"best"`` or ``"mean"``, see :func:`separate_batch`.
        preset: ``"quick"``, ``"standard"`` or ``"thorough"``, see :data:`PRESETS`.
        annealing: fields of :class:`~pyro_sep.inference.settings.Annealing` that take precedence.

    Raises:
        ValueError: a setting that is none, or out of its range; noise levels that a prior does not
            know.
    """
    known_options(annealing, SETTINGS)
    average = choice("estimate", estimate, ESTIMATES) == "mean"
    budget = PRESETS[choice("preset", preset, tuple(PRESETS))][estimate]
    settings = Annealing(**(default_ladder(priors, time, average) | budget | annealing))
    _check_ladder(settings, priors)
    return settings


def default_ladder(priors: Priors, time: int, average: bool = False) -> dict[str, float]:
    """Levels and sections of a search, from the frame and what the priors know.

    A learned prior knows little where the evidence of a frame is a few nats, and the ladder starts
    lower. An exact one decides there, all at once, and the ladder is slow from before until after.

    Args:
        priors: of the sources.
        time: audio samples of the mixtures.
        average: whether a frame holds many decisions.
    """
    low = max(prior.sigmas[0] for prior in priors.values())
    high = min(prior.sigmas[1] for prior in priors.values())
    level = mean(prior.level for prior in priors.values())
    section = SONG_SECTION if average else SECTION
    length = min(time, section)
    start = start_level(length, level)
    freeze = min(FREEZE_SHARE * level, start_level(length, level, FREEZE_NATS))
    if average:
        start, freeze = SONG_START * level, FREEZE_SHARE * level
    elif _are_exact(priors):
        start, freeze = (start_level(length, level, nats) for nats in EXACT_NATS)
    return {
        "sigma_max": min(start, high),
        "sigma_min": max(min(SIGMA_MIN, FLOOR_SHARE * level), low),
        "sigma_freeze": freeze,
        "section": section,
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


def _constraint(
    given: str | None, mixing: Mixing, may_be_silent: bool, inferred: bool, stored: bool
) -> str:
    """How sources are tied to their mixture, and that nothing is to be inferred where it cannot."""
    if given is None:
        # experiments/presence.py: 40 mixtures of 40 are right by the likelihood, 3 of 5 if exact.
        given = "gaussian" if may_be_silent or inferred else default_constraint(mixing)
    given = choice("constraint", given, CONSTRAINTS)
    if inferred and (given == "exact" or stored):
        raise ValueError(
            "gains: got 'infer', or noise_scale did, with an exact constraint or a store, expected "
            "neither; give their numbers"
        )
    return given


def _are_exact(priors: Priors) -> bool:
    """Whether nothing in them is learned."""
    return all(isinstance(prior, WaveformPrior) for prior in priors.values())


def check_mixtures(mixtures: Tensor) -> None:
    """Raise ValueError unless mixtures ``(mixture, time)`` can be separated."""
    if mixtures.ndim != 2 or not len(mixtures):
        raise ValueError(
            f"mixtures: got shape {tuple(mixtures.shape)}, expected (mixture, time), at least one; "
            "give separate a single one"
        )
    if mixtures.shape[-1] < MIN_TIME:
        raise ValueError(
            f"mixture: got {mixtures.shape[-1]} audio samples, expected at least {MIN_TIME}; "
            "record a longer one"
        )
    if not bool(mixtures.isfinite().all()):
        raise ValueError("mixture: got NaN or infinity, expected finite audio; export it again")
    peaks = mixtures.abs().amax(-1)
    if bool((peaks < 1e-6).any()):
        raise ValueError("mixture: got silence, expected audio with sources in it")
    if bool((peaks > MAX_PEAK).any()):
        raise ValueError(
            f"mixture: got a peak of {float(peaks.max()):g}, expected audio of full scale 1; "
            "divide 16-bit samples by 32768"
        )


def _check_ladder(settings: Annealing, priors: Priors) -> None:
    """Raise ValueError unless all priors know the noise levels at both ends."""
    low = max(prior.sigmas[0] for prior in priors.values())
    high = min(prior.sigmas[1] for prior in priors.values())
    for name in ("sigma_min", "sigma_max"):
        sigma = getattr(settings, name)
        if not low * 0.9999 <= sigma <= high * 1.0001:
            raise ValueError(
                f"{name}: got {sigma:g}, expected {low:g} to {high:g}, which all priors know"
            )


def _true_sources(value: Audio, shape: tuple[int, ...], axes: str) -> Tensor:
    """True sources on the CPU, of that shape."""
    taken = audio("true_sources", value, torch.device("cpu"))
    if tuple(taken.shape) != shape:
        raise ValueError(
            f"true_sources: got shape {tuple(taken.shape)}, expected {shape}, that is {axes}"
        )
    return taken


def _own_attrs(attrs: Any) -> dict[str, Any]:
    """Attributes of the traces that say nothing of how they were made: that they say themselves."""
    plain = plain_attrs({} if attrs is None else attrs)
    if taken := [name for name in plain if name in SAID or name.startswith(FINGERPRINT)]:
        raise ValueError(
            f"attrs: got {taken[0]!r}, which the trace says of its run itself, expected other "
            "names; rename it"
        )
    return plain


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | PathLike) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}: got {shown(value)}, expected a path; give where it is to lie")
    return Path(value)


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
            true_sources=None if true_sources is None else true_sources[i],
        )
        for i, mixture in enumerate(mixtures)
    ]
    if stores is None:
        return [TraceInMemory(build) for build in builds]
    if isinstance(stores, str | PathLike) or not isinstance(stores, Sequence):
        raise ValueError(f"stores: got {shown(stores)}, expected a list of paths, one a mixture")
    paths = [_path("stores", path) for path in stores]
    if len(paths) != len(builds):
        raise ValueError(f"stores: got {len(paths)} paths, expected {len(builds)}, one a mixture")
    places = [path.resolve() for path in paths]
    if len({*places}) < len(places) or any({*place.parents} & {*places} for place in places):
        raise ValueError(
            "stores: got a path twice, expected one a mixture, none within another; give another"
        )
    return [
        TraceOnDisk(build, TraceStore(path, settings.draws))
        for build, path in zip(builds, paths, strict=True)
    ]


def _check_separable(priors: Priors) -> None:
    """Raise ValueError unless priors can be separated with: their files, and their precision."""
    check_priors(priors)
    for name, prior in priors.items():
        check_source_name(name)
        network = getattr(prior, "network", None)
        dtype = torch.float32 if network is None else next(network.parameters()).dtype
        if dtype != torch.float32:
            raise ValueError(
                f"priors: got weights of {dtype} for {name!r}, expected torch.float32; move them "
                "with prior.to(torch.float32)"
            )


@plain_arithmetic()
def fingerprints(priors: Priors, mixtures: Tensor) -> dict[str, float]:
    """By what priors are known again: what each says of some noise as long as the mixtures."""
    time = frame_time(priors.values(), mixtures.shape[-1])
    noise = torch.randn(1, time, generator=torch.Generator().manual_seed(0)).to(mixtures)
    return {
        f"{FINGERPRINT}{name}": float(
            prior.frame(time).condition(prod(prior.sigmas) ** 0.5).log_prob(prior.level * noise)
        )
        for name, prior in priors.items()
    }
