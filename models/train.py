r"""Fit a prior to isolated audio of one source.

The loss of a batch of frames is a code length in nats per audio sample: of the clean sample given
its noisy past for a WaveNet, of the noisy frame for a flow,

.. math:: L = -\mathbb{E} \, \log p(s_t \mid x_{<t}, \sigma) \quad\text{or}\quad
          -\mathbb{E} \, \tfrac{1}{T} \log p_\sigma(x), \qquad x = s + \sigma n, \quad
          \log\sigma \sim U[\log\sigma_{min}, \log\sigma_{max}]

with the noise never clamped, and sigma stratified over the batch. Adam with a linear warmup and a
decay by a cosine or by stairs; the weights that are kept are an exponential moving average. A run
is a folder: it holds ``checkpoint.pt``, from which a killed run goes on exactly, and a TensorBoard
log. A run that diverges leaves its last sound state there (:mod:`pyro_sep.models.soundness`), from
which it may go on with a smaller learning rate. Several processes may share a run
(:mod:`pyro_sep.models.parallel`).

A flow's likelihood says little about how steep it is, and a sampler needs its score. So a share of
the frames can also be judged by denoising score matching (Vincent 2011), whose optimum is the same,

.. math:: w \, \mathbb{E} \, \frac{1}{2T} \, \|\sigma \nabla \log p_\sigma(x) + n\|^2 .

:func:`fit_serially` is the schedule of Frank & Ilse 2020 (arXiv 2011.01761), section 5.2: a network
trained without noise, then tuned to one noise level after another, each from the last.
"""

import copy
import dataclasses
import math
import sys
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pyro_sep.checks.optional import import_optional
from pyro_sep.models.arithmetic import denormals_flushed, plain_arithmetic
from pyro_sep.models.parallel import Ranks
from pyro_sep.models.registry import Network, NetworkConfig, build
from pyro_sep.models.settings import TrainConfig, schedule
from pyro_sep.models.soundness import WEIGHT_MAX, Losses, unsound_weight
from pyro_sep.storage.files import check_space
from pyro_sep.storage.states import check_like, load_state, readable, save_state

CHECKPOINT = "checkpoint.pt"
KIND = "training"
CHECKPOINT_SECONDS = 60.0
SAVED_TWICE = 2 * 4 + 1  # copies of the weights: two checkpoints, each with two moments; the prior
LOG_STEPS = 50
SERIAL_SIGMAS = (0.0, 0.01, 0.027, 0.077, 0.129, 0.359)  # the paper's levels, from noise-free audio
SCORE_SHARE = 3  # every third frame is judged by its score: it costs three times as much
TUNING_SHARE = 5  # fine-tuning takes a fifth of the steps, as 30,000 after 150,000 in the paper
ALONE = Ranks()

#: ``draw(count, time, generator)`` gives fresh clean audio ``(count, time)``.
Source = Callable[[int, int, torch.Generator], Tensor]


class TrainingDivergedError(FloatingPointError):
    """A loss, gradient or weight is no longer finite; the last sound state is kept."""


@plain_arithmetic()
@denormals_flushed()  # gradients near zero are ten times slower otherwise
def fit(
    source: Source,
    run: Path,
    network_config: NetworkConfig,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    progress: bool = True,
    start: Network | None = None,
    ranks: Ranks = ALONE,
    audio: str = "",
) -> Network:
    """Train a network, or go on where the run in the folder was cut off.

    Args:
        source: draws clean frames.
        run: folder of this run.
        network_config: what to train.
        config: how; a run goes on with a smaller learning rate than it had, and says so.
        device: where the network lives; frames and noise are drawn on the CPU, the same everywhere.
        progress: show a bar with the loss.
        start: network of the same size whose weights a new run starts from.
        ranks: the processes that share the run.
        audio: by what the source is known again, see :func:`pyro_sep.data.source.fingerprint`; a
            run of other audio is not gone on with.

    Returns:
        The network with averaged weights, in evaluation mode, without gradients.

    Raises:
        ValueError: the folder holds a run of another config or a damaged checkpoint, the network
            cannot take such frames, or there are fewer frames in a batch than processes.
        OSError: the folder cannot be written to.
        TrainingDivergedError: a loss, its gradient or a weight is not finite, or a weight is beyond
            :data:`~pyro_sep.models.soundness.WEIGHT_MAX`; the last sound state is in the folder.

    >>> from tempfile import TemporaryDirectory
    >>> from pyro_sep.data.source import ToySource
    >>> from pyro_sep.models import WaveNetConfig
    >>> small = WaveNetConfig(width=8, layers=2, hop=16, components=2)
    >>> config = TrainConfig(steps=1, batch=1, time=64)
    >>> with TemporaryDirectory() as folder:
    ...     network = fit(ToySource("saw").draw, Path(folder), small, config, progress=False)
    >>> network.training
    False
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
    import_optional("tensorboard", "train", "train")
    from torch.utils.tensorboard import SummaryWriter

    run.mkdir(parents=True, exist_ok=True)
    training = _Training(run / CHECKPOINT, network_config, config, device, start, ranks, audio)
    check_space(run, SAVED_TWICE * training.bytes, "give another folder")
    saved_at, shown = clock.monotonic(), progress and ranks.first
    with (
        SummaryWriter(str(run), purge_step=training.step) if ranks.first else nullcontext() as log,
        tqdm(initial=training.step, total=config.steps, unit="step", disable=not shown) as bar,
    ):
        while training.step < config.steps:
            batch, (learning_rate,) = training.draw(source), training.learning_rate.get_last_lr()
            loss, norm = training.differentiate(batch)
            training.update(loss, norm)
            bar.update()
            if log is not None and training.step % LOG_STEPS == 0:
                bar.set_postfix(loss=f"{loss:.3f}")
                log.add_scalar("loss", loss, training.step)
                log.add_scalar("learning_rate", learning_rate, training.step)
                log.add_scalar("gradient_norm", norm, training.step)
            ends = training.step == config.steps
            due = clock.monotonic() - saved_at > CHECKPOINT_SECONDS
            if ends or (due and ranks.first):
                training.keep(batch, ends)
                saved_at = clock.monotonic()
    return training.average.requires_grad_(False).eval()


class _Training:
    """All that a run goes on from, and the file that it is kept in."""

    def __init__(
        self,
        path: Path,
        network_config: NetworkConfig,
        config: TrainConfig,
        device: torch.device | str,
        start: Network | None,
        ranks: Ranks,
        audio: str,
    ) -> None:
        self.audio = audio
        self.path, self.config, self.ranks, self.device = path, config, ranks, device
        self.network_config = network_config
        torch.manual_seed(config.seed)
        self.network = build(network_config)
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.network.to(device)
        parameters = {"params": self.network.parameters(), "initial_lr": 1.0}
        self.optimizer = torch.optim.Adam([parameters], betas=(0.9, 0.99))
        self.average = copy.deepcopy(self.network)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.before = self.generator.get_state()  # the batch was drawn
        self.step, self.losses = 0, Losses()
        self.sound: dict[str, Any] = {}  # the last sound state
        self.saved = -1  # step of the one in the file
        if path.exists():
            self._resume()
        rate = partial(schedule, config=config)
        self.learning_rate = LambdaLR(self.optimizer, rate, last_epoch=self.step - 1)

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    def draw(self, source: Source) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch."""
        self.before = self.generator.get_state()
        batch = draw_batch(source, self.network_config, self.config, self.generator)
        clean, noisy, sigma = (part.to(self.device) for part in batch)
        if self.step == 0 and self.ranks.fabric is not None:
            with torch.no_grad():  # every ActNorm is initialised by the whole batch, as alone
                self.network.code_length(noisy, clean, sigma)
        return clean, noisy, sigma

    def differentiate(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
        """Loss of all processes, and the norm of its gradient before it was clipped."""
        loss = _loss(self.network, batch, self.config, self.ranks)
        self.optimizer.zero_grad()
        loss.backward()
        loss = self.ranks.add(loss, self.network.parameters())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        return loss.item(), norm.item()

    def update(self, loss: float, norm: float) -> None:
        """Take a step, unless these say that the run has diverged."""
        self._check(loss, norm)
        if self.losses.add(loss):
            self.sound = _copied(self._state() | {"generator": self.before}, self.sound)
        self.optimizer.step()
        self.learning_rate.step()
        self.step += 1
        _average(self.average, self.network, min(self.config.ema, self.step / (10 + self.step)))

    def keep(self, batch: tuple[Tensor, Tensor, Tensor], ends: bool) -> None:
        """Save the state where it is sound by the last batch; at the end, where it is finite."""
        loss = _loss(self.network, batch, self.config, ALONE).item()
        if ends:
            self._check(loss)
        sound = not unsound_weight(self.network.state_dict()) and self.losses.are_sound_with(loss)
        if (sound or ends) and self.ranks.first:
            self._save(self._state())

    def _check(self, loss: float, norm: float = 0.0) -> None:
        """Raise, and save the last sound state, where the run has diverged."""
        largest = _largest(self.network)
        if math.isfinite(loss) and math.isfinite(norm) and largest <= WEIGHT_MAX:
            return
        if self.sound and self.sound["step"] > self.saved and self.ranks.first:
            self._save(self.sound)
        last = max(self.saved, self.sound.get("step", -1))
        kept = f"the last sound state, of step {last}, is kept in {self.path}: go on from it"
        if last < 0:
            kept = f"{self.path} is not written, since no state was sound: look at the audio, begin"
        raise TrainingDivergedError(
            f"loss is {loss} and its gradient's norm {norm} at step {self.step}, the largest "
            f"weight is {largest:g}; {kept} with a learning rate smaller than "
            f"{self.config.learning_rate:g}"
        )

    def _settings(self) -> dict[str, Any]:
        network, config = map(dataclasses.asdict, (self.network_config, self.config))
        return {"network": network, "train": config, "audio": self.audio}

    def _state(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "step": self.step,
            "losses": list(self.losses.last),
            "network": dict(self.network.state_dict()),
            "average": dict(self.average.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def _save(self, state: dict[str, Any]) -> None:
        save_state(self.path, KIND, state)
        self.saved = state["step"]

    def _resume(self) -> None:
        """Go on from the file.

        Raises:
            ValueError: it is damaged, of another run, or holds weights that are not sound.
        """
        state = load_state(self.path, KIND)
        with readable(self.path, KIND):
            settings = state["settings"]
            rate = float(settings["train"]["learning_rate"])
            same = settings | {"train": settings["train"] | {"learning_rate": 0}}
            wanted = self._settings()
            wanted["train"]["learning_rate"] = 0
            goes_on = bool(same == wanted) and self.config.learning_rate <= rate
        if not goes_on:
            raise ValueError(
                f"{self.path}: got a run of another config, expected {self._settings()}, or the "
                "same with a larger learning rate; give another folder, or delete this one"
            )
        with readable(self.path, KIND):
            self._restore(state)
        if self.config.learning_rate < rate and self.ranks.first:
            tqdm.write(
                f"{self.path}: goes on from step {self.step} with the learning rate "
                f"{self.config.learning_rate:g} in place of {rate:g}",
                file=sys.stderr,
            )

    def _restore(self, state: dict[str, Any]) -> None:
        like = self._state() | {name: state[name] for name in ("settings", "losses", "optimizer")}
        check_like("state", state, like)
        for name in ("network", "average"):
            if strange := unsound_weight(state[name]):
                raise ValueError(f"{name} {strange} is not finite, or beyond {WEIGHT_MAX:g}")
        if not 0 <= state["step"] <= self.config.steps:
            raise ValueError(f"it is of step {state['step']} of {self.config.steps}")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        _restore_moments(self.optimizer, state["optimizer"]["state"])
        self.generator.set_state(state["generator"])
        self.step = self.saved = state["step"]
        self.losses = Losses(map(float, state["losses"]))


def _restore_moments(optimizer: torch.optim.Optimizer, moments: dict[int, Any]) -> None:
    """Give Adam the moments of each parameter; what else it needs, it has by itself."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, own in moments.items():
        zeros = torch.zeros_like(parameters[place], device="cpu")
        like = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros}
        check_like(f"optimizer {place}", own, like)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


@torch.no_grad()
def _largest(network: nn.Module) -> float:
    """Magnitude of the largest weight; NaN where one is."""
    return float(nn.utils.parameters_to_vector(network.parameters()).abs().amax())


def _copied(value: Any, old: Any) -> Any:
    """A state that changes no more, in the memory of an old copy where there is one."""
    if isinstance(value, Tensor):
        same = isinstance(old, Tensor) and old.shape == value.shape
        return old.copy_(value) if same else value.detach().clone()
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        return {key: _copied(part, olds.get(key)) for key, part in value.items()}
    return value


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
    audio: str = "",
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
        audio: as in :func:`fit`.

    Returns:
        The networks by noise level.
    """
    networks: dict[float, Network] = {}
    last = None
    for sigma in sigmas:
        level = replace(network_config, sigma_min=sigma, sigma_max=sigma)
        steps = config.steps if last is None else max(1, config.steps // TUNING_SHARE)
        settings = replace(config, steps=steps)
        folder = run / f"sigma-{sigma:g}"
        last = fit(source, folder, level, settings, device, progress, last, ranks, audio)
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


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for state, now in zip(average.buffers(), network.buffers(), strict=True):
        state.copy_(now)
