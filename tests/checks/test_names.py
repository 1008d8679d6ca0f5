import csv
import io

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyro_sep.checks.names import cell, literal, printable
from pyro_sep.viz.png import save_figure


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Café 東京", "Café 東京"),
        ("a\x1b]0;owned\x07b", r"a\x1b]0;owned\x07b"),
        ("two\nlines\r", r"two\nlines\r"),
        ("caf\udce9", r"caf\udce9"),
        ("gpj.\u202e3pm", r"gpj.\u202e3pm"),
        ("nul\0", r"nul\x00"),
    ],
)
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).encode()  # no lone surrogate is left


@pytest.mark.parametrize(
    "name",
    ["Ke$ha_x$", "$$in", r"$\frac{$", "a$_$b", r"\$5", "$" * 7, "caf\udce9", "東京", "\x1b$"],
)
def test_a_picture_shows_a_name_as_it_is(name: str, tmp_path) -> None:
    figure = Figure()
    title = figure.subplots().set_title(literal(name))
    save_figure(figure, tmp_path / "name.png")
    text, is_math = title._preprocess_math(title.get_text())
    assert not is_math
    assert text == printable(name)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "bass", "a=b"])
def test_a_spreadsheet_computes_no_name(name: str) -> None:
    frame = pd.DataFrame({"SI-SDR": [-3.5]}, index=[name]).rename(index=cell)
    _, (written, score) = csv.reader(io.StringIO(frame.to_csv(lineterminator="\n")))
    assert written[0] not in "=+-@\t\r"
    assert written.endswith(printable(name))
    assert score == "-3.5"
