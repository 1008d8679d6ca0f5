"""Sections that are joined, by a separation that gives every stem the same share."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from music import needs_ffmpeg, write_tracks
from scripts import load
from torch import Tensor

sections = load("sections")
STEMS = 4


def shared(mixture: Tensor, priors: Any, *, preset: Any, seed: int) -> SimpleNamespace:
    """Every stem is a quarter of the mixture."""
    return SimpleNamespace(contributions=mixture.expand(STEMS, -1) / STEMS)


@pytest.mark.parametrize("section", [1_600, 4_000, 20_000])
def test_what_all_sections_say_alike_is_what_the_whole_says(
    section: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def counted(mixture: Tensor, priors: Any, **options: Any) -> SimpleNamespace:
        lengths.append(len(mixture))
        return shared(mixture, priors, **options)

    monkeypatch.setattr(sections, "separate", counted)
    mixture = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    priors = sections.load_set("music", mixing="sum")
    stems = sections.in_sections(priors, None, 0, section, mixture)
    assert torch.allclose(stems, mixture.expand(STEMS, -1) / STEMS, atol=1e-6)
    assert max(lengths) <= 1.3 * section
    assert (len(lengths) > 1) == (section < 10_000)


@needs_ffmpeg
def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tracks(tmp_path / "musdb")
    monkeypatch.setattr(sections, "separate", shared)
    use = {"musdb": tmp_path / "musdb", "seconds": 0.5, "section": 0.2, "out": tmp_path / "out"}
    sections.main(**use)
    monkeypatch.delattr(sections, "separate")
    sections.main(**use)  # all is there
    table = json.loads((tmp_path / "out" / "summary.json").read_text())["table"]
    assert list(table) == ["whole", "again", "sections"]
    for row in table.values():  # a quarter of the mixture is no better than the mixture
        assert row["mean improvement"] == pytest.approx(0, abs=1e-3)
        assert row["c"] == pytest.approx(0, abs=1e-3)
