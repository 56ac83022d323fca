"""Things on their way: begun together, taken one by one as they are there.

boots.begin(rent())          # and others
came = await boots.next()    # the first that is there, or the fault for which one does not come
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from callsheet.errors import CallsheetError

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Tasks whose outcomes are taken in the order in which they end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[T]] = set()
        self._ended: asyncio.Queue[asyncio.Task[T]] = asyncio.Queue()

    def __len__(self) -> int:
        """How many are on their way, or there and not taken yet."""
        return len(self._tasks) + self._ended.qsize()

    def begin(self, work: Coroutine[Any, Any, T]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():  # one that was cancelled does not come, and would cancel who waits
            self._ended.put_nowait(task)

    async def next(self) -> T | CallsheetError:
        """Waits for the next outcome, for ever where nothing is on its way.

        Raises:
            Exception: what is no fault of ours to be told, but a defect.
        """
        task = await self._ended.get()
        try:
            return task.result()
        except CallsheetError as fault:
            return fault

    async def ended(self) -> None:
        """Waits until all that are on their way have ended; their outcomes are forgotten."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        self._forget()

    async def cancel(self) -> None:
        """Ends all that are on their way, and waits until they have; their outcomes are forgotten."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._forget()

    def _forget(self) -> None:
        while not self._ended.empty():
            self._ended.get_nowait().exception()  # nobody is left to be told
