"""The memory of the GPUs: which engine of a host has it, so that two models are never loaded where one fits.

    share = await memory.enter(lane, step.vram_gb)     # waits until the host's other engines leave enough
    ...                                                 # share.lost: stop
    await memory.leave(share)                           # the last lane of the engine unloads the model

The weight is of an engine's process and the model in it, so the lanes of a process share it. It is a lock of the
fleet (`tasks.locks`), so it holds between flow runs and machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.speech import CosyVoice
from callsheet.errors import CallsheetError, reason_of
from callsheet.fleet import Lane
from callsheet.limits import vram_limit, vram_slots
from tasks.locks import Lease, Locks
from tasks.logs import run_logger

#: The client of an engine.
Client = CosyVoice | ComfyUI


@dataclass
class Share:
    """An engine's part of its host's memory, and how many of its lanes work in it."""

    lane: Lane
    lease: Lease
    users: int = 0

    @property
    def lost(self) -> bool:
        return self.lease.lost


@dataclass
class _Engine:
    """One engine's process: its share while it has one."""

    share: Share | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class GpuMemory:
    """All shares of this run."""

    def __init__(
        self,
        locks: Locks,
        clients: Mapping[str, Client],
        unloaded: Callable[[str], None] = lambda engine: None,
    ) -> None:
        """``unloaded`` is told the engine that has no model loaded any more."""
        self._locks, self._clients, self._unloaded = locks, clients, unloaded
        self._engines: dict[str, _Engine] = {}

    async def enter(self, lane: Lane, vram_gb: float, wanted: Callable[[], bool]) -> Share | None:
        """Waits until the lane's engine may have a model of ``vram_gb`` loaded; None when that is ``wanted`` no more.

        Raises:
            HostLacks: the host has not got so much.
        """
        slots = vram_slots(lane, vram_gb)
        engine = self._engines.setdefault(lane.engine_name, _Engine())
        async with engine.changed:
            while True:
                share = engine.share
                if share is not None and share.lease.slots >= slots and not share.lost:
                    share.users += 1
                    return share
                if share is None:
                    lease = await self._locks.take(vram_limit(lane.host.name), slots, wanted=wanted)
                    if lease is None:
                        return None
                    engine.share = Share(lane, lease)
                elif not share.users:
                    await self._give_up(engine, share)
                else:
                    await engine.changed.wait()  # its lanes leave it when there is nothing left that fits

    async def leave(self, share: Share) -> None:
        """A lane is done with it. The last one unloads the model and gives the memory back."""
        engine = self._engines[share.lane.engine_name]
        async with engine.changed:
            share.users -= 1
            if not share.users:
                await self._give_up(engine, share)
            engine.changed.notify_all()

    async def _give_up(self, engine: _Engine, share: Share) -> None:
        client = self._clients[share.lane.engine_name]
        if isinstance(client, ComfyUI):
            try:
                await client.free()
                self._unloaded(share.lane.engine_name)
            except CallsheetError as error:
                run_logger().warning(
                    "%s may still hold its model: %s", share.lane.engine_name, reason_of(error)
                )
        engine.share = None
        await self._locks.release(share.lease)
