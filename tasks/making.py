"""Making what is missing: the lanes, and beside them the benches that assemble.

await make_takes()      # until nothing is left to do for this run
"""

from __future__ import annotations

import asyncio
import os

from callsheet.errors import Budget
from callsheet.timing import scaled
from tasks.assembly import assembly_bench
from tasks.crew import FETCH_SECONDS, Crew
from tasks.production import Production


async def make_takes() -> None:
    """Makes all takes of the current batch that are not there yet.

    Hosts are given back when the lanes are done, not when the last programme is joined.
    """
    production = Production.current()
    benches = [asyncio.create_task(assembly_bench()) for _ in range(max(1, os.cpu_count() or 1))]
    try:
        async with Crew(production) as crew:
            await crew.work()
        if production.rental is not None:
            # What is done may lie on the host yet, where the batch was stopped.
            await production.fetched(scaled(FETCH_SECONDS))
            failures = production.batch.queue.failures.values()
            is_broke = any(failure.error == Budget.__name__ for failure in failures)
            await production.rental.give_back("its work is done", keep=not is_broke)
        await production.settled()
        await asyncio.gather(*benches)
        await production.settled()  # what the benches built last
    finally:
        for bench in benches:
            bench.cancel()
