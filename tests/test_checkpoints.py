import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_sep import checkpoints
from pyro_sep.checkpoints import FORMAT, ORDER_FILE, load_prior, load_priors, save_prior
from pyro_sep.models.wavenet import WaveNet, WaveNetConfig
from pyro_sep.priors import WaveNetPrior

CONFIG = WaveNetConfig(
    width=8, layers=2, hop=4, past=4, spectra=(8,), components=4, head_width=8, head_past=2
)
CATEGORICAL = dataclasses.replace(CONFIG, head="categorical", spectra=(), companding="mu-law")


def make_prior(
    name: str, sample_rate: int = 16_000, config: WaveNetConfig = CONFIG
) -> WaveNetPrior:
    torch.manual_seed(len(name))
    network = WaveNet(config)
    torch.nn.init.normal_(network.head_out.weight, std=0.5)
    return WaveNetPrior(network, name=name, sample_rate=sample_rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("violin", "oboe", "bassoon"):
        save_prior(make_prior(name), tmp_path / f"{name}.safetensors")
    return tmp_path


def one_line(call: Callable[[], object], match: str, path: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("config", [CONFIG, CATEGORICAL], ids=lambda c: c.head)
def test_round_trip_is_exact(tmp_path: Path, config: WaveNetConfig) -> None:
    prior = make_prior("oboe", 8_000, config)
    save_prior(prior, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    loaded = load_prior(tmp_path / "a.safetensors")
    assert loaded.network.config == config
    assert (loaded.name, loaded.sample_rate) == ("oboe", 8_000)
    x = torch.linspace(-1, 1, 21)
    for sigma in (0.01, 1.0):
        first = prior.frame(21).condition(sigma).log_prob(x)
        assert torch.equal(loaded.frame(21).condition(sigma).log_prob(x), first)


def test_a_folder_is_in_the_order_of_names(folder: Path) -> None:
    (folder / "notes.txt").write_text("no prior")
    priors = load_priors(folder)
    assert list(priors) == ["bassoon", "oboe", "violin"]
    assert [prior.name for prior in priors.values()] == list(priors)
    assert list(load_priors(str(folder))) == list(priors)


def test_a_folder_is_in_the_order_of_its_list(folder: Path) -> None:
    (folder / ORDER_FILE).write_text(json.dumps(["violin", "bassoon"]))
    priors = load_priors(folder)
    assert [(name, prior.name) for name, prior in priors.items()] == [
        ("violin", "violin"),
        ("bassoon", "bassoon"),
    ]


def test_a_set_that_ships_goes_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHIPPED", folder.parent)
    monkeypatch.chdir("/")
    assert list(load_priors(folder.name)) == ["bassoon", "oboe", "violin"]


def test_a_dot_is_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list(load_priors(".")) == ["bassoon", "oboe", "violin"]
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert list(load_priors("..")) == ["bassoon", "oboe", "violin"]


@pytest.mark.parametrize("name", ["strings", "/none/such"])
def test_an_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brass").mkdir()
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path)
    one_line(lambda: load_priors(name), "expected a shipped set .brass. or a folder", Path(name))


def test_a_folder_without_priors(tmp_path: Path) -> None:
    one_line(lambda: load_priors(tmp_path), r"no \*\.safetensors in it", tmp_path)
    (tmp_path / ORDER_FILE).write_text("[]")
    one_line(lambda: load_priors(tmp_path), r"no \*\.safetensors in it", tmp_path)


@pytest.mark.parametrize("content", ["", "{", "3", "null", '{"violin": 1}', "[1, 2]", '"violin"'])
def test_a_damaged_list(folder: Path, content: str) -> None:
    (folder / ORDER_FILE).write_text(content)
    one_line(lambda: load_priors(folder), "expected a JSON list of names", folder / ORDER_FILE)


def test_a_listed_file_is_missing(folder: Path) -> None:
    (folder / ORDER_FILE).write_text('["violin", "harp"]')
    path = folder / "harp.safetensors"
    one_line(lambda: load_priors(folder), "not a readable safetensors file", path)


@pytest.mark.parametrize("size", [0, 5, 100, 3_000])
def test_a_truncated_file(folder: Path, size: int) -> None:
    path = folder / "oboe.safetensors"
    assert path.stat().st_size > size
    path.write_bytes(path.read_bytes()[:size])
    one_line(lambda: load_priors(folder), "not a readable safetensors file", path)


def test_a_text_file(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n" * 9)
    one_line(lambda: load_priors(folder), "not a readable safetensors file", path)


def test_a_foreign_file(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        one_line(lambda: load_priors(folder), f"expected '{FORMAT}'", path)


def rewrite(path: Path, **changes: object) -> None:
    """Change the header of a prior's file; None drops an entry."""
    prior = load_prior(path)
    header: dict[str, object] = {
        "format": FORMAT,
        "name": prior.name,
        "sample_rate": "16000",
        "config": json.dumps(dataclasses.asdict(prior.network.config)),
    }
    kept = {key: str(value) for key, value in (header | changes).items() if value is not None}
    save_file(load_file(path), path, kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"width": 16})},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"layers": 3})},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"head": "logistic"})},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"depth": 3})},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"width": "wide"})},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"sigma_max": None})},
        {"config": "[]"},
        {"config": "null"},
        {"config": "{"},
        {"config": None},
        {"name": None},
        {"sample_rate": None},
        {"sample_rate": "16 kHz"},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "oboe.safetensors"
    rewrite(path)
    assert load_prior(path).name == "oboe"
    rewrite(path, **changes)
    one_line(lambda: load_priors(folder), "weights do not fit their config", path)


def test_the_mismatched_tensor_is_named(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    rewrite(path, config=json.dumps(dataclasses.asdict(CONFIG) | {"head_past": 3}))
    one_line(lambda: load_priors(folder), r"head_past\.weight", path)


def test_differing_sample_rates(folder: Path) -> None:
    save_prior(make_prior("oboe", 44_100), folder / "oboe.safetensors")
    one_line(lambda: load_priors(folder), r"sample rates \[16000, 44100\]", folder)


def test_a_failed_save_leaves_the_older_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    before = (folder / "oboe.safetensors").read_bytes()
    monkeypatch.setattr(checkpoints, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_prior(make_prior("oboe"), folder / "oboe.safetensors")
    assert (folder / "oboe.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 3
