"""Files that are damaged, or made to do harm: a reader returns, or says in one line what is wrong.

A thousand mutations in all, the same every time. HARDER=10 in the environment makes ten thousand.
"""

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import GaussianPrior
from traces import trace_of

from pyro_sep.audio.io import read_audio
from pyro_sep.data.toy import draw_sources
from pyro_sep.diagnostics.conformal import FUNCTIONS, ConformalCalibration
from pyro_sep.models.settings import TrainConfig
from pyro_sep.models.train import fit
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors.io import load_prior, save_prior
from pyro_sep.priors.networks import WaveNetPrior
from pyro_sep.separation.api import separate
from pyro_sep.storage.files import save_json
from pyro_sep.storage.seals import seal_length, sealed
from pyro_sep.trace.dataset import load_trace, save_trace
from pyro_sep.trace.zarr_store import TraceStore

HARDER = int(os.environ.get("HARDER", "1"))
NETWORK = WaveNetConfig(
    width=2,
    layers=1,
    hop=2,
    past=2,
    spectra=(8,),
    components=1,
    head_width=2,
    head_past=1,
)
TRAINING = TrainConfig(steps=1, batch=1, time=8, warmup=1)
BUDGET: dict[str, Any] = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "draws": 1}
EXTREME = (0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Bytes with one to three faults."""
    for _ in range(generator.choice((1, 1, 2, 3))):
        size = max(1, len(content))
        # Numbers that readers go by are at the beginning, and ZIP's at the end.
        reach = generator.choice((size, min(size, 64), min(size, 512)))
        at = generator.randrange(reach)
        at = size - 1 - at if generator.random() < 0.2 else at
        kind = generator.choice(("flip", "cut", "splice", "number", "repeat", "insert"))
        data = bytearray(content)
        if kind == "flip":
            for place in {at, *(generator.randrange(size) for _ in range(generator.randrange(4)))}:
                data[place : place + 1] = bytes(
                    b ^ 1 << generator.randrange(8) for b in data[place : place + 1]
                )
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            start = generator.randrange(size)
            part = data[start : start + generator.randrange(1, 256)]
            data[at : at + len(part)] = part
        elif kind == "number":
            width = generator.choice("BHIQ")
            order = generator.choice("<>")
            limit = 2 ** (8 * struct.calcsize(width)) - 1
            number = struct.pack(order + width, min(generator.choice(EXTREME), limit))
            data[at : at + len(number)] = number
        elif kind == "repeat":
            data[at : at + generator.randrange(1, 64)] = bytes(
                [generator.randrange(256)]
            ) * generator.randrange(1, 64)
        else:
            data[at:at] = generator.randbytes(generator.randrange(1, 32))
        content = bytes(data)
    return content


def says_so_in_a_line(read: Callable[[], object]) -> str:
    """Read; what is wrong, or nothing."""
    try:
        read()
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1
        return message
    return ""


def make_trace(**changes: Any) -> Any:
    rng = np.random.default_rng(0)
    given = {
        "sources": rng.normal(size=(2, 4, 2, 16)),
        "lp": rng.normal(size=(2, 4)),
        "log_prior": rng.normal(size=(2, 4, 2)),
        "warmup_stats": {"step_size": rng.normal(size=(2, 3))},
        "mixture": rng.normal(size=16),
        "attrs": {"seed": 1, "settings": {"levels": 3}},
    }
    return trace_of(**given | changes)


def check_file(path: Path, count: int, read: Callable[[Path], object], seal: str = "") -> None:
    """Read mutations of a file, every other one sealed anew if it was; most of them are refused."""
    content, refused = path.read_bytes(), 0
    generator = random.Random(f"{path.name} {seal}")
    for i in range(count * HARDER):
        if seal and i % 2:
            data = sealed(mutated(content[: -seal_length(seal)], generator), seal)
        else:
            data = mutated(content, generator)
        path.write_bytes(data)
        refused += bool(says_so_in_a_line(lambda: read(path)))
    assert refused


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_audio(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.sin(np.arange(300)) / 2, 8_000)
    check_file(path, 150, read_audio)


def test_weights(tmp_path: Path) -> None:
    path = tmp_path / "oboe.safetensors"
    save_prior(WaveNetPrior(WaveNet(NETWORK), name="oboe", sample_rate=8_000), path)
    check_file(path, 200, load_prior)


def test_traces(tmp_path: Path) -> None:
    save_trace(make_trace(), tmp_path / "trace.nc")
    check_file(tmp_path / "trace.nc", 200, load_trace)


def test_stores(tmp_path: Path) -> None:
    original, copy = tmp_path / "original.zarr", tmp_path / "copy.zarr"
    store = TraceStore(original, 4)
    for first in (0, 2):
        whole = make_trace(warmup_stats={}, attrs={})
        part = {"sources": whole["posterior/sources"].values[:, first : first + 2]}
        part |= {"lp": np.zeros((2, 2)), "log_prior": np.zeros((2, 2, 2))}
        store.add(make_trace(**part, warmup_stats={}, attrs={}), first)
    store.finish(make_trace())
    generator, refused, count = random.Random("store"), 0, 100 * HARDER
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    for _ in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        path = copy / generator.choice(files)
        path.write_bytes(mutated(path.read_bytes(), generator))
        refused += bool(says_so_in_a_line(lambda: load_trace(copy).load()))
    assert refused > count / 2


def test_checkpoints_of_training(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        fit(source, path.parent, NETWORK, TRAINING, progress=False)

    def source(count: int, time: int, generator: torch.Generator) -> torch.Tensor:
        return draw_sources("square", count, time, generator)[0]

    read(tmp_path / "checkpoint.pt")
    check_file(tmp_path / "checkpoint.pt", 100, read, "training.2")


def test_checkpoints_of_separation(tmp_path: Path) -> None:
    priors = {name: GaussianPrior(name, level) for name, level in (("one", 0.5), ("two", 0.3))}
    mixture = 0.3 * torch.sin(torch.arange(256.0))

    def read(path: Path) -> None:
        separate(mixture, priors, checkpoint=path, **BUDGET)

    read(tmp_path / "checkpoint.pt")
    check_file(tmp_path / "checkpoint.pt", 100, read, "separation.2")


def test_calibrations(tmp_path: Path) -> None:
    kind = {"sources": ["oboe", "flute"], "gains": [0.5, 0.5], "samples": 16, "sample_rate": 8_000}
    errors = {name: {source: [0.5, -1.25e-3] for source in kind["sources"]} for name in FUNCTIONS}
    save_json({"kind": kind, "errors": errors}, tmp_path / "calibration.json")
    check_file(tmp_path / "calibration.json", 150, ConformalCalibration.load)
