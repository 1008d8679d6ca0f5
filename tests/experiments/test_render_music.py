"""Music from scores: how they are read and split, and that runs go on; one is really played."""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import render_music as script
import soundfile
from rendering import levels, parts, scores, singing

from pyro_sep.cli.program import run
from pyro_sep.data.tracks import stems_folder

mido = pytest.importorskip("mido")

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
OPENMSX = Path("usr/share/games/openttd/baseset/openmsx")
RATE = 44_100
SECONDS = 5.0  # of an excerpt
BASS, DRUMS, TUNE, CHORDS = 0, 9, 1, 2  # channels
PROGRAMS = {BASS: 33, TUNE: 65, CHORDS: 0}


def score(seed: int = 0, seconds: float = 30.0, programs: dict[int, int] = PROGRAMS) -> Any:
    """Bass and drums twice a second, chords every second, and a tune of random steps."""
    rng = np.random.default_rng(seed)
    file = mido.MidiFile(type=1, ticks_per_beat=480)  # 960 ticks a second
    for channel, beat, low in (
        (BASS, 480, 36),
        (DRUMS, 480, 38),
        (TUNE, 240, 60),
        (CHORDS, 960, 48),
    ):
        track = mido.MidiTrack()
        if channel in programs:
            track.append(mido.Message("program_change", channel=channel, program=programs[channel]))
        track.append(mido.Message("control_change", channel=channel, control=7, value=90))
        for _ in range(int(seconds * 960 / beat)):
            step = int(rng.integers(12)) if channel == TUNE else 0
            pitches = [low + step + third for third in ((0, 4, 7) if channel == CHORDS else (0,))]
            for kind, time in (("note_on", 0), ("note_off", beat)):
                for index, pitch in enumerate(pitches):
                    track.append(
                        mido.Message(kind, channel=channel, note=pitch, time=0 if index else time)
                    )
        file.tracks.append(track)
    return file


def song(file: Any, tmp_path: Path, title: str = "a_little-tune") -> scores.Song:
    path = tmp_path / "written.mid"
    file.save(path)
    return scores.Song("openttd-openmsx", f"{title}.mid", title, path.read_bytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four songs, as a package that is unpacked."""
    (tmp_path / "root" / OPENMSX).mkdir(parents=True)
    for seed in range(4):
        score(seed).save(tmp_path / "root" / OPENMSX / f"song_{seed}.mid")
    return tmp_path / "root"


def noise(midi: Any, soundfont: Path, seconds: float, scratch: Path) -> np.ndarray:
    """In place of a synthesiser: noise that is a function of the score alone."""
    seed = sum(message.note for message in midi.tracks[0] if message.type == "note_on")
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * RATE), 2))


@pytest.fixture
def render(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script with noise for a synthesiser."""
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(script, "synthesise", noise)
    soundfont = tmp_path / "font.sf2"
    soundfont.write_bytes(b"RIFF\0\0\0\0sfbk")

    def call(out: Path, **options: Any) -> None:
        given = {"tracks": 4, "test": 1, "vocals": "choir", "seconds": SECONDS} | options
        script.main(root=root, soundfont=soundfont, out=out, **given)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_times_follow_the_tempo(tmp_path: Path) -> None:
    message = mido.Message
    melody = [
        mido.MetaMessage("channel_prefix", channel=3),  # has a channel, but is no event
        message("program_change", channel=3, program=40),
        message("note_on", channel=3, note=60, velocity=70),
        message("note_on", channel=3, note=60, velocity=0, time=960),
        message("program_change", channel=3, program=41),
        message("note_on", channel=3, note=62, velocity=80),  # never ends
    ]
    tempo = [mido.MetaMessage("set_tempo", tempo=1_000_000, time=480)]
    file = mido.MidiFile(
        type=1, ticks_per_beat=480, tracks=[mido.MidiTrack(tempo), mido.MidiTrack(melody)]
    )
    read = song(file, tmp_path)
    # Half a second to the beat where the tempo halves, a second from there.
    assert read.notes.tolist() == [
        (0, 1.5, 3, 60, 70, 40),
        (1.5, 1.5 + scores.HELD, 3, 62, 80, 41),
    ]
    assert [kind for _, event in read.events if (kind := event.type) != "note_on"] == [
        "program_change",
        "program_change",
    ]
    assert read.name == "OpenMSX - A Little Tune"


def test_what_is_no_score_is_named() -> None:
    with pytest.raises(ValueError, match=r"^tune.mid: got no MIDI in tune \("):
        _ = scores.Song("openttd-openmsx", "tune.mid", "tune", b"MThd and then nothing").notes


def test_lines_become_stems(tmp_path: Path) -> None:
    notes = song(score(), tmp_path).notes
    excerpt = parts.split(notes, 5.0, SECONDS)
    assert excerpt is not None
    assert (excerpt.start, excerpt.stop, excerpt.singer) == (5.0, 10.0, TUNE)
    channels = {stem: set(line.channel) for stem, line in excerpt.notes.items()}
    assert channels == {"bass": {BASS}, "drums": {DRUMS}, "other": {CHORDS}, "vocals": {TUNE}}
    inside = (notes.on < 10) & (notes.off > 5)
    assert sum(map(len, excerpt.notes.values())) == inside.sum()


def test_the_lowest_line_is_the_bass_of_a_song_without_one(tmp_path: Path) -> None:
    excerpt = parts.split(song(score(programs=PROGRAMS | {BASS: 0}), tmp_path).notes, 0.0, SECONDS)
    assert excerpt is not None
    assert set(excerpt.notes["bass"].channel) == {BASS}


@pytest.mark.parametrize("missing", [DRUMS, TUNE, CHORDS])
def test_an_excerpt_has_all_stems(missing: int, tmp_path: Path) -> None:
    notes = song(score(), tmp_path).notes
    assert parts.split(notes[notes.channel != missing], 0.0, SECONDS) is None
    assert parts.split(notes[:10], 0.0, SECONDS) is None


def test_nobody_sings_chords(tmp_path: Path) -> None:
    notes = song(score(), tmp_path).notes
    line, chords = notes[notes.channel == TUNE], notes[notes.channel == CHORDS]
    choir, horn, piano = (parts.song_likeness(line, program, 0.0, 30.0) for program in (52, 60, 0))
    assert choir > horn > piano > 0
    assert parts.song_likeness(chords, 52, 0.0, 30.0) == 0


def test_excerpts_neither_overlap_nor_repeat(tmp_path: Path) -> None:
    found = parts.excerpts(song(score(), tmp_path), SECONDS)
    starts = [excerpt.start for excerpt in found]
    assert sorted(starts) == [0.0, 5.0, 10.0, 15.0, 20.0]
    fitness = [excerpt.fitness for excerpt in found]
    assert fitness == sorted(fitness, reverse=True)
    file = score(seconds=5.0)
    file.tracks = [track * 6 for track in file.tracks]  # the same bars again
    assert len(parts.excerpts(song(file, tmp_path), SECONDS)) == 1


def test_an_excerpt_sounds_as_in_its_song(tmp_path: Path) -> None:
    whole = song(score(), tmp_path)
    excerpt = parts.split(whole.notes, 10.0, SECONDS)
    assert excerpt is not None
    vocals = excerpt.notes["vocals"]
    file = scores.as_midi(whole, vocals, 9.0, excerpt.stop)
    heard = song(file, tmp_path)
    assert heard.notes.on == pytest.approx(vocals.on - 9.0)
    for field in ("pitch", "velocity", "program"):
        assert heard.notes[field].tolist() == vocals[field].tolist()
    volumes = [event for _, event in heard.events if event.type == "control_change"]
    assert {event.channel for event in volumes} == {BASS, DRUMS, TUNE, CHORDS}
    assert file.length == pytest.approx(1 + SECONDS + 1)  # and a second to fade
    choir = song(scores.as_midi(whole, vocals, 9.0, excerpt.stop, (TUNE, 52)), tmp_path)
    assert set(choir.notes.program) == {52}


def test_songs_are_found_once(root: Path, tmp_path: Path) -> None:
    data = song(score(9), tmp_path).data
    lump = struct.pack("<ii8s", 12, len(data), b"D_E1M1") + struct.pack("<ii8s", 0, 4, b"THINGS")
    doom = root / "freedoom" / "usr/share/games/doom"  # unpacked into a folder of its own
    doom.mkdir(parents=True)
    (doom / "freedoom1.wad").write_bytes(
        struct.pack("<4sii", b"IWAD", 2, 12 + len(data)) + data + lump
    )
    (root / OPENMSX / "song_9.mid").write_bytes(data)
    found = scores.find_songs(root, ["freedoom", "openttd-openmsx"])
    names = [f"OpenMSX - Song {seed}" for seed in range(4)]
    assert [song.name for song in found] == ["Freedoom - freedoom1 E1M1", *names]
    with pytest.raises(ValueError, match="got no scores, expected those of planetblupi-music-midi"):
        scores.find_songs(root, ["planetblupi-music-midi"])


def test_training_and_test_songs_are_others(root: Path) -> None:
    songs = script.in_turn(scores.find_songs(root, ["openttd-openmsx"]), seed=3)
    plans = script.plan(songs, tracks=12, test=4, seconds=SECONDS, vocals="mix")
    assert [plan.subset for plan in plans].count("test") == 4
    assert len({plan.name for plan in plans}) == len(plans) == 12
    subsets = {(plan.song.title, plan.subset) for plan in plans}
    assert len(subsets) == 4
    assert [plan.turn for plan in plans] == sorted(plan.turn for plan in plans)
    singing = [plan.sings for plan in plans if plan.subset == "train"]
    assert singing == [True, True, False, True, True, False, True, True]
    assert not set(script.SINGERS["train"]) & set(script.SINGERS["test"])


def test_stems_add_up_to_the_mixture(render: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(out)
    tracks = stems_folder(out)
    assert sorted(track.subset for track in tracks) == ["test", "train", "train", "train"]
    assert sorted(path.name for path in out.iterdir()) == ["metadata.json", "test", "train"]
    metadata = json.loads((out / "metadata.json").read_text())
    entries = {entry["name"]: entry for entry in metadata["mixtures"]}
    assert metadata["settings"]["seconds"] == SECONDS
    for track in tracks:
        folder = out / track.subset / track.name
        audio = {
            stem: soundfile.read(folder / f"{stem}.wav", dtype="int16") for stem in track.readers
        }
        assert {(rate, *samples.shape) for samples, rate in audio.values()} == {(RATE, 220_500, 2)}
        mixture = audio.pop("mixture")[0]
        assert sorted(audio) == sorted(parts.STEMS)
        assert np.array_equal(sum(samples for samples, _ in audio.values()), mixture)
        assert np.abs(mixture / 32_768).max() == pytest.approx(levels.PEAK, abs=1e-3)
        entry = entries.pop(track.name)
        assert (entry["licence"], entry["subset"]) == ("GPL-2.0", track.subset)
        assert entry["programs"] == {"bass": [34], "drums": [1], "other": [1], "vocals": [66]}
    assert not entries


def test_a_run_that_was_cut_off_goes_on(
    render: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(tmp_path / "whole")
    calls = 0

    def cut_off(*given: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 10:  # within the third track
            raise KeyboardInterrupt
        return noise(*given)

    monkeypatch.setattr(script, "synthesise", cut_off)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        render(out)
    assert len(contents(out)) == 2 * 5 + 1
    render(out)
    assert calls == 10 + 2 * 4
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"metadata\.json: got figures of .* give another --out"):
        render(out, seed=1)


def test_a_track_whose_folder_did_not_appear_is_made_again(
    render: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    render(out)
    before = contents(out)
    shutil.rmtree(next((out / "train").iterdir()))
    render(out)
    assert contents(out) == before


def test_tracks_of_others_are_left_alone(render: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "out" / "test" / "Falcon 69").mkdir(parents=True)
    with pytest.raises(ValueError, match="Falcon 69: got a track that is not in metadata"):
        render(tmp_path / "out")


def test_an_excerpt_with_a_silent_stem_is_left_out(
    render: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    render(tmp_path / "whole")
    silent: list[int] = []

    def without_drums(midi: Any, *given: Any) -> np.ndarray:
        drums = any(m.type == "note_on" and m.channel == DRUMS for m in midi.tracks[0])
        silent.append(drums)
        return noise(midi, *given) * (0 if drums and sum(silent) == 2 else 1)

    monkeypatch.setattr(script, "synthesise", without_drums)
    out = tmp_path / "out"
    capsys.readouterr()
    render(out)
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if "left out" in line]
    name, _, reason = line.partition(": ")
    assert reason == "its drums stem is silent; left out"
    assert printed[-1] == f"3 tracks, 0.2 min of music. Results: {out}"
    there, whole = contents(out), contents(tmp_path / "whole")
    missing = {path for path in whole if name in Path(path).parts}
    assert set(there) == set(whole) - missing
    assert all(there[path] == whole[path] for path in there if path != "metadata.json")
    assert name not in there["metadata.json"].decode()


def test_what_cannot_be_heard_is_silent() -> None:
    rng = np.random.default_rng(0)
    audio = {stem: 0.1 * rng.standard_normal((RATE, 2)) for stem in parts.STEMS}
    assert levels.active_level(audio["bass"]) == pytest.approx(-20, abs=0.1)
    for wrong, reason in ((0.0, "silent"), (np.nan, "not finite")):
        with pytest.raises(levels.SilentStemError, match=f"its bass stem is {reason}"):
            levels.mix(audio | {"bass": wrong * audio["bass"]}, rng)
    once = np.zeros((10 * RATE, 1))
    once[: levels.BLOCK] = 1.0
    click = np.zeros((10 * RATE, 2))
    click[RATE] = 1.0  # whose peak leaves no room for others
    with pytest.raises(levels.SilentStemError, match="its bass stem is nearly silent"):
        levels.mix({"bass": once * rng.standard_normal((10 * RATE, 2)), "drums": click}, rng)


def test_a_melody_has_one_note_at_a_time() -> None:
    rows = [
        (10.0, 11.0, 60),
        (10.01, 11.0, 64),
        (10.5, 12.0, 62),
        (10.6, 10.8, 50),
        (13, 13.01, 60),
    ]
    notes = np.array([(on, off, 1, pitch, 90, 0) for on, off, pitch in rows], scores.NOTE)
    line = singing.melody(notes.view(np.recarray), 10.0, 5.0)
    assert [(note.on, note.off, note.pitch) for note in line] == [(0, 0.5, 60), (0.5, 2.0, 62)]


@pytest.mark.parametrize("length", [10, 30, 200])
def test_a_vowel_is_as_long_as_its_note(length: int) -> None:
    syllable = singing.Syllable(np.ones((40, 3)), np.ones((40, 3)), 10)
    frames = singing.frames_of(syllable, 5, length)
    assert len(frames) == 5 + length
    assert (np.diff(frames) >= 0).all()
    assert (frames[0], frames[5], frames[-1]) == (5, 10, 39)


def test_a_voice_sings_in_tune() -> None:
    pytest.importorskip("pyworld")
    time = np.arange(RATE // 2) / RATE
    vowel = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 20)) / 10
    rng = np.random.default_rng(0)
    heard = singing.analyse(vowel + 1e-5 * rng.standard_normal(len(vowel)))
    assert heard is not None
    syllable, pitch = heard
    assert pitch == pytest.approx(150, rel=0.01)
    voice = singing.Voice([syllable], 50.2)
    notes = np.array([(3.0, 4.0, 1, 69, 100, 0)], scores.NOTE).view(np.recarray)
    sung = singing.sing(voice, notes, 3.0, 1.5, rng)
    assert sung.shape == (66_150, 2)
    power = np.abs(np.fft.rfft(sung[:RATE].mean(1))).argmax()  # Hz
    assert power == pytest.approx(220, rel=0.03)  # an octave down, the nearest to the voice
    assert np.square(sung[:RATE]).mean() > 100 * np.square(sung[-RATE // 10 :]).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocals", "hum"], "vocals: got 'hum', expected one of mix, sing, choir"),
        (["--packages", "doom"], "packages: got 'doom', expected some of openttd-openmsx, "),
        (["--tracks", "2", "--test", "3"], "test: got 3, expected at most the 2 of --tracks"),
        (["--soundfont", "nowhere.sf2"], "nowhere.sf2: expected a soundfont; apt-get install "),
        (["--soundfont", __file__], f"{__file__}: expected a soundfont; apt-get install "),
        (["--packages", "freedoom"], "root: got no scores, expected those of freedoom; install "),
        (["--vocals", "mix"], "root: got no syllables in 'it', expected those of the Debian "),
        (["no fluidsynth"], "fluidsynth: not found, expected it on the path; apt-get install "),
        (["no mido"], "scores: got no mido ("),
        (["--vocals", "sing", "no pyworld"], "pyworld: cannot be imported ("),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    absent = [option.removeprefix("no ") for option in options if option.startswith("no ")]
    monkeypatch.setattr(shutil, "which", lambda name: None if name in absent else name)
    monkeypatch.setitem(sys.modules, "pyworld", mido)  # only whether it is there
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "font.sf2").write_bytes(b"RIFF\0\0\0\0sfbk")
    monkeypatch.chdir(tmp_path)
    given = [option for option in options if not option.startswith("no ")]
    words = ["--root", "root", "--soundfont", "font.sf2", "--vocals", "choir", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["render_music.py", *words, *given])
    with pytest.raises(SystemExit, match="2"):
        run(script.main)
    error = capsys.readouterr().err
    assert error.startswith(f"pyro-sep: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fluidsynth_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fluidsynth"
    program.write_text("#!/bin/sh\necho 'error: no room' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match=r"^fluidsynth: failed \(error: no room\), expected audio"):
        script.synthesise(score(), SOUNDFONT, 1.0, tmp_path)


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.exists(),
    reason="needs fluidsynth and fluid-soundfont-gm",
)
def test_fluidsynth_plays_it(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script.main(root=root, out=out, tracks=1, test=0, seconds=SECONDS, vocals="choir")
    (track,) = stems_folder(out)
    audio = {stem: track.read(stem)[0].mean(0).numpy() for stem in parts.STEMS}
    brightness = {}
    for stem, samples in audio.items():
        power = np.abs(np.fft.rfft(samples)) ** 2
        brightness[stem] = (power * np.arange(len(power))).sum() / power.sum() / SECONDS  # Hz
        assert np.square(samples).mean() > 1e-4
    assert min(brightness, key=lambda stem: brightness[stem]) == "bass"
    assert max(brightness, key=lambda stem: brightness[stem]) == "drums"
    # A bass that plays the C of 65.4 Hz alone: its power is at multiples.
    power = np.abs(np.fft.rfft(audio["bass"])) ** 2
    hertz = np.arange(len(power)) / SECONDS
    overtone = np.round(hertz / 65.41)
    near = (overtone > 0) & (np.abs(hertz - 65.41 * overtone) < 4)
    assert power[near].sum() > 0.9 * power.sum()
