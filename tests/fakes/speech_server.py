"""A speech server on 127.0.0.1 that speaks CosyVoice's and LightTTS's protocol, with every fault of theirs.

    with SpeechServer() as server:
        server.fail("cut", times=2)
        ...                                  # a client talks to server.url
        server.requests[0].text

What it says is a buzz in syllables, as long as the text takes and as high as the prompt, with a little
noise, so that no two answers are the same. The text's checksum is in the lowest bits of the first
samples: `said` reads it back, so a test can tell whose words a file holds.

As a program it is the benchmark's server: ``python -m tests.fakes.speech_server --cost 0.02``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Literal

import numpy as np

from callsheet.text import speech_seconds
from tests.fakes.background import BackgroundServer

Fault = Literal[
    "cut", "empty", "odd", "tiny", "runaway", "endless", "silence", "wrong_rate", "wraps", "clipped",
    "hang", "hang_middle", "drip", "reset", "500", "417", "422", "404", "twin", "other_words",
]  # fmt: skip
FAULTS: tuple[Fault, ...] = (
    "cut", "empty", "odd", "tiny", "runaway", "silence", "wrong_rate", "wraps", "clipped", "hang", "hang_middle",
    "reset", "500",
)  # fmt: skip
RATE = 24_000
_MARK_BITS = 32


@dataclass
class Spoken:
    """A request that came in, the fault it met, and when it began and was over, by `time.monotonic`."""

    path: str
    fields: dict[str, str]
    prompt_bytes: int
    fault: Fault | None = None
    began: float = field(default_factory=time.monotonic)
    ended: float = math.inf

    @property
    def text(self) -> str:
        return self.fields.get("tts_text", "").rpartition("<|endofprompt|>")[2]


@dataclass
class SpeechServer(BackgroundServer):
    """Serves until the block ends.

    Attributes:
        pitch: of what it says, in Hz; give the prompt's.
        cost: seconds of work for a second of audio.
        styles: what /query_tts_model lists.
        choose: the fault of a request; None for none. `fail` sets a plan of its own.
    """

    pitch: float = 180.0
    cost: float = 0.0
    styles: tuple[str, ...] = ("default",)
    choose: Callable[[Spoken], Fault | None] | None = None
    requests: list[Spoken] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._planned: list[tuple[Fault, str]] = []
        self._twins: list[tuple[asyncio.Event, bytes]] = []
        self._sounds: dict[str, np.ndarray] = {}
        self._random = random.Random(1)
        super().__init__()

    def fail(self, fault: Fault, times: int = 1, text: str = "") -> None:
        """The next ``times`` requests whose text contains ``text`` meet ``fault``."""
        self._planned += [(fault, text)] * times

    def texts(self) -> list[str]:
        return [request.text for request in self.requests]

    # The protocol ---------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request of a connection; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        method, path, _ = line.decode().split(" ")
        headers = BytesParser(policy=HTTP).parsebytes(rest)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        goes_on = headers.get("connection", "") != "close"
        if method == "GET":
            await self._get(path, writer)
            return goes_on
        request = Spoken(path, *_form(headers["content-type"], body))
        request.fault = self._fault_of(request)
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._speak(request, writer) and goes_on
        finally:
            self.in_flight -= 1
            request.ended = time.monotonic()

    async def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        answers = {
            "/query_tts_model": {"tts_models": list(self.styles)},
            "/openapi.json": {"paths": {"/inference_zero_shot": {}, "/inference_cross_lingual": {}, "/inference_instruct2": {}}},
        }  # fmt: skip
        content = json.dumps(answers.get(path, {})).encode()
        await _send(writer, b"200 OK" if path in answers else b"404 Not Found", content)

    def _fault_of(self, request: Spoken) -> Fault | None:
        for number, (fault, text) in enumerate(self._planned):
            if text in request.text:
                del self._planned[number]
                return fault
        return self.choose(request) if self.choose else None

    async def _speak(self, request: Spoken, writer: asyncio.StreamWriter) -> bool:  # noqa: C901  a table of faults
        fault, text = request.fault, request.text
        if fault in ("500", "417", "422", "404"):
            body = {
                "417": {"message": "input is too long"},
                "422": {"detail": [{"loc": ["body", "prompt_text"]}]},
            }
            await _send(writer, f"{fault} Sorry".encode(), json.dumps(body.get(fault, {})).encode())
            return True
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.Event().wait()
        pcm = self._pcm(text, request, fault)
        if self.cost:
            await asyncio.sleep(self.cost * len(pcm) / 2 / RATE)
        if fault == "twin":
            pcm = await self._twin(pcm)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if fault == "hang_middle":
            await _chunk(writer, pcm[: len(pcm) // 2 // 2 * 2])
            await asyncio.Event().wait()
        if fault == "cut":
            await _chunk(writer, pcm[: len(pcm) // 2 // 2 * 2])
            return False
        if fault == "drip":
            for at in range(0, len(pcm), 64):
                await _chunk(writer, pcm[at : at + 64])
                await asyncio.sleep(0.02)
        elif fault == "endless":
            while True:
                await _chunk(writer, pcm)
        else:
            for at in range(0, len(pcm), 96_000):
                await _chunk(writer, pcm[at : at + 96_000])
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _twin(self, pcm: bytes) -> bytes:
        """Waits for another request with this fault, and both get what the first would have got."""
        if self._twins:
            event, first = self._twins.pop()
            event.set()
            return first
        event = asyncio.Event()
        self._twins.append((event, pcm))
        await event.wait()
        return pcm

    # The voice ------------------------------------------------------------------------------------

    def _pcm(self, text: str, request: Spoken, fault: Fault | None) -> bytes:
        if fault == "empty" or not any(c.isalnum() for c in text):
            return b""
        if fault == "other_words":
            text = text + " and many more words that nobody asked for, on and on, to the end of the day" * 2
        speed = float(request.fields.get("speed", 1))
        seconds = speech_seconds(text, speed)
        rate = 16_000 if fault == "wrong_rate" else RATE
        if fault in ("tiny", "runaway"):
            seconds = 0.16 if fault == "tiny" else 60.0
        sound = self._sounds.get(text) if not fault else None
        if sound is None:
            sound = buzz(seconds, self.pitch, rate, level=self._random.uniform(0.25, 0.3))
            if not fault:
                self._sounds[text] = sound
        noise = np.roll(_NOISE, self._random.randrange(len(_NOISE)))
        sound = sound + np.resize(noise, len(sound))
        if fault == "silence":
            sound = sound * 1e-4
        if fault == "clipped":
            sound = np.clip(sound * 8, -1, 1)
        samples = sound * 32767 * (4.5 if fault == "wraps" else 1)
        pcm = samples.astype(np.int64).astype(np.int16)  # wraps around as the server's own conversion does
        if fault in ("clipped",):
            pcm = np.clip(samples, -32768, 32767).astype(np.int16)
        _mark(pcm, text)
        return pcm.tobytes() + (b"\0" if fault == "odd" else b"")


_NOISE = np.random.default_rng(1).normal(0, 3e-4, 48_000)


def buzz(seconds: float, pitch: float, rate: int = RATE, level: float = 0.27) -> np.ndarray:
    """Something of the form of speech: harmonics in syllables, five a second, with a short rest at the end of each."""
    at = np.arange(max(_MARK_BITS, int(seconds * rate))) / rate
    voice = sum(np.sin(2 * np.pi * pitch * n * at) / n for n in range(1, 9))
    syllables = 0.15 + 0.85 * np.abs(np.sin(2 * np.pi * 2.5 * at))
    edges = np.clip(np.minimum(at, at[-1] - at) / 0.02, 0, 1)
    return level * voice * syllables * edges


def _mark(pcm: np.ndarray, text: str) -> None:
    """Writes the text's checksum into the lowest bits of the first samples."""
    bits = np.array([zlib.crc32(text.encode()) >> n & 1 for n in range(_MARK_BITS)], np.int16)
    pcm[:_MARK_BITS] = (pcm[:_MARK_BITS] & ~np.int16(1)) | bits


def said(pcm: np.ndarray) -> int:
    """The checksum of the text that these 16-bit samples are of; compare with ``zlib.crc32(text.encode())``."""
    return int(sum(int(bit & 1) << n for n, bit in enumerate(pcm[:_MARK_BITS])))


def _form(content_type: str, body: bytes) -> tuple[dict[str, str], int]:
    """The fields of a multipart form, and the size of its file."""
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    fields, size = {}, 0
    for part in message.iter_parts():  # type: ignore[attr-defined]
        content = part.get_payload(decode=True)
        if part.get_filename():
            size = len(content)
        else:
            fields[str(part.get_param("name", header="content-disposition"))] = content.decode()
    return fields, size


async def _send(writer: asyncio.StreamWriter, status: bytes, content: bytes) -> None:
    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: ")
    writer.write(str(len(content)).encode() + b"\r\n\r\n" + content)
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
    await writer.drain()


def main() -> None:
    """Serves until standard input closes; prints its address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", type=float, default=0.0)
    parser.add_argument("--pitch", type=float, default=180.0)
    options = parser.parse_args()
    with SpeechServer(pitch=options.pitch, cost=options.cost) as server:
        print(json.dumps({"url": server.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
