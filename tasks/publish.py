"""Publishing as a task, and what of it is seen in Prefect's UI."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from prefect import task

from callsheet.errors import LeaseLost
from callsheet.manifest import Manifest
from callsheet.publishing import Publisher
from tasks.keeping import poster_in
from tasks.policy import UNCACHED
from tasks.production import Production


@task(name="publish_batch", task_run_name="publish {batch_name}", **UNCACHED)
async def publish_batch(batch_name: str, started: str) -> Manifest:
    """Writes all that the batch delivers. Returns the manifest."""
    production = Production.current()
    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise LeaseLost("the run was ended while it published")
        production.check_batch_lease()

    publisher = Publisher(
        production.batch,
        production.store,
        started,
        posters=partial(poster_in, production),
        check=check,
        patience=production.deliveries.patience,
    )
    publishing = asyncio.ensure_future(asyncio.to_thread(publisher.publish))
    try:
        manifest = await asyncio.shield(publishing)
    except asyncio.CancelledError:
        # Nothing may be written any more when the batch is another's.
        ended.set()
        production.deliveries.patience.end()
        await asyncio.wait([publishing])
        raise
    return manifest
