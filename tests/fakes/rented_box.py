"""What runs on a rented box: vast.ai's portal, which asks for the box's token, before a draft host.

    boxes = Boxes(vast, draft_host)        # every box of `vast` that runs is reached through a portal of its own
    boxes.portals[box.id].refused          # how many came without the token

A box that is destroyed answers no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.fakes.background import BackgroundServer
from tests.fakes.vast import Box, Vast

_PLACEHOLDER = b"HTTP/1.1 502 Bad Gateway\r\nX-Portal-Placeholder: true\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Portal(BackgroundServer):
    """Lets through what brings the token, web sockets too.

    Attributes:
        is_up: whether the engine behind it runs yet.
        passed, refused: connections.
    """

    def __init__(self, upstream: str, token: str) -> None:
        parts = urlsplit(upstream)
        self._upstream, self._token = (parts.hostname, parts.port), token
        self.is_up, self.passed, self.refused = True, 0, 0
        self._open: set[asyncio.Task[None] | None] = set()
        super().__init__()

    def cut(self) -> None:
        """The engine is gone, and with it every connection that it had."""

        def cut() -> None:
            for task in filter(None, self._open):
                task.cancel()

        self.is_up = False
        self._loop.call_soon_threadsafe(cut)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not self.is_up:
                writer.write(_PLACEHOLDER)
            elif f"authorization: bearer {self._token}".encode() not in head.lower():
                self.refused += 1
                writer.write(_UNAUTHORIZED)
            else:
                self.passed += 1
                await self._pass_on(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(asyncio.current_task())
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above = await asyncio.open_connection(*self._upstream)
        above.write(head)
        pipes = [
            asyncio.create_task(_pipe(reader, above)),
            asyncio.create_task(_pipe(above_reader, writer)),
        ]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            above.close()


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(65_536):
            target.write(chunk)
            await target.drain()
        target.write_eof()


class Boxes:
    """The portals of all boxes of a fake vast.ai that run."""

    def __init__(self, vast: Vast, upstream: str) -> None:
        self.portals: dict[int, Portal] = {}
        self._upstream = upstream
        vast.outside_port = self._port
        vast.was_destroyed = self._destroyed

    def _port(self, box: Box, inside: int) -> int:
        if box.id not in self.portals:
            self.portals[box.id] = portal = Portal(self._upstream, box.order["env"].get("WEB_PASSWORD", ""))
            portal.__enter__()
        return int(urlsplit(self.portals[box.id].url).port or 0)

    def _destroyed(self, box: Box) -> None:
        if portal := self.portals.get(box.id):
            portal.cut()

    def close(self) -> None:
        for portal in self.portals.values():
            portal.__exit__(None, None, None)
