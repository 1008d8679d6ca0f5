r"""Recombination: from several refinements of the sources, the likeliest in every short window.

Once it is settled which source explains which tone, decisions at single moments remain open: which
of two sources jumps first, or how a tone starts before its prior has heard any of it. Replicas of
the sources, noised to a level that leaves these open and denoised independently, each take some of
them wrongly. Log densities tell which: the audio of a window is replaced by that of each replica in
turn, the audio around it being the same, and the likeliest is kept. All replicas add up to the
mixture, so their recombination does.

A window's density is that of a section around it, so the cost is linear in the frame's length. It
is the crossover of evolutionary Monte Carlo (Liang & Wong 2000, Statist. Sinica 10) in time, with
the best taken instead of a draw: a search, not a sampler.
"""

import torch
from torch import Tensor

from pyro_sep.inference.annealing.descent import Found, best_of_groups, descend, repeat
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.mixing.known import frame_time

WINDOW = 64  # audio samples that are replaced at once
BEFORE = 6 * WINDOW  # of a section, context for the priors
AFTER = WINDOW  # in which the consequences of a replacement show


def refine(found: Found, evaluator: Evaluator) -> Found:
    """The recombination of replicas of what was found; the best replica where gains are unknown."""
    group, sigmas = evaluator.settings.replicas, evaluator.settings.replica_sigmas
    if not group:
        return found
    target = repeat(found.target, group)
    position = found.clean.repeat_interleave(group, 0)
    position = position + sigmas[0] * evaluator.noise(target, position)
    replicas = descend(target, position, sigmas, evaluator)
    best = replicas.select(best_of_groups(replicas.log_density, group))
    if found.target.mixing.has_latents:
        return best  # replicas have gains of their own
    others = replicas.clean.reshape(-1, group, *replicas.clean.shape[1:])
    others = torch.cat([others, found.clean[:, None]], 1)
    return best._replace(clean=recombine(best, others, sigmas[-1], evaluator))


def recombine(found: Found, others: Tensor, sigma: float, evaluator: Evaluator) -> Tensor:
    """The clean sources, in each window those found or of the ``others``, whichever are likeliest.

    The others are ``(batch, replica, source, frame)``; densities are compared under the same noise
    of std sigma.
    """
    clean, frame = found.clean, found.clean.shape[-1]
    step = frame_time(found.target.priors, 1)
    length = min(frame, frame_time(found.target.priors, BEFORE + WINDOW + AFTER + step - 1))
    noise = sigma * evaluator.noise(found.target, clean)
    count = 1 + others.shape[1]
    row = torch.arange(len(clean), device=clean.device)
    chosen = clean.clone()
    for start in range(0, frame, WINDOW):
        window = slice(start, min(frame, start + WINDOW))
        first = min(max(0, start - BEFORE), frame - length) // step * step
        section = slice(first, first + length)
        spliced = clean[:, None, :, section].repeat(1, count, 1, 1)
        spliced[:, 1:, :, window.start - first : window.stop - first] = others[..., window]
        noisy = (spliced + noise[:, None, :, section]).flatten(0, 1)
        target = repeat(found.target.section(section), count)
        best = best_of_groups(evaluator.log_density(target, noisy, sigma), count) % count
        options = torch.cat([clean[:, None, :, window], others[..., window]], 1)
        chosen[..., window] = options[row, best]
    return chosen
