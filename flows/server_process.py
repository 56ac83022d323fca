"""The process of our own Prefect server; `flows.server` starts it and it ends with its parent.

    python -m flows.server_process [PORT]

It says where it listens in a line of JSON; without a port it takes a free one.

Prefect reads its settings when it is imported, so they are put into the environment first.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from callsheet.home import callsheet_home
from callsheet.serving import listen, serve, url_of
from flows.garbage import collect_apart

_THIS_MACHINE = ("127.0.0.1", "localhost")
#: What Prefect answers when SQLite was busy with another writer.
SERVICE_UNAVAILABLE = 503


def home() -> Path:
    """Where the server keeps its database."""
    return callsheet_home() / "prefect"


class AskedAgain:
    """Puts a request to the API again where SQLite was busy with another writer, whose 503 changed nothing.

    A transaction that read before another wrote is refused at once, whatever the time SQLite may wait. A client
    would pause two seconds and more at each such answer and give up at the sixth; the next attempt here succeeds
    within milliseconds, but for a burst of writes.
    """

    def __init__(self, app: ASGIApp, patience: float = 10.0) -> None:
        self.app = app
        self.patience = patience  # seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await _whole(receive)
        give_up = asyncio.get_running_loop().time() + self.patience
        refused = True
        while refused:
            last = asyncio.get_running_loop().time() >= give_up
            refused = await self._was_refused(scope, _repeated(body, receive), send, last)
            if last:
                return
            if refused:
                await asyncio.sleep(random.uniform(0.02, 0.1))

    async def _was_refused(self, scope: Scope, receive: Receive, send: Send, last: bool) -> bool:
        refused = False

        async def told(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] == SERVICE_UNAVAILABLE
            if last or not refused:
                await send(message)

        try:
            # What the attempt notes in the scope, such as its route, must not meet the next one.
            await self.app(dict(scope), receive, told)
        except Exception:
            # Starlette raises again what it has answered for.
            if last or not refused:
                raise
        return refused


class OnlyFromHere:
    """Refuses what a page of another site asks for through somebody's browser.

    Whoever may start a run may say which command its worker executes, and a page may send what the server takes for JSON without
    asking it first. So a Host that is not this machine (a name that was made to lead here) and an Origin that is not this
    server get 403. Programs send no Origin.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.origins = {f"http://{name}:{port}" for name in _THIS_MACHINE}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._is_from_here(Headers(scope=scope)):
            if scope["type"] == "http":
                await PlainTextResponse("only for pages of this server", 403)(scope, receive, send)
            else:
                await WebSocketClose()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_from_here(self, headers: Headers) -> bool:
        # The port may be another one: that of a tunnel.
        host, origin = headers.get("host", ""), headers.get("origin")
        is_ours = origin is None or origin in {*self.origins, f"http://{host}"}
        return is_ours and host.rpartition(":")[0] in _THIS_MACHINE


async def _whole(receive: Receive) -> list[Message]:
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _repeated(body: list[Message], receive: Receive) -> Receive:
    """The body once more, then what the connection itself says, which is that it ended."""
    left = iter(body)

    async def take() -> Message:
        return next(left, None) or await receive()

    return take


def main() -> None:
    """Serves the API, the services and the UI on 127.0.0.1."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    listener = listen(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    port = listener.getsockname()[1]
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(
        PREFECT_HOME=str(folder),
        PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{folder}/prefect.db",
        PREFECT_UI_API_URL=f"{url_of(listener)}/api",
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
        # A lane that waits for a slot asks again after a second; Prefect's own pauses are 10 and 30.
        PREFECT_SERVER_TASKS_TAG_CONCURRENCY_SLOT_WAIT_SECONDS="1",
        PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS="1",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_LOGGING_LEVEL="ERROR",
        PREFECT_LOGGING_LEVEL="ERROR",
        DO_NOT_TRACK="1",
    )
    # Two first starts at once would both try to make the database.
    with (folder / "starting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        from prefect.server.api.server import create_app  # noqa: PLC0415  after the settings

        app = create_app(final=True)

        def started() -> None:
            fcntl.flock(lock, fcntl.LOCK_UN)
            collect_apart()

        asyncio.run(serve(OnlyFromHere(AskedAgain(app), port), listener, with_parent=True, started=started))


if __name__ == "__main__":
    main()
