"""Run the experiments on Frank & Ilse 2020 in order, each as a process of its own.

    python experiments/run_all.py                      # small sizes
    python experiments/run_all.py --only waveforms,cross_likelihood
    python experiments/run_all.py --scale paper --list # what it would run

``--scale cpu`` has few mixtures, chains and steps, and shows that everything runs. ``--scale
paper`` has the sizes of Frank & Ilse 2020 (arXiv 2011.01761) where an experiment has them, and its
defaults elsewhere: weeks of a GPU.

The output of a step goes to OUT/NAME.log, its results to OUT/NAME. A step that is done is skipped
if its command is the same. One that fails does not stop the others; the exit code is then 1.
"""

import json
import shlex
import subprocess
import sys
import time as clock
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from _common import List, Only, Out, Results, choose

from pyro_sep.checks.arguments import choice
from pyro_sep.cli.program import run
from pyro_sep.storage.files import save_json

FOLDER = Path(__file__).resolve().parent


class Step(NamedTuple):
    """An experiment and its options at each scale."""

    name: str
    cpu: str = ""
    paper: str = ""


STEPS = (
    Step("waveforms"),
    Step("cross_likelihood", paper="--frames 1500"),
    Step("noise_conditioning", paper="--frames 1500"),
    Step("constant_inputs"),
    Step("line_profile", paper="--frames 32"),
    Step("separate_toy", paper="--mixtures 1500 --seconds 1"),
    Step("langevin_ablation", cpu="--mixtures 2"),
    Step("compare_samplers", cpu="--mixtures 1 --seconds 0.032 --priors wavenet,flow"),
    Step("latent_nuts", cpu="--warmup 15 --draws 15 --max-tree-depth 3"),
    Step("flow_ablation", cpu="--steps 100"),
    Step("train_priors", cpu="--scale cpu --steps 20", paper="--scale paper"),
)


def main(
    scale: Annotated[str, typer.Option(help="cpu: small sizes; paper: the paper's.")] = "cpu",
    only: Only = None,
    show: List = False,
    out: Out = Path("results/run_all"),
) -> None:
    """Run the steps that are not done yet, and print how long each took."""
    results = Results(out)
    choice("scale", scale, ("cpu", "paper"))
    steps = {step.name: step for step in STEPS}
    commands = {name: command(steps[name], scale, out) for name in choose("only", only, steps)}
    if show:
        for words in commands.values():
            print(shlex.join(words))
        return
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for count, (name, words) in enumerate(commands.items(), start=1):
        print(f"[{count}/{len(commands)}] {shlex.join(words[1:])}", flush=True)
        rows.append(run_step(name, words, out))
        print(f"    {rows[-1]['state']}, {rows[-1]['seconds']:.0f} s", flush=True)
        results.json({"scale": scale, "steps": rows})
    for row in rows:
        print(f"{row['name']:20s} {row['state']:8s} {row['seconds']:8.0f} s")
    print(f"{sum(row['seconds'] for row in rows):.0f} s in all.")
    results.done()
    if failed := [row["name"] for row in rows if row["state"] == "failed"]:
        print(f"failed: {', '.join(failed)}; why is in {out}/NAME.log")
        raise typer.Exit(1)


def command(step: Step, scale: str, out: Path) -> list[str]:
    """The command of a step, in words."""
    options = shlex.split(step.cpu if scale == "cpu" else step.paper)
    script = FOLDER / f"{step.name}.py"
    return [sys.executable, str(script), *options, "--out", str(out / step.name)]


def run_step(name: str, words: list[str], out: Path) -> dict[str, Any]:
    """Run a step unless its marker says that this very command is done; state and seconds."""
    marker = out / f"{name}.done"
    done = json.loads(marker.read_text()) if marker.exists() else {}
    if done.get("command") == words[1:]:
        return {"name": name, "state": "skipped", "seconds": done["seconds"]}
    marker.unlink(missing_ok=True)
    started = clock.monotonic()
    with (out / f"{name}.log").open("w") as log:
        code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = clock.monotonic() - started
    if code == 0:
        save_json({"command": words[1:], "seconds": seconds}, marker)
    return {"name": name, "state": "failed" if code else "done", "seconds": seconds}


if __name__ == "__main__":
    run(main)
