"""What long scripts cost: planning, a batch that is done already, and many steps on engines that take no time.

    .venv/bin/python benchmarks/scale.py             # tables, and JSON as the last line; about 5 minutes
    .venv/bin/python benchmarks/scale.py --quick     # a tenth of the shots

plan    a script of narrations, every other with a clip, planned in a process of its own: seconds, and its most memory.
        Beside it what pandas takes to read the same file.
done    all takes are in the store: `produce` finds that out, and calls no engine.
run     pictures on engines that answer at once, through lanes, checks and store: steps a second, and memory on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import lanes
import pandas
import PIL.Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import TaskRunSort
from rich.console import Console
from rich.table import Table

from callsheet.batch import Batch
from callsheet.fleet import read_fleet
from callsheet.inputs import InputFile
from callsheet.journal import journal_path
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan
from callsheet.store import open_store
from callsheet.takes import Attempt, Sidecar, attempt_path, sidecar_path
from flows.produce import produce
from flows.server import prefect_server
from tasks.production import Production
from tasks.turns import run_lane

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "keeper lamp harbour evening water letter winter stone window river garden morning silence paper".split()
)


def write_script(folder: Path, count: int) -> Path:
    """Narrations of 10 to 30 words, a number in every fifth; every other with a clip; a hundred to a programme."""
    rng = random.Random(3)
    with wave.open(str(folder / "anna.wav"), "wb") as tone:
        tone.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone.writeframes(
            b"".join(
                int(9000 * ((n // 40) % 2 * 2 - 1)).to_bytes(2, "little", signed=True) for n in range(64_000)
            )
        )
    (folder / "voices.csv").write_text(
        "voice,audio,transcript,language,licence,consent\nanna,anna.wav,A quiet line.,en,CC0-1.0,synthetic\n",
        "utf-8",
    )
    path = folder / "script.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["shot_id", "title", "text", "voice", "visual", "prompt"])
        for n in range(count):
            words = " ".join(rng.choices(WORDS, k=rng.randint(8, 28)))
            text = f"The {words}, {f'all {n} of them' if n % 5 == 0 else 'all of them'}."
            writer.writerow(
                [f"s{n}", f"part {n // 100}", text, "anna", *(("wan_t2v", f"sea {n}") if n % 2 else ("", ""))]
            )
    return path


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes() -> float:
    """Memory of this process now."""
    try:
        return (
            int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        )
    except OSError:
        return peak_megabytes()


def plan(folder: Path, count: int) -> dict[str, float]:
    """Plans a script; beside it, what reading the file alone takes."""
    script = write_script(folder, count)
    began = time.perf_counter()
    pandas.read_csv(script, dtype=str)
    read = time.perf_counter() - began
    began = time.perf_counter()
    steps = len(ProduceParameters(script=script).plan(read_fleet("draft")).steps)
    return {
        "shots": count,
        "steps": steps,
        "seconds": time.perf_counter() - began,
        "read_seconds": read,
        "mb": peak_megabytes(),
    }


def keep_everything(parameters: ProduceParameters, planned: Plan, store: Path) -> None:
    """Writes a take for every step of the plan, as a run would have: the batch is done."""
    kept = open_store(str(store))
    source = store.parent / "take.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=8:duration=5", "-pix_fmt", "yuv420p"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *picture, "-y", str(source)], check=True)
    file = InputFile.read(source)
    sidecars: dict[str, Sidecar] = {}
    for step in planned.steps.values():
        target = attempt_path(step.kind, step.key, 0, ".wav" if step.kind == "speech" else ".mp4")
        kept.put(target, source)
        attempt = Attempt(
            n=0, file=target, sha256=file.sha256, bytes=source.stat().st_size, length=max(step.seconds, 5.0)
        )
        sidecars[step.key] = Sidecar(
            key=step.key, kind=step.kind, engine=step.engine, revision=step.revision, inputs={},
            sources=dict.fromkeys(step.needs, file.sha256), chosen=0, needs_review=False, attempts=[attempt],
        )  # fmt: skip
        kept.put(sidecar_path(step.kind, step.key), sidecars[step.key].model_dump_json().encode())
    lines = "".join(f"{sidecar.model_dump_json()}\n" for sidecar in sidecars.values())
    kept.put(journal_path(parameters.batch_name, "earlier"), lines.encode())


async def done(folder: Path, count: int) -> dict[str, float]:
    """Runs a batch twice that is all done; the second run finds it published too."""
    rows = [f"s{n},wan_t2v,sea {n}" for n in range(count)]
    (folder / "script.csv").write_text("\n".join(["shot_id,visual,prompt", *rows]), "utf-8")
    parameters = ProduceParameters(script=folder / "script.csv", store=str(folder / "out"))
    keep_everything(parameters, parameters.plan(read_fleet("draft")), folder / "out")
    seconds: list[float] = []
    async with prefect_server():
        for _ in range(2):
            began = time.perf_counter()
            state: Any = await produce(parameters, return_state=True)
            seconds.append(time.perf_counter() - began)
            summary = await state.aresult()
            if (summary.done, summary.takes_made) != (count, 0):
                raise RuntimeError(
                    f"{summary.done} of {count} shots are done, {summary.takes_made} takes were made"
                )
        async with get_client() as client:
            tasks = len(await client.read_task_runs(limit=200, sort=TaskRunSort.ID_DESC))
    return {
        "shots": count,
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "task_runs": tasks,
        "mb": peak_megabytes(),
    }


async def run(folder: Path, count: int) -> dict[str, float]:
    """Pictures on engines that take no time."""
    planned = lanes.plan_of(folder, count)
    engines = lanes.Engines([0.0] * count, swap_seconds=0.0)
    numbers = {step.key: int(step.name.split()[0][1:]) for step in planned.steps.values()}
    picture = folder / "lamp.png"
    PIL.Image.linear_gradient("L").convert("RGB").save(picture)
    memory: list[float] = []

    @flow
    async def work_off() -> None:
        batch = Batch("bench", planned, list(planned.fleet.lanes()))
        production = Production(batch, open_store(str(folder / "out")), folder, run_id="bench")
        for lane in planned.fleet.lanes():
            production.clients[lane.engine_name] = lanes.Simulated(
                lane.engine_name, engines, numbers, picture
            )

        async def watch() -> None:
            while True:
                await asyncio.sleep(1)
                memory.append(megabytes())

        async def work() -> None:
            watching = asyncio.create_task(watch())
            await asyncio.gather(*(run_lane(lane.name) for lane in planned.fleet.lanes()))
            await production.settled()
            watching.cancel()

        await production.run(work)
        if len(batch.made) != count:
            raise RuntimeError(f"{len(batch.made)} of {count} takes were made")

    async with prefect_server():
        began, cpu = time.perf_counter(), time.process_time()
        await work_off()
        seconds = time.perf_counter() - began
    quarter = max(1, len(memory) // 4)
    return {
        "shots": count,
        "steps_per_second": count / seconds,
        "cpu_ms": (time.process_time() - cpu) / count * 1000,
        "mb_first_quarter": max(memory[:quarter], default=0.0),
        "mb_end": memory[-1] if memory else 0.0,
    }


def measure(what: str, count: int) -> dict[str, float]:
    """What this process is for when it is started as a worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CALLSHEET_HOME"] = str(folder / "home")
        if what == "plan":
            return plan(folder, count)
        return asyncio.run(done(folder, count) if what == "done" else run(folder, count))


def worker(what: str, count: int) -> dict[str, Any]:
    """Measures in a process of its own."""
    finished = subprocess.run(
        [sys.executable, __file__, "--worker", what, str(count)],
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1"},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if finished.returncode:
        raise RuntimeError(finished.stderr[-3000:])
    figures: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return {"what": what} | {key: round(value, 2) for key, value in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--quick", action="store_true", help="a tenth of the shots")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker[0], int(arguments.worker[1]))))
        return 0
    tenth = 10 if arguments.quick else 1
    plans = [worker("plan", count // tenth) for count in (1_000, 10_000, 100_000)]
    finished, ran = worker("done", 10_000 // tenth), worker("run", 2_000 // tenth)
    targets = [
        target("plan_100000_seconds", plans[-1]["seconds"], 30 / tenth),
        target("plan_100000_mb", plans[-1]["mb"], 1024),
        target("done_10000_seconds", finished["seconds"], 10 / tenth),
        target("done_task_runs", finished["task_runs"], 10),
        target("run_mb_growth", ran["mb_end"] - ran["mb_first_quarter"], 50),
    ]
    found = [*plans, finished, ran]
    if not arguments.json:
        for row in found:
            table = Table(title=row["what"])
            for column in row:
                table.add_column(column)
            table.add_row(*map(str, row.values()))
            Console(width=140).print(table)
    print(json.dumps({"benchmark": "scale", "targets": targets, "rows": found}))
    return 0 if all(one["met"] for one in targets) else 1


def target(name: str, value: float, most: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 2), "target": most, "met": value <= most}


if __name__ == "__main__":
    sys.exit(main())
