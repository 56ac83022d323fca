"""Who looks after shards, against a real Prefect server: the test plays the workers of the pool."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Completed, Crashed, Running

from callsheet.batch import Batch
from callsheet.errors import BadInput
from callsheet.fleet import Fleet
from callsheet.journal import journal_path, run_name
from callsheet.manifest import ShotFailure
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan
from callsheet.shards import ShardResult, plan_name, result_name, shards_path
from callsheet.store import LocalFolder
from callsheet.takes import Attempt, Sidecar
from flows.render import deploy_render
from tasks.shard_runs import shard_limit
from tasks.shards import end_earlier_shards, make_in_shards
from tests.flows.test_lanes import lines

pytestmark = pytest.mark.usefixtures("prefect_api")
POOL = "played"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")


@pytest.fixture
def run() -> str:
    return uuid4().hex[:8]


@dataclass
class Pool:
    """The runs of one batch's shards, as workers see them."""

    client: PrefectClient
    store: LocalFolder
    run: str

    async def runs(self) -> list[FlowRun]:
        tagged = FlowRunFilter.model_validate({"tags": {"all_": [shard_limit(self.store, "b", self.run)]}})
        return await self.client.read_flow_runs(
            flow_run_filter=tagged, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=50
        )

    async def next(self, number: int = 1) -> list[FlowRun]:
        """Takes up the next runs, as many at once."""
        async with asyncio.timeout(30):
            while (
                len(waiting := [run for run in await self.runs() if run.state and run.state.is_scheduled()])
                < number
            ):
                await asyncio.sleep(0.05)
        for flow_run in waiting:
            await self.client.set_flow_run_state(flow_run.id, Running(), force=True)
        return waiting

    async def ends(self, flow_run: FlowRun, shard: int, result: ShardResult) -> None:
        name = shards_path("b", self.run, result_name(shard, flow_run.id))
        self.store.put(name, result.model_dump_json().encode())
        await self.client.set_flow_run_state(flow_run.id, Completed(), force=True)

    async def crashes(self, flow_run: FlowRun) -> None:
        await self.client.set_flow_run_state(flow_run.id, Crashed(message="out of memory"), force=True)


def cap(flow_run: FlowRun) -> float:
    found: float = flow_run.parameters["parameters"]["max_cost"]
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "out")


@pytest.fixture
def parameters(write_script: Callable[..., Path]) -> Callable[..., ProduceParameters]:
    def make(*rows: dict[str, Any], **settings: Any) -> ProduceParameters:
        script = write_script(*rows, name="b.csv")
        cap = settings.pop("max_cost", None)
        return ProduceParameters(script=script, max_cost=cap, advanced={"work_pool": POOL, **settings})

    return make


@pytest.fixture
def keeping(store: LocalFolder, run: str) -> Callable[[ProduceParameters], Any]:
    """Has the shards of a batch looked after while the block lasts: what comes of it, the pool and the plan."""

    @asynccontextmanager
    async def keep(
        parameters: ProduceParameters,
    ) -> AsyncIterator[tuple[asyncio.Task[list[ShardResult]], Pool, Plan]]:
        plan = parameters.plan(Fleet())
        batch = Batch(
            "b", plan, list(plan.fleet.lanes()), {}, parameters.advanced.retakes, parameters.max_cost
        )

        @flow(name="produce")
        async def produced() -> list[ShardResult]:
            deployment = await deploy_render(POOL)
            return await make_in_shards(batch, store, run, parameters, deployment)

        async with get_client() as client:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            keeper = asyncio.create_task(produced())
            try:
                yield keeper, Pool(client, store, run), plan
            finally:
                keeper.cancel()
                await asyncio.wait({keeper})

    return keep


def sidecar(cost: float) -> Sidecar:
    attempt = Attempt(n=0, file="takes/speech/x.wav", sha256="0" * 64, bytes=1, length=1.0, cost=cost)
    return Sidecar(
        key="x", kind="speech", engine="lighttts", revision="1", inputs={}, chosen=0, attempts=[attempt]
    )


async def test_what_a_dead_run_spent_is_not_granted_again(
    parameters: Callable[..., ProduceParameters], keeping: Callable[..., Any], store: LocalFolder
) -> None:
    async with keeping(parameters(*lines(2, "ann"), max_cost=1.0)) as (keeper, pool, _):
        (first,) = await pool.next()
        assert cap(first) == 1.0
        store.put(journal_path("b", run_name(str(first.id))), sidecar(0.4).model_dump_json().encode())
        await pool.crashes(first)
        (second,) = await pool.next()
        assert cap(second) == pytest.approx(0.6)
        result = ShardResult(made=["k"], spent=0.1)
        await pool.ends(second, 0, result)
        assert await keeper == [result]
    assert list(store.list(shards_path("b"))) == [], "what shards leave behind is cleared away"


async def test_a_worker_that_cannot_reach_the_store_does_not_fail_the_batch(
    parameters: Callable[..., ProduceParameters], keeping: Callable[..., Any]
) -> None:
    away = ShotFailure(step="ann0 speech", error="StoreFault", reason="store r2://b: no connection")
    async with keeping(parameters(*lines(2, "ann"))) as (keeper, pool, _):
        for number in range(3):
            (flow_run,) = await pool.next()
            await pool.ends(flow_run, 0, ShardResult(failures={f"k{number}": away}, spent=0.1))
        results = await keeper
    assert sum(result.spent for result in results) == pytest.approx(0.3)
    failures = {key: failure.error for result in results for key, failure in result.failures.items()}
    assert failures == {"k2": "HostFault"}, (
        "what is not made counts for the shots; this machine's store works"
    )


async def test_shots_that_need_what_could_not_be_made_are_not_tried_by_each_shard(
    parameters: Callable[..., ProduceParameters], keeping: Callable[..., Any]
) -> None:
    moves = {"visual": "wan_i2v", "prompt": "it moves", "image": "shot:hero", "voice": "anna"}
    rows = [
        {"shot_id": "hero", "text": "A lamp.", "voice": "anna", "visual": "flux_dev", "prompt": "a lamp"},
        *({"shot_id": f"s{n}", "text": f"Number {n} is here.", **moves} for n in range(4)),
        *({"shot_id": f"t{n}", "text": f"Line {n} alone.", "voice": "anna"} for n in range(2)),
    ]
    async with keeping(parameters(*rows, shard_shots=2)) as (keeper, pool, plan):
        (first,) = await pool.next()
        image = plan.shots["hero"].pictures[0]
        fault = ShotFailure(step="hero image", error="Refused", reason="no such model")
        await pool.ends(first, 0, ShardResult(failures={image: fault}))
        (second,) = await pool.next()
        packed = json.loads(pool.store.get(shards_path("b", pool.run, plan_name(1))))
        assert packed["shots"] == ["t0", "t1"]
        await pool.ends(second, 1, ShardResult())
        assert len(await keeper) == 2


async def test_cancelled_no_shard_goes_on(
    parameters: Callable[..., ProduceParameters], keeping: Callable[..., Any], store: LocalFolder, run: str
) -> None:
    async with keeping(parameters(*lines(4, "ann"), shard_shots=2)) as (keeper, pool, _):
        (working, _) = await pool.next(2)
        await pool.crashes(working)
        await pool.next()
        keeper.cancel()
        await asyncio.wait({keeper})
        states = sorted(str(flow_run.state_name) for flow_run in await pool.runs())
    assert states == ["Cancelling", "Cancelling", "Crashed"]
    assert not [file for file in store.list(shards_path("b", run)) if "/plan-" in file.path], (
        "and none can begin"
    )


async def test_shards_that_another_server_looks_after_are_not_made_beside_it(
    store: LocalFolder, run: str
) -> None:
    path = shards_path("b", run, "run.json")
    store.put(path, json.dumps({"flow_run": str(uuid4()), "server": "http://studio:4200"}).encode())

    @flow
    async def ending() -> None:
        await end_earlier_shards(store, "b")

    with pytest.raises(
        BadInput, match=r"server at http://studio:4200 looks after, not the one at http://127"
    ) as error:
        await ending()
    assert f"delete {path}" in str(error.value)
    assert store.size(path) is not None
