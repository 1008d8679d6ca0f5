import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from pyro_sep.priors.auditing import (
    SIGMAS,
    audit,
    discriminative,
    format_audit,
    own_wins,
    recommend,
    save_audit,
)


class WhitePrior:
    """White Gaussian source of a known std."""

    sample_rate = 16_000
    sigmas = (0.01, 5.0)

    def __init__(self, level: float, sigma: float = 1.0, time: int = 1) -> None:
        self.rms, self.sigma, self.time = level, sigma, time
        self.name = f"white {level}"

    def condition(self, sigma: float) -> "WhitePrior":
        return WhitePrior(self.rms, sigma, self.time)

    def frame(self, time: int) -> "WhitePrior":
        return WhitePrior(self.rms, self.sigma, time)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.shape[-1] == self.time
        std = math.hypot(self.rms, self.sigma)
        return torch.distributions.Normal(0.0, std).log_prob(value).sum(-1)


LEVELS = {"loud": 0.7, "soft": 0.1}
PRIORS = {name: WhitePrior(level) for name, level in LEVELS.items()}
FRAMES, TIME = 50, 2_000


def white_audio() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: level * torch.randn(FRAMES, TIME, generator=generator)
        for name, level in LEVELS.items()
    }


def test_the_table_is_the_closed_form() -> None:
    table = audit(PRIORS, white_audio(), (0.05, 0.5, 2.0))
    assert table.dims == ("sigma", "prior", "source")
    assert table.prior.values.tolist() == table.source.values.tolist() == ["loud", "soft"]
    for sigma in (0.05, 0.5, 2.0):
        for prior, a in LEVELS.items():
            for source, b in LEVELS.items():
                ratio = (b**2 + sigma**2) / (a**2 + sigma**2)
                excess = 0.5 - 0.5 * math.log(1 + a**2 / sigma**2) - 0.5 * ratio
                # A squared normal has variance 2: std of the mean over all samples.
                error = 0.5 * ratio * math.sqrt(2 / (FRAMES * TIME))
                value = float(table.sel(sigma=sigma, prior=prior, source=source))
                assert value == pytest.approx(excess, abs=4 * error + 1e-5)


def test_the_true_law_is_best_and_below_zero() -> None:
    table = audit(PRIORS, white_audio())
    assert table.sigma.values.tolist() == list(SIGMAS)
    own = np.stack([np.diag(level) for level in table.values])
    assert (own < 1e-3).all()
    assert (own >= table.values.max(axis=1) - 1e-9).all()


def test_levels_are_those_that_all_priors_know() -> None:
    class Narrow(WhitePrior):
        sigmas = (0.02, 0.4)

    narrow = {"loud": PRIORS["loud"], "soft": Narrow(0.1)}
    assert audit(narrow, white_audio()).sigma.values.tolist() == [0.027, 0.077, 0.129, 0.359]


def test_the_noise_is_the_same_for_all_priors_and_follows_the_seed() -> None:
    audio = white_audio()
    twins = audit({"loud": PRIORS["loud"], "soft": PRIORS["loud"]}, audio, (0.3,))
    assert torch.equal(*torch.from_numpy(twins.values[0]))
    again = audit(PRIORS, audio, (0.3,))
    assert np.array_equal(again, audit(PRIORS, audio, (0.3,)))
    assert not np.array_equal(again, audit(PRIORS, audio, (0.3,), seed=1))


def test_inputs_are_noised_at_their_level() -> None:
    class Recorder(WhitePrior):
        def log_prob(self, value: Tensor) -> Tensor:
            seen.append(value)
            return value.sum(-1)

        def frame(self, time: int) -> "Recorder":
            return self

        def condition(self, sigma: float) -> "Recorder":
            levels.append(sigma)
            return self

    seen: list[Tensor] = []
    levels: list[float] = []
    clean = torch.full((FRAMES, TIME), 0.5)
    audit({"a": Recorder(0.5)}, {"a": clean}, (0.1, 3.0))
    assert levels == [0.1, 3.0]
    for sigma, noisy in zip(levels, seen, strict=True):
        noise = noisy - clean
        assert float(noise.std() / sigma) == pytest.approx(1, abs=4 / math.sqrt(2 * FRAMES * TIME))
        assert abs(float(noise.mean())) < 4 * sigma / math.sqrt(FRAMES * TIME)


def table_of(*levels: list[list[float]]) -> xr.DataArray:
    size = len(levels[0])
    names = [f"name{i}" for i in range(size)]
    coords = {"sigma": [(i + 1) / 10 for i in range(len(levels))], "prior": names, "source": names}
    return xr.DataArray(list(levels), coords, ("sigma", "prior", "source"))


@pytest.mark.parametrize(
    ("level", "verdict"),
    [
        ([[-0.1, -2.0], [-3.0, -0.2]], True),
        ([[-0.1, -2.0], [-0.05, -0.01]], False),  # source 0 is better known to prior 1
        ([[-0.1, -0.05], [-3.0, -0.01]], False),  # prior 0 knows source 1 better than its own
        ([[-2.0, -0.1], [-0.2, -3.0]], False),
        ([[-0.5]], True),
    ],
)
def test_discriminative_needs_rows_and_columns(level: list[list[float]], verdict: bool) -> None:
    assert discriminative(table_of(level)) == {0.1: verdict}


def test_own_wins_tell_rows_from_columns() -> None:
    by_prior, by_source = own_wins(
        table_of([[-0.1, -2.0], [-0.05, -0.06]], [[-0.1, -0.05], [-3.0, -0.2]])
    )
    assert by_prior.transpose("sigma", "prior").values.tolist() == [[True, False], [False, True]]
    assert by_source.transpose("sigma", "source").values.tolist() == [[False, True], [True, False]]


def test_verdicts_are_per_level(tmp_path: Path) -> None:
    table = table_of(
        [[-0.1, -2.0], [-3.0, -0.2]],
        [[-0.12345678, -0.05], [-3.0, -0.01]],
        [[-0.1, -0.05], [-3.0, -0.06]],
    )
    assert discriminative(table) == {0.1: True, 0.2: False, 0.3: False}
    lines = format_audit(table).splitlines()
    assert [line for line in lines if line.startswith("sigma ")] == [
        "sigma 0.1: discriminative",
        "sigma 0.2: NOT discriminative, but each source is likeliest under its own prior",
        "sigma 0.3: NOT discriminative",
    ]
    save_audit(table, tmp_path / "audit.json")
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["names"] == ["name0", "name1"]
    assert content["sigmas"] == [0.1, 0.2, 0.3]
    assert content["discriminative"] == {"0.1": True, "0.2": False, "0.3": False}
    np.testing.assert_allclose(content["excess[sigma][prior][source]"], table.values, atol=5e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


OWN, OTHER = [[-0.1, -2.0], [-3.0, -0.2]], [[-0.1, -0.05], [-3.0, -0.06]]


@pytest.mark.parametrize(
    ("sigmas", "levels", "answer"),
    [
        ((0.01, 0.1, 0.4, 2.0), (OWN, OWN, OWN, OWN), "use them; "),
        ((0.01, 0.1, 0.4, 2.0), (OTHER, OWN, OWN, OTHER), "use them; "),  # not in use there
        ((0.1, 0.4, 1.0), (OWN, OWN, OTHER), "use them with care; at sigma 1 another prior "),
        ((0.1, 0.2), (OWN, OWN), "use them with care; the audit has no noise "),
        ((0.01,), (OWN,), "use them with care; the audit has no noise "),
        ((0.4, 1.0), (OWN, OWN), "use them with care; the audit has no noise "),
        ((0.1, 0.4), (OWN, [[np.nan, 0], [0, 0]]), "do not use them; a prior gives no finite "),
        ((0.1, 0.4), (OTHER, OWN), "do not use them; at sigma 0.1 another prior explains name1 "),
        ((0.1, 0.4), ([[-0.1]], [[-0.1]]), "not known; one prior has nothing to be compared"),
        ((0.1, 0.4), (OTHER, OTHER), "do not use them; at sigma 0.1 another prior explains name1 "),
    ],
)
def test_the_answer(sigmas: tuple[float, ...], levels: tuple[Any, ...], answer: str) -> None:
    table = table_of(*levels).assign_coords(sigma=list(sigmas))
    assert recommend(table).startswith(answer)
    assert format_audit(table).splitlines()[-1] == f"answer: {recommend(table)}"


@pytest.mark.parametrize("names", [("loud",), ("loud", "soft", "third"), ("loud", "weak")])
def test_audio_must_match_the_priors(names: tuple[str, ...]) -> None:
    audio = {name: torch.zeros(1, 4) for name in names}
    with pytest.raises(ValueError, match=r"expected the priors' names \['loud', 'soft'\]"):
        audit(PRIORS, audio)


def test_sources_without_a_frame_are_named() -> None:
    audio = white_audio() | {"soft": torch.empty(0, TIME)}
    with pytest.raises(
        ValueError, match="no held-out frame of 2000 audio samples of soft"
    ) as caught:
        audit(PRIORS, audio)
    assert "\n" not in str(caught.value)
