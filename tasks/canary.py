"""The canary of a batch: before the first line that an engine is paid for, and every 50 lines."""

from __future__ import annotations

import asyncio
import time

from prefect import task

from callsheet.canary import listen
from callsheet.engines.speech import CosyVoice
from callsheet.errors import CallsheetError, HostFault, reason_of
from callsheet.fleet import Lane
from callsheet.plan import SpeechInputs, Step
from tasks.policy import RETRIED, delays
from tasks.production import Canary, Production

#: An engine is listened to again after so many lines.
CANARY_LINES = 50
#: Engines are stochastic: one bad sentence is bad luck, three are a bad host.
TRIES = 3


async def hear_canary(production: Production, lane: Lane, step: Step) -> None:
    """Lets the lane's engine say the sentence in the step's voice, where it is due.

    Raises:
        HostFault: it did not pass or could not be heard, with what was wrong. Whatever it was, a known sentence
            in a voice that was checked is not at fault.
    """
    canary = production.canaries.setdefault(lane.engine_name, Canary())
    async with canary.lock:
        if canary.fault is not None:
            raise canary.fault
        if canary.lines is not None and canary.lines < CANARY_LINES:
            canary.lines += 1
            return
        started = time.monotonic()
        try:
            await check_canary.with_options(retry_delay_seconds=delays())(step.key, lane.name)
        except HostFault as error:
            canary.fault = error
            raise
        except CallsheetError as error:
            canary.fault = HostFault(f"its canary could not be heard: {reason_of(error)}")
            raise canary.fault from error
        finally:
            async with production.changing() as batch:
                batch.charge(None, lane, time.monotonic() - started)
        canary.lines = 1


@task(name="check_canary", task_run_name="canary {lane_name}", **RETRIED)
async def check_canary(key: str, lane_name: str) -> None:
    """Listens to the sentence up to three times; raises HostFault where none of them passes."""
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    inputs, client = step.inputs, production.clients[lane.engine_name]
    assert isinstance(inputs, SpeechInputs)
    assert isinstance(client, CosyVoice)
    profile = await asyncio.to_thread(production.profile, inputs.voice)
    for _ in range(TRIES):
        production.check_lease()
        heard = await listen(client, inputs.voice, profile)
        if not heard.faults:
            return
    raise HostFault(f"{lane.engine_name}: its canary failed {TRIES} times: {'; '.join(heard.faults)}")
