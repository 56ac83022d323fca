"""Lanes: each is a task that holds a slot of the tag ``gpu`` and pulls steps while there are any.

The tag's limit is the number of lanes that may be busy at once, over all flow runs; a lane takes its
slot once and keeps it for many steps, because a slot for each step leaves GPUs idle most of the time
(facts: prefect.md). Each step is a task of its own within, with retries, so it shows by itself. When a lane
takes its slot, and when it gives it back, is `tasks.turns`' business.
"""

from __future__ import annotations

import asyncio
import logging
import time

from prefect import task

from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.http import Unreachable
from callsheet.errors import BadOutput, CallsheetError, HostFault, Transient, reason_of
from callsheet.fleet import Host, Lane
from callsheet.limits import GPU_TAG
from callsheet.plan import Step
from tasks.canary import hear_canary
from tasks.checks import keep_attempt, settle_failure
from tasks.logs import run_logger
from tasks.policy import RETRIED, UNCACHED, delays
from tasks.production import Made, Production, Turn
from tasks.speech import synthesize_speech
from tasks.visuals import generate_avatar, generate_image, generate_video
from tasks.watching import tell

TASK_OF = {
    "speech": synthesize_speech,
    "image": generate_image,
    "video": generate_video,
    "avatar": generate_avatar,
}


@task(name="gpu_lane", task_run_name="lane {lane_name}", tags={GPU_TAG}, **UNCACHED)
async def gpu_lane(lane_name: str) -> int:
    """Pulls steps until there is nothing for this lane at present, or its turn is over. Returns how many it did."""
    production = Production.current()
    lane, turn = production.lane(lane_name), production.turns[lane_name]
    turn.begin()
    # As many steps at once as the engine's window: while one runs, the next one's inputs are there and it is queued.
    return sum(await asyncio.gather(*(_pull(production, lane, turn) for _ in range(lane.engine.window))))


async def _pull(production: Production, lane: Lane, turn: Turn) -> int:
    """Does one step after the other until there is none left. Returns how many."""
    done = 0
    while step := await production.next_step(lane, turn):
        try:
            await _do(production, step, lane)
        except Exception as error:  # a defect: the step is nobody's any more, and would be waited for
            await settle_failure(production, step, lane, error)
        finally:
            await production.end_step(turn)
        done += 1
    return done


async def is_ready(production: Production, lane: Lane) -> bool:
    """Asks the engine whether it is there; one that is not, after several tries, takes its host out of the batch."""
    try:
        await reach_engine.with_options(retry_delay_seconds=delays())(lane.name)
    except CallsheetError as error:
        await leave_out(production, lane.host, error)
        return False
    host = lane.host.name
    if host not in production.present:
        production.present.add(host)
        lanes = sum(other.host.name == host for other in production.batch.queue.lanes.values())
        run_logger().info("host %s joins with %d lane%s", host, lanes, "s" * (lanes > 1))
    return True


async def leave_out(production: Production, host: Host, error: Exception) -> None:
    """Takes a host out of the batch; of its lanes the first says so."""
    async with production.changing() as batch:
        is_first = host.name not in batch.queue.quarantined
        batch.queue.quarantine(host.name, reason_of(error))
    if is_first:
        tell(f"host {host.name} is left out: {reason_of(error)}", logging.ERROR)


@task(name="reach_engine", task_run_name="is {lane_name} there", **RETRIED)
async def reach_engine(lane_name: str) -> None:
    """Asks the lane's engine whether it is there and serves what it should, at no cost to it. Raises where not."""
    production = Production.current()
    await production.clients[production.lane(lane_name).engine_name].ready()


async def _or_host_fault(production: Production, error: Exception | None, lane: Lane) -> Exception | None:
    """What a step failed of several times, or a HostFault: its engine is not there any more, and the next steps would fail, too.

    A machine that is going down refuses no connection: it breaks them, or a proxy before it answers for it. Asked of rented
    hosts alone: another comes in place of one that is left out, where a machine of one's own may come back.
    """
    if production.rental is None or not isinstance(error, Transient):
        return error
    try:
        await reach_engine.with_options(retry_delay_seconds=delays())(lane.name)
    except Exception as gone:
        return HostFault(f"{reason_of(error)}; then its engine was not there: {reason_of(gone)}")
    return error


async def _do(production: Production, step: Step, lane: Lane) -> None:
    """One step on this lane. What it made is checked and kept beside the lane, which goes on meanwhile."""
    made: Made | None = None
    failure: Exception | None = None
    started: float | None = None
    try:
        if step.kind == "speech":
            await hear_canary(production, lane, step)  # which is charged by itself
        started = time.monotonic()
        run = TASK_OF[step.kind].with_options(retry_delay_seconds=delays())
        made = await run(step.name, step.key, lane.name)
    except Unreachable as error:
        failure = HostFault(f"{reason_of(error)}, after several tries")
    except Exception as error:  # whatever it was, it costs its shot and not the batch
        failure = error
    seconds = time.monotonic() - started if started is not None else 0.0
    failure = await _or_host_fault(production, failure, lane)
    client = production.clients[lane.engine_name]
    if isinstance(client, ComfyUI):
        # What its prompts took by the host's clock, failed ones too; what they waited for others is not theirs.
        seconds = client.worked(step.key)
        prompt_id = production.prompts.pop(step.key, "")
        if failure is not None:
            await client.abandon(prompt_id)
    async with production.changing() as batch:
        cost = batch.charge(step, lane, seconds)
    if made is not None:
        await production.in_background(keep_attempt(production, step, lane, made, seconds, cost))
    elif isinstance(failure, BadOutput):
        made = Made(None, production.batch.seed_of(step), error=reason_of(failure))
        await production.in_background(keep_attempt(production, step, lane, made, seconds, cost))
    elif failure is not None:
        await settle_failure(production, step, lane, failure)
