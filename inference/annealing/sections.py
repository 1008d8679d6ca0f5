r"""Long frames as overlapping sections, each searched by itself, and joined afterwards.

The evidence of a frame grows with its length, and the noise level at which modes are settled with
it. At that of a long frame learned priors cannot tell sources apart yet, so a search of the whole
frame fails; in a section of suitable length it succeeds. Sources are identified by their priors, so
sections fit together without being matched, and the cost is linear in the length.

Sections whose search failed, or that do not agree with their neighbours, are grown: from the
longest run of sections that agree, in both directions, each is searched again with the audio next
to it held fixed (as known pixels are in inpainting, Lugmayr et al. 2022, arXiv 2201.09865). A prior
that is given the beginning of a tone predicts its continuation.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.recombination import refine
from pyro_sep.inference.annealing.search import candidates, is_plausible
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import frame_time

OVERLAP_SHARE = 8  # sections overlap by their length divided by this
LONGER = 0.25  # sections may be longer by this share, where one fewer then covers the frame
AGREEMENT = 0.5  # largest power of the difference of sections that agree, of an overlap's power


def split(frame: int, section: int, multiple: int) -> tuple[list[int], int]:
    """Where sections of about ``section`` audio samples start that cover a frame, and their length.

    Starts and length are multiples of ``multiple``; a frame that is little longer is one section.
    """
    overlap = section // OVERLAP_SHARE
    count = max(1, math.ceil((frame - overlap) / (section - overlap) - LONGER))
    length = -(-(math.ceil((frame - overlap) / count) + overlap) // multiple) * multiple
    last = max(0, frame - length)
    starts = [last * i // (count - 1) // multiple * multiple for i in range(count - 1)]
    return [*starts, last], min(length, frame)


def sections_of(target: AnnealedPosterior, section: int) -> tuple[list[int], int]:
    """Where the sections that are searched of a posterior's frame start, and their length.

    Unknown gains, noise and presence are those of the whole frame, which then is one section.
    """
    whole = target.may_be_silent or target.mixing.has_latents
    length = target.frame if whole else section
    return split(target.frame, length, frame_time(target.priors, 1))


def join(sections: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Audio ``(batch, source, frame)`` from its sections ``(batch, source, length)``.

    The first half of an overlap is the earlier section's, whose prior has more of the past as its
    context; over the second half the later section is faded in.
    """
    whole = sections[0]
    for start, section in zip(starts[1:], sections[1:], strict=True):
        overlap = whole.shape[-1] - start
        fade = torch.linspace(-1, 1, overlap, device=whole.device, dtype=whole.dtype).clamp(min=0)
        mixed = whole[..., start:] * (1 - fade) + section[..., :overlap] * fade
        whole = torch.cat([whole[..., :start], mixed, section[..., overlap:]], -1)
    return whole


def agree(sections: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Whether each section agrees with the one before it, ``(batch, section - 1)``."""
    length = sections[0].shape[-1]
    joints = []
    for i in range(1, len(starts)):
        overlap = starts[i - 1] + length - starts[i]
        ends, begins = sections[i - 1][..., -overlap:], sections[i][..., :overlap]
        late = slice(overlap // 2, None)  # a section begins without a past
        error = (ends - begins)[..., late].square().mean(-1)
        power = ends[..., late].square().mean(-1)
        joints.append((error <= AGREEMENT * power).all(-1))
    return torch.stack(joints, 1)


def surest(plausible: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """First and last of the longest run of plausible sections that agree, ``(batch,)`` each.

    ``plausible`` is ``(batch, section)``, and ``joints`` are those of :func:`agree`.
    """
    runs = []
    for row, joined in zip(plausible.tolist(), joints.tolist(), strict=True):
        best, begun = (0, 0), 0
        for i in range(len(row)):
            if i and not (row[i - 1] and row[i] and joined[i - 1]):
                begun = i
            best = max(best, (begun, i), key=lambda run: (row[run[0]], run[1] - run[0], -run[0]))
        runs.append(best)
    first, last = torch.tensor(runs, device=plausible.device).unbind(1)
    return first, last


def grow(
    target: AnnealedPosterior,
    sections: Sequence[Tensor],
    plausible: Tensor,
    starts: Sequence[int],
    evaluator: Evaluator,
) -> tuple[list[Tensor], Tensor]:
    """Sections, those that failed searched again from their neighbours, and which are plausible.

    The target is the posterior of whole frames; sections are clean sources ``(batch, source,
    length)``, and plausible ``(batch, section)``.
    """
    sections, plausible = list(sections), plausible.clone()
    first, last = surest(plausible, agree(sections, starts))
    order = [(i, i - 1) for i in range(1, len(starts))]
    order += [(i, i + 1) for i in reversed(range(len(starts) - 1))]
    for i, beside in order:
        outside = last < i if beside < i else first > i
        pair = sorted((i, beside))
        joined = agree([sections[j] for j in pair], [starts[j] for j in pair])[:, 0]
        failed = (outside & ~(plausible[:, i] & joined)).nonzero()[:, 0]
        if not len(failed):
            continue
        begin, shift = starts[pair[0]], starts[pair[1]] - starts[pair[0]]
        both = slice(begin, begin + shift + sections[0].shape[-1])
        clean, plausible[failed, i] = _grown(
            target.select(failed).section(both),
            sections[beside][failed],
            shift,
            beside < i,
            evaluator,
        )
        sections[i] = sections[i].index_copy(0, failed, clean)
    return sections, plausible


def _grown(
    target: AnnealedPosterior, neighbour: Tensor, shift: int, forward: bool, evaluator: Evaluator
) -> tuple[Tensor, Tensor]:
    """The later of two sections, or the earlier if not forward, searched with the other held fixed.

    The target is the posterior of both, whose starts are ``shift`` audio samples apart. Returns the
    clean sources and whether they are plausible.
    """
    length = neighbour.shape[-1]
    step = frame_time(target.priors, 1)
    cut = min(length // 2 // step * step, shift)  # of the neighbour, what is far from the other
    given = neighbour[..., cut:] if forward else neighbour[..., : length - cut]
    given = F.pad(given, (0, shift) if forward else (shift, 0), value=math.nan)
    window = target.section(slice(cut, None) if forward else slice(0, shift + length - cut))
    found = refine(candidates(window, evaluator, False, given), evaluator)
    start = shift - cut if forward else 0
    part = slice(start, start + length)
    found = found._replace(target=window.section(part), clean=found.clean[..., part])
    return found.clean, is_plausible(found, evaluator)
