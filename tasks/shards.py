"""Shards: parts of a batch that the workers of a Prefect work pool make, on this machine or others.

    await end_earlier_shards(store, "demo")              # those of a run that was killed
    results = await make_in_shards(batch, store, run_id, parameters, deployment=deployment_id)

Who cuts a batch writes the plan of each shard into the store (`callsheet.packed`), starts a run of the flow `render`
for it and looks after it. A run of `render` holds the shard's lease, one slot of the limit
``shard:<batch>:<run>:<number>``, before it looks at anything, and commits nothing without it. A run that does not
hold it any more is dead: it is marked as crashed, and the shard is run again, which makes only what is missing.
Workers share the fleet through its lanes' and hosts' locks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from callsheet.batch import Batch
from callsheet.errors import BadInput
from callsheet.parameters import ProduceParameters
from callsheet.resume import find_takes
from callsheet.schedule import Failure
from callsheet.shards import RUN_FILE, ShardResult, cut, shards_path, shared_first
from callsheet.store import Store
from callsheet.timing import scaled
from tasks.shard_keeper import ShardKeeper
from tasks.shard_runs import (
    AT_WORK,
    LOOK_SECONDS,
    TO_COME,
    address_of,
    delete,
    end_runs,
    forget_limits,
    limits_named,
    listed,
    runs_tagged,
    shard_limit,
    withdraw,
)
from tasks.watching import tell


async def end_earlier_shards(store: Store, batch: str) -> None:
    """Cancels shards of an earlier run of the batch that are not begun, and waits for those at work: they are paid for.

    Raises:
        BadInput: another Prefect server looks after them.
    """
    files = await listed(store, shards_path(batch))
    if not files:
        return
    prefix = shard_limit(store, batch)
    async with get_client() as client:
        for path in files:
            if path.endswith(f"/{RUN_FILE}"):
                await _check_server(client, store, batch, path)
        await withdraw(store, files)
        while to_come := await runs_tagged(client, prefix, TO_COME):
            await end_runs(client, to_come, "produced anew")
        told = False
        while (
            held := [limit for limit in await limits_named(client, prefix) if limit.active_slots]
        ) and await runs_tagged(client, prefix, AT_WORK):
            if not told:
                told = True
                tell(
                    f"waits for {len(held)} shards of an earlier run, which are at work yet; where no worker "
                    f"is at work any more, free them with: "
                    + "; ".join(f"prefect gcl update {limit.name} --active-slots 0" for limit in held[:3])
                )
            await asyncio.sleep(scaled(LOOK_SECONDS))
        await forget_limits(client, prefix)
    await delete(store, files)


async def _check_server(client: PrefectClient, store: Store, batch: str, path: str) -> None:
    """Raises BadInput where the run that cut these shards is not known to this server."""
    earlier = json.loads(await asyncio.to_thread(store.get, path))
    try:
        await client.read_flow_run(UUID(earlier["flow_run"]))
    except ObjectNotFound:
        raise BadInput(
            f"batch {batch}: found shards of an earlier run that the Prefect server at {earlier['server']} looks after, "
            f"not the one at {address_of(client)}; expected PREFECT_API_URL to name the former, so that nothing is made "
            f"twice. Where it is gone and no worker is at work any more, delete {path} from {store}"
        ) from None


async def make_in_shards(
    batch: Batch, store: Store, run_id: str, parameters: ProduceParameters, deployment: UUID
) -> list[ShardResult]:
    """Has all that is missing of ``batch`` made by runs of ``deployment``, which are given a shard each."""
    plan, size = batch.plan, parameters.advanced.shard_shots
    missing = [key for key in plan.steps if key not in batch.takes and key not in batch.queue.failures]
    if not cut(plan, missing, size):
        return []
    async with get_client() as client:
        keeper = ShardKeeper(
            client,
            batch,
            store,
            parameters.store_anywhere,
            run_id,
            deployment,
            parameters.advanced.undelivered_gb,
        )
        try:
            await keeper.open()
            if first := shared_first(plan, missing, size):
                results = await keeper.make(cut(plan, missing, size, first), missing)
                missing, rest = await asyncio.to_thread(_left, batch, store, results)
                results += await keeper.make(cut(plan, missing, size, rest), missing)
            else:
                results = await keeper.make(cut(plan, missing, size), missing)
        except BaseException:
            await asyncio.shield(keeper.cancel())
            raise
        await forget_limits(client, shard_limit(store, batch.name, run_id))
    await delete(store, await listed(store, shards_path(batch.name, run_id)))
    return results


def _left(batch: Batch, store: Store, results: Iterable[ShardResult]) -> tuple[list[str], list[str]]:
    """The takes that are missing after these results, and the shots that can be made yet."""
    found = find_takes(batch.plan, store, batch.name)
    for result in results:
        for key, failure in result.failures.items():
            if key not in found and (step := batch.plan.steps.get(key)):
                batch.queue.give_up(step, Failure(failure.step, failure.error, failure.reason))
    failed = batch.queue.failures
    missing = [key for key in batch.plan.steps if key not in found]
    shots = [shot_id for shot_id, shot in batch.plan.shots.items() if not any(k in failed for k in shot.keys)]
    return missing, shots
