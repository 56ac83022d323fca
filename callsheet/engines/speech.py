"""Clients of zero-shot speech servers: CosyVoice and LightTTS.

Both take a multipart POST and answer raw 16-bit mono PCM with neither header nor length, so nothing
they send can be told from half of it but by listening: whoever calls this checks the recording
(`callsheet.media.speech`).

    async with LightTTS("http://127.0.0.1:8080", name="a10-1/lighttts") as server:
        recording = await server.synthesize(SpeechRequest(...))
    write_wav([recording], Path("take.wav"))
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import numpy as np
import soundfile
from pydantic import SecretStr

from callsheet.engines.flights import Flight, Flights
from callsheet.engines.http import open_client, refuse, text_of, translated_faults, waiting
from callsheet.engines.instructions import INSTRUCTIONS, SpeechMode
from callsheet.errors import BadInput, BadOutput, HostFault, HostLacks, Transient
from callsheet.fleet import CosyVoiceModel
from callsheet.media.audio import Sound
from callsheet.timing import scaled

#: Rates of what the servers send, in Hz (facts, 0.6); nothing in the answer tells them.
SAMPLE_RATES: dict[CosyVoiceModel, int] = {"cosyvoice": 22_050, "cosyvoice2": 24_000, "cosyvoice3": 24_000}
LIGHTTTS_SAMPLE_RATE = 24_000
#: CosyVoice 3 asserts the mark in the prompt or the text, and wants this before it (facts, 1.1).
END_OF_PROMPT = "<|endofprompt|>"
COSYVOICE3_SYSTEM = "You are a helpful assistant."
#: The shortest wait for the first byte, and how many times the expected engine time it is for long
#: texts. LightTTS may lose a request slot when a client leaves early, so this is never short.
WAIT_SECONDS = 60.0
WAIT_FACTOR = 10.0
#: How long nothing may come once something has come: a server sends one chunk per segment of the text.
STALL_SECONDS = 30.0
#: How many times the first byte's limit the whole answer may take: a server that drips is given up too.
WHOLE_FACTOR = 3.0


@dataclass(frozen=True)
class SpeechRequest:
    """One line to be spoken.

    Attributes:
        text: in words; at most what the engine speaks in one go.
        prompt_text: word for word what the reference recording says.
        prompt_audio: the reference recording; its bytes are sent as they are.
        mode: ``cross_lingual`` where the line's language is not the recording's; ``instruct2`` with an instruction.
        instruct: a name of `INSTRUCTIONS`, for ``instruct2``.
        speed: 1 is the voice's own pace; LightTTS alone has it.
        expected_seconds: about how long the engine will take.
        longest_seconds: more sound than this is no reading of the text, and is not waited for.
    """

    text: str
    prompt_text: str
    prompt_audio: Path
    mode: SpeechMode = "zero_shot"
    instruct: str = ""
    speed: float = 1.0
    expected_seconds: float = 10.0
    longest_seconds: float = 300.0


@dataclass(frozen=True)
class Recording:
    """What a server sent: 16-bit little-endian mono PCM.

    ``flight`` tells, once all requests that were under way at the same time are back, whether another
    text was answered with the same bytes.
    """

    pcm: bytes
    sample_rate: int
    flight: Flight

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.sample_rate

    @property
    def sound(self) -> Sound:
        """As samples."""
        samples = np.frombuffer(self.pcm, "<i2").astype(np.float32) / np.float32(32768)
        return Sound(samples, self.sample_rate)


def write_wav(recordings: Sequence[Recording], path: Path) -> None:
    """Writes recordings of one rate into one WAV file, one after the other, as they are."""
    samples = np.frombuffer(b"".join(recording.pcm for recording in recordings), dtype="<i2")
    soundfile.write(str(path), samples, recordings[0].sample_rate, subtype="PCM_16", format="WAV")


class CosyVoice:
    """The FastAPI server of CosyVoice's own repository (``runtime/python/fastapi``)."""

    def __init__(
        self, url: str, *, name: str, model: CosyVoiceModel = "cosyvoice2", token: SecretStr | None = None
    ) -> None:
        self.name = name
        self.model = model
        self._http = open_client(url, token)
        self._flights = Flights()

    @property
    def sample_rate(self) -> int:
        """Of what the server sends, in Hz."""
        return SAMPLE_RATES[self.model]

    async def ready(self) -> None:
        """Raises where the server is not there or serves something else. Costs it nothing.

        That it answers says no more than that its web server runs; only a canary tells that the model speaks.
        """
        with translated_faults(self.name):
            answer = await self._http.get("/openapi.json")
            await refuse(self.name, answer)
            if "/inference_zero_shot" not in answer.text:
                raise HostFault(f"{self.name}: serves no /inference_zero_shot")

    async def models(self) -> list[str]:
        """What the server says it has loaded; CosyVoice's own says nothing."""
        await self.ready()
        return []

    async def synthesize(self, request: SpeechRequest) -> Recording:
        """Speaks one line.

        Raises:
            Transient, Unreachable: the connection or the body broke, nothing came, or the server failed.
            BadInput: the server refused the request, or its model has not got this mode.
            BadOutput: it sends more sound than the text can take.
            HostLacks: it does not serve this mode.
        """
        if request.mode == "instruct2" and self.model == "cosyvoice":
            raise BadInput(f"{self.name}: the model cosyvoice takes no instruction; expected cosyvoice2 or 3")
        flight = self._flights.start(request.text)
        try:
            pcm = await self._post(request, f"/inference_{request.mode}", self._fields(request))
            flight.land(pcm)
        finally:
            flight.end()
        return Recording(pcm, self.sample_rate, flight)

    def _fields(self, request: SpeechRequest) -> dict[str, str]:
        is_3 = self.model == "cosyvoice3"
        system = COSYVOICE3_SYSTEM + END_OF_PROMPT if is_3 else ""
        if request.mode == "zero_shot":
            return {"tts_text": request.text, "prompt_text": system + request.prompt_text}
        if request.mode == "cross_lingual":
            return {"tts_text": system + request.text}
        instruction = INSTRUCTIONS[request.instruct]
        # The examples of CosyVoice 2 end with the mark too; without it the instruction is read aloud (facts, 1.1).
        told = (f"{COSYVOICE3_SYSTEM} " if is_3 else "") + instruction + END_OF_PROMPT
        return {"tts_text": request.text, "instruct_text": told}

    async def _post(self, request: SpeechRequest, path: str, fields: dict[str, str]) -> bytes:
        content = await asyncio.to_thread(request.prompt_audio.read_bytes)
        upload = {"prompt_wav": (request.prompt_audio.name, content, "audio/wav")}
        first = max(WAIT_SECONDS, WAIT_FACTOR * request.expected_seconds)
        with translated_faults(self.name):
            try:
                async with asyncio.timeout(scaled(WHOLE_FACTOR * first)) as limit:
                    async with self._http.stream(
                        "POST", path, data=fields, files=upload, timeout=waiting(first)
                    ) as answer:
                        if answer.status_code == httpx.codes.NOT_FOUND:
                            raise HostLacks(f"{self.name}: serves no {path}")
                        await refuse(self.name, answer)
                        pcm = await self._body(answer, request, limit)
            except TimeoutError:
                raise Transient(f"{self.name}: stopped in the middle of its answer") from None
        if not pcm:
            raise Transient(f"{self.name}: answered 200 with an empty body")
        if len(pcm) % 2:
            raise Transient(
                f"{self.name}: answered {len(pcm)} bytes, which is no whole number of 16-bit samples"
            )
        return pcm

    async def _body(self, answer: httpx.Response, request: SpeechRequest, limit: asyncio.Timeout) -> bytes:
        """The whole answer. Gives up where it stalls, or goes on past any reading of the text."""
        loop = asyncio.get_running_loop()
        end = limit.when() or float("inf")
        most = int(request.longest_seconds * self.sample_rate) * 2
        pcm = bytearray()
        async for chunk in answer.aiter_bytes():
            pcm += chunk
            if len(pcm) > most:
                raise BadOutput(
                    f"{self.name}: sent more than {request.longest_seconds:.1f} s for a text that takes less"
                )
            stall = scaled(max(STALL_SECONDS, WAIT_FACTOR * request.expected_seconds))
            limit.reschedule(min(end, loop.time() + stall))
        return bytes(pcm)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()


class LightTTS(CosyVoice):
    """LightTTS, which speaks CosyVoice's zero-shot protocol with a model name, a speed, and 24 kHz always.

    Its ``/health`` and ``/healthz`` speak a sentence, ``/liveness`` and ``/readiness`` say ok whatever is
    the matter; ``/query_tts_model`` is free and shows at least that the style is known.
    """

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

    @property
    def sample_rate(self) -> int:
        return LIGHTTTS_SAMPLE_RATE

    async def ready(self) -> None:
        """Raises where the server is not there or has not the style: an unknown one costs it a request slot."""
        styles = await self.models()
        if not styles or (self.style != "default" and self.style not in styles):
            raise HostLacks(
                f"{self.name}: has the styles {', '.join(styles) or 'none'}; {self.style} was asked for"
            )

    async def models(self) -> list[str]:
        with translated_faults(self.name):
            answer = await self._http.get("/query_tts_model")
            await refuse(self.name, answer)
            try:
                return [str(style) for style in json.loads(text_of(answer))["tts_models"]]
            except (ValueError, KeyError, TypeError):
                raise HostFault(f"{self.name}: /query_tts_model answered no list of models") from None

    def _fields(self, request: SpeechRequest) -> dict[str, str]:
        if request.mode != "zero_shot":
            raise BadInput(f"{self.name}: LightTTS has zero-shot alone; found {request.mode}")
        return {
            **super()._fields(request),
            "stream": "false",
            "tts_model_name": self.style,
            "speed": str(request.speed),
        }
