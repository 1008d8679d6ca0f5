import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from music import excerpt, needs_ffmpeg
from torch import Tensor

from pyro_sep.audio.io import save_audio
from pyro_sep.data.musdb import STEMS, musdb_tracks
from pyro_sep.data.tracks import MIXTURE, SUMMARY, Track, stems_folder
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.evaluation.tracks import evaluate, summarise, traces_with_truth, write_windows
from pyro_sep.storage.files import save_json

RATE, TIME = 8_000, 12_000


def track(name: str, rate: int = RATE, **stems: Tensor) -> Track:
    return Track(name, "", {stem: lambda x=x: (x, rate) for stem, x in stems.items()})


@pytest.fixture
def sounds() -> Tensor:
    """Stereo noise, (stem, channel, time): whatever of two of them is added is orthogonal."""
    noise = torch.randn(4, 2 * TIME, generator=torch.Generator().manual_seed(0)).double()
    noise -= noise.mean(1, keepdim=True)
    basis = torch.linalg.qr(noise.T).Q.T
    return basis.reshape(4, 2, TIME)


def test_scores_are_si_sdr(sounds: Tensor) -> None:
    bass, drums, other, error = sounds
    truth = track("song", bass=bass, drums=drums, other=other)
    guess = track("song", drums=5 * drums + 0.5 * error, bass=bass + drums, residual=error)
    (scores,) = evaluate([guess], [truth, track("tune", bass=bass)])
    assert (scores.name, scores.subset, scores.bss_eval) == ("song", "", None)
    assert scores.table.index.tolist() == ["bass", "drums"]
    of_mixture = -10 * math.log10(2)  # two stems beside each
    expected = [[0, -of_mixture], [20, 20 - of_mixture]]
    np.testing.assert_allclose(scores.table, expected, atol=1e-6)
    assert scores.table.columns.tolist() == ["SI-SDR", "improvement"]


def test_draws_say_what_score_they_expect(sounds: Tensor) -> None:
    bass, drums, other, error = sounds
    truth = track("song", bass=bass + 0.1 * error, drums=drums)
    guess = track("song", bass=bass, drums=drums)
    levels = torch.linspace(0.1, 0.2, 11)
    draws = [lambda x=level: (bass + float(x) * other, RATE) for level in levels]
    (scores,) = evaluate([replace(guess, draws={"bass": draws})], [truth])
    assert scores.table.columns.tolist() == ["SI-SDR", "improvement", "lowest", "highest"]
    # A draw's error is orthogonal, of its level; its share of the draw is what SI-SDR sees.
    ends = [(bass + level * other).flatten() for level in (0.2, 0.1)]
    expected = [20, *(float(si_sdr(bass.flatten(), end)) for end in ends)]
    assert scores.table.loc["bass", ["SI-SDR", "lowest", "highest"]].tolist() == pytest.approx(
        expected, abs=0.05
    )
    assert scores.table.loc["drums", ["lowest", "highest"]].isna().all()
    short = [lambda: (bass[:, 5:], RATE)]
    with pytest.raises(ValueError, match=r"^bass: got a draw of 23990 values, expected the 24000"):
        next(evaluate([replace(guess, draws={"bass": short})], [truth]))


def test_the_mixture_is_what_was_mixed(sounds: Tensor) -> None:
    bass, drums, other, error = sounds
    truth = track("song", bass=bass, drums=drums, other=other, mixture=bass + 10 * error)
    guess = track("song", bass=bass + 0.1 * drums, drums=drums)
    own = next(evaluate([guess], [truth])).table
    assert own.loc["bass", "improvement"] == pytest.approx(40, abs=1e-6)
    summed = next(evaluate([guess], [truth], ["drums", "bass"])).table
    assert summed.index.tolist() == ["drums", "bass"]
    assert summed.loc["bass", "improvement"] == pytest.approx(20, abs=1e-6)


def test_references_follow_the_estimates() -> None:
    t = torch.arange(2 * TIME) / (2 * RATE)
    left, right = torch.sin(2 * math.pi * 200 * t), torch.sin(2 * math.pi * 300 * t)
    truth = track("song", rate=2 * RATE, bass=torch.stack([left, right]))
    mono = ((left + right) / 2)[::2]
    for estimate in (mono[None], torch.stack([left, right])[:, ::2]):
        (scores,) = evaluate([track("song", bass=estimate[:, :-40])], [truth])
        assert scores.table.loc["bass", "SI-SDR"] > 25  # ends are where the filter has less to see


@pytest.mark.parametrize("channel", ["1", "2", "side"])
def test_references_are_heard_as_the_recording_was(
    sounds: Tensor, channel: str, tmp_path: Path
) -> None:
    bass, drums, *_ = sounds
    truth = track("song", bass=bass, drums=drums)

    def heard(stem: Tensor) -> Tensor:
        return (stem[:1] - stem[1:]) / 2 if channel == "side" else stem[[int(channel) - 1]]

    (tmp_path / "song").mkdir()
    for name, stem in {"bass": bass, "drums": drums}.items():
        save_audio(tmp_path / "song" / f"{name}.wav", heard(stem).float() / 10, RATE)
    save_json({"settings": {"channel": channel}}, tmp_path / "song" / SUMMARY)
    (scores,) = evaluate(stems_folder(tmp_path), [truth])
    assert scores.table["SI-SDR"].min() > 60
    as_if_mono = replace(stems_folder(tmp_path)[0], channel=None)
    (scores,) = evaluate([as_if_mono], [truth])
    assert scores.table["SI-SDR"].max() < 5
    mono = track("song", bass=heard(bass), drums=heard(drums))  # is that channel already
    (scores,) = evaluate(stems_folder(tmp_path), [mono])
    assert scores.table["SI-SDR"].min() > 60


def test_silence_has_no_score(sounds: Tensor) -> None:
    bass, drums, *_ = sounds
    truth = track("song", bass=bass, drums=drums, vocals=0 * bass)
    guess = track("song", bass=bass + 0.1 * drums, drums=0 * drums, vocals=0.1 * drums)
    table = next(evaluate([guess], [truth])).table
    assert table.loc["vocals"].isna().all()
    assert table.loc["drums", "SI-SDR"] == -math.inf
    assert table.loc["bass", "SI-SDR"] == pytest.approx(20, abs=1e-6)


def test_medians_count_what_was_heard(sounds: Tensor) -> None:
    bass, drums, *_ = sounds
    truth, guess = [], []
    for index, level in enumerate((0.1, 0.01, 1.0)):
        truth.append(track(f"{index}", drums=drums, bass=bass * (index < 2), other=drums))
        guess.append(track(f"{index}", drums=drums + level * bass, bass=bass + level * drums))
    table, summary = summarise(list(evaluate(guess, truth)))
    assert len(table) == 6
    assert table.index.names == ["track", "stem"]
    assert summary.index.tolist() == ["drums", "bass"]
    assert summary["tracks"].tolist() == [3, 2]
    assert summary["SI-SDR"].tolist() == pytest.approx([20, 30], abs=1e-6)


@needs_ffmpeg
def test_bss_eval_is_musevals(sounds: Tensor, tmp_path: Path) -> None:
    museval = pytest.importorskip("museval")
    bass, drums, other, error = 100 * sounds
    truth = track("song", bass=bass, drums=drums, vocals=0 * bass, other=other)
    guess = track(
        "song", bass=bass + 0.1 * error, drums=drums + 0.1 * bass, vocals=error, other=0 * other
    )
    (scores,) = evaluate([guess], [truth], bss_eval=True)
    assert scores.table.index.tolist() == ["bass", "drums", "vocals", "other"]
    assert scores.table.loc[["vocals", "other"], ["SDR", "ISR", "SIR", "SAR"]].isna().all(axis=None)
    # Filters of 512 taps catch a part of the error, 512 x 2 of 12,000 samples for each reference.
    assert scores.table.loc["bass", "SDR"] == pytest.approx(20, abs=2)
    assert scores.table.loc["bass", "SAR"] == pytest.approx(20, abs=2)
    assert scores.table.loc["drums", "SIR"] == pytest.approx(20, abs=2)
    assert scores.table.loc["drums", "SAR"] > 40
    write_windows(scores, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")] == [
        "test/song.json"
    ]
    targets = json.loads((tmp_path / "test" / "song.json").read_text())["targets"]
    assert [target["name"] for target in targets] == ["bass", "drums"]
    store = museval.EvalStore()
    store.add_eval_dir(tmp_path)
    medians = store.agg_frames_tracks_scores()
    for stem in ("bass", "drums"):
        for metric in ("SDR", "ISR", "SIR", "SAR"):
            assert medians[stem, metric] == pytest.approx(scores.table.loc[stem, metric])


@needs_ffmpeg
def test_bss_eval_of_silence() -> None:
    pytest.importorskip("museval")
    silence = torch.zeros(1, TIME)
    (scores,) = evaluate([track("rest", bass=silence)], [track("rest", bass=silence)], (), True)
    assert json.loads(scores.bss_eval or "")["targets"] == []
    assert scores.table.columns.tolist() == ["SI-SDR", "improvement"]


@needs_ffmpeg
def test_the_excerpt() -> None:
    """What is known of it without separating: its mixture gains nothing, its stems all."""
    (truth,) = musdb_tracks(excerpt())
    as_mixture = Track(truth.name, "", dict.fromkeys(STEMS, truth.readers[MIXTURE]))
    table, summary = summarise(list(evaluate([as_mixture], [truth])))
    assert table["improvement"].tolist() == [0.0] * 4
    assert table["SI-SDR"].between(-10, 0).all()
    pd.testing.assert_frame_equal(summary[["SI-SDR"]], table.droplevel(0)[["SI-SDR"]])


def test_what_does_not_fit(sounds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bass, drums, *_ = sounds
    truth = track("song", bass=bass, drums=drums)

    def refused(match: str, guess: Track, stems: tuple[str, ...] = ()) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            list(evaluate([guess], [truth], stems))
        assert "\n" not in str(caught.value)

    refused(
        r"got track 'tune' without a reference, expected some of song", track("tune", bass=bass)
    )
    refused(r"^song: got estimates flute, expected some of bass, drums$", track("song", flute=bass))
    refused(r"^song: got no stem drums, expected", track("song", bass=bass), ("bass", "drums"))
    got = r"^song: got a reference of"
    refused(rf"{got} 1\.50 s, expected the 0\.75 s that were", track("song", bass=bass[:, ::2]))
    refused(rf"{got} 2 channels, expected the 3 that were", track("song", bass=bass[[0, 0, 0]]))
    refused(r"^song: got estimates of \[.*\] channels", track("song", bass=bass, drums=drums[:1]))
    monkeypatch.setitem(sys.modules, "museval", None)
    with pytest.raises(ValueError, match=r"^bss-eval: got no museval .* pip install 'pyro-sep\[mu"):
        evaluate([truth], [truth], bss_eval=True)


def test_tracks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def tree(root: str, *albums: str) -> list[Track]:
        for album in albums:
            rng = np.random.default_rng(ord(album))
            for stem in ("bass", "Drums"):
                path = tmp_path / root / album / "song" / f"{stem}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, 0.1 * rng.standard_normal(RATE), RATE, subtype="FLOAT")
        return stems_folder(tmp_path / root)

    known, one = tree("known", "a", "b"), tree("one", "b")
    (scores,) = evaluate(one, known)
    assert scores.table["SI-SDR"].min() > 100
    table, summary = summarise(list(evaluate(tree("both", "a", "b"), known)))
    assert sorted(set(table.index.get_level_values("track"))) == ["a/song", "b/song"]
    assert summary["tracks"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="got track 'b/song' without a reference, expected"):
        evaluate(known, tree("first", "a"))
    for scores in evaluate(known, known):
        write_windows(scores._replace(bss_eval="{}"), tmp_path / "out")
    written = sorted(
        path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.json")
    )
    assert [path.as_posix() for path in written] == ["test/a/song.json", "test/b/song.json"]


def test_estimates_without_a_reference_are_named(sounds: Tensor) -> None:
    bass, drums, *_ = sounds
    truth = [track("song", bass=bass, drums=drums)]
    with pytest.raises(ValueError, match="got track 'one', 'two' without a reference"):
        evaluate([track("one", bass=bass), track("song", bass=bass), track("two")], truth)
    (scores,) = evaluate([track("song", bass=bass, flute=drums, residual=drums)], truth)
    assert scores.notes == ("no reference of flute, expected some of bass, drums",)
    (scores,) = evaluate([track("song", bass=bass, residual=drums)], truth, ["Bass"])
    assert scores.notes == ()


def test_traces_find_their_tracks(tmp_path: Path) -> None:
    for name in ("a/song", "._junk", "b/song", "other"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "trace.nc").touch()
    truth = [track("a/song"), track("b/song")]
    with pytest.raises(ValueError, match="got track 'other' without a reference, expected some"):
        traces_with_truth(tmp_path / "out", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: got no trace\.nc in it"):
        traces_with_truth(tmp_path / "empty", truth)
    (tmp_path / "long" / "song" / "sections" / "001").mkdir(parents=True)
    (tmp_path / "long" / "song" / "sections" / "001" / "trace.nc").touch()
    with pytest.raises(ValueError, match=r"long: got those of sections alone, expected TRACK/tr"):
        traces_with_truth(tmp_path / "long", truth)
