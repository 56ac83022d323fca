"""Narrations as they are heard: a speech take, edited for the shot that uses it."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import numpy as np
import soundfile

from callsheet.media.audio import read_sound
from callsheet.media.narration import edit
from tasks.production import Production


async def narration(production: Production, key: str, pauses: tuple[float, ...]) -> Path:
    """The speech take ``key``, trimmed, levelled and with the script's pauses, as a WAV file of its own rate."""
    take = production.batch.takes[key].take
    mark = hashlib.sha256(f"{take.file} {pauses}".encode()).hexdigest()[:24]
    target = production.scratch / f"narration-{mark}.wav"
    if not target.exists():
        source = await production.local(take.file)

        def write() -> None:
            sound = edit(read_sound(source), take.pieces, pauses)
            part = target.with_suffix(f".{uuid.uuid4().hex}.part")
            samples = np.clip(sound.samples, -1.0, 1.0)
            soundfile.write(str(part), samples, sound.rate, subtype="PCM_16", format="WAV")
            part.replace(target)

        await asyncio.to_thread(write)
    return target
