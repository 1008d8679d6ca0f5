"""What is said of a long recording before it is separated."""

from pathlib import Path

import pytest
import torch

from pyro_sep.audio.io import Recording
from pyro_sep.priors import load_priors
from pyro_sep.results import plan
from pyro_sep.results import preview as module
from pyro_sep.results.preview import format_preview, preview
from pyro_sep.results.stems import StemFiles
from pyro_sep.separation.cost import Cost

RATE = 16_000


def recording(samples: torch.Tensor) -> Recording:
    return Recording(samples, RATE, samples[None], RATE, ())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The excerpts that are separated; each promises as many dB as its first sample says."""
    excerpts: list[torch.Tensor] = []

    class Found:
        def __init__(self, trace: float) -> None:
            self.trace = trace

    def separate(mixture: torch.Tensor, priors: object, **options: object) -> Found:
        excerpts.append(mixture)
        assert options == {"preset": "quick", "seed": 3}
        return Found(float(mixture[0]))

    def expected(trace: float) -> dict[str, tuple[float, float]] | None:
        return None if trace < 0 else dict.fromkeys(load_priors("music"), (trace - 2, trace + 4))

    monkeypatch.setattr(module, "separate", separate)
    monkeypatch.setattr(module, "expected_scores", expected)
    return excerpts


OPTIONS = {"preset": "quick", "seed": 3}


def test_three_excerpts_of_a_second(heard: list[torch.Tensor]) -> None:
    samples = torch.arange(40 * RATE) / (10 * RATE)  # the excerpts begin with 1, 2 and 3
    found = preview(recording(samples), load_priors("music"), OPTIONS)
    assert found == dict.fromkeys(("bass", "drums", "vocals", "other"), 3.0)  # middle of 0 to 6
    assert [len(excerpt) for excerpt in heard] == [RATE] * 3


def test_short_recordings_have_none(heard: list[torch.Tensor]) -> None:
    assert preview(recording(torch.ones(29 * RATE)), load_priors("music"), OPTIONS) is None
    assert not heard


def test_silent_excerpts_are_left_out(heard: list[torch.Tensor]) -> None:
    samples = torch.zeros(40 * RATE)
    assert preview(recording(samples), load_priors("music"), OPTIONS) is None
    samples[20 * RATE : 21 * RATE] = 5.0
    assert set(preview(recording(samples), load_priors("music"), OPTIONS).values()) == {6.0}
    assert len(heard) == 1


def test_where_nothing_was_learned_one_excerpt_is_enough(heard: list[torch.Tensor]) -> None:
    assert preview(recording(torch.full((40 * RATE,), -1.0)), load_priors("music"), OPTIONS) is None
    assert len(heard) == 1


def test_the_warning_where_most_stems_are_worth_little() -> None:
    assert format_preview({"bass": 3.4, "drums": -1.0}) == (
        "by excerpts, the SI-SDR to expect is bass 3 dB, drums -1 dB"
    )
    assert format_preview({"bass": -3.4, "drums": -1.0}).startswith("these priors do not know this")


def test_the_cost_of_a_long_recording_has_the_excerpts_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan, "estimate_cost", lambda *_, **__: Cost(120.0, 10, 30.0))
    device, files = torch.device("cpu"), StemFiles()
    given = plan.Plan(load_priors("music"), files, None, None, {}, 0, device, False, False)
    costs = {}
    for seconds in (10, 40):
        audio = recording(0.1 * torch.ones(seconds * RATE))
        job = plan.Job(tmp_path / "song.wav", tmp_path / "song")
        found, alone = given.cost(job, audio, previewed=True), given.cost(job, audio)
        costs[seconds] = found and found.seconds
        assert alone is not None
        assert alone.seconds == 120.0
    assert costs == {10: 120.0, 40: pytest.approx(120.0 * 43 / 40)}
