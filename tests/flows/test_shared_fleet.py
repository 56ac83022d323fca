"""Two runs in processes of their own, on one fleet and one Prefect server: limits hold, and a killed run's locks come back."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.speech_server import SpeechServer
from tests.flows.test_lanes import PITCH, changes, engine, host, in_order, lines, overlap

pytestmark = pytest.mark.slow
#: How long Prefect's leases last, when it looks for those that ended, and how long a waiting lane sleeps; with room.
LEASE_SECONDS = 60 + 30 + 15


class Server:
    """A Prefect server that can be killed and started again at the same address."""

    def __init__(self, home: Path) -> None:
        self._home, self._port = home, ""
        self.start()

    def start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server_process", *([self._port] if self._port else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "CALLSHEET_HOME": str(self._home)},
        )
        assert process.stdout is not None
        self.process = process
        self.url = str(json.loads(process.stdout.readline())["url"])
        self._port = self.url.rpartition(":")[2]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home")
    yield server
    server.kill()


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.1) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, write_script: Callable[..., Path], api: Server) -> Iterator[Callable[..., Any]]:
    """Starts ``callsheet run`` for a batch of that name."""
    processes = []

    def run(batch: str, fleet: list[str], rows: list[dict[str, Any]]) -> subprocess.Popen[str]:
        path = tmp_path / "fleet.toml"
        path.write_text("\n".join(['provider = "static"', *fleet]), "utf-8")
        script = write_script(*rows, name=f"{batch}.csv")
        command = ["run", str(script), "--fleet", str(path), "--store", str(tmp_path / "out")]
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("callsheet")), *command],
            env={**os.environ, "PREFECT_API_URL": f"{api.url}/api"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finished(process: subprocess.Popen[str], seconds: float = 120) -> str:
    output = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, output
    return output


def test_two_processes_on_one_fleet_never_exceed_a_limit_and_both_advance(
    start: Callable[..., Any], api: Server, server_pair: tuple[SpeechServer, SpeechServer]
) -> None:
    httpx.post(
        f"{api.url}/api/concurrency_limits/", json={"tag": "gpu", "concurrency_limit": 1}
    ).raise_for_status()
    one, two = server_pair
    fleet = [
        "lane_minutes = 0.02",
        host("h", engine("lighttts", one.url)),
        host("i", engine("lighttts", two.url)),
    ]
    runs = [start("a", fleet, lines(12, "ann")), start("b", fleet, lines(12, "bob"))]
    for run in runs:
        finished(run)
    assert not overlap(one, two)
    spoken = ["ann" in r.text for _, r in in_order(one, two) if "canary" not in r.text]
    assert (len(spoken), changes(spoken) >= 2) == (24, True)


@pytest.fixture
def server_pair() -> Iterator[tuple[SpeechServer, SpeechServer]]:
    with SpeechServer(pitch=PITCH, cost=0.1) as one, SpeechServer(pitch=PITCH, cost=0.1) as two:
        yield one, two


@pytest.mark.parametrize("restart", [False, True], ids=["server stays", "server restarted"])
def test_locks_of_a_killed_run_come_back_by_themselves(
    start: Callable[..., Any], api: Server, speaker: SpeechServer, restart: bool
) -> None:
    fleet = ["lane_minutes = 10", host("h", engine("lighttts", speaker.url, "vram_gb = 8"), vram_gb=12)]
    killed = start("a", fleet, lines(12, "ann"))
    asyncio.run(_until(lambda: len(speaker.requests) >= 3))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    limits = {limit["name"]: limit["active_slots"] for limit in _limits(api)}
    assert (limits["tag:gpu"], limits["lane:h:lighttts"], limits["vram:h"]) == (1, 1, 8)
    if restart:
        api.kill()
        api.start()
    began, before = time.monotonic(), len(speaker.requests)
    finished(start("b", fleet, lines(2, "bob")), LEASE_SECONDS)
    assert time.monotonic() - began > 20, "it did not go over the killed run's locks"
    assert not overlap(speaker)
    assert len(speaker.requests) == before + 3, "a canary and two lines"
    assert all(limit["active_slots"] == 0 for limit in _limits(api))


def test_run_goes_on_when_the_prefect_server_was_away(
    start: Callable[..., Any], api: Server, speaker: SpeechServer
) -> None:
    speaker.cost = 0.5
    run = start("a", ["lane_minutes = 0.02", host("h", engine("lighttts", speaker.url))], lines(12, "ann"))
    asyncio.run(_until(lambda: len(speaker.requests) >= 3))
    api.kill()
    asyncio.run(_until(lambda: len(speaker.requests) >= 5))
    api.start()
    finished(run)
    asked = [request.text for request in speaker.requests if "canary" not in request.text]
    assert len(asked) == len(set(asked)) == 12


def _limits(api: Server) -> list[dict[str, Any]]:
    answer = httpx.post(f"{api.url}/api/v2/concurrency_limits/filter", json={"limit": 200})
    found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


async def _until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.05)
