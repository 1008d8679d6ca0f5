"""Is a released record the sum of its stems? Which mixing model to take where it is not.

    python experiments/mastered.py --mixes RECORDS/mixes
    python experiments/mastered.py --mixes RECORDS/mixes --models sum,level --mixtures 4

The mixtures of experiments/records.py are mastered: their sum goes through an equaliser, a
compressor, soft clipping and a limiter of ffmpeg. Each is then separated by the same priors under
several models of the mixture m of stems s_k:

    sum       m = sum s_k, the likelihood that is the default of the library
    level     m = g sum s_k, with one gain g by which the priors expect a mixture of this level
    noise     the same and Gaussian noise 20 dB below the mixture
    infer     m = sum a_k s_k + noise, gains and noise unknown

Printed are the SI-SDR of the mastered mixture against the sum, and medians over stems and mixtures
of the SI-SDR improvement over the mastered mixture. OUT/MODEL.json has every stem; a run that was
cut off continues.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from _common import Out, PriorSet, Results, Row, Seed, Workers, choose, load_set, resume, score
from rendering.ffmpeg import RATE, check_ffmpeg, mastered
from separate_records import RATE as EXCERPT
from separate_records import Excerpt, chosen, excerpt
from torch import Tensor

from pyro_sep.audio.resampling import resample
from pyro_sep.cli.program import run
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.mixing.known import level_gain
from pyro_sep.priors.base import Priors, sample_rate_of
from pyro_sep.separation.api import separate

MODELS = ("sum", "level", "noise", "infer")
NOISE_SHARE = 0.1  # of the mixture's RMS


def main(
    mixes: Annotated[Path, typer.Option(help="Folder of TRACK/STEM files.")],
    priors: PriorSet = "music",
    mixtures: Annotated[int, typer.Option(min=1, help="The first of these, lots first.")] = 12,
    start: Annotated[float, typer.Option(min=0, help="Of the excerpts, in seconds.")] = 2.0,
    seconds: Annotated[float, typer.Option(min=1, help="Of the excerpts.")] = 3.0,
    models: Annotated[str | None, typer.Option(help=f"Of {', '.join(MODELS)}.")] = None,
    seed: Seed = 0,
    out: Out = Path("results/mastered"),
    workers: Workers = None,
) -> None:
    """Separate mastered mixtures under each model."""
    results = Results(out)
    check_ffmpeg()
    loaded = load_set(priors, mixing="sum")
    items = [excerpt(t, tuple(loaded), start, seconds) for t in chosen(mixes, None)]
    items = [item for item in items if len(item.stems) > 1][:mixtures]
    settings = {"priors": priors, "start": start, "seconds": seconds, "seed": seed}
    table: dict[str, Row] = {}
    for model in choose("models", models, MODELS):
        figures = partial(measure, model, loaded, seed)
        path = out / f"{model}.json"
        rows = list(resume(path, settings, items, figures, batch=1, workers=workers))
        gains = np.array([gain for row in rows for gain in row["improvement"]])
        table[model] = {
            "median_improvement_db": float(np.median(gains)),
            "mean_improvement_db": float(gains.mean()),
            "worst_improvement_db": float(gains.min()),
            "stems": len(gains),
            "cpu_seconds": float(np.mean([row["seconds"] for row in rows])),
        }
        print(model, table[model], flush=True)
        master = float(np.median([row["master_si_sdr"] for row in rows]))
        results.json(settings | {"mixtures": len(rows), "master_si_sdr_db": master, "table": table})
    results.done()


def measure(
    model: str, priors: Priors, seed: int, start: int, items: Sequence[Excerpt]
) -> list[Row]:
    """Figures of a model."""
    rows = []
    for item in items:
        own = {name: priors[name] for name in item.stems}
        rate = sample_rate_of(own)
        summed, sources = (resample(a, EXCERPT, rate) for a in (item.mixture, item.sources))
        mixture = released(summed, rate)
        result = separate(mixture, own, seed=seed, **options(model, mixture, own))
        scores = score(result.contributions, sources, mixture)
        closeness = float(si_sdr(mixture, summed))
        rows.append(
            {"track": item.track, "stems": list(item.stems), "master_si_sdr": closeness} | scores
        )
    return rows


def released(mixture: Tensor, rate: int) -> Tensor:
    """The mastered mixture at its own rate."""
    whole = resample(mixture, rate, RATE).double().numpy()
    return resample(torch.from_numpy(mastered(whole)).float(), RATE, rate, len(mixture))


def options(model: str, mixture: Tensor, priors: Priors) -> dict[str, Any]:
    """Of ``separate``, by which it takes this model."""
    if model == "sum":
        return {"gains": (1.0,) * len(priors)}
    if model == "infer":
        return {"gains": "infer", "noise_scale": "infer"}
    given: dict[str, Any] = {"gains": (float(level_gain(mixture, priors)),) * len(priors)}
    if model == "noise":
        given["noise_scale"] = NOISE_SHARE * float(mixture.square().mean().sqrt())
    return given


if __name__ == "__main__":
    run(main)
