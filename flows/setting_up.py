"""What a Prefect server needs for Callsheet: block types, limits, work pool, deployments, automations. Run again, it changes nothing.

    for one in await set_up(SetUp(work_pool="local")):
        print(one.state, one.kind, one.name, one.note)

From a terminal it is ``callsheet setup``. What a person changed is left and said: no limit is put to another number, and a
deployment that is there keeps its schedules, parameters and limit of runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
)
from prefect.client.schemas.responses import DeploymentResponse, GlobalConcurrencyLimitResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker

from blocks.engines import ComfyUIServer, CosyVoiceServer, LightTTSServer
from blocks.fleet import GpuFleet, open_fleet
from blocks.store import LocalFolder, R2Bucket
from blocks.vast import VastAccount
from callsheet.deployments import DeclaredDeployment, DeclaredSchedule, read_automations, read_deployments
from callsheet.errors import BadInput
from callsheet.limits import GPU_LIMIT, GPU_TAG, limits_of
from callsheet.timing import scaled
from tasks.locks import GPU_OURS, Locks, read_limits

#: Every block type of ours.
BLOCKS: tuple[type[Block], ...] = (
    GpuFleet, LocalFolder, R2Bucket, VastAccount, CosyVoiceServer, LightTTSServer, ComfyUIServer,
)  # fmt: skip
#: The variable that tells which store `set_up` gave to each deployment: another one is a person's.
STORE_OURS = "callsheet_stores"
#: The type of the work pool that is made.
PROCESS = "process"
State = Literal["made", "there", "updated", "left"]


@dataclass(frozen=True)
class SetUp:
    """What is asked for.

    Attributes:
        work_pool: the pool of all deployments.
        fleet: whose limits are made.
        gpu_slots: how many lanes may be busy at once, of all runs; as many as there are lanes where None.
        store: the default store of the deployments' forms; that of the forms themselves where empty.
    """

    work_pool: str = "local"
    fleet: str = "draft"
    gpu_slots: int | None = None
    store: str = ""


@dataclass(frozen=True)
class Thing:
    """One thing that a server needs, and whether it was made, there, brought up to date, or left as a person has it."""

    kind: str
    name: str
    state: State
    note: str = ""


async def set_up(asked: SetUp) -> list[Thing]:
    """Makes what is missing on the configured Prefect server.

    Raises:
        BadInput: the fleet, or the files of the deployments and automations.
    """
    declared = await asyncio.to_thread(read_deployments)
    automations = await asyncio.to_thread(read_automations)
    async with get_client() as client:
        things = [await _block_type(client, block) for block in BLOCKS]
        things += [thing async for thing in _limits(client, asked)]
        things.append(await _work_pool(client, asked.work_pool))
        for queue in sorted({one.work_pool.work_queue_name or "" for one in declared} - {""}):
            things.append(await _work_queue(client, asked.work_pool, queue))
        job_variables = await _job_variables(client, asked.work_pool)
        written = await client.read_variable_by_name(STORE_OURS)
        ours = written.value if written and isinstance(written.value, dict) else {}
        things += [
            await _deployment(client, one, asked, job_variables, ours.get(one.name)) for one in declared
        ]
        if asked.store:
            await _write_store(client, {one.name: asked.store for one in declared}, written is not None)
        things += [await make_automation(client, one) for one in automations]
    return things


async def _block_type(client: PrefectClient, block: type[Block]) -> Thing:
    slug = block.get_block_type_slug()
    state: State = "made"
    try:
        await client.read_block_type_by_slug(slug)
        state = "updated"
        await client.read_block_schema_by_checksum(block._calculate_schema_checksum())
        return Thing("block type", slug, "there")
    except ObjectNotFound:
        await block.aregister_type_and_schema(client=client)
        return Thing("block type", slug, state)


# Limits ------------------------------------------------------------------------------------------


async def _limits(client: PrefectClient, asked: SetUp) -> AsyncIterator[Thing]:
    fleet = await open_fleet(asked.fleet)
    # Those of rented hosts are made when they are rented.
    wanted = {} if fleet.rent is not None else limits_of(fleet)
    before = {found.name: found for found in await read_limits(client)}
    if asked.gpu_slots is not None:
        yield await _gpu_slots(client, before.get(GPU_LIMIT), asked.gpu_slots)
    # Not those that a person set otherwise: a run puts them right, we do not.
    kept = {
        name: limit for name, limit in wanted.items() if name not in before or before[name].limit == limit
    }
    try:
        async with Locks(kept):
            pass
    except BadInput as error:  # the tag's limit is 0: a person's way to hold everything
        yield Thing("limit", GPU_LIMIT, "left", str(error))
    after = {found.name: found for found in await read_limits(client)}
    names = [*wanted, *([GPU_LIMIT] if asked.gpu_slots is None else [])]
    for name in names:
        if name not in after:
            yield Thing("limit", name, "left", "made by the first run that needs it")
        else:
            yield _limit(name, before.get(name), after[name], wanted.get(name))


def _limit(
    name: str,
    before: GlobalConcurrencyLimitResponse | None,
    after: GlobalConcurrencyLimitResponse,
    wanted: int | None,
) -> Thing:
    if before is None:
        return Thing("limit", name, "made", str(after.limit))
    if wanted not in (None, after.limit):
        return Thing("limit", name, "left", f"{after.limit}, where the fleet has {wanted}")
    if before.limit != after.limit:
        return Thing("limit", name, "updated", f"{before.limit} to {after.limit}")
    return Thing("limit", name, "there", str(after.limit))


async def _gpu_slots(
    client: PrefectClient, found: GlobalConcurrencyLimitResponse | None, slots: int
) -> Thing:
    """The limit of the tag as a person asks for it: from now on runs leave it at that."""
    if found is None:
        await client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=slots)
        )
        return Thing("limit", GPU_LIMIT, "made", str(slots))
    ours = await client.read_variable_by_name(GPU_OURS)
    is_ours = ours is not None and ours.value == found.limit
    if slots < found.limit and not is_ours:
        how = f"prefect gcl update {GPU_LIMIT} --limit {slots}"
        return Thing(
            "limit", GPU_LIMIT, "left", f"{found.limit}: somebody set it, and it is not lowered here ({how})"
        )
    if is_ours:  # not any more
        await client.update_variable(VariableUpdate(name=GPU_OURS, value=0))
    if found.limit == slots:
        return Thing("limit", GPU_LIMIT, "there", str(slots))
    await client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=slots))
    return Thing("limit", GPU_LIMIT, "updated", f'{found.limit} to {slots} lanes with the tag "{GPU_TAG}"')


# The work pool and its deployments ---------------------------------------------------------------


async def _work_pool(client: PrefectClient, name: str) -> Thing:
    try:
        found = await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(
            WorkPoolCreate(
                name=name, type=PROCESS, base_job_template=template, description="Callsheet's runs."
            )
        )
        return Thing("work pool", name, "made", f"type {PROCESS}")
    return Thing("work pool", name, "there", f"type {found.type}")


async def _work_queue(client: PrefectClient, work_pool: str, name: str) -> Thing:
    try:
        await client.read_work_queue_by_name(name, work_pool)
    except ObjectNotFound:
        await client.create_work_queue(name, work_pool_name=work_pool)
        return Thing("work queue", f"{work_pool}/{name}", "made")
    return Thing("work queue", f"{work_pool}/{name}", "there")


async def _deployment(
    client: PrefectClient,
    declared: DeclaredDeployment,
    asked: SetUp,
    job_variables: dict[str, Any],
    ours: str | None,
) -> Thing:
    """Makes a deployment, or brings it up to date; ``ours`` is the store that we gave it."""
    flow: Flow[..., Any] = await asyncio.to_thread(
        load_flow_from_entrypoint, declared.entrypoint, use_placeholder_flow=False
    )
    deployment: RunnerDeployment = await flow.ato_deployment(
        name=declared.name,
        description=declared.description.strip(),
        tags=declared.tags,
        parameters=_parameters(flow, declared.parameters, asked.store),
        schedules=[_schedule(schedule) for schedule in declared.schedules],
        concurrency_limit=_runs_at_once(declared),
        work_pool_name=asked.work_pool,
        work_queue_name=declared.work_pool.work_queue_name,
        job_variables=job_variables,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    name = deployment.full_name
    try:
        found = await client.read_deployment_by_name(name)
    except ObjectNotFound:
        await deployment.aapply()
        note = "its schedule is off" if any(not one.active for one in declared.schedules) else ""
        return Thing("deployment", name, "made", note)
    changed = _changed(found, deployment)
    there, wanted = _store_of(found.parameters), _store_of(deployment.parameters)
    is_a_persons = wanted is not None and there not in (None, wanted, ours)
    if wanted is not None and there != wanted and not is_a_persons:
        inner = {**(found.parameters.get("parameters") or {}), "store": wanted}
        changed["parameters"] = {**found.parameters, "parameters": inner}
    if changed:
        await client.update_deployment(found.id, DeploymentUpdate(**changed))
    if is_a_persons:
        return Thing("deployment", name, "left", f"its store stays {there}")
    return Thing("deployment", name, "updated" if changed else "there", ", ".join(changed))


def _changed(found: DeploymentResponse, wanted: RunnerDeployment) -> dict[str, Any]:
    """What is to be brought up to date of a deployment that is there: what is ours, and not what a person sets."""
    job_variables = {**found.job_variables, **wanted.job_variables}
    ours = {
        "description": wanted.description,
        "tags": wanted.tags,
        "entrypoint": wanted.entrypoint,
        "work_pool_name": wanted.work_pool_name,
        **({"work_queue_name": wanted.work_queue_name} if wanted.work_queue_name else {}),
        "job_variables": job_variables,
        "parameter_openapi_schema": wanted._parameter_openapi_schema.model_dump(exclude_unset=True),
    }
    changed = {name: value for name, value in ours.items() if getattr(found, name) != value}
    # A queue is one of a pool's: told alone, each of the two puts the other back to its default.
    place = {name: value for name, value in ours.items() if name in ("work_pool_name", "work_queue_name")}
    return {**changed, **place} if place.keys() & changed.keys() else changed


def _store_of(parameters: dict[str, Any]) -> str | None:
    """The store that a deployment's form begins with; None where it is the flow's own default."""
    store: str | None = (parameters.get("parameters") or {}).get("store")
    return store


async def _write_store(client: PrefectClient, stores: dict[str, str], is_there: bool) -> None:
    """Notes which store we gave."""
    if is_there:
        await client.update_variable(VariableUpdate(name=STORE_OURS, value=stores))
    else:
        await client.create_variable(VariableCreate(name=STORE_OURS, value=stores))


def _parameters(flow: Flow[..., Any], declared: dict[str, Any], store: str) -> dict[str, Any]:
    """The defaults of the form: those declared, and the store where one is asked for and the flow has one with a default."""
    if not store:
        return declared
    (model,) = (one for name, one in flow.parameters.definitions.items() if name == _model_name(flow))
    if "default" not in model.get("properties", {}).get("store", {}):
        return declared
    return {**declared, "parameters": {**declared.get("parameters", {}), "store": store}}


def _model_name(flow: Flow[..., Any]) -> str:
    reference: str = flow.parameters.properties["parameters"]["$ref"]
    return reference.rpartition("/")[2]


async def _job_variables(client: PrefectClient, work_pool: str) -> dict[str, Any]:
    """Runs work in the folder where this is called: paths in forms are relative to it. Containers have their own."""
    template = (await client.read_work_pool(work_pool)).base_job_template
    known = template.get("variables", {}).get("properties", {})
    return {"working_dir": str(Path.cwd())} if "working_dir" in known else {}


async def make_automation(client: PrefectClient, declared: dict[str, Any]) -> Thing:
    """One of `deployments/automations.yaml`; one of that name that is there is left as it is."""
    name = declared["name"]
    if found := await client.read_automations_by_name(name):
        return Thing("automation", name, "there", "" if found[0].enabled else "switched off")
    automation = AutomationCore.model_validate(declared)
    if isinstance(automation.trigger, EventTrigger):
        automation.trigger.within = timedelta(seconds=scaled(automation.trigger.within.total_seconds()))
    await client.create_automation(automation)
    return Thing("automation", name, "made")


def _runs_at_once(declared: DeclaredDeployment) -> ConcurrencyLimitConfig | None:
    limit = declared.concurrency_limit
    if limit is None:
        return None
    strategy = ConcurrencyLimitStrategy(limit.collision_strategy)
    return ConcurrencyLimitConfig(limit=limit.limit, collision_strategy=strategy)


def _schedule(declared: DeclaredSchedule) -> DeploymentScheduleCreate:
    schedule: CronSchedule | IntervalSchedule
    if declared.cron is not None:
        schedule = CronSchedule(cron=declared.cron, timezone=declared.timezone)
    elif declared.interval is not None:
        schedule = IntervalSchedule(interval=declared.interval, timezone=declared.timezone)
    else:
        raise BadInput("schedule: found neither cron nor interval; expected one of them")
    return DeploymentScheduleCreate(schedule=schedule, active=declared.active, slug=declared.slug)
