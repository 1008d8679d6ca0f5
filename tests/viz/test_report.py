import io
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import xarray as xr
from PIL import Image
from traces import trace_of

from pyro_sep.audio.resampling import resample
from pyro_sep.cli.app import main
from pyro_sep.diagnostics.verdict import Verdict
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.trace.dataset import save_trace
from pyro_sep.trace.estimate import estimate_sources
from pyro_sep.viz import report
from pyro_sep.viz.report import render_report, write_report

RATE, TIME, CHAINS, DRAWS = 8_000, 2_400, 2, 8
NAMES = ["oboe", "flute"]
STEP = 2 / 32768  # of 16 bits: libsndfile scales by 32767, rounds, and reads by 32768
ONE_CHAIN = {"lp": np.zeros((1, DRAWS)), "log_prior": np.zeros((1, DRAWS, 2))}
LABELS = {"estimate", "true source", "draw 1", "draw 5", "draw 8", "mean of chain 1"}


def make_trace(**changes: Any) -> xr.DataTree:
    """Two tones beyond full scale, with noise; chain 1 is the best."""
    rng = np.random.default_rng(0)
    seconds = np.arange(TIME) / RATE
    truth = np.stack([1.5 * np.sin(2 * np.pi * f * seconds) for f in (300, 900)])
    given = {
        "sources": truth + 0.1 * rng.normal(size=(CHAINS, DRAWS, 2, TIME)),
        "lp": rng.normal(size=(CHAINS, DRAWS)) + 10 * np.arange(CHAINS)[:, None],
        "log_prior": rng.normal(size=(CHAINS, DRAWS, 2)),
        "mixture": truth.mean(0),
        "source_names": NAMES,
        "sample_rate": RATE,
        "true_sources": truth,
        "attrs": {"seed": 4, "gradients": 1234, "settings": {"levels": 22, "step_size": 0.7}},
    }
    return trace_of(**given | changes)


class Page(HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def sounds(self) -> dict[str, tuple[np.ndarray, int]]:
        return {
            element["aria-label"]: soundfile.read(decode(element["src"]))
            for element in self.all("audio")
        }


def decode(uri: str) -> io.BytesIO:
    return io.BytesIO(b64decode(uri.split("base64,")[1], validate=True))


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return make_trace()


@pytest.fixture(scope="module")
def html(tree: xr.DataTree) -> str:
    return render_report(tree)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_sounds_are_those_of_the_trace(tree: xr.DataTree, page: Page) -> None:
    sounds = page.sounds()
    assert set(sounds) == {"mixture, recording"} | {
        f"{n}, {label}" for n in NAMES for label in LABELS
    }
    draws, truth = tree["posterior/sources"].values, tree["constant_data/true_sources"].values
    expected = {"mixture, recording": tree["observed_data/mixture"].values}
    for k, name in enumerate(NAMES):
        expected |= {
            f"{name}, estimate": draws[1, :, k].mean(0),
            f"{name}, true source": truth[k],
            f"{name}, mean of chain 1": draws[0, :, k].mean(0),
        }
        expected |= {f"{name}, draw {i}": draws[1, i - 1, k] for i in (1, 5, 8)}
    peak = max(np.abs(signal).max() for signal in expected.values())
    assert peak > 1.5
    assert f"turned down alike, by {20 * np.log10(peak):.1f} dB" in page.text
    for label, signal in expected.items():
        heard, rate = sounds[label]
        assert rate == RATE
        np.testing.assert_allclose(heard, signal / peak, atol=STEP, rtol=0)


def test_pictures_decode_in_both_themes(page: Page) -> None:
    light, dark = page.all("img"), page.all("source")
    assert len(light) == len(dark) == 2 * 3
    for image, other in zip(light, dark, strict=True):
        assert other["media"] == "(prefers-color-scheme: dark)"
        pixels = [np.asarray(Image.open(decode(uri))) for uri in (image["src"], other["srcset"])]
        assert pixels[0].shape == pixels[1].shape
        assert not np.array_equal(*pixels)
    assert [image["alt"] for image in light[2:4]] == [
        "Waveform of oboe with the band of its draws",
        "Spectrogram of oboe and the spread of its level over the draws",
    ]


def test_nothing_is_outside(page: Page) -> None:
    for _, attrs in page.elements:
        for name in {"src", "srcset", "href"} & set(attrs):
            assert str(attrs[name]).startswith(("data:", "#"))
    assert not page.all("script")
    assert not any(word in page.text for word in ("http", "url(", "@import"))  # of the style


def test_scores_and_their_intervals(tree: xr.DataTree, page: Page) -> None:
    truth = torch.from_numpy(tree["constant_data/true_sources"].values[0])
    draws = torch.from_numpy(tree["posterior/sources"].values[1, :, 0])
    unseparated = float(si_sdr(torch.from_numpy(tree["observed_data/mixture"].values), truth))
    score = float(si_sdr(draws.mean(0), truth))
    low, high = np.quantile(si_sdr(draws, truth), (0.05, 0.95))
    # Tone of power 9 / 8, noise of 0.01: 20.5 dB a draw; a mean of 8 has 9.0 dB more.
    assert (low, score) == pytest.approx((20.5, 29.5), abs=0.3)
    assert f"SI-SDR / dB {score:.1f} {low:.1f} to {high:.1f}" in page.text
    gains = [value - unseparated for value in (score, low, high)]
    assert "improvement / dB {:.1f} {:.1f} to {:.1f}".format(*gains) in page.text


def test_verdict_and_origin_in_words(page: Page) -> None:
    # The noise of the draws is not in the mixture: 0.01 / 2 of 9 / 16 is -20.5 dB.
    share = "The sources miss 0.89 % of the mixture's power; were gains and noise_scale right?"
    assert f"Verdict: not trusted, {Verdict.RESIDUAL} {share} Bands: rough (" in page.text
    assert "-20.5 dB of the mixture is left" in page.text
    for entry in ("seed 4", "gradients 1234", "levels 22", "step_size 0.7"):
        assert entry in page.text
    assert "inference_library_version" in page.text


def test_what_the_trace_lacks_is_not_on_the_page(page: Page) -> None:
    assert "presence" not in page.text
    bare = Page(render_report(make_trace(true_sources=None, attrs={})))
    assert "SI-SDR" not in bare.text
    assert "true source" not in " ".join([bare.text, *bare.sounds()])
    assert "gradients unknown" in bare.text
    assert "nan" not in bare.text


def test_presence_gains_and_silent_truth() -> None:
    silent = np.stack([np.zeros(TIME), np.ones(TIME) * np.arange(TIME)])
    shape = (CHAINS, DRAWS, 2)
    gains = np.tile([0.25, 0.75], (CHAINS, DRAWS, 1))
    presence = np.tile([0.125, 1.0], (CHAINS, DRAWS, 1))
    assert gains.shape == presence.shape == shape
    text = Page(render_report(make_trace(true_sources=silent, gains=gains, presence=presence))).text
    assert "SI-SDR / dB true source is silent" in text
    assert "gain 0.25 0.25 to 0.25" in text
    assert "presence 0.12 0.12 to 0.12" in text


def test_names_are_escaped() -> None:
    name = '"><script>alert(1)</script>'
    page = Page(render_report(make_trace(source_names=[name, "flute"], attrs={"mixture": name})))
    assert not page.all("script")
    assert f"{name}, estimate" in page.sounds()
    assert page.text.count(name) > 2


def test_draws_of_a_long_recording_are_heard_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "EXCERPT", 0.1)
    tree = make_trace()
    tree["posterior/sources"] /= 2  # within full scale
    page = Page(render_report(tree))
    sounds = page.sounds()
    heard, _ = sounds["flute, draw 1"]
    excerpt = tree["posterior/sources"].values[1, 0, 1, 800:1600]
    assert len(sounds["flute, estimate"][0]) == TIME
    assert len(heard) == 800
    assert np.corrcoef(heard, excerpt)[0, 1] > 1 - 1e-6


def test_all_chains_of_a_mean_are_heard_together() -> None:
    tree = make_trace(attrs={"estimate": "mean"})
    page = Page(render_report(tree))
    assert f"the mean of the draws of {CHAINS} chains together." in page.text
    assert "Where the chains disagree, it is shrunk" in page.text
    means = tree["posterior/sources"].values.mean(1)[:, 0]
    sounds = page.sounds()
    expected = {"estimate": estimate_sources(tree).values[0]}
    expected |= {"mean of chain 1": means[0], "mean of chain 2": means[1]}
    for label, signal in expected.items():  # all turned down alike
        heard = sounds[f"oboe, {label}"][0]
        scale = np.vdot(sounds["oboe, estimate"][0], expected["estimate"]) / np.vdot(
            expected["estimate"], expected["estimate"]
        )
        np.testing.assert_allclose(heard, scale * signal, atol=1e-4)


def test_sounds_have_the_band_of_the_recording() -> None:
    noise = 0.1 * np.random.default_rng(1).normal(size=(CHAINS, DRAWS, 1, TIME))
    truth = make_trace()["constant_data/true_sources"].values
    exact = truth + noise * np.array([[1], [-1]])  # the draws of the sources add up to the mixture
    tree = make_trace(true_sources=None, sources=exact)
    mixture = torch.from_numpy(tree["observed_data/mixture"].values)
    seconds = torch.arange(2 * TIME) / (2 * RATE)
    whole = resample(mixture, RATE, 2 * RATE) + 0.2 * torch.sin(2 * torch.pi * 6_000 * seconds)
    recording = torch.stack([1.5 * whole, 0.5 * whole]).float()
    page = Page(render_report(tree, recording=(recording, 2 * RATE)))
    assert "Sounds reach up to 8 kHz, the priors and the pictures up to 4 kHz." in page.text
    sounds = {label: sound for label, (sound, rate) in page.sounds().items() if rate == 2 * RATE}
    assert len(sounds) == len(page.sounds())
    heard, tones = sounds["mixture, recording"], whole.numpy()
    scale = np.vdot(heard, tones) / np.vdot(tones, tones)
    np.testing.assert_allclose(heard, scale * tones, atol=1e-3)
    high = 0.0
    for k, name in enumerate(NAMES):
        estimate = torch.from_numpy(estimate_sources(tree).values[k]).float()
        above = sounds[f"{name}, estimate"] - scale * resample(estimate, RATE, 2 * RATE).numpy()
        drawn = torch.from_numpy(tree["posterior/sources"].values[1, 0, k]).float()
        expected = scale * resample(drawn, RATE, 2 * RATE).numpy() + above
        np.testing.assert_allclose(sounds[f"{name}, draw 1"], expected, atol=1e-3)
        high = high + 0.5 * above
    tone = scale * 0.2 * np.sin(2 * np.pi * 6_000 * seconds.numpy())
    middle = slice(TIME // 2, -TIME // 2)  # a window of the filter reaches over the ends
    missing = high[middle] - tone[middle]
    assert np.square(missing).mean() < 0.05 * np.square(tone).mean()


def test_a_recording_without_a_wider_band_changes_nothing(tree: xr.DataTree, html: str) -> None:
    narrow = torch.zeros(2, TIME // 2)
    assert render_report(tree, recording=(narrow, RATE // 2)) == html


def test_a_chain_that_diverged_is_silent() -> None:
    sources = np.array(make_trace()["posterior/sources"])
    sources[0] = np.nan
    lp = np.stack([np.full(DRAWS, np.nan), np.zeros(DRAWS)])
    sounds = Page(render_report(make_trace(sources=sources, lp=lp))).sounds()
    assert not sounds["oboe, mean of chain 1"][0].any()
    assert sounds["oboe, estimate"][0].any()


def test_one_trace_gives_one_page(tree: xr.DataTree, html: str, tmp_path: Path) -> None:
    write_report(tree, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == html
    assert os.listdir(tmp_path) == ["a.html"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(tree, tmp_path / "none" / "a.html")


def test_imports_without_torch_and_pyplot() -> None:
    code = (
        "import sys, pyro_sep.viz.report;"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_command_line(
    tree: xr.DataTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_trace(tree, tmp_path / "trace.nc")
    out = tmp_path / "page.html"
    monkeypatch.setattr(
        sys, "argv", ["pyro-sep", "report", str(tmp_path / "trace.nc"), "--out", str(out)]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert capsys.readouterr().out == f"{out}: open it in a browser\n"
    assert len(Page(out.read_text(encoding="utf-8")).sounds()) == 13


def test_words_are_explained(page: Page) -> None:
    assert "A draw is one possible version of all sources" in page.text
    assert f"Here are {CHAINS} chains of {DRAWS} draws each." in page.text
    assert "the mean of the draws of chain 2, which has the highest log posterior." in page.text
    for word in ("Band", "Spread", "centroid", "SI-SDR", "Keyboard"):
        assert f" {word} " in page.text
    sources = np.random.default_rng(1).normal(size=(1, DRAWS, 2, TIME))
    single = Page(render_report(make_trace(sources=sources, **ONE_CHAIN)))
    assert f"Here is 1 chain of {DRAWS} draws." in single.text
    assert "the mean of the draws of chain 1." in single.text


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, file: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """A page whose players have loaded, and what its console said."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
    page.goto(file.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('audio')].every(a => a.readyState > 0 || a.error)"
    )
    return page, complaints


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark")])
def test_it_opens_in_a_browser(
    browser: Any, tree: xr.DataTree, tmp_path: Path, width: int, scheme: str
) -> None:
    write_report(tree, tmp_path / "report.html")
    page, complaints = opened(browser, tmp_path / "report.html", width, scheme)
    durations = page.eval_on_selector_all("audio", "all => all.map(a => a.duration)")
    pictures = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.naturalWidth, i.currentSrc])"
    )
    attribute = {"dark": ("source", "srcset"), "light": ("img", "src")}[scheme]
    shown = page.eval_on_selector_all(attribute[0], f"all => all.map(s => s.{attribute[1]})")
    assert complaints == []
    assert durations == pytest.approx([TIME / RATE] * 13, abs=1e-3)
    assert all(pixels > 100 for pixels, _ in pictures)
    assert [source for _, source in pictures] == shown
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing is wider


#: What has the focus: the label of a player, or else the first words of its text.
FOCUSED = """() => {
  const e = document.activeElement;
  return e.getAttribute('aria-label') || e.textContent.trim().split(/\\s+/).slice(0, 5).join(' ');
}"""


def test_it_works_with_a_keyboard(browser: Any, tree: xr.DataTree, tmp_path: Path) -> None:
    """Tab goes down the page, each stop is visible, the space bar plays, arrows move in time."""
    write_report(tree, tmp_path / "report.html")
    page, complaints = opened(browser, tmp_path / "report.html", 1280, "light")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "Skip to the players"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # seen while it has the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "listen"
    stops: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        stop = page.evaluate(FOCUSED)
        stops += [] if stops and stops[-1] == stop else [stop]  # a player has several controls
    players = [f"{name}, {label}" for name in NAMES for label in ("estimate", "true source")]
    order = ["How to read the pictures", "mixture, recording", *players]
    found = [stop for stop in stops if stop in order]
    assert found == order
    assert stops[-2:] == ["Diagnostics by source", "Settings and versions"]
    page.evaluate(
        """() => {
          window.heard = [];
          for (const name of ['play', 'pause', 'seeking'])
            document.querySelector('audio').addEventListener(name, () => heard.push(name));
        }"""
    )
    page.locator("summary").first.focus()
    page.keyboard.press("Tab")
    for key, event in (("Space", "play"), ("Space", "pause"), ("ArrowRight", "seeking")):
        for _ in range(20):  # headless players react late, or not to the first key
            if key == "ArrowRight":  # at its end a player has nowhere to go
                page.evaluate("document.querySelector('audio').currentTime = 0")
                page.wait_for_timeout(200)
            page.evaluate("window.heard = []")
            page.keyboard.press(key)
            page.wait_for_timeout(500)
            if page.evaluate(f"heard.includes('{event}')"):
                break
        assert page.evaluate(f"heard.includes('{event}')"), f"{key} does not {event}"
    assert complaints == []


def test_the_score_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected SI-SDR" not in Page(report.render_report(make_trace())).text
    scores = {name: (10.0 + k, 15.4 + k) for k, name in enumerate(NAMES)}
    monkeypatch.setattr(report, "expected_scores", lambda tree: scores)
    page = Page(report.render_report(make_trace()))
    for k in range(len(NAMES)):
        assert f"expected SI-SDR / dB (80 %) {10 + k} to {15 + k}" in page.text


def test_explanations_are_switched_by_buttons() -> None:
    label = np.repeat([[0] * 5 + [1] * 3], CHAINS, 0)
    weight = np.full((CHAINS, DRAWS), 1 / (CHAINS * DRAWS))
    modes = {"label": label, "weight": weight, "probability": [0.625, 0.375]}
    tree = make_trace(modes=modes)
    html = render_report(tree)
    page = Page(html)
    buttons = [box for box in page.all("input") if box["type"] == "radio"]
    assert [box["id"] for box in buttons] == ["explanation1", "explanation2"]
    assert ["checked" in box for box in buttons] == [True, False]
    assert "explanation 1, probability 62%" in page.text
    hidden = '#explanation2:checked) .version:not([data-version="2"])'
    assert hidden in html
    draws = tree["posterior"]["sources"].values[1]  # the best chain
    sounds = page.sounds()
    for k, name in enumerate(NAMES):
        for title, own in (("estimate", draws[:5, k]), ("explanation 2", draws[5:, k])):
            heard = sounds[f"{name}, {title}"][0]
            expected = own.mean(0)
            scale = np.abs(heard).max() / np.abs(expected).max()
            assert np.abs(heard - scale * expected).max() < 2 * STEP
    assert "mean of each chain" not in page.text
    plain = Page(render_report(make_trace()))
    assert not plain.all("fieldset")
    assert "mean of each chain" in plain.text


def test_agreement_over_time_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = "Agreement of the chains over time, a row per source"
    assert picture not in render_report(make_trace())  # 0.3 s
    monkeypatch.setattr(report, "WINDOWS", 0)
    assert picture in render_report(make_trace())
    one = make_trace(sources=make_trace()["posterior/sources"].values[:1], **ONE_CHAIN)
    assert picture not in render_report(one)
