"""The paper's training runs: what there is, that it goes on, and that its sizes can be trained."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from music import needs_ffmpeg, write_tracks
from networks import HALVES, WAVENET
from scripts import load

from pyro_sep.cli.program import run
from pyro_sep.data.musdb import STEMS
from pyro_sep.data.source import ToySource
from pyro_sep.models.registry import FAMILIES, Family, build
from pyro_sep.models.settings import schedule
from pyro_sep.models.train import CHECKPOINT, SERIAL_SIGMAS, fit
from pyro_sep.priors import training as library
from pyro_sep.priors.io import load_priors

script = load("train_priors")


@pytest.fixture
def musdb(tmp_path: Path) -> Path:
    """A few seconds of noise for each stem."""
    write_tracks(tmp_path / "musdb")
    return tmp_path / "musdb"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy sizes that take no time, on short frames."""
    for name, size in (("wavenet", WAVENET), ("flow", HALVES)):
        family = FAMILIES[name]
        sizes = {"toy": size}
        monkeypatch.setitem(FAMILIES, name, Family(family.network, family.config, sizes))
    monkeypatch.setattr(script, "CPU", dataclasses.replace(script.CPU, time=64))
    monkeypatch.setattr(library, "AUDIT_FRAMES", 2)
    monkeypatch.setattr(library, "AUDIT_TIME", 64)


def test_the_papers_schedule() -> None:
    runs = script.trainings("paper", None, None)
    waves = ("sine", "saw", "square", "triangle")
    assert list(runs) == [f"{family}-{wave}" for family in ("flow", "wavenet") for wave in waves]
    for name, training in runs.items():
        config = training.config
        assert name == f"{training.family}-{training.name}"
        assert (training.source, training.size) == (f"toy:{training.name}", "paper")
        assert config.batch == {"flow": 5, "wavenet": 2}[training.family]
        assert (config.steps, config.time, training.sample_rate) == (150_000, 16_384, 16_000)
        assert (config.ema, config.score_weight) == (0, 0)  # of plain likelihood, and no average
        rates = [schedule(step, config) for step in (0, 53_999, 54_000, 149_999, 150_000)]
        assert rates == pytest.approx([1e-4, 1e-4, 6e-5, 1e-4 * 0.6**4, 1e-4 * 0.6**5])
        assert "150000 + 5 x 30000 steps" in str(training)


@needs_ffmpeg
def test_stems_are_those_of_musdb18(musdb: Path) -> None:
    runs = script.trainings("paper", musdb, 7)
    assert len(runs) == 16
    assert {training.config.steps for training in runs.values()} == {7}
    for stem in STEMS:
        flow, wavenet = runs[f"flow-{stem}"], runs[f"wavenet-{stem}"]
        assert (flow.size, wavenet.size) == ("paper-musdb18", "paper")
        assert flow.source == wavenet.source == f"musdb:{stem}"
        assert flow.sample_rate == wavenet.sample_rate == 14_700
    assert runs["flow-sine"].size == "paper"
    assert script.trainings("cpu", musdb, None)["flow-bass"].size == "toy"
    with pytest.raises(ValueError, match="got no track, expected train"):
        script.trainings("cpu", musdb / "train" / "a", None)


@needs_ffmpeg
@pytest.mark.usefixtures("tiny")
def test_sets_of_priors_are_left_behind(
    musdb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for only in ("wavenet-sine", "wavenet-sine,wavenet-drums"):  # what is there is read back
        script.main(only=only, steps=5, musdb=musdb, out=out)
    printed = capsys.readouterr().out
    assert printed.count("wavenet-sine: ") == printed.count(f" s. Results: {out}\n") == 2
    assert sorted(os.listdir(out)) == ["wavenet", "wavenet-musdb18"]
    for sigma in SERIAL_SIGMAS:
        sine = load_priors(out / "wavenet" / f"sigma-{sigma:g}")["sine"]
        drums = load_priors(out / "wavenet-musdb18" / f"sigma-{sigma:g}")["drums"]
        assert drums.sample_rate == 14_700
        # Two channels of white noise of RMS 0.1, and a third of the band.
        assert drums.rms == pytest.approx(0.1 / (2 * 3) ** 0.5, rel=0.1)
        for prior in (sine, drums):
            assert prior.sigmas == (sigma, sigma)
            assert prior.mixing == ("mean" if prior is sine else "sum")
            assert prior.frame(64).log_prob(torch.zeros(2, 64)).isfinite().all()
    card = (out / "wavenet-musdb18" / "sigma-0.01" / "drums.md").read_text()
    command = (
        f"`python experiments/train_priors.py --scale cpu --only wavenet-drums --musdb {musdb}"
    )
    assert f"{command} --steps 5`" in card
    assert "| 0.01 | " in card
    kept = torch.load(out / "wavenet" / "sine.run" / "sigma-0.359" / CHECKPOINT)
    assert kept["step"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scale", "gpu"],
            "Invalid value for '--scale': ",
        ),
        (["--only", "flow-sine,flow-bass"], "only: got 'flow-bass', expected some of flow-sine, "),
        (["--musdb", "nowhere"], "nowhere: expected the root of musdb18; no such folder"),
        (["--device", "abacus"], "device: got 'abacus', expected cpu or one that is here"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["train_priors.py", *options, "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        run(script.main)
    error = capsys.readouterr().err
    assert error.startswith(f"pyro-sep: {message}")
    assert error.count("\n") == 1
    assert not out.exists()


def test_it_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(scale="paper", show=True, out=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("flow-sine: flow of size paper, toy:sine at 16000 Hz, 150000 + 5 x ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "size", "time"),
    # Two frames a step, cut short: a WaveNet's step on two whole ones is 3 Tflop and takes 20 GB.
    [("flow", "paper", 1_024), ("flow", "paper-musdb18", 1_024), ("wavenet", "paper", 256)],
)
def test_the_papers_sizes_can_be_trained(tmp_path: Path, family: str, size: str, time: int) -> None:
    """Twenty steps of the noise-free level, then the density of a whole frame."""
    network = dataclasses.replace(FAMILIES[family].sizes[size], sigma_min=0.0, sigma_max=0.0)
    config = dataclasses.replace(script.PAPER, steps=20, batch=2, time=time)
    source = ToySource("triangle")
    torch.manual_seed(config.seed)
    untrained = build(network)
    first = source.draw(2, time, torch.Generator().manual_seed(config.seed))
    with torch.no_grad():
        untrained.code_length(first, first, torch.zeros(2))  # as the first step sets an ActNorm
    trained = fit(source.draw, tmp_path, network, config, progress=False)
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 20
    others, frame, sigma = source.held_out(3, time), source.held_out(1, 16_384), torch.zeros(3)
    with torch.no_grad():
        before = untrained.eval().code_length(others, others, sigma)
        after = trained.code_length(others, others, sigma)
        log_prob = trained.log_prob(frame, sigma[:1])
    assert (before - after).mean() > 3e-3  # nats per audio sample
    assert log_prob.shape == (1,)
    assert log_prob.isfinite().all()
