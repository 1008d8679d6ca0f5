"""How long a separation takes here and how much memory, before it is begun."""

import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_sep.checks.arguments import audio, known_options
from pyro_sep.inference.annealing.driver import GROUP
from pyro_sep.inference.annealing.sections import split
from pyro_sep.inference.posterior import CHUNK, AnnealedPosterior
from pyro_sep.mixing.known import NOISE_SCALE, Mixing, frame_time
from pyro_sep.mixing.latent import known_mixing
from pyro_sep.models.arithmetic import sampling_arithmetic
from pyro_sep.priors.base import Prior, Priors, device_of
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.progress import duration
from pyro_sep.separation.api import OPTIONS, RESOLVED, Audio, check_mixtures, resolve_settings

FLOAT = 4  # bytes
PROGRAM = 600_000_000  # bytes of Python, PyTorch and the rest, measured
EVALUATION = 200_000_000  # bytes that an evaluation takes beside its audio, measured: music, toys
STATES = 8  # arrays of the size of the sources that a search holds, and a chain
PIECE = 1 << 13  # audio samples: from there time is about linear in them
TIMING = 0.5  # seconds for the evaluation that is timed at either end of the ladder
LARGER = 16  # times a piece at most


@dataclass(frozen=True)
class Cost:
    """What a separation takes.

    Attributes:
        seconds: of this machine, as busy as it is now.
        memory: bytes of the process.
        gradients: of the log posterior of the whole frame, per mixture, those of all chains.
    """

    seconds: float
    memory: int
    gradients: float

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} and {self.memory / 1e9:.1f} GB"


@sampling_arithmetic()
def estimate_cost(
    mixtures: Audio,
    priors: Priors,
    *,
    preset: str = "standard",
    estimate: str = "best",
    **options: Any,
) -> Cost:
    r"""What :func:`~pyro_sep.separate_batch` takes, in about two seconds.

    A few gradients of the very audio are timed, in pieces where it is long, and

    .. math:: \text{seconds} = M C G \cdot K T \cdot r

    for M mixtures of T audio samples and K sources, C chains of G gradients each
    (:meth:`~pyro_sep.inference.Annealing.gradients`), and r seconds per source's audio
    sample. Searches that fail are begun
    anew, which is not known beforehand and takes up to ``tries`` times as long. The memory is that
    of the draws, of the sources while they are searched, and of an evaluation.

    Args:
        mixtures: ``(mixture, time)``, or ``(time,)`` of one, at the priors' rate.
        priors: of the sources, by name.
        preset: as of :func:`~pyro_sep.separate_batch`.
        estimate: likewise.
        options: likewise.

    Raises:
        ValueError: bad audio or settings.

    >>> import torch
    >>> from pyro_sep.priors.io import load_priors
    >>> priors = load_priors("toy/oracle")
    >>> tone = 0.1 * torch.arange(512).sin()
    >>> cost = estimate_cost(tone, priors, preset="quick", draws=10)
    >>> 0 < cost.seconds < estimate_cost(tone, priors, preset="quick", draws=1_000).seconds
    True
    """
    known_options(options, OPTIONS)
    mixtures = audio("mixtures", mixtures, device_of(priors))
    mixtures = mixtures[None] if mixtures.ndim == 1 else mixtures
    check_mixtures(mixtures)
    count, time = mixtures.shape
    resolved = {name: options[name] for name in RESOLVED if name in options}
    settings = resolve_settings(priors, time, estimate, preset, **resolved)
    gains, noise_scale = options.get("gains"), options.get("noise_scale", NOISE_SCALE)
    mixing = known_mixing(priors, gains, noise_scale)
    silent = options.get("presence") is not None
    laws: Sequence[Prior] = list(priors.values())
    if silent:
        laws = [SpikeAndSlab(prior) for prior in priors.values()]
    whole = silent or isinstance(gains, str) or isinstance(noise_scale, str)
    frame = frame_time(laws, time)
    section = frame if whole else settings.section
    starts, length = split(frame, section, frame_time(laws, 1))
    overlap = len(starts) * length / frame
    gradients = settings.chains * settings.gradients(len(laws), silent, estimate == "mean", overlap)
    lanes = count * settings.chains * settings.candidates
    ends = (settings.sigma_max, settings.sigma_min)
    rate = _seconds_per_sample(mixtures[0, :length], laws, mixing, lanes, ends)
    sources = len(laws) * frame
    searched = lanes * len(laws) * length
    searched = min(searched, max(GROUP, settings.candidates * len(laws) * length))
    held = STATES * (searched + count * settings.chains * sources)
    drawn = count * settings.chains * settings.draws * (2 * len(laws) + 1) * time
    return Cost(
        seconds=gradients * count * sources * rate,
        memory=PROGRAM + EVALUATION + FLOAT * (held + drawn),
        gradients=gradients,
    )


def _seconds_per_sample(
    mixture: Tensor,
    laws: Sequence[Prior],
    mixing: Mixing,
    lanes: int,
    sigmas: tuple[float, float],
) -> float:
    """Of one gradient, per source's audio sample, the mean over both noise levels.

    Args:
        mixture: of a section ``(time,)``.
        laws: priors of the sources.
        mixing: gains and noise.
        lanes: that are evaluated side by side.
        sigmas: noise levels.
    """
    generator = torch.Generator(mixture.device).manual_seed(0)

    def evaluate(samples: int, sigma: float) -> tuple[float, int]:
        part = mixture[:samples]
        rows = max(1, min(lanes, samples // len(part), CHUNK // len(part)))
        target = AnnealedPosterior(part.expand(rows, -1), laws, mixing)
        position = target.start(sigma, generator)
        started = clock.perf_counter()
        float(target.evaluate(position, sigma).log_density.sum())  # waits for a GPU
        return clock.perf_counter() - started, position.numel()

    rates = []
    evaluate(PIECE, sigmas[0])
    for sigma in sigmas:
        spent, _ = evaluate(PIECE, sigma)
        spent, size = evaluate(int(PIECE * max(1, min(TIMING / spent, LARGER))), sigma)
        rates.append(spent / size)
    return sum(rates) / len(rates)
