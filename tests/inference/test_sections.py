import math
from collections.abc import Sequence

import pytest
import torch
from conftest import GaussianPrior
from torch import Tensor

from pyro_sep.inference.annealing.evaluator import Evaluator
from pyro_sep.inference.annealing.search import candidates
from pyro_sep.inference.annealing.sections import OVERLAP_SHARE, agree, grow, join, split, surest
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing, frame_time
from pyro_sep.progress import Progress


def even_starts(frame: int, length: int, multiple: int) -> list[int]:
    """Starts of sections of one length that cover a frame and overlap by an eighth or more."""
    last = max(0, frame - length)
    count = -(-last // (length - length // OVERLAP_SHARE))
    return [*(last * i // count // multiple * multiple for i in range(count)), last]


@pytest.mark.parametrize("section", [256, 300, 2_048])
@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("frames", [0.2, 1.0, 1.01, 1.2, 1.5, 2.0, 3.3, 10.0])
def test_sections_cover_a_frame_and_overlap(section: int, multiple: int, frames: float) -> None:
    frame = -(-round(frames * section) // multiple) * multiple
    starts, length = split(frame, section, multiple)
    ends = [start + length for start in starts]
    assert (starts[0], ends[-1]) == (0, frame)
    assert length % multiple == 0
    assert all(start % multiple == 0 for start in starts)
    overlaps = [end - start for end, start in zip(ends, starts[1:], strict=False)]
    assert min(overlaps, default=section) >= section // OVERLAP_SHARE - multiple
    assert max(overlaps, default=0) <= section // OVERLAP_SHARE + 2 * multiple
    assert length <= 1.25 * section + multiple
    assert len(starts) == 1 or length >= section // 2


def parts(audio: Tensor, starts: Sequence[int], length: int) -> list[Tensor]:
    return [audio[..., start : start + length].clone() for start in starts]


@pytest.mark.parametrize("frame", [256, 300, 700, 1_000])
def test_audio_is_joined_as_it_was_cut(frame: int) -> None:
    audio = torch.randn(2, 3, frame, generator=torch.Generator().manual_seed(0))
    starts = even_starts(frame, 256, 1)
    assert torch.allclose(join(parts(audio, starts, 256), starts), audio, atol=1e-6)


def test_a_joint_goes_over_from_one_section_to_the_next() -> None:
    starts, length = [0, 150, 300], 256
    sections = [torch.full((1, 1, length), float(i)) for i in range(3)]
    whole = join(sections, starts)[0, 0]
    assert whole.shape == (556,)
    assert (whole[:203] == 0).all()  # the earlier one for half of the overlap of 106
    assert (whole[255:353] == 1).all()
    assert (whole[405:] == 2).all()
    assert (whole.diff() >= 0).all()
    assert whole.diff().max() < 0.03


def test_what_is_joined_adds_up_to_the_mixture() -> None:
    frame, length = 900, 256
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(2, frame, generator=generator)
    starts = even_starts(frame, length, 1)
    sections = []
    for start in starts:
        free = torch.randn(2, 2, length, generator=generator)
        rest = mixture[:, None, start : start + length] - free.sum(1, keepdim=True)
        sections.append(torch.cat([free, rest], 1))
    assert torch.allclose(join(sections, starts).sum(1), mixture, atol=1e-5)


def test_sections_agree_where_they_go_on_alike() -> None:
    starts, length = [0, 200, 400], 256
    audio = torch.randn(4, 2, 656, generator=torch.Generator().manual_seed(0))
    sections = parts(audio, starts, length)
    sections[1][1, 0] *= -1  # both joints of the second chain
    sections[2][2, :, :28] = 9.0  # a section begins without a past: that much is let pass
    sections[2][3, 1, 28:56] = 9.0
    assert agree(sections, starts).tolist() == [
        [True, True],
        [False, False],
        [True, True],
        [True, False],
    ]


@pytest.mark.parametrize(("share", "expected"), [(0.45, True), (0.55, False)])
def test_half_of_the_power_is_too_much(share: float, expected: bool) -> None:
    audio = torch.ones(1, 1, 456)
    sections = parts(audio, [0, 200], 256)
    sections[1] *= 1 + math.sqrt(share)
    assert agree(sections, [0, 200]).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("known", "joints", "run"),
    [
        ("1111", "111", (0, 3)),
        ("1111", "101", (0, 1)),
        ("1111", "011", (1, 3)),
        ("0111", "111", (1, 3)),
        ("1101", "111", (0, 1)),
        ("1011", "111", (2, 3)),
        ("1010", "111", (0, 0)),
        ("0010", "000", (2, 2)),
        ("0001", "111", (3, 3)),
        ("0000", "111", (0, 0)),
        ("1", "", (0, 0)),
        ("0", "", (0, 0)),
    ],
)
def test_the_longest_run_that_is_plausible_and_agrees(
    known: str, joints: str, run: tuple[int, int]
) -> None:
    rows = [torch.tensor([[mark == "1" for mark in marks]] * 2).bool() for marks in (known, joints)]
    first, last = surest(*rows)
    assert first.tolist() == [run[0]] * 2
    assert last.tolist() == [run[1]] * 2


SIGMA, LENGTH = 0.1, 256
SETTINGS = Annealing(0.6, 0.3, SIGMA, levels=12, section=LENGTH, replicas=2)


class Held(GaussianPrior):
    """The whole frame is near +1 or near -1, as likely: a section alone cannot tell."""

    def condition(self, sigma: float) -> "Held":
        return Held(self.name, self.rms, self.event_shape[0], sigma, self.multiple)

    def frame(self, time: int) -> "Held":
        return Held(self.name, self.rms, time, self.sigma, self.multiple)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.shape[-1:] == self.event_shape
        std = math.hypot(0.1, self.sigma)
        ends = [torch.distributions.Normal(end, std).log_prob(value).sum(-1) for end in (1, -1)]
        return torch.logaddexp(*ends)

    def misfit(self, value: Tensor) -> Tensor:
        nearest = torch.minimum((value - 1).square().mean(-1), (value + 1).square().mean(-1))
        return nearest / (0.1**2 + self.sigma**2)


def still(batch: int, frame: int, multiple: int = 1, unheard: int = 0) -> AnnealedPosterior:
    """Silence, of two sources of which one is at +1 and the other at -1."""
    priors = [Held("one", 1.0, multiple, multiple=multiple), Held("other", 1.0)]
    return AnnealedPosterior(torch.zeros(batch, frame - unheard), priors, Mixing.mean(2), True)


def evaluator() -> Evaluator:
    return Evaluator(SETTINGS, torch.Generator().manual_seed(0), Progress(False, 1.0))


def signs(rows: Sequence[str], length: int = LENGTH) -> list[Tensor]:
    """Sections of every chain: the first source at +1 or -1, or nothing that is known."""
    values = {"+": 1.0, "-": -1.0, "?": 0.0}
    first = torch.tensor([[values[mark] for mark in row] for row in rows])
    clean = torch.stack([first, -first], 1)[..., None].repeat(1, 1, 1, length)
    return [*clean.unbind(2)]


def marks(sections: Sequence[Tensor]) -> list[str]:
    means = torch.stack([section[:, 0].mean(-1) for section in sections], 1)
    return ["".join("+" if mean > 0 else "-" for mean in row) for row in means]


def test_a_section_that_failed_grows_from_those_beside_it() -> None:
    rows = ["+++", "+?+", "?--", "++?", "-?", "?+?", "+??"]
    rows = [row.ljust(3, "?") for row in rows]
    frame = 640
    starts = even_starts(frame, LENGTH, 1)
    assert len(starts) == 3
    known = torch.tensor([[mark != "?" for mark in row] for row in rows])
    sections = signs(rows)
    grown, sure = grow(still(len(rows), frame), sections, known, starts, evaluator())
    assert marks(grown) == ["+++", "+++", "---", "+++", "---", "+++", "+++"]
    for section in grown:
        assert torch.allclose(section.abs().mean(-1), torch.tensor(1.0), atol=0.1)
        assert torch.allclose(section.sum(1), torch.tensor(0.0), atol=1e-5)
    assert sure.all()
    assert agree(grown, starts).all()
    assert not known.all()  # what was given is not changed
    # Those of the surest run stay as they are.
    for i, section in enumerate(sections):
        kept = [row[i] != "?" for row in rows]
        assert torch.equal(grown[i][kept], section[kept])


def test_sections_that_are_known_but_do_not_agree_grow_too() -> None:
    rows, starts = ["++-", "-++", "+-+"], even_starts(640, LENGTH, 1)
    known = torch.ones(3, 3, dtype=torch.bool)
    grown, sure = grow(still(3, 640), signs(rows), known, starts, evaluator())
    # The longest run is right: the first two, the last two, and of three alone the first.
    assert marks(grown) == ["+++", "+++", "+++"]
    assert sure.all()


def test_where_all_agree_nothing_is_evaluated() -> None:
    work, starts = evaluator(), even_starts(640, LENGTH, 1)
    sections = signs(["+++", "---"])
    known = torch.ones(2, 3, dtype=torch.bool)
    grown, sure = grow(still(2, 640), sections, known, starts, work)
    assert work.cost == 0
    assert sure.all()
    assert all(torch.equal(a, b) for a, b in zip(grown, sections, strict=True))


def test_what_grows_to_nothing_known_is_said() -> None:
    class Never(Held):
        def misfit(self, value: Tensor) -> Tensor:
            return torch.full_like(value[..., 0], 9.0)

        def condition(self, sigma: float) -> "Never":
            return Never(self.name, self.rms, self.event_shape[0], sigma)

        def frame(self, time: int) -> "Never":
            return Never(self.name, self.rms, time, self.sigma)

    target = AnnealedPosterior(
        torch.zeros(1, 640), [Never("a", 1.0), Never("b", 1.0)], Mixing.mean(2), True
    )
    starts = even_starts(640, LENGTH, 1)
    known = torch.tensor([[True, False, True]])
    _, sure = grow(target, signs(["+?+"]), known, starts, evaluator())
    assert sure.tolist() == [[True, False, True]] or sure.tolist() == [[True, False, False]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("late", [False, True])
def test_what_is_held_decides_the_rest(sign: float, late: bool) -> None:
    batch, frame = 50, 320
    where = (torch.arange(frame) < 128) ^ late
    clean = torch.tensor([sign, -sign])[:, None].repeat(batch, 1, frame)
    settings = Annealing(0.6, 0.3, SIGMA, levels=12, candidates=1)
    given = clean.where(where, math.nan)
    work = Evaluator(settings, torch.Generator().manual_seed(0), Progress(False, 1.0))
    found = candidates(still(batch, frame), work, False, given)
    assert torch.equal(found.clean[..., where], clean[..., where])
    assert torch.allclose(found.clean.mean(-1), clean.mean(-1), atol=0.1)


@pytest.mark.parametrize("multiple", [7, 8, 100])
@pytest.mark.parametrize("unheard", [0, 3])
def test_frames_are_multiples_of_what_the_priors_take(multiple: int, unheard: int) -> None:
    length = frame_time([Held("one", 1.0, multiple, multiple=multiple)], LENGTH)
    frame = -(-640 // multiple) * multiple
    starts = even_starts(frame, length, multiple)
    rows = ["+" + "?" * (len(starts) - 1), "?" * (len(starts) - 1) + "-"]
    known = torch.tensor([[mark != "?" for mark in row] for row in rows])
    target = still(2, frame, multiple, unheard)
    grown, sure = grow(target, signs(rows, length), known, starts, evaluator())
    assert marks(grown) == ["+" * len(starts), "-" * len(starts)]
    assert sure.all()
    assert join(grown, starts).shape == (2, 2, frame)
