"""The process of our own Prefect server; `flows.server` starts it and it ends with its parent.

    python -m flows.server_process [PORT]

It says where it listens in a line of JSON; without a port it takes a free one.

Prefect reads its settings when it is imported, so they are put into the environment first.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callsheet.serving import listen, serve, url_of

#: What Prefect answers when SQLite was busy with another writer.
SERVICE_UNAVAILABLE = 503


def home() -> Path:
    """Where the server keeps its database."""
    base = os.environ.get("CALLSHEET_HOME")
    return (Path(base) if base else Path.home() / ".callsheet") / "prefect"


def _asked_again_soon(app: ASGIApp) -> ASGIApp:
    """Has clients ask again at once where SQLite was busy; without being told they wait two seconds."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == SERVICE_UNAVAILABLE:
                message["headers"] = [*message.get("headers", ()), (b"retry-after", b"0.1")]
            await send(message)

        await app(scope, receive, told)

    return answer


def main() -> None:
    """Serves the API, the services and the UI on 127.0.0.1."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    listener = listen(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
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
        started = lambda: fcntl.flock(lock, fcntl.LOCK_UN)  # noqa: E731
        asyncio.run(serve(_asked_again_soon(app), listener, with_parent=True, started=started))


if __name__ == "__main__":
    main()
