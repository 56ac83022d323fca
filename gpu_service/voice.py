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
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from callsheet.media.audio import Sound, resample
from callsheet.text import is_speakable, speech_seconds

#: What CosyVoice 2 and 3 and LightTTS send, in Hz.
SAMPLE_RATE = 24_000
_ESPEAK_RATE = 22_050
_PEAK = 0.7
#: Pitch of espeak-ng's male and female variant at its pitch settings 0 and 99, in Hz (measured with en-us).
_MALE, _FEMALE = (72.0, 172.0), (154.0, 345.0)
#: Above this median a voice is spoken with the female variant, in Hz.
_FEMALE_FROM = 160.0
#: Words per minute at which espeak-ng takes as long as `speech_seconds` says.
_NATURAL_RATE = {"en-us": 120, "cmn": 180, "ja": 165, "ko": 165}
_SCRIPTS = (("ja", re.compile(r"[぀-ヿ]")), ("ko", re.compile(r"[가-힯]")), ("cmn", re.compile(r"[一-鿿]")))
_LANGUAGES = {"en-us": "en", "cmn": "zh", "ja": "ja", "ko": "ko"}


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
    return Prompt(sound.seconds, end - start, _median_pitch(sound))


async def speak_like(prompt: Prompt, text: str, *, transcript: str, speed: float = 1.0) -> bytes:
    """``text`` as 16-bit mono PCM of 24 kHz; empty where there is nothing to say, as the real servers do."""
    if not is_speakable(text):
        return b""
    voice = next((name for name, letters in _SCRIPTS if letters.search(text)), "en-us")
    lowest, highest = _FEMALE if prompt.pitch > _FEMALE_FROM else _MALE
    pitch = 99 * math.log(max(prompt.pitch, 1) / lowest) / math.log(highest / lowest)
    spoken = await _espeak(
        text=text,
        voice=voice + ("+f3" if lowest == _FEMALE[0] else "+m3"),
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
    voice = next((name for name, letters in _SCRIPTS if letters.search(transcript)), "en-us")
    return min(1.4, max(0.75, speech_seconds(transcript, _LANGUAGES[voice]) / prompt.spoken_seconds))


def _median_pitch(sound: Sound) -> float:
    """Median fundamental frequency of the voiced parts in Hz; 120 where there are none."""
    pitches = [pitch for frame in _voiced_frames(sound) if (pitch := _pitch(frame, sound.rate))]
    return float(np.median(pitches)) if pitches else 120.0


def _voiced_frames(sound: Sound) -> Iterator[npt.NDArray[np.float32]]:
    size = int(0.04 * sound.rate)
    for start in range(0, len(sound.samples) - size, size):
        frame = sound.samples[start : start + size]
        if float(np.sqrt((frame**2).mean())) > 0.02:
            yield frame - frame.mean()


def _pitch(frame: npt.NDArray[np.float32], rate: int) -> float | None:
    """The strongest period between 60 and 450 Hz, where the frame is periodic at all."""
    correlation = np.correlate(frame, frame, "full")[len(frame) - 1 :]
    shortest, longest = int(rate / 450), int(rate / 60)
    lag = shortest + int(correlation[shortest:longest].argmax())
    return rate / lag if correlation[lag] > 0.4 * correlation[0] else None


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
