"""A person is asked before money is spent: the plan, its price, and a form to go on with."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.flow_runs import aresume_flow_run

from callsheet.deployments import read_automations
from callsheet.manifest import Manifest, Summary
from callsheet.parameters import ProduceParameters
from flows.deploying import deployed
from flows.produce import produce
from flows.setting_up import make_automation
from tests.conftest import ROOT, write_fleet
from tests.fakes.proxy import FaultyProxy
from tests.flows.test_showing import artifact, events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
ROWS = (
    {"shot_id": "a", "title": "T", "text": "The keeper lit the lamp at six.", "voice": "anna"},
    {"shot_id": "b", "title": "U", "text": "And then it rained.", "voice": "wei"},
)


@pytest.fixture
def proxy(draft_host: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(draft_host) as proxy:
        yield proxy


@pytest.fixture
def parameters(
    proxy: FaultyProxy, write_script: Callable[..., Path], tmp_path: Path
) -> Callable[..., ProduceParameters]:
    def make(batch: str, **settings: Any) -> ProduceParameters:
        fleet = write_fleet(
            tmp_path / "fleet.toml", {f"host-{batch}": proxy.url}, price=36.0, revision=f"approved-{batch}"
        )
        return ProduceParameters(
            script=write_script(*ROWS, name=f"{batch}.csv"),
            store=str(tmp_path / "out"),
            fleet=str(fleet),
            approve=True,
            **settings,
        )

    return make


ASLEEP = "prefect.flow-run.asleep"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.05")


async def paused(name: str, since: UUID | None = None) -> UUID:
    """The run of that name, once it waits for a person; in another state than ``since``."""
    run = await until(name, lambda state: state == "PAUSED", since)
    return run.id


async def until(name: str, wanted: Callable[[str], bool], since: UUID | None = None) -> FlowRun:
    async with asyncio.timeout(120), get_client() as client:
        while True:
            runs = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])),
                sort=FlowRunSort.START_TIME_DESC,
                limit=1,
            )
            state = runs[0].state if runs else None
            if state is not None and state.id != since and wanted(state.type.value):
                return runs[0]
            await asyncio.sleep(0.1)


def spoken(proxy: FaultyProxy) -> int:
    return proxy.count("/inference_zero_shot")


async def test_a_plan_is_approved_with_a_cap_and_without_a_shot(
    prefect_api: str, parameters: Callable[..., ProduceParameters], proxy: FaultyProxy
) -> None:
    run = asyncio.create_task(produce(parameters("yes"), return_state=True))
    identity = await paused("produce yes")
    text = (await artifact(prefect_api, "plan-yes"))["data"]
    assert "2 shots, 2 programmes; 0 of 6 takes are there." in text
    assert "voice anna: consent synthetic, licence CC0-1.0" in text
    assert spoken(proxy) == 0
    await aresume_flow_run(identity, run_input={"max_cost": 5.0, "leave_out": "b", "note": "only the first"})
    state: Any = await run
    summary: Summary = await state.aresult()
    assert state.is_completed()
    assert (summary.done, [(shot.shot_id, shot.error) for shot in summary.failed]) == (1, [("b", "LeftOut")])
    told = {one["event"] for one in await events(prefect_api, "yes", 3)}
    assert "callsheet.batch.needs-approval" in told


async def test_a_shot_that_there_is_not_is_asked_for_again(
    prefect_api: str, parameters: Callable[..., ProduceParameters], proxy: FaultyProxy
) -> None:
    run = asyncio.create_task(produce(parameters("typo"), return_state=True))
    identity = await paused("produce typo")
    async with get_client() as client:
        first = (await client.read_flow_run(identity)).state_id
    await aresume_flow_run(identity, run_input={"max_cost": 5.0, "leave_out": "bb"})
    await paused("produce typo", since=first)
    text = (await artifact(prefect_api, "plan-typo"))["data"]
    assert text.startswith(r"**leave\_out: found bb; expected ids of shots, such as a**")
    assert spoken(proxy) == 0
    await aresume_flow_run(identity, run_input={"max_cost": 5.0, "leave_out": "b"})
    state: Any = await run
    assert state.is_completed()
    assert [shot.shot_id for shot in (await state.aresult()).failed] == ["b"]


async def test_a_cap_that_is_too_small_spends_nothing(
    parameters: Callable[..., ProduceParameters], proxy: FaultyProxy
) -> None:
    run = asyncio.create_task(produce(parameters("small"), return_state=True))
    await aresume_flow_run(await paused("produce small"), run_input={"max_cost": 0.0001})
    state: Any = await run
    assert state.is_failed()
    assert "the cap is $0.00; nothing was started" in state.message
    assert spoken(proxy) == 0


async def test_a_plan_that_nobody_wants_is_cancelled(
    parameters: Callable[..., ProduceParameters], proxy: FaultyProxy
) -> None:
    run = asyncio.create_task(produce(parameters("no"), return_state=True))
    await aresume_flow_run(await paused("produce no"), run_input={"go": False})
    state: Any = await run
    assert (state.is_cancelled(), state.message) == (True, "the plan was not approved")
    state = await produce(parameters("late", approve_hours=0.01), return_state=True)
    assert state.is_cancelled()
    assert "nobody approved the plan within 0.01 hours" in state.message
    known = await until("produce late", lambda kind: kind == "CANCELLED")
    assert known.state is not None
    assert known.state.message == state.message
    assert spoken(proxy) == 0


@pytest.fixture
def worker(prefect_api: str, tmp_path: Path) -> Iterator[str]:
    """A process worker of a pool of its own, whose name it gives."""
    pool = "approved"
    httpx.post(f"{prefect_api}/api/work_pools/", json={"name": pool, "type": "process"})
    env = {**os.environ, "PREFECT_API_URL": f"{prefect_api}/api", "PYTHONPATH": str(ROOT)}
    command = [
        Path(sys.executable).with_name("prefect"),
        "worker",
        "start",
        "--pool",
        pool,
        "--type",
        "process",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield pool
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def test_a_run_of_a_deployment_that_nobody_approves_is_cancelled(
    worker: str, parameters: Callable[..., ProduceParameters], proxy: FaultyProxy
) -> None:
    """Its process is gone by then: Prefect fails it, and the automation of `callsheet setup` puts that right."""
    async with get_client() as client:
        (declared,) = [one for one in read_automations() if one["name"] == "callsheet-not-approved"]
        await make_automation(client, declared)
    given = parameters("ignored", approve_hours=0.01)
    identity = await deployed(produce, worker)
    await arun_deployment(identity, parameters={"parameters": given.model_dump(mode="json")}, timeout=0)
    ended = await until("produce ignored", lambda state: state in ("COMPLETED", "CANCELLED", "CRASHED"))
    assert ended.state is not None
    assert (ended.state.type.value, ended.state.message) == (
        "CANCELLED",
        "Nobody approved the plan in time; nothing was made.",
    )
    assert spoken(proxy) == 0


async def test_a_run_of_a_deployment_ends_and_begins_again_when_it_is_approved(
    prefect_api: str,
    worker: str,
    parameters: Callable[..., ProduceParameters],
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    """What was approved holds for the plan that was shown: where the script changed meanwhile, it is asked for anew."""
    given = parameters("suspended")
    identity = await deployed(produce, worker)
    settings = {"parameters": given.model_dump(mode="json")}
    await arun_deployment(identity, parameters=settings, timeout=0, flow_run_name="suspended once")
    run = await paused("produce suspended")
    async with get_client() as client:
        first = (await client.read_flow_run(run)).state_id
    # Nothing more is heard of it: a heartbeat would be the beginning of a silence that the automation takes for a death.
    heard = {"filter": {"resource": {"id": [f"prefect.flow-run.{run}"]}}, "limit": 50}
    async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"{prefect_api}/api") as http:
        while (await http.post("/events/filter", json=heard)).json()["events"][0]["event"] != ASLEEP:
            await asyncio.sleep(0.2)
    script = Path(given.script)
    script.write_text(script.read_text("utf-8").replace("it rained", "it snowed"), "utf-8")
    await aresume_flow_run(run, run_input={"max_cost": 5.0})
    assert await paused("produce suspended", since=first) == run
    assert spoken(proxy) == 0
    await aresume_flow_run(run, run_input={"max_cost": 5.0})
    ended = await until("produce suspended", lambda state: state in ("COMPLETED", "FAILED", "CRASHED"))
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state.message
    manifest = Manifest.model_validate_json((tmp_path / "out/batches/suspended/manifest.json").read_bytes())
    assert manifest.totals.done == 2
    async with httpx.AsyncClient(base_url=f"{prefect_api}/api") as http:
        asked = {"artifacts": {"key": {"any_": ["plan-suspended"]}, "flow_run_id": {"any_": [str(run)]}}}
        shown = (await http.post("/artifacts/filter", json=asked)).json()
    assert len(shown) == 2, "each plan is shown once, and not again when the run goes on"
