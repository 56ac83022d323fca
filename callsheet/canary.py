"""The canary: one known sentence that tells whether a speech server speaks.

    heard = await listen(client, voice, profile)
    heard.faults, heard.real_time_factor

A server can list its models, answer 200, and speak at the wrong rate, in silence or for ever; its own
``/health`` may say ok to all of that. Only a sentence that is listened to tells.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from callsheet.engines.requests import speech_request
from callsheet.engines.speech import CosyVoice
from callsheet.errors import BadOutput, reason_of
from callsheet.media.speech import Line, VoiceProfile, check_line
from callsheet.plan import SpeechInputs
from callsheet.text import primary, speech_seconds
from callsheet.voices import Voice

SENTENCES = {
    "en": "The canary sings one clear line before the work of the day begins.",
    "zh": "开工之前，先请金丝雀唱一句清楚的歌。",
    "de": "Der Kanarienvogel singt eine klare Zeile, bevor die Arbeit beginnt.",
    "fr": "Le canari chante une phrase claire avant que le travail commence.",
    "es": "El canario canta una frase clara antes de empezar el trabajo.",
    "ja": "仕事を始める前に、カナリアがはっきりと一節を歌います。",
    "ko": "일을 시작하기 전에 카나리아가 또렷하게 한 구절을 노래합니다.",
}


@dataclass(frozen=True)
class Heard:
    """What came of one sentence.

    Attributes:
        faults: the checks that it did not pass; empty where all is well.
        latency: seconds until the whole of it was there.
        seconds: of sound.
    """

    faults: tuple[str, ...]
    latency: float
    seconds: float

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of the server for a second of sound; None where there was none."""
        return self.latency / self.seconds if self.seconds else None


def sentence(voice: Voice) -> str:
    """The sentence in the voice's language; of a language without one, what its recording says."""
    return SENTENCES.get(primary(voice.language), voice.transcript)


async def listen(client: CosyVoice, voice: Voice, profile: VoiceProfile) -> Heard:
    """Lets a server say the sentence in this voice, and checks it.

    Raises:
        CallsheetError: it could not be asked, or did not answer.
    """
    text = sentence(voice)
    inputs = SpeechInputs((text,), voice.language, 1.0, voice)
    began = time.monotonic()
    try:
        recording = await client.synthesize(speech_request(inputs, text, speech_seconds(text)))
    except BadOutput as error:
        return Heard((reason_of(error),), time.monotonic() - began, 0.0)
    latency = time.monotonic() - began
    line = Line(text, client.sample_rate, profile=profile)
    checks = await asyncio.to_thread(check_line, recording.sound, line)
    return Heard(tuple(str(check) for check in checks if not check.ok), latency, recording.seconds)
