"""The lanes of a batch: those of the hosts that are there at first, and of those that come while it is worked on.

    async with Crew(production) as crew:
        await crew.work()       # until nothing is left that any of them could do

A rented host begins to work as soon as it answers, whatever becomes of the others: one that is ready costs as much
waiting as working. One that is left out goes once its lanes have let go of it, and another comes in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from callsheet.errors import CallsheetError
from callsheet.fleet import Fleet, Host, Lane
from callsheet.limits import limits_of
from callsheet.plan import ASSEMBLY, lanes_for
from callsheet.timing import scaled
from tasks.hosts import open_hosts
from tasks.lanes import leave_out
from tasks.logs import run_logger
from tasks.production import Production
from tasks.turns import run_lane

#: How often, without any lane, it is looked whether what the hosts on their way are waited for is still there.
LOOK_SECONDS = 5.0
#: How long what a host has made may take to be fetched, before a host that is left out is given back.
FETCH_SECONDS = 120.0
#: A lane that was told to end and has not is told again: what it waits for may have hidden it.
AGAIN_SECONDS = 5.0


class Crew:
    """Runs the lanes, and lets hosts join that come later."""

    def __init__(self, production: Production) -> None:
        self._production, self._queue = production, production.batch.queue
        self._rental = production.rental
        self._stack = AsyncExitStack()
        self._lanes: dict[asyncio.Task[Any], Lane] = {}
        self._others: set[asyncio.Task[Any]] = set()
        self._arrival: asyncio.Task[Host | CallsheetError] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = {*self._lanes, *self._others}
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
        await self._stack.aclose()

    async def work(self) -> None:
        """Works until nothing is left for any lane, nor for one that is on its way.

        Raises:
            Exception: a defect of a lane.
        """
        if self._rental is not None:
            self._queue.replacement = self._replacement
            await self._expect()
        await self._begin(self._production.batch.plan.fleet)
        while self._lanes or self._queue.expects_work():
            awaited = {*self._lanes, *([self._arrival] if self._arrival else [])}
            # Without a lane nobody else tells that the last step is settled.
            await asyncio.wait(
                awaited,
                timeout=None if self._lanes else scaled(LOOK_SECONDS),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in [task for task in self._lanes if task.done()]:
                self._end(self._lanes.pop(task), task)
            if self._arrival is not None and self._arrival.done():
                await self._meet(self._arrival.result())

    async def _begin(self, fleet: Fleet) -> None:
        """Brings those lanes of these hosts to work that may have something to do, now or once a narration is spoken."""
        steps = self._production.batch.plan.steps.values()
        lanes = [lane for lane in lanes_for(iter(steps), fleet) if not self._queue.is_idle(lane)]
        tokens = self._rental.tokens if self._rental else None
        clients = await self._stack.enter_async_context(open_hosts(fleet, lanes, tokens))
        self._production.clients.update(clients)
        self._lanes |= {asyncio.create_task(run_lane(lane.name)): lane for lane in lanes}

    def _end(self, lane: Lane, task: asyncio.Task[Any]) -> None:
        """A lane has nothing to do any more. A host that is left out goes with its last."""
        task.result()
        host = lane.host.name
        if any(other.host.name == host for other in self._lanes.values()):
            return
        if host in self._production.present and host not in self._queue.quarantined:
            work = [time for time in self._production.batch.lane_times() if time.host == host]
            steps, seconds = sum(time.steps for time in work), sum(time.busy + time.swapping for time in work)
            run_logger().info("host %s leaves: %d steps, %.1f s of its engines", host, steps, seconds)
        self._beside(self._let_go(lane.host))

    async def _let_go(self, host: Host) -> None:
        """Gives a host back that was left out, once what it has made is fetched; what it never was costs its shots only."""
        if self._rental is None or not self._rental.is_left_out(host.name):
            return
        await self._production.fetched(scaled(FETCH_SECONDS))
        limits = limits_of(self._production.batch.plan.fleet.with_hosts([host]))
        self._production.locks.drop(limits)
        self._rental.let_go(host.name)
        await self._expect()

    async def _meet(self, came: Host | CallsheetError) -> None:
        """A host that was on its way is there, or it does not come."""
        if isinstance(came, Host):
            try:
                await self._production.join(came)
                await self._begin(self._production.batch.plan.fleet.with_hosts([came]))
            except Exception as error:  # it costs this host and not the batch
                await leave_out(self._production, came, error)
                self._beside(self._let_go(came))
        self._arrival = None
        await self._expect()

    async def _expect(self) -> None:
        """Tells the queue whether hosts are on their way, and waits for the next."""
        assert self._rental is not None
        if self._arrival is None:
            self._arrival = self._beside(self._rental.arrival())
        async with self._production.changing():
            self._queue.expect(self._rental.lanes_to_come())

    def _beside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    def _replacement(self, host: str) -> list[Lane]:
        """The lanes of the host that comes in place of one that is left out; none where it is not worth it."""
        assert self._rental is not None
        plan, queue = self._production.batch.plan, self._queue
        left = [
            key
            for key, step in plan.steps.items()
            if step.engine != ASSEMBLY and key not in queue.done and key not in queue.failures
        ]
        self._rental.leave_out(host, plan.host_hours(left) if left and not queue.is_stopped else 0.0)
        return self._rental.lanes_to_come()
