"""A full Prefect server of our own, for the length of a run, where none is configured.

    async with prefect_server() as ui:
        await produce(parameters)

The in-process server that Prefect would bring has no services, so it never gives back the slots of a
killed run; this one has, keeps its leases in files, and dies with the run. Its database stays in
``~/.callsheet/prefect`` (CALLSHEET_HOME), apart from any other Prefect of the machine.
A PREFECT_API_URL, in the environment or in Prefect's profile, is honoured, and no server is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from callsheet.process import served_by

DELIVERY_SECONDS = 10.0


@asynccontextmanager
async def prefect_server() -> AsyncIterator[str]:
    """The address of the Prefect UI; Prefect's settings point to its API while the block lasts."""
    configured = get_current_settings().api.url
    if configured:
        yield str(configured).removesuffix("/api")
        return
    async with served_by("flows.server_process") as url:
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            try:
                yield url
            finally:
                await deliver_what_is_queued()


async def deliver_what_is_queued() -> None:
    """Waits for the log and the events that Prefect's client still holds: without a server it would try for minutes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DELIVERY_SECONDS):
            await APILogHandler.aflush()
            drained = EventsWorker.drain_all()
            if inspect.isawaitable(drained):
                await drained
