"""One shard of a batch: `produce` starts this flow on the workers of a work pool, and assembles what they make.

Nobody else starts it. It makes the takes and clips of its shots with the fleet that all shards share, publishes
nothing, and leaves what it came to in the store (`tasks.shards`). Run again, it makes only what is missing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.store import open_store
from callsheet.batch import Batch
from callsheet.errors import CallsheetError, LeaseLost, StoreFault, name_of
from callsheet.journal import run_name
from callsheet.manifest import ShotFailure, file_name
from callsheet.packed import unpack
from callsheet.resume import find_takes
from callsheet.scratch import scratch_folder
from callsheet.shards import RUN_ID, ShardResult, plan_name, result_name, shards_path
from callsheet.store import Store
from callsheet.undelivered import bring
from flows.deploying import deployed
from tasks.locks import Lease, held
from tasks.logs import batch_log, run_logger
from tasks.making import make_takes
from tasks.production import Production


class RenderParameters(BaseModel):
    """Settings of the flow `render`; `produce` gives them."""

    model_config = ConfigDict(extra="forbid")

    batch: str = Field(description="Name of the batch.")
    run: str = Field(pattern=RUN_ID, description="Id of the run of produce that cut the batch.")
    shard: int = Field(ge=0, description="Number of the shard.")
    limit: str = Field(pattern=r"^shard:", description="The limit whose one slot it holds while it works.")
    store: str = Field(description="Where takes and batches are kept.")
    max_cost: float | None = Field(default=None, ge=0, description="The most that it may spend, in $.")
    retakes: int = Field(default=2, ge=0, le=10, description="How often a bad take is made again.")

    undelivered_gb: float = Field(
        default=8.0,
        gt=0,
        description="So many GB may wait on the worker's disk for the store before lanes wait.",
    )

    def path(self, name: str) -> str:
        return shards_path(file_name(self.batch), self.run, name)


@flow(name="render", persist_result=False)
async def render(parameters: RenderParameters) -> State[Any]:
    """Makes the takes of one shard."""
    with batch_log(file_name(parameters.batch)):
        return await _rendered(parameters)


async def _rendered(parameters: RenderParameters) -> State[Any]:
    try:
        store = await open_store(parameters.store)
        with scratch_folder() as scratch:
            # Before anything is looked at: what another run of the shard makes meanwhile would be made twice.
            async with held(
                parameters.limit, "waits for another run that makes this shard", fenced=True
            ) as lease:
                result = await _render(parameters, store, scratch, lease)
    except (LeaseLost, StoreFault, httpx.HTTPError) as error:
        # Nothing that another run could not do: it is begun again.
        return Crashed(message=f"{name_of(error)}: {error}", data=error)
    except CallsheetError as error:
        return Failed(message=str(error), data=error)
    reasons = "; ".join(
        sorted({f"{failure.step}: {failure.reason}" for failure in result.failures.values()})[:20]
    )
    if reasons:
        return Failed(message=f"{len(result.failures)} steps are not done. {reasons}")
    return Completed(message=f"{len(result.made)} takes made")


async def _render(parameters: RenderParameters, store: Store, scratch: Path, lease: Lease) -> ShardResult:
    flow_run = str(runtime.flow_run.id)
    await _check_wanted(UUID(flow_run))
    if store.is_shared:
        await asyncio.to_thread(bring, store)  # what a run that died on this machine made and did not bring
    batch = await asyncio.to_thread(_open_shard, parameters, store, scratch)
    run_logger().info("shard %d begins: %s", parameters.shard, batch.told)
    production = Production(
        batch, store, scratch, run_name(flow_run), lease, undelivered_gb=parameters.undelivered_gb
    )
    results: list[ShardResult] = []

    async def work() -> None:
        await make_takes()
        await production.settled()
        production.check_lease()
        result = _result(batch)
        path = parameters.path(result_name(parameters.shard, flow_run))
        await asyncio.to_thread(store.put, path, result.model_dump_json().encode())
        results.append(result)

    await production.run(work)
    return results[0]


async def _check_wanted(flow_run: UUID) -> None:
    """Raises LeaseLost where this run was given up before it had its lease: another has taken its place."""
    async with get_client() as client:
        state = (await client.read_flow_run(flow_run)).state
    if state is not None and state.is_final():
        raise LeaseLost(f"this run is given up already: {state.message}")


def _open_shard(parameters: RenderParameters, store: Store, scratch: Path) -> Batch:
    """The shard as a batch: its shots, and the takes of theirs that are there."""
    name = file_name(parameters.batch)
    plan = unpack(store, parameters.path(plan_name(parameters.shard)), scratch)
    return Batch(
        name=name,
        plan=plan,
        lanes=list(plan.fleet.lanes()),
        found=find_takes(plan, store, name, journals=False),
        retakes=parameters.retakes,
        max_cost=parameters.max_cost,
    )


def _result(batch: Batch) -> ShardResult:
    return ShardResult(
        failures={key: ShotFailure.of(failure) for key, failure in batch.queue.failures.items()},
        made=[sidecar.key for sidecar in batch.made],
        spent=batch.spent,
        lanes=batch.lane_times(),
    )


async def deploy_render(work_pool: str) -> UUID:
    """Makes the deployment of `render` in a work pool, or brings it up to date. Returns its id.

    Raises:
        BadInput: there is no such work pool.
    """
    return await deployed(render, work_pool)
