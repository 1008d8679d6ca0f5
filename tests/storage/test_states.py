"""States of runs: what comes back, and what is refused before memory is taken."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_sep.storage.seals import seal_length, sealed
from pyro_sep.storage.states import check_like, check_shapes, load_state, readable, save_state

STATE = {"number": 7, "name": "a", "parts": [torch.arange(5.0), {"b": torch.ones(2, dtype=bool)}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_state(tmp_path / "run.pt", "training", STATE)
    return tmp_path / "run.pt"


def refused(path: Path, words: str, kind: str = "training") -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words) as caught:
        load_state(path, kind)
    message = str(caught.value)
    assert message.startswith(f"{path}: got no readable checkpoint (")
    assert message.endswith(f"expected that of a {kind}; delete it to start anew")
    assert "\n" not in message
    assert path.read_bytes() == before


def test_a_state_comes_back(path: Path) -> None:
    state = load_state(path, "training")
    assert (state["number"], state["name"]) == (7, "a")
    assert torch.equal(state["parts"][0], torch.arange(5.0))
    assert state["parts"][1]["b"].dtype == torch.bool
    assert torch.load(path, weights_only=True)["number"] == 7  # an archive as torch writes it


def test_other_kinds_and_versions_are_named(path: Path) -> None:
    refused(path, r"it is of the format 'pyro_sep\.training\.2'", "separation")
    body = path.read_bytes()[: -seal_length("training.2")]
    path.write_bytes(sealed(body, "training.3"))
    refused(path, r"it is of the format 'pyro_sep\.training\.3'")
    torch.save(STATE, path)
    refused(path, "it is cut off, damaged, or of another version")
    path.write_bytes(b"")
    refused(path, "it is empty")


def seal(path: Path, archive: bytes) -> None:
    """Write an archive as one would who means harm."""
    comment = seal_length("training.2").to_bytes(2, "little")
    path.write_bytes(sealed(archive[:-2] + comment, "training.2"))


def archive(pickled: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", storage)
    return content.getvalue()


class Storage:
    def __init__(self, numbers: int) -> None:
        self.numbers = numbers


class View:
    """A tensor of this size and stride in a storage of so many floats."""

    def __init__(self, numbers: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.given = (Storage(numbers), 0, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.given


class Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def pickled(state: object) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", value.numbers)
            return None

    content = io.BytesIO()
    Pickler(content, 2).dump(state)
    return content.getvalue()


def test_what_is_sealed_by_hand_is_read(path: Path) -> None:
    seal(path, archive(pickled({"a": View(3, (3,), (1,))}), torch.ones(3).numpy().tobytes()))
    assert torch.equal(load_state(path, "training")["a"], torch.ones(3))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": View(3, (10**10,), (0,))}, "claims more than is there"),
        ({"a": View(3, (10**10,), (1,))}, "not what it should be"),
        ({"a": View(10**10, (10**10,), (1,))}, "not what it should be"),
        ({"a": Call(os.system, "touch pwned")}, "calls for 'posix system'"),
        ({"a": Call(bytearray, 10**11)}, "calls for '.* bytearray'"),
        ([1, 2], "claims more than is there"),
    ],
    ids=["expanded", "view", "storage", "system", "bytearray", "list"],
)
def test_what_claims_more_than_there_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, state: object, words: str
) -> None:
    monkeypatch.chdir(path.parent)
    seal(path, archive(pickled(state), torch.ones(3).numpy().tobytes()))
    refused(path, words)
    assert os.listdir(path.parent) == ["run.pt"]


def test_a_compressed_archive_is_refused(path: Path) -> None:
    packed = archive(pickled({"a": 1}), bytes(10**6), zipfile.ZIP_DEFLATED)
    assert len(packed) < 10_000
    seal(path, packed)
    refused(path, "claims more than is there")


def test_a_state_that_shares_its_parts_is_read_at_once(path: Path) -> None:
    part: list[Any] = [torch.ones(1)]
    for _ in range(60):
        part = [part, part]  # 2^60 paths to one tensor
    save_state(path, "training", {"a": part})
    assert load_state(path, "training")


def test_parts_are_like_others() -> None:
    like = {"a": [torch.ones(2, 3), 1], "b": None}
    check_like("state", {"a": [torch.zeros(2, 3), 5], "b": None}, like)
    for part in (
        {"a": [torch.ones(3, 2), 1], "b": None},
        {"a": [torch.ones(2, 3).double(), 1], "b": None},
        {"a": [torch.ones(2, 3), 1.0], "b": None},
        {"a": [torch.ones(2, 3)], "b": None},
        {"a": [torch.ones(2, 3), 1]},
        {"a": [torch.ones(2, 3), 1], "b": None, "c": 1},
        {"a": "text", "b": None},
        [],
    ):
        with pytest.raises(ValueError, match=r"^state.* is .* in place of ") as caught:
            check_like("state", part, like)
        assert "\n" not in str(caught.value)
    check_shapes("part", [torch.ones(2)], [(2,)])
    for tensors in ([torch.ones(3)], [torch.ones(2, dtype=int)], [], ["text"]):
        with pytest.raises(ValueError, match=r"^part is "):
            check_shapes("part", tensors, [(2,)])


def test_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), readable(tmp_path, "training"):
        raise PermissionError
    with pytest.raises(ValueError, match="it lacks 'walk'"), readable(tmp_path, "training"):
        raise KeyError("walk")
