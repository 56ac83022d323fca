"""Looks after the shards of a batch: starts a run for each, sees when one is dead, and begins its shard again.

keeper = ShardKeeper(client, batch, store, "r2://studio", run_id, deployment_id)
await keeper.open()
results = await keeper.make(cuts, missing)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from callsheet.batch import Batch
from callsheet.errors import HostFault, StoreFault, name_of
from callsheet.journal import journal_cost, run_name
from callsheet.manifest import ShotFailure
from callsheet.packed import pack
from callsheet.plan import Plan
from callsheet.shards import RUN_FILE, ShardResult, plan_name, result_name, shards_path
from callsheet.store import Store
from callsheet.timing import scaled
from tasks.shard_runs import (
    AT_WORK,
    LOOK_SECONDS,
    TO_COME,
    address_of,
    end_runs,
    limits_named,
    listed,
    runs_tagged,
    runs_with,
    shard_limit,
    withdraw,
)
from tasks.watching import tell

#: A run that takes so long to have its lease, or has not had it for so long, is dead.
START_SECONDS = 120.0
UNHELD_SECONDS = 15.0
#: A worker took the run so long ago and it has not begun: the worker is gone.
PENDING_SECONDS = 600.0
#: How often a shard is begun before it is given up.
STARTS = 3
#: How long nobody may take up a run before that is said.
PATIENCE_SECONDS = 60.0


@dataclass
class _Shard:
    """A shard and the run that makes it now. ``max_cost`` is what is left to it, in $."""

    number: int
    shots: tuple[str, ...]
    max_cost: float | None
    run: UUID | None = None
    starts: int = 0
    was_held: bool = False
    unheld_since: float | None = None
    result: ShardResult | None = None


class ShardKeeper:
    """Starts the runs of a batch's shards and looks after them until each has come to something."""

    def __init__(
        self,
        client: PrefectClient,
        batch: Batch,
        store: Store,
        setting: str,
        run_id: str,
        deployment: UUID,
        undelivered_gb: float,
    ) -> None:
        """``setting`` is the store's, as workers understand it."""
        self.undelivered_gb = undelivered_gb
        self.client, self.batch, self.store, self.setting = client, batch, store, setting
        self.run_id, self.deployment = run_id, deployment
        self.is_away = False
        self.is_taken_up = False
        self.left = batch.max_cost
        self.numbers = itertools.count()
        self.results: list[ShardResult] = []

    async def open(self) -> None:
        """Writes down who looks after the shards."""
        run = {"flow_run": str(runtime.flow_run.id), "server": address_of(self.client)}
        await asyncio.to_thread(self.store.put, self.path(RUN_FILE), json.dumps(run).encode())

    async def make(self, cuts: Sequence[tuple[str, ...]], missing: Sequence[str]) -> list[ShardResult]:
        """Has these shards made; what came of all their runs."""
        caps = _caps(self.batch.plan, self.left, missing, cuts)
        shards = [_Shard(next(self.numbers), *part) for part in zip(cuts, caps, strict=True)]
        parts = {self.path(plan_name(shard.number)): shard.shots for shard in shards}
        await asyncio.to_thread(pack, self.batch.plan, self.store, parts)
        self.results, self.began = [], time.monotonic()
        await self.keep(shards)
        results = [*self.results, *(shard.result for shard in shards if shard.result is not None)]
        if self.left is not None:
            self.left = max(0.0, self.left - sum(result.spent for result in results))
        return results

    async def keep(self, shards: Sequence[_Shard]) -> None:
        while left := [shard for shard in shards if shard.result is None]:
            try:
                await self.look(left)
                self.is_away = False
            except (httpx.TransportError, httpx.HTTPStatusError, StoreFault) as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
                    raise
                if not self.is_away:  # said once
                    self.tell(f"its shards cannot be looked after: {error}")
                self.is_away = True
            await asyncio.sleep(scaled(LOOK_SECONDS))

    async def look(self, shards: Sequence[_Shard]) -> None:
        """Looks once at the run of each of these shards; starts those that have none."""
        runs = {
            run.id: run
            for run in await runs_with(self.client, [shard.run for shard in shards if shard.run is not None])
        }
        limits = await limits_named(self.client, self.limit())
        held = {limit.name for limit in limits if limit.active_slots}
        for shard in shards:
            if shard.run is None:
                await self.start(shard)
            elif run := runs.get(shard.run):
                await self.look_at(shard, run, is_held=self.limit(shard) in held)
            else:
                await self.again(shard, "its run is gone from the Prefect server")

    def limit(self, shard: _Shard | None = None) -> str:
        """The limit of a shard; without one, how those of this run begin."""
        return shard_limit(self.store, self.batch.name, self.run_id, shard.number if shard else None)

    def path(self, name: str) -> str:
        return shards_path(self.batch.name, self.run_id, name)

    async def start(self, shard: _Shard) -> None:
        """Starts a run for the shard; some worker takes it up."""
        shard.was_held, shard.unheld_since = False, None
        parameters = {
            "batch": self.batch.name,
            "run": self.run_id,
            "shard": shard.number,
            # Named here: a worker may see the same store under another path.
            "limit": self.limit(shard),
            "store": self.setting,
            "max_cost": shard.max_cost,
            "retakes": self.batch.retakes,
            "undelivered_gb": self.undelivered_gb,
        }
        run: FlowRun = await arun_deployment(
            self.deployment,
            parameters={"parameters": parameters},
            flow_run_name=f"render {self.batch.name} {shard.number}",
            tags=[shard_limit(self.store, self.batch.name), self.limit()],
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
        may_be_done = state.is_final() or (state.is_running() and not is_held)
        if may_be_done and (result := await self.result(shard)) is not None:
            await self.came_to(shard, result)
        elif state.is_final():
            await self.ended(shard, state)
        elif state.is_running() and not is_held:
            await self.unheld(shard, run, state)
        elif state.is_pending() and _age(state) > PENDING_SECONDS:
            await self.crash(shard, run, "its worker took it and never began")
        elif not self.is_taken_up and time.monotonic() - self.began > scaled(PATIENCE_SECONDS):
            self.is_taken_up = True  # said once
            self.tell("no worker takes its shards up; start one with: prefect worker start --pool NAME")

    async def came_to(self, shard: _Shard, result: ShardResult) -> None:
        """A run left its result. Where it could not reach the store another may."""
        faults = [failure for failure in result.failures.values() if failure.error == StoreFault.__name__]
        if faults and shard.starts < STARTS:
            self.results.append(result.model_copy(update={"failures": {}}))
            await self.again(shard, faults[0].reason, result.spent)
            return
        for failure in faults:
            # The store of that machine, not of this one.
            failure.error = name_of(HostFault())
        shard.result = result
        self.tell(f"shard {shard.number} is done", logging.INFO)

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
        path = self.path(result_name(shard.number, str(shard.run)))
        try:
            return ShardResult.model_validate_json(await asyncio.to_thread(self.store.get, path))
        except FileNotFoundError:
            return None

    async def crash(self, shard: _Shard, run: FlowRun, reason: str) -> None:
        """Tells Prefect that a run is dead, which nobody else would, and begins its shard again."""
        with contextlib.suppress(ObjectNotFound):
            await self.client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
        await self.again(shard, reason)

    async def again(self, shard: _Shard, reason: str, spent: float | None = None) -> None:
        """Begins the shard again with what is left to it, where it may be. What a dead run spent its journal tells."""
        if shard.starts >= STARTS:
            self.give_up(shard, f"{reason} ({shard.starts} times)")
            return
        if shard.max_cost is not None:
            if spent is None:
                run = run_name(str(shard.run))
                spent = await asyncio.to_thread(journal_cost, self.store, self.batch.name, run)
            shard.max_cost = max(0.0, shard.max_cost - spent)
        shard.run = None
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
        tell(text, level)

    async def cancel(self) -> None:
        """Lets no run begin any more, and ends those that are on their way or at work."""
        with contextlib.suppress(StoreFault):
            await withdraw(self.store, await listed(self.store, self.path("")))
        with contextlib.suppress(httpx.HTTPError):
            await end_runs(self.client, await runs_tagged(self.client, self.limit(), TO_COME + AT_WORK))


def _age(state: State) -> float:
    """Seconds since the state was entered."""
    return time.time() - state.timestamp.timestamp()


def _caps(
    plan: Plan, max_cost: float | None, missing: Iterable[str], cuts: Sequence[Sequence[str]]
) -> list[float | None]:
    """What each shard may spend, in $: its part of the cap, by what it is expected to cost of all that is missing."""
    if max_cost is None:
        return [None] * len(cuts)
    lacking = set(missing)
    costs = [
        plan.cost({key for shot_id in shots for key in plan.shots[shot_id].keys} & lacking) for shots in cuts
    ]
    total = max(plan.cost(lacking), sum(costs))
    return [max_cost * (cost / total if total else 1 / len(cuts)) for cost in costs]
