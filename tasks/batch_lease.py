"""The lease of a batch in a store that machines share: one run at a time works on it, whichever Prefect server it has.

async with batch_lease(store, "demo") as lease:      # waits for another run
    ...
    lease.check()
    await lease.lost.wait()      # another has it: nothing more should be made here
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from callsheet.errors import StoreFault
from callsheet.store import Store
from callsheet.store_lease import LEASE_SECONDS, StoreLease, lease_path
from callsheet.timing import scaled
from tasks.watching import tell

#: How often one who waits looks whether the lease is free.
_LOOK_SECONDS = 5.0


class BatchLease(StoreLease):
    """The lease, and an event that says that another has it."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__(store, path)
        self.lost = asyncio.Event()


@asynccontextmanager
async def batch_lease(store: Store, batch: str) -> AsyncIterator[BatchLease]:
    """Held by the one run that works on ``batch``; waits while another one, on any machine, is alive."""
    lease = BatchLease(store, lease_path(batch))
    await _take(lease)
    async with kept(lease):
        yield lease


@asynccontextmanager
async def kept(lease: BatchLease) -> AsyncIterator[None]:
    """Renews a lease that is ours as long as the block lasts, and gives it back then."""
    renewal = asyncio.create_task(_renew(lease))
    try:
        yield
    finally:
        renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewal
        with contextlib.suppress(StoreFault):  # then it lapses
            await asyncio.to_thread(lease.give_back)


async def _take(lease: StoreLease) -> None:
    told = False
    while not await asyncio.to_thread(lease.try_take):
        if not told:
            told = True
            tell(
                "waits for another run that is at work on it, or that was killed less than "
                f"{scaled(LEASE_SECONDS):.0f} s ago"
            )
        await asyncio.sleep(scaled(_LOOK_SECONDS))


async def _renew(lease: BatchLease) -> None:
    """A renewal that does not get through is tried again with the next; where another has the lease, `check` says so."""
    while True:
        await asyncio.sleep(scaled(LEASE_SECONDS / 4))
        with contextlib.suppress(StoreFault):
            if not await asyncio.to_thread(lease.renew):
                lease.lost.set()
                return
