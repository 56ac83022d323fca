"""Locks against a real Prefect server: how many hold, who waits, what becomes of a lease."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectNotFound

from callsheet.errors import BadInput, HostLacks
from callsheet.fleet import Fleet
from callsheet.limits import GPU_TAG, limits_of
from tasks.locks import Lease, Locks, read_limits

pytestmark = pytest.mark.usefixtures("prefect_api", "fresh_limits")


@pytest.fixture
def name() -> str:
    """A limit of its own for each test."""
    return f"vram:{uuid4().hex[:8]}"


@pytest.fixture
async def fresh_limits() -> AsyncIterator[None]:
    """The server as it is before the first run, as far as the tag goes."""
    await forget_limits()
    yield
    await forget_limits()


async def forget_limits() -> None:
    async with get_client() as client:
        for limit in await client.read_global_concurrency_limits(limit=200):
            await client.delete_global_concurrency_limit_by_name(limit.name)
        if await client.read_variable_by_name("callsheet_gpu_limit"):
            await client.delete_variable_by_name("callsheet_gpu_limit")


async def take(locks: Locks, name: str, slots: int = 1) -> Lease:
    lease = await locks.take(name, slots, wanted=lambda: True)
    assert lease is not None
    return lease


@asynccontextmanager
async def held(locks: Locks, name: str, slots: int = 1) -> AsyncIterator[None]:
    lease = await take(locks, name, slots)
    yield
    await locks.release(lease)


async def active(name: str) -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(name)).active_slots


async def somebody_waits(locks: Locks, name: str) -> None:
    async with asyncio.timeout(10):
        while not await locks.waiting(name):
            await asyncio.sleep(0.01)


async def allowed(name: str) -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(name)).limit


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.02")


async def test_never_more_than_the_limit_hold_it_and_all_get_it(name: str) -> None:
    holding, most, served = 0, 0, 0

    async def one(locks: Locks) -> None:
        nonlocal holding, most, served
        async with held(locks, name, 2):
            holding += 2
            most = max(most, holding)
            assert await active(name) <= 5
            holding -= 2
            served += 1

    async with Locks({name: 5}) as here, Locks({name: 5}) as there:
        await asyncio.gather(*(one(here) for _ in range(4)), *(one(there) for _ in range(4)))
    assert (served, holding) == (8, 0)
    assert 2 <= most <= 4, "a third would have held 6 of 5"
    assert await active(name) == 0


async def test_who_waits_is_known_to_every_run_and_goes_when_the_slot_is_free(name: str) -> None:
    async with Locks({name: 1}) as here, Locks({name: 1}) as there:
        lease = await take(here, name)
        waiter = asyncio.create_task(take(there, name))
        await somebody_waits(here, name)
        assert not waiter.done()
        resting = asyncio.create_task(here.sit_out(lambda: True, name, seconds=20))
        await here.release(lease)
        taken = await waiter
        await resting
        assert await here.waiting(name) == 0
        await there.release(taken)


async def test_one_who_is_cancelled_while_waiting_holds_nothing_and_is_not_counted(name: str) -> None:
    async with Locks({name: 1}) as locks:
        lease = await take(locks, name)
        waiter = asyncio.create_task(take(locks, name))
        await somebody_waits(locks, name)
        waiter.cancel()
        await asyncio.wait({waiter})
        await locks.release(lease)
    assert (await active(name), await active(f"waiting:{name}")) == (0, 0)


async def test_one_who_is_cancelled_as_it_is_granted_gives_it_back(name: str) -> None:
    async with Locks({name: 1}) as locks:
        for _ in range(5):
            taker = asyncio.create_task(take(locks, name))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            taker.cancel()
            await asyncio.wait({taker})
    assert await active(name) == 0


async def test_one_who_wants_the_slot_no_more_stops_waiting(name: str) -> None:
    async with Locks({name: 1}) as locks:
        lease = await take(locks, name)
        wanted = True
        waiter = asyncio.create_task(locks.take(name, wanted=lambda: wanted))
        await somebody_waits(locks, name)
        wanted = False
        assert await asyncio.wait_for(waiter, 10) is None
        await locks.release(lease)
    assert (await active(name), await active(f"waiting:{name}")) == (0, 0)


async def test_more_than_the_limit_will_ever_allow_is_refused(name: str) -> None:
    async with Locks({name: 12}) as locks:
        with pytest.raises(HostLacks, match=f"{name}: 24 are needed"):
            await take(locks, name, 24)


async def test_a_limit_that_somebody_deleted_is_made_again_and_not_done_without(name: str) -> None:
    async with Locks({name: 1}) as locks:
        async with get_client() as client:
            await client.delete_global_concurrency_limit_by_name(name)
        async with held(locks, name):
            assert (await active(name), await allowed(name)) == (1, 1)


async def test_limits_are_put_right_once_they_are_free(name: str) -> None:
    async with Locks({name: 2}) as locks:
        async with held(locks, name):

            @flow
            async def other_run() -> None:
                async with Locks({name: 4}):
                    assert await allowed(name) == 2, "in use: not raised behind the holder's back"
                async with Locks({name: 1}):
                    assert await allowed(name) == 1, "less is always safe"

            await other_run()
        async with Locks({name: 4}):
            assert await allowed(name) == 4


async def test_a_lease_that_is_gone_is_lost_and_said_so(name: str) -> None:
    told = asyncio.Event()

    async def tell() -> None:
        told.set()

    @flow
    async def run() -> None:
        async with Locks({name: 1}, lost=tell) as locks:
            lease = await take(locks, name)
            async with get_client() as client:
                await client.release_concurrency_slots_with_lease(lease.id)
            await asyncio.wait_for(told.wait(), 10)
            assert lease.lost

    await run()


async def test_the_tag_allows_all_lanes_unless_a_person_says_otherwise() -> None:
    draft = limits_of(Fleet())
    gpu = f"tag:{GPU_TAG}"
    async with Locks(draft):
        assert await allowed(gpu) == 3
    async with Locks({"lane:a:comfyui": 2}):
        assert await allowed(gpu) == 5, "of all fleets"
    async with get_client() as client:
        await client.delete_global_concurrency_limit_by_name(gpu)
        await client.create_concurrency_limit(GPU_TAG, 2)

    @flow
    async def run() -> None:
        async with Locks(draft):
            assert await allowed(gpu) == 2

    await run()
    async with get_client() as client:
        await client.delete_global_concurrency_limit_by_name(gpu)
        await client.create_concurrency_limit(GPU_TAG, 0)
    with pytest.raises(BadInput, match='the limit of the tag "gpu" is 0'):
        async with Locks(draft):
            pass


async def test_two_runs_that_start_at_once_make_the_same_limits() -> None:
    draft = limits_of(Fleet())

    async def start() -> None:
        async with Locks(draft):
            pass

    await asyncio.gather(*(start() for _ in range(4)))
    assert {name: await allowed(name) for name in draft} == draft
    with pytest.raises(ObjectNotFound):
        await allowed("lane:nobody:comfyui")


async def test_limits_are_read_to_the_end_while_another_run_makes_some(name: str) -> None:
    """Counted by names, the next page was for ever the one that was read already."""
    async with get_client() as client:

        async def create(new: str) -> None:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=new, limit=1))

        async def create_more() -> None:
            for number in itertools.count():
                await create(f"a-{name}-{number}")

        before = {f"m-{name}-{number}" for number in range(8)}
        for new in before:
            await create(new)
        creating = asyncio.create_task(create_more())
        try:
            async with asyncio.timeout(30):
                found = await read_limits(client, size=2)
        finally:
            creating.cancel()
            await asyncio.wait({creating})
    assert before <= {limit.name for limit in found}
