"""Turns: a lane works while it has its place, the memory for its model and a slot of the tag `gpu`, and makes room for others.

    await run_lane(lane.name)      # until there is nothing left that the lane could do

Taken in this order, the scarcest last, so nobody who holds a slot of `gpu` waits for anything else and no two
runs wait for each other:

1. `lane:<host>:<engine>`: its place, so that no other run drives the lane;
2. `vram:<host>`: the memory for the model of the step that comes next, shared by the engine's lanes (`tasks.memory`);
3. the tag `gpu`: the task `gpu_lane` holds it and pulls steps.

The slot of `gpu` goes back as soon as there is nothing to do. Place and memory are kept while nobody asks for
them, because the model is loaded. After `lane_minutes` all that others wait for is given up and a turn sat out.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.logging import get_run_logger

from callsheet.errors import HostLacks, reason_of
from callsheet.fleet import Lane
from callsheet.limits import GPU_LIMIT, lane_limit, vram_limit, vram_slots
from callsheet.plan import Step
from callsheet.timing import scaled
from tasks.lanes import gpu_lane, is_ready
from tasks.locks import POLL_SECONDS, Lease
from tasks.memory import Share
from tasks.production import Production, Turn

#: How often a lane that has nothing to do looks whether others wait for its place or its memory.
LOOK_SECONDS = 3.0
#: How long an engine whose steps nobody waits for lets one of its host go first whose steps are waited for.
YIELD_SECONDS = 10.0
#: A lane that has waited so long for its slot of `gpu` says so.
PATIENCE_SECONDS = 0.5


async def run_lane(lane_name: str) -> None:
    """Brings a lane to work whenever there is something that it can do, until there will be nothing more."""
    production = Production.current()
    lane = production.lane(lane_name)
    meter = production.batch.meter(lane)
    with meter.rented(), production.on_its_way(lane):
        if not await is_ready(production, lane):
            return
        while await production.peek(lane) is not None:
            with meter.waiting():
                place = await production.locks.take(lane_limit(lane))
            try:
                others_want = await _at_place(production, lane, place)
            finally:
                await production.locks.release(place)
            if others_want:
                with meter.waiting():
                    await production.locks.sit_out(*others_want, seconds=production.turn_seconds)
            production.coming.add(lane.name)


async def _at_place(production: Production, lane: Lane, place: Lease) -> list[str]:
    """Works until nothing is left or others want the place. Returns the limits that they wait for."""
    share: Share | None = None
    rested = place.since
    try:
        while not place.lost and not (share and share.lost):
            step = await production.peek(lane, seconds=scaled(LOOK_SECONDS))
            wanted = [lane_limit(lane), *([vram_limit(lane.host.name)] if share else [])]
            if step is None:
                if production.batch.is_idle(lane):
                    return []
                if await production.locks.waiting(*wanted):
                    return wanted
                continue
            if _needs_other_memory(lane, step, share):
                if share is not None:
                    await production.memory.leave(share)
                    share = None
                share = await _entered(production, lane, step)
                continue  # what is best to do may have changed meanwhile
            since = max(rested, share.lease.since if share else place.since)
            production.coming.discard(lane.name)
            turn = Turn(
                ends=since + production.turn_seconds,
                wanted=(GPU_LIMIT, *wanted),
                within_gb=None if lane.engine.resident else share.vram_gb if share else 0.0,
                leases=(place, share.lease) if share else (place,),
            )
            await _take(production, lane, turn)
            if turn.is_over:
                if await production.locks.waiting(*wanted):
                    return wanted
                with production.batch.meter(lane).waiting():
                    await production.locks.sit_out(GPU_LIMIT, seconds=production.turn_seconds)
                rested = time.monotonic()
        return []
    finally:
        if share is not None:
            await production.memory.leave(share)


async def _take(production: Production, lane: Lane, turn: Turn) -> None:
    """One turn with a slot of the tag `gpu`. Where the slot does not come at once, others are told that it is waited for."""
    production.turns[lane.name] = turn
    work = asyncio.create_task(gpu_lane(lane.name))
    begun = asyncio.create_task(turn.begun.wait())
    first = partial(asyncio.wait, {work, begun}, return_when=asyncio.FIRST_COMPLETED)
    try:
        async with AsyncExitStack() as announced:
            with production.batch.meter(lane).waiting():
                await first(timeout=scaled(PATIENCE_SECONDS))
                if not (begun.done() or work.done()):
                    await announced.enter_async_context(production.locks.announced(GPU_LIMIT))
                    await first()
        await work
    except ConcurrencySlotAcquisitionError as error:
        get_run_logger().warning("%s: no slot of the tag gpu: %s", lane.name, reason_of(error))
        await asyncio.sleep(scaled(POLL_SECONDS))
    finally:
        begun.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})


def _needs_other_memory(lane: Lane, step: Step, share: Share | None) -> bool:
    slots = vram_slots(lane, step.vram_gb)
    return slots > 0 and (share is None or share.lease.slots < slots)


async def _entered(production: Production, lane: Lane, step: Step) -> Share | None:
    """The lane's part of the memory; None, and the step is failed here, where the host has not got so much."""
    with production.batch.meter(lane).waiting_for_vram():
        await _let_others_first(production, lane)
        try:
            return await production.memory.enter(lane, step.vram_gb)
        except HostLacks as error:
            async with production.changing() as batch:
                batch.queue.quarantine(lane.host.name, reason_of(error))
            return None


async def _let_others_first(production: Production, lane: Lane) -> None:
    """Lets engines of the same host go first whose steps are waited for, such as speech that decides a clip's length."""
    deadline = time.monotonic() + scaled(YIELD_SECONDS)
    while time.monotonic() < deadline and production.is_less_urgent(lane):
        await production.wait_for_change(scaled(POLL_SECONDS))
