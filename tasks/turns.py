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

from callsheet.errors import CallsheetError, reason_of
from callsheet.fleet import Lane
from callsheet.limits import GPU_LIMIT, lane_limit, vram_limit, vram_slots
from callsheet.plan import Step
from callsheet.timing import scaled
from tasks.lanes import gpu_lane, is_ready, leave_out
from tasks.locks import POLL_SECONDS, Lease
from tasks.logs import log_fault
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
    with production.batch.meter(lane).rented(), production.on_its_way(lane):
        try:
            if await is_ready(production, lane):
                await _work(production, lane)
        except Exception as error:  # a defect of ours, or Prefect's: it costs the host and not the batch
            if ends():
                raise asyncio.CancelledError from error
            if not isinstance(error, CallsheetError):
                log_fault(f"{lane.name}: {reason_of(error)}", error)
            await leave_out(production, lane.host, error)


async def _work(production: Production, lane: Lane) -> None:
    """Turn after turn, until nothing is left for the lane."""
    waiting = production.batch.meter(lane).waiting
    while await production.peek(lane) is not None:
        with waiting():
            place = await production.locks.take(lane_limit(lane), wanted=production.wants(lane))
        if place is None:
            continue
        try:
            if production.rental is not None:
                # After the place is taken: a host may be taken away though it is in use, when its time is over.
                await production.rental.check(lane.host.name)
            others_want = await _at_place(production, lane, place)
        finally:
            await production.locks.release(place)
        if others_want:
            with waiting():
                await production.locks.sit_out(
                    production.wants(lane), *others_want, seconds=production.turn_seconds
                )
        production.coming.add(lane.name)


async def _at_place(production: Production, lane: Lane, place: Lease) -> list[str]:
    """Works until nothing is left or others want the place. Returns the limits that they wait for."""
    share: Share | None = None
    rested: float | None = None
    wants = production.wants(lane)
    try:
        while not place.lost and not (share and share.lost):
            step = await production.peek(lane, seconds=scaled(LOOK_SECONDS))
            wanted = [lane_limit(lane), *([vram_limit(lane.host.name)] if share else [])]
            if step is None:
                if not wants():
                    return []
                if await production.locks.waiting(*wanted):
                    return wanted
                continue
            if _needs_other_memory(lane, step, share):
                if share is not None:
                    await production.memory.leave(share)
                    share = None
                with production.batch.meter(lane).waiting("waiting_for_vram"):
                    await _let_others_first(production, lane)
                    share = await production.memory.enter(lane, step.vram_gb, wants)
                continue  # what is best to do may have changed meanwhile
            production.coming.discard(lane.name)
            turn = Turn(
                # A lane that had to wait for its slot has its whole turn; one that keeps its memory has not.
                since=rested,
                seconds=production.turn_seconds,
                wanted=(GPU_LIMIT, *wanted),
                within=share.lease.slots if share else 0,
                leases=(place, share.lease) if share else (place,),
            )
            await _take(production, lane, turn)
            rested = turn.since
            if turn.is_over:
                if await production.locks.waiting(*wanted):
                    return wanted
                with production.batch.meter(lane).waiting():
                    await production.locks.sit_out(wants, GPU_LIMIT, seconds=production.turn_seconds)
                rested = None
        return []
    finally:
        if share is not None:
            await production.memory.leave(share)


async def _take(production: Production, lane: Lane, turn: Turn) -> None:
    """One turn with a slot of the tag `gpu`. Where the slot does not come at once, others are told that it is waited for."""
    production.turns[lane.name] = turn
    with production.batch.meter(lane).waiting():
        await production.locks.wait_for_room(production.wants(lane), GPU_LIMIT)
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
        production.slotless.discard(lane.name)
    except Exception as error:
        if ends():  # a slot that could not be given back hides that all is over
            raise asyncio.CancelledError from error
        # The steps see to their own failures: this is the slot, which could not be had or given back.
        if lane.name not in production.slotless:
            log_fault(f"{lane.name}: no slot of the tag gpu: {reason_of(error)}", error)
        production.slotless.add(lane.name)
        await asyncio.sleep(scaled(POLL_SECONDS))
    finally:
        begun.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})


def ends() -> bool:
    """Whether this task was told to end, whatever it met since."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _needs_other_memory(lane: Lane, step: Step, share: Share | None) -> bool:
    slots = vram_slots(lane, step.vram_gb)
    return slots > 0 and (share is None or share.lease.slots < slots)


async def _let_others_first(production: Production, lane: Lane) -> None:
    """Lets engines of the same host go first whose steps are waited for, such as speech that decides a clip's length."""
    deadline = time.monotonic() + scaled(YIELD_SECONDS)
    while time.monotonic() < deadline and production.is_less_urgent(lane):
        await production.wait_for_change(scaled(POLL_SECONDS))
