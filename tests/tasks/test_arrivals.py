"""Things on their way."""

import asyncio

import pytest

from callsheet.errors import HostFault
from tasks.arrivals import Arrivals


async def after(moment: asyncio.Event, outcome: str | Exception) -> str:
    await moment.wait()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def test_what_comes_is_taken_in_the_order_in_which_it_comes() -> None:
    coming, first, second, third = Arrivals[str](), asyncio.Event(), asyncio.Event(), asyncio.Event()
    for moment, outcome in ((third, "c"), (first, "a"), (second, HostFault("it burns"))):
        coming.begin(after(moment, outcome))
    assert len(coming) == 3
    first.set()
    assert await coming.next() == "a"
    second.set()
    fault = await coming.next()
    assert (type(fault), str(fault), len(coming)) == (HostFault, "it burns", 1)
    third.set()
    await asyncio.sleep(0)
    assert (len(coming), await coming.next(), len(coming)) == (1, "c", 0)


async def test_a_defect_is_raised() -> None:
    coming, moment = Arrivals[str](), asyncio.Event()
    coming.begin(after(moment, ZeroDivisionError()))
    moment.set()
    with pytest.raises(ZeroDivisionError):
        await coming.next()


async def test_what_is_cancelled_does_not_come_and_ends_nobody_who_waits() -> None:
    coming, never = Arrivals[str](), asyncio.Event()
    coming.begin(after(never, "a"))
    waiting = asyncio.create_task(coming.next())
    await asyncio.sleep(0)
    await coming.cancel()
    assert (len(coming), waiting.done()) == (0, False)
    now = asyncio.Event()
    now.set()
    coming.begin(after(now, "b"))
    assert await waiting == "b"


async def test_all_are_waited_for_where_nobody_wants_what_they_come_to() -> None:
    coming, moment = Arrivals[str](), asyncio.Event()
    for outcome in ("a", HostFault("it burns")):
        coming.begin(after(moment, outcome))
    ended = asyncio.create_task(coming.ended())
    await asyncio.sleep(0)
    moment.set()
    await ended
    assert len(coming) == 0
