import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from music import RATE, excerpt, needs_ffmpeg, write_tracks

from pyro_sep.audio.io import load_audio
from pyro_sep.data.musdb import STEMS, MusdbSource, musdb_tracks
from pyro_sep.data.source import open_source
from pyro_sep.data.tracks import MIXTURE, stem_frames

pytestmark = needs_ffmpeg
SECOND = 16_000

PACKAGES = ("musdb", "stempeg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tracks(tmp_path)
    return tmp_path


@pytest.fixture
def stems(tmp_path: Path) -> Path:
    """A root with the excerpt as its only file."""
    (tmp_path / "test").mkdir()
    return Path(shutil.copy(excerpt(), tmp_path / "test"))


def test_the_excerpt_is_real_music(stems: Path) -> None:
    (track,) = musdb_tracks(stems.parent.parent)
    assert (track.name, track.subset) == ("The Easton Ellises - Falcon 69", "test")
    assert track.stems == list(STEMS)
    parts = {}
    for name in (*STEMS, MIXTURE):
        parts[name], rate = track.read(name)
        assert (parts[name].shape, parts[name].dtype, rate) == ((2, 268_288), torch.float32, RATE)
    assert parts[MIXTURE].abs().max() > 1.02  # not clipped on its way
    rest = parts[MIXTURE] - sum(parts[name] for name in STEMS)
    assert -22 < 10 * torch.log10(rest.square().sum() / parts[MIXTURE].square().sum()) < -15
    # Each stream under its own name: bass is the darkest, and the sum needs each.
    centroids = {name: centroid(parts[name].mean(0)) for name in STEMS}
    assert min(centroids, key=lambda name: centroids[name]) == "bass"
    for name in STEMS:
        assert (rest + parts[name]).square().sum() > 2 * rest.square().sum()


def centroid(samples: torch.Tensor) -> float:
    power = torch.fft.rfft(samples).abs().square()
    return float((power * torch.arange(len(power))).sum() / power.sum())


def test_a_single_file_is_a_root(stems: Path) -> None:
    (track,) = musdb_tracks(stems)
    (same,) = musdb_tracks(stems.parent.parent)
    assert (track.name, track.subset) == (same.name, same.subset)
    assert torch.equal(track.read("bass")[0], same.read("bass")[0])


def test_frames_of_the_excerpt(stems: Path) -> None:
    (track,) = musdb_tracks(stems)
    frames = stem_frames(track, (*STEMS, MIXTURE), SECOND, SECOND)
    assert frames.shape == (150, 5, SECOND)
    held_out = MusdbSource(stems, "vocals", SECOND, 2_048).held_out(32, 2_048)
    assert torch.equal(held_out, frames[:32, 2, :2_048])  # the vocals never rest


def test_wav_folders(root: Path) -> None:
    tracks = musdb_tracks(root)
    assert [(t.name, t.subset) for t in tracks] == [("a", "train"), ("b", "train"), ("c", "test")]
    for track in tracks:
        assert track.stems == list(STEMS)
        samples, rate = track.read("drums")
        path = root / track.subset / track.name / "drums.wav"
        assert rate == RATE
        assert np.array_equal(samples.T, soundfile.read(path, dtype="float32")[0])
        mixture, summed = track.mixture()[0], track.mixture(STEMS)[0]
        assert (mixture - summed).abs().max() < 5 / 2**15  # five roundings to 16 bits


def test_training_frames_are_heard_and_fixed(root: Path) -> None:
    source = open_source("musdb:bass", SECOND, 256, root)
    assert isinstance(source, MusdbSource)
    assert (source.name, source.sample_rate) == ("bass", SECOND)
    crops = source.draw(50, 256, torch.Generator().manual_seed(0))
    whole = load_audio(root / "train" / "a" / "bass.wav", SECOND).samples  # that of b is silent
    for crop in crops:
        places = (whole == crop[0]).nonzero()[:, 0].tolist()
        assert any(torch.equal(whole[i : i + 256], crop) for i in places)
    again = MusdbSource(root, "bass", SECOND, 256)
    assert torch.equal(again.draw(50, 256, torch.Generator().manual_seed(0)), crops)
    assert not torch.equal(again.draw(50, 256, torch.Generator().manual_seed(1)), crops)


def test_held_out_frames_are_the_test_tracks(root: Path) -> None:
    source = MusdbSource(root, "drums", SECOND, 256)
    frames = source.held_out(5, 256)
    test = musdb_tracks(root)[2]
    assert torch.equal(frames, stem_frames(test, ["drums"], SECOND, SECOND)[:5, 0, :256])
    assert source.held_out(500, 256).shape == (150, 256)
    shutil.copytree(root / "train" / "a", root / "test" / "d")
    both = MusdbSource(root, "drums", SECOND, 256).held_out(5, 256)
    assert torch.equal(both[:3], frames[:3])  # three of one, two of the other
    assert not torch.isin(both[3:], frames).any()


def test_silent_or_missing_parts(root: Path) -> None:
    for subset, track in (("train", "a"), ("test", "c")):
        soundfile.write(root / subset / track / "bass.wav", np.zeros((RATE * 2, 2)), RATE)
    source = MusdbSource(root, "bass", SECOND, 256)
    assert source.held_out(5, 256).shape == (0, 256)
    with pytest.raises(ValueError, match="got no training frame of bass that is not silent"):
        source.draw(1, 256, torch.Generator())
    assert source.notes == ()
    (root / "train" / "b" / "drums.wav").unlink()
    drums = MusdbSource(root, "drums", SECOND, 256)
    assert drums.notes == ("1 of 3 tracks have no drums and are left out: b",)
    assert drums.draw(1, 256, torch.Generator()).shape == (1, 256)
    with pytest.raises(ValueError, match="time: got 16001, expected at most 16000 audio samples"):
        MusdbSource(root, "vocals", SECOND, 256).draw(1, SECOND + 1, torch.Generator())
    with pytest.raises(ValueError, match="got stem 'voice', expected one of bass, drums, vocals"):
        MusdbSource(root, "voice", SECOND, 256)


def test_roots_without_tracks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected the root of musdb18; no such folder"):
        musdb_tracks(tmp_path / "nowhere")
    (tmp_path / "train" / "song.stem.mp4").mkdir(parents=True)  # a folder, and empty
    with pytest.raises(ValueError, match=r"got no track, expected train/\*\.stem\.mp4"):
        musdb_tracks(tmp_path)
    with pytest.raises(ValueError, match="without musdb18; give its root as --musdb ROOT"):
        open_source("musdb:bass", SECOND, 256)


@pytest.mark.parametrize("content", [b"", b"This is no audio.\n"])
@pytest.mark.parametrize("name", ["song.stem.mp4", "song/bass.wav"])
def test_files_that_are_no_audio(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "test" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"got no (stems in it|readable audio of)") as caught:
        musdb_tracks(tmp_path)[0].read("bass")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_systems_put_there_is_no_track(root: Path) -> None:
    before = [(track.name, track.path) for track in musdb_tracks(root)]
    assert before == [("a", "train/a"), ("b", "train/b"), ("c", "test/c")]
    for name in ("train/._a.stem.mp4", "train/a/._bass.wav", "__MACOSX/train/x/bass.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7")
    assert [(track.name, track.path) for track in musdb_tracks(root)] == before
    shutil.copytree(root / "test" / "c", root / "train" / "c")
    names = [track.name for track in musdb_tracks(root)]
    assert names == ["a", "b", "train/c", "test/c"]


def test_a_file_that_was_cut_off(stems: Path) -> None:
    stems.write_bytes(stems.read_bytes()[:500_000])  # its index comes first: ffprobe is content
    (track,) = musdb_tracks(stems)
    with pytest.raises(ValueError, match=r"audio samples of bass, expected 268288; .* cut off"):
        track.read("bass")


def test_audio_of_nan(root: Path) -> None:
    path = root / "test" / "c" / "bass.wav"
    soundfile.write(path, np.full((RATE, 2), np.nan), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="got NaN or infinity") as caught:
        MusdbSource(root, "bass", SECOND, 256).held_out(1, 256)
    assert str(path) in str(caught.value)


def test_ffmpeg_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    tracks = {track.name: track for track in musdb_tracks(root)}
    assert tracks["a"].read("bass")[0].shape[0] == 2  # WAVs do not need it
    shutil.copy(excerpt(), root / "train" / "song.stem.mp4")
    for imported in (True, False):
        if not imported:
            for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
                monkeypatch.delitem(sys.modules, name)
        with pytest.raises(
            ValueError, match=r"song\.stem\.mp4: got no ffmpeg, expected ffmpeg and"
        ):
            musdb_tracks(root)
