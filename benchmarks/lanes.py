"""How busy lanes are while they cost money: ours, against bare workers and against Prefect's tag limit per task.

    .venv/bin/python benchmarks/lanes.py             # tables, and JSON as the last line; about 12 minutes
    .venv/bin/python benchmarks/lanes.py --quick     # the short steps alone, on one server

Engines are simulated: a step takes a seeded log-normal time, another model 2 s more. 4 lanes on 2 hosts, two models.

bare    asyncio workers that pull from the same queue, without Prefect: the limit.
map     `task.map` with a limit of 4 on the tag, as tutorials do it.
ours    `run_lane` with the limits of lanes, memory and tag in force, every step fetched, checked and stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console
from rich.table import Table

from callsheet.batch import Batch
from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.comfyui_answers import Output
from callsheet.fleet import read_fleet
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan
from callsheet.store import open_store
from callsheet.workflow import SHIPPED_WORKFLOWS
from tasks.production import Production
from tasks.turns import run_lane

ROOT = Path(__file__).resolve().parent.parent
SWAP_SECONDS = 2.0
LANES = 4
#: A full server as anybody starts it, on SQLite.
STOCK = "prefect server start"
#: Seconds of a step, at least and at most, and the middle of the distribution.
SETS = {"short": (0.1, 1.0, 0.35), "long": (2.0, 10.0, 4.0)}
SHORT_TARGET, LONG_TARGET, MAP_TARGET = 0.95, 0.98, 3.0
ENGINE = 'kind = "comfyui"\nrevision = "bench"\nurl = "http://127.0.0.1:9"\n'


def service_times(name: str, count: int) -> list[float]:
    """What each step takes, in seconds; the same in every run."""
    low, high, middle = SETS[name]
    rng = random.Random(20)
    return [min(high, max(low, rng.lognormvariate(math.log(middle), 0.6))) for _ in range(count)]


class Engines:
    """What simulated engines did: seconds of steps, and how often a model was loaded."""

    def __init__(self, times: list[float], swap_seconds: float = SWAP_SECONDS) -> None:
        self.times, self.swap_seconds = times, swap_seconds
        self.loaded: dict[str, str] = {}
        self.swaps = 0
        self.began = math.inf
        self.ended = 0.0

    def seconds(self, engine: str, model: str, number: int) -> float:
        """How long step ``number`` takes on this engine now."""
        self.began = min(self.began, time.perf_counter())
        swap = self.loaded.get(engine) != model
        self.swaps += swap
        self.loaded[engine] = model
        return self.times[number] + self.swap_seconds * swap

    def figures(self, wall: float, cpu: float) -> dict[str, float]:
        ideal = (sum(self.times) + SWAP_SECONDS * LANES) / LANES
        return {
            "wall": wall,
            "busy": sum(self.times) / LANES / wall,
            "over_ideal": wall / ideal,
            "swaps": self.swaps,
            "cpu_ms": cpu / len(self.times) * 1000,
        }


def plan_of(folder: Path, count: int) -> Plan:
    """A plan of so many pictures by two models on four lanes of two hosts."""

    workflows = folder / "workflows"
    workflows.mkdir()
    for name in ("one", "two"):
        shutil.copy(SHIPPED_WORKFLOWS / "flux_dev.json", workflows / f"{name}.json")
        declared = (SHIPPED_WORKFLOWS / "flux_dev.toml").read_text("utf-8")
        (workflows / f"{name}.toml").write_text(
            declared.replace('signature = "flux_dev"', f'signature = "{name}"'), "utf-8"
        )
    hosts = (
        f'[[host]]\nname = "{name}"\nvram_gb = 32\n[[host.engine]]\n{ENGINE}[[host.engine]]\n{ENGINE}'
        for name in "ab"
    )
    (folder / "fleet.toml").write_text('provider = "static"\n' + "".join(hosts), "utf-8")
    rows = [f"s{n},{('one', 'two')[n % 2]},lamp {n},256,256" for n in range(count)]
    (folder / "script.csv").write_text("\n".join(["shot_id,visual,prompt,width,height", *rows]), "utf-8")
    parameters = ProduceParameters(script=folder / "script.csv", advanced={"workflows": workflows})
    return parameters.plan(read_fleet(str(folder / "fleet.toml")))


async def bare(times: list[float], folder: Path) -> dict[str, float]:
    """Four workers and the queue, and nothing else."""

    plan, engines = plan_of(folder, len(times)), Engines(times)
    batch = Batch("bench", plan, list(plan.fleet.lanes()))

    async def work(lane: Any) -> None:
        while step := batch.next_step(lane):
            number = int(step.name.split()[0][1:])
            await asyncio.sleep(engines.seconds(lane.engine_name, step.signature, number))
            batch.queue.complete(step.key)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(lane) for lane in plan.fleet.lanes()))
    return engines.figures(time.perf_counter() - began, time.process_time() - cpu)


def mapped(times: list[float]) -> dict[str, float]:
    """Every step a task that takes a slot of the tag for itself."""

    engines, free = Engines(times), queue.SimpleQueue[str]()
    for name in range(LANES):
        free.put(str(name))

    @task(tags=["gpu"], cache_policy=NO_CACHE)
    def step(number: int) -> None:
        engine = free.get()
        try:
            time.sleep(engines.seconds(engine, ("one", "two")[number % 2], number))
        finally:
            free.put(engine)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=16))
    def run() -> None:
        step.map(range(len(times))).wait()

    with get_client(sync_client=True) as client:  # which starts the in-process server, where it is that
        client.create_concurrency_limit("gpu", LANES)
    began, cpu = time.perf_counter(), time.process_time()
    run()
    return engines.figures(time.perf_counter() - began, time.process_time() - cpu)


class Simulated(ComfyUI):
    """A client whose engine is a clock; all that goes on around it is real."""

    def __init__(self, name: str, engines: Engines, numbers: dict[str, int], picture: Path) -> None:
        super().__init__("http://127.0.0.1:9", name=name)
        self.engines, self.numbers, self.picture = engines, numbers, picture

    async def ready(self) -> None: ...
    async def preflight(self, *_: Any) -> None: ...
    async def free(self) -> None: ...

    async def claim(self, key: str, *_: Any, **__: Any) -> str:
        return key

    async def run(
        self, _: Any, __: str, prompt_id: str, *___: Any, signature: str = "", **____: Any
    ) -> Output:
        await asyncio.sleep(self.engines.seconds(self.name, signature, self.numbers[prompt_id]))
        return Output(self.picture.name, "", "output")

    async def download(self, _: Output, target: Path, prompt_id: str = "") -> None:
        shutil.copy(self.picture, target)


async def ours(times: list[float], folder: Path) -> dict[str, float]:
    """The lanes of the project, with engines that sleep."""

    plan, engines = plan_of(folder, len(times)), Engines(times)
    numbers = {step.key: int(step.name.split()[0][1:]) for step in plan.steps.values()}
    picture = folder / "lamp.png"
    PIL.Image.linear_gradient("L").convert("RGB").save(picture)

    @flow
    async def run() -> None:
        batch = Batch("bench", plan, list(plan.fleet.lanes()))
        production = Production(batch, open_store(str(folder / "out")), folder, run_id="bench")
        for lane in plan.fleet.lanes():
            production.clients[lane.engine_name] = Simulated(lane.engine_name, engines, numbers, picture)

        async def work() -> None:
            await asyncio.gather(*(run_lane(lane.name) for lane in plan.fleet.lanes()))

        await production.run(work)
        made = [sidecar for sidecar in batch.made if not sidecar.needs_review]
        if len(made) != len(times):
            raise RuntimeError(
                f"{len(made)} of {len(times)} takes are well: {batch.made[0].attempts[0].faults}"
            )

    async with get_client() as client:
        await client.hello()  # which starts the in-process server, where it is that
    began, cpu = time.perf_counter(), time.process_time()
    await run()
    return engines.figures(time.perf_counter() - began, time.process_time() - cpu)


# One process for each measurement ------------------------------------------------------------------


def measure(way: str, name: str, count: int) -> dict[str, float]:
    """What this process is for when it is started as a worker."""
    times = service_times(name, count)
    with tempfile.TemporaryDirectory() as folder:
        if way == "bare":
            return asyncio.run(bare(times, Path(folder)))
        return mapped(times) if way == "map" else asyncio.run(ours(times, Path(folder)))


def worker(way: str, name: str, count: int, env: dict[str, str], home: Path) -> dict[str, float]:
    """Measures in a process of its own, whose Prefect has a home of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", way, name, str(count)],
        env={**os.environ, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1", **env},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextmanager
def server(kind: str, home: Path) -> Iterator[dict[str, str]]:
    """What a worker's environment needs for a server of that kind; the server is there while the block lasts."""
    if kind == "in-process":
        yield {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}
        return
    env = {
        **os.environ,
        "PREFECT_HOME": str(home / "server"),
        "CALLSHEET_HOME": str(home),
        "DO_NOT_TRACK": "1",
    }
    env["PREFECT_LOGGING_LEVEL"] = "ERROR"
    port = str(random.Random(str(home)).randint(20_000, 40_000))
    command = (
        [sys.executable, "-m", "flows.server_process", port]
        if kind == "ours"
        else [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", port]
    )
    process = subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health", timeout=1).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield {"PREFECT_API_URL": url, "SERVER_PID": str(process.pid)}
    finally:
        process.terminate()
        process.wait(timeout=30)


def cpu_seconds(pid: str) -> float:
    """CPU that a process has used so far; 0 where /proc does not tell."""
    if not pid:
        return 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Row = dict[str, Any]


def rows(quick: bool) -> Iterator[Row]:
    """Every measurement, with what it was of."""
    sets = [("short", 60)] if quick else [("short", 60), ("short", 400), ("long", 60)]
    for name, count in sets:
        with tempfile.TemporaryDirectory() as home:
            yield {"set": name, "steps": count, "way": "bare", "server": "-"} | worker(
                "bare", name, count, {}, Path(home)
            )
        servers = [STOCK] if quick else ["in-process", "ours", STOCK]
        for kind in servers:
            ways = ["ours", "map"] if count == 60 and kind == STOCK else ["ours"]
            for way in ways:
                with tempfile.TemporaryDirectory() as home, server(kind, Path(home)) as env:
                    pid = env.pop("SERVER_PID", "")
                    before = cpu_seconds(pid)
                    figures = worker(way, name, count, env, Path(home) / "client")
                    server_cpu = (cpu_seconds(pid) - before) / count * 1000
                yield {
                    "set": name,
                    "steps": count,
                    "way": way,
                    "server": kind,
                    **figures,
                    "server_cpu_ms": server_cpu,
                }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--quick", action="store_true", help="the short steps alone, on one server")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, name, count = arguments.worker
        print(json.dumps(measure(way, name, int(count))))
        return 0
    found = list(rows(arguments.quick))
    wanted = {"short": SHORT_TARGET, "long": LONG_TARGET}
    targets = [
        target(
            f"{row['set']}_{row['steps']}_of_bare_{row['server']}", _of_bare(row, found), wanted[row["set"]]
        )
        for row in found
        if row["way"] == "ours" and (row["steps"] == 400 or row["set"] == "long")
    ]
    targets += [
        target(f"{row['set']}_{row['steps']}_over_map", _busy(found, row, "ours") / row["busy"], MAP_TARGET)
        for row in found
        if row["way"] == "map" and row["set"] == "short"
    ]
    if not arguments.json:
        show(found)
    print(json.dumps({"benchmark": "lanes", "targets": targets, "rows": [rounded(row) for row in found]}))
    return 0 if all(one["met"] for one in targets) else 1


def target(name: str, value: float, wanted: float) -> dict[str, Any]:
    return {
        "name": name.replace(" ", "_"),
        "value": round(value, 3),
        "target": wanted,
        "met": value >= wanted,
    }


def _busy(found: list[Row], like: Row, way: str) -> float:
    """The busy share of the same steps on the same server, done another way."""
    return next(
        float(row["busy"])
        for row in found
        if (row["way"], row["set"], row["steps"]) == (way, like["set"], like["steps"])
        and (way == "bare" or row["server"] == like["server"])
    )


def _of_bare(row: Row, found: list[Row]) -> float:
    return float(row["busy"]) / _busy(found, row, "bare")


def rounded(row: Row) -> Row:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def show(found: list[Row]) -> None:
    table = Table(title="Lanes: 4 on 2 hosts, 2 models")
    for column in (
        "set",
        "steps",
        "way",
        "server",
        "busy",
        "of bare",
        "wall s",
        "over ideal",
        "swaps",
        "client CPU ms",
        "server CPU ms",
    ):
        table.add_column(column)
    for row in found:
        table.add_row(
            row["set"], str(row["steps"]), row["way"], row["server"], f"{row['busy']:.3f}", f"{_of_bare(row, found):.3f}",
            f"{row['wall']:.1f}", f"{row['over_ideal']:.2f}", str(row["swaps"]), f"{row['cpu_ms']:.1f}",
            f"{row.get('server_cpu_ms', 0):.1f}",
        )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
