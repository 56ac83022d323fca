"""A planned line as a request to a speech server."""

from __future__ import annotations

from callsheet.engines.speech import SpeechRequest
from callsheet.media.speech import longest_seconds
from callsheet.plan import SpeechInputs
from callsheet.text import speech_seconds


def speech_request(inputs: SpeechInputs, text: str, engine_seconds: float) -> SpeechRequest:
    """One piece of a narration, ``text``, as a server is asked for it; ``engine_seconds`` is the estimate for it."""
    return SpeechRequest(
        text=text,
        prompt_text=inputs.voice.transcript,
        prompt_audio=inputs.voice.prompt_audio.path,
        mode=inputs.mode,
        instruct=inputs.instruct,
        speed=inputs.speed,
        # The estimate may be of a faster card: never less than the text takes to say.
        expected_seconds=max(engine_seconds, speech_seconds(text, inputs.speed)),
        longest_seconds=longest_seconds(text, inputs.speed),
    )
