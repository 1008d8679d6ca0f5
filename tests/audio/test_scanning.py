import os
from pathlib import Path

import pytest

from pyro_sep.audio.scanning import audio_files, files_below


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in audio_files(folder)]


def test_audio_files_are_sorted_and_found_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.wav").mkdir()
    for name in ("z.WAV", "b/a.flac", "a.mp3", "notes.txt", "x.raw", "wav"):
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in audio_files(tmp_path)]
    assert found == ["a.mp3", "b/a.flac", "z.WAV"]


def test_audio_files_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        audio_files(tmp_path / "none")
    with pytest.raises(ValueError, match="got no audio file"):
        audio_files(tmp_path)


def test_what_systems_put_there_is_left_out(tmp_path: Path) -> None:
    for name in (
        "song/bass.WAV",
        "song/._bass.WAV",
        ".hidden.wav",
        ".Trash/a.wav",
        "__MACOSX/song/bass.wav",
        "song/__MACOSX/._bass.wav",
        "a.Flac",
        "b.M4A",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path) == ["a.Flac", "b.M4A", "song/bass.WAV"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "z").mkdir(parents=True)
    (elsewhere / "song").mkdir(parents=True)
    for path in (root / "z" / "a.wav", elsewhere / "song" / "b.wav"):
        path.touch()
    (root / "a-link").symlink_to(root / "z")  # the folder's own name goes first
    (root / "far").symlink_to(elsewhere)
    (root / "z" / "loop").symlink_to(root)
    (elsewhere / "song" / "back").symlink_to(root)
    assert found(root) == ["far/song/b.wav", "z/a.wav"]
    (tmp_path / "by-link").symlink_to(root)
    assert found(tmp_path / "by-link") == ["far/song/b.wav", "z/a.wav"]


def test_only_files_and_links_to_nothing_are_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "real.wav").touch()
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    assert found(tmp_path) == ["gone.wav", "link.wav", "real.wav"]
    assert files_below(tmp_path) == audio_files(tmp_path)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.wav"), "a\nb.wav", "\u00fc.wav"]
    for name in names:
        (tmp_path / name).touch()
    assert sorted(path.name for path in audio_files(tmp_path)) == sorted(names)
