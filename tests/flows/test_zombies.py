"""A run whose machine died is told by its heartbeat: the automation of `callsheet setup` on a real server."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from callsheet.deployments import read_automations
from flows.setting_up import make_automation
from tests.conftest import started

pytestmark = pytest.mark.slow
#: What the server sees of a flow is its name and its heartbeats, so this stands for ours.
FLOW = """
import sys, time
from prefect import flow

@flow(name=sys.argv[1], flow_run_name=sys.argv[2])
def run():
    print("begun", flush=True)
    time.sleep(600)

run()
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("zombies")
    for url in started("flows.server_process", env={"CALLSHEET_HOME": str(home)}):
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield f"{url}/api"


def begin(api: str, flow: str, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW, flow, name], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def states(api: str) -> dict[str, str]:
    found = httpx.post(f"{api}/flow_runs/filter", json={"limit": 50}).raise_for_status().json()
    return {run["name"]: run["state_type"] for run in found}


def test_a_run_that_gives_no_sign_is_crashed_and_those_that_live_or_are_not_ours_are_left(
    api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.1")  # a minute of silence in place of ten

    async def make() -> None:
        async with get_client() as client:
            for declared in read_automations():
                await make_automation(client, declared)

    asyncio.run(make())
    processes = [begin(api, "produce", name) for name in ("dead", "alive")]
    processes.append(begin(api, "somebody-elses", "dead but not ours"))
    try:
        # Its first heartbeat has come; killed as a machine dies: no handler, no hook, no goodbye.
        for process in (processes[0], processes[2]):
            process.kill()
        give_up = time.monotonic() + 180
        while states(api)["dead"] != "CRASHED":
            assert time.monotonic() < give_up, states(api)
            time.sleep(1)
        assert states(api) == {"dead": "CRASHED", "alive": "RUNNING", "dead but not ours": "RUNNING"}
    finally:
        for process in processes:
            process.kill()
            process.wait()
