"""Starts from degraded stems, at a size of seconds."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import load


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("initial_stems")


def test_stems_are_degraded_as_it_says(script: ModuleType) -> None:
    stems = torch.randn(3, 4_096, generator=torch.Generator().manual_seed(0))
    made = {kind: script.degraded(kind, stems, 0) for kind in script.TONES}
    assert made["search"] is None
    assert torch.equal(made["true"], stems)
    assert torch.allclose(made["bleed"].sum(0), stems.sum(0), atol=1e-5)
    assert torch.allclose(made["bleed"][0], 0.8 * stems[0] + 0.1 * (stems[1] + stems[2]), atol=1e-6)
    noise = (made["noise"] - stems).square().mean(1) / stems.square().mean(1)
    assert 10 * noise.log10() == pytest.approx(torch.full((3,), script.NOISE_DB), abs=0.5)
    low = torch.fft.rfft(made["low-pass"]).abs()
    assert low[:, 1_024:].max() < 1e-3  # from 4 kHz on
    assert torch.allclose(low[:, :1_024], torch.fft.rfft(stems).abs()[:, :1_024], atol=1e-2)


def test_a_table_of_tones(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(mixtures=1, seconds=0.032, kinds="true,bleed", out=tmp_path)
    assert "bleed" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    bleed, true = summary["table"]["bleed"], summary["table"]["true"]
    assert bleed["gain_db"] > 0
    assert bleed["prefers_result"] == 1
    assert true["start_db"] is None
    rows = json.loads((tmp_path / "bleed.json").read_text())["mixtures"]
    assert rows[0]["gradients"] == bleed["gradients"]
