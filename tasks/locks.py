"""Locks that hold between flow runs and machines: slots of Prefect's limits, each under a lease.

    async with Locks(limits_of(fleet)) as locks:
        lease = await locks.take("lane:a10-1:comfyui", wanted=lambda: True)
        ...                          # lease.lost is set where the slot is ours no longer
        await locks.release(lease)
        await locks.waiting("lane:a10-1:comfyui")     # how many wait for it, in all runs

A lease is renewed while it is held and ends about a minute after its holder was killed. Prefect's own
`concurrency()` is not used for three reasons: it polls every 30 s where a slot was held for long, it cannot tell
who waits (a run that waits for a tag stays Pending on the server), and where its lease is lost it cancels
what runs instead of letting it end.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from callsheet.errors import BadInput, HostLacks, LeaseLost, reason_of
from callsheet.limits import GPU_LIMIT, GPU_TAG, is_lane_limit, waiting_limit
from callsheet.timing import clock, scaled
from tasks.logs import run_logger
from tasks.watching import tell_watcher

#: How long a lease lasts without being renewed: the least that Prefect allows.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 20.0
#: A lease that was not renewed is given up this long before the server gives it to others.
MARGIN_SECONDS = 5.0
#: How long the server may take to count or to take back slots; leases end without it too.
ANSWER_SECONDS = 10.0
#: How often a slot that is taken is asked for again, and how often those who wait are counted.
POLL_SECONDS = 1.0
#: Room for everybody who waits.
_MANY = 100_000
#: Where it is written down which limit of the tag `gpu` we made; another value there is a person's.
GPU_OURS = "callsheet_gpu_limit"
#: What a server that is away for a while answers with.
_AWAY = (httpx.TransportError, httpx.HTTPStatusError)


class Lease:
    """Slots of a limit that are ours until they are released, or lost."""

    def __init__(self, name: str, slots: int, lease_id: UUID, asked: float) -> None:
        """``asked`` is when it was asked for, by `clock`."""
        self.name, self.slots, self.id = name, slots, lease_id
        self.renewed = asked
        self.renewal: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def lost(self) -> bool:
        """Whether it is not ours any more: released, refused, or not renewed in time, as after a process was stopped."""
        return self._ended or clock() > self.renewed + LEASE_SECONDS - MARGIN_SECONDS

    def end(self) -> None:
        self._ended = True

    def check(self) -> None:
        """Raises LeaseLost where it is not ours any more."""
        if self.lost:
            raise LeaseLost(f"the lease of {self.name} was lost; another run may have it")


class Locks:
    """The limits of a fleet, made where they are missing, and the leases that this run holds of them."""

    def __init__(self, limits: Mapping[str, int], lost: Callable[[], Awaitable[None]] | None = None) -> None:
        """``lost`` is called when a lease is lost."""
        self._limits = dict(limits)
        self._tell = lost
        self._client: PrefectClient
        self._stack = AsyncExitStack()
        self._writing = asyncio.Lock()
        self._counting: dict[str, asyncio.Lock] = {}
        self._counted: dict[str, tuple[float, int]] = {}
        self._orphans: set[asyncio.Task[Any]] = set()
        run = runtime.flow_run.id
        self._holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(str(run))) if run else None

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(get_client())
        try:
            await self._make_all()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._orphans:
            await asyncio.wait(self._orphans)
        await self._stack.aclose()

    # Slots ---------------------------------------------------------------------------------------

    async def take(self, name: str, slots: int = 1, *, wanted: Callable[[], bool]) -> Lease | None:
        """Waits for slots of the limit ``name`` as long as they are ``wanted``, and is counted; None when they are no more.

        Raises:
            HostLacks: the limit will never allow so many.
        """
        lease = await self._try(name, slots)
        try:
            async with self.announced(name) if lease is None else nullcontext():
                while lease is None and wanted():
                    await self._pause()
                    lease = await self._try(name, slots)
        except BaseException:
            if lease is not None:
                await self.release(lease)
            raise
        return lease

    async def take_now(self, name: str, slots: int = 1, *, of: int) -> Lease | None:
        """Takes slots of a limit that allows ``of`` where they are free; None where not, or the server is away."""
        self._limits.setdefault(name, of)
        return await self._try(name, slots)

    async def add(self, limits: Mapping[str, int]) -> None:
        """Makes further limits, and room for their lanes in that of the tag.

        Without an answer of the server they are made when they are first asked for, and the tag has less room meanwhile.
        """
        self._limits.update(limits)
        try:
            await self._make_all()
        except (
            *_AWAY,
            BadInput,
            ObjectNotFound,
        ) as error:  # such as a limit that a person keeps at 0 for a while
            run_logger().warning("the limits of a new host are not made yet: %s", reason_of(error))

    def drop(self, limits: Collection[str]) -> None:
        """Limits of a host that is given back: they are not made again."""
        for name in limits:
            self._limits.pop(name, None)

    async def is_there(self) -> bool:
        """Whether the server answers."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return (
                    await self._client.api_healthcheck() is None
                )  # it gives the error, it does not raise it
        except (TimeoutError, *_AWAY):
            return False

    async def wait_for_room(self, wanted: Callable[[], bool], name: str) -> None:
        """Waits, announced, until a slot of ``name`` is free, for one that Prefect itself takes then.

        Prefect's own wait for a tag goes on after its task was cancelled, until the slot is granted.
        """
        if not await self.is_full(name):
            return
        async with self.announced(name):
            while wanted() and await self.is_full(name):
                await self._pause()

    async def is_full(self, name: str) -> bool:
        """Whether no slot of ``name`` is free."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._client.read_global_concurrency_limit_by_name(name)
        except (ObjectNotFound, TimeoutError, *_AWAY):
            return False
        return found.active_slots >= found.limit

    @staticmethod
    async def _pause() -> None:
        await asyncio.sleep(scaled(POLL_SECONDS) * random.uniform(0.7, 1.3))

    async def release(self, lease: Lease) -> bool:
        """Gives the slots back; where the server cannot be told, they end with the lease. Returns whether it was told."""
        if lease.renewal is not None:
            lease.renewal.cancel()
        if not lease.lost:
            lease.end()
            told = self._kept(self._give_back(lease.id))
            return bool(await asyncio.shield(told))
        return False

    @asynccontextmanager
    async def announced(self, name: str) -> AsyncIterator[None]:
        """Counts this run as one that waits for ``name`` for as long as the block lasts."""
        queue = waiting_limit(name)
        self._limits.setdefault(queue, _MANY)
        leases: list[Lease] = []

        async def announce() -> None:
            """Again where it did not reach the server, or was forgotten there: who is not counted is never let in."""
            while True:
                if not leases or leases[-1].lost:
                    lease = await self._try(queue, 1)
                    leases.extend([lease] if lease is not None else [])
                await self._pause()

        announcing = asyncio.create_task(announce())
        try:
            yield
        finally:
            announcing.cancel()
            await asyncio.wait({announcing})
            for lease in leases:
                await self.release(lease)

    async def waiting(self, *names: str) -> int:
        """How many wait for slots of one of ``names``, in all runs; those of a killed one for a minute yet."""
        return sum([await self._count(name) for name in names])

    async def _count(self, name: str) -> int:
        """How many wait for ``name``; asked once for all lanes that want to know."""
        async with self._counting.setdefault(name, asyncio.Lock()):
            asked, count = self._counted.get(name, (-math.inf, 0))
            if time.monotonic() - asked > scaled(POLL_SECONDS) / 2:
                with contextlib.suppress(ObjectNotFound, TimeoutError, *_AWAY):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        found = await self._client.read_global_concurrency_limit_by_name(waiting_limit(name))
                    count = found.active_slots
                self._counted[name] = time.monotonic(), count
            return count

    async def sit_out(self, wanted: Callable[[], bool], *names: str, seconds: float) -> None:
        """Lets those go first who wait for ``names``: until nobody does, it is ``wanted`` no more, or ``seconds`` are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(scaled(POLL_SECONDS))
                    if not wanted() or not await self.waiting(*names):
                        return

    async def _try(self, name: str, slots: int) -> Lease | None:
        """Takes slots where they are free; None where they are not, or the server is away."""
        asked = clock()
        request = asyncio.ensure_future(self._increment(name, slots))
        try:
            lease_id = await asyncio.shield(request)
        except asyncio.CancelledError:
            self._kept(self._give_back_what_comes_of(request))
            raise
        if lease_id is None:
            return None
        lease = Lease(name, slots, lease_id, asked)
        lease.renewal = asyncio.create_task(self._renew(lease))
        return lease

    async def _increment(self, name: str, slots: int) -> UUID | None:
        try:
            # One after the other: where two meet, SQLite turns one away and Prefect's client sleeps for two seconds.
            async with self._writing:
                answer = await self._client.increment_concurrency_slots_with_lease(
                    names=[name],
                    slots=slots,
                    mode="concurrency",
                    lease_duration=LEASE_SECONDS,
                    holder=self._holder,
                )
        except httpx.HTTPStatusError as error:
            # Where another run's fleet says less, it is waited for until that run is over.
            too_many = slots > self._limits.get(name, slots)
            if error.response.status_code == httpx.codes.UNPROCESSABLE_ENTITY and too_many:
                raise HostLacks(f"{name}: {slots} are needed, and its limit is less") from None
            return None
        except httpx.TransportError:
            return None
        given: dict[str, Any] = answer.json()
        if not given["limits"]:
            # Somebody deleted it, or nobody waited before: without it there would be no limit, silently.
            with contextlib.suppress(*_AWAY):
                await self._make(name, self._limits[name], None)
            return await self._increment(name, slots)
        return UUID(given["lease_id"])

    async def _renew(self, lease: Lease) -> None:
        """Renews a lease until it is released. One that cannot be renewed in time is lost."""
        while True:
            missed = clock() - lease.renewed > RENEW_SECONDS + POLL_SECONDS
            await asyncio.sleep(POLL_SECONDS if missed else min(RENEW_SECONDS, scaled(RENEW_SECONDS)))
            asked = clock()
            try:
                # The client tries again by itself, for minutes: no longer than the lease lasts.
                async with asyncio.timeout(max(1.0, lease.renewed + LEASE_SECONDS - MARGIN_SECONDS - asked)):
                    await self._client.renew_concurrency_lease(lease.id, LEASE_SECONDS)
                lease.renewed = asked
            except Exception as error:
                gone = (
                    isinstance(error, httpx.HTTPStatusError)
                    and error.response.status_code == httpx.codes.GONE
                )
                if gone or clock() - lease.renewed > LEASE_SECONDS - 2 * MARGIN_SECONDS:
                    lease.end()
                    run_logger().warning("the lease of %s is lost: %s", lease.name, error)
                    if self._tell is not None:
                        await self._tell()
                    return

    async def _give_back(self, lease_id: UUID) -> bool:
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS), self._writing:
                await self._client.release_concurrency_slots_with_lease(lease_id)
            return True
        return False

    async def _give_back_what_comes_of(self, request: asyncio.Future[UUID | None]) -> None:
        """Releases what was granted to somebody who did not wait for it."""
        with contextlib.suppress(HostLacks):
            if lease_id := await request:
                await self._give_back(lease_id)

    def _kept(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._orphans.add(task)
        task.add_done_callback(self._orphans.discard)
        return task

    # Limits --------------------------------------------------------------------------------------

    async def _make_all(self) -> None:
        """Makes and verifies every limit of the fleet, and that of the tag."""
        there = {found.name: found for found in await read_limits(self._client)}
        for name, limit in dict(self._limits).items():  # others are asked for meanwhile
            await self._make(name, limit, there.get(name))
        if own := {name: limit for name, limit in self._limits.items() if is_lane_limit(name)}:
            lanes = {name: found.limit for name, found in there.items() if is_lane_limit(name)} | own
            await self._make_gpu(sum(lanes.values()), there.get(GPU_LIMIT))

    async def _make(self, name: str, limit: int, found: GlobalConcurrencyLimitResponse | None) -> None:
        """Makes the limit where it is missing, and puts it right. One in use is not raised before it is free."""
        if found is None:
            try:
                await self._client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=limit)
                )
                return
            except ObjectAlreadyExists:  # another run was quicker
                found = await self._client.read_global_concurrency_limit_by_name(name)
        if limit > found.limit and found.active_slots and name != GPU_LIMIT:
            run_logger().warning(
                "%s allows %d and is in use; this fleet says %d: it is raised by the next run that finds it free",
                name, found.limit, limit,
            )  # fmt: skip
            limit = found.limit
        if found.limit != limit or not found.active:
            await self._client.update_global_concurrency_limit(
                name, GlobalConcurrencyLimitUpdate(limit=limit, active=True)
            )

    async def _make_gpu(self, lanes: int, found: GlobalConcurrencyLimitResponse | None) -> None:
        """Lets the tag allow as many as there are lanes, of all fleets, but for a limit that a person set."""
        ours = await self._client.read_variable_by_name(GPU_OURS)
        if found is not None and (ours is None or found.limit != ours.value):
            if not found.limit:
                raise BadInput(
                    f'the limit of the tag "{GPU_TAG}" is 0, so no lane may work; expected 1 or more'
                )
            if found.limit < lanes:
                run_logger().info(
                    'at most %d of %d lanes are busy at once: so says the limit of the tag "%s"',
                    found.limit, lanes, GPU_TAG,
                )  # fmt: skip
            lanes = found.limit
        elif ours is None:
            with contextlib.suppress(ObjectAlreadyExists):
                await self._client.create_variable(VariableCreate(name=GPU_OURS, value=lanes))
        elif ours.value != lanes:
            await self._client.update_variable(VariableUpdate(name=GPU_OURS, value=lanes))
        await self._make(GPU_LIMIT, lanes, found)


@asynccontextmanager
async def held(name: str, waits: str, *, fenced: bool) -> AsyncIterator[Lease]:
    """Holds the only slot of the limit ``name`` for as long as the block lasts.

    Args:
        waits: what a person is told where another run has it and is waited for.
        fenced: whether the block ends, with LeaseLost, when the lease is lost.
    """
    lost = asyncio.Event()

    async def note() -> None:
        lost.set()

    async with Locks({name: 1}, lost=note) as locks:
        if await locks.is_full(name):
            run_logger().warning("%s", waits)
            tell_watcher(waits)
        lease = await locks.take(name, wanted=lambda: True)
        assert lease is not None
        lost.clear()  # what was lost while it was waited for was a place in the queue
        try:
            async with ended_by(lost) if fenced else nullcontext():
                yield lease
        except asyncio.CancelledError:
            if lost.is_set():
                lease.check()
            raise
        finally:
            await locks.release(lease)


@asynccontextmanager
async def ended_by(event: asyncio.Event) -> AsyncIterator[None]:
    """Cancels the block when the event happens."""
    block = asyncio.current_task()
    assert block is not None
    happened = asyncio.create_task(event.wait())
    happened.add_done_callback(lambda done: None if done.cancelled() else block.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if event.is_set():
            block.uncancel()
        raise
    finally:
        happened.cancel()


async def read_limits(client: PrefectClient, size: int = 200) -> list[GlobalConcurrencyLimitResponse]:
    """Every limit of the server, asked for ``size`` at a time."""
    found: dict[str, GlobalConcurrencyLimitResponse] = {}
    read = 0
    while True:
        # Rows are counted, not names: where another run makes a limit meanwhile, a page begins with one that was seen.
        page = await client.read_global_concurrency_limits(limit=size, offset=read)
        found |= {limit.name: limit for limit in page}
        read += len(page)
        if len(page) < size:
            return list(found.values())
