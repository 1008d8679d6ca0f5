"""Train the prior of a source on isolated recordings of it."""

import sys
import time as clock
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from pyro_sep.audio.resampling import check_rate
from pyro_sep.audio.treble import ratios
from pyro_sep.checks.arguments import choice
from pyro_sep.checks.names import printable
from pyro_sep.data.source import fingerprint, open_sources, training_rms
from pyro_sep.data.toy import SAMPLE_RATE
from pyro_sep.data.tracks import check_source_name
from pyro_sep.models.parallel import Ranks
from pyro_sep.models.registry import FAMILIES, Network, NetworkConfig, family_of
from pyro_sep.models.settings import AUDIT_FRAMES, AUDIT_TIME, TrainConfig
from pyro_sep.models.train import ALONE, CHECKPOINT, SERIAL_SIGMAS, fit, fit_serially
from pyro_sep.models.waveform import Waveform
from pyro_sep.priors.base import Estimate, MixingRule
from pyro_sep.priors.io import check_set, load_priors
from pyro_sep.priors.model_card import check_free, save_with_card, train_command
from pyro_sep.priors.networks import PRIORS, NetworkPrior
from pyro_sep.progress import resumable
from pyro_sep.storage.files import only_run

FLOW_SCORE_WEIGHT = 0.3
SETTINGS = [field.name for field in fields(TrainConfig)]


def train_prior(
    source: str | Sequence[str],
    out: str | PathLike[str],
    *,
    init: str | None = None,
    family: Literal["wavenet", "flow"] | None = None,
    size: str | None = None,
    recipe: Literal["conditional", "serial"] = "conditional",
    steps: int = TrainConfig.steps,
    batch: int = TrainConfig.batch,
    time: int = TrainConfig.time,
    learning_rate: float = TrainConfig.learning_rate,
    warmup: int = TrainConfig.warmup,
    decay: float = TrainConfig.decay,
    stairs: int = TrainConfig.stairs,
    ema: float = TrainConfig.ema,
    score_weight: float | None = None,
    gain_db: float = TrainConfig.gain_db,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    clip: float = TrainConfig.clip,
    seed: int = TrainConfig.seed,
    sample_rate: int = SAMPLE_RATE,
    musdb: str | PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    ranks: Ranks = ALONE,
    command: str | None = None,
) -> NetworkPrior | dict[float, NetworkPrior]:
    """The trained prior of a source; it is also written to ``OUT/NAME.safetensors``.

    A model card ``NAME.md`` beside the weights says how the prior was trained and how well it knows
    held-out audio. ``priors.json`` states how the sources of the set add up: toy tones to their
    mean, recordings to their sum. The run's checkpoints are in ``OUT/NAME.run``: the same call goes
    on from there where it was cut off. A TensorBoard log is there too.

    Args:
        source: isolated audio of one source: ``"toy:WAVEFORM"``, a folder of recordings,
            ``"FOLDER:STEM"``, or ``"musdb:STEM"``. Of several, the first names the source, and
            frames are drawn from each as often as its weight says, ``"FOLDER:0.3"``; else 1.
        out: folder of the set of priors; made where it is missing.
        init: set whose prior of this source the training begins from, one that ships or a folder;
            ``"SET:NAME"`` for another one of it. By default random weights.
        family: of the network; by default a WaveNet, or that of ``init``.
        size: of the network: ``"toy"``, ``"toy-deep"``, ``"music"``, ``"music-4k"`` or ``"paper"``,
            as far as the family has it; by default ``"toy"``, or that of ``init``.
        recipe: ``"conditional"``, one network for all noise levels; or ``"serial"``, the paper's,
            one network for each of its noise levels, in ``OUT/sigma-SIGMA``.
        steps: see :class:`~pyro_sep.models.TrainConfig`, like the other settings up to ``seed``.
        batch: frames per step.
        time: audio samples per frame.
        learning_rate: peak of the schedule.
        warmup: steps of linear rise.
        decay: final learning rate as a share of the peak.
        stairs: number of falls of the learning rate; 0 for a cosine.
        ema: decay of the averaged weights.
        score_weight: weight of the score matching loss; 0.3 for a conditional flow, else 0.
        gain_db: random gain of the frames in decibels, up to plus or minus this.
        sigma_min: lowest noise level that is learned, full scale 1; by default that of the size, or
            of ``init``.
        sigma_max: highest noise level that is learned, alike.
        clip: largest norm of a gradient.
        seed: of weights, frames and noise.
        sample_rate: of the prior, in Hz; recordings are resampled to it.
        musdb: root of musdb18, for ``"musdb:STEM"``.
        device: where the network is trained; the prior that is returned is on the CPU.
        progress: show a bar, and notes on the recordings, on standard error.
        ranks: the processes that share the run; the first of them writes.
        command: for the model card; by default that of ``pyro-sep train``.

    Returns:
        The prior; for the serial recipe a dict of priors by noise level.

    Raises:
        ValueError: no such source, family, size or recipe; audio or settings that do not fit, as a
            family or size beside ``init``;
            weights or a checkpoint of another run in the folder, or priors of sources that add up
            otherwise; a package that is missing.
        OSError: the folder cannot be written to, or another run writes to it now.
        TrainingDivergedError: the loss is no longer finite.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     prior = train_prior("toy:sine", folder, steps=1, batch=1, time=64)
    >>> prior.name, prior.sample_rate
    ('sine', 16000)
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    serial = choice("recipe", recipe, ("conditional", "serial")) == "serial"
    if init is not None and (family, size, serial) != (None, None, False):
        raise ValueError(
            "init: got a family, a size or the serial recipe beside it, expected none of them; the "
            "network is the one that training begins from"
        )
    check_rate("sample_rate", sample_rate)
    sources = [source] if isinstance(source, str) else list(source)
    audio = open_sources(sources, sample_rate, time, None if musdb is None else Path(musdb))
    check_source_name(audio.name)
    for note in audio.notes if progress and ranks.first else ():
        tqdm.write(note, file=sys.stderr)
    above = ratios(audio.energies)
    known = fingerprint(audio, time, seed)
    if init is None:
        kind, start = choice("family", family or "wavenet", FAMILIES), None
        sizes = FAMILIES[kind].sizes
        network_config: NetworkConfig = sizes[choice("size", size or "toy", sizes)]
        network: dict[str, object] = {"family": kind, "size": size or "toy"}
        network_config = replace(network_config, sigma_data=training_rms(audio, time, seed))
    else:
        start = _beginning(init, audio.name, sample_rate)
        network_config = start.config
        kind, network = family_of(network_config), {"init": init}
        known += f" {_digest(start)}"
    for name, sigma in {"sigma_min": sigma_min, "sigma_max": sigma_max}.items():
        if sigma is not None and serial:
            raise ValueError(
                f"{name}: got {sigma:g} and the serial recipe, expected none beside it; its noise "
                "levels are the paper's"
            )
        network |= {} if sigma is None else {name: sigma}
    network_config = replace(
        network_config,
        sigma_min=network_config.sigma_min if sigma_min is None else sigma_min,
        sigma_max=network_config.sigma_max if sigma_max is None else sigma_max,
    )
    if score_weight is None:
        score_weight = FLOW_SCORE_WEIGHT if kind == "flow" and not serial else 0.0
    config = TrainConfig(**given | {"score_weight": score_weight})
    out, run = Path(out), Path(out) / f"{audio.name}.run"
    folders = [out / f"sigma-{sigma:g}" for sigma in SERIAL_SIGMAS] if serial else [out]
    check_free([folder / f"{audio.name}.safetensors" for folder in folders], run)
    is_toy = sources[0].startswith("toy:")
    law: tuple[MixingRule, Estimate] = ("mean", "mode") if is_toy else ("sum", "mean")
    for folder in folders:
        check_set(folder, *law)
    arguments = (audio.draw, run, network_config, config, device, progress)
    started = clock.monotonic()
    alone = only_run(run) if ranks.first else nullcontext()
    with resumable(run if serial else run / CHECKPOINT), alone:
        if serial:
            networks = list(fit_serially(*arguments, ranks=ranks, audio=known).values())
        else:
            networks = [fit(*arguments, start=start, ranks=ranks, audio=known)]
    seconds = clock.monotonic() - started
    priors = [
        PRIORS[kind](
            network.cpu(),
            name=audio.name,
            sample_rate=sample_rate,
            mixing=law[0],
            estimate=law[1],
            treble=above,
        )
        for network in networks
    ]
    if ranks.first:
        settings = network | {"recipe": recipe, "sample_rate": sample_rate} | asdict(config)
        command = command or train_command(sources, settings)
        held_out = audio.held_out(AUDIT_FRAMES, AUDIT_TIME)
        for folder, prior in zip(folders, priors, strict=True):
            save_with_card(folder, prior, sources, command, settings, seconds, held_out)
    return dict(zip(SERIAL_SIGMAS, priors, strict=True)) if serial else priors[0]


def _beginning(init: str, name: str, sample_rate: int) -> Network:
    """The network of ``SET`` for a source, or that of ``SET:NAME``.

    Raises:
        ValueError: no such set or prior, or one of another rate or without weights.
    """
    folder, _, other = init.rpartition(":")
    if folder and not Path(init).is_dir():
        init, name = folder, other
    priors = load_priors(init)
    if name not in priors:
        raise ValueError(
            printable(f"init: got {init!r}, which has no prior of {name}, expected one of ")
            + printable(f"{', '.join(priors)}; name it as {init}:{next(iter(priors))}")
        )
    prior = priors[name]
    if prior.sample_rate != sample_rate:
        raise ValueError(
            f"init: got a prior of {prior.sample_rate} Hz, expected {sample_rate}, the sample_rate"
        )
    if isinstance(prior.network, Waveform):
        raise ValueError(f"init: got the true prior {init!r}, expected one that was trained")
    return prior.network


def _digest(network: Network) -> str:
    """By what weights are known again."""
    weights = torch.cat([weight.flatten().double() for weight in network.state_dict().values()])
    return sha256(weights.numpy().tobytes()).hexdigest()[:16]
