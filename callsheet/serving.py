"""The child's side of a server that is started for a run: says where it listens, ends with its parent.

    await serve(app, listen(port=0), with_parent=True)

One line of JSON on standard output, ``{"url": "http://127.0.0.1:43211"}``, says that connections are
accepted. Standard input is a pipe whose other end the parent holds: however the parent ends, SIGKILL
included, the pipe closes, and so does the server. The parent's side is `callsheet.process`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

#: How long a server that was told to stop may take before it is ended as it stands, in seconds.
_GRACE_SECONDS = 3.0


def listen(port: int = 0) -> socket.socket:
    """A socket on 127.0.0.1; port 0 takes a free one.

    It is named TCP, which `socket.create_server` leaves out: asyncio turns Nagle's algorithm off on connections of
    such sockets alone, and with it every answer comes 40 ms late.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def serve(
    app: Any, listener: socket.socket, *, with_parent: bool, started: Callable[[], None] | None = None
) -> None:
    """Serves ``app`` until a signal, or the end of standard input where ``with_parent`` is set.

    ``started`` is called once connections are accepted.
    """
    server = _AnnouncedServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    server.on_start = started
    if with_parent:
        threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
    await server.serve(sockets=[listener])


class _AnnouncedServer(uvicorn.Server):
    on_start: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and self.started:
            print(json.dumps({"url": url_of(sockets[0])}), flush=True)
            if self.on_start is not None:
                self.on_start()


def _stop_with_parent(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True
    # A shutdown that hangs must not outlive the parent either.
    reaper = threading.Timer(_GRACE_SECONDS, os._exit, args=(1,))
    reaper.daemon = True
    reaper.start()
