"""How much faster do several workers separate many recordings, and what does it cost beside?

    OMP_NUM_THREADS=1 python experiments/scaling.py
    OMP_NUM_THREADS=1 python experiments/scaling.py --only speed --mixtures 16

Toy mixtures of two tones are written as audio files, and separated by ``pyro_sep.separate_many``:

    speed       all of them by each number of workers, from nothing; mixtures per hour, and the same
                without Dask; whether all draws are equal bit for bit
    scheduler   calls of a function that does nothing: the scheduler's cost of a task
    memory      small recordings one after another by one worker: its memory after each
    length      memory of a process that separates music of several lengths as one state; the slope
                is the memory per minute
    projection  from these figures, what collections of 10^3, 10^5 and 10^7 tracks take

The load of the machine is measured before each run: other programs that run at the same time make
figures of time worse, and CPU seconds hardly. OUT/scaling.json has all figures, and parts that are
not named in --only stay in it.
"""

import json
import os
import resource
import subprocess
import sys
import time as clock
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Annotated, Any

import numpy as np
import torch
import typer
from _common import Only, Out, PriorSet, Results, Row, Sources, choose, load_set, split

from pyro_sep.audio.io import save_audio
from pyro_sep.cli.program import run
from pyro_sep.data.toy import SAMPLE_RATE, toy_mixture
from pyro_sep.priors.base import Priors
from pyro_sep.results import separate_many
from pyro_sep.results.sections import spans
from pyro_sep.separation.cost import estimate_cost
from pyro_sep.separation.presets import resolve_settings
from pyro_sep.trace.dataset import TRACE, load_trace
from pyro_sep.workers import local_cluster, spread

PARTS = ("speed", "scheduler", "memory", "length", "projection")
LEAST = {"levels": 6, "candidates": 1, "tries": 1, "replicas": 0, "cooling": 1, "draws": 2}
MUSIC = {"levels": 6, "candidates": 1, "cooling": 1, "warmup": 1, "draws": 4, "chains": 2}
NOTHINGS = 5_000  # calls of a function that does nothing
RECORDINGS = 200  # small ones, of which a worker's memory is measured
WARM = 20  # recordings from which on it is
WATCH_SECONDS = 2.0  # between measurements
LENGTHS = (3.0, 6.0, 12.0)  # seconds of music
TRACK = 180.0  # seconds of a track on paper
COLLECTIONS = {10**3: 64, 10**5: 2_000, 10**7: 20_000}  # tracks, and cores for them


def main(
    only: Only = None,
    mixtures: Annotated[int, typer.Option(min=1, help="Mixtures for the speed.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.016, help="Of a mixture.")] = 0.032,
    workers: Annotated[str, typer.Option(help="Numbers of workers, comma-separated.")] = "1,2",
    priors: PriorSet = "toy",
    sources: Sources = "square,saw",
    out: Out = Path("results/scaling"),
) -> None:
    """Measure, and print the figures."""
    results, path = Results(out), out / "scaling.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    loaded, time = load_set(priors, sources), round(seconds * SAMPLE_RATE)
    counts = [int(count) for count in split(workers)]
    parts: dict[str, Callable[[], Row]] = {
        "speed": lambda: speed(loaded, time, mixtures, counts) | {"seconds": seconds},
        "scheduler": scheduler,
        "memory": memory,
        "length": length,
        "projection": lambda: projection(content),
    }
    for name in choose("only", only, parts):
        began = load()
        content[name] = {"load_before": began, "cores": os.cpu_count()} | parts[name]()
        results.json(content, "scaling")
        print(f"{name}: {json.dumps(content[name])}", flush=True)
    results.done()


def load() -> float:
    """Processes that ran or waited for a core in the last minute, on average."""
    return round(os.getloadavg()[0], 1)


def write_mixtures(folder: Path, names: Sequence[str], time: int, count: int) -> list[Path]:
    """Audio files of toy mixtures of the development part of the test split."""
    paths = [folder / f"{index:04d}.wav" for index in range(count)]
    for index, path in enumerate(paths):
        save_audio(path, toy_mixture("test", index, names, time).mixture, SAMPLE_RATE)
    return paths


def speed(priors: Priors, time: int, count: int, workers: Sequence[int]) -> Row:
    """Mixtures per hour without Dask and by each number of workers, and whether draws are equal."""
    with TemporaryDirectory() as parent:
        folder = Path(parent)
        paths = write_mixtures(folder, list(priors), time, count)
        began, spent = clock.monotonic(), clock.process_time()
        separate_many(paths, priors, folder / "alone")
        wall, spent = clock.monotonic() - began, clock.process_time() - spent
        rows = [{"workers": 0, "wall_seconds": wall, "cpu_seconds": spent, "load": load()}]
        equal = True
        for number in workers:
            out, before = folder / f"by_{number}", load()
            with local_cluster(number) as client:
                warm = separate_many(
                    paths[:number], priors, folder / f"warm_{number}", client=client
                )
                started, began = sum(client.run(cpu).values()), clock.monotonic()
                done = separate_many(paths, priors, out, client=client)
                wall = clock.monotonic() - began
                spent = sum(client.run(cpu).values()) - started
            failed = [outcome.error for outcome in (*warm, *done) if outcome.failed]
            if failed:
                raise ValueError(failed[0])
            rows.append(
                {"workers": number, "wall_seconds": wall, "cpu_seconds": spent, "load": before}
            )
            equal &= all(
                load_trace(out / path.stem / TRACE).identical(
                    load_trace(folder / "alone" / path.stem / TRACE)
                )
                for path in paths
            )
    for row in rows:
        row["mixtures_per_hour"] = 3_600 * count / row["wall_seconds"]
        row["cpu_seconds_per_mixture"] = row["cpu_seconds"] / count
    one = next(row for row in rows if row["workers"] == min(workers))
    for row in rows:
        row["ratio_to_fewest"] = one["wall_seconds"] / row["wall_seconds"]
    overhead = (one["cpu_seconds"] - rows[0]["cpu_seconds"]) / count
    return {
        "mixtures": count,
        "sources": list(priors),
        "runs": rows,
        "equal_draws": equal,
        "overhead_cpu_seconds_per_mixture": overhead,
    }


def cpu() -> float:
    """CPU seconds of this process."""
    return clock.process_time()


def scheduler() -> Row:
    """Cost of calls that do nothing, by two workers."""
    with local_cluster(2) as client:
        list(spread(client, nothing, ((i,) for i in range(100))))
        began, spent = clock.monotonic(), clock.process_time()
        count = sum(1 for _ in spread(client, nothing, ((i,) for i in range(NOTHINGS))))
        wall, spent = clock.monotonic() - began, clock.process_time() - spent
    return {
        "tasks": count,
        "wall_milliseconds_per_task": 1e3 * wall / count,
        "cpu_milliseconds_per_task": 1e3 * spent / count,  # of client and scheduler together
    }


def nothing(number: int) -> int:
    """Do nothing."""
    return number


def memory() -> Row:
    """Memory of a worker after each of many small recordings."""
    priors = load_set("toy/oracle", "sine")
    with TemporaryDirectory() as parent, local_cluster(1) as client:
        folder = Path(parent)
        paths, out = write_mixtures(folder, ["sine"], 256, RECORDINGS), folder / "out"
        rows: list[tuple[int, float]] = []
        ended = Event()

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS):
                done = sum(1 for _ in out.glob("*/summary.json"))
                rows.append((done, next(iter(client.run(resident).values()))))

        watcher = Thread(target=watch)
        watcher.start()
        separate_many(paths, priors, out, client=client, **LEAST)
        ended.set()
        watcher.join()
    late = [(done, held) for done, held in rows if done >= WARM]
    slope, _ = np.polyfit([done for done, _ in late], [held for _, held in late], 1)
    return {
        "recordings": RECORDINGS,
        "finished_and_megabytes": [row for row in dict(rows).items() if row[0] % WARM == 0],
        "warm": WARM,
        "warm_megabytes": late[0][1],
        "last_megabytes": late[-1][1],
        "kilobytes_per_recording": 1e3 * float(slope),
    }


def resident() -> float:
    """Memory of this process in MB, at present."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def length() -> Row:
    """Memory, time and size on the disk by the length of the music that is one state."""
    rows = []
    for seconds in LENGTHS:
        command = [sys.executable, __file__, "--length", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    seconds, megabytes = ([row[key] for row in rows] for key in ("seconds", "megabytes"))
    slope = np.polyfit(seconds, megabytes, 1)[0]
    last = rows[-1]
    of_all = last["seconds"] * last["gradients"]
    return {
        "runs": rows,
        "budget": MUSIC,
        "megabytes_per_minute": 60 * float(slope),
        "cpu_seconds_per_gradient_and_second": last["cpu_seconds"] / of_all,
    }


def separate_noise(seconds: float) -> Row:
    """What it takes to separate noise of this length with the priors of music."""
    generator = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as parent:
        path, out = Path(parent) / "noise.wav", Path(parent) / "noise"
        time = round(seconds * SAMPLE_RATE)
        save_audio(path, 0.1 * torch.randn(time, generator=generator), SAMPLE_RATE)
        priors = load_set("music", mixing="sum")
        spent = clock.process_time()
        (done,) = separate_many([path], priors, parent, **MUSIC)
        spent = clock.process_time() - spent
        if done.failed:
            raise ValueError(done.error)
        return {
            "seconds": seconds,
            "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "cpu_seconds": spent,
            "gradients": int(load_trace(out / TRACE).attrs["gradients"]),
            "trace_megabytes": (out / TRACE).stat().st_size / 1e6,
        }


def projection(content: Row) -> Row:
    """Collections on paper, by the figures of ``length`` and ``scheduler``.

    A track has three minutes of stereo, and is separated by the priors of music and the preset
    quick. Its stems are WAVs at 44.1 kHz. A draw takes as much in the trace as one did.
    """
    priors = load_set("music", mixing="sum")
    noise = 0.1 * torch.randn(10 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    gradients = estimate_cost(noise, priors, preset="quick").gradients
    quick = resolve_settings(priors, len(noise), preset="quick")
    of_length, run = content["length"], content["length"]["runs"][-1]
    core_hours = gradients * of_length["cpu_seconds_per_gradient_and_second"] * TRACK / 3_600
    drawn = quick.chains * quick.draws / (MUSIC["chains"] * MUSIC["draws"])
    trace = run["trace_megabytes"] / run["seconds"] * TRACK * drawn
    stems = len(priors) * 2 * 4 * 44_100 * TRACK / 1e6
    sections = len(spans(round(TRACK * 44_100), 44_100))  # each of which is a task
    task = sections * content["scheduler"]["cpu_milliseconds_per_task"] / 1e3
    return {
        "track_seconds": TRACK,
        "sections_per_track": sections,
        "gradients": gradients,
        "core_hours_per_track": core_hours,
        "trace_megabytes_per_track": trace,
        "stems_megabytes_per_track": stems,
        "collections": [
            {
                "tracks": f"{tracks:,}",
                "core_hours": tracks * core_hours,
                "cores": cores,
                "days": tracks * core_hours / cores / 24,
                "terabytes": tracks * (trace + stems) / 1e6,
                "scheduler_seconds": tracks * task,
                "tasks_per_second": sections * cores / core_hours / 3_600,
            }
            for tracks, cores in COLLECTIONS.items()
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--length"]:
        print(json.dumps(separate_noise(float(sys.argv[2]))))
    else:
        run(main)
