r"""Intervals that cover the truth as often as they say, whatever priors and draws get wrong.

Draws follow the posterior of learned priors. What these get wrong by little in every audio sample
adds up in a level or a centroid, whose draws are then too narrow; and what other modes hold, the
draws of one do not know. But separations of n mixtures whose sources are known tell how far a
function f of a source is from the mean of f over the draws that the estimate is of:

.. math:: e_i = f(s_i) - \overline{f(x_i)}

Sorted, these errors make an interval for another mixture of the kind,

.. math:: \bigl[\, \overline{f(x)} + e_{(l)}, \; \overline{f(x)} + e_{(n + 1 - l)} \bigr], \qquad
          l = \lfloor (n + 1) (1 - p) / 2 \rfloor

which holds f of its source with probability :math:`1 - 2 l / (n + 1) \ge p`, whatever the law of
the mixtures, as long as all n + 1 have the same one and were separated alike: split conformal
prediction (Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World; Lei et al. 2018,
arXiv 1604.04173). It is a probability over mixtures and calibrations, not one given this mixture.

The functions are level in dB and centroid in Hz, as :func:`pyro_sep.trace.build_trace` has them,
and the SI-SDR in dB of the mean of these draws, of which a draw tells what it would be if that draw
were the truth.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from pyro_sep.storage.files import save_json
from pyro_sep.trace.dataset import CHANNEL_TIME, FINGERPRINT, centroid, in_channels, level_db
from pyro_sep.trace.draws import estimate_draws, select_draws
from pyro_sep.trace.estimate import estimate_channels

CALIBRATION_MARK = '"kind"'  # by which a file is known
PROBABILITY = 0.95  # of the intervals that are printed
FUNCTIONS = {  # of a source: title, unit and format
    "level_db": ("level", "dB", ".2f"),
    "centroid": ("centroid", "Hz", ".0f"),
    "si_sdr": ("SI-SDR", "dB", ".1f"),
}
FILE_BYTES = 1 << 26  # of a file at most: a million mixtures
SAME = 1e-4  # relative: two machines' log densities of one prior differ by rounding


@dataclass(frozen=True)
class ConformalCalibration:
    """Calibrates intervals of a separation from separations whose true sources are known.

    Attributes:
        kind: what the mixtures and their separations have in common, see :func:`kind_of`.
        errors: of every function of :data:`FUNCTIONS`, dims ``(mixture, source)``.

    >>> values = ("mixture", "source"), np.linspace(-1, 1, 19)[:, None]
    >>> errors = xr.Dataset({name: values for name in FUNCTIONS}, {"source": ["sine"]})
    >>> calibration = ConformalCalibration({"sources": ["sine"]}, errors)
    >>> calibration.about(errors.isel(mixture=9), 0.9)["si_sdr"].values.ravel()
    array([-1.,  1.])
    """

    kind: dict[str, object]
    errors: xr.Dataset

    @property
    def sources(self) -> list[str]:
        """Names of the sources."""
        return [str(name) for name in self.errors["source"].values]

    @classmethod
    def of(cls, traces: Iterable[xr.DataTree]) -> Self:
        """Learn from traces that hold their ``true_sources``.

        Raises:
            ValueError: no trace, one without its true sources or with draws that are not finite, or
                traces of more than one kind.
        """
        kind: dict[str, object] | None = None
        errors = []
        for trace in traces:
            kind = kind_of(trace) if kind is None else kind
            check_kind(kind, kind_of(trace))
            errors.append(actual(trace) - expected(trace))
        if kind is None:
            raise ValueError("traces: got none, expected one or more with their true sources")
        table = xr.concat(errors, "mixture")
        if strange := [name for name in FUNCTIONS if not np.isfinite(table[name]).all()]:
            raise ValueError(
                f"traces: got {strange[0]} of NaN or infinity, expected finite values; leave out "
                "chains that diverged"
            )
        return cls(kind, table)

    def intervals(self, trace: xr.DataTree, probability: float = PROBABILITY) -> xr.Dataset:
        """The central interval of every function, for the sources of another mixture.

        Args:
            trace: of a mixture of this kind.
            probability: that an interval holds the truth.

        Returns:
            Dims ``(bound, source)``, bounds ``low`` and ``high``.

        Raises:
            ValueError: a trace of another kind, or fewer mixtures than the probability needs.
        """
        check_kind(self.kind, kind_of(trace))
        return self.about(expected(trace), probability)

    def about(self, center: xr.Dataset, probability: float = PROBABILITY) -> xr.Dataset:
        """:meth:`intervals` about the expected values of each function, dims ``(..., source)``."""
        count = self.errors.sizes["mixture"]
        rank = central_rank(count, probability)
        ordered = self.errors.map(lambda errors: _sorted(errors))
        low, high = (ordered.isel(mixture=i) for i in (rank - 1, count - rank))
        return xr.concat([center + low, center + high], xr.Variable("bound", ["low", "high"]))

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        errors = {
            str(name): {
                str(source): errors.sel(source=source).values.round(6).tolist()
                for source in errors["source"].values
            }
            for name, errors in self.errors.items()
        }
        save_json({"kind": self.kind, "errors": errors}, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: not such a file.
        """
        path = Path(path)
        try:
            if path.stat().st_size > FILE_BYTES:
                raise ValueError(f"it has more than {FILE_BYTES} bytes")
            content = _Content.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = " ".join(f"{where} {first['msg']}".split())
            raise ValueError(_unreadable(path, reason)) from None
        except (OSError, ValueError) as error:
            raise ValueError(_unreadable(path, str(error))) from None
        sources = content.sources
        tables = {
            name: (("source", "mixture"), [content.errors[name][source] for source in sources])
            for name in FUNCTIONS
        }
        data = xr.Dataset(tables, {"source": sources}).transpose("mixture", "source")
        return cls(content.kind, data)


class _Content(BaseModel):
    """A file of a calibration."""

    model_config = ConfigDict(strict=True, extra="forbid")
    kind: dict[str, object]
    errors: dict[str, dict[str, list[FiniteFloat]]]

    @property
    def sources(self) -> list[str]:
        """Names of the sources."""
        sources = self.kind.get("sources")
        if not isinstance(sources, list) or not all(isinstance(name, str) for name in sources):
            raise ValueError("kind.sources is no list of names")
        return sources

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Raise ValueError unless there is an error of every function, source and mixture."""
        sources = self.sources
        if not sources or len(set(sources)) < len(sources):
            raise ValueError("kind.sources is empty, or names one twice")
        if set(self.errors) != set(FUNCTIONS):
            raise ValueError(f"errors are not those of {', '.join(FUNCTIONS)}")
        lengths = {len(values) for table in self.errors.values() for values in table.values()}
        if any(set(table) != set(sources) for table in self.errors.values()):
            raise ValueError("errors are not those of kind.sources")
        if len(lengths) > 1 or not min(lengths):
            raise ValueError("errors are of different numbers of mixtures, or of none")
        return self


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path}: got no readable calibration ({reason:.300}); write one with `pyro-sep calibrate`"
    )


def format_intervals(
    calibration: ConformalCalibration, trace: xr.DataTree, probability: float = PROBABILITY
) -> str:
    """The intervals as text, one row per source."""
    center, bounds = expected(trace), calibration.intervals(trace, probability)
    count = calibration.errors.sizes["mixture"]
    lines = [f"where {probability:.0%} of truths lie, by {count} mixtures of the kind:"]
    width = max(8, *(len(name) + 2 for name in calibration.sources))
    for name in calibration.sources:
        cells = [
            f"{title} {float(center[function].sel(source=name)):{digits}} {unit} ("
            + " to ".join(f"{value:{digits}}" for value in bounds[function].sel(source=name).values)
            + ")"
            for function, (title, unit, digits) in FUNCTIONS.items()
        ]
        lines.append(f"{name:<{width}}{'   '.join(cells)}")
    return "\n".join(lines)


def least_mixtures(probability: float) -> int:
    """How many errors a central interval of this probability needs.

    >>> least_mixtures(0.95)
    39
    """
    return math.ceil(2 / (1 - probability) - 1e-9) - 1


def central_rank(count: int, probability: float) -> int:
    """l, the rank of the first of so many sorted errors that a central interval ends at.

    Raises:
        ValueError: a probability that is none, or for which there are too few errors.
    """
    if not (isinstance(probability, float) and 0 < probability < 1):
        raise ValueError(f"probability: got {probability}, expected above 0, below 1")
    rank = int((count + 1) * (1 - probability) / 2 + 1e-9)  # 80 * 0.025 is not quite 2
    if rank < 1:
        raise ValueError(
            f"calibration: got {count} mixtures, expected at least {least_mixtures(probability)} "
            f"for intervals of {probability:.0%}"
        )
    return rank


def draws_of(trace: xr.DataTree) -> xr.Dataset:
    """Every function of every draw, dims ``(chain, draw, source)``."""
    posterior = trace["posterior"].to_dataset()
    scalars = posterior[["level_db", "centroid"]]
    return scalars.assign(si_sdr=_si_sdr_against(trace, in_channels(posterior, "sources")))


def expected(trace: xr.DataTree) -> xr.Dataset:
    """Mean of every function over the draws that the estimate is of, dims ``(source,)``."""
    return select_draws(draws_of(trace), estimate_draws(trace)).mean("draw")


def actual(trace: xr.DataTree) -> xr.Dataset:
    """Every function of the true sources, dims ``(source,)``.

    Raises:
        ValueError: a trace without them, or with a silent one.
    """
    constant = trace["constant_data"].to_dataset()
    if "true_sources" not in constant:
        raise ValueError(
            "trace: got none of constant_data/true_sources, expected the sources that were mixed"
        )
    true = in_channels(constant, "true_sources")
    quiet = np.ptp(true.values, CHANNEL_TIME) == 0
    if quiet.any():
        raise ValueError(
            f"trace: got a silent true source of {str(true['source'].values[quiet][0])!r}, "
            "expected sound; leave out that mixture"
        )
    rate = int(constant["sample_rate"])
    values = xr.Dataset(
        {
            "level_db": ("source", level_db(true.values, CHANNEL_TIME)),
            "centroid": ("source", centroid(true.values, rate, CHANNEL_TIME)),
        },
        {"source": true["source"]},
    )
    return values.assign(si_sdr=_si_sdr_against(trace, true))


def kind_of(trace: xr.DataTree) -> dict[str, object]:
    """What mixtures must share for one's errors to tell of another's: how they were separated.

    Raises:
        ValueError: a trace that does not tell, of another sampler or from before it did.
    """
    posterior, constant = trace["posterior"].to_dataset(), trace["constant_data"].to_dataset()
    attrs, sources = trace.attrs, posterior["source"].values.tolist()
    gains = constant["gains"].values.astype(float)
    try:
        run = {name: attrs[name] for name in ("noise_scale", "constraint", "presence", "estimate")}
        settings = _settings(attrs["settings"])
        run |= {name: attrs[name] for name in (f"{FINGERPRINT}{source}" for source in sources)}
    except KeyError as error:
        raise ValueError(
            f"trace: got none of the attribute {error}, expected a trace of pyro_sep.separate; "
            "separate the mixture again"
        ) from None
    if run["estimate"] == "mean":  # noise levels are those of the mixture's loudness
        settings = {name: value for name, value in settings.items() if "sigma" not in name}
    run |= settings
    return run | {
        "sources": sources,
        "gains": "infer" if "gains" in posterior else gains.round(6).tolist(),
        "samples": posterior.sizes["time"],
        "sample_rate": int(constant["sample_rate"]),
    }


def _settings(text: Any) -> dict[str, object]:
    """The attribute ``settings`` of a trace."""
    try:
        return TypeAdapter(dict[str, object]).validate_json(text)
    except ValidationError:
        raise ValueError(
            f"trace: got the attribute 'settings' of {text!r:.80}, expected a JSON object; "
            "separate the mixture again"
        ) from None


def check_kind(wanted: dict[str, object], got: dict[str, object]) -> None:
    """Raise ValueError unless two kinds are one."""
    for name in wanted | got:
        value = wanted.get(name)
        if not is_same(value, got.get(name)):
            raise ValueError(
                f"trace: got {name} {got.get(name)}, expected {value} as in the calibration; "
                "separate all mixtures alike"
            )


def is_same(one: Any, other: Any) -> bool:
    """Whether two entries of kinds are one, but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=SAME)
    return bool(one == other)


def _si_sdr_against(trace: xr.DataTree, references: xr.DataArray) -> xr.DataArray:
    """SI-SDR of the estimate if references ``(..., channel, time)`` were the truth."""
    import torch  # here alone: reports read no torch without need

    from pyro_sep.evaluation.metrics import si_sdr

    estimate = torch.from_numpy(estimate_channels(trace).values).flatten(-2)
    values = si_sdr(estimate, torch.from_numpy(references.values).flatten(-2))
    return references.isel(channel=0, time=0, drop=True).copy(data=values.numpy())


def _sorted(errors: xr.DataArray) -> xr.DataArray:
    axis = errors.get_axis_num("mixture")
    values: NDArray[Any] = np.sort(errors.values, axis=axis)
    return errors.copy(data=values)
