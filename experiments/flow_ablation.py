"""What makes a flow a good prior? Variants trained alike on one waveform, audited.

    python experiments/flow_ablation.py                    # square waves, the hard case
    python experiments/flow_ablation.py --source sine

Every variant sees the same frames for the same number of steps, by likelihood alone. The printed
table has its CPU minutes, its excess on held-out audio of its own source, and in brackets the
highest excess on another waveform (nats per audio sample over the noise; 0 is the ceiling).
``halves`` is the paper's layout (Frank & Ilse 2020, arXiv 2011.01761) at a size that one core can
train.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from _common import Out, Results, Steps, timed

from pyro_sep.cli.program import run
from pyro_sep.data.source import open_source, training_rms
from pyro_sep.data.toy import SAMPLE_RATE, WAVEFORMS
from pyro_sep.models.flowavenet import CONFIGS
from pyro_sep.models.registry import FAMILIES, family_of
from pyro_sep.models.settings import AUDIT_FRAMES, AUDIT_TIME, TrainConfig
from pyro_sep.models.train import fit
from pyro_sep.priors.auditing import audit
from pyro_sep.priors.networks import PRIORS

TOY, PAPER = CONFIGS["toy"], CONFIGS["paper"]
HALVES = replace(PAPER, flows=2, layers=6)
VARIANTS = {
    "halves, affine (the paper's)": HALVES,
    "halves, spline": replace(HALVES, coupling="spline", components=8),
    "nested, affine": replace(TOY, coupling="affine"),
    "nested, spline": replace(TOY, coupling="spline", components=8),
    "nested, mixture": TOY,
    "nested, mixture, no spectra": replace(TOY, spectra=()),
    "wavenet": FAMILIES["wavenet"].sizes["toy"],
}
SIGMAS = (0.01, 0.077, 0.359, 1.0)


def main(
    source: Annotated[str, typer.Option(help="Waveform.")] = "square",
    steps: Steps = 1_500,
    out: Out = Path("results/flow_ablation"),
) -> None:
    """Train every variant and print the table."""
    results = Results(out)
    audio = open_source(f"toy:{source}", SAMPLE_RATE, AUDIT_TIME)
    sigma_data = training_rms(audio, AUDIT_TIME)
    tests = {
        name: open_source(f"toy:{name}", SAMPLE_RATE, AUDIT_TIME).held_out(AUDIT_FRAMES, AUDIT_TIME)
        for name in WAVEFORMS
    }
    table: dict[str, Any] = {}
    print(f"| variant | CPU min | {' | '.join(f'{sigma:g}' for sigma in SIGMAS)} |")
    for variant, config in VARIANTS.items():
        folder = out / source / variant.replace(", ", "_").replace(" ", "-")
        config = replace(config, sigma_data=sigma_data)
        network, seconds = timed(fit, audio.draw, folder, config, TrainConfig(steps=steps))
        prior = PRIORS[family_of(config)](network, name=source, sample_rate=SAMPLE_RATE)
        # One prior in the place of all: a row of the audit.
        excess = audit(dict.fromkeys(WAVEFORMS, prior), tests, SIGMAS)[:, 0].to_pandas()
        other = excess.drop(columns=source).max(axis=1)
        cells = [f"{excess.loc[s, source]:.2f} ({other[s]:.2f})" for s in SIGMAS]
        print(f"| {variant} | {seconds / 60:.1f} | {' | '.join(cells)} |", flush=True)
        table[variant] = {
            "cpu_minutes": seconds / 60,
            "own": excess[source].tolist(),
            "highest_other": other.tolist(),
        }
        results.json({"steps": steps, "sigmas": SIGMAS, "variants": table}, source)
    results.done()


if __name__ == "__main__":
    run(main)
