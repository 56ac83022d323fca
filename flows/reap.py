"""Destroys rented hosts that should not be there, and gives back those that nobody uses. Scheduled every five minutes.

    state = await reap(ReapParameters(store="r2://media/callsheet"), return_state=True)

`deploy_reap` (``callsheet reap --work-pool POOL``) schedules it. ``callsheet reap`` does the same from cron without a
Prefect server, but for idle hosts: who uses a host is known to the server alone. The flow run fails where somebody must look.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, State
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.store import open_store
from blocks.vast import open_account
from callsheet.errors import CallsheetError, StoreFault, reason_of
from callsheet.hosts import HostBook
from callsheet.reaper import AT_MOST, Reaper, Sweep
from flows.deploying import deployed
from tasks.events import announce_leak
from tasks.host_use import AWAY
from tasks.idle import drain_idle, forget_ended

#: How often the scheduled sweep comes.
EVERY = datetime.timedelta(minutes=5)


class ReapParameters(BaseModel):
    """Settings of the flow `reap`."""

    model_config = ConfigDict(extra="forbid")

    store: str = Field(
        default="out",
        description="Where the hosts are written down: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
        examples=["out", "r2://media/callsheet"],
    )
    account: str = Field(
        default="",
        description="The vast.ai account: block:vast-account/NAME, or that of the environment where empty.",
        examples=["block:vast-account/main"],
    )
    fleet: str = Field(
        default="", description="Name of the fleet; all of ours where empty.", examples=["studio"]
    )
    at_most: int = Field(
        default=AT_MOST,
        ge=0,
        description="Destroy none before its time where more than so many should go: something else is wrong.",
        examples=[20],
    )
    dry_run: bool = Field(
        default=False, description="Say what would be destroyed, and do nothing.", examples=[True]
    )


@flow(name="reap", flow_run_name="reap {parameters.fleet}", persist_result=False)
async def reap(parameters: ReapParameters) -> State[Any]:
    """One sweep over the account. Its result is a `Sweep`; a table of what went is an artifact of the run."""
    try:
        client = await open_account(parameters.account)
        book = HostBook(await open_store(parameters.store))
        if not parameters.dry_run:
            boxes = {box.id: box for box in await asyncio.to_thread(client.instances)}
            await drain_idle(book, client, boxes, time.time(), parameters.fleet)
        reaper = Reaper(client, book, fleet=parameters.fleet, at_most=parameters.at_most)
        sweep = await asyncio.to_thread(reaper.sweep, dry_run=parameters.dry_run)
    except CallsheetError as error:
        return Failed(message=f"nothing was looked at: {error}", data=error)
    if sweep.doomed or not sweep.is_clean:
        await _tell(sweep)
    if not parameters.dry_run:
        try:
            await forget_ended(book)
        except (StoreFault, *AWAY) as fault:
            sweep.faults.append(reason_of(fault))
    message = f"{len(sweep.kept)} hosts kept, {len(sweep.destroyed)} destroyed, {sweep.foreign} not ours"
    if sweep.is_clean:
        return Completed(message=message, data=sweep)
    if sweep.left:
        announce_leak(list(sweep.left), list(sweep.left.values()))
    wrong = [f"instance {identity}: {reason}" for identity, reason in sweep.left.items()]
    reasons = "; ".join([*wrong, *([sweep.breaker] if sweep.breaker else []), *sweep.faults])
    return Failed(message=f"look at it yourself: {reasons}. {message}", data=sweep)


async def _tell(sweep: Sweep) -> None:
    gone = {box.id for box in sweep.destroyed}
    await acreate_table_artifact(
        table=[
            {
                "instance": box.id,
                "fleet": box.label.fleet,
                "lease": box.label.lease,
                "why": box.reason,
                "destroyed": "yes" if box.id in gone else sweep.left.get(box.id, "no"),
            }
            for box in sweep.doomed
        ],
        key="reaped-hosts",
        description="Rented hosts that should not be there",
    )


async def deploy_reap(work_pool: str, parameters: ReapParameters) -> UUID:
    """Makes the deployment of `reap` with its schedule, or brings it up to date. Returns its id.

    Raises:
        BadInput: there is no such work pool.
    """
    return await deployed(
        reap,
        work_pool,
        schedules=[
            # The slug of deployments/prefect.yaml: it is that schedule, switched on.
            DeploymentScheduleCreate(
                schedule=IntervalSchedule(interval=EVERY), active=True, slug="every-five-minutes"
            )
        ],
        parameters={"parameters": parameters.model_dump()},
        # The next sweep comes soon anyway.
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
    )
