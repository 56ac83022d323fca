"""The main flow: a CSV of shots becomes checked, captioned, published clips and programmes.

    from flows.produce import produce

    state = await produce(ProduceParameters(script="data/demo.csv"), return_state=True)

From a terminal it is ``callsheet run``. The flow run ends as failed when a shot is not done, and says
which and why; everything else is published, and running it again makes only what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from blocks.fleet import open_fleet
from blocks.store import open_store
from callsheet.batch import Batch
from callsheet.decisions import Decided, Decision, decide
from callsheet.errors import BadInput, Budget, CallsheetError, StoreFault
from callsheet.fleet import Fleet
from callsheet.inputs import Mistakes, shortened
from callsheet.journal import Journal, run_name
from callsheet.manifest import FailedShot, Manifest, ShotFailure, Summary, batch_path
from callsheet.needed import write_planned
from callsheet.parameters import ProduceParameters, SharedSettings
from callsheet.plan import ASSEMBLY, Plan
from callsheet.publishing import now
from callsheet.resume import find_takes
from callsheet.scratch import scratch_folder
from callsheet.store import Store
from callsheet.takes import Sidecar
from callsheet.undelivered import bring
from flows.render import deploy_render
from tasks.approval import Declined, approved
from tasks.batch_lease import BatchLease, batch_lease
from tasks.events import announce, announce_outcome
from tasks.locks import held
from tasks.logs import batch_log, run_logger
from tasks.making import make_takes
from tasks.production import Production
from tasks.publish import publish_batch
from tasks.readiness import Probe
from tasks.rented import Rental, give_back_of, renting
from tasks.shard_runs import batch_limit
from tasks.shards import end_earlier_shards, make_in_shards
from tasks.showing import show_manifest, show_mistakes, shown_progress
from tasks.watching import tell


def _run_name() -> str:
    parameters = runtime.flow_run.parameters.get("parameters")
    return f"produce {parameters.batch_name}" if isinstance(parameters, ProduceParameters) else "produce"


async def give_hosts_back(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """The hosts of a run that was cancelled, or died, where its worker lives: the run itself could not any more."""
    parameters = ProduceParameters.model_validate(flow_run.parameters["parameters"])
    fleet = await open_fleet(parameters.fleet)
    if fleet.rent is not None:
        with batch_log(parameters.batch_name):
            store = await open_store(parameters.store)
            await give_back_of(str(flow_run.id), fleet, store, f"its run is {state.name}")


@flow(
    name="produce",
    flow_run_name=_run_name,
    persist_result=False,
    on_cancellation=[give_hosts_back],
    on_crashed=[give_hosts_back],
)
async def produce(parameters: ProduceParameters) -> State[Any]:
    """Produces a batch: plans the script, makes what is missing, assembles, publishes."""
    with batch_log(parameters.batch_name):
        return await _produced(parameters)


async def _produced(parameters: ProduceParameters) -> State[Any]:
    began = time.monotonic()
    try:
        fleet = await open_fleet(parameters.fleet)
        check_settings(parameters, fleet)
        with scratch_folder() as given:
            plan = await asyncio.to_thread(parameters.plan, fleet, given)
            decisions = await asyncio.to_thread(parameters.decided, given)
            store = await open_store(parameters.store)
            async with _only_run(store, parameters.batch_name) as lease:
                manifest, batch = await _produce(parameters, plan, store, lease, decisions)
    except Declined as declined:
        return Cancelled(message=str(declined))
    except CallsheetError as error:
        # Nothing was started, or nothing more can be: no shot is at fault alone.
        told = shortened(str(error))
        announce(
            "budget-reached" if isinstance(error, Budget) else "failed", parameters.batch_name, reason=told
        )
        if isinstance(error, Mistakes):
            await show_mistakes(parameters.batch_name, error.mistakes)
        return Failed(message=told, data=error)
    summary = _summary(manifest, batch, store, time.monotonic() - began)
    announce_outcome(summary)
    run_logger().info("ends: %s", summary.told)
    if faults := summary.faults:
        reasons = "; ".join(f"{shot.shot_id}: {shot.step}: {shot.reason}" for shot in faults[:20])
        message = f"{len(faults)} of {summary.shots} shots are not done. {reasons}"
        return Failed(message=message, data=summary)
    return Completed(message=f"{summary.done} shots done, {summary.takes_made} takes made", data=summary)


def check_settings(parameters: SharedSettings, fleet: Fleet) -> None:
    """Raises BadInput where settings contradict each other."""
    if fleet.rent is not None and parameters.advanced.work_pool:
        raise BadInput(
            f'work_pool: found "{parameters.advanced.work_pool}" with a fleet of rented hosts; expected hosts that are there '
            "(provider static) for shards, or no work pool"
        )


@asynccontextmanager
async def _only_run(store: Store, batch: str) -> AsyncIterator[BatchLease | None]:
    """Held by the one run that works on the batch. Raises BadInput, or waits, where another one does."""
    with store.only_run(batch):
        if not store.is_shared:
            yield None
            return
        waits = "waits for another run that is at work on it"
        # Runs of this Prefect server wait here for one another, those of others in the store.
        async with held(batch_limit(store, batch), waits, fenced=False), batch_lease(store, batch) as lease:
            yield lease


async def _produce(
    parameters: ProduceParameters,
    plan: Plan,
    store: Store,
    lease: BatchLease | None,
    decisions: list[Decision],
) -> tuple[Manifest, Batch]:
    """All stages after the plan: find what is done, run the lanes, assemble, publish."""
    started, run_id = now(), run_name(str(runtime.flow_run.id or uuid4()))
    await end_earlier_shards(store, parameters.batch_name)
    await asyncio.to_thread(write_planned, store, plan, parameters.batch_name, run_id, started)
    await _bring(store)
    await _decide(decisions, plan, store, parameters.batch_name, run_id)
    batch = await asyncio.to_thread(_open_batch, parameters, plan, store)
    # With the clips that narrations turned out to need.
    await asyncio.to_thread(write_planned, store, plan, parameters.batch_name, run_id, started)
    run_logger().info("begins: %s", batch.told)
    if parameters.approve:
        parameters = await approved(parameters, batch)
    batch = _batch(parameters, plan, batch.found)
    _check_budget(batch)
    missing = len(plan.steps) - len(batch.takes)
    announce("started", batch.name, shots=len(plan.shots), steps=len(plan.steps), missing=missing)
    if parameters.advanced.work_pool:
        deployment = await deploy_render(parameters.advanced.work_pool)
        results = await make_in_shards(batch, store, run_id, parameters, deployment)
        before = set(batch.takes)
        batch = await asyncio.to_thread(_open_batch, parameters, plan, store)
        batch.take_over(results, before)
    async with _hosts_for(batch, parameters, store) as (batch, rental):
        with scratch_folder() as scratch:
            production = Production(
                batch,
                store,
                scratch,
                run_id,
                rental=rental,
                batch_lease=lease,
                undelivered_gb=parameters.advanced.undelivered_gb,
            )
            manifest: list[Manifest] = []

            async def work() -> None:
                await make_takes()
                _check_store(batch)
                manifest.append(await publish_batch(batch.name, started))

            async with shown_progress(batch):
                await production.run(work)
    await show_manifest(manifest[0], batch, store)
    return manifest[0], batch


@asynccontextmanager
async def _hosts_for(
    batch: Batch, parameters: ProduceParameters, store: Store
) -> AsyncIterator[tuple[Batch, Rental | None]]:
    """The batch with hosts that answer: rented ones where the fleet rents them and something is to be made."""
    plan = batch.plan
    if plan.fleet.rent is None:
        yield batch, None
        return
    settled = {*batch.takes, *batch.queue.failures}
    missing = [key for key, step in plan.steps.items() if step.engine != ASSEMBLY and key not in settled]
    async with renting(plan.fleet, store) as rental:
        if missing:
            hours = plan.host_hours(missing)
            plan.fleet = await rental.acquire(hours, Probe.of(plan, missing), parameters.max_cost)
        else:
            plan.fleet = plan.fleet.with_hosts(())
        # The same batch with other lanes: what is done was asked for a while ago, and hosts cost by now.
        batch = _batch(parameters, plan, batch.found)
        batch.hosts_cost = rental.cost
        yield batch, rental


async def _decide(decisions: list[Decision], plan: Plan, store: Store, batch: str, run_id: str) -> None:
    """Writes what people decided into the takes' sidecars. Raises StoreFault."""
    if not decisions:
        return

    def do() -> Decided:
        # Clips that the length of a narration made necessary are decided about, too.
        find_takes(plan, store, batch)
        decided = decide(decisions, plan, store, now())
        # Journals of earlier runs tell of these takes as they were: where two differ, the store is asked.
        Journal(store, batch, f"{run_id}-decided").close(decided.changed)
        return decided

    decided = await asyncio.to_thread(do)
    for note in decided.notes:
        tell(note)
    run_logger().info("%d takes decided about", len(decided.changed))


async def _bring(store: Store) -> None:
    """Brings what earlier runs on this machine made and could not bring into the store. Raises StoreFault."""
    if store.is_shared and (takes := await asyncio.to_thread(bring, store)):
        tell(f"{len(takes)} takes that earlier runs could not bring into {store} are there now", logging.INFO)


def _open_batch(parameters: ProduceParameters, plan: Plan, store: Store) -> Batch:
    """The batch with the takes that are there."""
    return _batch(parameters, plan, find_takes(plan, store, parameters.batch_name))


def _batch(parameters: ProduceParameters, plan: Plan, found: Mapping[str, Sidecar]) -> Batch:
    return Batch(
        name=parameters.batch_name,
        plan=plan,
        lanes=list(plan.fleet.lanes()),
        found=found,
        retakes=parameters.advanced.retakes,
        max_cost=parameters.max_cost,
        leave_out=_left_out(parameters, plan),
    )


def _left_out(parameters: ProduceParameters, plan: Plan) -> list[str]:
    """Raises BadInput where a shot is not of the script."""
    if unknown := [shot_id for shot_id in parameters.leave_out if shot_id not in plan.shots]:
        raise BadInput(
            f"leave_out: found {', '.join(unknown)}; expected ids of shots, such as {next(iter(plan.shots))}"
        )
    return parameters.leave_out


def _check_budget(batch: Batch) -> None:
    """Raises Budget where the plan cannot be finished under the cap: better nothing than half of it by surprise."""
    gone = batch.queue.failures
    cost = batch.plan.cost(key for key in batch.plan.steps if key not in batch.takes and key not in gone)
    if batch.max_cost is not None and cost > batch.max_cost:
        raise Budget(
            f"batch {batch.name}: about ${cost:.2f} is needed and the cap is ${batch.max_cost:.2f}; nothing was started"
        )


def _check_store(batch: Batch) -> None:
    """Raises StoreFault where the store could not be written: then nothing can be published either."""
    for failure in batch.failures.values():
        if failure.error == StoreFault.__name__:
            kept = f"{len(batch.takes)} of {len(batch.plan.steps)} takes are kept"
            raise StoreFault(
                f"{failure.reason} ({kept}; {len(batch.failures)} of {len(batch.plan.shots)} shots are not done)"
            )


def _summary(manifest: Manifest, batch: Batch, store: Store, seconds: float) -> Summary:
    unknown = ShotFailure(step="", error="InternalError", reason="no reason was kept")
    return Summary(
        batch=manifest.batch,
        shots=manifest.totals.shots,
        done=manifest.totals.done,
        failed=[
            FailedShot(shot_id=shot.shot_id, **(shot.failed or unknown).model_dump())
            for shot in manifest.shots
            if shot.state == "failed"
        ],
        needs_review=manifest.totals.needs_review,
        takes_made=len(batch.made),
        takes_reused=batch.takes_reused,
        seconds=round(seconds, 3),
        cost=batch.paid,
        report=store.url(batch_path(batch.name, "report.html")),
        manifest=store.url(batch_path(batch.name, "manifest.json")),
    )
