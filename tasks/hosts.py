"""Hosts: started where they are ours to start, and a client for each engine that the batch needs.

async with open_hosts(fleet, lanes) as clients:
    clients["draft/comfyui"]
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from blocks.engines import server_of
from callsheet.fleet import Fleet, Lane
from callsheet.process import served_by
from tasks.production import Client


def engine_name(lane: Lane) -> str:
    """What the engine of a lane is called in messages: ``a10-1/lighttts``."""
    return f"{lane.host.name}/{lane.engine.name}"


@asynccontextmanager
async def open_hosts(fleet: Fleet, lanes: Sequence[Lane]) -> AsyncIterator[dict[str, Client]]:
    """A client for every engine that one of ``lanes`` belongs to; none, and no host, where there is no lane."""
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        if lanes and fleet.provider == "draft":
            fleet = fleet.at(
                await stack.enter_async_context(served_by("gpu_service", "--draft", "--with-parent"))
            )
        needed = {engine_name(lane) for lane in lanes}
        for lane in fleet.lanes():
            name = engine_name(lane)
            if name in needed and name not in clients:
                clients[name] = await stack.enter_async_context(server_of(lane.engine).client(name))
        yield clients
