"""Default settings of a run: noise levels by the priors and the frame, and budgets by name."""

from dataclasses import fields, replace
from statistics import mean
from typing import Literal, get_args

from torch import Tensor

from pyro_sep.checks.arguments import choice, shown
from pyro_sep.inference.annealing.schedules import start_level
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.mixing.known import NOISE_SCALE, Mixing
from pyro_sep.priors.base import Estimate, Priors, known_sigmas, sample_rate_of, stated, within
from pyro_sep.priors.stereo import channels_of

Preset = Literal["quick", "standard", "thorough"]
Constraint = Literal["gaussian", "exact"]
CONSTRAINTS = get_args(Constraint)  # how the sources are tied to their mixture

SIGMA_MIN = 0.05  # highest last noise level, full scale 1
FLOOR_SHARE = 0.45  # of the sources' RMS, where that is less: below it priors of music know less;
#                     two channels tell more, and the noise of their mean is less by its root
FREEZE_NATS = 2_000.0  # evidence of a frame at which learned priors have chosen the modes, or
FREEZE_SHARE = 0.7  # noise of this share of the sources' RMS, where that is less
EXACT_NATS = (2.5, 40.0)  # between these an exact prior chooses them
SONG_START = 2.0  # of the sources' RMS, where a frame holds many decisions: none is of the whole
SONG_RATE = 16_000  # Hz, at which this and FLOOR_SHARE are those of music
LOW_RATE = 6_000  # Hz, of music: below it "standard" takes no longer than "quick" at SONG_RATE
SECTION, SONG_SECTION = 2_048, 160_000  # audio samples that are searched at once

SONG: dict[str, float] = {
    **{"candidates": 3, "levels": 8, "swaps": 0},
    **{"warmup": 6, "draws": 4, "thin": 1, "step_size": 1.0},
}

#: Budgets by name, for frames of few decisions (``estimate="mode"``) and of many (``"mean"``):
#: fields of :class:`~pyro_sep.inference.Annealing` other than its defaults.
PRESETS: dict[str, dict[str, dict[str, float]]] = {
    "quick": {
        "mode": {"levels": 36, "replicas": 3, "warmup": 4},
        "mean": SONG | {"candidates": 2, "cooling": 18, "warmup": 4, "chains": 2},
    },
    "standard": {"mode": {}, "mean": SONG | {"cooling": 36, "chains": 3}},
    "thorough": {
        "mode": {"candidates": 8, "tries": 6, "replicas": 16, "chains": 2, "draws": 50},
        "mean": SONG | {"candidates": 4, "cooling": 60, "chains": 8},
    },
}

#: Fields of :class:`~pyro_sep.inference.Annealing`.
FIELDS = tuple(field.name for field in fields(Annealing))

#: Options of :func:`resolve_settings`.
RESOLVED = ("estimate", "preset", "settings", *FIELDS)


def resolve_estimate(priors: Priors, estimate: str | None = None) -> str:
    """The estimate that is given, or the one that the priors state.

    Raises:
        ValueError: neither ``"mode"`` nor ``"mean"``; priors that disagree.
    """
    if estimate is None:
        return stated(priors, "estimate", "give estimate")
    return choice("estimate", estimate, get_args(Estimate))


def default_preset(priors: Priors, estimate: str) -> Preset:
    """The preset where none is given: ``"quick"`` for recordings, unless gradients cost little.

    It is ``"standard"`` for the estimate ``"mode"``, and where the rate of the priors is so low
    that this takes no longer than ``"quick"`` with priors at 16 kHz.

    >>> from pyro_sep.priors.io import load_priors
    >>> [default_preset(load_priors(name), "mean") for name in ("music", "music-4k")]
    ['quick', 'standard']
    """
    cheap = estimate == "mode" or sample_rate_of(priors) < LOW_RATE
    return "standard" if cheap else "quick"


def resolve_settings(
    priors: Priors,
    time: int,
    estimate: Estimate | None = None,
    preset: Preset | None = None,
    settings: Annealing | None = None,
    *,
    loudness: float | None = None,
    **given: float | None,
) -> Annealing:
    """The settings of :func:`~pyro_sep.separate`, with every default filled in.

    The noise levels follow from the priors and the length of the frame, the budget from the preset.

    Args:
        priors: of the sources, by name.
        time: audio samples of the mixtures.
        estimate: ``"mode"`` or ``"mean"``, see :func:`separate_batch`; what the set of priors
            states where None.
        preset: see :data:`PRESETS`; that of :func:`default_preset` where None.
        settings: in place of the noise levels and the preset.
        loudness: of the mixtures, see :func:`relative_loudness`; 1 where None.
        given: fields of :class:`~pyro_sep.inference.Annealing` that take precedence over all these
            unless they are None.

    Raises:
        ValueError: a setting that is out of its range; noise levels that a prior does not know;
            settings and a preset at once.

    >>> from pyro_sep.priors.io import load_priors
    >>> settings = resolve_settings(load_priors("toy/oracle"), 2_048, draws=50)
    >>> settings.draws, settings.chains
    (50, 1)
    """
    estimate_name = resolve_estimate(priors, estimate)
    if unknown := [name for name in given if name not in FIELDS]:
        raise ValueError(f"{unknown[0]}: got an unknown option, expected {', '.join(FIELDS)}")
    own = {name: value for name, value in given.items() if value is not None}
    if settings is None:
        preset = default_preset(priors, estimate_name) if preset is None else preset
        budget = PRESETS[choice("preset", preset, tuple(PRESETS))][estimate_name]
        average, loudness = estimate_name == "mean", 1.0 if loudness is None else loudness
        own = default_ladder(priors, time, average, loudness) | budget | own
        settings = Annealing(**own)  # type: ignore[arg-type]
    elif not isinstance(settings, Annealing):
        raise ValueError(f"settings: got {shown(settings)}, expected pyro_sep.inference.Annealing")
    elif preset is not None:
        raise ValueError("settings: got preset too, expected one of the two; leave preset out")
    else:
        settings = replace(settings, **own)  # type: ignore[arg-type]
    _check_ladder(settings, priors)
    return settings


def relative_loudness(mixtures: Tensor, priors: Priors, mixing: Mixing) -> float:
    r"""RMS of mixtures over the one of a mixture of sources as loud as the priors have heard them.

    .. math:: \sqrt{\overline{m^2}} \Big/ \sqrt{\textstyle\sum_k a_k^2 r_k^2}

    with r_k the RMS of the prior of source k.

    Args:
        mixtures: ``(..., time)``.
        priors: of the sources, by name.
        mixing: a_k.

    >>> from pyro_sep.priors.io import load_priors
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> import torch
    >>> half = torch.full((1, 9), sine["sine"].rms / 2)
    >>> round(relative_loudness(half, sine, Mixing((1.0,))), 3)
    0.5
    """
    expected = sum((a * p.rms) ** 2 for a, p in zip(mixing.gains, priors.values(), strict=True))
    return float(mixtures.double().square().mean() / expected) ** 0.5


def default_ladder(
    priors: Priors, time: int, average: bool = False, loudness: float = 1.0
) -> dict[str, float]:
    """Noise levels and sections of a search, by the frame's length and the priors.

    A learned prior tells sources apart only once the evidence of a frame is far above a few nats,
    so its ladder starts lower. An exact prior decides within these few nats, so its ladder is slow
    from before them until after. Where a frame holds many decisions, none is of the whole: levels
    follow that of the sources, and priors of music have heard them loud and quiet; their noise has
    the same power per hertz at every sample rate.

    Args:
        priors: of the sources.
        time: audio samples of the mixtures.
        average: whether the estimate is the mean, of frames that hold many decisions.
        loudness: of the mixtures, see :func:`relative_loudness`.
    """
    low, high = known_sigmas(priors)
    level = mean(prior.rms for prior in priors.values())
    floor = FLOOR_SHARE / channels_of(priors) ** 0.5
    section = SONG_SECTION if average else SECTION
    length = min(time, section)
    start = start_level(length, level)
    freeze = min(FREEZE_SHARE * level, start_level(length, level, FREEZE_NATS))
    if average:
        # What music is told apart by is the noise's power per hertz, whatever the rate.
        level *= loudness * (sample_rate_of(priors) / SONG_RATE) ** 0.5
        # Between what lets all priors know the first level, and what lets them know the last.
        level = max(min(level, high / SONG_START), low / floor)
        start, freeze = SONG_START * level, FREEZE_SHARE * level
    elif all(getattr(prior, "is_exact", False) for prior in priors.values()):
        start, freeze = (start_level(length, level, nats) for nats in EXACT_NATS)
    return {
        "sigma_max": min(start, high),
        "sigma_min": max(min(SIGMA_MIN, floor * level), low),
        "sigma_freeze": freeze,
        "section": section,
    }


def default_constraint(mixing: Mixing) -> Constraint:
    r"""How sources are tied to their mixture, where all are present and gains and noise are known.

    The evidence of a noisy source's own samples, by which it keeps to its mode, grows with
    :math:`1 / \sigma^2`. The evidence of the mixture on the clean sources is that of noise of
    variance :math:`2 \sigma^2 \sum_k a_k^2 + \gamma^2` under the Gaussian likelihood, and of half
    of it under the exact constraint: twice as many nats at the level where modes freeze. So the
    constraint is exact unless the mixture has more noise of its own than the default gamma.
    """
    return "exact" if mixing.noise_scale <= NOISE_SCALE else "gaussian"


def _check_ladder(settings: Annealing, priors: Priors) -> None:
    """Raise ValueError unless all priors know the noise levels at both ends of the ladder."""
    bounds = low, high = known_sigmas(priors)
    for name in ("sigma_min", "sigma_max"):
        sigma = getattr(settings, name)
        if not within(sigma, bounds):
            raise ValueError(
                f"{name}: got {sigma:g}, expected {low:g} to {high:g}, which all priors know"
            )
