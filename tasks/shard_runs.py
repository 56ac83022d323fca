"""Runs of shards as a Prefect server knows them, their limits, and their files in the store.

for run in await runs_tagged(client, limit, AT_WORK): ...
await end_runs(client, runs)
await withdraw(store, files)          # their plans: none begins any more
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from callsheet.limits import waiting_limit
from callsheet.store import Store
from tasks.locks import read_limits

#: How often the runs are looked at.
LOOK_SECONDS = 5.0
#: A run that has not begun, and one that has.
TO_COME = (StateType.SCHEDULED, StateType.PENDING)
AT_WORK = (StateType.RUNNING, StateType.CANCELLING)


def shard_limit(store: Store, batch: str, run: str = "", number: int | None = None) -> str:
    """The limit whose one slot the run of a shard holds; without a number, how those of a batch or run begin."""
    return (
        f"shard:{_hash(store, batch)}:" + (f"{run}:" if run else "") + ("" if number is None else str(number))
    )


def batch_limit(store: Store, batch: str) -> str:
    """The limit whose one slot a run of `produce` holds, where the store cannot tell that another is at work."""
    return f"batch:{_hash(store, batch)}"


def _hash(store: Store, batch: str) -> str:
    """Names of limits may not hold all that a batch's may."""
    return hashlib.sha256(f"{store} {batch}".encode()).hexdigest()[:12]


async def end_runs(client: PrefectClient, runs: Iterable[FlowRun], reason: str | None = None) -> None:
    """Cancels these runs, each as far as it has come."""
    for run in runs:
        waits = run.state is None or run.state.type in TO_COME
        state: State = Cancelled(message=reason) if waits else Cancelling(message=reason)
        with contextlib.suppress(httpx.HTTPError, ObjectNotFound):
            await client.set_flow_run_state(run.id, state, force=waits)


async def withdraw(store: Store, files: Iterable[str]) -> None:
    """Takes the plans away: a run that begins now finds none and ends."""
    await delete(store, [path for path in files if "/plan-" in path])


async def delete(store: Store, files: Iterable[str]) -> None:
    for path in files:
        await asyncio.to_thread(store.delete, path)


def address_of(client: PrefectClient) -> str:
    """Where the server is, without credentials."""
    return f"{client.api_url.scheme}://{client.api_url.netloc.decode()}"


async def listed(store: Store, prefix: str) -> list[str]:
    return await asyncio.to_thread(lambda: [file.path for file in store.list(prefix)])


async def limits_named(client: PrefectClient, prefix: str) -> list[GlobalConcurrencyLimitResponse]:
    """The limits whose names begin so."""
    names = (prefix, waiting_limit(prefix))
    return [limit for limit in await read_limits(client) if limit.name.startswith(names)]


async def forget_limits(client: PrefectClient, prefix: str) -> None:
    """Deletes the limits whose names begin so; nobody holds them any more."""
    for limit in await limits_named(client, prefix):
        with contextlib.suppress(ObjectNotFound):
            await client.delete_global_concurrency_limit_by_name(limit.name)


async def runs_with(client: PrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    """The runs with these ids that the server knows."""
    found: list[FlowRun] = []
    for start in range(0, len(ids), 100):
        wanted = FlowRunFilter.model_validate({"id": {"any_": ids[start : start + 100]}})
        found += await client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=100)
    return found


async def runs_tagged(client: PrefectClient, tag: str, states: Sequence[StateType]) -> list[FlowRun]:
    """The runs with this tag in one of these states."""
    wanted = FlowRunFilter.model_validate(
        {"tags": {"all_": [tag]}, "state": {"type": {"any_": list(states)}}}
    )
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=200, offset=len(found)
    ):
        found += page
    return found
