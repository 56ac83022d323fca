"""Clients of zero-shot speech servers: CosyVoice and LightTTS.

Both take a multipart ``POST /inference_zero_shot`` and answer raw 16-bit mono PCM with neither header
nor length, so nothing they send can be told from half of it but by listening: whoever calls this
checks the recording (`callsheet.media.audio`).

    async with LightTTS("http://127.0.0.1:8080", name="a10-1/lighttts") as server:
        recording = await server.synthesize(SpeechRequest(...))
        recording.save(Path("take.wav"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import soundfile
from pydantic import SecretStr

from callsheet.engines.http import open_client, refuse, translated_faults, waiting
from callsheet.errors import HostFault, HostLacks, Transient

CosyVoiceModel = Literal["cosyvoice", "cosyvoice2", "cosyvoice3"]

#: Rates of what the servers send, in Hz (facts, 0.6); nothing in the answer tells them.
SAMPLE_RATES: dict[CosyVoiceModel, int] = {"cosyvoice": 22_050, "cosyvoice2": 24_000, "cosyvoice3": 24_000}
#: CosyVoice 3 asserts this mark in the prompt's text; zero-shot mode wants it before the transcript (facts, 1.1).
COSYVOICE3_PREFIX = "You are a helpful assistant.<|endofprompt|>"
#: The shortest wait for the next byte, and how many times the expected engine time it is for long
#: texts. LightTTS may lose a request slot when a client leaves early, so this is never short.
WAIT_SECONDS = 60.0
WAIT_FACTOR = 10.0


@dataclass(frozen=True)
class SpeechRequest:
    """One line to be spoken.

    Attributes:
        text: normalised.
        prompt_text: word for word what the reference recording says.
        prompt_audio: the reference recording; its bytes are sent as they are.
        expected_seconds: about how long the engine will take.
    """

    text: str
    prompt_text: str
    prompt_audio: Path
    speed: float = 1.0
    expected_seconds: float = 10.0


@dataclass(frozen=True)
class Recording:
    """What a server sent: 16-bit little-endian mono PCM."""

    pcm: bytes
    sample_rate: int

    def save(self, path: Path) -> None:
        """Writes a WAV file."""
        soundfile.write(
            str(path), np.frombuffer(self.pcm, dtype="<i2"), self.sample_rate, subtype="PCM_16", format="WAV"
        )


class CosyVoice:
    """The FastAPI server of CosyVoice's own repository (``runtime/python/fastapi``)."""

    def __init__(
        self, url: str, *, name: str, model: CosyVoiceModel = "cosyvoice2", token: SecretStr | None = None
    ) -> None:
        self.name = name
        self.model = model
        self._http = open_client(url, token)

    async def ready(self) -> None:
        """Raises where the server is not there or serves something else. Costs it nothing."""
        with translated_faults(self.name):
            answer = await self._http.get("/openapi.json")
            await refuse(self.name, answer)
            if "/inference_zero_shot" not in answer.text:
                raise HostFault(f"{self.name}: serves no /inference_zero_shot")

    async def synthesize(self, request: SpeechRequest) -> Recording:
        """Speaks one line.

        Raises:
            Transient, Unreachable: the connection or the body broke, nothing came, or the server failed.
            BadInput: the server refused the request.
        """
        prefix = COSYVOICE3_PREFIX if self.model == "cosyvoice3" else ""
        fields = {"tts_text": request.text, "prompt_text": prefix + request.prompt_text}
        return Recording(await self._post(request, fields), SAMPLE_RATES[self.model])

    async def _post(self, request: SpeechRequest, fields: dict[str, str]) -> bytes:
        upload = {"prompt_wav": (request.prompt_audio.name, request.prompt_audio.read_bytes(), "audio/wav")}
        timeout = waiting(max(WAIT_SECONDS, WAIT_FACTOR * request.expected_seconds))
        pcm = bytearray()
        with translated_faults(self.name):
            async with self._http.stream(
                "POST", "/inference_zero_shot", data=fields, files=upload, timeout=timeout
            ) as answer:
                await refuse(self.name, answer)
                async for chunk in answer.aiter_bytes():
                    pcm += chunk
        if not pcm:
            raise Transient(f"{self.name}: answered 200 with an empty body")
        if len(pcm) % 2:
            raise Transient(
                f"{self.name}: answered {len(pcm)} bytes, which is no whole number of 16-bit samples"
            )
        return bytes(pcm)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()


class LightTTS(CosyVoice):
    """LightTTS, which speaks CosyVoice's protocol with a model name, a speed, and 24 kHz for every model."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        model: CosyVoiceModel = "cosyvoice2",
        style: str = "default",
        token: SecretStr | None = None,
    ) -> None:
        super().__init__(url, name=name, model=model, token=token)
        self.style = style

    async def ready(self) -> None:
        """Raises where the server is not there or has not the style: an unknown one costs it a request slot."""
        with translated_faults(self.name):
            answer = await self._http.get("/query_tts_model")
            await refuse(self.name, answer)
            styles = answer.json().get("tts_models", [])
        if not styles or (self.style != "default" and self.style not in styles):
            raise HostLacks(
                f"{self.name}: has the styles {', '.join(styles) or 'none'}; {self.style} was asked for"
            )

    async def synthesize(self, request: SpeechRequest) -> Recording:
        """As `CosyVoice.synthesize`, with the request's speed."""
        prefix = COSYVOICE3_PREFIX if self.model == "cosyvoice3" else ""
        fields = {
            "tts_text": request.text,
            "prompt_text": prefix + request.prompt_text,
            "stream": "false",
            "tts_model_name": self.style,
            "speed": str(request.speed),
        }
        return Recording(await self._post(request, fields), 24_000)
