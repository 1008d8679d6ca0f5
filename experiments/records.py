"""Isolated sources of real records and recorded instruments, for priors and for tests of them.

    apt-get download PACKAGE...; for deb in *.deb; do dpkg-deb -x $deb UNPACKED; done
    git clone https://github.com/ichbinsoftware/everythingisremixed REMIXED
    npm pack tonejs-instrument-bass-electric; tar xzf tonejs-instrument-bass-electric-*.tgz
    python experiments/records.py --list
    python experiments/records.py --root UNPACKED --remixed REMIXED --bass package/wav --out RECORDS

No audio is downloaded: the folders are named, and parts that are not wanted are left out by --only.

    metal       Debian's fretsonfire-songs-muldjord: four songs of a metal band, guitar and rest;
                the last one is a test track
    remixed     stems of electronic pop, summed to bass, drums, vocals and other by their names; two
                of seven songs, which tests use elsewhere, are left out
    loops       Debian's sonic-pi-samples: recorded drums, basses and guitars
    kits        drum lines of the scores of render_music.py, its training songs alone, played by the
                kits of Debian's hydrogen-drumkits and avldrums.lv2-soundfont
    electric    their bass lines, played by recorded notes of an electric bass
    mixes       mixtures of parts that training leaves out: stems of the remixed songs as they
                belong together, and of all tracks by lot

OUT/train/TRACK/STEM.flac is mono at 44.1 kHz; ``pyro-sep train --source OUT/train:bass`` takes a
stem of all tracks. Every track is there twice, once processed in pieces of 30 s as records are:
equaliser, compressor, echo, codec (--dry leaves these out). Of the metal songs, as there are few,
OUT/speeds has copies that are a semitone or two higher or lower. OUT/test/TRACK has the stems, with
both channels, and their sum, mixture.flac; OUT/mixes/MIX mono ones of held-out parts, the last
tenth of each track. OUT/LICENCES.md says whose each is. The same arguments give the same audio; a
run that was cut off continues. It needs ffmpeg; kits needs fluidsynth and ``pip install
'pyro-sep[music]'``.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import soundfile
import typer
from _common import List, Only, Out, Seed, choose
from render_music import Plan, in_turn, plan, synthesise
from rendering.ffmpeg import RATE, check_ffmpeg, decode, processed, transposed
from rendering.levels import BLOCK, PEAK, Array, active_level, decibel
from rendering.parts import STEMS
from rendering.sampler import Instrument, drum_kits, pitched, play
from rendering.scores import PACKAGES, as_midi, find_songs
from rendering.seeds import generator
from tqdm import tqdm

from pyro_sep.cli.program import run
from pyro_sep.data.source import HELD_OUT_SHARE
from pyro_sep.data.tracks import MIXTURE
from pyro_sep.storage.files import TEMPORARY, atomic_write, only_run

PIECE = 30.0  # seconds that are processed alike
SECONDS = 30.0  # of a track that is played from a score
MIX_SECONDS = 10.0
MIXES = 24  # of stems by lot
LEVEL = -20.0  # dB, of a track while it is heard, and of a stem by lot
LEVEL_SPREAD = 3.0  # dB, standard deviation
SILENT = -60.0  # dB, of a stem that is left out
TRACKS, TEST_TRACKS = 150, 50  # of the rendered music whose training songs are played
METAL = "usr/share/games/fretsonfire/data/songs/muldjord"
METAL_TEST = "mutilated_mime"
SIDES = ("left", "right")
SEMITONES = (-2, -1, 1, 2)  # by which copies of the metal songs are higher
LOOPS = "usr/share/sonic-pi/samples"
AVL = "usr/share/sounds/sf2/*_4_LV2.sf2"
WITHHELD = ("Lithium", "Rubidium")  # songs of which tests have excerpts

#: What the name of a remixed stem says it is; the first that fits. None is left out.
REMIXED: Mapping[str, str | None] = {
    r"MASTER|PAD \+ BASS": None,
    r"VOX": "vocals",
    r"DRUM|KICK|HH|HATS?\b|SNARE|\bSN\b|CLAP|TOMS?\b|BEAT|BREAK|CRASH|CYMBAL": "drums",
    r"PRC|PERC|TOPS": "drums",
    r"BASS": "bass",
    r"": "other",
}
#: The same of loops and single sounds.
SINGLE: Mapping[str, str | None] = {
    r"loop_amen|loop_(3d|drone|weirdo|electric)": None,
    r"(loop|drum|bd|sn|tabla)_|elec_(.*snare|.*kick|.*tom|cymbal)": "drums",
    r"bass_": "bass",
    r"guit_": "guitar",
    r"": None,
}


class Material(NamedTuple):
    """Where a part comes from, and how it is made."""

    title: str
    licence: str
    tracks: Callable[["Folders"], Iterator["Job"]]


class Folders(NamedTuple):
    """Where the audio is that the tracks are made from."""

    root: Path
    remixed: Path | None
    bass: Path | None
    seed: int


class Job(NamedTuple):
    """A track to be made: a function that gives its stems, all of one length.

    They are ``(time,)``, or ``(time, channel)`` of a test track and where some are ``wide``: of
    these each channel is a track of its own too. Copies that are so many ``semitones`` higher are
    made as well.
    """

    subset: str
    name: str
    stems: Callable[[], dict[str, Array]]
    semitones: tuple[int, ...] = ()
    wide: tuple[str, ...] = ()


def main(
    root: Annotated[
        Path, typer.Option(help="Where the Debian packages are installed or unpacked.")
    ] = Path("/"),
    remixed: Annotated[
        Path | None, typer.Option(help="A copy of everythingisremixed; else it is left out.")
    ] = None,
    bass: Annotated[
        Path | None, typer.Option(help="Recorded notes of a bass; else it is left out.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="No processed copies.")] = False,
    only: Only = None,
    show: List = False,
    seed: Seed = 0,
    out: Out = Path("results/records"),
) -> None:
    """Make the tracks that are not there yet."""
    wanted = choose("only", only, MATERIALS)
    folders = Folders(root, remixed, bass, seed)
    given = {"remixed": remixed is not None, "electric": bass is not None}
    wanted = [name for name in wanted if only is not None or given.get(name, True)]
    if show:
        for name in wanted:
            print(f"{name}: {MATERIALS[name].title}; {MATERIALS[name].licence}")
        return
    check_ffmpeg()
    with only_run(out):
        for name in wanted:
            if name == "mixes":
                continue
            for job in tqdm([*MATERIALS[name].tracks(folders)], name, unit="track"):
                make(job, out, seed, copies=not dry and job.subset == "train")
        write_licences(out, wanted)
        if "mixes" in wanted:
            for job in tqdm([*mixes(out, seed)], "mixes", unit="track"):
                make(job, out, seed, copies=False)
        minutes = length_by_stem(out / "train")
        told = ", ".join(f"{stem} {length:.0f}" for stem, length in minutes.items())
        print(f"Minutes to train on: {told}. Results: {out}")


def make(job: Job, out: Path, seed: int, copies: bool) -> None:
    """Write a track and its copies, those that are not there yet."""
    names = [job.name, *(f"{job.name} {side}" for side in SIDES if job.wide)]
    folders = {name: _folders(job, name, out, seed, copies) for name in names}
    if not any(folders.values()):
        return
    stems = {stem: audio for stem, audio in job.stems().items() if decibel(audio) > SILENT}
    if not stems:
        tqdm.write(f"{job.name}: silent; left out")
        return
    tracks, mono = {job.name: stems}, None
    if job.wide:
        mono = {stem: audio.mean(1) for stem, audio in stems.items()}
        tracks = {job.name: mono}
        for channel, side in enumerate(SIDES):
            own = {stem: audio[:, channel] for stem, audio in stems.items() if stem in job.wide}
            tracks[f"{job.name} {side}"] = own
    for name, track in tracks.items():
        for folder, change in folders[name].items():
            audio = track
            if change is not None:
                audio = {stem: change(stem, samples) for stem, samples in track.items()}
            elif job.subset != "train":
                audio = track | {MIXTURE: np.sum([*track.values()], axis=0)}
            write(audio, folder, None if name == job.name else mono)


def _folders(
    job: Job, name: str, out: Path, seed: int, copies: bool
) -> dict[Path, Callable[[str, Array], Array] | None]:
    """The folders of a track and of its copies that are missing, and what is done to the stems."""

    def as_on_records(stem: str, samples: Array) -> Array:
        return in_pieces(samples, generator(seed, name, stem))

    changes: dict[Path, Callable[[str, Array], Array] | None] = {out / job.subset / name: None}
    if copies:
        changes[out / job.subset / f"{name} (processed)"] = as_on_records
    for semitones in job.semitones:
        folder = out / "speeds" / f"{name} {semitones:+}"
        changes[folder] = lambda _, samples, by=semitones: transposed(samples, by)
    return {folder: change for folder, change in changes.items() if not folder.exists()}


def in_pieces(samples: Array, rng: np.random.Generator) -> Array:
    """Audio whose pieces are processed one by one, each in its own way."""
    length = round(PIECE * RATE)
    starts = range(0, len(samples), length)
    pieces = [processed(samples[start : start + length], rng) for start in starts]
    return np.concatenate(pieces)


def write(audio: Mapping[str, Array], folder: Path, whole: Mapping[str, Array] | None) -> None:
    """A FLAC of 16 bit for each stem, whose sum is of :data:`LEVEL` or, as fits, quieter.

    The folder appears whole or not at all.

    Args:
        audio: by stem.
        folder: that is made.
        whole: stems whose sum is of this level, in place of the audio's own, which is a part of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    peak = max(np.abs(samples).max() for samples in audio.values())
    parts = (audio if whole is None else whole).items()
    total = np.sum([samples for stem, samples in parts if stem != MIXTURE], axis=0)
    level = active_level(total.reshape(len(total), -1))
    gain = min(10 ** ((LEVEL - level) / 20), PEAK / peak)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as scratch:
        made = Path(scratch) / "track"
        made.mkdir()
        for stem, samples in audio.items():
            soundfile.write(made / f"{stem}.flac", samples * gain, RATE, subtype="PCM_16")
        made.rename(folder)


def kind_of(name: str, kinds: Mapping[str, str | None]) -> str | None:
    """The stem that a file's name belongs to; None where it is left out."""
    return next(stem for words, stem in kinds.items() if re.search(words, name))


def added(paths: list[Path], channels: int = 1) -> Array:
    """The sum of some recordings that begin together."""
    parts = [decode(path, channels=channels) for path in paths]
    time = max(map(len, parts))
    return np.sum([_as_long(part, time) for part in parts], axis=0)


def _as_long(audio: Array, time: int) -> Array:
    """Audio ``(time, ...)`` that ends in silence."""
    return np.pad(audio, [(0, time - len(audio)), *[(0, 0)] * (audio.ndim - 1)])


def metal(folders: Folders) -> Iterator[Job]:
    """Guitar and rest of each song; guitars are played twice, a take on each side."""
    found = sorted((folders.root / METAL).glob("*/guitar.ogg"))
    if not found:
        raise ValueError(
            f"root: got no songs in {folders.root / METAL}, expected those of the Debian package "
            "fretsonfire-songs-muldjord; unpack it there, or leave out metal by --only"
        )
    for guitar in found:
        song = guitar.parent.name
        stems = _summed({"guitar": [guitar], "rest": [guitar.parent / "song.ogg"]}, channels=2)
        if song == METAL_TEST:
            yield Job("test", f"metal {song}", stems)
        else:
            yield Job("train", f"metal {song}", stems, SEMITONES, wide=("guitar",))


def _summed(paths: Mapping[str, list[Path]], channels: int = 1) -> Callable[[], dict[str, Array]]:
    """Reads each stem, the sum of its recordings, all of one length."""

    def read() -> dict[str, Array]:
        stems = {stem: added(files, channels) for stem, files in paths.items()}
        time = max(map(len, stems.values()))
        return {stem: _as_long(audio, time) for stem, audio in stems.items()}

    return read


def remixed_songs(folders: Folders) -> Iterator[Job]:
    """The stems of each song; of a stem that is there twice the small file."""
    where = folders.remixed
    if where is None:
        raise ValueError("remixed: got none, expected a copy of everythingisremixed; --remixed DIR")
    songs: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(where.glob("src/*/*_Stem_*_mobile.m4a")):
        song, _, name = path.stem.partition("_Stem_")
        title = song.partition(".")[2]
        stem = kind_of(name.replace("_", " ").upper(), REMIXED)
        if stem is not None and title not in WITHHELD:
            songs.setdefault(title, {}).setdefault(stem, []).append(path)
    if not songs:
        raise ValueError(f"{where}: got no stems, expected src/SONG/*_Stem_*_mobile.m4a below it")
    for title, paths in songs.items():
        yield Job("train", f"remixed {title}", _summed(paths))


def loops(folders: Folders) -> Iterator[Job]:
    """All single sounds and loops of a stem, end to end."""
    paths: dict[str, list[Path]] = {}
    for path in sorted((folders.root / LOOPS).glob("*.flac")):
        if (stem := kind_of(path.stem, SINGLE)) is not None:
            paths.setdefault(stem, []).append(path)
    if not paths:
        raise ValueError(
            f"root: got no samples in {folders.root / LOOPS}, expected those of the Debian package "
            "sonic-pi-samples; unpack it there, or leave out loops by --only"
        )
    for stem, files in paths.items():
        yield Job("train", f"loops {stem}", partial(_end_to_end, stem, files))


def _end_to_end(stem: str, paths: list[Path]) -> dict[str, Array]:
    sounds = [decode(path) for path in paths]
    return {stem: np.concatenate([_at_level(sound, LEVEL) for sound in sounds])}


def _at_level(audio: Array, level: float) -> Array:
    """Audio so loud while it is heard."""
    heard = np.pad(audio, (0, max(0, BLOCK - len(audio))))
    return audio * 10 ** ((level - active_level(heard[:, None])) / 20)


def played(folders: Folders) -> list[Plan]:
    """The excerpts of the rendered training tracks."""
    songs = in_turn(find_songs(folders.root, [*PACKAGES]), folders.seed)
    plans = plan(songs, TRACKS, TEST_TRACKS, SECONDS, "choir")
    return [job for job in plans if job.subset == "train"]


def kits(folders: Folders) -> Iterator[Job]:
    """A drum line of each score, kit after kit."""
    found: dict[str, Instrument | Path] = {**drum_kits(folders.root)}
    found |= {path.stem: path for path in sorted(folders.root.glob(AVL))}
    if not found:
        raise ValueError(
            f"root: got no drum kits in {folders.root}, expected those of the Debian packages "
            "hydrogen-drumkits and avldrums.lv2-soundfont; unpack them there, or leave out kits by "
            "--only"
        )
    for number, job in enumerate(played(folders)):
        name = [*found][number % len(found)]
        line = partial(_drum_line, job, found[name], folders.seed)
        yield Job("train", f"kits {job.name} by {name}", line)


def _drum_line(job: Plan, kit: Instrument | Path, seed: int) -> dict[str, Array]:
    notes, excerpt = job.excerpt.notes["drums"], job.excerpt
    if isinstance(kit, Path):
        midi = as_midi(job.song, notes, excerpt.start - 1, excerpt.stop)
        with tempfile.TemporaryDirectory() as scratch:
            audio = synthesise(midi, kit, SECONDS, Path(scratch)).mean(1)
    else:
        rng = generator(seed, job.name, "drums")
        audio = play(kit, notes, excerpt.start, SECONDS, held=False, rng=rng)
    return {"drums": _at_level(audio, LEVEL)}


def electric(folders: Folders) -> Iterator[Job]:
    """The bass line of each score."""
    if folders.bass is None:
        raise ValueError("bass: got none, expected a folder of recorded notes; --bass DIR")
    instrument = pitched(folders.bass)
    for job in played(folders):
        yield Job("train", f"electric {job.name}", partial(_bass_line, job, instrument, folders))


def _bass_line(job: Plan, instrument: Instrument, folders: Folders) -> dict[str, Array]:
    notes, rng = job.excerpt.notes["bass"], generator(folders.seed, job.name, "bass")
    audio = play(instrument, notes, job.excerpt.start, SECONDS, held=True, rng=rng)
    return {"bass": _at_level(audio, LEVEL)}


def mixes(out: Path, seed: int) -> Iterator[Job]:
    """Mixtures of held-out parts: of the remixed songs, then of all tracks by lot."""
    by_stem: dict[str, list[Path]] = {
        stem: sorted(
            path
            for path in (out / "train").glob(f"*/{stem}.flac")
            if not path.parent.name.endswith("(processed)")
        )
        for stem in STEMS
    }
    for folder in sorted((out / "train").glob("remixed *")):
        if not folder.name.endswith("(processed)"):
            paths = {path.stem: path for path in sorted(folder.glob("*.flac"))}
            rng = generator(seed, folder.name, "mix")
            yield Job("mixes", folder.name, partial(_belonging, paths, rng))
    if not all(by_stem.values()):
        return
    for number in range(MIXES):
        rng = generator(seed, "mix", number)
        paths = {stem: files[rng.integers(len(files))] for stem, files in by_stem.items()}
        yield Job("mixes", f"lot {number:02}", partial(_by_lot, paths, rng))


def _held_out(path: Path) -> Array:
    audio = decode(path)
    return audio[int(len(audio) * (1 - HELD_OUT_SHARE)) :]


def _excerpt(audio: Array, time: int, start: int) -> Array:
    return np.pad(audio[start : start + time], (0, max(0, time - len(audio) + start)))


def _belonging(paths: Mapping[str, Path], rng: np.random.Generator) -> dict[str, Array]:
    """Stems of a song over the seconds of its end in which the most of them is heard."""
    ends = {stem: _held_out(path) for stem, path in paths.items()}
    time = round(MIX_SECONDS * RATE)
    starts = range(0, max(1, len(next(iter(ends.values()))) - time), RATE)
    cuts = [{s: _excerpt(audio, time, start) for s, audio in ends.items()} for start in starts]
    return max(cuts, key=lambda cut: sorted(decibel(audio) for audio in cut.values()))


def _by_lot(paths: Mapping[str, Path], rng: np.random.Generator) -> dict[str, Array]:
    """Parts of different tracks, each processed, at levels by lot."""
    time, stems = round(MIX_SECONDS * RATE), {}
    for stem, path in paths.items():
        end = _held_out(path)
        end = np.tile(end, -(-time // len(end)))  # the end of a short track, again and again
        audio = _excerpt(end, time, int(rng.integers(len(end) - time + 1)))
        if decibel(audio) > SILENT:
            level = LEVEL + rng.normal(0, LEVEL_SPREAD)
            stems[stem] = _at_level(processed(audio, rng), level)
    return stems


def length_by_stem(folder: Path) -> dict[str, float]:
    """Minutes of each stem, processed copies counted."""
    minutes: dict[str, float] = {}
    for path in sorted(folder.glob("*/*.flac")):
        minutes[path.stem] = minutes.get(path.stem, 0) + soundfile.info(path).duration / 60
    return minutes


def write_licences(out: Path, names: list[str]) -> None:
    """LICENCES.md: whose the audio of each part is."""
    lines = ["# Whose audio this is", "", "| tracks | from | licence |", "|---|---|---|"]
    lines += [
        f"| {name} | {MATERIALS[name].title} | {MATERIALS[name].licence} |"
        for name in MATERIALS
        if name in names or [*out.glob(f"*/{name} *")]
    ]
    with atomic_write(out / "LICENCES.md") as partly:
        partly.write_text("\n".join(lines) + "\n")


MATERIALS = {
    "metal": Material("Muldjord (El Senator), fretsonfire-songs-muldjord", "CC BY-SA 3.0", metal),
    "remixed": Material(
        "Software-Entwicklungskit, github.com/ichbinsoftware/everythingisremixed",
        "CC0 1.0",
        remixed_songs,
    ),
    "loops": Material("Sonic Pi's samples, sonic-pi-samples", "CC0 1.0", loops),
    "kits": Material(
        "hydrogen-drumkits and avldrums.lv2-soundfont, playing scores of " + ", ".join(PACKAGES),
        "GPL-2+, CC BY 3.0, CC BY-SA 3.0, CC0 1.0 by kit; scores BSD-3-Clause, GPL-2.0, GPL-3.0+",
        kits,
    ),
    "electric": Material(
        "tonejs-instrument-bass-electric, playing scores of " + ", ".join(PACKAGES),
        "CC BY 3.0; scores BSD-3-Clause, GPL-2.0, GPL-3.0+",
        electric,
    ),
    "mixes": Material("parts of the others", "theirs", lambda folders: iter(())),
}


if __name__ == "__main__":
    run(main)
