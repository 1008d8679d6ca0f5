"""Two tones whose order is open: the probability of either, and the script on one mixture."""

import json
from pathlib import Path

import numpy as np
import pytest
from scripts import load

modes = load("modes")


def test_the_probability_of_an_order_by_what_amplitudes_may_be() -> None:
    assert modes.probability([0.9, 1.0]) == pytest.approx(0.5)  # both contribute alike
    assert modes.probability([0.99, 0.82]) == pytest.approx(1)  # 0.45 cannot make the louder one
    near = [modes.probability([amplitude, 0.9]) for amplitude in (0.88, 0.9, 0.92)]
    assert near == sorted(near)


def test_a_mixture_is_one_whose_order_is_open() -> None:
    mixture, lower, expected = modes.open_mixture(0, 3)
    assert modes.OPEN < expected < 1 - modes.OPEN
    assert mixture.shape == lower.shape == (modes.TIME,)
    spectrum = np.abs(np.fft.rfft(mixture.numpy() * np.hanning(modes.TIME)))
    low = np.abs(np.fft.rfft(lower.numpy() * np.hanning(modes.TIME))).argmax()
    high = spectrum[int(low * 1.1) :].argmax() + int(low * 1.1)
    assert high / low == pytest.approx(modes.THIRD, abs=2 / low)


def test_agreement_counts_both_orders_and_a_factor_of_two() -> None:
    rows = [
        {"expected": 0.4, "one": 0.3},  # within a factor of two
        {"expected": 0.4, "one": 0.1},  # both are there, one too rarely
        {"expected": 0.4, "one": 0.0},  # one was never found
    ]
    found = modes.agreement(rows, "one")
    assert (found["both"], found["within_two"]) == (2, 1)
    assert found["mean_error"] == pytest.approx((0.1 + 0.3 + 0.4) / 3)


def test_it_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "RUNS", {"one chain": ("toy/oracle", {"chains": 1, "draws": 4})})
    monkeypatch.setattr(modes, "SEARCH", {"candidates": 1, "replicas": 0, "levels": 6})
    modes.main(mixtures=1, out=tmp_path)
    monkeypatch.delattr(modes, "separate")
    modes.main(mixtures=1, out=tmp_path)  # all is there
    (row,) = json.loads((tmp_path / "summary.json").read_text())["mixtures"]
    assert 0 <= row["one chain"] <= 1
    assert modes.OPEN < row["expected"] < 1 - modes.OPEN
