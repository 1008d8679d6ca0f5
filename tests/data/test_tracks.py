import contextlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pyro_sep.audio.io import load_audio
from pyro_sep.data.tracks import FRAMES, Track, reference_of, stem_frames, stems_folder

RATE, TIME = 8_000, 4_000


def write(path: Path, seed: int, channels: int = 2, rate: int = RATE, time: int = TIME) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal((time, channels))
    soundfile.write(path, noise, rate, subtype="FLOAT")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tracks, one in a subset and with a mixture that is not the sum."""
    for seed, name in enumerate(("song/bass.wav", "song/drums.flac.wav", "test/tune/bass.wav")):
        write(tmp_path / name, seed)
    write(tmp_path / "test" / "tune" / "mixture.wav", 9)
    return tmp_path


def test_folders_of_stems_are_tracks(folder: Path) -> None:
    song, tune = stems_folder(folder)
    assert (song.name, song.subset, song.stems) == ("song", "", ["bass", "drums.flac"])
    assert (tune.name, tune.subset, tune.stems) == ("tune", "test", ["bass"])
    samples, rate = tune.read("bass")
    assert (samples.shape, rate) == ((2, TIME), RATE)
    frames, _ = soundfile.read(folder / "test" / "tune" / "bass.wav", dtype="float32")
    assert np.array_equal(samples.T, frames)


def test_draws_are_no_tracks(folder: Path) -> None:
    before = [track.name for track in stems_folder(folder)]
    write(folder / before[0] / "draws" / "bass_01.wav", 0)
    tracks = stems_folder(folder)
    assert [track.name for track in tracks] == before
    ((samples, rate),) = [read() for read in tracks[0].draws["bass"]]
    assert (samples.shape, rate) == ((2, TIME), RATE)
    assert not tracks[1].draws


@pytest.mark.parametrize("name", ["draws", "alternatives", "sections"])
def test_a_folder_that_is_asked_for_is_searched_whatever_its_name(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path / name / "bass.wav", 0)
    write(tmp_path / name / "song" / "bass.wav", 0)
    assert [track.stems for track in stems_folder(tmp_path / name)] == [["bass"], ["bass"]]


def test_sections_are_no_tracks(folder: Path) -> None:
    before = [track.path for track in stems_folder(folder)]
    for inside in ("", "draws"):
        part = folder / "song" / "sections" / "001" / inside
        write(part / ("bass_01.wav" if inside else "bass.wav"), 0)
    assert [track.path for track in stems_folder(folder)] == before
    parts = stems_folder(folder / "song" / "sections")  # these themselves may be asked for
    assert [(part.name, len(part.draws["bass"])) for part in parts] == [("001", 1)]


def test_a_mixture_is_its_own_or_the_sum(folder: Path) -> None:
    song, tune = stems_folder(folder)
    parts = [song.read(stem)[0] for stem in song.stems]
    assert torch.equal(song.mixture()[0], parts[0] + parts[1])
    assert torch.equal(song.mixture(["bass"])[0], parts[0])
    assert torch.equal(tune.mixture()[0], tune.read("mixture")[0])
    assert torch.equal(tune.mixture(["bass"])[0], tune.read("bass")[0])
    write(folder / "song" / "drums.flac.wav", 0, channels=1)
    with pytest.raises(ValueError, match=r"^song: got stems of \[\(1, 4000, 8000\), \(2, "):
        song.mixture()


def test_stems_that_are_not_there(folder: Path) -> None:
    song = stems_folder(folder)[0]
    with pytest.raises(ValueError, match=r"^song: got no stem vocals, expected one of bass, drums"):
        song.read("vocals")
    (folder / "song" / "bass.flac").touch()
    with pytest.raises(ValueError, match=r"bass.wav: got a second file of the stem bass, "):
        stems_folder(folder)
    with pytest.raises(ValueError, match="no such folder"):
        stems_folder(folder / "nowhere")


@pytest.mark.parametrize("content", [b"", b"This is no audio."])
def test_files_that_are_no_audio(folder: Path, content: bytes) -> None:
    (folder / "song" / "bass.wav").write_bytes(content)
    with pytest.raises(ValueError, match="got no readable audio") as caught:
        stems_folder(folder)[0].read("bass")
    assert str(folder / "song" / "bass.wav") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_are_pieces_of_all_stems_at_once(folder: Path) -> None:
    song = stems_folder(folder)[0]
    frames = stem_frames(song, song.stems, RATE, 100)
    assert frames.shape == (FRAMES, 2, 100)
    whole = torch.stack([song.read(stem)[0].mean(0) for stem in song.stems])
    windows = whole.unfold(1, 100, 1).transpose(0, 1)
    starts = torch.tensor([int((windows[:, 0, 0] == f[0, 0]).nonzero()[0, 0]) for f in frames])
    assert torch.equal(frames, windows[starts])
    # Uniform on the whole track: the mean, within four standard errors.
    last = TIME - 100
    assert abs(starts.double().mean() / last - 0.5) < 4 / np.sqrt(12 * FRAMES)
    assert torch.equal(stem_frames(song, ["bass"], RATE, 100), frames[:, :1])
    assert not torch.equal(stem_frames(song, ["bass"], RATE, 100, seed=1), frames[:, :1])


def test_frames_are_resampled(folder: Path) -> None:
    song = stems_folder(folder)[0]
    frames = stem_frames(song, ["bass"], 4_000, 2_000)
    expected = load_audio(folder / "song" / "bass.wav", 4_000).samples
    assert torch.equal(frames, expected.expand(FRAMES, 1, -1))  # a single place for them


def test_silent_frames_are_kept() -> None:
    silent = Track("rest", "test", {"bass": lambda: (torch.zeros(2, TIME), RATE)})
    assert torch.equal(stem_frames(silent, ["bass"], RATE, 10), torch.zeros(FRAMES, 1, 10))


def test_frames_that_do_not_fit(folder: Path) -> None:
    song = stems_folder(folder)[0]
    with pytest.raises(ValueError, match=r"got stems of \[4000\] .* at least a frame, 4001$"):
        stem_frames(song, song.stems, RATE, TIME + 1)
    write(folder / "song" / "bass.wav", 0, time=TIME - 1)
    with pytest.raises(ValueError, match=r"got stems of \[3999, 4000\] audio samples at 8000 Hz"):
        stem_frames(song, song.stems, RATE, 10)


def test_names_that_two_tracks_have(tmp_path: Path) -> None:
    for seed, name in enumerate(("a/song", "b/song", "train/tune", "test/tune", "only")):
        write(tmp_path / name / "bass.wav", seed)
    tracks = {track.path: track for track in stems_folder(tmp_path)}
    assert [(path, track.name) for path, track in tracks.items()] == [
        ("a/song", "a/song"),
        ("b/song", "b/song"),
        ("only", "only"),
        ("test/tune", "test/tune"),
        ("train/tune", "train/tune"),
    ]
    assert (tracks["test/tune"].subset, tracks["train/tune"].subset) == ("test", "train")


def test_which_reference_is_whose(tmp_path: Path) -> None:
    for root, names in (
        ("known", ("a/song", "b/song", "train/tune", "u\u0308bung")),
        ("guess", ("b/song", "tune", "\u00fcbung", "none")),
        ("flat", ("song",)),
    ):
        for name in names:
            write(tmp_path / root / name / "bass.wav", 0)
    known = stems_folder(tmp_path / "known")

    def matched(folder: str) -> dict[str, str | None]:
        tracks = stems_folder(tmp_path / folder)
        found = {track.path: reference_of(track, known) for track in tracks}
        return {path: track and track.path for path, track in found.items()}

    assert matched("guess") == {
        "b/song": "b/song",
        "none": None,
        "tune": "train/tune",
        "\u00fcbung": "u\u0308bung",
    }
    assert matched("flat") == {"song": None}  # of which album?
    assert matched("known") == {track.path: track.path for track in known}


def test_a_single_track_is_called_after_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "real" / "bass.wav", 0)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("real", "link"):
        (track,) = stems_folder(tmp_path / name)
        assert (track.name, track.path) == (name, name)
    with contextlib.chdir(tmp_path / "real"):
        (track,) = stems_folder(".")
        assert track.name == "real"


def test_capitals_in_names_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "song" / "Bass.WAV", 0)
    write(tmp_path / "song" / "DRUMS.wav", 1)
    write(tmp_path / "song" / "Mixture.wav", 2)
    write(tmp_path / "song" / "draws" / "Bass_01.wav", 3)
    (song,) = stems_folder(tmp_path)
    assert song.stems == ["bass", "drums"]
    assert torch.equal(song.read("BASS")[0], song.read("bass")[0])
    assert len(song.draws["bass"]) == 1
    write(tmp_path / "song" / "bass.wav", 4)
    with pytest.raises(ValueError, match=r"a second file of the stem bass, beside Bass\.WAV"):
        stems_folder(tmp_path)
