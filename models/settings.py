r"""The settings of a training run, and the size of the audit at its end. Needs no torch."""

import math
from dataclasses import dataclass

from pyro_sep.checks.arguments import number, whole
from pyro_sep.models.soundness import WEIGHT_MAX

LARGEST = 1 << 28  # audio samples of a batch: 1 GB
GAIN_DB_MAX, RATE_MAX = 120.0, 1e30
STAIRS_FROM = 0.36  # share of the steps before the first stair, as in the public code of the paper
AUDIT_FRAMES, AUDIT_TIME = 32, 2_048  # held-out frames of a source, and their audio samples


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: optimizer steps.
        batch: frames per step.
        time: audio samples per frame.
        learning_rate: peak of the schedule.
        warmup: steps of linear rise.
        decay: final learning rate as a share of the peak.
        stairs: number of falls of the learning rate; 0 for a cosine.
        ema: decay of the averaged weights, shorter at the beginning.
        score_weight: weight w of the score matching loss.
        gain_db: each frame gets a random gain, uniform in decibels up to plus or minus this.
        clip: largest norm of a gradient.
        seed: of weights, frames and noise.

    >>> TrainConfig(steps=100).learning_rate
    0.002
    """

    steps: int = 5_000
    batch: int = 6
    time: int = 3_072
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 5e-3
    stairs: int = 0
    ema: float = 0.999
    score_weight: float = 0.0
    gain_db: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "time"):
            whole(name, getattr(self, name), f"1 to {LARGEST}", 1, LARGEST)
        if self.batch * self.time > LARGEST:
            raise ValueError(
                f"batch: got {self.batch} frames of {self.time} audio samples, expected at most "
                f"{LARGEST} samples in all; take fewer frames, or shorter ones"
            )
        whole("seed", self.seed, "0 or more")
        whole("warmup", self.warmup, "1 or more", 1)
        whole("stairs", self.stairs, "0 or more")
        if not 0 <= number("ema", self.ema) < 1:
            raise ValueError(f"ema: got {self.ema:g}, expected 0 or more, below 1")
        if not 0 < number("decay", self.decay) <= 1:
            raise ValueError(f"decay: got {self.decay:g}, expected above 0, at most 1")
        number("clip", self.clip, "above 0", 0)
        bounds = {"learning_rate": RATE_MAX, "gain_db": GAIN_DB_MAX, "score_weight": WEIGHT_MAX}
        for name, most in bounds.items():
            if not 0 <= number(name, getattr(self, name)) <= most:
                raise ValueError(f"{name}: got {getattr(self, name):g}, expected 0 to {most:g}")


def schedule(step: int, config: TrainConfig) -> float:
    """Learning rate of a step: a linear warmup, then a decay to ``decay`` times the peak.

    The decay follows a cosine, or falls in stairs of one factor each, which are evenly spaced from
    :data:`STAIRS_FROM` of the steps to the last one.

    >>> schedule(0, TrainConfig(learning_rate=0.01, warmup=100))
    0.0001
    """
    done = step / config.steps
    if config.stairs:
        spacing = (1 - STAIRS_FROM) / max(1, config.stairs - 1)
        fallen = sum(done >= STAIRS_FROM + i * spacing for i in range(config.stairs))
        remains = config.decay ** (fallen / config.stairs)
    else:
        remains = config.decay + (1 - config.decay) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * min(1.0, (step + 1) / config.warmup) * remains
