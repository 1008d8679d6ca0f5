r"""A conditioner for couplings over time: samples not seen, from scattered samples that are.

Audio is cut into tokens of C samples. A *stage* fixes which positions of a token are known, the
same in every token, and which are to be predicted; known positions that look random keep a tone's
aliases as weak as noise. The network reads the known samples, zero elsewhere, three ways: token by
token, by spectra of the surroundings (:mod:`pyro_sep.models.spectrum`), and, for each sample to be
predicted, in its immediate neighbourhood. Non-causal gated convolutions over tokens join them (van
den Oord et al. 2016, arXiv 1609.03499). One network serves all stages and noise levels, and is
conditioned on both.

Shapes: ``known (batch, position, token)``, ``sigma (batch,)`` ->
``(batch, predicted position, output, token)``.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_sep.models.noise import CHANNELS, NoiseEmbedding
from pyro_sep.models.spectrum import SpectralInterpolator

ORDER_TRIALS = 1_000


class Stage(NamedTuple):
    """Positions within a token, in rising order."""

    known: list[int]
    predicted: list[int]


def nested_stages(size: int, count: int) -> list[Stage]:
    """Stages that each predict as many positions as they know, from all of them to few.

    The known positions of a stage are those of the next one, known and predicted. They are chosen
    among random ones so that the strongest alias of a tone, the largest value of the mask's
    spectrum, is small at each stage; always the same for a size.
    """
    if size < 2**count or size % 2**count:
        raise ValueError(f"size: got {size} positions, expected a multiple of {2**count}")
    order = _scattered_order(size, count)
    halves = [size >> stage for stage in range(count + 1)]
    return [
        Stage(sorted(order[:half]), sorted(order[half:whole]))
        for whole, half in itertools.pairwise(halves)
    ]


class Interpolator(nn.Module):
    """See the module's docstring.

    Args:
        stages: which positions are known and predicted.
        size: C, audio samples per token.
        outputs: numbers per predicted sample.
        width: channels of the convolutions over tokens.
        layers: how many of them, of dilation 1, 2, 4, ... tokens.
        spectra: windows of the spectra in audio samples.
        head_width: channels of the network that predicts a sample.
        head_reach: audio samples that it sees to either side.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        size: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        spectra: Sequence[int],
        head_width: int,
        head_reach: int,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.size, self.head_width, self.head_reach = size, head_width, head_reach
        self.embed = NoiseEmbedding(len(stages))
        self.windows = tuple(spectra)
        self.spectra = nn.ModuleList(
            SpectralInterpolator(window, size, CHANNELS) for window in spectra
        )
        self.read = nn.Linear((1 + len(spectra)) * size, width)
        self.dilations = [2**layer for layer in range(layers)]
        self.gates = nn.ModuleList(
            nn.Linear(3 * width, 2 * width, bias=False) for _ in self.dilations
        )
        self.conditions = nn.ModuleList(nn.Linear(CHANNELS, 2 * width) for _ in self.dilations)
        self.mixes = nn.ModuleList(nn.Linear(width, 2 * width) for _ in self.dilations)
        self.head_trunk = nn.Linear(width, size * head_width)
        neighbours = 2 * head_reach + 1
        self.head_local = nn.Linear(2 * neighbours + len(spectra), head_width, bias=False)
        self.head_condition = nn.Linear(CHANNELS, head_width)
        self.head_hidden = nn.Linear(head_width, head_width)
        self.head_out = nn.Linear(head_width, outputs)
        nn.init.zeros_(self.head_out.weight)
        nn.init.zeros_(self.head_out.bias)

    @property
    def reach(self) -> int:
        """Tokens to either side whose known samples can change a prediction."""
        direct = max([self.head_reach, *((window - self.size + 1) // 2 for window in self.windows)])
        return sum(self.dilations) + -(-direct // self.size)

    def forward(self, known: Tensor, stage: int, sigma: Tensor, noise_power: Tensor) -> Tensor:
        """Outputs for the positions that a stage predicts.

        Args:
            known: the known samples ``(batch, position, token)``.
            stage: index of the stage.
            sigma: noise level ``(batch,)``.
            noise_power: variance of the noise in the known samples, ``(batch,)``.
        """
        positions = self.stages[stage]
        batch, count, tokens = known.shape
        noise = self.embed(sigma, F.one_hot(torch.tensor(stage), len(self.stages)).to(known))
        masked = known.new_zeros(batch, tokens, self.size)
        masked[..., positions.known] = known.transpose(1, 2)
        audio = masked.flatten(1)
        interpolated = [
            spectrum(_around(audio, window, self.size), noise, noise_power, count / self.size)
            for window, spectrum in zip(self.windows, self.spectra, strict=True)
        ]
        context = self._trunk(self.read(torch.cat([masked, *interpolated], -1)), noise)
        return self._head(context, audio, interpolated, positions, noise)

    def _trunk(self, hidden: Tensor, noise: Tensor) -> Tensor:
        tokens = hidden.shape[1]
        skips = torch.zeros_like(hidden)
        layers = zip(self.dilations, self.gates, self.conditions, self.mixes, strict=True)
        for dilation, gate, condition, mix in layers:
            padded = F.pad(hidden, (0, 0, dilation, dilation))
            taps = torch.cat([padded[:, :tokens], hidden, padded[:, 2 * dilation :]], -1)
            signal, opening = (gate(taps) + condition(noise)[:, None]).chunk(2, -1)
            residual, skip = mix(signal.tanh() * opening.sigmoid()).chunk(2, -1)
            hidden, skips = hidden + residual, skips + skip
        return F.silu(skips)

    def _head(
        self,
        context: Tensor,
        audio: Tensor,
        interpolated: Sequence[Tensor],
        positions: Stage,
        noise: Tensor,
    ) -> Tensor:
        predicted = positions.predicted
        # Only the predicted positions' share of the linear layer.
        weight = self.head_trunk.weight.unflatten(0, (self.size, self.head_width))[predicted]
        bias = self.head_trunk.bias.unflatten(0, (self.size, self.head_width))[predicted]
        shared = F.linear(context, weight.flatten(0, 1), bias.flatten())
        mask = audio.new_zeros(self.size)
        mask[positions.known] = 1
        known = mask.repeat(context.shape[1])[None]
        neighbours = 2 * self.head_reach + 1
        local = [
            _around(signal, neighbours, 1)
            .unflatten(1, (-1, self.size))[:, :, predicted]
            .expand(len(audio), -1, -1, -1)
            for signal in (audio, known)
        ]
        tones = [tone[..., predicted, None] for tone in interpolated]
        hidden = F.silu(
            shared.unflatten(-1, (len(predicted), self.head_width))
            + self.head_local(torch.cat([*local, *tones], -1))
            + self.head_condition(noise)[:, None, None]
        )
        return self.head_out(F.silu(self.head_hidden(hidden))).permute(0, 2, 3, 1)


def _around(audio: Tensor, window: int, hop: int) -> Tensor:
    """Frames of ``window`` samples centred on every hop: ``(batch, time // hop, window)``."""
    side = (window - hop) // 2
    return F.pad(audio, (side, window - hop - side)).unfold(1, window, hop)


@functools.cache
def _scattered_order(size: int, count: int) -> list[int]:
    generator = random.Random(size)
    trials = [_random_order(size, generator) for _ in range(ORDER_TRIALS)]
    return min(trials, key=lambda trial: _aliasing(trial, count))


def _random_order(size: int, generator: random.Random) -> list[int]:
    keys = [generator.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def _aliasing(order: Sequence[int], count: int) -> float:
    """Sum over stages of the largest value of the mask's spectrum relative to its mean."""
    masks = torch.zeros(count, len(order), dtype=torch.float64)
    for stage in range(count):
        known = order[: len(order) >> (stage + 1)]
        masks[stage, list(known)] = 1 / len(known)
    return float(torch.fft.rfft(masks)[:, 1:].abs().amax(-1).sum())
