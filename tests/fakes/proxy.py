"""A proxy on 127.0.0.1 that behaves as bad links and bad servers do, in front of a server that is well.

    with FaultyProxy("http://127.0.0.1:8000") as proxy:
        proxy.fail("/inference_zero_shot", "cut", times=1)
        ...                                   # a client talks to proxy.url
        proxy.count("/inference_zero_shot")   # how often it was asked

Real sockets, real bytes: a cut body is half of what the server really sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.fakes.background import BackgroundServer

Fault = Literal[
    "cut", "empty", "silence", "reset", "hang", "500", "502", "503", "429", "done, then reset", "done, then hang",
    "one byte wrong", "keys expired", "clock skewed", "echo", "S3 echo",
]  # fmt: skip
#: S3's refusals: status, code, message.
_REFUSALS = {
    "keys expired": (403, "ExpiredToken", "The provided token has expired."),
    "clock skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the time is too large.",
    ),
}


@dataclass
class _Rule:
    path: str
    fault: Fault
    times: int
    after: int


class FaultyProxy(BackgroundServer):
    """Forwards HTTP requests, one to a connection, but for those that a rule spoils."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._rules: list[_Rule] = []
        self._held = ""
        self._released = asyncio.Event()
        #: What a request must hold to be let through; nothing where empty.
        self.token = ""
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        super().__init__()

    def fail(self, path: str, fault: Fault, times: int = 1, after: int = 0) -> None:
        """Spoils ``times`` requests whose path contains ``path``, once ``after`` of them have passed."""
        self._rules.append(_Rule(path, fault, times, after))

    def hold(self, path: str) -> None:
        """Lets requests of this path wait until `release`, or the end."""
        self._held, self._released = path, asyncio.Event()

    def release(self) -> None:
        self._held = ""
        self._loop.call_soon_threadsafe(self._released.set)

    def fail_no_more(self) -> None:
        self._rules.clear()

    def count(self, path: str, method: str = "") -> int:
        """How many requests of this path (and method) came in."""
        return sum(path in line and line.startswith(method) for line in self.requests)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            if b"expect: 100-continue" in head.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(length)
            line = head.split(b"\r\n", 1)[0].decode()
            self.requests.append(line)
            self.bodies.append(body)
            if self._held and self._held in line:
                await self._released.wait()
            if self.token.encode() not in head:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            await self._answer(self._fault_for(line), head, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _fault_for(self, line: str) -> Fault | None:
        for rule in self._rules:
            if rule.after and rule.path in line:
                rule.after -= 1
            elif rule.times and rule.path in line:
                rule.times -= 1
                return rule.fault
        return None

    async def _answer(
        self, fault: Fault | None, head: bytes, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if fault in ("done, then hang", "done, then reset"):
            await self._forward(head, body)
        if fault in ("hang", "done, then hang"):
            await asyncio.Event().wait()
        elif fault in ("reset", "done, then reset"):
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()
        elif (answer := _instead(fault, head)) is not None:
            writer.write(answer)
        else:
            writer.write(_spoilt(fault, await self._forward(head, body)))
        if not writer.transport.is_closing():
            await writer.drain()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        dropped = (b"connection:", b"expect:")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(dropped)]
        lines.insert(1, b"Connection: close")
        writer.write(b"\r\n".join(lines) + body)
        answer = await reader.read()
        writer.close()
        return answer


def _instead(fault: Fault | None, head: bytes) -> bytes | None:
    """What is answered without asking the server; None where it is asked."""
    if fault == "echo":  # as debug pages of servers and proxies do
        lines = b" | ".join(line for line in head.split(b"\r\n") if b":" in line or b"?" in line)
        return b"HTTP/1.1 500 Broken\r\nConnection: close\r\n\r\n" + lines
    if fault == "S3 echo":
        said = next(line for line in head.decode().split("\r\n") if line.startswith("Authorization"))
        return _refusal(400, "InvalidRequest", said)
    if fault == "empty":
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    if fault == "silence":
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(2 * 48_000)
    if fault in ("500", "502", "503", "429"):
        return f"HTTP/1.1 {fault} Broken\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry".encode()
    return _refusal(*_REFUSALS[fault]) if fault in _REFUSALS else None


def _spoilt(fault: Fault | None, answer: bytes) -> bytes:
    if fault == "cut":
        start = answer.index(b"\r\n\r\n") + 4
        return answer[: start + (len(answer) - start) // 2]
    if fault == "one byte wrong":
        return answer[:-1] + bytes([answer[-1] ^ 1])
    return answer


def _refusal(status: int, code: str, message: str) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    head = [
        f"HTTP/1.1 {status} Refused",
        "Content-Type: application/xml",
        f"Content-Length: {len(body)}",
        "Date: Sat, 21 Nov 2026 08:00:00 GMT",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", body]).encode()
