"""What the experiments share."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _common import choose, decibels, resume, separate_at, summarise

from pyro_sep.audio.resampling import resample
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors.networks import WaveNetPrior


def test_rows_are_measured_once(tmp_path: Path) -> None:
    calls: list[Any] = []

    def measure(start: int, items: Sequence[str]) -> list[dict[str, Any]]:
        calls.append((start, list(items)))
        return [{"name": item} for item in items]

    def names(path: Path | None, items: str, **settings: Any) -> list[str]:
        prepare = lambda: calls.append("prepare")  # noqa: E731
        return [row["name"] for row in resume(path, settings, items, measure, 2, prepare)]

    path = tmp_path / "out" / "rows.json"
    assert names(path, "abc", seed=1) == ["a", "b", "c"]
    assert calls == ["prepare", (0, ["a", "b"]), (2, ["c"])]
    calls.clear()
    assert names(path, "ab", seed=1) == ["a", "b"]
    assert calls == []
    assert names(path, "abcd", seed=1) == ["a", "b", "c", "d"]
    assert calls == ["prepare", (3, ["d"])]
    assert names(None, "a") == ["a"]
    rows = json.loads(path.read_text())["mixtures"]
    assert all(row["seconds"] >= 0 for row in rows)
    with pytest.raises(ValueError, match=r"rows.json: got figures of .*give another --out"):
        names(path, "abc", seed=2)


def test_a_cut_off_batch_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    def fail_at_two(start: int, items: Sequence[int]) -> list[dict[str, Any]]:
        if start == 2:
            raise KeyboardInterrupt
        return [{} for _ in items]

    with pytest.raises(KeyboardInterrupt):
        list(resume(path, {}, range(4), fail_at_two, 1))
    assert len(json.loads(path.read_text())["mixtures"]) == 2


def test_lists_are_checked() -> None:
    assert choose("only", None, {"a": 1, "b": 2}) == ["a", "b"]
    assert choose("only", "b, a", "abc") == ["b", "a"]
    with pytest.raises(ValueError, match="only: got 'd', expected some of a, b"):
        choose("only", "a,d", ["a", "b"])


def test_stems_are_judged_at_the_rate_of_the_mixture() -> None:
    config = WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=2, sigma_data=0.1)
    network, rate, low = WaveNet(config), 16_000, 4_000
    law: Any = {"mixing": "sum", "estimate": "mean"}
    priors = {n: WaveNetPrior(network, name=n, sample_rate=low, **law) for n in ("bass", "drums")}
    t = torch.arange(rate) / rate
    sources = 0.1 * torch.stack([(2 * np.pi * hz * t).sin() for hz in (440.0, 5_000.0)])
    options = {"levels": 6, "candidates": 1, "cooling": 2, "warmup": 1, "draws": 2, "chains": 1}
    result, stems = separate_at(sources.sum(0), sources, rate, priors, **options)
    assert (result.sample_rate, result.sources.shape) == (low, (2, low))
    assert stems.shape == sources.shape
    assert torch.allclose(stems.sum(0), sources.sum(0), atol=1e-3)  # with the treble, 5 kHz
    inner = slice(low // 8, -low // 8)
    below = resample(stems, rate, low)
    known = resample(resample(result.contributions, low, rate), rate, low)
    assert torch.allclose(below[:, inner], known[:, inner], atol=1e-3)
    true = result.trace["constant_data"]["true_sources"].values
    assert np.abs(true[1]).max() < 0.01 < np.abs(true[0]).max()  # those of the priors' band


def test_chains_begin_from_the_stems_of_coarser_priors() -> None:
    config = WaveNetConfig(width=8, layers=2, hop=16, spectra=(32,), components=2, sigma_data=0.1)
    law: Any = {"mixing": "sum", "estimate": "mean"}
    fine, coarse = (
        {n: WaveNetPrior(WaveNet(config), name=n, sample_rate=rate, **law) for n in names}
        for rate, names in ((16_000, ("bass", "drums")), (4_000, ("drums", "vocals", "bass")))
    )
    t = torch.arange(8_000) / 16_000
    sources = 0.1 * torch.stack([(2 * np.pi * hz * t).sin() for hz in (440.0, 5_000.0)])
    options = {"cooling": 2, "warmup": 1, "draws": 2, "chains": 1, "seed": 3}
    job = (sources.sum(0), sources, 16_000)
    result, stems = separate_at(*job, fine, coarse=coarse, **options)
    assert result.names == ("bass", "drums")
    assert stems.shape == sources.shape
    initial = torch.from_numpy(result.trace["constant_data"]["initial"].values)
    own = {name: coarse[name] for name in fine}
    expected = separate_at(*job, own, **options)[1]
    torch.testing.assert_close(initial, expected, atol=1e-5, rtol=0)


def test_a_summary_is_over_all_sources() -> None:
    rows = [
        {"improvement": [1.0, None], "si_sdr": [25.0, None], "seconds": 1.0},
        {"improvement": [3.0, 6.0], "si_sdr": [15.0, 5.0], "seconds": 3.0},
    ]
    assert decibels(rows, "improvement").tolist() == [[1.0, -np.inf], [3.0, 6.0]]
    rows[0] = {"improvement": [1.0, 0.0], "si_sdr": [25.0, 5.0], "seconds": 1.0}
    figures = summarise(rows)
    assert figures["median_improvement_db"] == 2.0
    assert (figures["share_above_10_db"], figures["share_above_20_db"]) == (0.5, 0.25)
    assert (figures["median_si_sdr_db"], figures["cpu_seconds"]) == (10.0, 2.0)


def squares(factor: int, start: int, items: Sequence[int]) -> list[dict[str, Any]]:
    return [{"square": factor * item**2, "start": start} for item in items]


def test_workers_give_the_same_rows_in_order(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    measure = partial(squares, 3)
    alone = [row | {"seconds": 0} for row in resume(whole, {}, range(7), measure, 2)]
    rows = resume(cut, {}, range(7), measure, 2, workers=1)
    next(rows)
    rows.close()  # as an interrupt does it
    assert len(json.loads(cut.read_text())["mixtures"]) == 2
    spread = resume(cut, {}, range(7), measure, 2, workers=1)
    assert [row | {"seconds": 0} for row in spread] == alone

    def fails(start: int, items: Sequence[int]) -> list[dict[str, Any]]:
        raise ValueError(f"start: got {start}, expected none")

    with pytest.raises(ValueError, match="start: got 0, expected none"):
        list(resume(None, {}, range(2), fails, 1, workers=1))
