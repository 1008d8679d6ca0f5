r"""Why are raw intervals of learned priors too narrow? The errors of priors, denoisers and draws.

    python experiments/denoising_errors.py
    python experiments/denoising_errors.py --sigma-min 0.025 --mixtures 24 --out results/lower

Three parts, on toy tones:

* Predictions. A WaveNet's normal scores z of noisy tones: independent standard normal numbers if it
  is right (:meth:`~pyro_sep.models.wavenet.WaveNet.normal_scores`). Printed are their mean square,
  the Kolmogorov-Smirnov distance of their law from the normal one, the correlation of neighbours,
  and the mean square of their component along the tone, :math:`z \cdot s / |s|`, which is 1 for
  independent scores. Errors that a prior makes in all samples of a tone alike are seen there.
* Denoisers. A tone s in white noise, x = s + sigma n, is denoised by its prior alone. The error
  D(x) - s is split into its parts along s (gain), along s a quarter period later (phase), and the
  rest. Draws of the clean tone given x are judged by the coverage of its level and centroid. The
  same with the oracle priors tests the draws themselves.
* Mixtures of two tones, all six pairs in turn: coverage of intervals between quantiles of the draws
  of one chain, as ``separate`` makes them, and as they were without correction of gain errors, from
  the same noisy draws; of all draws, of the first ten, and of ten that are spread evenly.

Tones are those of the test split from --first on. A run that was cut off continues.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from _common import First, Mixtures, Out, PriorSet, Results, Row, Seconds, Seed, load_set, resume
from _common import stacked as stack
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS, toy_mixture
from pyro_sep.diagnostics.sbc import NOMINAL, coverage, coverage_error, ranks
from pyro_sep.evaluation.metrics import si_sdr
from pyro_sep.inference.annealing.draws import MemoryRecorder
from pyro_sep.inference.annealing.driver import anneal
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import Mixing
from pyro_sep.models.arithmetic import sampling_arithmetic
from pyro_sep.models.wavenet import WaveNet
from pyro_sep.priors.io import load_priors
from pyro_sep.priors.networks import NetworkPrior
from pyro_sep.separation.presets import SIGMA_MIN, resolve_settings
from pyro_sep.trace.dataset import centroid, level_db

Networks = dict[str, NetworkPrior]
PAIRS = tuple(combinations(WAVEFORMS, 2))
SIGMAS = (0.01, 0.027, 0.05, 0.077, 0.129, 0.359, 1.0)  # of the predictions
SHARES = (0.5, 1.0, 2.0)  # of SIGMA_MIN, of the denoisers
DEAF = 1e3  # noise of a mixture that tells nothing
ALONE = 9  # draws of a tone by itself
ORACLE_TIME = 256  # audio samples: an oracle's cost grows fast with them
FEW = 10  # draws of a subset
SCALARS = {"level": level_db, "centroid": partial(centroid, sample_rate=SAMPLE_RATE)}


def main(
    mixtures: Mixtures = 102,
    first: First = 1_000,
    priors: PriorSet = "toy",
    seconds: Seconds = 0.064,
    draws: Annotated[int, typer.Option(min=FEW, help="Draws of a chain.")] = 25,
    frames: Annotated[int, typer.Option(min=2, help="Tones of each waveform by themselves.")] = 24,
    sigma_min: Annotated[
        float | None, typer.Option(min=0, help="Last noise level; by default the preset's.")
    ] = None,
    seed: Seed = 0,
    out: Out = Path("results/denoising_errors"),
) -> None:
    """Judge predictions, denoisers and draws."""
    results = Results(out)
    settings: Row = {"priors": priors, "seconds": seconds, "first": first, "seed": seed}
    chosen, time = load_set(priors, ",".join(WAVEFORMS)), round(seconds * SAMPLE_RATE)
    tones = {name: tones_of(name, first, frames, time) for name in WAVEFORMS}
    cells = [(name, sigma) for name in WAVEFORMS for sigma in SIGMAS]
    apart = settings | {"frames": frames}
    judge = partial(predictions, chosen, tones, seed)
    predicted = list(resume(out / "predictions.json", apart, cells, judge, 1))
    oracle = load_priors("toy/oracle")
    kinds = [(name, share * SIGMA_MIN, False) for share in SHARES for name in WAVEFORMS]
    kinds += [(name, SIGMA_MIN, True) for name in WAVEFORMS]
    judge = partial(denoisers, (chosen, oracle), tones, seed)
    denoised = list(resume(out / "denoisers.json", apart, kinds, judge, 1))
    per = -(-mixtures // len(PAIRS))
    items = [(pair, first + per * i + j) for i, pair in enumerate(PAIRS) for j in range(per)]
    mixed = settings | {"draws": draws, "sigma_min": sigma_min}
    judge = partial(separations, chosen, time, mixed)
    rows = list(resume(out / "mixtures.json", mixed, items, judge, per))
    content = settings | mixed | {"frames": frames, "mixtures": len(rows)}
    content |= {
        "intervals": list(NOMINAL),
        "coverage_error": coverage_error(len(rows)).tolist(),
    }
    content |= {"sigma_min": rows[0]["sigma"], "predictions": predicted, "denoisers": denoised}
    content |= {"coverage": covered(rows, draws, seed), "errors": errors(rows)}
    content |= {"cpu_seconds": float(np.mean([row["seconds"] for row in rows]))}
    results.json(content)
    for name in ("predictions", "denoisers", "coverage", "errors"):
        print(f"{name}\n{pd.DataFrame(content[name]).round(3).to_string(index=False)}\n")
    results.done()


def tones_of(name: str, first: int, count: int, time: int) -> Tensor:
    """Test tones of one waveform, ``(tone, time)``."""
    tones = [toy_mixture("test", first + i, (name,), time).sources for i in range(count)]
    return torch.cat(tones)


def noised(clean: Tensor, sigma: float, seed: int) -> Tensor:
    """Audio in white noise."""
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def predictions(
    priors: Networks, tones: dict[str, Tensor], seed: int, start: int, cells: Sequence[Any]
) -> list[Row]:
    """Figures of the normal scores of a prior at a noise level."""
    ((name, sigma),) = cells
    network = priors[name].network
    if not isinstance(network, WaveNet):
        raise ValueError(f"priors: got no WaveNet of {name}, expected WaveNets; give toy/wavenet")
    clean = tones[name]
    levels = torch.full((len(clean),), sigma)
    scores = network.normal_scores(noised(clean, sigma, seed), levels).numpy()
    along = (scores * (clean / clean.norm(dim=-1, keepdim=True)).numpy()).sum(-1)
    centred = scores - scores.mean()
    return [
        {
            "source": name,
            "sigma": sigma,
            "mean_square": float(np.square(scores).mean()),
            "ks": float(kstest(scores.ravel(), "norm").statistic),
            "lag": float((centred[:, 1:] * centred[:, :-1]).mean() / centred.var()),
            "along_tone": float(np.square(along).mean()),
        }
    ]


@sampling_arithmetic()
def denoisers(
    sets: tuple[Networks, Networks], tones: dict[str, Tensor], seed: int, start: int, kinds: Any
) -> list[Row]:
    """Errors of a denoiser at a noise level, and coverage of draws of the clean tone."""
    ((name, sigma, exact),) = kinds
    clean = tones[name][:, :ORACLE_TIME] if exact else tones[name]
    prior, (count, time) = unaware(sets[exact][name]), clean.shape
    target = AnnealedPosterior(torch.zeros(count, time), [prior], Mixing((1.0,), DEAF))
    noisy = noised(clean, sigma, seed)[:, None]
    at = (noisy, target.evaluate(noisy, sigma), sigma)
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.stack([target.draw_clean(*at, generator)[0][:, 0] for _ in range(ALONE)], 1)
    error = (target.denoise(*at)[:, 0] - clean) / sigma
    axes = [clean, quarter(clean)]
    gain, phase = ((error * axis).sum(-1) / axis.norm(dim=-1) for axis in axes)
    rest = (error.square().sum(-1) - gain.square() - phase.square()).clamp_min(0).sqrt()
    row = {"source": name, "prior": "oracle" if exact else "learned", "sigma": sigma}
    for part, values in {"gain": gain, "phase": phase, "rest": rest}.items():
        row[part] = float(values.square().mean().sqrt())
    row["gain_percent"] = 100 * float((sigma * gain / clean.norm(dim=-1)).square().mean().sqrt())
    for key, function in SCALARS.items():
        found = ranks(function(clean.numpy()), function(drawn.numpy()), np.random.default_rng(seed))
        row[key] = coverage(found, ALONE, np.random.default_rng(seed)).tolist()
    return [row]


def unaware(prior: NetworkPrior) -> NetworkPrior:
    """The prior without a gain error, which one of the estimate "mean" does not state."""
    plain = copy.copy(prior)
    plain.estimate = "mean"
    return plain


def quarter(clean: Tensor) -> Tensor:
    """The audio with every frequency a quarter of its period later (Hilbert transform)."""
    spectrum = torch.fft.rfft(clean)
    spectrum[..., 0] = 0
    return torch.fft.irfft(-1j * spectrum, n=clean.shape[-1])


@sampling_arithmetic()
def separations(
    priors: Networks, time: int, settings: Row, start: int, items: Sequence[Any]
) -> list[Row]:
    """Ranks and errors of mixtures of one pair, by draws without and with corrected gains."""
    pair = items[0][0]
    own = {name: priors[name] for name in pair}
    mixtures, truth = stack([toy_mixture("test", index, pair, time) for _, index in items])
    budget = {"chains": 1, "draws": settings["draws"], "sigma_min": settings["sigma_min"]}
    plan, recorder = resolve_settings(own, time, **budget), MemoryRecorder()
    mixing, seeds = Mixing.mean(len(pair)), torch.Generator().manual_seed(settings["seed"] + start)

    def posterior(batch: Tensor) -> AnnealedPosterior:
        return AnnealedPosterior(batch, list(own.values()), mixing, exact=True)

    anneal(mixtures, posterior, plan, seeds, recorder)
    sources, means, noisy = (part[:, 0] for part in recorder.draws[:3])
    plain = AnnealedPosterior(
        mixtures.repeat_interleave(plan.draws, 0), list(map(unaware, own.values())), mixing, True
    )
    flat, sigma = noisy.flatten(0, 1), plan.sigma_min
    before = plain.draw_clean(flat, plain.evaluate(flat, sigma), sigma, seeds)
    kinds = {
        "before": [part.reshape(noisy.shape) for part in before],
        "after": [sources, means],
    }
    rows: list[Row] = [{"pair": list(pair), "index": i, "sigma": sigma} for _, i in items]
    for kind, (drawn, expected) in kinds.items():
        for row, *parts in zip(rows, truth, drawn, expected, strict=True):
            row[kind] = judged(*parts, settings["seed"])
    return rows


def judged(truth: Tensor, drawn: Tensor, expected: Tensor, seed: int) -> Row:
    """Figures of the draws ``(draw, source, time)`` of one mixture."""
    row: Row = {"si_sdr": si_sdr(expected.mean(0), truth).tolist()}
    generator, count = np.random.default_rng(seed), len(drawn)
    subsets = {"all": slice(None), "first": slice(FEW), "spread": slice(None, None, count // FEW)}
    true, draws = truth.numpy()[None], drawn.numpy()[None]
    for name, subset in subsets.items():
        few = draws[:, subset][:, : count if name == "all" else FEW]
        inside = coverage(np.moveaxis(ranks(true, few, generator), -1, 0), few.shape[1], generator)
        row[name] = {"audio": inside[:, 0].tolist()}
        for key, function in SCALARS.items():
            row[name][key] = ranks(function(true), function(few), generator)[0].tolist()
    for key, function in SCALARS.items():
        values = function(draws)[0]
        row[key] = {"error": (values.mean(0) - function(true)[0]).tolist()}
        row[key]["std"] = values.std(0).tolist()
    return row


def covered(rows: list[Row], draws: int, seed: int) -> list[Row]:
    """Coverage of all sources of all mixtures, by kind and subset of the draws."""
    generator, lines = np.random.default_rng(seed), []
    for kind in ("before", "after"):
        for subset in ("all", "first", "spread"):
            parts = [row[kind][subset] for row in rows]
            line: Row = {"gains": kind, "draws": subset}
            for key in SCALARS:
                found: NDArray[np.int64] = np.array([part[key] for part in parts]).ravel()
                number = draws if subset == "all" else FEW
                line[key] = coverage(found, number, generator).tolist()
            line["audio"] = np.mean([part["audio"] for part in parts], (0, 2)).tolist()
            lines.append(line)
    return lines


def errors(rows: list[Row]) -> list[Row]:
    """Errors of the draws' mean, and the spread that the draws claim, by waveform."""
    lines = []
    for name in WAVEFORMS:
        places = [(row, row["pair"].index(name)) for row in rows if name in row["pair"]]
        line: Row = {"source": name}
        for kind in ("before", "after"):
            for key in SCALARS:
                error, std = (
                    np.array([row[kind][key][part][k] for row, k in places])
                    for part in ("error", "std")
                )
                line[f"{kind}_{key}_error"] = float(np.sqrt(np.square(error).mean()))
                line[f"{kind}_{key}_bias"] = float(error.mean())
                line[f"{kind}_{key}_std"] = float(np.median(std))
            line[f"{kind}_si_sdr"] = float(np.median([row[kind]["si_sdr"][k] for row, k in places]))
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(main)
