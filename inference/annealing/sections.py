r"""Long frames as sections that overlap, each searched by itself, and put together again.

The evidence of a frame grows with its length, and modes freeze by it: where a long frame's do,
learned priors cannot tell sources apart yet, and a search of the whole is lost. A section of the
length at which they can is found by itself. Sources are told apart by their priors, so sections
fit together without being matched, and the cost is linear in the length.

Sections whose search failed, or that do not go on as their neighbours do, are grown: from the
longest run of sections that agree, in both directions, each is searched anew with the audio beside
it held (as known pixels are in inpainting, Lugmayr et al. 2022, arXiv 2201.09865). A prior that
has heard a tone knows how it goes on.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_sep.inference.annealing.descent import Given
from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.recombination import refine
from pyro_sep.inference.annealing.search import candidates, is_known
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import frame_time

OVERLAP_SHARE = 8  # sections overlap by their length divided by this
LONGER = 0.25  # sections may be longer by this share, where one fewer will do
AGREEMENT = 0.5  # of the power of an overlap, that sections which agree differ by at most


def split(frame: int, section: int, multiple: int) -> tuple[list[int], int]:
    """Where sections of a frame start, and their length; they overlap and cover it.

    Args:
        frame: audio samples.
        section: about as many in a section; the frame is one where it is little longer.
        multiple: of which starts and length are.

    >>> split(4000, 2048, 1)
    ([0, 1872], 2128)
    """
    overlap = section // OVERLAP_SHARE
    count = max(1, math.ceil((frame - overlap) / (section - overlap) - LONGER))
    length = -(-(math.ceil((frame - overlap) / count) + overlap) // multiple) * multiple
    last = max(0, frame - length)
    starts = [last * i // (count - 1) // multiple * multiple for i in range(count - 1)]
    return [*starts, last], min(length, frame)


def join(sections: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Audio ``(lane, source, frame)`` of its sections ``(lane, source, length)``.

    In the first half of an overlap the earlier section is heard, whose prior has heard more of the
    past by then; in the second half the later one is faded in.
    """
    whole = sections[0]
    for start, section in zip(starts[1:], sections[1:], strict=True):
        overlap = whole.shape[-1] - start
        fade = torch.linspace(-1, 1, overlap, device=whole.device, dtype=whole.dtype).clamp(min=0)
        mixed = whole[..., start:] * (1 - fade) + section[..., :overlap] * fade
        whole = torch.cat([whole[..., :start], mixed, section[..., overlap:]], -1)
    return whole


def agree(sections: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Whether each section goes on as the one before it does, ``(lane, section - 1)``."""
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


def surest(known: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """First and last of the longest run of sections that are known and agree, of every lane.

    Args:
        known: ``(lane, section)``.
        joints: ``(lane, section - 1)``, whether neighbours agree.
    """
    runs = []
    for row, joined in zip(known.tolist(), joints.tolist(), strict=True):
        best, first = (0, 0), 0
        for i in range(len(row)):
            if i and not (row[i - 1] and row[i] and joined[i - 1]):
                first = i
            best = max(best, (first, i), key=lambda run: (row[run[0]], run[1] - run[0], -run[0]))
        runs.append(best)
    return tuple(torch.tensor(runs, device=known.device).unbind(1))  # type: ignore[return-value]


def grow(
    target: AnnealedPosterior,
    sections: Sequence[Tensor],
    known: Tensor,
    starts: Sequence[int],
    settings: Annealing,
    evaluator: Evaluator,
) -> tuple[list[Tensor], Tensor]:
    """Sections with those that failed grown from their neighbours, and which are known then.

    Args:
        target: posterior of the whole lanes.
        sections: clean sources of each ``(lane, source, length)``.
        known: ``(lane, section)``, whether the priors know them.
        starts: of the sections.
        settings: of the run.
        evaluator: of densities.
    """
    sections, known = list(sections), known.clone()
    first, last = surest(known, agree(sections, starts))
    order = [(i, i - 1) for i in range(1, len(starts))]
    order += [(i, i + 1) for i in reversed(range(len(starts) - 1))]
    for i, beside in order:
        outside = last < i if beside < i else first > i
        pair = sorted((i, beside))
        joined = agree([sections[j] for j in pair], [starts[j] for j in pair])[:, 0]
        lanes = (outside & ~(known[:, i] & joined)).nonzero()[:, 0]
        if not len(lanes):
            continue
        neighbour = [sections[j][lanes] for j in pair]
        clean, sure = _grown(
            target.select(lanes), neighbour, pair, beside, starts, settings, evaluator
        )
        sections[i] = sections[i].index_copy(0, lanes, clean)
        known[lanes, i] = sure
    return sections, known


def _grown(
    target: AnnealedPosterior,
    neighbour: Sequence[Tensor],
    pair: Sequence[int],
    beside: int,
    starts: Sequence[int],
    settings: Annealing,
    evaluator: Evaluator,
) -> tuple[Tensor, Tensor]:
    """A section of some lanes, searched with its neighbour held, and whether it is known."""
    length = neighbour[0].shape[-1]
    step = frame_time(target.priors, 1)
    cut = min(length // 2 // step * step, starts[pair[1]] - starts[pair[0]])
    forward = beside == pair[0]
    begin, end = starts[pair[0]], starts[pair[1]] + length
    begin, end = (begin + cut, end) if forward else (begin, end - cut)
    heard = neighbour[0][..., cut:] if forward else neighbour[1][..., : length - cut]
    rest = end - begin - heard.shape[-1]
    padding = (0, rest) if forward else (rest, 0)
    held = F.pad(torch.ones_like(heard[0, 0], dtype=torch.bool), padding)
    audio = F.pad(heard, padding)
    window = target.section(slice(begin, end))
    found = candidates(window, settings, evaluator, False, Given(audio, held))
    found = refine(found, settings, evaluator)
    start = starts[pair[1]] - begin if forward else 0
    clean = found.clean[..., start : start + length]
    part = slice(start, start + length)
    sure = is_known(
        found._replace(target=window.section(part), clean=clean), settings.sigma_min, evaluator
    )
    return clean, sure
