"""Shards: parts of a batch that the workers of a Prefect work pool make, on this machine or others.

    await end_earlier_shards(store, "demo")              # those of a run that was killed
    results = await make_in_shards(batch, store, run_id, shots=200, deployment=deployment_id)

Who cuts a batch writes its plan into the store (`callsheet.packed`), starts a run of the flow `render` for each shard
and looks after them. A run of `render` holds the shard's lease, one slot of the limit ``shard:<batch>:<run>:<number>``,
and commits nothing without it. A run that does not hold it any more is dead: it is marked as crashed, and the shard
is run again, which makes only what is missing. Workers share the fleet through its lanes' and hosts' locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Cancelling, Crashed

from callsheet.batch import Batch
from callsheet.errors import HostFault, name_of
from callsheet.limits import waiting_limit
from callsheet.manifest import ShotFailure
from callsheet.packed import pack
from callsheet.parameters import ProduceParameters
from callsheet.shards import ShardResult, cut, shards_path
from callsheet.store import Store
from callsheet.timing import scaled
from tasks.locks import read_limits
from tasks.production import tell_watcher

#: How often the runs are looked at.
LOOK_SECONDS = 5.0
#: A run that takes so long to have its lease, or has not had it for so long, is dead.
START_SECONDS = 120.0
UNHELD_SECONDS = 15.0
#: A worker took the run so long ago and it has not begun: the worker is gone.
PENDING_SECONDS = 600.0
#: How often a shard is begun before it is given up.
STARTS = 3
#: A run that has not begun, and one that has.
TO_COME = (StateType.SCHEDULED, StateType.PENDING)
AT_WORK = (StateType.RUNNING, StateType.CANCELLING)
#: How long nobody may take up a run before that is said.
PATIENCE_SECONDS = 60.0


@dataclass
class _Shard:
    """A shard and the run that makes it now."""

    number: int
    shots: tuple[str, ...]
    max_cost: float | None
    run: UUID | None = None
    starts: int = 0
    was_held: bool = False
    unheld_since: float | None = None
    result: ShardResult | None = None


def shard_limit(store: Store, batch: str, run: str = "", number: int | None = None) -> str:
    """The limit whose one slot the run of a shard holds; without a number, how those of a batch or run begin."""
    # Limits' names may not hold all that a batch's may.
    name = f"shard:{hashlib.sha256(f'{store} {batch}'.encode()).hexdigest()[:12]}:"
    return name + (f"{run}:" if run else "") + ("" if number is None else str(number))


def result_name(number: int, flow_run: UUID | str) -> str:
    """Where a run leaves what came of its shard: a name of its own, so that a dead one's is never taken for it."""
    return f"{number}-{flow_run}.json"


async def end_earlier_shards(store: Store, batch: str) -> None:
    """Cancels shards of an earlier run of the batch that are not begun, and waits for those at work: they are paid for."""
    files = await _listed(store, shards_path(batch))
    if not files:
        return
    prefix = shard_limit(store, batch)
    # A run that begins now finds no plan and ends.
    for path in files:
        if path.endswith("/plan.json"):
            await asyncio.to_thread(store.delete, path)
    async with get_client() as client:
        while to_come := await _runs_tagged(client, prefix, TO_COME):
            for flow_run in to_come:
                await client.set_flow_run_state(flow_run.id, Cancelled(message="produced anew"), force=True)
        told = False
        while (
            held := [limit for limit in await _limits(client, prefix) if limit.active_slots]
        ) and await _runs_tagged(client, prefix, AT_WORK):
            if not told:
                told = True
                text = f"{batch}: waits for {len(held)} shards of an earlier run, which are at work yet"
                get_run_logger().warning(text)
                tell_watcher(text)
            await asyncio.sleep(scaled(LOOK_SECONDS))
        await _forget(client, prefix)
    for path in files:
        await asyncio.to_thread(store.delete, path)


async def make_in_shards(
    batch: Batch, store: Store, run_id: str, parameters: ProduceParameters, deployment: UUID
) -> list[ShardResult]:
    """Has all that is missing of ``batch`` made by runs of ``deployment``, which are given a shard each."""
    missing = [key for key in batch.plan.steps if key not in batch.takes]
    cuts = cut(batch.plan, missing, parameters.shard_shots)
    if not cuts:
        return []
    folder = shards_path(batch.name, run_id)
    await asyncio.to_thread(pack, batch.plan, store, f"{folder}plan.json")
    caps = _caps(batch, missing, cuts)
    shards = [_Shard(number, shots, cap) for number, (shots, cap) in enumerate(zip(cuts, caps, strict=True))]
    for shard in shards:
        await asyncio.to_thread(store.put, f"{folder}{shard.number}.json", json.dumps(shard.shots).encode())
    async with get_client() as client:
        keeper = _Keeper(client, batch, store, parameters.store_anywhere, run_id, deployment)
        try:
            await keeper.keep(shards)
        except BaseException:
            await asyncio.shield(keeper.cancel(shards))
            raise
        await _forget(client, shard_limit(store, batch.name, run_id))
    for path in await _listed(store, folder):
        await asyncio.to_thread(store.delete, path)
    return [shard.result for shard in shards if shard.result is not None]


class _Keeper:
    """Starts the runs of a batch's shards and looks after them until each has come to something."""

    def __init__(
        self,
        client: PrefectClient,
        batch: Batch,
        store: Store,
        setting: str,
        run_id: str,
        deployment: UUID,
    ) -> None:
        """``setting`` is the store's, as workers understand it."""
        self.client, self.batch, self.store, self.setting = client, batch, store, setting
        self.run_id, self.deployment = run_id, deployment
        self.logger = get_run_logger()
        self.began = time.monotonic()
        self.is_taken_up = False

    async def keep(self, shards: Sequence[_Shard]) -> None:
        for shard in shards:
            await self.start(shard)
        while left := [shard for shard in shards if shard.result is None]:
            await asyncio.sleep(scaled(LOOK_SECONDS))
            try:
                await self.look(left)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
                    raise
                self.logger.warning("%s: the Prefect server does not answer: %s", self.batch.name, error)

    async def look(self, shards: Sequence[_Shard]) -> None:
        """Looks once at the run of each of these shards."""
        runs = {run.id: run for run in await _runs(self.client, shards)}
        limits = await _limits(self.client, self.limit())
        held = {limit.name for limit in limits if limit.active_slots}
        for shard in shards:
            if shard.run is not None and (run := runs.get(shard.run)) is not None:
                await self.look_at(shard, run, is_held=self.limit(shard) in held)
            else:
                await self.again(shard, "its run is gone from the Prefect server")

    def limit(self, shard: _Shard | None = None) -> str:
        """The limit of a shard; without one, how those of this run begin."""
        return shard_limit(self.store, self.batch.name, self.run_id, shard.number if shard else None)

    async def start(self, shard: _Shard) -> None:
        """Starts a run for the shard; some worker takes it up."""
        shard.was_held, shard.unheld_since = False, None
        parameters = {
            "batch": self.batch.name,
            "run": self.run_id,
            "shard": shard.number,
            "store": self.setting,
            "max_cost": shard.max_cost,
            "retakes": self.batch.retakes,
        }
        run: FlowRun = await arun_deployment(
            self.deployment,
            parameters={"parameters": parameters},
            flow_run_name=f"render {self.batch.name} {shard.number}",
            tags=[shard_limit(self.store, self.batch.name)],
            timeout=0,
            # Asked twice, because the first answer was lost, it is one run.
            idempotency_key=f"{self.limit(shard)}:{shard.starts}",
        )
        shard.run, shard.starts = run.id, shard.starts + 1

    async def look_at(self, shard: _Shard, run: FlowRun, *, is_held: bool) -> None:
        """Sees whether a run has come to something, and begins the shard again where it is dead."""
        state = run.state
        if state is None:
            return
        self.is_taken_up |= not state.is_scheduled()
        shard.was_held |= is_held
        if is_held:
            shard.unheld_since = None
        if state.is_final() or (state.is_running() and not is_held):
            shard.result = await self.result(shard)
            if shard.result is not None:
                self.tell(f"shard {shard.number} is done", logging.INFO)
                return
        if state.is_final():
            await self.ended(shard, state)
        elif state.is_running() and not is_held:
            await self.unheld(shard, run, state)
        elif state.is_pending() and _age(state) > PENDING_SECONDS:
            await self.crash(shard, run, "its worker took it and never began")
        elif not self.is_taken_up and time.monotonic() - self.began > scaled(PATIENCE_SECONDS):
            self.is_taken_up = True  # said once
            self.tell("no worker takes its shards up; start one with: prefect worker start --pool NAME")

    async def ended(self, shard: _Shard, state: State) -> None:
        """A run ended and left no result."""
        if state.is_cancelled():
            self.give_up(shard, "its run was cancelled")
        elif state.is_failed():
            self.give_up(shard, state.message or "its run failed and left no reason")
        else:  # crashed, or completed without a word
            await self.again(shard, state.message or "its run ended without a result")

    async def unheld(self, shard: _Shard, run: FlowRun, state: State) -> None:
        """A run works and does not hold its lease: it begins, it ends, or it is dead."""
        shard.unheld_since = shard.unheld_since or time.monotonic()
        seconds = time.monotonic() - shard.unheld_since
        if seconds > UNHELD_SECONDS and (shard.was_held or _age(state) > START_SECONDS):
            await self.crash(shard, run, "its worker is dead: the shard's lease was not renewed")

    async def result(self, shard: _Shard) -> ShardResult | None:
        path = shards_path(self.batch.name, self.run_id, result_name(shard.number, str(shard.run)))
        try:
            return ShardResult.model_validate_json(await asyncio.to_thread(self.store.get, path))
        except FileNotFoundError:
            return None

    async def crash(self, shard: _Shard, run: FlowRun, reason: str) -> None:
        """Tells Prefect that a run is dead, which nobody else would, and begins its shard again."""
        await self.client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
        await self.again(shard, reason)

    async def again(self, shard: _Shard, reason: str) -> None:
        if shard.starts >= STARTS:
            self.give_up(shard, f"{reason} ({shard.starts} times)")
            return
        self.tell(f"shard {shard.number} is begun again: {reason}")
        await self.start(shard)

    def give_up(self, shard: _Shard, reason: str) -> None:
        fault = HostFault(f"shard {shard.number}: {reason}")
        self.tell(str(fault), logging.ERROR)
        shard.result = ShardResult(
            failures={
                key: ShotFailure(
                    step=self.batch.plan.steps[key].name, error=name_of(fault), reason=str(fault)
                )
                for shot_id in shard.shots
                for key in self.batch.plan.shots[shot_id].keys
            }
        )

    def tell(self, text: str, level: int = logging.WARNING) -> None:
        """In the log of the run, and at the terminal."""
        text = f"{self.batch.name}: {text}"
        self.logger.log(level, "%s", text)
        tell_watcher(text)

    async def cancel(self, shards: Iterable[_Shard]) -> None:
        """Ends the runs that are on their way or at work."""
        with contextlib.suppress(httpx.HTTPError):
            for run in await _runs(self.client, [s for s in shards if s.run and s.result is None]):
                if run.state is not None and not run.state.is_final():
                    waits = run.state.is_scheduled()
                    state: State = Cancelled() if waits else Cancelling()
                    await self.client.set_flow_run_state(run.id, state, force=waits)


def _age(state: State) -> float:
    """Seconds since the state was entered."""
    return time.time() - state.timestamp.timestamp()


def _caps(batch: Batch, missing: Iterable[str], cuts: Sequence[Sequence[str]]) -> list[float | None]:
    """What each shard may spend, in $: its part of the batch's cap, by what it is expected to cost."""
    if batch.max_cost is None:
        return [None] * len(cuts)
    lacking = set(missing)
    costs = [
        batch.plan.cost({key for shot_id in shots for key in batch.plan.shots[shot_id].keys} & lacking)
        for shots in cuts
    ]
    total = sum(costs)
    return [batch.max_cost * (cost / total if total else 1 / len(cuts)) for cost in costs]


async def _listed(store: Store, prefix: str) -> list[str]:
    return await asyncio.to_thread(lambda: [file.path for file in store.list(prefix)])


async def _limits(client: PrefectClient, prefix: str) -> list[GlobalConcurrencyLimitResponse]:
    """The limits whose names begin so."""
    names = (prefix, waiting_limit(prefix))
    return [limit for limit in await read_limits(client) if limit.name.startswith(names)]


async def _forget(client: PrefectClient, prefix: str) -> None:
    """Deletes the limits whose names begin so; nobody holds them any more."""
    for limit in await _limits(client, prefix):
        with contextlib.suppress(ObjectNotFound):
            await client.delete_global_concurrency_limit_by_name(limit.name)


async def _runs(client: PrefectClient, shards: Sequence[_Shard]) -> list[FlowRun]:
    """The runs of these shards."""
    ids = [shard.run for shard in shards if shard.run is not None]
    found: list[FlowRun] = []
    for start in range(0, len(ids), 100):
        wanted = FlowRunFilter.model_validate({"id": {"any_": ids[start : start + 100]}})
        found += await client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=100)
    return found


async def _runs_tagged(client: PrefectClient, tag: str, states: Sequence[StateType]) -> list[FlowRun]:
    """The runs with this tag in one of these states, at most 200."""
    wanted = FlowRunFilter.model_validate(
        {"tags": {"all_": [tag]}, "state": {"type": {"any_": list(states)}}}
    )
    return await client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=200)
