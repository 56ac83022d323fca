"""What the way into a bucket costs: ours against plain boto3, and what finding out costs that all is there.

    .venv/bin/python benchmarks/store.py             # tables, and JSON as the last line; about 8 minutes, 5 GB of memory
    .venv/bin/python benchmarks/store.py --quick     # a tenth

The bucket is moto's S3 server in a process of its own on this machine; it keeps everything in memory, and is a new one for each
block. Blocks are processes of their own, and the ways take turns, each as often first as last. Ratios are of the blocks of
a round; the median of the rounds counts. Where both cores are busy, a ratio says what the way and the server work together.

small   5,000 takes of a 20 KB medium and a sidecar of 1.5 KB, the medium first, as a lane's takes come: `Deliveries.put`,
        then `put_if` by `Deliveries.call`. "Plain" is a pool of as many threads on one boto3 client: put_object, put_object.
        It hashes nothing, compares nothing, and writes over what stands there.
large   the same with 40 media of 50 MB; "checked" is plain that hashes each medium by md5 and sha256, and sends both.
resume  all takes of a plan are in the bucket: `find_takes` finds that out, in a process that knows nothing yet.
rss     the most memory of the process that delivers, with a quarter of the takes and with all of them at one go.
        Flat is at most 1.15 times as much, Python and its modules included; beside it what it was before the first take.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice, permutations
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import botocore.config
from rich.console import Console
from rich.table import Table

from callsheet.fleet import read_fleet
from callsheet.journal import journal_path
from callsheet.parameters import ProduceParameters
from callsheet.r2 import R2Store
from callsheet.r2_client import client_of
from callsheet.resume import find_takes
from callsheet.store import open_store
from callsheet.takes import Attempt, Check, Sidecar, attempt_path, sidecar_path
from tasks.deliveries import Deliveries

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"R2_ACCESS_KEY_ID": "key", "R2_SECRET_ACCESS_KEY": "secret"}
#: So many distinct media; takes use them in turn.
MEDIA = 10
#: As much may wait to be delivered as in a run by default.
UNDELIVERED_BYTES = 8e9
BATCH = "bench"
ROUNDS = 4


@dataclass(frozen=True)
class Block:
    """So many takes brought into a bucket, one way.

    Attributes:
        folder: has the media, named 0.mp4 and so on.
    """

    way: str
    url: str
    bucket: str
    folder: str
    takes: int


@contextlib.contextmanager
def bucket_server(*buckets: str) -> Iterator[tuple[str, int]]:
    """moto's server with these buckets, empty; its address, and the number of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ
        | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 30)},  # all of it in memory, and no disk
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("moto's server does not start") from None
                time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        client = plain_client(url, 1)
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(process: int) -> float:
    """What another process has worked so far; 0 where the system does not tell."""
    try:
        figures = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")


def plain_client(url: str, threads: int) -> Any:
    """boto3 with what R2 needs, as many connections as ours, and nothing else."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["R2_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["R2_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=2 * threads,
        ),
    )


def write_media(folder: Path, size: int) -> None:
    for number in range(MEDIA):
        (folder / f"{number}.mp4").write_bytes(random.Random(number).randbytes(size))


def sidecars(folder: Path) -> Callable[[str, int], bytes]:
    """Writes the sidecar of a take of a medium, cheaply: both ways need it."""
    checks = tuple(
        Check.within(name, 1.5, 0.0, 2.0)
        for name in ("seconds", "loudness_lufs", "black", "frozen", "motion")
    )
    made: list[bytes] = []
    for number in range(MEDIA):
        path = folder / f"{number}.mp4"
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        attempt = Attempt(
            n=0, file=attempt_path("video", "KEY", 0, ".mp4"), sha256=sha256,
            bytes=path.stat().st_size, seed=number, host="box", lane="box.comfyui.0", seconds=12.5, length=5.0, checks=checks,
        )  # fmt: skip
        sidecar = Sidecar(
            key="KEY", kind="video", engine="comfyui", revision="bench-1", chosen=0, attempts=[attempt],
            inputs={"workflow": "wan_t2v", "variables": {"prompt": "a lamp " * 20, "width": 832, "height": 480, "frames": 81}},
        )  # fmt: skip
        made.append(sidecar.model_dump_json(indent=1).encode())
    return lambda key, number: made[number % MEDIA].replace(b"KEY", key.encode())


async def deliver(store: R2Store, block: Block, sidecar: Callable[[str, int], bytes]) -> None:
    """As a run does: takes come one after another, and wait here until there is room on their way."""
    deliveries = Deliveries(store, UNDELIVERED_BYTES)

    async def bring(number: int) -> None:
        key = key_of(number)
        await deliveries.put(
            attempt_path("video", key, 0, ".mp4"), Path(block.folder, f"{number % MEDIA}.mp4")
        )
        path, content = sidecar_path("video", key), sidecar(key, number)
        if not await deliveries.call(lambda: store.put_if(path, content, None)):
            raise RuntimeError(f"{path} is there already")

    async with asyncio.TaskGroup() as under_way:
        for number in range(block.takes):
            await deliveries.room()
            under_way.create_task(bring(number))
            await asyncio.sleep(0)  # what was begun is counted
    deliveries.close()


def put_plainly(client: Any, block: Block, threads: int, sidecar: Callable[[str, int], bytes]) -> None:
    hashes = hashes_of if block.way == "checked" else lambda content: {}

    def bring(number: int) -> None:
        key = key_of(number)
        content = sidecar(key, number)
        with Path(block.folder, f"{number % MEDIA}.mp4").open("rb") as file:
            target = attempt_path("video", key, 0, ".mp4")
            client.put_object(Bucket=block.bucket, Key=target, Body=file, **hashes(file))
        client.put_object(
            Bucket=block.bucket, Key=sidecar_path("video", key), Body=content, **hashes(io.BytesIO(content))
        )

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(bring, number) for number in range(block.takes)]:
            done.result()


def hashes_of(file: BinaryIO) -> dict[str, Any]:
    """What a careful person sends beside a body."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    while chunk := file.read(1 << 20):
        md5.update(chunk)
        sha256.update(chunk)
    file.seek(0)
    return {"ContentMD5": base64.b64encode(md5.digest()).decode(), "Metadata": {"sha256": sha256.hexdigest()}}


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def bring(block: Block) -> dict[str, float]:
    """Brings the takes of a block into its bucket, in the process that this is; what that took."""
    store = bucket_store(block.url, block.bucket)
    client, sidecar = plain_client(block.url, store.at_once), sidecars(Path(block.folder))
    if block.way == "ours":
        store.put("warm", b"warm")
    else:
        client.put_object(Bucket=block.bucket, Key="warm", Body=b"warm")
    idle = peak_megabytes()
    began, cpu = time.perf_counter(), time.process_time()
    if block.way == "ours":
        asyncio.run(deliver(store, block, sidecar))
    else:
        put_plainly(client, block, store.at_once, sidecar)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "idle_mb": idle,
        "mb": peak_megabytes(),
    }


def bucket_store(url: str, bucket: str) -> R2Store:
    os.environ |= KEYS | {"R2_ENDPOINT_URL": url}
    store = open_store(f"r2://{bucket}")
    assert isinstance(store, R2Store)
    return store


def peak_megabytes() -> float:
    """The most memory of this process so far. Linux's ru_maxrss has that of the process that started it in it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep_everything(store: R2Store, script: Path) -> None:
    """A take for every step of the plan, and the journal of the run that made them."""
    made: list[Sidecar] = []
    for step in parameters_of(script).plan(read_fleet("draft")).steps.values():
        target = attempt_path(step.kind, step.key, 0, ".mp4")
        attempt = Attempt(
            n=0, file=target, sha256=hashlib.sha256(step.key.encode()).hexdigest(), bytes=64, length=5.0
        )
        sidecar = Sidecar(
            key=step.key, kind=step.kind, engine=step.engine, revision=step.revision, inputs={}, chosen=0, attempts=[attempt]
        )  # fmt: skip
        made.append(sidecar)

    def keep(sidecar: Sidecar) -> None:
        store.put(sidecar.take.file, sidecar.key.encode())
        store.put(sidecar_path(sidecar.kind, sidecar.key), sidecar.model_dump_json(indent=1).encode())

    with ThreadPoolExecutor(store.at_once) as pool:
        list(pool.map(keep, made))
    lines = "".join(f"{sidecar.model_dump_json()}\n" for sidecar in made)
    store.put(journal_path(BATCH, "earlier"), lines.encode())


def parameters_of(script: Path) -> ProduceParameters:
    return ProduceParameters(script=script, batch=BATCH)


def resume(store: R2Store, script: Path, *, journals: bool) -> dict[str, float]:
    """Finds all takes of a plan; the plan is made before."""
    plan = parameters_of(script).plan(read_fleet("draft"))
    steps, requests = len(plan.steps), 0

    def count(**_: object) -> None:
        nonlocal requests
        requests += 1

    client_of(store.settings).meta.events.register("before-send.s3", count)
    began, cpu = time.perf_counter(), time.process_time()
    found = find_takes(plan, store, BATCH, journals=journals)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if len(found) != steps:
        raise RuntimeError(f"{len(found)} of {steps} takes were found")
    return {
        "takes": steps,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "requests": requests,
        "mb": peak_megabytes(),
    }


def work(job: dict[str, Any]) -> dict[str, float]:
    """What this process is for when it is started as a worker."""
    if "way" in job:
        return bring(Block(**job))
    store, script = bucket_store(job["url"], job["bucket"]), Path(job["script"])
    if job["do"] == "keep":
        keep_everything(store, script)
        return {}
    return resume(store, script, journals=job["journals"])


def worker(job: dict[str, Any]) -> dict[str, float]:
    """Does it in a process of its own."""
    finished = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)], capture_output=True, text=True, cwd=ROOT
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr[-3000:])
    figures: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def compare(
    name: str, folder: Path, size: int, takes: int, *ways: str, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Blocks of so many takes, all ways in turn; rows of a table."""
    write_media(folder, size)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for order in islice(cycle(permutations(ways)), rounds):
        for way in order:
            with bucket_server(BATCH) as (url, server):
                before = cpu_seconds(server)
                figures = worker(asdict(Block(way, url, BATCH, str(folder), takes)))
                found[way].append(figures | {"server_cpu_seconds": cpu_seconds(server) - before})

    def of(way: str, other: str) -> float:
        both = zip(found[way], found[other], strict=True)
        return round(statistics.median(two["seconds"] / one["seconds"] for one, two in both), 3)

    def middle(way: str, figure: str) -> float:
        return statistics.median(block[figure] for block in found[way])

    return [
        {
            "set": name,
            "way": way,
            "takes": f"{rounds} x {takes}",
            "objects_per_s": round(2 * takes / middle(way, "seconds"), 1),
            "mb_per_s": round(takes * size / 1e6 / middle(way, "seconds"), 1),
            "of_plain": of(way, "plain"),
            "of_checked": of(way, "checked") if "checked" in ways else "",
            "cpu_ms_per_take": round(middle(way, "cpu_seconds") / takes * 1000, 2),
            "server_cpu_ms_per_take": round(middle(way, "server_cpu_seconds") / takes * 1000, 2),
            "idle_mb": round(middle(way, "idle_mb")),
            "peak_mb": round(middle(way, "mb")),
        }
        for way in ways
    ]


def at_one_go(name: str, folder: Path, takes: int) -> dict[str, Any]:
    """Our memory for many takes, of the media that lie in the folder."""
    with bucket_server(BATCH) as (url, _):
        ours = worker(asdict(Block("ours", url, BATCH, str(folder), takes)))
    return {
        "set": name,
        "takes": takes,
        "idle_mb": round(ours["idle_mb"]),
        "peak_mb": round(ours["mb"]),
        "seconds": round(ours["seconds"], 1),
    }


def resumed(folder: Path, count: int) -> list[dict[str, Any]]:
    """Finding so many takes: a shot has two of them, what an engine draws and the clip that is made from it."""
    script = folder / "script.csv"
    script.write_text(
        "\n".join(["shot_id,visual,prompt", *(f"s{n},wan_t2v,sea {n}" for n in range(count // 2))]), "utf-8"
    )
    rows = []
    with bucket_server(BATCH) as (url, _):
        job = {"url": url, "bucket": BATCH, "script": str(script)}
        worker(job | {"do": "keep"})
        for journals in (True, False):
            figures = worker(job | {"do": "resume", "journals": journals})
            rows.append({"journals": journals} | {key: round(value, 2) for key, value in figures.items()})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--quick", action="store_true", help="a tenth")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(json.loads(arguments.worker))))
        return 0
    tenth = 10 if arguments.quick else 1
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = compare("small", folder, 20_000, 1_250 // tenth, "ours", "plain")
        whole_small = at_one_go("small", folder, 5_000 // tenth)
        large = compare("large", folder, 50_000_000 // tenth, 40, "ours", "plain", "checked", rounds=3)
        few_large, whole_large = (at_one_go("large", folder, count) for count in (10, 40))
        resumes = resumed(folder, 10_000 // tenth)
    targets = [
        target("small_of_plain", small[0]["of_plain"], 0.95, least=True),
        target("large_of_plain", large[0]["of_plain"], 0.95, least=True),
        target("large_of_checked", large[0]["of_checked"], 0.95, least=True),
        target("resume_10000_seconds", resumes[0]["seconds"], 10 / tenth),
        target("small_peak_growth", whole_small["peak_mb"] / small[0]["peak_mb"], 1.15),
        target("large_peak_growth", whole_large["peak_mb"] / few_large["peak_mb"], 1.15),
    ]
    tables = {"way": [*small, *large], "at one go": [whole_small, few_large, whole_large], "resume": resumes}
    if not arguments.json:
        for title, rows in tables.items():
            table = Table(title=title)
            for column in rows[0]:
                table.add_column(column.replace("_", " "))
            for row in rows:
                table.add_row(*map(str, row.values()))
            Console(width=140).print(table)
        print(f"{time.perf_counter() - began:.0f} s")
    print(json.dumps({"benchmark": "store", "targets": targets, "rows": tables}))
    return 0 if all(one["met"] for one in targets) else 1


def target(name: str, value: float, bound: float, *, least: bool = False) -> dict[str, Any]:
    met = value >= bound if least else value <= bound
    return {"name": name, "value": round(value, 3), "target": bound, "met": met}


if __name__ == "__main__":
    sys.exit(main())
