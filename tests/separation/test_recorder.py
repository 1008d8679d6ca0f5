import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from pyro_sep import separate
from pyro_sep.inference.annealing import checkpoint
from pyro_sep.inference.annealing.draws import Draws
from pyro_sep.separation import api as separation
from pyro_sep.separation.api import Separation, separate_batch
from pyro_sep.separation.presets import default_ladder
from pyro_sep.separation.recorder import DrawRecorder, MemoryBackend, ZarrBackend
from pyro_sep.storage.states import load_state, save_state
from pyro_sep.trace.dataset import load_trace

BUDGET: dict[str, Any] = {"levels": 6, "cooling": 3, "chains": 2, "draws": 25, "thin": 1}
Where = Callable[[str], dict[str, Any]]


def mixture(frequency: float = 440.0) -> Tensor:
    return 0.4 * torch.sin(2 * math.pi * frequency * torch.arange(300) / 16_000)


@pytest.fixture(params=["memory", "disk"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """Options by which a run keeps its draws, in memory or in a store of this name."""
    on_disk = request.param == "disk"
    return lambda name: {"store": tmp_path / f"{name}.zarr"} if on_disk else {}


@contextmanager
def killed(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run is killed when the block of this first draw has been kept."""
    with monkeypatch.context() as patch:
        for kind in (MemoryBackend, ZarrBackend):

            def add(self: Any, block: dict[str, Any], first: int, add: Any = kind.add):
                add(self, block, first)
                if first == at:
                    raise KeyboardInterrupt

            patch.setattr(kind, "add", add)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_same(a: Separation, b: Separation) -> None:
    assert torch.equal(a.sources, b.sources)
    assert torch.equal(a.contributions, b.contributions)
    xr.testing.assert_identical(a.trace.load(), b.trace.load())


def test_a_store_holds_what_memory_holds(gaussian_priors: Any, tmp_path: Path) -> None:
    # Frames are multiples of 7, which 300 is not.
    priors = gaussian_priors(0.5, 0.3, multiples=(7, 1))
    use = {"true_sources": torch.ones(2, 300), "attrs": {"notes": ["loud"]}, **BUDGET}
    memory = separate(mixture(), priors, **use)
    disk = separate(mixture(), priors, store=tmp_path / "a.zarr", **use)
    assert not disk.trace["posterior/sources"].variable._in_memory
    assert disk.trace["posterior/sources"].shape == (2, 25, 2, 300)
    assert_same(disk, memory)
    xr.testing.assert_identical(load_trace(tmp_path / "a.zarr").load(), memory.trace)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[Draws]:
    """What a recorder is given."""
    given: list[Draws] = []

    class Recorder(DrawRecorder):
        def add(self, draws: Draws, first: int) -> None:
            given.append(draws)
            super().add(draws, first)

    monkeypatch.setattr(separation, "DrawRecorder", Recorder)
    return given


def test_the_mean_is_that_of_all_expected_sources(
    gaussian_priors: Any, where: Where, blocks: list[Draws]
) -> None:
    result = separate(mixture(), gaussian_priors(0.5, 0.3), **BUDGET, **where("a"))
    best = result.trace["sample_stats"]["lp"].values.mean(1).argmax()
    means = torch.cat([block.means for block in blocks], 2)[0]
    draws = torch.cat([block.sources for block in blocks], 2)[0]
    assert torch.allclose(result.sources, means[best].mean(0), atol=1e-6)
    assert np.array_equal(result.trace["posterior"]["sources"].values, draws)
    assert not torch.allclose(means, draws, atol=1e-3)


def test_misfit_is_that_of_the_noisy_draws(gaussian_priors: Any, where: Where) -> None:
    priors = gaussian_priors(0.5, 0.3, multiples=(7, 1))  # frames of 301
    result = separate(mixture(), priors, **BUDGET, **where("a"))
    posterior, sigma = result.trace["posterior"], default_ladder(priors, 300)["sigma_min"]
    variances = np.array([prior.condition(sigma).variance for prior in priors.values()])
    # -2 log p = T (misfit + log(2 pi variance)) where the prior is white and Gaussian.
    expected = -2 * posterior["log_prior"].values / 301 - np.log(2 * np.pi * variances)
    np.testing.assert_allclose(posterior["misfit"].values, expected, rtol=1e-3)


def test_shares_are_means_of_products(gaussian_priors: Any, blocks: list[Draws]) -> None:
    known = separate(mixture(), gaussian_priors(0.5, 0.3), gains=(0.2, 0.6), **BUDGET)
    assert torch.allclose(known.contributions, torch.tensor([[0.2], [0.6]]) * known.sources)
    blocks.clear()
    result = separate(mixture(), gaussian_priors(0.5, 0.3), gains="infer", **BUDGET)
    best = result.trace["sample_stats"]["lp"].values.mean(1).argmax()
    means = torch.cat([block.means for block in blocks], 2)[0, best]
    gains = torch.cat([block.mixing["gains"] for block in blocks], 2)[0, best]
    expected = (gains[..., None] * means).mean(0)
    assert torch.allclose(result.contributions, expected, atol=1e-6)
    factors = gains.mean(0)[:, None] * means.mean(0)
    assert not torch.allclose(result.contributions, factors, atol=1e-4)


def test_each_mixture_has_its_store(gaussian_priors: Any, tmp_path: Path) -> None:
    mixtures = torch.stack([mixture(440), mixture(1_000)])
    stores = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    priors = gaussian_priors(0.5, 0.3)
    disk = separate_batch(mixtures, priors, store=stores, **BUDGET)
    memory = separate_batch(mixtures, priors, **BUDGET)
    for one, other in zip(disk, memory, strict=True):
        assert_same(one, other)
    with pytest.raises(ValueError, match=r"^store: got 1 paths, expected 2, one a mixture$"):
        separate_batch(mixtures, priors, store=stores[:1], **BUDGET)


@pytest.mark.parametrize("at", [0, 10, 20])
@pytest.mark.parametrize("seconds", [-1.0, 60.0])
def test_a_killed_run_keeps_its_draws(
    gaussian_priors: Any,
    where: Where,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    seconds: float,
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", seconds)
    priors, use = gaussian_priors(0.5, 0.3), {"true_sources": torch.ones(2, 300), **BUDGET}
    whole = separate(mixture(), priors, **use)
    use |= {"checkpoint": tmp_path / "run.pt", **where("cut")}
    with killed(at, monkeypatch):
        separate(mixture(), priors, **use)
    if "store" in use:
        with pytest.raises(ValueError, match="not finished"):
            load_trace(use["store"])
    assert_same(separate(mixture(), priors, **use), whole)
    assert_same(separate(mixture(), priors, **use), whole)  # finished, and read back


def test_draws_in_the_store_are_not_written_again(
    gaussian_priors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    use = {"checkpoint": tmp_path / "run.pt", "store": tmp_path / "a.zarr", **BUDGET}
    priors, chunks = gaussian_priors(0.5, 0.3), tmp_path / "a.zarr" / "posterior" / "sources"
    with killed(20, monkeypatch):
        separate(mixture(), priors, **use)
    before = {path.name: path.stat().st_mtime_ns for path in chunks.glob("[0-9]*")}
    assert len(before) == 3 * 2 * 2  # blocks, chains, sources
    separate(mixture(), priors, **use)
    changed = {name for name, at in before.items() if (chunks / name).stat().st_mtime_ns != at}
    assert changed == {name for name in before if name.split(".")[1] == "2"}


def test_a_checkpoint_without_its_store_is_refused(gaussian_priors: Any, tmp_path: Path) -> None:
    use = {"checkpoint": tmp_path / "run.pt", **BUDGET}
    priors = gaussian_priors(0.5, 0.3)
    separate(mixture(), priors, store=tmp_path / "a.zarr", **use)
    with pytest.raises(ValueError, match=r"b\.zarr without the draws of its checkpoint"):
        separate(mixture(), priors, store=tmp_path / "b.zarr", **use)
    with pytest.raises(ValueError, match="run of store True, expected store False"):
        separate(mixture(), priors, **use)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0, expected seed 1"),
        ({"cooling": 4}, "cooling 3, expected cooling 4"),
        ({"noise_scale": 5e-4}, "noise_scale 0.001, expected noise_scale 0.0005"),
        ({"constraint": "gaussian"}, "constraint exact, expected constraint gaussian"),
        ({"gains": (1.0, 0.5)}, r"gains \(0.5, 0.5\), expected gains \(1.0, 0.5\)"),
        (
            {"mixture": mixture(441)},
            r"mixture \w{12} \(1, 300\), expected mixture \w{12} \(1, 300\); ",
        ),
        ({"levels": (0.5, 0.2)}, r"sigma_max .*prior of two -?[\d.]+, expected .*prior of two"),
    ],
)
def test_another_run_is_refused(
    gaussian_priors: Any, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    use = {**BUDGET, "draws": 1, "checkpoint": tmp_path / "run.pt"}
    separate(mixture(), gaussian_priors(0.5, 0.3), **use)
    audio = change.pop("mixture", mixture())
    priors = gaussian_priors(*change.pop("levels", (0.5, 0.3)))
    with pytest.raises(ValueError, match=rf"run\.pt: got the checkpoint of a run of {said}") as got:
        separate(audio, priors, **(use | change))
    assert "\n" not in str(got.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("run", None),
        ("run stage", 999),
        ("run stage", -1),
        ("run drawn", 26),
        ("run cost", -1.0),
        ("run step_size", math.nan),
        ("run step_size", "long"),
        ("run sections", [[], [], []]),
        ("run sections", [[torch.zeros(2, 2, 300)], [torch.ones(2)], [torch.ones(2)]]),
        ("run chain", []),
        ("run contributions", None),
        ("run generator", torch.zeros(5, dtype=torch.uint8)),
        ("run history", [torch.zeros(2, 2)] * 6),
        ("run history", []),
        ("run chain", [torch.zeros(1)] * 5),
        ("run target", {"gains": torch.zeros(2)}),
        ("recorder", {}),
        ("run assignment", None),
        ("recorder groups", {}),
        ("recorder groups orders", []),
        ("recorder groups lp", [torch.zeros(1, 2, 3)]),
        ("recorder groups keys", [[0, 0, 0, 1]]),
        ("recorder groups sums", [{"sources": torch.zeros(2, 7)}] * 2),
        ("recorder backends", []),
        ("recorder backends", [[{"sources": 3}]]),
        ("recorder backends", [3]),
    ],
    ids=str,
)
def test_a_part_that_is_not_what_it_should_be(
    gaussian_priors: Any, tmp_path: Path, place: str, value: Any
) -> None:
    path, priors = tmp_path / "run.pt", gaussian_priors(0.5, 0.3)
    separate(mixture(), priors, checkpoint=path, **BUDGET)
    content = load_state(path, checkpoint.KIND)
    part, (*outer, last) = content["state"], place.split()
    for name in outer:
        part = part[name]
    part[last] = value
    save_state(path, checkpoint.KIND, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt: got no readable checkpoint \(") as caught:
        separate(mixture(), priors, checkpoint=path, **BUDGET)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


PEAK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from conftest import GaussianPrior
from pyro_sep import separate
priors = {name: GaussianPrior(name, level) for name, level in (("one", 0.5), ("two", 0.3))}
store = {"store": Path(sys.argv[3])} if sys.argv[3] else {}
mixture = 0.4 * torch.sin(torch.arange(8_000) / 6)
budget = {"levels": 6, "candidates": 1, "chains": 2, "thin": 1}
separate(mixture, priors, draws=int(sys.argv[2]), **budget, **store)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(draws: int, store: Path | str = "") -> float:
    """Peak memory in MiB of a run of 2 chains, 2 sources and 8,000 audio samples."""
    arguments = [
        sys.executable,
        "-c",
        PEAK,
        str(Path(__file__).parent.parent),
        str(draws),
        str(store),
    ]
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws_in_a_store(tmp_path: Path) -> None:
    # The sources of 1,000 draws are 2 * 2 * 8,000 * 4 bytes * 1,000 = 122 MiB.
    few, many = (peak(draws, tmp_path / f"{draws}.zarr") for draws in (10, 1_000))
    assert many - few < 80
    assert peak(1_000) - few > 122
