import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from networks import HALVES, NESTED, WAVENET, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_sep.data.toy import WAVEFORMS
from pyro_sep.models.registry import FAMILIES, NetworkConfig, build, empty_weights, family_of
from pyro_sep.priors import io as checkpoints
from pyro_sep.priors.io import (
    FORMATS,
    SET_FILE,
    SHIPPED,
    add_to_set,
    check_set,
    choose_priors,
    load_prior,
    load_priors,
    save_prior,
    save_priors,
)
from pyro_sep.priors.networks import PRIORS, FloWaveNetPrior, NetworkPrior, WaveNetPrior
from pyro_sep.priors.waveform import WaveformPrior

CONFIG = WAVENET
CATEGORICAL = dataclasses.replace(CONFIG, head="categorical", spectra=())
CONFIGS: dict[str, NetworkConfig] = {
    "gaussians": CONFIG,
    "categorical": CATEGORICAL,
    "nested": NESTED,
    "halves": dataclasses.replace(HALVES, coupling="spline"),
}


NO_SET = r'expected \{"priors": \[NAME, \.\.\.\], "mixing": "sum" or "mean", "estimate"'


def make_prior(
    name: str, sample_rate: int = 16_000, config: NetworkConfig = CONFIG
) -> NetworkPrior:
    torch.manual_seed(len(name))
    network = build(config)
    randomise(network)
    return PRIORS[family_of(config)](network, name=name, sample_rate=sample_rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("violin", "oboe", "bassoon"):
        save_prior(make_prior(name), tmp_path / f"{name}.safetensors")
    return tmp_path


def write_set(folder: Path, names: list[str], mixing: str = "sum", estimate: str = "mean") -> None:
    content = {"priors": names, "mixing": mixing, "estimate": estimate}
    (folder / SET_FILE).write_text(json.dumps(content))


def one_line(call: Callable[[], object], match: str, path: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    config = CONFIGS[kind]
    prior = make_prior("oboe", 8_000, config)
    prior.treble = (0.5, 0.25)
    save_prior(prior, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    torch.manual_seed(99)
    loaded = load_prior(tmp_path / "a.safetensors")
    assert type(loaded) is type(prior)
    assert loaded.network.config == config
    assert (loaded.name, loaded.sample_rate) == ("oboe", 8_000)
    assert loaded.frame(20).condition(0.1).treble == (0.5, 0.25)
    before, after = prior.network.state_dict(), loaded.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    x = torch.linspace(-1, 1, 20)
    for sigma in (0.01, 1.0):
        first = prior.frame(20).condition(sigma).log_prob(x)
        assert torch.equal(loaded.frame(20).condition(sigma).log_prob(x), first)


def test_every_family_has_a_format() -> None:
    assert list(FORMATS) == ["pyro_sep.wavenet.1", "pyro_sep.flow.1"]
    assert list(FORMATS.values()) == list(FAMILIES) == ["wavenet", "flow"]


def test_what_an_actnorm_has_seen_is_kept(tmp_path: Path) -> None:
    prior = make_prior("oboe", config=HALVES)
    for module in prior.network.modules():
        if hasattr(module, "initialized"):
            module.initialized.fill_(True)
    save_prior(prior, tmp_path / "a.safetensors")
    loaded = load_prior(tmp_path / "a.safetensors").network.state_dict()
    flags = [value for key, value in loaded.items() if key.endswith("initialized")]
    assert len(flags) == 4
    assert all(bool(flag) for flag in flags)


def test_a_folder_is_in_the_order_of_names(folder: Path) -> None:
    (folder / "notes.txt").write_text("no prior")
    priors = load_priors(folder)
    assert list(priors) == ["bassoon", "oboe", "violin"]
    assert [prior.name for prior in priors.values()] == list(priors)
    assert list(load_priors(str(folder))) == list(priors)


def test_a_folder_is_in_the_order_of_its_list(folder: Path) -> None:
    write_set(folder, ["violin", "bassoon"])
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


def test_sets_are_joined_by_a_plus(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "a+b"  # a folder of this name is one set
    other.mkdir()
    save_prior(make_prior("harp"), other / "harp.safetensors")
    assert list(load_priors(other)) == ["harp"]
    other = other.rename(tmp_path / "plucked")
    assert list(load_priors(f"{other}+{folder}")) == ["harp", "bassoon", "oboe", "violin"]
    one_line(
        lambda: load_priors(f"{other}+none"), "got 'none', expected a shipped set", Path("none")
    )
    save_prior(make_prior("oboe"), other / "oboe.safetensors")
    one_line(lambda: load_priors(f"{other}+{folder}"), "got two of the source 'oboe' in", other)


@pytest.mark.parametrize("name", ["strings", "/none/such"])
def test_an_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brass" / "horn").mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path)
    message = r"expected a shipped set \(brass, brass/horn, toy/oracle\) or a folder"
    one_line(lambda: load_priors(name), message, Path(name))


def test_a_folder_without_priors(tmp_path: Path) -> None:
    one_line(lambda: load_priors(tmp_path), r"no \*\.safetensors in it", tmp_path)
    write_set(tmp_path, [])
    one_line(lambda: load_priors(tmp_path), r"no \*\.safetensors in it", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "3", "null", '{"violin": 1}', "[1, 2]", '"violin"', '["violin"]'),
        '{"priors": ["violin"]}',
        '{"priors": ["violin", 2], "mixing": "sum", "estimate": "mean"}',
        '{"priors": "violin", "mixing": "sum", "estimate": "mean"}',
        '{"priors": ["violin"], "mixing": "max", "estimate": "mean"}',
        '{"priors": ["violin"], "mixing": "sum", "estimate": ["mean"]}',
        '{"priors": ["violin"], "mixing": "sum", "estimate": "mean", "rate": 1}',
    ],
)
def test_a_damaged_list(folder: Path, content: str) -> None:
    (folder / SET_FILE).write_text(content)
    one_line(lambda: load_priors(folder), NO_SET, folder / SET_FILE)


def test_a_listed_file_is_missing(folder: Path) -> None:
    write_set(folder, ["violin", "harp"])
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
        message = (
            f"got format {metadata and 'pt'!r}, expected one of pyro_sep.wavenet.1, "
            "pyro_sep.flow.1; train the prior with `pyro-sep train`"
        )
        one_line(lambda: load_priors(folder), message, path)


def test_a_format_of_a_later_version(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    rewrite(path, format="pyro_sep.flow.2")
    one_line(lambda: load_priors(folder), "got format 'pyro_sep.flow.2', expected one of", path)


def rewrite(path: Path, **changes: object) -> None:
    """Change the header of a prior's file; None drops an entry."""
    prior = load_prior(path)
    family = "wavenet" if isinstance(prior, WaveNetPrior) else "flow"
    header: dict[str, object] = {
        "format": f"pyro_sep.{family}.1",
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
        {"config": json.dumps(dataclasses.asdict(NESTED))},
        {"format": "pyro_sep.flow.1"},
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


def test_files_from_before_bins_had_one_spacing(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    values = dataclasses.asdict(CONFIG)
    rewrite(path, config=json.dumps(values | {"companding": "linear"}))
    assert load_prior(path).network.config == CONFIG
    rewrite(path, config=json.dumps(values | {"companding": "mu-law"}))
    one_line(lambda: load_priors(folder), "weights do not fit their config", path)


def config(**changes: object) -> dict[str, object]:
    return {"config": json.dumps(dataclasses.asdict(CONFIG) | changes)}


@pytest.mark.parametrize(
    "changes",
    [
        config(sigma_data="1"),
        config(sigma_data=1e300),
        config(sigma_data=float("nan")),
        config(sigma_data=0),
        config(sigma_data=True),
        config(sigma_max=float("inf")),
        config(sigma_min=[0.1]),
        config(width=0),
        config(width=2**40),
        config(width=8.0),
        config(width=True),
        config(layers=10**9),
        config(blocks=-1),
        config(hop=2**30),
        config(past=None),
        config(spectra=[2**27]),
        config(spectra=[8] * 10**5),
        config(spectra=8),
        config(spectra=["8"]),
        config(spectra=[8, 8]),
        config(components=10**30),
        config(relative="no"),
        config(head=["gaussians"]),
        {"config": "[" * 100_000},
        {"config": '{"width": ' * 100_000},
        {"config": json.dumps({"width": 8})},
        {"sample_rate": "0"},
        {"sample_rate": "-1"},
        {"sample_rate": "1000000000000"},
        {"sample_rate": "1e4"},
        {"sample_rate": "9" * 5_000},
        {"treble": "[-0.1]"},
        {"treble": "[NaN]"},
        {"treble": json.dumps([1.0] * 100_000)},
        {"treble": '{"0": 1.0}'},
        {"treble": '["1"]'},
        {"name": "residual"},
        {"name": "Mixture"},
        {"name": "../sine"},
        {"name": ""},
        {"name": "a\nb"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_header_that_lies(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "oboe.safetensors"
    rewrite(path, **changes)
    started = time.monotonic()
    one_line(lambda: load_priors(folder), "weights do not fit their config", path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "changes",
    [{"flows": 10**9}, {"squeeze": 2**30}, {"kernel": 10**9 + 1}, {"head_reach": 2**40}],
    ids=str,
)
def test_a_header_of_a_flow_that_lies(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "oboe.safetensors"
    save_prior(make_prior("oboe", config=NESTED), path)
    rewrite(path, config=json.dumps(dataclasses.asdict(NESTED) | changes))
    one_line(lambda: load_priors(folder), "weights do not fit their config", path)


@pytest.mark.parametrize("config", [CONFIG, CATEGORICAL, NESTED, HALVES], ids=str)
def test_empty_weights_are_those_of_a_network(config: NetworkConfig) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    empty, real = empty_weights(config), build(config).state_dict()
    assert list(empty) == list(real)
    assert {name: weight.shape for name, weight in empty.items()} == {
        name: weight.shape for name, weight in real.items()
    }
    large = {name for name, weight in real.items() if weight.numel() > 64}
    assert all(empty[name].is_meta for name in large)
    torch.set_rng_state(before)
    empty_weights(config)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    path = folder / "oboe.safetensors"
    tensors, prior = load_file(path), load_prior(path)
    tensors["read.bias"][2] = value
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    one_line(lambda: load_priors(folder), r"got NaN, infinity or .* weights read\.bias", path)
    prior.network.read.bias.data[2] = value
    before = path.read_bytes()
    one_line(lambda: save_prior(prior, path), "prior: got NaN, infinity or", Path("read.bias"))
    assert path.read_bytes() == before


def test_a_tensor_of_another_type(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    tensors = {name: weight.double() for name, weight in load_file(path).items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    assert load_prior(path).network.read.bias.dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["residual", "RESIDUAL", "Draws", "mixture", "", ".", "..", ".oboe", "a/b", "caf\udce9"]
)
def test_names_that_a_source_may_not_have(tmp_path: Path, name: str) -> None:
    prior = make_prior("oboe")
    prior.name = name
    one_line(
        lambda: save_prior(prior, tmp_path / "oboe.safetensors"), "source: got the", Path("source")
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["residual", "Mixture", "draws"])
def test_files_that_a_source_may_not_have(folder: Path, name: str) -> None:
    (folder / "oboe.safetensors").rename(folder / f"{name}.safetensors")
    one_line(lambda: load_priors(folder), rf"source: got the name '{name}'", folder)


def test_names_that_differ_in_capitals_alone(folder: Path) -> None:
    (folder / "oboe.safetensors").rename(folder / "Violin.safetensors")
    one_line(lambda: load_priors(folder), "differ in more than capitals", folder)


@pytest.mark.parametrize("name", ["Ke$ha", r"$\frac{$", "bass guitar", "Süßes", "=1+1", "鼓"])
def test_names_that_a_source_may_have(tmp_path: Path, name: str) -> None:
    save_prior(make_prior(name), tmp_path / f"{name}.safetensors")
    assert list(load_priors(tmp_path)) == [name]


def test_what_systems_put_into_a_folder_is_no_prior(folder: Path) -> None:
    for name in ("._oboe", ".pyro-sep-12"):
        (folder / f"{name}.safetensors").write_bytes(b"half")
    assert list(load_priors(folder)) == ["bassoon", "oboe", "violin"]


@pytest.mark.parametrize(
    "entry", ["/etc/passwd", "../../../sine", "a/../b", "..", "", "a\0b", "a/../../../b"]
)
def test_entries_that_lead_astray(folder: Path, entry: str) -> None:
    write_set(folder, ["oboe", entry])
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load_priors(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_list_that_is_deep_or_large(folder: Path) -> None:
    for content in ("[" * 100_000, json.dumps(["oboe"]) + " " * 2**21):
        (folder / SET_FILE).write_text(content)
        one_line(lambda: load_priors(folder), NO_SET, folder / SET_FILE)


def test_a_neighbour_of_a_set(families: Path) -> None:
    write_set(families / "flow", ["../wavenet/sine", "saw"])
    assert list(load_priors(families / "flow")) == ["sine", "saw"]


def test_a_slash_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SHIPPED", folder.parent)
    for name in (f"{folder.name}/", f"{folder.name}//", Path(folder.name), f"{folder}/"):
        assert list(load_priors(name)) == ["bassoon", "oboe", "violin"]
    assert list(load_priors("toy/oracle/")) == list(WAVEFORMS)
    with pytest.raises(ValueError, match="priors: got '', expected"):
        load_priors("")


def test_some_of_a_set_are_chosen(folder: Path) -> None:
    priors = load_priors(folder)
    for names in ("violin,oboe", " violin , oboe", "violin,\toboe "):
        assert list(choose_priors(priors, names)) == ["violin", "oboe"]
    for names, message in {
        "oboe,oboe": "got 'oboe' twice",
        "oboe, oboe": "got 'oboe' twice",
        "oboe,": "got '', expected some of",
        "": "got '', expected some of",
        "harp": "got 'harp', expected some of",
    }.items():
        with pytest.raises(ValueError, match=f"^sources: {message}"):
            choose_priors(priors, names)


@pytest.mark.parametrize(
    "changes",
    [
        {"coupling": "quadratic"},
        {"partition": "thirds"},
        {"flows": 1},
        {"squeeze": 6},
        {"blocks": 2},
        {"components": 4},
        {"sigma_min": 0.0},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_a_flow(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "oboe.safetensors"
    save_prior(make_prior("oboe", config=NESTED), path)
    assert isinstance(load_priors(folder)["oboe"], FloWaveNetPrior)
    rewrite(path, config=json.dumps(dataclasses.asdict(NESTED) | changes))
    one_line(lambda: load_priors(folder), "weights do not fit their config", path)


def test_the_mismatched_tensor_is_named(folder: Path) -> None:
    path = folder / "oboe.safetensors"
    rewrite(path, config=json.dumps(dataclasses.asdict(CONFIG) | {"head_past": 3}))
    one_line(lambda: load_priors(folder), r"head_past\.weight", path)


def test_differing_sample_rates(folder: Path) -> None:
    save_prior(make_prior("oboe", 44_100), folder / "oboe.safetensors")
    one_line(lambda: load_priors(folder), r"sample rates \[16000, 44100\]", folder)


def test_differing_sample_rates_of_two_families(folder: Path) -> None:
    save_prior(make_prior("oboe", 8_000, NESTED), folder / "oboe.safetensors")
    one_line(lambda: load_priors(folder), r"sample rates \[8000, 16000\]; expected one", folder)


@pytest.fixture
def families(tmp_path: Path) -> Path:
    """A set that takes each source's prior from a set of one family."""
    for family, config in (("wavenet", CONFIG), ("flow", NESTED)):
        (tmp_path / family).mkdir()
        for name in ("sine", "saw"):
            save_prior(make_prior(name, config=config), tmp_path / family / f"{name}.safetensors")
    write_set(tmp_path, ["wavenet/sine", "flow/saw"])
    return tmp_path


def test_a_set_may_be_of_several_families(families: Path) -> None:
    priors = load_priors(families)
    assert list(priors) == ["sine", "saw"]
    assert [type(prior) for prior in priors.values()] == [WaveNetPrior, FloWaveNetPrior]
    assert [prior.name for prior in priors.values()] == ["sine", "saw"]
    write_set(families, ["flow/saw", "flow/sine"])
    priors = load_priors(families)
    assert list(priors) == ["saw", "sine"]
    assert all(isinstance(prior, FloWaveNetPrior) for prior in priors.values())
    assert list(load_priors(families / "wavenet")) == ["saw", "sine"]


def test_a_set_below_a_set_goes_by_its_path(
    families: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHIPPED", families.parent)
    monkeypatch.chdir("/")
    flow = load_priors(f"{families.name}/flow")
    assert {type(prior) for prior in flow.values()} == {FloWaveNetPrior}
    assert list(load_priors(families.name)) == ["sine", "saw"]


def test_the_priors_of_several_sets_have_one_rate(families: Path) -> None:
    path = families / "flow" / "saw.safetensors"
    save_prior(make_prior("saw", 8_000, NESTED), path)
    one_line(lambda: load_priors(families), r"sample rates \[8000, 16000\]", families)
    path.unlink()
    one_line(lambda: load_priors(families), "not a readable safetensors file", path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sets_that_ship_of_one_family(family: str) -> None:
    priors = load_priors(f"toy/{family}")
    assert list(priors) == ["sine", "saw", "square", "triangle"]
    for prior in priors.values():
        assert type(prior) is PRIORS[family]
        assert prior.network.config.multiple == prior.multiple


def test_the_set_that_ships_takes_each_from_a_family() -> None:
    priors = load_priors("toy")
    assert list(priors) == ["sine", "saw", "square", "triangle"]
    entries = json.loads((SHIPPED / "toy" / SET_FILE).read_text())["priors"]
    for entry, (name, prior) in zip(entries, priors.items(), strict=True):
        family, _, source = entry.partition("/")
        assert source == name == prior.name
        assert type(prior) is PRIORS[family]


def test_a_failed_save_leaves_the_older_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(temporary: Path, path: Path) -> None:
        raise KeyboardInterrupt

    before = (folder / "oboe.safetensors").read_bytes()
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_prior(make_prior("oboe"), folder / "oboe.safetensors")
    assert (folder / "oboe.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


def test_a_source_that_a_set_names_twice(families: Path) -> None:
    write_set(families, ["wavenet/saw", "flow/saw"])
    one_line(lambda: load_priors(families), "got a source twice", families / SET_FILE)


def test_the_true_priors_need_no_files(tmp_path: Path) -> None:
    priors = load_priors("toy/oracle")
    assert list(priors) == list(WAVEFORMS)
    assert all(isinstance(prior, WaveformPrior) for prior in priors.values())
    path = tmp_path / "sine.safetensors"
    one_line(lambda: save_prior(priors["sine"], path), "got the true prior of 'sine'", Path("sine"))
    assert not path.exists()


def test_what_the_caller_has_set_does_not_matter() -> None:
    with torch.device("cpu"):
        plain = load_priors("toy/wavenet")["sine"]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            prior = load_priors("toy/wavenet")["sine"]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(prior.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32


def test_one_prior_gives_one_file(tmp_path: Path) -> None:
    prior = make_prior("Süßes")
    contents = set()
    for number in range(8):  # the writer's order of the metadata is random
        path = tmp_path / f"{number}.safetensors"
        save_prior(prior, path)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert load_prior(path).name == "Süßes"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_no_use_are_not_cast(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "oboe.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({key: part.to(dtype) for key, part in load_file(path).items()}, path, metadata)
    one_line(lambda: load_priors(folder), "got numbers of type", path)


@pytest.mark.parametrize("value", ["sigma_data", "sigma_min", "sigma_max"])
def test_a_config_that_does_not_say_what_the_network_knows(folder: Path, value: str) -> None:
    path = folder / "oboe.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    del config[value]
    save_file(load_file(path), path, metadata | {"config": json.dumps(config)})
    one_line(lambda: load_priors(folder), f"config: got none of {value}", path)


def test_an_order_that_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "priors.json")
    one_line(lambda: load_priors(folder), NO_SET, folder)
    (folder / "priors.json").unlink()
    (folder / "priors.json").symlink_to(folder / "nowhere")
    one_line(lambda: load_priors(folder), NO_SET, folder)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        *((name, ("mean", "mode")) for name in ("toy", "toy/wavenet", "toy/flow", "toy/oracle")),
        ("music", ("sum", "mean")),
    ],
)
def test_the_sets_that_ship_say_how_their_sources_add_up(name: str, law: tuple[str, str]) -> None:
    for prior in load_priors(name).values():
        wide = prior.expand(torch.Size((2,)))
        for same in (prior, prior.condition(prior.sigmas[1]), prior.frame(256), wide):
            assert (same.mixing, same.estimate) == law


def test_a_folder_without_a_list_is_of_recordings(folder: Path) -> None:
    assert {(p.mixing, p.estimate) for p in load_priors(folder).values()} == {("sum", "mean")}
    write_set(folder, ["violin", "oboe"], "mean", "mode")
    assert {(p.mixing, p.estimate) for p in load_priors(folder).values()} == {("mean", "mode")}


def tone(name: str) -> NetworkPrior:
    prior = make_prior(name)
    prior.mixing, prior.estimate = "mean", "mode"
    return prior


def test_a_set_grows_by_priors_of_its_law(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    assert add_to_set(folder, tone("violin")) == folder / "violin.safetensors"
    add_to_set(folder, tone("bassoon"))
    add_to_set(folder, tone("violin"))  # trained again
    content = json.loads((folder / SET_FILE).read_text())
    assert content == {"priors": ["violin", "bassoon"], "mixing": "mean", "estimate": "mode"}
    loaded = load_priors(folder)
    assert list(loaded) == ["violin", "bassoon"]
    assert {prior.estimate for prior in loaded.values()} == {"mode"}
    before = sorted(folder.iterdir())
    assert len(before) == 3
    message = "got priors of mixing 'mean' and estimate 'mode', expected 'sum' and 'mean'; give"
    one_line(lambda: add_to_set(folder, make_prior("oboe")), message, folder)
    one_line(lambda: check_set(folder, "sum", "mean"), message, folder)
    assert sorted(folder.iterdir()) == before


def test_a_folder_of_recordings_becomes_a_set(folder: Path) -> None:
    one_line(lambda: add_to_set(folder, tone("horn")), "got priors of mixing 'sum'", folder)
    add_to_set(folder, make_prior("horn"))
    assert list(load_priors(folder)) == ["bassoon", "oboe", "violin", "horn"]


def test_a_prior_takes_the_place_of_one_from_another_folder(families: Path) -> None:
    add_to_set(families, make_prior("sine"))
    assert json.loads((families / SET_FILE).read_text())["priors"] == ["sine", "flow/saw"]


def test_many_add_to_a_set_at_once(tmp_path: Path) -> None:
    priors = [tone(f"violin{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(add_to_set, tmp_path), priors))
    assert sorted(load_priors(tmp_path)) == [prior.name for prior in priors]


def test_a_set_is_saved_whole(tmp_path: Path) -> None:
    priors = {name: tone(name) for name in ("violin", "oboe")}
    save_priors(priors, tmp_path)
    loaded = load_priors(tmp_path)
    assert list(loaded) == ["violin", "oboe"]
    assert {prior.mixing for prior in loaded.values()} == {"mean"}


def test_a_set_that_cannot_be_read_back_is_not_begun(tmp_path: Path) -> None:
    song, other = tone("oboe"), tone("violin")
    song.mixing = "sum"
    with pytest.raises(ValueError, match=r"^priors: got 'flute' for the prior of 'violin', exp"):
        save_priors({"flute": other}, tmp_path)
    with pytest.raises(ValueError, match=r"^priors: got mixing 'sum' for oboe, 'mean' for violin"):
        save_priors({"oboe": song, "violin": other}, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
