"""One shard of a batch: `produce` starts this flow on the workers of a work pool, and assembles what they make.

Nobody else starts it. It makes the takes and clips of its shots with the fleet that all shards share, publishes
nothing, and leaves what it came to in the store (`tasks.shards`). Run again, it makes only what is missing.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.deployments.runner import DeploymentApplyError
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, Field

from blocks.store import open_store
from callsheet.batch import Batch
from callsheet.errors import BadInput, CallsheetError, StoreFault
from callsheet.manifest import ShotFailure, file_name
from callsheet.packed import unpack
from callsheet.resume import find_takes
from callsheet.scratch import scratch_folder
from callsheet.shards import RUN_ID, ShardResult, shards_path
from callsheet.store import Store
from tasks.making import make_takes
from tasks.production import Production
from tasks.shards import result_name, shard_limit


class RenderParameters(BaseModel):
    """Settings of the flow `render`; `produce` gives them."""

    model_config = ConfigDict(extra="forbid")

    batch: str = Field(description="Name of the batch.")
    run: str = Field(pattern=RUN_ID, description="Id of the run of produce that cut the batch.")
    shard: int = Field(ge=0, description="Number of the shard.")
    store: str = Field(description="Where takes and batches are kept.")
    max_cost: float | None = Field(default=None, ge=0, description="The most that it may spend, in $.")
    retakes: int = Field(default=2, ge=0, le=10, description="How often a bad take is made again.")

    @property
    def plan_path(self) -> str:
        return self.path("plan.json")

    def path(self, name: str) -> str:
        return shards_path(file_name(self.batch), self.run, name)


@flow(name="render", persist_result=False)
async def render(parameters: RenderParameters) -> State[Any]:
    """Makes the takes of one shard."""
    try:
        store = await open_store(parameters.store)
        with scratch_folder() as scratch:
            result = await _render(parameters, store, scratch)
    except CallsheetError as error:
        return Failed(message=str(error), data=error)
    reasons = "; ".join(
        sorted({f"{failure.step}: {failure.reason}" for failure in result.failures.values()})[:20]
    )
    if reasons:
        return Failed(message=f"{len(result.failures)} steps are not done. {reasons}")
    return Completed(message=f"{len(result.made)} takes made")


async def _render(parameters: RenderParameters, store: Store, scratch: Path) -> ShardResult:
    flow_run = str(runtime.flow_run.id)
    batch = await asyncio.to_thread(_open_shard, parameters, store, scratch)
    limit = shard_limit(store, batch.name, parameters.run, parameters.shard)
    production = Production(batch, store, scratch, run_id=flow_run[:8], shard=limit)
    results: list[ShardResult] = []

    async def work() -> None:
        # A later run of produce takes the plan away and then waits for those that hold their leases.
        if await asyncio.to_thread(store.size, parameters.plan_path) is None:
            raise StoreFault(f"batch {batch.name}: its plan is gone; another run produces it")
        await make_takes()
        await production.settled()
        production.check_lease()
        result = _result(batch)
        path = parameters.path(result_name(parameters.shard, flow_run))
        await asyncio.to_thread(store.put, path, result.model_dump_json().encode())
        results.append(result)

    await production.run(work)
    return results[0]


def _open_shard(parameters: RenderParameters, store: Store, scratch: Path) -> Batch:
    """The shard as a batch: its shots, and the takes of theirs that are there."""
    name = file_name(parameters.batch)
    try:
        shots = json.loads(store.get(parameters.path(f"{parameters.shard}.json")))
    except FileNotFoundError as error:
        raise StoreFault(f"batch {name}: {error} is gone; another run produces it") from None
    plan = unpack(store, parameters.plan_path, set(shots), scratch)
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
    deployment: Any = await render.to_deployment(  # type: ignore[misc]
        name=work_pool, work_pool_name=work_pool, entrypoint_type=EntrypointType.MODULE_PATH
    )
    try:
        identity: UUID = await deployment.aapply()
    except (DeploymentApplyError, ObjectNotFound) as error:
        raise BadInput(
            f'work pool "{work_pool}": {error}; expected one of the Prefect server '
            f"(make it with: prefect work-pool create {work_pool} --type process)"
        ) from None
    return identity
