"""Publishing as a task, and what of it is seen in Prefect's UI."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.logging import get_run_logger

from callsheet.errors import LeaseLost
from callsheet.manifest import LaneTime, Manifest
from callsheet.publishing import Publisher
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
        posters=production.poster,
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
    await _show_lanes(manifest)
    get_run_logger().info(
        "%s: %d of %d shots published", batch_name, manifest.totals.done, manifest.totals.shots
    )
    return manifest


async def _show_lanes(manifest: Manifest) -> None:
    """A table of the run in Prefect's UI: what the time of its lanes went into."""
    if not manifest.lanes:
        return
    rows: list[dict[str, Any]] = [
        {"lane": lane.lane, "steps": lane.steps, **lane.model_dump(include=set(LaneTime.model_fields))}
        for lane in manifest.lanes
    ]
    rows.append(
        {
            "lane": "all",
            "steps": sum(lane.steps for lane in manifest.lanes),
            **manifest.totals.lanes.model_dump(),
        }
    )
    slug = re.sub("[^a-z0-9]+", "-", manifest.batch.lower()).strip("-")
    await acreate_table_artifact(
        key=f"lanes-{slug}".strip("-"), table=rows, description=f"Lanes of {manifest.batch}, in seconds"
    )
