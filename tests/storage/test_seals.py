from pathlib import Path

import pytest

from pyro_sep.storage.seals import check_seal, seal_length, sealed

CONTENT = bytes(range(256)) * 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(sealed(CONTENT, "thing.1"))
    return tmp_path / "a"


def test_a_seal_follows_the_content(path: Path) -> None:
    content = path.read_bytes()
    assert content[: -seal_length("thing.1")] == CONTENT
    assert content[len(CONTENT) :].startswith(b"pyro_sep.thing.1 ")
    check_seal(path, "thing.1")


def test_any_flipped_bit_is_found(path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content)):
        data = bytearray(content)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"^it is "):
            check_seal(path, "thing.1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (CONTENT[:10], "it is cut off, damaged, or of another version"),
        (sealed(CONTENT, "thing.1")[:-1], "it is cut off, damaged, or of another version"),
        (sealed(CONTENT, "thing.2"), r"it is of the format 'pyro_sep\.thing\.2'"),
        (sealed(CONTENT, "other.1"), r"it is of the format 'pyro_sep\.other\.1'"),
    ],
)
def test_what_else_a_file_is(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_seal(path, "thing.1")
