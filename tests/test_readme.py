"""The figures of the README are those that the commands wrote, and it stays short."""

import csv
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOYS = (
    "{median_improvement_db:.0f} dB",
    "{median_si_sdr_db:.0f} dB",
    "{mixtures@count}",
    "{cpu_seconds_per_mixture:.0f} s",
)
NOW = tuple(part.replace("cpu_seconds_per_mixture", "cpu_seconds") for part in TOYS)
MUSIC = (
    "{table.posterior.all:.0f} dB",
    "{table.posterior.SI-SDR:.0f} dB",
    "{tracks@count}",
    "{table.posterior.CPU s:.0f} s",
)
ROWS = {
    "two tones, 0.03 s": ("toys/two.json", TOYS),
    "four tones, 0.13 s": ("toys/four.json", NOW),
    "four tones, 1 s": ("toys/second.json", TOYS),
    "bass and drums, 1 s of rendered music": ("music/two/summary.json", MUSIC),
    "bass, drums, vocals, other, 1 s": ("music/four/summary.json", MUSIC),
    "the same at `quick`, the default": ("music/four-quick/summary.json", MUSIC),
    "the same with `--priors music-4k`": ("music/four-4k-standard/summary.json", MUSIC),
}


@pytest.mark.parametrize("label", ROWS)
def test_its_table_has_what_the_commands_wrote(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    from figures import fill, read

    place, cells = ROWS[label]
    content = read(ROOT / "docs" / "results" / place)
    filled = [fill(cell, content).replace("\N{NO-BREAK SPACE}", " ") for cell in cells]
    assert f"| {' | '.join([label, *filled])} |\n" in README


@pytest.mark.parametrize("folder", ["ten", "ten-4k"])
def test_what_it_says_of_records(folder: str) -> None:
    with (ROOT / "docs" / "results" / "records" / folder / "posterior.csv").open() as file:
        gains = [float(row["improvement"]) for row in csv.DictReader(file)]
    middle, least, most = median(gains), min(gains), max(gains)
    said = f"gain {middle:.0f} dB in the median, from {least:.0f} to {most:.0f} dB"
    assert said in README.replace("\n", " ")


def test_it_is_short() -> None:
    assert len(README.encode()) <= 7_000


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
