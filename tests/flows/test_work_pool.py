"""Many machines: a batch in shards on two Prefect workers and a server on PostgreSQL, one of which is killed.

Each worker is a process group of its own, as on a machine of its own; they share the store and one fleet.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.speech_server import SpeechServer
from tests.flows.test_lanes import PITCH, engine, host, overlap
from tests.postgres import free_port, postgres
from tests.processes import is_alive

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
POOL = "machines"
#: Lines of each of four programmes, and what a worker is given at once.
LINES = 6
TITLES = ("North", "East", "South", "West")


def environment(api: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home),
        "CALLSHEET_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server as the Compose file runs it: on PostgreSQL, its leases in files."""
    home = tmp_path_factory.mktemp("server")
    with postgres() as database:
        port = free_port()
        url = f"http://127.0.0.1:{port}/api"
        process = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={
                **environment(url, home),
                "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}",
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                "PREFECT_SERVER_TASKS_TAG_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
                "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            asyncio.run(until(lambda: _answers(url), 120))
            pool = {"name": POOL, "type": "process"}
            httpx.post(f"{url}/work_pools/", json=pool).raise_for_status()
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


class Worker:
    """A machine: a Prefect worker and what it runs, one flow run at a time."""

    pool = POOL

    def __init__(self, name: str, folder: Path, api: str) -> None:
        folder.mkdir()
        self.process = subprocess.Popen(
            [BIN / "prefect", "worker", "start", "--pool", self.pool, "--name", name, "--limit", "1"],
            cwd=folder,
            env=environment(api, folder) | {"PREFECT_WORKER_QUERY_SECONDS": "2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def children(self) -> list[int]:
        """The processes that run its flow runs, and theirs."""
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def kill(self, *, but: tuple[int, ...] = ()) -> None:
        for pid in (self.process.pid, *self.children):
            if pid not in but:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def workers(api: str, tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    pair = Worker("one", tmp_path / "one", api), Worker("two", tmp_path / "two", api)
    yield pair
    for worker in pair:
        if worker.process.poll() is None:
            worker.kill()


@pytest.fixture
def speakers() -> Iterator[tuple[SpeechServer, SpeechServer]]:
    with SpeechServer(pitch=PITCH, cost=0.5) as one, SpeechServer(pitch=PITCH, cost=0.5) as two:
        yield one, two


@pytest.fixture
def producing(
    api: str, tmp_path: Path, write_script: Callable[..., Path], speakers: tuple[SpeechServer, SpeechServer]
) -> Iterator[subprocess.Popen[str]]:
    """``callsheet run`` on the work pool."""
    fleet = tmp_path / "fleet.toml"
    hosts = [host(f"h{n}", engine("lighttts", speaker.url)) for n, speaker in enumerate(speakers)]
    fleet.write_text("\n".join(['provider = "static"', "lane_minutes = 0.05", *hosts]), "utf-8")
    rows = [
        {
            "shot_id": f"{title}{n}",
            "title": title,
            "text": f"The {word} line of the {title} is spoken.",
            "voice": "anna",
        }
        for title in TITLES
        for n, word in zip(range(LINES), "first second third fourth fifth sixth".split(), strict=True)
    ]
    script = write_script(*rows, name="b.csv")
    options = [
        "--fleet",
        fleet,
        "--store",
        tmp_path / "out",
        "--work-pool",
        POOL,
        "--shard-shots",
        LINES,
        "--json",
    ]
    process = subprocess.Popen(
        [BIN / "callsheet", "run", script, *map(str, options)],
        env=environment(api, tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def until(met: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.05)


def spoken(*speakers: SpeechServer) -> Counter[str]:
    return Counter(text for speaker in speakers for text in speaker.texts() if "canary" not in text)


def sidecars(tmp_path: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out/takes").rglob("*.json")
    }


def flow_runs(api: str) -> list[dict[str, Any]]:
    answer = httpx.post(f"{api}/flow_runs/filter", json={"flows": {"name": {"any_": ["render"]}}})
    found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


def running(api: str) -> int:
    return sum(run["state_type"] == "RUNNING" for run in flow_runs(api))


def slots(api: str) -> dict[str, int]:
    """The slots that are taken, by limit."""
    answer = httpx.post(f"{api}/v2/concurrency_limits/filter", json={"limit": 200}).raise_for_status()
    return {limit["name"]: limit["active_slots"] for limit in answer.json()}


@pytest.mark.parametrize("wakes_up", [False, True], ids=["killed", "stopped and woken up"])
def test_the_shard_of_a_dead_worker_is_made_again_and_nothing_twice(
    api: str,
    workers: tuple[Worker, Worker],
    speakers: tuple[SpeechServer, SpeechServer],
    producing: subprocess.Popen[str],
    tmp_path: Path,
    wakes_up: bool,
) -> None:
    """In the second case the flow run's own process is left by its dead worker, stopped, and wakes up too late."""
    before = {run["id"] for run in flow_runs(api)}
    asyncio.run(until(lambda: running(api) == 2 and sum(spoken(*speakers).values()) >= 4, 90))
    victim = workers[0]
    orphans = tuple(victim.children) if wakes_up else ()
    for pid in orphans:
        os.kill(pid, signal.SIGSTOP)
    victim.kill(but=orphans)
    died = time.monotonic()
    output, log = producing.communicate(timeout=400)
    assert producing.returncode == 0, log
    summary = json.loads(output.splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (len(TITLES) * LINES, [])
    assert summary["takes_made"] == 2 * len(TITLES) * LINES + len(TITLES)
    assert time.monotonic() - died < 300
    asked = spoken(*speakers)
    assert len(asked) == len(TITLES) * LINES
    assert sum(asked.values()) - len(asked) <= len(speakers), "but for what the dead worker had in hand"
    assert not overlap(speakers[0])
    assert not overlap(speakers[1])
    states = Counter(run["state_type"] for run in flow_runs(api) if run["id"] not in before)
    assert states == {"COMPLETED": len(TITLES), "CRASHED": 1}
    committed = sidecars(tmp_path)
    for pid in orphans:
        os.kill(pid, signal.SIGCONT)
    if orphans:
        asyncio.run(until(lambda: not any(is_alive(pid) for pid in orphans), 90))
    assert sidecars(tmp_path) == committed, "what woke up committed nothing"
    assert sum(spoken(*speakers).values()) == sum(asked.values()), "and asked for nothing"
    assert not (tmp_path / "out/batches/b/shards").exists() or not any(
        (tmp_path / "out/batches/b/shards").rglob("*.json")
    )
    assert not [name for name in slots(api) if "shard:" in name], "no limit stays of a shard"
    # What the dead worker held ends by itself, where nobody asked for it.
    asyncio.run(until(lambda: not any(slots(api).values()), 120))
