"""One page to listen to a separation, see its uncertainty, and judge whether it may be trusted.

The page needs no other file and no script: sounds are FLAC and pictures PNG, all within it.
"""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain as joined
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_sep.diagnostics.conformal import FUNCTIONS, ConformalCalibration, expected
from pyro_sep.diagnostics.convergence import AGREEMENT_SECONDS
from pyro_sep.diagnostics.initial import compare_initial, format_initial
from pyro_sep.diagnostics.score_intervals import PROBABILITY, expected_scores
from pyro_sep.diagnostics.verdict import (
    AGREEMENT_MIN,
    ESS_PER_CHAIN,
    MISFIT_MAX,
    R_HAT_MAX,
    RESIDUAL_MAX,
    diagnose,
)
from pyro_sep.storage.files import atomic_write
from pyro_sep.trace.dataset import FINGERPRINT, TREBLE, in_channels
from pyro_sep.trace.draws import (
    alternative_modes,
    estimate_draws,
    mode_draws,
    mode_probabilities,
    select_draws,
)
from pyro_sep.trace.estimate import estimate_channels
from pyro_sep.viz.agreement import plot_agreement
from pyro_sep.viz.listening import Listener, listener
from pyro_sep.viz.png import encode
from pyro_sep.viz.signals import (
    SPREAD_RANGE_DB,
    TAILS,
    ZOOM,
    channel_draws,
    plot_spectrogram,
    plot_waveform,
    source_draws,
    true_source,
    zoom_start,
)

if TYPE_CHECKING:  # a trace is shown without torch
    import torch

REPORT_MARK = "pyro_sep</title>"  # by which a page is known
DRAWS = 3  # heard of each source, as far apart as the chain has them
EXCERPT = 20.0  # seconds that a draw is heard for, of a longer recording
WINDOWS = 4  # from which on a picture over time says more than one figure
LOOP = 2.0  # seconds: what is shorter is heard again and again
DPI = 130
SCALARS = {  # of the trace: names, and how they are written
    "level_db": ("level / dB", ".2f"),
    "centroid": ("centroid / Hz", ".0f"),
    "gains": ("gain", ".2f"),
    "presence": ("presence", ".2f"),
}
EXPECTED = f"expected SI-SDR / dB ({100 * PROBABILITY:.0f} %)"
INK = {"light": "#3a3a3a", "dark": "#c9c9c9"}  # of axes and their text


@dataclass(frozen=True)
class Row:
    """What the page has of the mixture, or of a source.

    Attributes:
        name: of it.
        color: of its waveform.
        waveform: of all of it, and of an instant.
        spectrogram: of all of it.
        sounds: by their labels, each ``(time,)``.
        draws: the same, of those that show how far the first are uncertain; shorter if need be.
        facts: names of figures: that of the row, the interval of the draws, and, where there is a
            calibration, the one that it gives.
        versions: the sound in other explanations of the mixture, by their labels.
    """

    name: str
    color: str
    waveform: Figure
    spectrogram: Figure
    sounds: dict[str, NDArray[Any]]
    draws: dict[str, NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, NDArray[Any]] = field(default_factory=dict)


def write_report(
    tree: xr.DataTree,
    path: str | PathLike[str],
    calibration: ConformalCalibration | None = None,
    recording: "tuple[torch.Tensor, int] | None" = None,
) -> None:
    """Write the page of a separation, whole or not at all.

    Estimates are :func:`pyro_sep.trace.estimate_sources`, and intervals hold 90 % of the draws that
    an estimate is made from. With a calibration there are also intervals that hold the truth in
    90 % of the mixtures of its kind. Where the posterior has other explanations, their sounds can
    be chosen by buttons. Sounds have 16 bits; where one of them is beyond full scale all are turned
    down alike. One trace gives one page, byte for byte.

    Args:
        tree: a trace of :func:`pyro_sep.separate` or :func:`pyro_sep.trace.load_trace`.
        path: where to; ``.html`` is the usual suffix.
        calibration: of mixtures of this kind, where there is one.
        recording: ``(channel, time)`` and its rate, of which the mixture was made: with it sounds
            have more than the band of the priors, see :mod:`pyro_sep.viz.listening`.

    Raises:
        ValueError: a tree that lacks what such a trace holds, or is of another kind.
        OSError: the page cannot be written.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> with TemporaryDirectory() as folder:
    ...     write_report(tree, f"{folder}/report.html")
    """
    page = render_report(tree, calibration, recording)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(
    tree: xr.DataTree,
    calibration: ConformalCalibration | None = None,
    recording: "tuple[torch.Tensor, int] | None" = None,
) -> str:
    """The page of :func:`write_report`, as HTML.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> sine = {"sine": load_priors("toy/oracle")["sine"]}
    >>> mixture = 0.9 * (torch.arange(256) / 8).sin()
    >>> tree = separate(mixture, sine, levels=6, candidates=1, replicas=0, cooling=1, draws=4).trace
    >>> render_report(tree).startswith("<!DOCTYPE html>")
    True
    """
    diagnosis, moved = diagnose(tree), compare_initial(tree)
    rate = int(tree["constant_data"].to_dataset()["sample_rate"])
    start = zoom_start(tree)
    channels = estimate_channels(tree)
    estimates = channels.mean("channel").values
    ear = listener(tree, estimates, recording)
    rows = [_mixture_row(tree, ear, start), *_source_rows(tree, channels, ear, start)]
    scores = expected_scores(tree)
    for name, bounds in (scores or {}).items():
        row = next(row for row in rows[1:] if row.name == name)
        row.facts[EXPECTED] = [_interval(np.array(bounds), ".0f"), ""]
    if calibration is not None:
        _calibrate(rows[1:], tree, calibration)
    sounds = joined.from_iterable(
        (*row.sounds.values(), *row.draws.values(), *row.versions.values()) for row in rows
    )
    scale = 1 / max(1.0, *(float(np.abs(sound).max()) for sound in sounds))
    sizes = tree["posterior"].sizes
    environment = Environment(
        loader=PackageLoader("pyro_sep.viz", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["flac"] = lambda sound: _flac(scale * sound, ear.rate)
    environment.filters["png"] = _png
    return environment.get_template("report.html").render(
        title=str(tree.attrs.get("mixture", "Separation")),
        rows=rows,
        rate=rate,
        heard_rate=ear.rate,
        seconds=sizes["time"] / rate,
        sizes=sizes,
        heard=[chain + 1 for chain in np.unique(estimate_draws(tree)[:, 0]).tolist()],
        chances=_chances(tree),
        excerpt=_excerpt(sizes["time"], rate),
        repeat=sizes["time"] < LOOP * rate,
        turned_down=-20 * np.log10(scale),
        zoom=1000 * ZOOM,
        spread_range=f"{SPREAD_RANGE_DB:.0f}",
        expected=EXPECTED if scores is not None else "",
        calibrated=0 if calibration is None else calibration.errors.sizes["mixture"],
        truth="true_sources" in tree["constant_data"],
        diagnosis=diagnosis,
        moved=None if moved is None else format_initial(moved),
        r_hat_max=R_HAT_MAX,
        ess_min=ESS_PER_CHAIN * sizes["chain"],
        agreement_min=AGREEMENT_MIN,
        agreement=_agreement(tree, sizes["time"] / rate),
        agreement_seconds=AGREEMENT_SECONDS,
        misfit_max=MISFIT_MAX,
        residual_max=RESIDUAL_MAX,
        made=_made(tree),
    )


def _chances(tree: xr.DataTree) -> list[str]:
    """Probabilities of the explanations that are heard, that of the estimate first."""
    found = mode_probabilities(tree)
    return [f"{found[m]:.0%}" for m in (0, *alternative_modes(tree))] if found else []


def _agreement(tree: xr.DataTree, seconds: float) -> Figure | None:
    """The picture of the chains' agreement over time, of a recording that has some windows."""
    if tree["posterior"].sizes["chain"] < 2 or seconds < WINDOWS * AGREEMENT_SECONDS:
        return None
    return plot_agreement(tree)


def _mixture_row(tree: xr.DataTree, ear: Listener, start: int) -> Row:
    mixture = tree["observed_data"].to_dataset()["mixture"].values
    waveform = plot_waveform(mixture, ear.own, start, "gray")
    spectrogram = plot_spectrogram(mixture, ear.own)
    return Row("mixture", to_hex("gray"), waveform, spectrogram, {"recording": ear.mixture})


def _source_rows(tree: xr.DataTree, channels: xr.DataArray, ear: Listener, start: int) -> list[Row]:
    """A row per source; one source's draws are read at a time."""
    rate = ear.own
    posterior, constant = tree["posterior"].to_dataset(), tree["constant_data"].to_dataset()
    time, chosen = posterior.sizes["time"], estimate_draws(tree)
    chains, count = np.unique(chosen[:, 0]).tolist(), posterior.sizes["draw"]
    others = {f"explanation {m + 1}": mode_draws(tree, m) for m in alternative_modes(tree)}
    means = {
        f"mean of chain {c + 1}": np.stack([np.full(count, c), np.arange(count)], 1)
        for c in range(posterior.sizes["chain"])
        if [c] != chains and not others
    }
    mixture = in_channels(tree["observed_data"].to_dataset(), "mixture").values
    (first, last), rows = _excerpt(time, rate), []
    for k, name in enumerate(posterior["source"].values.tolist()):
        drawn, true = channel_draws(tree, k, chosen), true_source(tree, k)
        draws, estimate = drawn.mean(1), channels.values[k].mean(0)
        truth = None if true is None else true.mean(0)
        waveform = plot_waveform(estimate, rate, start, f"C{k}", draws, truth)
        spectrogram = plot_spectrogram(estimate, rate, draws)
        sounds = {"estimate": ear.hear(estimate, k)}
        versions = {
            label: ear.hear(source_draws(tree, k, own).mean(0), k) for label, own in others.items()
        }
        if "initial" in constant:
            initial = constant["initial"].values[k] / constant["gains"].values[k]
            sounds["initial stem"] = ear.hear(initial)
        if truth is not None:
            sounds["true source"] = ear.hear(truth)
        apart = np.unique(np.linspace(0, len(draws) - 1, DRAWS).round().astype(int)).tolist()
        heard = {f"draw {i + 1}": draws[i] for i in apart}
        heard |= {label: source_draws(tree, k, own).mean(0) for label, own in means.items()}
        heard = {label: ear.hear(sound[first:last], k, first) for label, sound in heard.items()}
        facts = _scores(channels.values[k], drawn, true, mixture)
        scalars = posterior[[name for name in SCALARS if name in posterior]].isel(source=k)
        facts |= _scalars(select_draws(scalars, chosen))
        look = Row(name, to_hex(f"C{k}"), waveform, spectrogram, sounds, heard, facts, versions)
        rows.append(look)
    return rows


def _scores(
    estimate: NDArray[Any], draws: NDArray[Any], truth: NDArray[Any] | None, mixture: NDArray[Any]
) -> dict[str, list[str]]:
    """SI-SDR and its improvement over the mixture, of the estimate and of single draws.

    They are those of all channels: ``(channel, time)``, draws ``(draw, channel, time)``.
    """
    if truth is None:
        return {}
    if np.ptp(truth) == 0:
        return {"SI-SDR / dB": ["true source is silent", ""]}
    import torch  # here alone, so that a trace without truth is shown without torch

    from pyro_sep.evaluation.metrics import si_sdr

    scores = np.array(
        [
            float(si_sdr(torch.from_numpy(signal.ravel()), torch.from_numpy(truth.ravel())))
            for signal in (mixture, estimate, *draws)
        ]
    )
    return {
        name: [f"{values[1]:.1f}", _interval(np.quantile(values[2:], TAILS), ".1f")]
        for name, values in (("SI-SDR / dB", scores), ("improvement / dB", scores - scores[0]))
    }


def _scalars(posterior: xr.Dataset) -> dict[str, list[str]]:
    """Scalars of one source, those that the trace has."""
    facts = {}
    for variable, (name, digits) in SCALARS.items():
        if variable in posterior:
            values = posterior[variable].values
            bounds = np.quantile(values, TAILS)
            facts[name] = [f"{values.mean():{digits}}", _interval(bounds, digits)]
    return facts


def _calibrate(rows: list[Row], tree: xr.DataTree, calibration: ConformalCalibration) -> None:
    """Give the sources' rows the intervals of a calibration."""
    found, bounds = expected(tree), calibration.intervals(tree, TAILS[1] - TAILS[0])
    for k, row in enumerate(rows):
        for variable, (title, unit, digits) in FUNCTIONS.items():
            name = f"{title} / {unit}"
            values = row.facts.setdefault(name, [f"{float(found[variable][k]):{digits}}", ""])
            values.append(_interval(bounds[variable].isel(source=k).values, digits))


def _interval(bounds: NDArray[Any], digits: str) -> str:
    low, high = bounds
    return f"{low:{digits}} to {high:{digits}}"


def _made(tree: xr.DataTree) -> dict[str, str]:
    """The attributes of a trace for a reader; the settings, a mapping, have an entry for each."""
    made: dict[str, str] = {}
    for key, value in tree.attrs.items():
        if str(key).startswith(FINGERPRINT) or key == TREBLE:
            continue
        try:
            content = json.loads(value)
        except (TypeError, ValueError):
            content = value
        entries = content if isinstance(content, dict) else {key: value}
        made |= {str(name): _text(entry) for name, entry in entries.items()}
    return made


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _excerpt(time: int, rate: int) -> tuple[int, int]:
    """First and last audio sample of what is heard of a draw, in the middle."""
    length = min(time, round(EXCERPT * rate))
    return (time - length) // 2, (time - length) // 2 + length


def _flac(sound: NDArray[Any], rate: int) -> str:
    """A sound ``(time,)`` within full scale as a data URI."""
    file = BytesIO()
    soundfile.write(file, sound, rate, subtype="PCM_16", format="FLAC")
    return f"data:audio/flac;base64,{b64encode(file.getvalue()).decode()}"


def _png(figure: Figure, theme: str) -> str:
    """A figure as a data URI, its text in the theme's ink on nothing; of 256 colours."""
    ink = INK[theme]
    for ax in figure.axes:
        ax.tick_params(colors=ink, which="both")
        ax.set_facecolor("none")
        for part in (ax.xaxis.label, ax.yaxis.label):
            part.set_color(ink)
        for spine in ax.spines.values():
            spine.set_edgecolor(ink)
    for text in (text for legend in figure.legends for text in legend.get_texts()):
        text.set_color(ink)
    png = encode(figure, DPI, transparent=True)
    return f"data:image/png;base64,{b64encode(png).decode()}"
