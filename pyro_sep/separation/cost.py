"""The time and memory of a separation, predicted before it is begun."""

import time as clock
from dataclasses import dataclass

import torch

from pyro_sep.checks.arguments import audio
from pyro_sep.inference.annealing.budget import count_gradients
from pyro_sep.inference.annealing.driver import GROUP
from pyro_sep.inference.annealing.sections import sections_of
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import CHUNK
from pyro_sep.mixing.known import NOISE_SCALE
from pyro_sep.mixing.latent import Gains, Infer
from pyro_sep.models.arithmetic import sampling_arithmetic
from pyro_sep.priors.base import Estimate, Priors, device_of
from pyro_sep.priors.stereo import channels_of
from pyro_sep.progress import duration
from pyro_sep.separation.initial import COST
from pyro_sep.separation.inputs import Audio
from pyro_sep.separation.presets import Constraint, Preset
from pyro_sep.separation.problem import Problem, pose

FLOAT = 4  # bytes
PROGRAM = 600_000_000  # bytes of Python, PyTorch and the rest, measured
EVALUATION = 200_000_000  # bytes that an evaluation takes beside its audio, measured: music, toys
STATES = 8  # arrays of the size of the sources that a search holds, and a chain
PIECE = 1 << 13  # audio samples: from there time is about linear in them
TIMING = 0.5  # seconds for the evaluation that is timed at either end of the ladder
LARGER = 16  # times a piece at most


@dataclass(frozen=True)
class Cost:
    """The predicted cost of a separation.

    Attributes:
        seconds: on this machine at its present load.
        memory: bytes of the process.
        gradients: of the log posterior of the whole frame, per mixture, those of all chains.

    >>> print(Cost(seconds=720, memory=640_000_000, gradients=300))
    about 12 min and 0.6 GB
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
    gains: Gains | Infer | None = None,
    noise_scale: float | Infer = NOISE_SCALE,
    constraint: Constraint | None = None,
    presence: Infer | None = None,
    estimate: Estimate | None = None,
    preset: Preset | None = None,
    initial: Audio | None = None,
    settings: Annealing | None = None,
    **fields: float | None,
) -> Cost:
    r"""The time and memory that :func:`~pyro_sep.separate_batch` takes, found in about two seconds.

    A few gradients of the very audio are timed, in pieces where it is long, and

    .. math:: \text{seconds} = M C G \cdot K T \cdot r

    for M mixtures of T audio samples and K sources, C chains of G gradients each
    (:func:`~pyro_sep.inference.annealing.budget.count_gradients`), and r seconds per source's audio
    sample. Searches that fail are repeated, which cannot be predicted and takes up to ``tries``
    times as long. The memory is that of the draws, of the sources while they are searched, and of
    an evaluation.

    Args:
        mixtures: ``(mixture, time)``, or ``(time,)`` of one, at the priors' rate; with a channel
            axis before the time where the priors are of two channels.
        priors: of the sources, by name.
        gains: as of :func:`~pyro_sep.separate_batch`.
        noise_scale: likewise.
        constraint: likewise.
        presence: likewise.
        estimate: likewise.
        preset: likewise.
        initial: likewise; ``(source, time)`` of one mixture.
        settings: likewise.
        fields: of :class:`~pyro_sep.inference.Annealing`, likewise.

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
    given, channels = audio("mixtures", mixtures, device_of(priors)), channels_of(priors)
    alone = given.ndim == (1 if channels == 1 else 2)
    if initial is not None and alone:
        initial = audio("initial", initial)[None]
    problem = pose(
        given[None] if alone else given,
        priors,
        fields,
        gains=gains,
        noise_scale=noise_scale,
        constraint=constraint,
        presence=presence,
        estimate=estimate,
        preset=preset,
        initial=initial,
        settings=settings,
    )
    plan, laws = problem.settings, problem.laws
    count, time = problem.frames.shape
    target = problem.posterior(problem.frames[:1])
    searched = initial is None
    gradients = plan.chains * count_gradients(plan, target, problem.average, searched)
    gradients += 0 if searched else COST
    batch = count * plan.chains * plan.candidates
    _, length = sections_of(target, plan.section)
    rate = _seconds_per_sample(problem, length, batch)
    sources = len(laws) * target.frame
    at_once = max(GROUP, plan.candidates * len(laws) * length)
    held = STATES * (min(batch * len(laws) * length, at_once) + count * plan.chains * sources)
    drawn = count * plan.chains * plan.draws * (2 * len(laws) + 1) * time
    return Cost(
        seconds=gradients * count * sources * rate,
        memory=PROGRAM + EVALUATION + FLOAT * (held + drawn),
        gradients=gradients,
    )


def _seconds_per_sample(problem: Problem, length: int, batch: int) -> float:
    """Seconds of a gradient per audio sample of a source, the mean over both ends of the levels.

    Args:
        problem: whose first section is timed.
        length: audio samples of a section.
        batch: chains that are evaluated side by side.
    """
    mixture, plan = problem.frames[0, :length], problem.settings
    generator = torch.Generator(mixture.device).manual_seed(0)

    def evaluate(samples: int, sigma: float) -> tuple[float, int]:
        part = mixture[:samples]
        rows = max(1, min(batch, samples // len(part), CHUNK // len(part)))
        target = problem.posterior(part.expand(rows, -1))
        position = target.start(sigma, generator)
        started = clock.perf_counter()
        float(target.evaluate(position, sigma).log_density.sum())  # waits for a GPU
        return clock.perf_counter() - started, position.numel()

    rates = []
    evaluate(PIECE, plan.sigma_max)
    for sigma in (plan.sigma_max, plan.sigma_min):
        spent, _ = evaluate(PIECE, sigma)
        spent, size = evaluate(int(PIECE * max(1, min(TIMING / spent, LARGER))), sigma)
        rates.append(spent / size)
    return sum(rates) / len(rates)
