r"""A causal WaveNet whose density is smoothed exactly, at every noise level.

The network reads the *noisy* past of a source, :math:`x = s + \sigma n`, and predicts a
distribution of the *clean* next sample as a mixture of C components,

.. math:: p(s_t \mid x_{<t}) = \sum_c \pi_c \, q_c(s_t), \qquad
          \mathbb{E}_{q_c}[s] = \mu_c, \quad \mathrm{std}_{q_c}[s] = s_c .

Adding the noise of sample t to a Gaussian component is exact, which gives the log density of the
noisy source over the whole event, summed over time, in nats:

.. math:: \log p_\sigma(x) = \sum_t \log \sum_c \pi_c \, \mathcal{N}(x_t; \mu_c, s_c^2 + \sigma^2)

Two heads give the components: K free Gaussians, or the 256 quantisation bins of the original
WaveNet, whose centres and spreads are fixed. Dilated gated convolutions with skip connections are
van den Oord et al. 2016 (arXiv 1609.03499), noisy inputs with clean targets Jayaram & Thickstun
2021 (arXiv 2105.08164), the input scale and the embedding of log sigma Karras et al. 2022 (arXiv
2206.00364). Two things are added, because gradients decide what a sampler costs:

* a *hop*: the dilated trunk runs once per ``hop`` audio samples, on all that came before; a small
  head then predicts the samples of the hop one after another. ``hop=1`` is the plain WaveNet.
* causal short-time spectra, gated by the known noise level (:mod:`pyro_sep.models.spectrum`): a hop
  reads the evidence of a long and very noisy past at once.

Shapes: ``x (batch, time)``, ``sigma (batch,)``; tokens are hops, ``(batch, token, channel)``.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_sep.checks.arguments import choice, flag
from pyro_sep.models.noise import CHANNELS, NoiseEmbedding, noise_power
from pyro_sep.models.score import COMPONENT_SCALE_MIN, WithScore, log_prob_and_score
from pyro_sep.models.sizes import (
    WINDOW_MAX,
    check_integer,
    check_levels,
    check_spectra,
)
from pyro_sep.models.spectrum import SpectralExtrapolator, may_be_by_hand
from pyro_sep.models.windows import WINDOW, in_windows

SIZES = (  # least and most
    ("width", 1, 1 << 14),
    ("blocks", 1, 64),
    ("layers", 0, 16),
    ("kernel", 1, 64),
    ("hop", 1, 1 << 14),
    ("past", 1, WINDOW_MAX),
    ("components", 1, 1 << 16),
    ("head_width", 1, 1 << 14),
    ("head_past", 1, WINDOW_MAX),
)
LOG_TAIL_MIN = -700.0  # nats, what float64 can hold: normal scores end at 37


@dataclass(frozen=True)
class WaveNetConfig:
    """Size and head of a :class:`WaveNet`.

    Attributes:
        width: channels of the trunk.
        blocks: how often the dilation cycle is repeated.
        layers: layers per block, of dilation 1, 2, 4, ... tokens.
        kernel: taps of a dilated convolution.
        hop: audio samples per token.
        past: audio samples that a token sees directly.
        spectra: windows of the short-time spectra in audio samples; empty for none.
        head: ``"gaussians"`` or ``"categorical"``.
        components: Gaussians, or quantisation bins.
        relative: the Gaussians' means and scales are in units of ``sigma_data`` instead of full
            scale, for audio that keeps far below it.
        head_width: channels of the head.
        head_past: audio samples that the head sees directly.
        sigma_data: RMS of the clean sources, full scale 1.
        sigma_min: lowest noise level trained for.
        sigma_max: highest noise level trained for.

    >>> WaveNetConfig(hop=16).multiple
    1
    """

    width: int = 128
    blocks: int = 1
    layers: int = 6
    kernel: int = 2
    hop: int = 16
    past: int = 32
    spectra: tuple[int, ...] = (256, 1024)
    head: Literal["gaussians", "categorical"] = "gaussians"
    components: int = 8
    relative: bool = False
    head_width: int = 48
    head_past: int = 16
    sigma_data: float = 0.55
    sigma_min: float = 0.01
    sigma_max: float = 5.0

    def __post_init__(self) -> None:
        for name, low, high in SIZES:
            check_integer(name, getattr(self, name), low, high)
        choice("head", self.head, ("gaussians", "categorical"))
        flag("relative", self.relative)
        object.__setattr__(self, "spectra", check_spectra(self.spectra, self.hop))
        check_levels(self.sigma_data, self.sigma_min, self.sigma_max)

    @property
    def multiple(self) -> int:
        """A frame's audio samples are a multiple of this; any number will do."""
        return 1


MUSIC = WaveNetConfig(
    width=96,
    hop=32,
    past=64,
    spectra=(512, 2048),
    head_past=32,
    relative=True,
    sigma_data=0.06,
    sigma_min=0.002,
    sigma_max=0.4,
)

#: Sizes by name: what ships, and Table 2 of Frank & Ilse 2020 (arXiv 2011.01761).
CONFIGS = {
    "toy": WaveNetConfig(),
    "music": MUSIC,
    # Of audio at 4 kHz: windows of 64 and 256 ms.
    "music-4k": replace(MUSIC, hop=16, layers=7, spectra=(256, 1024), sigma_max=0.25),
    "paper": WaveNetConfig(
        width=256,
        blocks=3,
        layers=10,
        kernel=3,
        hop=1,
        past=3,
        spectra=(),
        head="categorical",
        components=256,
        head_width=256,
        head_past=1,
    ),
}


class Components(NamedTuple):
    """Mixture of the clean next sample: each ``(batch, time, component)`` or broadcastable."""

    log_weight: Tensor
    mean: Tensor
    scale: Tensor


class WaveNet(nn.Module):
    """A causal network that gives the log density of audio plus white noise; a PyTorch module.

    ``log_prob(x, sigma)`` is the log density of noisy audio ``x (batch, time)`` in nats, with
    ``sigma (batch,)``. Given the noisy past it predicts the next clean audio sample as a mixture of
    Gaussians; the equation is in the notes of the module :mod:`pyro_sep.models.wavenet`.

    Attributes:
        window: audio samples of a density that are evaluated at once, which bounds the memory.

    >>> network = WaveNet(WaveNetConfig(width=8, layers=2, hop=16, components=2))
    >>> network.log_prob(torch.zeros(3, 64), torch.ones(3)).shape
    torch.Size([3])
    """

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.window = WINDOW
        self.embed = NoiseEmbedding()
        spectra = [SpectralExtrapolator(window, c.hop, CHANNELS) for window in c.spectra]
        self.spectra = nn.ModuleList(spectra)
        extrapolated = sum(spectrum.outputs for spectrum in spectra)
        self.read = nn.Linear(c.past + extrapolated, c.width)
        self.edges: Tensor
        self.centres: Tensor
        self.scales: Tensor
        self.dilations = [2**i for _ in range(c.blocks) for i in range(c.layers)]
        self.gates = nn.ModuleList(
            nn.Linear(c.kernel * c.width, 2 * c.width, bias=False) for _ in self.dilations
        )
        self.conditions = nn.ModuleList(nn.Linear(CHANNELS, 2 * c.width) for _ in self.dilations)
        self.mixes = nn.ModuleList(nn.Linear(c.width, 2 * c.width) for _ in self.dilations)
        self.head_trunk = nn.Linear(c.width, c.hop * c.head_width)
        self.head_past = nn.Linear(c.head_past, c.head_width, bias=False)
        self.head_condition = nn.Linear(CHANNELS, c.head_width)
        self.head_hidden = nn.Linear(c.head_width, c.head_width)
        outputs = c.components if c.head == "categorical" else 3 * c.components
        self.head_out = nn.Linear(c.head_width, outputs)
        # An untrained network predicts all components alike: log C nats per sample.
        nn.init.zeros_(self.head_out.weight)
        nn.init.zeros_(self.head_out.bias)
        if c.head == "categorical":
            edges, centres, scales = _quantisation_bins(c)
            self.register_buffer("edges", edges, persistent=False)
            self.register_buffer("centres", centres, persistent=False)
            self.register_buffer("scales", scales, persistent=False)
        else:
            self.register_buffer("centres", torch.linspace(-1, 1, c.components), persistent=False)

    @property
    def receptive_field(self) -> int:
        """Audio samples of the past that can change a prediction."""
        c = self.config
        trunk = (c.kernel - 1) * sum(self.dilations) * c.hop + self.reach
        return max(trunk + c.hop - 1, c.head_past)

    @property
    def reach(self) -> int:
        """Audio samples of the past that a token sees directly."""
        return max(self.config.past, *self.config.spectra, 0)

    def forward(self, x: Tensor, sigma: Tensor) -> Components:
        """Distribution of each clean sample given the noisy samples before it.

        Args:
            x: noisy audio ``(batch, time)``, any length.
            sigma: std of its noise ``(batch,)``.
        """
        c = self.config
        time = x.shape[-1]
        tokens = -(-time // c.hop)
        y = F.pad(self.scaled(x, sigma), (0, tokens * c.hop - time))
        noise = self.embed(sigma)
        hidden = self._token(F.pad(y, (self.reach, 0))[:, : -c.hop], noise, sigma)
        skips = torch.zeros_like(hidden)
        for layer, dilation in enumerate(self.dilations):
            taps = [hidden, *(_delayed(hidden, j * dilation) for j in range(1, c.kernel))]
            hidden, skips = self._layer(layer, hidden, skips, torch.cat(taps, -1), noise)
        context = self._context(skips)[:, :time]
        return self._head(context, _past(y, c.head_past)[:, :time], noise)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log density of noisy audio, summed over time, in nats: ``(batch,)``.

        An evaluating network takes long audio in windows (:mod:`pyro_sep.models.windows`); weights
        in training have a gradient of the whole alone.
        """
        plain = partial(self._log_prob, sigma=sigma)

        def log_density(part: Tensor) -> Tensor:
            if not self._scores_by_hand(part, sigma):
                return plain(part)
            score = partial(log_prob_and_score, self, sigma=sigma)
            value: Tensor = WithScore.apply(part, score, plain)
            return value

        if self.training:
            return log_density(x)
        return in_windows(log_density, x, self.window, self.receptive_field, hop=self.config.hop)

    def _scores_by_hand(self, x: Tensor, sigma: Tensor) -> bool:
        """Whether a gradient of the audio alone is asked for, and plain arithmetic."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return False
        fixed = not any(part.requires_grad for part in (sigma, *self.parameters()))
        return fixed and may_be_by_hand(x)

    def _log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        log_weight, mean, scale = self(x, sigma)
        variance = scale.square() + sigma.square()[:, None, None]
        deviation = (x[..., None] - mean).square() / variance
        terms = torch.logsumexp(log_weight - 0.5 * (deviation + variance.log()), -1)
        return terms.sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]

    def normal_scores(self, x: Tensor, sigma: Tensor) -> Tensor:
        r"""Normal scores of each noisy sample given those before it, ``(batch, time)``, float64.

        .. math:: \Phi(z_t) = \sum_c \pi_c \,
                  \Phi\bigl((x_t - \mu_c) / \sqrt{s_c^2 + \sigma^2}\bigr)

        The probability integral transform (Rosenblatt 1952; Dawid 1984): independent standard
        normal numbers where the network is right.
        """
        log_weight, mean, scale = (p.double() for p in self(x, sigma))
        std = (scale.square() + sigma.double().square()[:, None, None]).sqrt()
        deviation = (x.double()[..., None] - mean) / std
        below, above = (
            torch.logsumexp(log_weight + torch.special.log_ndtr(side * deviation), -1)
            for side in (1, -1)
        )  # the smaller one keeps its digits
        tail = torch.minimum(below, above).clamp_min(LOG_TAIL_MIN)
        z = torch.special.ndtri(tail.exp())
        return torch.where(below < above, z, -z)

    def squared_scores(self, x: Tensor, sigma: Tensor) -> Tensor:
        r"""Sum over time of squared normal scores, ``(batch,)``: chi-squared, T degrees of freedom.

        .. math:: \sum_t z_t^2

        with z those of :meth:`normal_scores`, in windows as :meth:`log_prob`.
        """

        def squares(part: Tensor) -> Tensor:
            return self.normal_scores(part, sigma).square().sum(-1).to(x.dtype)

        return in_windows(squares, x, self.window, self.receptive_field, hop=self.config.hop)

    def code_length(self, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Training loss: nats per sample that code clean audio given the noisy past, ``(batch,)``.

        The categorical head codes the clean sample's bin (a probability, at least 0 nats), the
        Gaussian head its value (a density).
        """
        log_weight, mean, scale = self(noisy, sigma)
        if self.config.head == "categorical":
            bins = torch.bucketize(clean, self.edges[1:-1], right=True)
            return -log_weight.gather(-1, bins[..., None])[..., 0].mean(-1)
        exponent = log_weight - 0.5 * ((clean[..., None] - mean) / scale).square() - scale.log()
        return (0.5 * math.log(2 * math.pi) - torch.logsumexp(exponent, -1)).mean(-1)

    @torch.no_grad()
    def sample(self, time: int, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw noisy audio ``(batch, time)`` at noise levels ``sigma (batch,)``, sample by sample.

        Each layer keeps the tokens that its taps reach back to, so the cost per sample does not
        depend on the receptive field.
        """
        c = self.config
        batch, reach = len(sigma), max(self.reach, c.head_past)
        tokens = -(-time // c.hop)
        noise = self.embed(sigma)
        y = sigma.new_zeros(batch, reach + tokens * c.hop)
        caches = [
            sigma.new_zeros(batch, (c.kernel - 1) * dilation + 1, c.width)
            for dilation in self.dilations
        ]
        for token in range(tokens):
            now = reach + token * c.hop
            hidden = self._token(y[:, now - self.reach : now], noise, sigma)
            skips = torch.zeros_like(hidden)
            for layer, (dilation, cache) in enumerate(zip(self.dilations, caches, strict=True)):
                size = cache.shape[1]
                cache[:, token % size] = hidden[:, 0]
                taps = [cache[:, (token - j * dilation) % size] for j in range(c.kernel)]
                hidden, skips = self._layer(
                    layer, hidden, skips, torch.cat(taps, -1)[:, None], noise
                )
            context = self._context(skips)
            for t in range(now, now + c.hop):
                local = y[:, None, t - c.head_past : t]
                components = self._head(context[:, t - now : t - now + 1], local, noise)
                x = _draw(components, sigma, generator)
                y[:, t : t + 1] = self.scaled(x, sigma)
        return y[:, reach : reach + time] / self.scaled(torch.ones_like(y[:, :1]), sigma)

    def scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Noisy audio ``(batch, time)`` at the scale that the network reads: unit variance."""
        return x * (self.config.sigma_data**2 + sigma.square()).rsqrt()[:, None]

    def _token(self, past: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Input of the trunk ``(batch, token, width)``.

        Args:
            past: the samples from those that the first token sees to those before the last one.
            noise: embedded noise level ``(batch, embedding)``.
            sigma: noise level ``(batch,)``.
        """

        def before(length: int) -> Tensor:
            """The samples before each token: ``(batch, token, length)``."""
            return past[:, self.reach - length :].unfold(1, length, self.config.hop)

        power = noise_power(sigma, self.config.sigma_data)
        tones = [
            spectrum(before(window), noise, power)
            for window, spectrum in zip(self.config.spectra, self.spectra, strict=True)
        ]
        return self.read(torch.cat([before(self.config.past), *tones], -1))

    def _layer(
        self, layer: int, hidden: Tensor, skips: Tensor, taps: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates = self.gates[layer](taps) + self.conditions[layer](noise)[:, None]
        signal, gate = gates.chunk(2, -1)
        residual, skip = self.mixes[layer](signal.tanh() * gate.sigmoid()).chunk(2, -1)
        return hidden + residual, skips + skip

    def _context(self, skips: Tensor) -> Tensor:
        """The trunk's output for each audio sample of each token, in order."""
        batch, tokens, _ = skips.shape
        c = self.config
        return self.head_trunk(F.silu(skips)).reshape(batch, tokens * c.hop, c.head_width)

    def _head(self, context: Tensor, past: Tensor, noise: Tensor) -> Components:
        hidden = F.silu(context + self.head_past(past) + self.head_condition(noise)[:, None])
        hidden = F.silu(self.head_hidden(hidden))
        # A component's numbers of all samples lie side by side, for the sake of speed.
        out = torch.addmm(self.head_out.bias[:, None], self.head_out.weight, hidden.flatten(0, 1).T)
        out = out.T.unflatten(0, hidden.shape[:2])
        c = self.config
        if c.head == "categorical":
            return Components(_log_softmax(out), self.centres, self.scales)
        logits, shift, spread = out.chunk(3, -1)
        scale = COMPONENT_SCALE_MIN + 0.5 * F.softplus(spread - 1)
        unit = c.sigma_data if c.relative else 1.0
        return Components(_log_softmax(logits), unit * (self.centres + shift), unit * scale)


def _delayed(hidden: Tensor, tokens: int) -> Tensor:
    """Each token's channels ``tokens`` later, zero before."""
    shift = min(tokens, hidden.shape[1])
    return F.pad(hidden, (0, 0, shift, -shift))


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, wherever it lies in memory; torch's own would copy."""
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def _past(y: Tensor, length: int) -> Tensor:
    """The ``length`` samples before each one: ``(batch, time, length)``."""
    return F.pad(y, (length, -1)).unfold(1, length, 1)


def _draw(components: Components, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
    """One noisy sample from the smoothed mixture, ``(batch, 1)``."""
    log_weight, mean, scale = (
        part.expand(components.log_weight.shape)[:, 0] for part in components
    )
    chosen = torch.multinomial(log_weight.exp(), 1, generator=generator)
    std = (scale.gather(-1, chosen).square() + sigma.square()[:, None]).sqrt()
    normal = torch.randn(std.shape, generator=generator, dtype=std.dtype, device=std.device)
    return mean.gather(-1, chosen) + std * normal


def _quantisation_bins(config: WaveNetConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, centres and standard deviations of the categorical head's bins over [-1, 1]."""
    edges = torch.linspace(-1, 1, config.components + 1)
    centres, widths = (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]
    return edges, centres, widths / math.sqrt(12)  # std of a uniform law over the bin
