"""Isolated sources of records: what is made of small stand-ins for them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from music import needs_ffmpeg

pytest.importorskip("mido")

import records as script
from rendering import ffmpeg, sampler

from pyro_sep.data.tracks import stems_folder

RATE = ffmpeg.RATE


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("VOX LEAD", "vocals"),
        ("BGVOX BUILD", "vocals"),
        ("K & SN", "drums"),
        ("GLITCH HH", "drums"),
        ("BIG BEAT", "drums"),
        ("SY BASS", "bass"),
        ("PAD + BASS", None),
        ("MASTER", None),
        ("MINILOGUE SYNTH", "other"),
        ("SINE", "other"),
        ("TRANSISTION", "other"),
    ],
)
def test_what_a_remixed_stem_is_by_its_name(name: str, stem: str | None) -> None:
    assert script.kind_of(name, script.REMIXED) == stem


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("loop_amen", None),
        ("loop_breakbeat", "drums"),
        ("bd_808", "drums"),
        ("elec_hi_snare", "drums"),
        ("elec_bell", None),
        ("bass_hit_c", "bass"),
        ("guit_em9", "guitar"),
        ("ambi_choir", None),
    ],
)
def test_what_a_sample_is_by_its_name(name: str, stem: str | None) -> None:
    assert script.kind_of(name, script.SINGLE) == stem


def notes(*rows: tuple[float, float, float, float]) -> np.recarray:
    """On, off, pitch and velocity."""
    made = [(on, off, 0, pitch, velocity, 33) for on, off, pitch, velocity in rows]
    return np.array(made, script.find_songs.__globals__["NOTE"]).view(np.recarray)


@needs_ffmpeg
def test_a_note_that_was_not_recorded_is_the_nearest_one_faster(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "A2.wav", tone(110.0), RATE)
    soundfile.write(tmp_path / "README.md", [0.0], RATE, format="WAV")
    bass = sampler.pitched(tmp_path)
    played = sampler.play(
        bass, notes((10.5, 11.0, 48, 127)), 10.0, 2.0, True, np.random.default_rng(0)
    )
    assert len(played) == 2 * RATE
    assert not played[: RATE // 2].any()
    assert not played[RATE + sampler.RELEASE + 1 :].any()
    spectrum = np.abs(np.fft.rfft(played[RATE // 2 : RATE]))
    assert np.argmax(spectrum) * 2 == pytest.approx(110 * 2 ** (3 / 12), abs=2)


@pytest.mark.parametrize(
    ("name", "note"), [("A4", 69), ("As1", 34), ("C4", 60), ("H2", None), ("A", None)]
)
def test_notes_by_name(name: str, note: int | None) -> None:
    assert sampler._note(name) == note


def write_kit(folder: Path) -> None:
    """Kick, two velocities of a snare, and a hat, each a tone of its own."""
    folder.mkdir(parents=True)
    parts = {"kick": 60.0, "soft": 200.0, "hard": 400.0, "hat": 5_000.0}
    for name, hertz in parts.items():
        soundfile.write(folder / f"{name}.wav", tone(hertz, 0.2), RATE)
    layers = (
        "<layer><filename>soft.wav</filename><min>0</min><max>0.5</max></layer>"
        "<layer><filename>hard.wav</filename><min>0.5</min><max>1</max></layer>"
    )
    (folder / "drumkit.xml").write_text(
        '<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit"><instrumentList>'
        "<instrument><name>Kick 1</name><filename>kick.wav</filename></instrument>"
        f"<instrument><name>Snare</name>{layers}</instrument>"
        "<instrument><name>Closed HH</name><filename>hat.wav</filename></instrument>"
        "<instrument><name>Vuvuzela</name><filename>hat.wav</filename></instrument>"
        "</instrumentList></drumkit_info>"
    )


@needs_ffmpeg
@pytest.mark.parametrize(
    ("pitch", "velocity", "hertz"),
    [(36, 127, 60), (38, 30, 200), (38, 120, 400), (42, 127, 5_000), (46, 127, 5_000)],
)
def test_drums_of_a_kit(tmp_path: Path, pitch: int, velocity: int, hertz: float) -> None:
    write_kit(tmp_path / sampler.KITS / "small")
    (kit,) = sampler.drum_kits(tmp_path).values()
    hit = notes((0.0, 0.1, pitch, velocity))
    played = sampler.play(kit, hit, 0.0, 0.2, False, np.random.default_rng(0))
    assert np.argmax(np.abs(np.fft.rfft(played))) * 5 == pytest.approx(hertz, abs=5)
    assert np.abs(played).max() == pytest.approx(0.3 * velocity / 127, rel=0.02)


@needs_ffmpeg
def test_a_drum_that_the_kit_lacks_is_left_out(tmp_path: Path) -> None:
    write_kit(tmp_path / sampler.KITS / "small")
    (kit,) = sampler.drum_kits(tmp_path).values()
    hit = notes((0.0, 0.1, 56, 127))
    assert not sampler.play(kit, hit, 0.0, 0.2, False, np.random.default_rng(0)).any()


@needs_ffmpeg
def test_processed_audio_keeps_its_length_and_level() -> None:
    samples = tone(440.0) + 0.1 * np.random.default_rng(0).standard_normal(RATE)
    for seed in range(8):  # every effect is among these
        heard = ffmpeg.processed(samples, np.random.default_rng(seed))
        again = ffmpeg.processed(samples, np.random.default_rng(seed))
        assert len(heard) == len(samples)
        assert np.array_equal(heard, again)
        assert np.square(heard).mean() == pytest.approx(np.square(samples).mean())
        assert not np.allclose(heard, samples, atol=1e-2)


@needs_ffmpeg
def test_a_master_begins_with_its_sum_and_is_limited() -> None:
    samples = np.zeros(RATE)
    samples[RATE // 2 :: 2_000] = 3.0
    heard = ffmpeg.mastered(samples)
    assert len(heard) == len(samples)
    assert np.abs(heard).max() <= 0.95
    assert abs(int(np.argmax(np.abs(heard) > 0.1)) - RATE // 2) < 30


@needs_ffmpeg
@pytest.mark.parametrize("semitones", [-2, 1])
def test_transposed_audio_is_faster_by_as_much(semitones: int) -> None:
    heard, speed = ffmpeg.transposed(tone(440.0, 2.0), semitones), 2 ** (semitones / 12)
    assert len(heard) == pytest.approx(2 * RATE / speed, abs=2)
    spectrum = np.abs(np.fft.rfft(heard[:RATE]))
    assert np.argmax(spectrum) == pytest.approx(440 * speed, abs=1)


@needs_ffmpeg
def test_broken_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"a\.wav: ffmpeg failed"):
        ffmpeg.decode(tmp_path / "a.wav")


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """Four songs of metal, one of pop of 12 s, and three samples."""
    root = tmp_path / "unpacked"
    for song in ("a", "b", "c", script.METAL_TEST):
        (root / script.METAL / song).mkdir(parents=True)
        for name, hertz in (("guitar", 300.0), ("song", 90.0)):
            soundfile.write(root / script.METAL / song / f"{name}.ogg", tone(hertz), RATE)
    (root / script.LOOPS).mkdir(parents=True)
    for name in ("loop_breakbeat", "bass_hit_c", "loop_amen"):
        soundfile.write(root / script.LOOPS / f"{name}.flac", tone(500.0), RATE)
    song = tmp_path / "remixed" / "src" / "1.Helium"
    song.mkdir(parents=True)
    for name, hertz in (("VOX LEAD", 200.0), ("KICK", 80.0), ("HATS", 4_000.0)):
        soundfile.write(tmp_path / "x.wav", tone(hertz, 12.0), RATE)
        target = song / f"1.Helium_Stem_{name}_mobile.m4a"
        command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "x.wav"), str(target)]
        subprocess.run(command, check=True)
    withheld = tmp_path / "remixed" / "src" / "2.Lithium"
    withheld.mkdir()
    (withheld / "2.Lithium_Stem_KICK_mobile.m4a").write_text("is not read")
    return tmp_path


def call(material: Path, out: Path) -> None:
    places = {"root": material / "unpacked", "remixed": material / "remixed"}
    script.main(**places, only="metal,remixed,loops,mixes", out=out)


@needs_ffmpeg
def test_folders_of_sources(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = material / "out"
    call(material, out)
    tracks = {track.path: sorted(track.stems) for track in stems_folder(out)}
    assert tracks["train/metal a"] == tracks["train/metal a (processed)"] == ["guitar", "rest"]
    assert tracks["test/metal mutilated_mime"] == ["guitar", "rest"]
    assert tracks["train/metal b left"] == tracks["train/metal b right"] == ["guitar"]
    assert tracks["speeds/metal b right +1"] == tracks["train/metal b left (processed)"]
    assert tracks["speeds/metal a -2"] == tracks["speeds/metal c +1"] == ["guitar", "rest"]
    assert not [path for path in tracks if path.startswith("speeds/metal mutilated")]
    assert not [*out.glob("speeds/*/mixture.flac")]
    assert tracks["train/remixed Helium"] == ["drums", "vocals"]
    assert tracks["train/loops bass"] == ["bass"]
    assert tracks["mixes/remixed Helium"] == ["drums", "vocals"]
    assert not [path for path in tracks if "Lithium" in path or "lot" in path]
    licences = (out / "LICENCES.md").read_text()
    assert (
        "| metal | Muldjord (El Senator), fretsonfire-songs-muldjord | CC BY-SA 3.0 |" in licences
    )
    assert "Minutes to train on: bass 0, drums 0" in capsys.readouterr().out

    test = {p.stem: soundfile.read(p)[0] for p in (out / "test/metal mutilated_mime").iterdir()}
    assert np.allclose(test["mixture"], test["guitar"] + test["rest"], atol=1e-4)
    assert test["mixture"].shape[1] == 2
    drums, _ = soundfile.read(out / "train/remixed Helium/drums.flac")
    peaks = np.argsort(np.abs(np.fft.rfft(drums[:RATE])))[-2:]
    assert sorted(peaks.tolist()) == pytest.approx([80, 4_000], abs=2)

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    gone = out / "train/metal b"
    kept = {path.name: path.read_bytes() for path in gone.iterdir()}
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    call(material, out)  # it goes on where it was, to the same audio
    assert {path.name: path.read_bytes() for path in gone.iterdir()} == kept
    same = {path for path in files if path.parent != gone}
    assert {path: path.stat().st_mtime_ns for path in same} == {path: files[path] for path in same}


@needs_ffmpeg
@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("metal", "got no songs in .*expected those of the Debian package fretsonfire"),
        ("loops", "got no samples in .*sonic-pi-samples"),
        ("remixed", "remixed: got none, expected a copy of everythingisremixed"),
        ("electric", "bass: got none, expected a folder of recorded notes"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, only: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        script.main(root=tmp_path, only=only, out=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_list_reads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(show=True, out=tmp_path / "out")
    assert "metal: Muldjord" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
