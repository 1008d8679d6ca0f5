r"""Replicas that err at different moments, put together from the moments at which each is right.

Once it is settled who explains what, a frame still holds decisions at single moments: which of two
sources jumps first, how a tone starts before its prior has heard any of it. Replicas that go down
from noise which leaves these open take them independently of each other, each some of them wrong.
Log densities of short windows tell which: the audio of a window is replaced by that of each replica
in turn, with all around it as it is, and what is likeliest stays. All add up to the mixture, so
what is put together from them does.

A window's densities are those of a section around it, so the cost is linear in the length of the
frame. It is the crossover of evolutionary Monte Carlo (Liang & Wong 2000, Statist. Sinica 10) in
time, with the best taken instead of a draw: a search, no sampler.
"""

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found, best_lanes, descend, repeat
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.mixing.known import Mixing, frame_time

WINDOW = 64  # audio samples that are replaced at once
BEFORE = 6 * WINDOW  # of a section, that the priors read first
AFTER = WINDOW  # in which what was replaced shows


def refine(found: Found, settings: Annealing, evaluator: Evaluator) -> Found:
    """Replicas of every lane, and what is put together from them.

    Args:
        found: clean sources.
        settings: of the run.
        evaluator: of densities.
    """
    group = settings.replicas
    if not group:
        return found
    target = repeat(found.target, group)
    position = found.clean.repeat_interleave(group, 0)
    sigmas = settings.replica_sigmas
    position = position + sigmas[0] * evaluator.noise(target, position)
    replicas = descend(target, position, sigmas, settings, evaluator)
    best = replicas.select(best_lanes(replicas.log_density, group))
    if not isinstance(found.target.mixing, Mixing):
        return best  # replicas have gains of their own
    others = replicas.clean.reshape(-1, group, *replicas.clean.shape[1:])
    others = torch.cat([others, found.clean[:, None]], 1)
    clean = recombine(best, others, sigmas[-1], evaluator)
    return best._replace(clean=clean)


def recombine(found: Found, others: Tensor, sigma: float, evaluator: Evaluator) -> Tensor:
    """Clean sources ``(lane, source, frame)`` with each window from whoever is likeliest there.

    Args:
        found: clean sources to begin with.
        others: further ones ``(lane, replica, source, frame)``.
        sigma: level at which densities are compared, under the same noise.
        evaluator: of densities.
    """
    clean, frame = found.clean, found.clean.shape[-1]
    step = frame_time(found.target.priors, 1)
    length = min(frame, frame_time(found.target.priors, BEFORE + WINDOW + AFTER + step - 1))
    noise = sigma * evaluator.noise(found.target, clean)
    count = 1 + others.shape[1]
    lane = torch.arange(len(clean), device=clean.device)
    chosen = clean.clone()
    for start in range(0, frame, WINDOW):
        window = slice(start, min(frame, start + WINDOW))
        first = min(max(0, start - BEFORE), frame - length) // step * step
        section = slice(first, first + length)
        spliced = clean[:, None, :, section].repeat(1, count, 1, 1)
        spliced[:, 1:, :, window.start - first : window.stop - first] = others[..., window]
        noisy = (spliced + noise[:, None, :, section]).flatten(0, 1)
        target = repeat(found.target.section(section), count)
        best = best_lanes(evaluator.log_density(target, noisy, sigma), count) % count
        options = torch.cat([clean[:, None, :, window], others[..., window]], 1)
        chosen[..., window] = options[lane, best]
    return chosen
