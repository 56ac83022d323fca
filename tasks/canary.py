"""The canary: a known sentence that a speech engine says before the first line it is paid for, and every 50 lines.

A server can list its models, answer 200, and speak at the wrong rate, in silence or for ever. What it
makes of one sentence tells, before hundreds of lines are spoken and found bad one by one.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np
from prefect import task

from callsheet.engines.speech import CosyVoice, Recording
from callsheet.errors import BadOutput, HostFault, reason_of
from callsheet.fleet import Lane
from callsheet.media.audio import Sound
from callsheet.media.speech import Line, check_line
from callsheet.plan import SpeechInputs, Step
from callsheet.takes import Check
from callsheet.text import primary
from tasks.hosts import engine_name
from tasks.policy import RETRIED, delays
from tasks.production import Canary, Production
from tasks.speech import speech_request

#: An engine is listened to again after so many lines.
CANARY_LINES = 50
#: Engines are stochastic: one bad sentence is bad luck, three are a bad host.
TRIES = 3
SENTENCES = {
    "en": "The canary sings one clear line before the work of the day begins.",
    "zh": "开工之前，先请金丝雀唱一句清楚的歌。",
    "de": "Der Kanarienvogel singt eine klare Zeile, bevor die Arbeit beginnt.",
    "fr": "Le canari chante une phrase claire avant que le travail commence.",
    "es": "El canario canta una frase clara antes de empezar el trabajo.",
    "ja": "仕事を始める前に、カナリアがはっきりと一節を歌います。",
    "ko": "일을 시작하기 전에 카나리아가 또렷하게 한 구절을 노래합니다.",
}


async def hear_canary(production: Production, lane: Lane, step: Step) -> None:
    """Lets the lane's engine say the sentence in the step's voice, where it is due.

    Raises:
        HostFault: it did not pass, with what was wrong.
    """
    canary = production.canaries.setdefault(engine_name(lane), Canary())
    async with canary.lock:
        if canary.lines is not None and canary.lines < CANARY_LINES:
            canary.lines += 1
            return
        started = time.monotonic()
        try:
            await check_canary.with_options(retry_delay_seconds=delays())(step.key, lane.name)
        finally:
            async with production.changing() as batch:
                batch.charge(None, lane, time.monotonic() - started)
        canary.lines = 1


@task(name="check_canary", task_run_name="canary {lane_name}", **RETRIED)
async def check_canary(key: str, lane_name: str) -> None:
    """Listens to the sentence up to three times; raises HostFault where none of them passes."""
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    inputs, client = step.inputs, production.clients[engine_name(lane)]
    assert isinstance(inputs, SpeechInputs)
    assert isinstance(client, CosyVoice)
    text = SENTENCES.get(primary(inputs.language), inputs.voice.transcript)
    profile = await asyncio.to_thread(production.profile, inputs.voice)
    reasons: list[str] = []
    for _ in range(TRIES):
        try:
            recording = await client.synthesize(speech_request(inputs, text, step.seconds))
        except BadOutput as error:
            reasons.append(reason_of(error))
            continue
        line = Line(text, client.sample_rate, inputs.speed, profile)
        faults = [str(check) for check in await asyncio.to_thread(_checks, recording, line) if not check.ok]
        if not faults:
            return
        reasons.append("; ".join(faults))
    raise HostFault(f"{engine_name(lane)}: its canary failed {TRIES} times: {reasons[-1]}")


def _checks(recording: Recording, line: Line) -> list[Check]:
    samples = np.frombuffer(recording.pcm, "<i2").astype(np.float32) / np.float32(32768)
    return check_line(Sound(samples, recording.sample_rate), line)
