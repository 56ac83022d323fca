"""Hosts: started where they are ours to start, and a client for each engine that the batch needs.

async with open_hosts(fleet, lanes) as clients:
    clients["draft/comfyui"]
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr

from blocks.engines import server_of
from callsheet.canary import listen
from callsheet.engines.speech import CosyVoice
from callsheet.errors import CallsheetError, reason_of
from callsheet.fleet import Fleet, Lane
from callsheet.health import Health
from callsheet.media.audio import read_sound
from callsheet.media.speech import profile_of
from callsheet.process import served_by
from callsheet.voices import Voice
from tasks.memory import Client


@asynccontextmanager
async def open_hosts(
    fleet: Fleet, lanes: Sequence[Lane], tokens: Mapping[str, SecretStr] | None = None
) -> AsyncIterator[dict[str, Client]]:
    """A client for every engine that one of ``lanes`` belongs to; none, and no host, where there is no lane.

    Args:
        tokens: of the hosts that have one of their own, by name.
    """
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        if lanes and fleet.provider == "draft":
            fleet = fleet.at(
                await stack.enter_async_context(served_by("gpu_service", "--draft", "--with-parent"))
            )
        needed = {lane.engine_name for lane in lanes}
        for lane in fleet.lanes():
            name = lane.engine_name
            if name in needed and name not in clients:
                server = server_of(lane.engine, (tokens or {}).get(lane.host.name))
                clients[name] = await stack.enter_async_context(server.client(name))
        yield clients


async def check_engine(name: str, lane: Lane, client: Client, voice: Voice | None) -> Health:
    """How an engine is: whether it answers, what it lists and, with a voice, whether it speaks."""
    kind = lane.engine.kind
    try:
        await client.ready()
        if not isinstance(client, CosyVoice):
            return Health.of(name, kind, [], None)
        models = await client.models()
        if voice is None:
            return Health.of(name, kind, models, None)
        profile = profile_of(await asyncio.to_thread(read_sound, voice.prompt_audio.path), voice.transcript)
        return Health.of(name, kind, models, await listen(client, voice, profile))
    except CallsheetError as error:
        return Health(engine=name, kind=kind, ok=False, reason=reason_of(error))
