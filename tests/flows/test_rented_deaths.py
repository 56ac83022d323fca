"""Runs with rented hosts that are cancelled, crash, are killed, or lose their server; and the demo on a rented host.

Each of the layers that give a host back is left to do it alone: the flow and its hooks, and the reaper. The third, the
host's own dead-man's switch, is in tests/deployments/test_onstart.py.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelling
from prefect.types.entrypoint import EntrypointType

from callsheet.hosts import HostBook
from callsheet.store import LocalFolder
from flows.produce import produce
from tests.conftest import ROOT
from tests.fakes.rented_box import Boxes
from tests.fakes.speech_server import SpeechServer
from tests.fakes.vast import KEY, Vast
from tests.flows.test_lanes import PITCH
from tests.flows.test_rented import FLEET
from tests.flows.test_work_pool import Worker as AnyWorker
from tests.flows.test_work_pool import until

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
POOL = "rented"
#: Lines of the batch, each of which takes a second: it is at work when something happens to it.
LINES = 40


@pytest.fixture
def vast() -> Iterator[Vast]:
    with Vast() as server, server.in_real_time():
        server.offer(gpu_ram=49140)
        server.offer(gpu_ram=49140)
        yield server


@pytest.fixture
def speaker() -> Iterator[SpeechServer]:
    with SpeechServer(pitch=PITCH, cost=0.5) as server:
        yield server


@pytest.fixture
def boxes(vast: Vast, speaker: SpeechServer) -> Iterator[Boxes]:
    boxes = Boxes(vast, speaker.url)
    yield boxes
    boxes.close()


@pytest.fixture
def batch(tmp_path: Path, write_script: Callable[..., Path], boxes: Boxes) -> dict[str, str]:
    """The parameters of a batch of speech on a host that is rented for it."""
    rows = [
        {"shot_id": f"s{n}", "text": f"Line number {n} is spoken.", "voice": "anna"} for n in range(LINES)
    ]
    # Time is real here: a minute stands for the hours of a label, of which the work is to take a part.
    fleet = FLEET.format(rules="max_hours = 0.016\nboot_minutes = 0.6", revision=tmp_path.name)
    fleet = fleet.replace("port = 8080", "port = 8080\nrelative_speed = 100")
    (tmp_path / "fleet.toml").write_text(fleet.partition('[[host.engine]]\nkind = "comfyui"')[0], "utf-8")
    return {
        "script": str(write_script(*rows, name="b.csv")),
        "fleet": str(tmp_path / "fleet.toml"),
        "store": str(tmp_path / "out"),
    }


def rented(vast: Vast) -> dict[str, str]:
    return {"VAST_API_KEY": KEY, "VAST_URL": vast.url, "CALLSHEET_TIME_SCALE": "0.1"}


class Worker(AnyWorker):
    pool = POOL


@pytest.fixture
async def worker(prefect_api: str, tmp_path: Path, vast: Vast) -> Any:
    """A Prefect worker with the deployment of `produce`; its flow runs rent at the fake."""
    async with get_client() as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    deployment: Any = await produce.to_deployment(  # type: ignore[misc]
        name="rented",
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"env": rented(vast)},
    )
    identity = await deployment.aapply()
    worker = Worker("one", tmp_path / "worker", f"{prefect_api}/api")
    yield worker, identity
    if worker.process.poll() is None:
        worker.kill()


async def begun(worker: Any, batch: dict[str, str], speaker: SpeechServer) -> Any:
    """A flow run of the deployment, once its first lines are spoken."""
    _, identity = worker
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(identity, parameters={"parameters": batch})
    await until(lambda: len(speaker.texts()) > 3, 120)
    return run


async def test_a_run_that_is_cancelled_in_the_ui_gives_its_host_back(
    worker: Any, batch: dict[str, str], speaker: SpeechServer, vast: Vast
) -> None:
    run = await begun(worker, batch, speaker)
    assert len(vast.billable()) == 1
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Cancelling())
    await until(lambda: not vast.billable(), 60)
    spent = len(speaker.texts())
    assert spent < LINES


async def test_a_run_whose_process_is_killed_has_its_host_given_back_by_its_worker(
    worker: Any, batch: dict[str, str], speaker: SpeechServer, vast: Vast
) -> None:
    await begun(worker, batch, speaker)
    for pid in worker[0].children:
        os.kill(pid, signal.SIGKILL)
    # The slot of the dead run keeps others out for a minute.
    await until(lambda: not vast.billable(), 150)


def reaped(vast: Vast, store: str) -> subprocess.CompletedProcess[str]:
    """The sweep of cron, on a machine without a Prefect server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [BIN / "callsheet", "reap", "--store", store],
        env=kept | rented(vast),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_where_a_whole_machine_dies_the_reaper_alone_destroys_its_host(
    worker: Any, batch: dict[str, str], speaker: SpeechServer, vast: Vast
) -> None:
    await begun(worker, batch, speaker)
    worker[0].kill()
    (box,) = vast.billable()
    early = reaped(vast, batch["store"])
    assert (early.returncode, "1 hosts kept" in early.stdout) == (0, True), early.stdout + early.stderr
    # Its label's time is what bounds the loss, whatever became of records and servers.
    await until(lambda: vast.now > box.made + 0.017 * 3600, 90)
    late = reaped(vast, batch["store"])
    assert (late.returncode, "1 destroyed" in late.stdout) == (0, True), late.stdout + late.stderr
    assert vast.billable() == []


def start(batch: dict[str, str], vast: Vast, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = {"CALLSHEET_HOME": str(tmp_path / "home")}
    return subprocess.Popen(
        [
            BIN / "callsheet",
            "run",
            batch["script"],
            "--fleet",
            batch["fleet"],
            "--store",
            batch["store"],
            *options,
        ],
        env=kept | home | rented(vast),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


async def at_work(process: subprocess.Popen[str], speaker: SpeechServer) -> None:
    """Waits until the run's first lines are spoken; where they never are, what the run said is the failure."""
    await until(lambda: len(speaker.texts()) > 3 or process.poll() is not None, 240)
    if process.poll() is not None:
        out, err = process.communicate()
        pytest.fail(f"the run ended with {process.returncode} before it was at work:\n{out}\n{err}")


async def test_a_run_at_the_terminal_that_is_told_to_end_gives_its_host_back(
    batch: dict[str, str], speaker: SpeechServer, vast: Vast, tmp_path: Path
) -> None:
    process = start(batch, vast, tmp_path)
    await at_work(process, speaker)
    os.kill(process.pid, signal.SIGINT)
    out, err = await asyncio.to_thread(process.communicate, timeout=240)
    assert process.returncode == 130, out + err
    assert vast.billable() == []


async def test_a_run_that_loses_its_server_gives_its_host_back(
    batch: dict[str, str], speaker: SpeechServer, vast: Vast, tmp_path: Path
) -> None:
    process = start(batch, vast, tmp_path)
    await at_work(process, speaker)
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    (server,) = [
        line.split()[0]
        for line in listed.splitlines()
        if "server_process" in line and line.split()[0] in children
    ]
    os.kill(int(server), signal.SIGKILL)
    # Half a minute without an answer, by this test's scale. The process itself lives on for a while: Prefect's client has
    # hundreds of events that it tries to get rid of.
    await until(lambda: not vast.billable(), 120)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


async def test_the_demo_is_made_on_a_rented_host(vast: Vast, draft_host: str, tmp_path: Path) -> None:
    boxes = Boxes(vast, draft_host)
    fleet = FLEET.replace("vram_gb = 24", "vram_gb = 48").format(rules="", revision=tmp_path.name)
    fleet += f'[[host.engine]]\nkind = "cosyvoice"\nport = 50000\nrevision = "{tmp_path.name}"\n'
    (tmp_path / "fleet.toml").write_text(fleet, "utf-8")
    batch = {
        "script": str(ROOT / "data/demo.csv"), "fleet": str(tmp_path / "fleet.toml"), "store": str(tmp_path / "out"),
    }  # fmt: skip
    process = start(batch, vast, tmp_path, "--json")
    out, err = await asyncio.to_thread(process.communicate, timeout=300)
    boxes.close()
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["failed"], summary["done"]) == ([], summary["shots"])
    assert (len(vast.boxes), vast.billable()) == (1, [])
    records = HostBook(LocalFolder(tmp_path / "out")).hosts().records.values()
    assert [record.state for record in records] == ["ended"]
    secrets = [KEY, *(box.order["env"]["WEB_PASSWORD"] for box in vast.boxes.values())]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(secret.encode() in content for secret in secrets for content in written)
    assert not any(secret in out + err for secret in secrets)
