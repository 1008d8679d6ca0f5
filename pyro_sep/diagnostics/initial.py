"""How far a separation moved from the stems that its chains began from, and which is likelier."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_sep.trace.dataset import in_channels
from pyro_sep.trace.draws import estimate_draws, select_draws
from pyro_sep.trace.estimate import estimate_channels

#: Standard deviations of a single log density, by which two means differ where one is preferred.
CLEAR = 2.0


@dataclass(frozen=True)
class InitialComparison:
    r"""A separation beside the stems of another separator that its chains began from.

    Both are compared at the noise level of the draws, where the stems are given noise alike: see
    :mod:`pyro_sep.separation.initial`. With means of the log posterior over the draws
    that the estimate is of and over noises of the stems, and its standard deviations,

    .. math:: \mathrm{nats} = \overline{\mathrm{lp}}_{\mathrm{draws}} -
              \overline{\mathrm{lp}}_{\mathrm{stems}}, \qquad
              \mathrm{spread} = \sqrt{\mathrm{std}_{\mathrm{draws}}^2 +
              \mathrm{std}_{\mathrm{stems}}^2}

    Where the nats are within :data:`~pyro_sep.diagnostics.initial.CLEAR` spreads of 0, the stems
    are as probable as a draw. It is a comparison under the priors and not by the truth: a prior
    that is wrong about its source may prefer what is farther from it.

    Attributes:
        si_sdr: of the estimate against the stem that the source began from, by source, in dB; the
            less, the farther it moved. Without those that began from silence.
        nats: by which the posterior prefers the draws.
        spread: of this difference between one draw and one noise, in nats.

    >>> comparison = InitialComparison({"bass": 7.8}, 1_240.0, 60.0)
    >>> comparison.preferred
    'result'
    """

    si_sdr: dict[str, float]
    nats: float
    spread: float

    @property
    def preferred(self) -> str:
        """``"result"``, ``"initial"``, or ``"neither"`` where they are about as probable."""
        if abs(self.nats) > CLEAR * self.spread:
            return "result" if self.nats > 0 else "initial"
        return "neither"


def compare_initial(trace: xr.DataTree) -> InitialComparison | None:
    """The separation in a trace beside the stems it began from; None where it began from none.

    Args:
        trace: of :func:`pyro_sep.separate`.

    >>> import torch
    >>> from pyro_sep import load_priors, separate
    >>> priors = {name: load_priors("toy/oracle")[name] for name in ("sine", "saw")}
    >>> stems = torch.stack([0.4 * (torch.arange(256) / f).sin() for f in (8, 3)])
    >>> result = separate(stems.sum(0), priors, initial=stems, cooling=2, warmup=1, draws=2)
    >>> list(compare_initial(result.trace).si_sdr)
    ['sine', 'saw']
    """
    constant = trace["constant_data"].to_dataset()
    if "initial" not in constant:
        return None
    import torch  # here, so that a trace without initial stems is shown without torch

    from pyro_sep.evaluation.metrics import si_sdr, silent

    chosen = estimate_draws(trace)
    mean = estimate_channels(trace)
    estimate = torch.from_numpy((constant["gains"] * mean).values).flatten(1)
    stems = torch.from_numpy(in_channels(constant, "initial").values).flatten(1)
    lp = select_draws(trace["sample_stats"].to_dataset()["lp"], chosen).values
    std = float(np.std(lp, ddof=1)) if lp.size > 1 else 0.0
    return InitialComparison(
        si_sdr={
            str(name): float(si_sdr(found, stem))
            for name, found, stem in zip(mean["source"].values, estimate, stems, strict=True)
            if not silent(stem)
        },
        nats=float(lp.mean() - constant["initial_lp"]),
        spread=math.hypot(std, float(constant["initial_lp_std"])),
    )


def format_initial(comparison: InitialComparison) -> str:
    """How far each source moved and what the posterior prefers, in one line.

    >>> format_initial(InitialComparison({"bass": 7.84, "drums": 12.1}, 1_240.0, 60.0))
    'SI-SDR to the initial stems: bass 7.8 dB, drums 12.1 dB; draws are more probable by 1240 nats'
    """
    moved = ", ".join(f"{name} {value:.1f} dB" for name, value in comparison.si_sdr.items())
    nats = f"{abs(comparison.nats):.0f} nats"
    said = {
        "result": f"draws are more probable by {nats}",
        "initial": f"the initial stems are more probable than draws, by {nats}",
        "neither": "the initial stems are about as probable as draws",
    }
    return f"SI-SDR to the initial stems: {moved or 'none sounds'}; {said[comparison.preferred]}"
