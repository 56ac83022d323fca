"""Speech: one line of narration, spoken by a voice on one lane."""

from __future__ import annotations

import asyncio

from prefect import task

from callsheet.engines.speech import CosyVoice, SpeechRequest
from callsheet.plan import SpeechInputs
from tasks.hosts import engine_name
from tasks.policy import RETRIED
from tasks.production import Made, Production


@task(name="synthesize_speech", task_run_name="{step_name}", **RETRIED)
async def synthesize_speech(step_name: str, key: str, lane_name: str) -> Made:
    """Asks the lane's server for the narration and writes it as WAV into the scratch folder."""
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    inputs, client = step.inputs, production.clients[engine_name(lane)]
    assert isinstance(inputs, SpeechInputs)
    assert isinstance(client, CosyVoice)
    recording = await client.synthesize(
        SpeechRequest(
            text=inputs.text,
            prompt_text=inputs.voice.transcript,
            prompt_audio=inputs.voice.prompt_audio.path,
            speed=inputs.speed,
            expected_seconds=step.seconds,
        )
    )
    target = production.scratch_file(step, ".wav")
    await asyncio.to_thread(recording.save, target)
    return Made(target, seed=None)
