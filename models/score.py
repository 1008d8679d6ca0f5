r"""Log density of a WaveNet together with its gradient, for a sampler: the weights are fixed.

Autograd must be ready for every gradient; here there is one, with respect to the audio. The head,
which has the most numbers, goes from the trunk's output to the density and back block by block, so
that they stay in the cache. The trunk adds to its sums in place and keeps two tensors a layer.

**Mixture.** With the weights :math:`\pi_c` of the components, their responsibilities
:math:`r_c = \pi_c \mathcal{N}(x; \mu_c, v_c) / p` and the variances :math:`v_c = s_c^2 + \sigma^2`,

.. math:: \frac{\partial \log p}{\partial \log \tilde\pi_c} = r_c - \pi_c, \quad
          \frac{\partial \log p}{\partial \mu_c} = r_c \frac{x - \mu_c}{v_c}, \quad
          \frac{\partial \log p}{\partial s_c}
          = r_c \frac{s_c}{v_c} \Bigl(\frac{(x - \mu_c)^2}{v_c} - 1\Bigr),

where :math:`\tilde\pi` are the weights before they are normalised.

Shapes: tokens come first, ``(token, batch, ...)``, and a row is a token of one batch element. A tap
of a dilated convolution then reads the same matrix, some rows earlier.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.models.noise import noise_power
from pyro_sep.models.spectrum import fold

BLOCK = 1 << 18  # numbers of the head's first layer that are computed at once: what fits the cache

#: Floor of a free Gaussian's std, without which the density of a clean curve has no bound.
COMPONENT_SCALE_MIN = 0.01  # in units of the head

Pullback = Callable[[Tensor], Tensor]  # from the gradient of a result to that of its argument
aten = torch.ops.aten


class WithScore(torch.autograd.Function):
    """A log density ``(batch,)`` of audio ``(batch, time)`` that brings its gradient along.

    A gradient that is itself to be differentiated is autograd's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_prob_and_score: Callable[[Tensor], tuple[Tensor, Tensor]],
        log_prob: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The log density; the two functions compute the same, the second by torch's functions."""
        value, score = log_prob_and_score(x)
        ctx.log_prob = log_prob
        ctx.save_for_backward(x, score)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient with respect to the audio."""
        x, score = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.func.vjp(ctx.log_prob, x)[1](gradient)[0], None, None
        return gradient[:, None] * score, None, None


def log_prob_and_score(network: Any, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Log density ``(batch,)`` and its gradient with respect to the audio ``(batch, time)``.

    Args:
        network: a :class:`~pyro_sep.models.wavenet.WaveNet`.
        x: noisy audio ``(batch, time)``.
        sigma: std of its noise ``(batch,)``.
    """
    c = network.config
    time = x.shape[-1]
    tokens = -(-time // c.hop)
    lead, missing = max(network.reach, c.head_past), tokens * c.hop - time
    audio = F.pad(network.scaled(x, sigma), (lead, missing))
    noise, power = network.embed(sigma), noise_power(sigma, c.sigma_data)

    def around(past: int, future: int = 0) -> slice:
        """The audio from ``past`` samples before the first token to ``future`` into the last."""
        return slice(lead - past, lead + (tokens - 1) * c.hop + future)

    spans = [around(length) for length in (c.past, *c.spectra)]
    reads = [_frames(audio[:, spans[0]], c.past, c.hop)]
    for spectrum, span in zip(network.spectra, spans[1:], strict=True):
        reads.append(spectrum.with_pullback(audio[:, span], noise, power))
    inputs = torch.cat([part.transpose(0, 1) for part, _ in reads], -1)
    skips, trunk_back = _trunk(network, inputs, noise)

    heard = around(c.head_past, c.hop)
    local, local_back = _frames(audio[:, heard], c.head_past + c.hop, c.hop)
    target = F.pad(x, (0, missing)).unflatten(1, (tokens, c.hop)).transpose(0, 1)
    values, own, to_skips, to_local = _head(
        network, skips, local.transpose(0, 1), target.contiguous(), sigma, noise, time
    )
    values, own = (part.transpose(0, 1).flatten(1)[:, :time] for part in (values, own))

    gradient = torch.zeros_like(audio)
    gradient[:, heard] += local_back(to_local.transpose(0, 1))
    widths = [part.shape[-1] for part, _ in reads]
    parts = trunk_back(to_skips).transpose(0, 1).split(widths, -1)
    for span, (_, back), part in zip(spans, reads, parts, strict=True):
        gradient[:, span] += back(part)
    gradient = network.scaled(gradient[:, lead : lead + time], sigma)
    return values.sum(-1) - 0.5 * math.log(2 * math.pi) * time, gradient + own


def _frames(audio: Tensor, length: int, hop: int) -> tuple[Tensor, Pullback]:
    """Overlapping frames ``(batch, token, length)``."""
    return audio.unfold(1, length, hop), partial(fold, hop=hop)


def _trunk(network: Any, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Pullback]:
    """Sum of the layers' skips ``(token, batch, width)``."""
    width, kernel, (tokens, batch) = network.config.width, network.config.kernel, inputs.shape[:2]
    rows = tokens * batch
    state = inputs.new_zeros(rows, 2 * width)  # what the next layer reads, and the sum of skips
    hidden, skips = state.split(width, 1)
    hidden += network.read(inputs.flatten(0, 1))
    mixes = [(state, mix.weight, mix.bias) for mix in network.mixes]
    # Nothing reads the residual of the last layer.
    mixes[-1:] = [(skips, weight[width:], bias[width:]) for _, weight, bias in mixes[-1:]]

    def taps(layer: int) -> list[tuple[int, Tensor]]:
        """By how many rows each tap is late, and its weight."""
        delays = range(
            0, kernel * batch * network.dilations[layer], batch * network.dilations[layer]
        )
        weights = network.gates[layer].weight.split(width, 1)
        return [pair for pair in zip(delays, weights, strict=True) if pair[0] < rows]

    kept = []
    for layer, (total, weight, bias) in enumerate(mixes):
        gates = network.conditions[layer](noise).repeat(tokens, 1)
        for delay, tap in taps(layer):
            gates[delay:].addmm_(hidden[: rows - delay], tap.T)
        signal = (2 * gates[:, :width]).sigmoid_().mul_(2).sub_(1)  # tanh, at a fourth of its cost
        opening = gates[:, width:].sigmoid()
        total.addmm_(signal * opening, weight.T).add_(bias)
        kept.append((signal, opening))

    def back(gradient: Tensor) -> Tensor:
        state = torch.cat([gradient.new_zeros(rows, width), gradient.flatten(0, 1)], 1)
        gates = torch.empty_like(state)
        for layer in reversed(range(len(mixes))):
            weight = mixes[layer][1]
            signal, opening = kept[layer]
            product = state[:, -len(weight) :] @ weight
            gates[:, :width] = aten.tanh_backward(product * opening, signal)
            gates[:, width:] = aten.sigmoid_backward(product * signal, opening)
            for delay, tap in taps(layer):
                state[: rows - delay, :width].addmm_(gates[delay:], tap)
        return (state[:, :width] @ network.read.weight).unflatten(0, (tokens, batch))

    return skips.unflatten(0, (tokens, batch)), back


def _head(
    network: Any,
    skips: Tensor,
    local: Tensor,
    target: Tensor,
    sigma: Tensor,
    noise: Tensor,
    time: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log density of each sample, and gradients of their sum with respect to three arguments.

    Args:
        network: the network.
        skips: output of the trunk ``(token, batch, width)``.
        local: scaled audio before and in each hop ``(token, batch, head_past + hop)``.
        target: audio of each hop ``(token, batch, hop)``.
        sigma: noise level ``(batch,)``.
        noise: it, embedded ``(batch, embedding)``.
        time: audio samples that count, of those of all hops.

    Returns:
        The log densities, without the constant, and gradients of target, skips and local, of their
        shapes.
    """
    c = network.config
    weight, bias = _first_layer(network, noise)
    out_weight, out_bias = network.head_out.weight, network.head_out.bias[:, None]
    variance = sigma.square()[:, None].expand(target.shape).contiguous()
    size = len(target)  # of a block in tokens
    if target.device.type == "cpu":
        size = max(1, BLOCK // bias.numel())
    values, owns, to_skips, to_local = [], [], [], []
    blocks = zip(*(part.split(size) for part in (skips, local, target, variance)), strict=True)
    for token, (skip, near, samples, level) in zip(
        range(0, len(target), size), blocks, strict=True
    ):
        inputs = torch.cat([F.silu(skip), near], -1).flatten(0, 1)
        first = (inputs @ weight.T).view(-1, *bias.shape).add_(bias).view(-1, c.head_width)
        second = network.head_hidden(F.silu(first))
        # A component's numbers of all samples lie side by side, for the sake of speed.
        out = torch.addmm(out_bias, out_weight, F.silu(second).T)
        parts = _mixture(network, out, samples.flatten(), level.flatten())
        value, own, to_out = (part.unflatten(-1, samples.shape) for part in parts)
        absent = (token + len(samples)) * c.hop - time
        if absent > 0:  # of the last hop
            to_out[:, -1, :, -absent:] = 0
        to_second = aten.silu_backward(to_out.flatten(1).T @ out_weight, second)
        to_first = aten.silu_backward(to_second @ network.head_hidden.weight, first)
        to_inputs = (to_first.view(len(inputs), -1) @ weight).view(*skip.shape[:2], -1)
        values.append(value)
        owns.append(own)
        to_skips.append(aten.silu_backward(to_inputs[..., : c.width], skip))
        to_local.append(to_inputs[..., c.width :])
    return torch.cat(values), torch.cat(owns), torch.cat(to_skips), torch.cat(to_local)


def _first_layer(network: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """All that a hop's samples read, as one product.

    Returns:
        The weight ``(hop * head_width, width + head_past + hop)``, in which each sample's past is
        one column further to the right, and the bias ``(batch, hop * head_width)``.
    """
    hop = network.config.hop
    past = network.head_past.weight
    columns = past.shape[1] + hop
    rows = F.pad(past, (0, hop + 1)).repeat(1, hop)[:, : hop * columns]  # each begins one later
    local = rows.unflatten(1, (hop, columns)).transpose(0, 1).flatten(0, 1)
    bias = network.head_trunk.bias + network.head_condition(noise).repeat(1, hop)
    return torch.cat([network.head_trunk.weight, local], 1), bias


def _mixture(
    network: Any, out: Tensor, x: Tensor, noise_variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log densities ``(sample,)``, without the constant, their gradients and those of the output.

    Args:
        network: the network.
        out: output of the head ``(output, sample)``.
        x: the samples ``(sample,)``.
        noise_variance: of each sample's noise ``(sample,)``.
    """
    c = network.config
    free = c.head == "gaussians"
    centres = network.centres[:, None]
    if free:
        logits, shift, spread = out.chunk(3)
        unit = c.sigma_data if c.relative else 1.0
        mean = unit * (centres + shift)
        scale = unit * (COMPONENT_SCALE_MIN + 0.5 * _softplus(spread - 1))
    else:
        logits, mean, scale = out, centres, network.scales[:, None]
    variance = scale.square() + noise_variance
    deviation = x - mean
    slope = deviation / variance
    square = deviation * slope
    evidence, responsibility = _log_sum(logits - 0.5 * (square + variance.log()))
    total, share = _log_sum(logits)
    to_mean = responsibility * slope
    gradients = [responsibility - share]
    if free:
        to_scale = (square - 1) * responsibility * scale / variance
        gradients += [unit * to_mean, 0.5 * unit * to_scale * torch.sigmoid(spread - 1)]
    return evidence - total, -to_mean.sum(0), torch.cat(gradients)


def _log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of the exponentials over the first dimension, and each one's share."""
    top = logits.amax(0)
    shares = (logits - top).exp_()
    total = shares.sum(0)
    return top + total.log(), shares.div_(total)


def _softplus(x: Tensor) -> Tensor:
    """What torch's computes with log1p, which is slow: log(1 + e) with the rounding of 1 + e."""
    e = torch.exp(-x.abs())
    more = 1 + e
    return x.clamp_min(0) + more.log() + (e - (more - 1)) / more
