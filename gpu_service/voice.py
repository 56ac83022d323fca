"""The draft voice: espeak-ng, with pitch and pace taken from the reference recording.

    prompt = read_prompt(Path("anna.wav").read_bytes())
    pcm = await speak_like(prompt, "The lamp was lit.", transcript="…", speed=1.0)

It clones nothing; it makes two voices sound different, and the same voice the same each time.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import sys
from dataclasses import dataclass

import numpy as np
import soundfile

from callsheet.media.audio import Sound, resample
from callsheet.text import is_speakable, speech_seconds

#: What CosyVoice 2 and 3 and LightTTS send, in Hz.
SAMPLE_RATE = 24_000
_ESPEAK_RATE = 22_050
_PEAK = 0.7
#: Pitch of espeak-ng's male and female variant at its pitch settings 0 and 99, in Hz, as `Sound.pitch` hears it.
_MALE = {"en-us": (76.0, 176.0), "cmn": (67.0, 152.0)}
_FEMALE = {"en-us": (151.0, 345.0), "cmn": (92.0, 285.0)}
#: Above this median a voice is spoken with the female variant, in Hz.
_FEMALE_FROM = 140.0
#: Of a recording whose pitch cannot be told, in Hz.
_UNKNOWN_PITCH = 120.0
#: Words per minute at which espeak-ng takes as long as `speech_seconds` says.
_NATURAL_RATE = {"en-us": 120, "cmn": 180, "ja": 165, "ko": 165}
_SCRIPTS = (("ja", re.compile(r"[぀-ヿ]")), ("ko", re.compile(r"[가-힯]")), ("cmn", re.compile(r"[一-鿿]")))


@dataclass(frozen=True)
class Prompt:
    """A reference recording: its length, how much of it is speech (seconds), and its median pitch in Hz."""

    seconds: float
    spoken_seconds: float
    pitch: float


class BadPrompt(Exception):
    """The recording cannot be read, or its rate is too low."""


def read_prompt(content: bytes) -> Prompt:
    """Listens to a reference recording. Raises BadPrompt as the real servers' loaders do."""
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadPrompt(f"audio file format is incorrect: {error}") from None
    if rate < 16_000:
        raise BadPrompt(f"audio file format is incorrect: {rate} Hz, wav sample rate must be at least 16000")
    sound = Sound(samples.mean(axis=1, dtype=np.float32), rate)
    start, end = sound.spoken() if len(samples) else (0.0, 0.0)
    return Prompt(sound.seconds, end - start, sound.pitch() or _UNKNOWN_PITCH)


async def speak_like(prompt: Prompt, text: str, *, transcript: str, speed: float = 1.0) -> bytes:
    """``text`` as 16-bit mono PCM of 24 kHz; empty where there is nothing to say, as the real servers do."""
    if not is_speakable(text):
        return b""
    voice = next((name for name, letters in _SCRIPTS if letters.search(text)), "en-us")
    is_female = prompt.pitch > _FEMALE_FROM
    ranges = _FEMALE if is_female else _MALE
    lowest, highest = ranges.get(voice, ranges["en-us"])
    pitch = 99 * math.log(max(prompt.pitch, 1) / lowest) / math.log(highest / lowest)
    spoken = await _espeak(
        text=text,
        voice=voice + ("+f3" if is_female else "+m3"),
        rate=round(min(450, max(80, _NATURAL_RATE[voice] * _pace(prompt, transcript) * speed))),
        pitch=round(min(99, max(0, pitch))),
    )
    samples = np.asarray(np.frombuffer(spoken, "<i2") / 32768, np.float32)
    sound = resample(Sound(samples, _ESPEAK_RATE), SAMPLE_RATE)
    peak = float(np.abs(sound.samples).max(initial=1e-6))
    pcm: bytes = (sound.samples * (_PEAK / peak) * 32767).round().astype("<i2").tobytes()
    return pcm


def _pace(prompt: Prompt, transcript: str) -> float:
    """How fast the reference speaks, 1 being an unhurried narrator; kept within what stays intelligible."""
    if not transcript or prompt.spoken_seconds < 0.5:
        return 1.0
    return min(1.4, max(0.75, speech_seconds(transcript) / prompt.spoken_seconds))


async def _espeak(**request: object) -> bytes:
    """Speaks in a process of its own, because the library is neither thread-safe nor repeatable within one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpu_service.speak",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        pcm, stderr = await process.communicate(json.dumps(request).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or not pcm:
        raise RuntimeError(f"espeak-ng failed: {stderr.decode(errors='replace')[-300:]}")
    return pcm
