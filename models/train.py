r"""Fit a prior to isolated audio of one source.

The loss of a batch of frames is a code length in nats per audio sample: of the clean sample given
its noisy past for a WaveNet, of the noisy frame for a flow,

.. math:: L = -\mathbb{E} \, \log p(s_t \mid x_{<t}, \sigma) \quad\text{or}\quad
          -\mathbb{E} \, \tfrac{1}{T} \log p_\sigma(x), \qquad x = s + \sigma n, \quad
          \log\sigma \sim U[\log\sigma_{min}, \log\sigma_{max}]

with the noise never clamped, and sigma stratified over the batch. Adam with a linear warmup and a
decay by a cosine or by stairs; the weights that are kept are an exponential moving average. A run
is a folder: it holds ``checkpoint.pt``, from which a killed run goes on exactly, and a TensorBoard
log. Several processes may share a run (:mod:`pyro_sep.models.parallel`).

A flow's likelihood says little about how steep it is, and a sampler needs its score. So a share of
the frames can also be judged by denoising score matching (Vincent 2011), whose optimum is the same,

.. math:: w \, \mathbb{E} \, \frac{1}{2T} \, \|\sigma \nabla \log p_\sigma(x) + n\|^2 .

:func:`fit_serially` is the schedule of Frank & Ilse 2020 (arXiv 2011.01761), section 5.2: a network
trained without noise, then tuned to one noise level after another, each from the last.
"""

import copy
import dataclasses
import math
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pyro_sep.files import written_whole
from pyro_sep.models.family import Network, NetworkConfig, build
from pyro_sep.models.parallel import Ranks

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0
LOG_STEPS = 50
SERIAL_SIGMAS = (0.0, 0.01, 0.027, 0.077, 0.129, 0.359)  # the paper's levels, from noise-free audio
SCORE_SHARE = 3  # every third frame is judged by its score: it costs three times as much
STAIRS_FROM = 0.36  # share of the steps before the first stair, as in the public code of the paper
TUNING_SHARE = 5  # fine-tuning takes a fifth of the steps, as 30,000 after 150,000 in the paper
ALONE = Ranks()

#: ``draw(count, time, generator)`` gives fresh clean audio ``(count, time)``.
Source = Callable[[int, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """Schedule of a training run.

    Attributes:
        steps: optimizer steps.
        batch: frames per step.
        time: audio samples per frame.
        learning_rate: peak of the schedule.
        warmup: steps of linear rise.
        decay: what remains of the learning rate at the end.
        stairs: how often the learning rate falls; 0 for a cosine.
        ema: decay of the averaged weights, shorter at the beginning.
        score_weight: w of the score's loss.
        gain_db: frames are made louder or softer by a gain of uniform decibels up to this many.
        clip: largest norm of a gradient.
        seed: of weights, frames and noise.
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


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is no longer finite; the last good checkpoint is kept."""


def fit(
    source: Source,
    run: Path,
    network_config: NetworkConfig,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    progress: bool = True,
    start: Network | None = None,
    ranks: Ranks = ALONE,
) -> Network:
    """Train a network, or go on where the run in the folder was cut off.

    Args:
        source: draws clean frames.
        run: folder of this run.
        network_config: what to train.
        config: how.
        device: where the network lives; frames and noise are drawn on the CPU, the same everywhere.
        progress: show a bar with the loss.
        start: network of the same size whose weights a new run starts from.
        ranks: the processes that share the run.

    Returns:
        The network with averaged weights, in evaluation mode, without gradients.

    Raises:
        ValueError: the folder holds a run of another config, the network cannot take such
            frames, or there are fewer frames in a batch than processes.
        TrainingDivergedError: the loss or its gradient is not finite.
    """
    if config.time % network_config.multiple:
        raise ValueError(
            f"time: got {config.time} audio samples per frame, "
            f"expected a multiple of {network_config.multiple} for this network"
        )
    if config.score_weight and network_config.sigma_min == 0:
        raise ValueError(
            f"score_weight: got {config.score_weight} at noise level 0, where there is no noise to "
            "match; expected 0"
        )
    ranks.check(config.batch)
    run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # gradients near zero are ten times slower otherwise
    torch.manual_seed(config.seed)
    network = build(network_config)
    if start is not None:
        network.load_state_dict(start.state_dict())
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    average = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(config.seed)
    settings = {"network": dataclasses.asdict(network_config), "train": dataclasses.asdict(config)}
    step = _resume(run / CHECKPOINT, settings, network, average, optimizer, generator)
    saved_at, shown = clock.monotonic(), progress and ranks.first
    with (
        SummaryWriter(str(run), purge_step=step) if ranks.first else nullcontext() as log,
        tqdm(initial=step, total=config.steps, unit="step", disable=not shown) as bar,
    ):
        while step < config.steps:
            learning_rate = schedule(step, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            batch = draw_batch(source, network_config, config, generator)
            clean, noisy, sigma = (part.to(device) for part in batch)
            if step == 0 and ranks.fabric is not None:
                with torch.no_grad():  # every ActNorm is initialised by the whole batch, as alone
                    network.code_length(noisy, clean, sigma)
            loss = _loss(network, (clean, noisy, sigma), config, ranks)
            optimizer.zero_grad()
            loss.backward()
            loss = ranks.add(loss, network.parameters())
            norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingDivergedError(
                    f"loss is {loss.item()} and its gradient's norm {norm.item()} at step {step}; "
                    f"the last good checkpoint is kept in {run}: go on from it with a smaller "
                    "learning rate"
                )
            optimizer.step()
            step += 1
            _average(average, network, min(config.ema, step / (10 + step)))
            bar.update()
            if log is not None and step % LOG_STEPS == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
                log.add_scalar("loss", loss.item(), step)
                log.add_scalar("learning_rate", learning_rate, step)
                log.add_scalar("gradient_norm", norm.item(), step)
            due = clock.monotonic() - saved_at > CHECKPOINT_SECONDS or step == config.steps
            if due and ranks.first:
                _save(run / CHECKPOINT, settings, step, network, average, optimizer, generator)
                saved_at = clock.monotonic()
    return average.requires_grad_(False).eval()


def _loss(
    network: Network, batch: tuple[Tensor, Tensor, Tensor], config: TrainConfig, ranks: Ranks
) -> Tensor:
    """This process's part of the loss of a batch."""
    clean, noisy, sigma = (part[ranks.share(config.batch)] for part in batch)
    loss = network.code_length(noisy, clean, sigma).sum() / config.batch
    judged = -(-config.batch // SCORE_SHARE)
    clean, noisy, sigma = (part[ranks.share(judged)] for part in batch)
    if config.score_weight and len(sigma):
        score = score_loss(network, noisy, clean, sigma)
        loss = loss + config.score_weight * score.sum() / judged
    return loss


def score_loss(network: Network, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Denoising score matching at the noise that was added, per audio sample, ``(batch,)``."""
    x = noisy.clone().requires_grad_()
    log_prob = network.log_prob(x, sigma).sum()
    (score,) = torch.autograd.grad(log_prob, x, create_graph=True)
    noise = (noisy - clean) / sigma[:, None]
    return 0.5 * (sigma[:, None] * score + noise).square().mean(-1)


def fit_serially(
    source: Source,
    run: Path,
    network_config: NetworkConfig,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    progress: bool = True,
    sigmas: Sequence[float] = SERIAL_SIGMAS,
    ranks: Ranks = ALONE,
) -> dict[float, Network]:
    """Train a network at the first noise level, then tune a copy to each one after the other.

    Each level is a run in a folder of its own, so a killed schedule goes on where it was.

    Args:
        source: draws clean frames.
        run: folder of the runs.
        network_config: what to train; each level is the only one that its network knows.
        config: how; later levels take fewer steps.
        device: where the network lives.
        progress: show a bar for each level.
        sigmas: noise levels in their order; 0 is clean audio.
        ranks: the processes that share the runs.

    Returns:
        The networks by noise level.
    """
    networks: dict[float, Network] = {}
    last = None
    for sigma in sigmas:
        level = replace(network_config, sigma_min=sigma, sigma_max=sigma)
        steps = config.steps if last is None else max(1, config.steps // TUNING_SHARE)
        schedule = replace(config, steps=steps)
        folder = run / f"sigma-{sigma:g}"
        last = fit(source, folder, level, schedule, device, progress, last, ranks)
        networks[sigma] = last
    return networks


def draw_batch(
    source: Source, network: NetworkConfig, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean frames, noisy frames ``(batch, time)`` and noise levels ``(batch,)``."""
    clean = source(config.batch, config.time, generator)
    if config.gain_db:
        decibels = config.gain_db * (2 * torch.rand(config.batch, 1, generator=generator) - 1)
        clean = clean * 10 ** (decibels / 20)
    strata = torch.arange(config.batch) / config.batch
    uniform = (torch.rand(1, generator=generator) + strata) % 1
    if network.sigma_min == network.sigma_max:
        sigma = torch.full((config.batch,), network.sigma_min)
    else:
        low, high = math.log(network.sigma_min), math.log(network.sigma_max)
        sigma = (low + (high - low) * uniform).exp()
    noise = torch.randn(clean.shape, generator=generator)
    return clean, clean + sigma[:, None] * noise, sigma


def schedule(step: int, config: TrainConfig) -> float:
    """Learning rate of a step: linear warmup, then a decay from 1 to ``decay`` of the peak.

    By a cosine, or by stairs of one factor each, evenly spaced from :data:`STAIRS_FROM` of the
    steps to the last one.
    """
    done = step / config.steps
    if config.stairs:
        spacing = (1 - STAIRS_FROM) / max(1, config.stairs - 1)
        fallen = sum(done >= STAIRS_FROM + i * spacing for i in range(config.stairs))
        remains = config.decay ** (fallen / config.stairs)
    else:
        remains = config.decay + (1 - config.decay) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * min(1.0, (step + 1) / config.warmup) * remains


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for state, now in zip(average.buffers(), network.buffers(), strict=True):
        state.copy_(now)


def _save(
    path: Path,
    settings: dict[str, Any],
    step: int,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    state = {
        "settings": settings,
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    with written_whole(path) as partial:
        torch.save(state, partial)


def _resume(
    path: Path,
    settings: dict[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Load a checkpoint where there is one; the step it was written at."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"{path}: got a run of another config, expected {settings}; "
            "give another folder, or delete this one"
        )
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return int(state["step"])
