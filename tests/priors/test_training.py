"""Training that begins from a trained prior, and audio from several places."""

from pathlib import Path

import pytest
import torch

from pyro_sep.audio import save_audio
from pyro_sep.data.source import MixedSource, ToySource, open_sources
from pyro_sep.priors import load_priors, train_prior

RATE, TIME = 16_000, 256
SHORT = {"steps": 1, "batch": 2, "time": 128}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two folders of recordings, a constant 0.25 and a constant -0.5."""
    for name, value in (("a", 0.25), ("b", -0.5)):
        (tmp_path / name).mkdir()
        save_audio(tmp_path / name / "x.wav", torch.full((1, 8_000), value), RATE)
    return tmp_path


def test_weights_are_shares_of_the_frames(folders: Path) -> None:
    source = open_sources([f"{folders}/a", f"{folders}/b:0.5"], RATE, TIME)
    frames = source.draw(3_000, TIME, torch.Generator().manual_seed(0))
    share = float((frames[:, 0] > 0).float().mean())
    assert abs(share - 2 / 3) < 4 * (2 / 9 / 3_000) ** 0.5
    assert (source.name, source.sample_rate) == ("a", RATE)
    assert {round(float(value), 2) for value in frames.unique()} == {0.25, -0.5}
    held_out = source.held_out(3, TIME)
    assert [round(float(frame[0]), 2) for frame in held_out] == [0.25, 0.25, -0.5]


def test_one_place_is_itself(folders: Path) -> None:
    source = open_sources(f"{folders}/a:2", RATE, TIME)
    assert not isinstance(source, MixedSource)
    assert source.name == "a"


def test_a_stem_may_have_a_weight(folders: Path) -> None:
    source = open_sources([f"{folders}/a:x:3", f"{folders}/b:x"], RATE, TIME)
    frames = source.draw(2_000, TIME, torch.Generator().manual_seed(1))
    assert abs(float((frames[:, 0] > 0).float().mean()) - 0.75) < 0.04
    assert source.name == "x"


def test_a_folder_whose_name_ends_in_a_number(tmp_path: Path) -> None:
    (tmp_path / "take:2").mkdir()
    save_audio(tmp_path / "take:2" / "x.wav", torch.full((1, 8_000), 0.1), RATE)
    assert open_sources([f"{tmp_path}/take:2"], RATE, TIME).name == "take:2"


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_that_are_none(folders: Path, weight: str) -> None:
    with pytest.raises(ValueError, match=f"got the weight {weight} in .* a number above 0"):
        open_sources([f"{folders}/a:{weight}"], RATE, TIME)


def test_no_place() -> None:
    with pytest.raises(ValueError, match="source: got none"):
        open_sources([], RATE, TIME)


def test_places_of_different_rates(folders: Path) -> None:
    with pytest.raises(ValueError, match="got 8000 Hz for toy:sine, expected 16000, its own rate"):
        open_sources([f"{folders}/a", "toy:sine"], 8_000, TIME)


def test_mixed_audio_is_drawn_anew_and_again() -> None:
    source = MixedSource([(ToySource("sine"), 1.0), (ToySource("saw"), 1.0)])
    draws = [source.draw(8, 64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_training_begins_from_the_weights_of_another_prior(tmp_path: Path) -> None:
    first = load_priors("toy/wavenet")["sine"]
    # A step of no length, and an average of it: the weights stay where they began.
    trained = train_prior("toy:sine", tmp_path, init="toy/wavenet", learning_rate=0.0, **SHORT)
    assert trained.network.config == first.network.config
    for name, weight in first.network.state_dict().items():
        torch.testing.assert_close(trained.network.state_dict()[name], weight)
    card = (tmp_path / "sine.md").read_text()
    assert "--init toy/wavenet --recipe" in card
    assert "--size" not in card


def test_the_prior_of_another_source(tmp_path: Path) -> None:
    saw = load_priors("toy/wavenet")["saw"]
    trained = train_prior("toy:sine", tmp_path, init="toy/wavenet:saw", learning_rate=0.0, **SHORT)
    assert trained.name == "sine"
    value = torch.linspace(-0.3, 0.3, 128)
    same = (p.frame(128).condition(0.1).log_prob(value) for p in (trained, saw))
    torch.testing.assert_close(*same)


@pytest.mark.parametrize("init", [None, "toy/wavenet"])
def test_noise_levels_to_learn(init: str | None, tmp_path: Path) -> None:
    trained = train_prior("toy:sine", tmp_path, init=init, sigma_min=0.5, sigma_max=1.5, **SHORT)
    assert trained.sigmas == (0.5, 1.5)
    assert load_priors(tmp_path)["sine"].sigmas == (0.5, 1.5)
    assert "--sigma-min 0.5 --sigma-max 1.5" in (tmp_path / "sine.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 9.0}, r"^sigma_min, sigma_max: got 9.0, 5.0, expected 0 < sigma_min"),
        ({"sigma_max": 1.0, "recipe": "serial"}, r"^sigma_max: got 1 and the serial recipe, exp"),
    ],
)
def test_noise_levels_that_none_are(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_prior("toy:sine", tmp_path, **options, **SHORT)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "toy/wavenet:flute"}, "has no prior of flute, expected one of sine, saw"),
        ({"init": "toy/wavenet", "size": "toy"}, "got a family, a size or the serial recipe"),
        ({"init": "toy/wavenet", "recipe": "serial"}, "got a family, a size or the serial"),
        ({"init": "toy/oracle"}, "got the true prior 'toy/oracle', expected one that was trained"),
        ({"init": "nowhere"}, "priors: got 'nowhere', expected a shipped set"),
    ],
)
def test_beginnings_that_do_not_fit(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_prior("toy:sine", tmp_path, **options, **SHORT)
    assert not [*tmp_path.iterdir()]


def test_a_run_from_other_weights_is_another_run(tmp_path: Path) -> None:
    train_prior("toy:sine", tmp_path, init="toy/wavenet", **SHORT)
    with pytest.raises(ValueError, match="got a run of another config"):
        train_prior("toy:sine", tmp_path, init="toy/wavenet:saw", **SHORT)


def test_places_are_in_the_card(tmp_path: Path) -> None:
    train_prior(["toy:sine", "toy:saw:0.3"], tmp_path, **SHORT)
    card = (tmp_path / "sine.md").read_text()
    assert "`toy:sine`, `toy:saw:0.3`, 16000 Hz" in card
    assert "pyro-sep train --source toy:sine --source toy:saw:0.3 --out DIR" in card
