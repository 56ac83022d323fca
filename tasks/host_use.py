"""Who uses a rented host: runs hold slots of its limit, and who gives it back holds them all.

    async with alone_with(host, locks) as is_ours:      # nobody works on it, nor begins to

Only runs of one Prefect server can tell by it (`server_id`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from callsheet.limits import USERS, host_limits, use_limit
from callsheet.timing import scaled
from tasks.locks import POLL_SECONDS, Lease, Locks
from tasks.shard_runs import forget_limits

#: What a server that is away ends a request with.
AWAY = (httpx.HTTPError, TimeoutError)


@asynccontextmanager
async def alone_with(host: str, locks: Locks, seconds: float = 0.0) -> AsyncIterator[bool]:
    """Holds a host against every run, so that none works on it or begins to; False where another uses it.

    False, too, where the server does not answer: others may be at work, and go on once it does.
    """
    until = time.monotonic() + seconds  # leases of a server know no scale
    lease: Lease | None = None
    while lease is None:
        # Asked first: Prefect's client asks a server that is away for a minute, one request after the other.
        if await locks.is_there():
            lease = await locks.take_now(use_limit(host), USERS, of=USERS)
        if lease is not None or time.monotonic() >= until:
            break
        await asyncio.sleep(scaled(POLL_SECONDS))
    try:
        yield lease is not None
    finally:
        if lease is not None:
            await locks.release(lease)


def server_id() -> str:
    """Which Prefect server knows of this run.

    Our own, which a run brings along, keep their limits in one database for each home of a machine.
    """
    url = str(get_current_settings().api.url or "")
    here = platform.node()
    if os.environ.get("PREFECT_API_URL"):
        is_local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        return f"{here} {url}" if is_local else url
    return f"{here} {os.environ.get('CALLSHEET_HOME', '')}"


async def forget_host(host: str) -> None:
    """Deletes the limits of a host that is gone, where the server can be asked."""
    with contextlib.suppress(*AWAY):
        async with get_client() as client:
            if await client.api_healthcheck() is not None:
                return
            for prefix in host_limits(host):
                await forget_limits(client, prefix)
