"""Speech: one line of narration, spoken by a voice on one lane."""

from __future__ import annotations

import asyncio

from prefect import task

from callsheet.engines.requests import speech_request
from callsheet.engines.speech import CosyVoice, write_wav
from callsheet.plan import SpeechInputs
from tasks.policy import RETRIED
from tasks.production import Made, Production


@task(name="synthesize_speech", task_run_name="{step_name}", **RETRIED)
async def synthesize_speech(step_name: str, key: str, lane_name: str) -> Made:
    """Asks the lane's server for each piece of the narration that is not there yet, one after the other.

    The take is all pieces in one WAV file, as the server sent them.
    """
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    inputs, client = step.inputs, production.clients[lane.engine_name]
    assert isinstance(inputs, SpeechInputs)
    assert isinstance(client, CosyVoice)
    spoken = production.recordings.setdefault(key, {})
    for number, piece in enumerate(inputs.pieces):
        if number not in spoken or spoken[number].sample_rate != client.sample_rate:
            production.check_lease()
            spoken[number] = await client.synthesize(
                speech_request(inputs, piece, step.seconds / len(inputs.pieces))
            )
    recordings = tuple(spoken[number] for number in range(len(inputs.pieces)))
    target = production.scratch_file(step, ".wav")
    await asyncio.to_thread(write_wav, recordings, target)
    return Made(target, seed=None, recordings=recordings)
