"""Produces the scripts that were dropped into an inbox, one after the other: for a schedule, such as every night at two.

    state = await produce_inbox(ProduceInboxParameters(inbox="inbox"), return_state=True)

Each CSV is picked up once it is whole, by one run only, and laid away in ``done/`` or ``failed/`` of the inbox with what came of it
(`callsheet.inbox`). A broken one does not stop the others. The flow run fails where a script did, and names each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import BaseModel, Field

from blocks.fleet import open_fleet
from blocks.store import open_store
from callsheet.errors import Budget, CallsheetError, HostFault, LeaseLost, StoreFault, reason_of
from callsheet.inbox import FolderClaim, FolderInbox, Outcome, StoreClaim, StoreInbox
from callsheet.inputs import Mistakes
from callsheet.manifest import Summary
from callsheet.parameters import ProduceParameters, SharedSettings
from callsheet.scratch import scratch_folder
from callsheet.store import LocalFolder
from callsheet.store_lease import LEASE_SECONDS
from callsheet.timing import clock, scaled
from flows.produce import check_settings, give_hosts_back, produce
from tasks.batch_lease import BatchLease, kept

#: A file that did not change for so long is whole.
SETTLE_SECONDS = 5.0
#: How often a script of a bucket is asked for that another run had.
_LOOK_SECONDS = 5.0


class _WhichInbox(BaseModel):
    """The first field of the form."""

    inbox: str = Field(
        default="",
        description="Where scripts are dropped, with voices.csv, lexicon.csv and recordings beside them: a folder, or "
        "r2://BUCKET/PREFIX; inbox/ of the store where empty.",
        examples=["inbox", "r2://media/callsheet/inbox"],
    )


class ProduceInboxParameters(SharedSettings, _WhichInbox):
    """Settings of the flow `produce_inbox`: where scripts are dropped, and what all of them are produced with."""

    def for_script(self, script: Path) -> ProduceParameters:
        """The settings of `produce` for one of them; its batch is called after it."""
        return ProduceParameters(
            script=str(script), batch=script.stem[:200], **self.model_dump(exclude={"inbox"})
        )


@dataclass(frozen=True)
class Picked:
    """What came of a script: ``done``, ``failed``, or ``left`` where it was not at fault; why; and where the file is now."""

    script: str
    outcome: Outcome | Literal["left"]
    message: str
    where: str
    report: str = ""


async def give_hosts_back_of_scripts(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """The hosts of the scripts' runs, which ended with this one and cannot give them back themselves."""
    async with get_client() as client:
        children = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(str(flow_run.id))])
            ),
            sort=FlowRunSort.ID_DESC,
            limit=200,
        )
    for child in children:
        await give_hosts_back(flow, child, state)


@flow(
    name="produce_inbox",
    flow_run_name="produce what lies in the inbox",
    persist_result=False,
    on_cancellation=[give_hosts_back_of_scripts],
    on_crashed=[give_hosts_back_of_scripts],
)
async def produce_inbox(parameters: ProduceInboxParameters) -> State[Any]:
    """Produces every whole script of the inbox. Its result is the list of `Picked`; a table of them is an artifact."""
    logger = get_run_logger()
    picked: list[Picked] = []
    try:
        # What is wrong for all of them is told before any is touched.
        check_settings(parameters, await open_fleet(parameters.fleet))
        inbox = await open_inbox(parameters)
        found = await _whole(inbox)
        logger.info("%d scripts in %s: %s", len(found), inbox, ", ".join(found) or "nothing to do")
        for name, version in found.items():
            async with _claimed(inbox, name, version) as claim:
                if claim is None:
                    logger.info("%s: another run has it, or it changed meanwhile; left to that one", name)
                    continue
                picked.append(await _picked(claim, parameters))
    except CallsheetError as error:
        # The store or the inbox, and no script, is at fault: what is not laid away stays for the next run.
        return Failed(message=f"{len(picked)} scripts were produced, then: {error}", data=error)
    finally:
        if picked:
            await _tell(picked)
    if failed := [one for one in picked if one.outcome != "done"]:
        reasons = "; ".join(f"{one.script}: {one.message}" for one in failed)
        return Failed(message=f"{len(failed)} of {len(picked)} scripts are not done. {reasons}", data=picked)
    return Completed(message=f"{len(picked)} scripts done", data=picked)


async def open_inbox(parameters: ProduceInboxParameters) -> FolderInbox | StoreInbox:
    """The inbox that the settings name. Raises BadInput."""
    setting = parameters.inbox
    if setting and "://" not in setting and not setting.startswith("block:"):
        return FolderInbox(Path(setting))
    store = await open_store(setting or parameters.store)
    if isinstance(store, LocalFolder):
        return FolderInbox(store.root if setting else store.root / "inbox")
    return StoreInbox(store, "" if setting else "inbox/")


async def _whole(inbox: FolderInbox | StoreInbox) -> dict[str, str]:
    """The scripts that nobody writes any more: those that are the same a few seconds later. A bucket's are always whole."""
    before = await asyncio.to_thread(inbox.scripts)
    if not before or isinstance(inbox, StoreInbox):
        return before
    await asyncio.sleep(scaled(SETTLE_SECONDS))
    after = await asyncio.to_thread(inbox.scripts)
    growing = [name for name in after if before.get(name) != after[name]]
    if growing:
        get_run_logger().info(
            "left to the next run, for they are still being written: %s", ", ".join(growing)
        )
    return {name: version for name, version in after.items() if name not in growing}


@asynccontextmanager
async def _claimed(
    inbox: FolderInbox | StoreInbox, name: str, version: str
) -> AsyncIterator[FolderClaim | StoreClaim | None]:
    """The script while it is ours; None where it is another run's."""
    if isinstance(inbox, FolderInbox):
        with inbox.claim(name, version) as claim:
            yield claim
        return
    lease = BatchLease(inbox.store, inbox.lease_path(name))
    if not await _taken(lease):
        yield None
        return
    async with kept(lease):
        with scratch_folder() as scratch:
            yield await asyncio.to_thread(inbox.bring, name, scratch)


async def _taken(lease: BatchLease) -> bool:
    """Takes the lease where nobody has it; one whose holder was killed is dead after a minute in which nobody renews it."""
    give_up = clock() + scaled(LEASE_SECONDS + 3 * _LOOK_SECONDS)
    while not await asyncio.to_thread(lease.try_take):
        if clock() > give_up:
            return False
        await asyncio.sleep(scaled(_LOOK_SECONDS))
    return True


def _is_its_fault(outcome: object) -> bool:
    """Whether another run would come to the same: not where a fleet is not there, hosts are down, or the run died or was cancelled."""
    if isinstance(outcome, Summary):
        return any(shot.error != HostFault.__name__ for shot in outcome.faults)
    return isinstance(outcome, Mistakes | Budget)


async def _picked(claim: FolderClaim | StoreClaim, parameters: ProduceInboxParameters) -> Picked:
    """As `_produce`; what nobody expected of one script does not stop the others, and leaves it where it is."""
    try:
        return await _produce(claim, parameters)
    except CallsheetError:
        raise
    except Exception as error:
        get_run_logger().exception("%s: was not produced", claim.script.name)
        return Picked(claim.script.name, "left", reason_of(error), "the inbox")


async def _produce(claim: FolderClaim | StoreClaim, parameters: ProduceInboxParameters) -> Picked:
    """Produces one script and lays it away.

    Raises:
        StoreFault, LeaseLost: the script is not at fault, and stays where it is.
    """
    state: Any = await produce(parameters.for_script(claim.script), return_state=True)
    outcome = await state.aresult(raise_on_failure=False)
    if isinstance(outcome, StoreFault | LeaseLost):
        raise outcome
    summary = outcome if isinstance(outcome, Summary) else None
    message = state.message or (reason_of(outcome) if isinstance(outcome, BaseException) else str(state.name))
    report = summary.report if summary else ""
    if not state.is_completed() and not _is_its_fault(outcome):
        # The next run finds the script where it is.
        return Picked(claim.script.name, "left", message, "the inbox")
    end: Outcome = "done" if state.is_completed() else "failed"
    where = await asyncio.to_thread(
        claim.lay_away,
        end,
        f"{message}\nReport: {report}" if report else message,
        summary.model_dump_json(indent=1).encode() if summary else None,
    )
    return Picked(claim.script.name, end, message, where, report)


async def _tell(picked: list[Picked]) -> None:
    await acreate_table_artifact(
        table=[
            {
                "script": one.script,
                "outcome": one.outcome,
                "what came of it": one.message[:500],
                "report": f"[{one.report}]({one.report})" if one.report.startswith("http") else one.report,
                "now in": one.where,
            }
            for one in picked
        ],
        key="inbox",
        description="Scripts that were picked up",
    )
