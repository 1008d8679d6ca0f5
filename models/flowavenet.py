r"""FloWaveNet: a normalizing flow over audio, at every noise level.

.. math:: \log p_\sigma(x) = \log \mathcal{N}(z; 0, I) + \log |\det \partial z / \partial x|,
          \qquad z = f_\sigma(x)

f is a composition of nflows transforms on audio as ``(batch, channel, 1, token)``: the noisy input
is scaled to unit variance, then B blocks each squeeze time into channels and apply F couplings
(:mod:`pyro_sep.models.couplings`). Two partitions of the channels of a coupling:

* ``"halves"`` (Kim et al. 2019, arXiv 1811.02155; Table 2 of Frank & Ilse 2020, arXiv 2011.01761):
  each coupling follows an ActNorm, maps the upper half of the channels given the lower one, and the
  halves change places. A squeeze of 2 per block puts even samples in one half and odd ones in the
  other. A WaveNet-like, non-causal dilated network reads the parameters.
* ``"nested"``: one squeeze by C; a first coupling maps a scattered half of all samples given the
  other half, the next one half of those, and so on. Every coupling then predicts samples from
  noisy ones on both sides, and one network (:mod:`pyro_sep.models.interpolator`) does so at
  all of them.

Shapes: ``x (batch, time)``, time a multiple of ``config.multiple``; ``sigma (batch,)``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from nflows.transforms import ActNorm, CompositeTransform, Permutation, Transform
from torch import Tensor, nn

from pyro_sep.checks.arguments import choice
from pyro_sep.models.couplings import COUPLINGS, Kind, coupling
from pyro_sep.models.interpolator import Interpolator, nested_stages
from pyro_sep.models.noise import CHANNELS, NoiseEmbedding, noise_power
from pyro_sep.models.sizes import (
    WINDOW_MAX,
    check_integer,
    check_levels,
    check_spectra,
)
from pyro_sep.models.windows import WINDOW, in_windows

CHANNELS_MAX = 1 << 12  # samples that are channels of a coupling
SIZES = (  # least and most
    ("blocks", 1, 16),
    ("squeeze", 2, CHANNELS_MAX),
    ("flows", 1, 64),
    ("components", 1, 1 << 12),
    ("layers", 0, 16),
    ("kernel", 1, 63),
    ("width", 1, 1 << 14),
    ("head_width", 1, 1 << 14),
    ("head_reach", 0, WINDOW_MAX),
)


@dataclass(frozen=True)
class FloWaveNetConfig:
    """Size and couplings of a :class:`FloWaveNet`.

    Attributes:
        partition: of the channels of a coupling; ``"nested"`` has one block.
        blocks: squeezes.
        squeeze: samples that a squeeze makes one.
        flows: couplings per block.
        coupling: ``"affine"``, ``"spline"`` or ``"mixture"``.
        components: bins of a spline, or Gaussians of a mixture.
        layers: dilated layers of a coupling's network, of dilation 1, 2, 4, ... tokens.
        kernel: taps of a dilated convolution of ``"halves"``, odd.
        width: channels of a coupling's network.
        spectra: windows of the spectra in audio samples; for ``"nested"``.
        head_width: channels of the network that predicts a sample; for ``"nested"``.
        head_reach: audio samples that it sees to either side; for ``"nested"``.
        sigma_data: RMS of the clean sources, full scale 1.
        sigma_min: lowest noise level trained for.
        sigma_max: highest noise level trained for.

    >>> FloWaveNetConfig(squeeze=16, flows=2).multiple
    16
    """

    partition: Literal["halves", "nested"] = "nested"
    blocks: int = 1
    squeeze: int = 64
    flows: int = 3
    coupling: Kind = "mixture"
    components: int = 4
    layers: int = 4
    kernel: int = 3
    width: int = 128
    spectra: tuple[int, ...] = (256, 1024)
    head_width: int = 48
    head_reach: int = 16
    sigma_data: float = 0.55
    sigma_min: float = 0.01
    sigma_max: float = 5.0

    def __post_init__(self) -> None:
        for name, low, high in SIZES:
            check_integer(name, getattr(self, name), low, high)
        choice("partition", self.partition, ("halves", "nested"))
        choice("coupling", self.coupling, COUPLINGS)
        object.__setattr__(self, "spectra", check_spectra(self.spectra, self.squeeze))
        if self.partition == "nested" and self.blocks != 1:
            raise ValueError(f"blocks: got {self.blocks}, expected 1 with the nested partition")
        divisor = 2**self.flows if self.partition == "nested" else 2
        if self.squeeze < divisor or self.squeeze % divisor:
            raise ValueError(f"squeeze: got {self.squeeze}, expected a multiple of {divisor}")
        if self.multiple > CHANNELS_MAX:
            raise ValueError(
                f"squeeze, blocks: got {self.squeeze}, {self.blocks}, expected at most "
                f"{CHANNELS_MAX} channels, squeeze^blocks"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: got {self.kernel}, expected an odd number of taps")
        check_levels(self.sigma_data, self.sigma_min, self.sigma_max)

    @property
    def multiple(self) -> int:
        """A frame's audio samples are a multiple of this."""
        return int(self.squeeze**self.blocks)


_PAPER = FloWaveNetConfig(
    partition="halves",
    blocks=4,
    squeeze=2,
    flows=6,
    coupling="affine",
    layers=10,
    kernel=3,
    width=32,
    spectra=(),
)

#: Sizes by name: what ships, and Table 2 of Frank & Ilse 2020 (arXiv 2011.01761). ``"toy-deep"``
#: leaves a sixteenth of the samples unmodelled, ``"toy"`` an eighth.
CONFIGS = {
    "toy": FloWaveNetConfig(),
    "toy-deep": FloWaveNetConfig(flows=4),
    "paper": _PAPER,
    "paper-musdb18": FloWaveNetConfig(**{**vars(_PAPER), "blocks": 8, "width": 48}),
}


class FloWaveNet(nn.Module):
    """A normalizing flow over audio plus white noise, for every noise level; a PyTorch module.

    ``log_prob(x, sigma)`` is the log density of noisy audio ``x (batch, time)`` in nats, with
    ``sigma (batch,)``; the equation and the two kinds of couplings are in the notes of the module
    :mod:`pyro_sep.models.flowavenet`.

    Attributes:
        window: audio samples of a density that are evaluated at once, which bounds the memory.

    >>> small = FloWaveNetConfig(squeeze=16, flows=2, components=2, layers=1, width=8)
    >>> FloWaveNet(small).log_prob(torch.zeros(3, 64), torch.ones(3)).shape
    torch.Size([3])
    """

    def __init__(self, config: FloWaveNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.window = WINDOW
        steps: list[Transform] = [Precondition(c.sigma_data)]
        if c.partition == "nested":
            stages = nested_stages(c.squeeze, c.flows)
            self.interpolator = Interpolator(
                stages,
                c.squeeze,
                COUPLINGS[c.coupling].per_sample(c.components),
                width=c.width,
                layers=c.layers,
                spectra=c.spectra,
                head_width=c.head_width,
                head_reach=c.head_reach,
            )
            steps.append(Squeeze(c.squeeze))
            for index in range(c.flows):
                reader = _Stage(self.interpolator, index, c)
                mask = torch.zeros(c.squeeze).index_fill(0, torch.tensor(reader.predicted), 1)
                steps.append(coupling(c.coupling, mask, lambda *_, r=reader: r, c.components))
        else:
            channels = 1
            for _ in range(c.blocks):
                steps.append(Squeeze(c.squeeze))
                channels *= c.squeeze
                half = channels // 2
                mask = torch.arange(channels) >= half
                swap = torch.arange(channels).roll(half)
                for _ in range(c.flows):
                    net = lambda i, o: DilatedConditioner(i, o, c.width, c.layers, c.kernel)  # noqa: E731
                    steps += [
                        ActNorm(channels),
                        coupling(c.coupling, mask, net, c.components),
                        Permutation(swap.clone(), dim=1),
                    ]
        self.transform = CompositeTransform(steps)

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Latent z ``(batch, time)`` of audio, and the log-determinant ``(batch,)`` of dz/dx."""
        if x.shape[-1] % self.config.multiple:
            raise ValueError(
                f"time: got {x.shape[-1]} audio samples, "
                f"expected a multiple of {self.config.multiple}; pad or crop"
            )
        z, log_det = self.transform(x[:, None, None], sigma)
        return z.flatten(1), log_det

    def inverse(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Audio x ``(batch, time)`` of a latent, and the log-determinant ``(batch,)`` of dx/dz."""
        channels = self.config.multiple
        x, log_det = self.transform.inverse(z.unflatten(1, (channels, 1, -1)), sigma)
        return x.flatten(1), log_det

    @property
    def reach(self) -> int:
        """Audio samples to either side that can change what a sample adds to the log density."""
        c = self.config
        if c.partition == "nested":  # couplings read audio, never what another one made of it
            return self.interpolator.reach * c.squeeze
        tokens = c.flows * (c.kernel // 2) * 2**c.layers  # of a block, all its couplings
        return sum(tokens * c.squeeze ** (block + 1) for block in range(c.blocks))

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log density of noisy audio, summed over time, in nats: ``(batch,)``.

        An evaluating network takes long audio in windows (:mod:`pyro_sep.models.windows`); weights
        in training have a gradient of the whole alone.
        """

        def log_density(part: Tensor) -> Tensor:
            z, log_det = self(part, sigma)
            return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

        if self.training:
            return log_density(x)
        return self._in_windows(log_density, x)

    def squared_scores(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Sum over time of the squared latent, ``(batch,)``: chi-squared, T degrees of freedom.

        In windows as :meth:`log_prob`.
        """
        return self._in_windows(lambda part: self(part, sigma)[0].square().sum(-1), x)

    def _in_windows(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        hop = self.config.multiple
        return in_windows(function, x, self.window, self.reach, self.reach, hop)

    def code_length(self, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Training loss: nats per sample that code noisy audio, ``(batch,)``."""
        return -self.log_prob(noisy, sigma) / noisy.shape[-1]


class Precondition(Transform):
    """Scale noisy audio to unit variance: x / sqrt(sigma_data^2 + sigma^2).

    Karras et al. 2022 (arXiv 2206.00364).
    """

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled audio, and the log-determinant."""
        log_scale = -0.5 * (self.sigma_data**2 + context.square()).log()
        return inputs * log_scale.exp()[:, None, None, None], inputs[0].numel() * log_scale

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Audio at its own scale, and the log-determinant."""
        log_scale = 0.5 * (self.sigma_data**2 + context.square()).log()
        return inputs * log_scale.exp()[:, None, None, None], inputs[0].numel() * log_scale


class Squeeze(Transform):
    """Time into channels: ``(b, c, 1, t)`` to ``(b, factor * c, 1, t / factor)``.

    The place within a token is the outer of the two channel dims: after a squeeze of 2 the lower
    half of the channels is even in time and the upper one odd, at every block.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squeezed audio, and a log-determinant of 0."""
        batch, channels, _, time = inputs.shape
        split = inputs.reshape(batch, channels, time // self.factor, self.factor)
        outputs = split.permute(0, 3, 1, 2).reshape(batch, self.factor * channels, 1, -1)
        return outputs, inputs.new_zeros(batch)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Audio as it was, and a log-determinant of 0."""
        batch, channels, _, tokens = inputs.shape
        split = inputs.reshape(batch, self.factor, channels // self.factor, tokens)
        outputs = split.permute(0, 2, 3, 1).reshape(batch, channels // self.factor, 1, -1)
        return outputs, inputs.new_zeros(batch)


class DilatedConditioner(nn.Module):
    """WaveNet-like, non-causal: gated dilated convolutions with skips, zero at the start.

    ``(batch, in_channels, 1, token)`` to ``(batch, out_channels, 1, token)``; van den Oord et al.
    2016 (arXiv 1609.03499), without its causality as in Kim et al. 2019 (arXiv 1811.02155).
    """

    hidden_channels = 1  # splines divide their parameters by its root: zero weights need it not

    def __init__(
        self, in_channels: int, out_channels: int, width: int, layers: int, kernel: int
    ) -> None:
        super().__init__()
        self.embed = NoiseEmbedding()
        self.first = nn.Conv1d(in_channels, width, kernel, padding="same")
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, dilation=2**layer, padding="same")
            for layer in range(layers)
        )
        self.conditions = nn.ModuleList(nn.Linear(CHANNELS, 2 * width) for _ in range(layers))
        self.mixes = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.last = nn.Conv1d(width, width, 1)
        self.out = nn.Conv1d(width, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        """Parameters of a coupling at noise levels ``context (batch,)``."""
        noise = self.embed(context)
        hidden = F.relu(self.first(inputs[:, :, 0]))
        skips = torch.zeros_like(hidden)
        for gate, condition, mix in zip(self.gates, self.conditions, self.mixes, strict=True):
            signal, opening = (gate(hidden) + condition(noise)[..., None]).chunk(2, 1)
            residual, skip = mix(signal.tanh() * opening.sigmoid()).chunk(2, 1)
            hidden, skips = hidden + residual, skips + skip
        return self.out(F.relu(self.last(F.relu(skips))))[:, :, None]


class _Stage(nn.Module):
    """One coupling's view of the interpolator that all of them share."""

    hidden_channels = 1  # as in DilatedConditioner

    def __init__(self, interpolator: Interpolator, index: int, config: FloWaveNetConfig) -> None:
        super().__init__()
        # In a tuple, or its weights would be registered once per coupling.
        self.shared = (interpolator,)
        self.index, self.config = index, config
        self.predicted = interpolator.stages[index].predicted
        identity = sorted(set(range(config.squeeze)) - set(self.predicted))
        known = set(interpolator.stages[index].known)
        # Among the channels left as they are, those not yet mapped by another coupling.
        self.known: Sequence[int] = [i for i, place in enumerate(identity) if place in known]

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        """Parameters of the coupling ``(batch, channel * per_sample, 1, token)``."""
        power = noise_power(context, self.config.sigma_data)
        raw = self.shared[0](inputs[:, self.known, 0], self.index, context, power)
        smooth = COUPLINGS[self.config.coupling].smooth
        params = smooth(raw.movedim(2, -1), power[:, None, None, None]).movedim(-1, 2)
        return params.flatten(1, 2)[:, :, None]
