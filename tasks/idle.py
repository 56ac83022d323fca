"""Rented hosts that nobody uses: written down since when, and drained once that is long enough.

    await drain_idle(book, client, boxes, now)      # the records that are drained now; the sweep destroys their boxes

Idle is a host that no run on this Prefect server uses, and whose engines have nothing queued.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import httpx
from prefect.client.orchestration import get_client

from callsheet.errors import StoreFault, reason_of
from callsheet.hosts import HostBook, HostRecord
from callsheet.limits import host_limits, use_limit
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance
from tasks.host_use import alone_with, forget_host, server_id
from tasks.locks import Locks, read_limits
from tasks.watching import tell

#: A host is left alone at least so long: between its boot and its run, a minute may pass in which nobody is seen to use it.
LEAST_SECONDS = 600.0
_ASK_SECONDS = 10.0


async def drain_idle(
    book: HostBook, client: VastClient, boxes: Mapping[int, Instance], now: float, fleet: str = ""
) -> list[HostRecord]:
    """Drains the hosts that were idle for as long as their rules keep them. Returns their records as they are then."""
    drained = []
    try:
        used = await _used_hosts()
        records = (await asyncio.to_thread(book.hosts)).records
    except (httpx.HTTPError, TimeoutError, StoreFault) as error:
        tell(f"whether hosts are idle is not known: {reason_of(error)}")
        return []
    for record in records.values():
        box = boxes.get(record.instance or 0)
        # Who uses the hosts of another server is not known here.
        if record.state != "ready" or box is None or record.server != server_id():
            continue
        if fleet not in ("", record.fleet):
            continue
        try:
            in_use = record.host_name in used or await _works(record, box, client)
            if in_use or record.idle_since is None:
                since = None if in_use else now
                if since != record.idle_since:
                    await asyncio.to_thread(book.change_as_seen, record, idle_since=since)
            elif now - record.idle_since >= max(LEAST_SECONDS, record.keep_seconds):
                drained += await _drain(book, record, now)
        except (httpx.HTTPError, TimeoutError, StoreFault) as fault:
            tell(f"host {record.host_name}: {reason_of(fault)}")
    return drained


async def _used_hosts() -> set[str]:
    """The rented hosts that some run uses."""
    start = use_limit("")
    async with get_client() as client:
        limits = await read_limits(client)
    return {
        limit.name.removeprefix(start)
        for limit in limits
        if limit.name.startswith(start) and limit.active_slots
    }


async def _works(record: HostRecord, box: Instance, client: VastClient) -> bool:
    """Whether an engine of the host has something queued, though no run of ours has a lane: somebody else's, or left over."""
    headers = {"Authorization": f"Bearer {client.token(record.lease).get_secret_value()}"}
    async with httpx.AsyncClient(headers=headers, timeout=_ASK_SECONDS) as http:
        for engine in record.engines:
            outside = box.ports.get(engine.port)
            if engine.kind != "comfyui" or outside is None:
                continue
            try:
                queue = (await http.get(f"http://{box.address}:{outside}/queue")).json()
            except (httpx.HTTPError, ValueError):
                continue
            if isinstance(queue, dict) and (queue.get("queue_running") or queue.get("queue_pending")):
                return True
    return False


async def _drain(book: HostBook, record: HostRecord, now: float) -> list[HostRecord]:
    """Sees to it that no run begins there, and writes down that it goes."""
    async with Locks({}) as locks, alone_with(record.host_name, locks) as is_ours:
        if not is_ours:
            return []
        reason = f"nobody used it for {(now - (record.idle_since or now)) / 60:.0f} minutes"
        changed = await asyncio.to_thread(book.change_as_seen, record, state="draining", reason=reason)
    if changed is None:
        return []
    tell(f"host {record.host_name} is drained: {reason}", logging.INFO)
    return [changed]


async def forget_ended(book: HostBook) -> None:
    """Deletes the limits of hosts that are gone, where the server has any.

    Raises:
        StoreFault: the records cannot be read.
    """
    async with get_client() as client:
        known = [limit.name for limit in await read_limits(client)]
    for record in (await asyncio.to_thread(book.hosts)).records.values():
        if record.state == "ended" and any(
            name.startswith(prefix) for prefix in host_limits(record.host_name) for name in known
        ):
            await forget_host(record.host_name)
