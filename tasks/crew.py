"""The lanes of a batch: those of the hosts that are there at first, and of those that come while it is worked on.

    async with Crew(production) as crew:
        await crew.work()       # until nothing is left that any of them could do

A rented host begins to work as soon as it answers, whatever becomes of the others: one that is ready costs as much
waiting as working. One that is left out is replaced, once its lanes have let go of it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from callsheet.errors import CallsheetError
from callsheet.fleet import Fleet, Host, Lane
from callsheet.plan import ASSEMBLY, lanes_for
from tasks.hosts import open_hosts
from tasks.production import Production
from tasks.turns import run_lane


class Crew:
    """Runs the lanes, and lets hosts join that come later."""

    def __init__(self, production: Production) -> None:
        self._production, self._queue = production, production.batch.queue
        self._rental = production.rental
        plan = production.batch.plan
        self._wanted = [step for key, step in plan.steps.items() if key not in self._queue.done]
        self._stack = AsyncExitStack()
        self._lanes: dict[asyncio.Task[Any], Lane] = {}
        self._arrival: asyncio.Task[Host | CallsheetError] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._lanes, *([self._arrival] if self._arrival else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._stack.aclose()

    async def work(self) -> None:
        """Works until nothing is left for any lane, nor for one that is on its way.

        Raises:
            Exception: a defect, of a lane or of renting.
        """
        if self._rental is not None:
            self._queue.replacement = self._replacement
            self._arrival = asyncio.create_task(self._rental.arrival())
            self._expect()
        await self._begin(self._production.batch.plan.fleet)
        while self._lanes or self._queue.expects_work():
            done, _ = await asyncio.wait(
                {*self._lanes, *([self._arrival] if self._arrival else [])},
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done & self._lanes.keys():
                self._end(self._lanes.pop(task), task)
            if self._arrival in done:
                await self._meet()

    async def _begin(self, fleet: Fleet) -> None:
        """Brings the lanes of these hosts to work."""
        lanes = lanes_for(iter(self._wanted), fleet)
        tokens = self._rental.tokens if self._rental else None
        clients = await self._stack.enter_async_context(open_hosts(fleet, lanes, tokens))
        self._production.clients.update(clients)
        self._lanes |= {asyncio.create_task(run_lane(lane.name)): lane for lane in lanes}

    def _end(self, lane: Lane, task: asyncio.Task[Any]) -> None:
        """A lane has nothing to do any more. A host that was left out goes with its last."""
        task.result()
        host = lane.host.name
        if self._rental is not None and not any(other.host.name == host for other in self._lanes.values()):
            self._rental.replace(host)

    async def _meet(self) -> None:
        """A host that was on its way is there, or it does not come."""
        assert self._rental is not None
        assert self._arrival is not None
        came = self._arrival.result()
        self._arrival = asyncio.create_task(self._rental.arrival())
        if isinstance(came, Host):
            await self._production.join(came)
        async with self._production.changing():
            self._expect()
        if isinstance(came, Host):
            await self._begin(self._production.batch.plan.fleet.with_hosts([came]))

    def _expect(self) -> None:
        """Tells the queue whether hosts are on their way."""
        assert self._rental is not None
        self._queue.expect(self._rental.lanes_to_come())

    def _replacement(self, host: str) -> list[Lane]:
        """The lanes of the host that comes in place of one that is left out; none where it is not worth it."""
        assert self._rental is not None
        plan, queue = self._production.batch.plan, self._queue
        left = [
            key
            for key, step in plan.steps.items()
            if step.engine != ASSEMBLY and key not in queue.done and key not in queue.failures
        ]
        self._rental.note_left_out(host, plan.host_hours(left) if left else 0.0)
        return self._rental.lanes_to_come()
