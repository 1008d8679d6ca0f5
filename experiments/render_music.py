"""Music with known stems, rendered from scores that Debian packages ship.

    python experiments/render_music.py --out MUSIC --packages freedoom --vocals choir --tracks 6
    python experiments/render_music.py --out MUSIC --root UNPACKED --tracks 150 --test 50

Sampled instruments (fluidsynth and a General MIDI soundfont) play bass, drums and other. The
vocals are the line of an excerpt that is most like a song; a sampled choir or a recorded voice
sings them. --out has the layout of musdb18-HQ, train/TRACK/STEM.wav and test/TRACK/STEM.wav, 44.1
kHz stereo of 16 bit; the mixture is exactly the sum of its stems. metadata.json has the score, its
licence and the levels of each track; recorded voices are GPL-2+.

The same arguments and versions give the same bytes. A run that was cut off continues. Training and
test tracks share neither song nor recorded voice. An excerpt with a stem that comes out silent is
left out.

It needs fluidsynth and fluid-soundfont-gm; scores, those of any of the Debian packages
openttd-openmsx, freedoom and planetblupi-music-midi, of which unpacking is enough (dpkg-deb -x);
``pip install 'pyro-sep[music]'``; and for voices that sing klettres-data, unpacked alike, and
``pip install pyworld 'setuptools<81'``.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import soundfile
import typer
from _common import Out, Seed, choose, load_rows
from numpy.typing import NDArray
from rendering.levels import SilentStemError, decibel, mix
from rendering.parts import STEMS, Excerpt, excerpts
from rendering.scores import PACKAGES, Song, as_midi, find_songs, import_mido
from rendering.seeds import generator
from rendering.singing import LANGUAGES, RATE, import_pyworld, recordings, sing, voice
from tqdm import tqdm

from pyro_sep.checks.arguments import choice
from pyro_sep.cli.program import run
from pyro_sep.data.tracks import SUBSETS
from pyro_sep.storage.files import TEMPORARY, only_run, save_json

VOCALS = ("mix", "sing", "choir")
CHOIRS = (52, 53)  # General MIDI programs, from 0
SINGERS = {"train": LANGUAGES[:8], "test": LANGUAGES[8:]}
LEAD_IN = 1.0  # seconds played before an excerpt and cut off

Array = NDArray[np.float64]


class Plan(NamedTuple):
    """A track to be made: an excerpt of a song, its ``turn`` counts from the best."""

    subset: str
    song: Song
    turn: int
    excerpt: Excerpt
    sings: bool  # a voice, else a choir

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.song.name + (f" ({self.turn + 1})" if self.turn else "")


def main(
    root: Annotated[
        Path, typer.Option(help="Where the Debian packages are installed or unpacked.")
    ] = Path("/"),
    tracks: Annotated[int, typer.Option(min=1, help="Training and test tracks together.")] = 9,
    test: Annotated[
        int | None, typer.Option(min=0, help="How many of them are test tracks; a third.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Length of a track.")] = 30.0,
    seed: Seed = 0,
    packages: Annotated[
        str, typer.Option(help="Packages with scores, comma-separated.")
    ] = ",".join(PACKAGES),
    vocals: Annotated[
        str, typer.Option(help="sing, choir, or mix: two tracks of three sing.")
    ] = "mix",
    soundfont: Annotated[Path, typer.Option(help="Of General MIDI instruments.")] = Path(
        "/usr/share/sounds/sf2/FluidR3_GM.sf2"
    ),
    out: Out = Path("results/render_music"),
) -> None:
    """Render the tracks that are not there yet."""
    choice("vocals", vocals, VOCALS)
    chosen = choose("packages", packages, PACKAGES)
    test = tracks // 3 if test is None else test
    if test > tracks:
        raise ValueError(f"test: got {test}, expected at most the {tracks} of --tracks")
    check_needs(root, soundfont, vocals)
    songs = find_songs(root, chosen)
    settings = {"tracks": tracks, "test": test, "seconds": seconds, "seed": seed}
    settings |= {"packages": chosen, "vocals": vocals, "soundfont": soundfont.name}
    with only_run(out):
        made = tracks_of(out, settings)
        plans = plan(in_turn(songs, seed), tracks, test, seconds, vocals)
        if len(plans) < tracks:
            typer.echo(f"only {len(plans)} tracks of {seconds:g} s are to be had", err=True)
        for job in tqdm(plans, unit="track"):
            folder = out / job.subset / job.name
            if folder.exists():
                continue
            with tempfile.TemporaryDirectory(dir=out, prefix=TEMPORARY) as scratch:
                try:
                    audio, made[job.name] = render(job, root, soundfont, seed, Path(scratch))
                except SilentStemError as error:
                    tqdm.write(f"{job.name}: {error}; left out")
                    continue
                entries = {"settings": settings, "mixtures": list(made.values())}
                save_json(entries, out / "metadata.json")
                write_track(audio, folder, Path(scratch))
        there = sum((out / job.subset / job.name).exists() for job in plans)
        print(f"{there} tracks, {there * seconds / 60:.1f} min of music. Results: {out}")


def check_needs(root: Path, soundfont: Path, vocals: str) -> None:
    """Say what is missing before anything is rendered.

    Raises:
        ValueError: no fluidsynth, no soundfont, no mido; of a voice, no pyworld, no recordings.
    """
    if shutil.which("fluidsynth") is None:
        raise ValueError(
            "fluidsynth: not found, expected it on the path; apt-get install fluidsynth"
        )
    if not is_soundfont(soundfont):
        raise ValueError(
            f"{soundfont}: expected a soundfont; apt-get install fluid-soundfont-gm, or give one "
            "as --soundfont"
        )
    import_mido()
    if vocals != "choir":
        import_pyworld()
        for language in LANGUAGES:
            recordings(root, language)


def is_soundfont(path: Path) -> bool:
    """Whether a file is one; fluidsynth would play silence without."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(12)[8:] == b"sfbk"


def write_track(audio: dict[str, NDArray[np.int16]], folder: Path, scratch: Path) -> None:
    """A WAV for each stem and the mixture; the folder appears complete or not at all."""
    whole = scratch / folder.name
    whole.mkdir()
    for stem, samples in audio.items():
        soundfile.write(whole / f"{stem}.wav", samples, RATE)
    folder.parent.mkdir(exist_ok=True)
    whole.rename(folder)


def tracks_of(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is known of the tracks in a folder, by name.

    A track's entry is written before its folder appears, so every folder of ours has one.

    Raises:
        ValueError: tracks that this script has not made, or has made with other settings.
    """
    known = load_rows(out / "metadata.json", settings)
    made = {entry["name"]: entry for entry in known}
    folders = [path for subset in SUBSETS for path in (out / subset).glob("[!.]*")]
    if strange := [path for path in folders if path.name not in made]:
        raise ValueError(
            f"{strange[0]}: got a track that is not in metadata.json, expected a folder without "
            "any; give another --out"
        )
    return made


def in_turn(songs: Sequence[Song], seed: int) -> list[Song]:
    """Songs in random order, packages taking turns."""
    queues = []
    for package in dict.fromkeys(song.package for song in songs):
        mine = [song for song in songs if song.package == package]
        queues.append([mine[i] for i in generator(seed, package).permutation(len(mine))])
    return [song for turn in zip_longest(*queues) for song in turn if song is not None]


def offers(songs: Sequence[Song], seconds: float) -> Iterator[tuple[Song, int]]:
    """Each song's best excerpt, then their second best ones, and so on: (song, which)."""
    turn, more = 0, True
    while more:
        more = False
        for song in songs:
            if len(excerpts(song, seconds)) > turn:
                more = True
                yield song, turn
        turn += 1


def plan(songs: Sequence[Song], tracks: int, test: int, seconds: float, vocals: str) -> list[Plan]:
    """Which excerpts become which tracks; a song is in the training or in the test set."""
    plans: list[Plan] = []
    subsets: dict[Song, str] = {}
    left = {"train": tracks - test, "test": test}
    taken = dict.fromkeys(left, 0)
    for song, turn in offers(songs, seconds):
        if song not in subsets:
            place = len(subsets)
            even = "test" if (place + 1) * test // tracks > place * test // tracks else "train"
            subsets[song] = even if left[even] else "train" if left["train"] else "test"
        subset = subsets[song]
        if left[subset]:
            sings = vocals == "sing" or (vocals == "mix" and taken[subset] % 3 != 2)
            plans.append(Plan(subset, song, turn, excerpts(song, seconds)[turn], sings))
            left[subset] -= 1
            taken[subset] += 1
        if not any(left.values()):
            break
    return plans


def render(
    job: Plan, root: Path, soundfont: Path, seed: int, scratch: Path
) -> tuple[dict[str, NDArray[np.int16]], dict[str, Any]]:
    """Stems and mixture of a track, as :func:`mix` makes them, and what there is to say of it.

    Raises:
        SilentStemError: a stem is silent.
        ValueError: fluidsynth failed.
    """
    song, excerpt = job.song, job.excerpt
    rng = generator(seed, song.sha256, job.turn)
    languages = SINGERS[job.subset]
    language, program = languages[rng.integers(len(languages))], int(rng.choice(CHOIRS))
    audio = {}
    for stem in STEMS:
        notes, instead = excerpt.notes[stem], None
        if stem == "vocals" and job.sings:
            singer = voice(root, language)
            audio[stem] = sing(singer, notes, excerpt.start, excerpt.seconds, rng)
            continue
        if stem == "vocals":  # an octave where choirs sing
            notes, instead = notes.copy(), (excerpt.singer, program)
            notes.pitch += 12 * round((66 - np.median(notes.pitch)) / 12)
        midi = as_midi(song, notes, excerpt.start - LEAD_IN, excerpt.stop, instead)
        audio[stem] = synthesise(midi, soundfont, excerpt.seconds, scratch)
    mixed = mix(audio, rng)
    entry = {
        "name": job.name,
        "subset": job.subset,
        "package": song.package,
        "licence": PACKAGES[song.package].licence,
        "file": song.file,
        "song": song.title,
        "sha256": song.sha256,
        "start": excerpt.start,
        "vocals": f"voice {language}" if job.sings else f"General MIDI {program + 1}",
        "programs": {
            stem: sorted({int(program) + 1 for program in notes.program})
            for stem, notes in excerpt.notes.items()
        },
        "rms_dbfs": {stem: round(decibel(audio / 32_768), 1) for stem, audio in mixed.items()},
    }
    return mixed, entry


def synthesise(midi: Any, soundfont: Path, seconds: float, scratch: Path) -> Array:
    """What a MIDI file sounds like after its lead-in, ``(time, channel)``.

    Raises:
        ValueError: fluidsynth failed.
    """
    score, wav = scratch / "score.mid", scratch / "audio.wav"
    wav.unlink(missing_ok=True)
    midi.save(score)
    options = "-ni -q -g 0.3 -R 1 -C 0 -T wav -O float -o synth.cpu-cores=1"
    options += " -o synth.dynamic-sample-loading=1 -o synth.reverb.level=0.25"
    command = ["fluidsynth", *options.split(), "-r", str(RATE), "-F", wav, soundfont, score]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not wav.exists():
        reason = (done.stderr.strip().splitlines() or ["no audio"])[-1]
        raise ValueError(
            f"fluidsynth: failed ({reason}), expected audio; see that {soundfont} is whole"
        )
    first, time = int(LEAD_IN * RATE), round(seconds * RATE)
    samples = soundfile.read(wav, always_2d=True)[0][first : first + time]
    return np.pad(samples, ((0, time - len(samples)), (0, 0)))


if __name__ == "__main__":
    run(main)
