"""Making what is missing: the lanes, and beside them the benches that assemble.

await make_takes()      # until nothing is left to do for this run
"""

from __future__ import annotations

import asyncio
import os

from callsheet.errors import Budget
from callsheet.plan import lanes_for
from tasks.assembly import assembly_bench
from tasks.hosts import open_hosts
from tasks.production import Production
from tasks.turns import run_lane


async def make_takes() -> None:
    """Makes all takes of the current batch that are not there yet.

    Hosts are given back when the lanes are done, not when the last programme is joined.
    """
    production = Production.current()
    batch = production.batch
    settled = {*batch.takes, *batch.queue.failures}
    missing = (step for step in batch.plan.steps.values() if step.key not in settled)
    lanes = lanes_for(missing, batch.plan.fleet)
    benches = [asyncio.create_task(assembly_bench()) for _ in range(max(1, os.cpu_count() or 1))]
    try:
        rental = production.rental
        async with open_hosts(batch.plan.fleet, lanes, rental.tokens if rental else None) as clients:
            production.clients.update(clients)
            await asyncio.gather(*(run_lane(lane.name) for lane in lanes))
        if rental is not None:
            is_broke = any(failure.error == Budget.__name__ for failure in batch.queue.failures.values())
            await rental.give_back("its work is done", keep=not is_broke)
        await production.settled()
        await asyncio.gather(*benches)
    finally:
        for bench in benches:
            bench.cancel()
