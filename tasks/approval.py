"""Asking a person before money is spent: the plan and its price as an artifact, and a form to go on with.

    parameters = await approved(parameters, batch)      # as the person wants them; Declined where nothing is wanted

A run of a deployment is suspended: its process ends, and when it is resumed the flow begins again from the top. Its pause
is named by the digest of the plan, so what was approved holds for that plan alone: where the script, the voices or the fleet
changed meanwhile, it is asked for anew. A run without a deployment waits where it is.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import math
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import Event, RelatedResource, Resource
from prefect.exceptions import FlowPauseTimeout, PrefectException
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled
from pydantic import Field

from callsheet.batch import Batch
from callsheet.fleet import ENGINE_KINDS
from callsheet.parameters import ProduceParameters
from callsheet.plan import ASSEMBLY, PictureInputs, Plan, SpeechInputs
from callsheet.timing import scaled
from tasks.events import announce
from tasks.showing import artifact_key, plain
from tasks.watching import tell

_CAP = "The most that the run may spend, in $."


class Approval(RunInput):
    """What a person says to a plan."""

    go: bool = Field(
        default=True, description="Whether it is made; without, the run is cancelled and nothing is spent."
    )
    max_cost: float = Field(default=0.0, ge=0, description=_CAP)
    leave_out: str = Field(
        default="", description="Ids of shots that are left out of this run, separated by spaces or commas."
    )
    note: str = Field(default="", description="A note for the log.")

    @property
    def left_out(self) -> list[str]:
        return self.leave_out.replace(",", " ").split()


def digest_of(plan: Plan) -> str:
    """What tells a plan from every other: its takes, and what their engines cost."""
    fleet = plan.fleet.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps([sorted(plan.steps), fleet], sort_keys=True).encode()).hexdigest()


class Declined(Exception):
    """A person did not want the plan, or did not come."""


async def approved(parameters: ProduceParameters, batch: Batch) -> ProduceParameters:
    """Shows the plan and its price, and waits for a person. Returns the parameters as that person wants them.

    Raises:
        Declined: nothing is to be made.
        Pause: the run is suspended; it begins again when somebody resumes it.
    """
    seconds = scaled(parameters.approve_hours * 3600)
    try:
        approval = await _ask(batch, seconds)
        while unknown := [shot_id for shot_id in approval.left_out if shot_id not in batch.plan.shots]:
            some = next(iter(batch.plan.shots))
            wrong = f"leave_out: found {', '.join(unknown)}; expected ids of shots, such as {some}"
            approval = await _ask(batch, seconds, wrong)
    except FlowPauseTimeout:
        reason = f"nobody approved the plan within {parameters.approve_hours:g} hours"
        await _cancel(reason)
        raise Declined(reason) from None
    note = f": {approval.note}" if approval.note else ""
    tell(f"the plan was {'' if approval.go else 'not '}approved{note}", logging.INFO)
    if not approval.go:
        raise Declined("the plan was not approved")
    left_out = [*parameters.leave_out, *approval.left_out]
    return parameters.model_copy(update={"max_cost": approval.max_cost, "leave_out": left_out})


async def _cancel(reason: str) -> None:
    """Prefect fails a run whose pause timed out; nothing failed here."""
    if (flow_run := runtime.flow_run.id) is not None:
        async with get_client() as client:
            await client.set_flow_run_state(UUID(str(flow_run)), Cancelled(message=reason), force=True)


async def _ask(batch: Batch, seconds: float, wrong: str = "") -> Approval:
    """Asks once; again with what was ``wrong`` in the answer before."""
    text, cap = plan_text(batch), proposed_cap(batch)
    key = f"approve-{digest_of(batch.plan)[:16]}"
    if wrong:
        text = f"**{plain(wrong)}**\n\n{text}"
        key += f"-{hashlib.sha256(wrong.encode()).hexdigest()[:8]}"
    form: Any = Approval.with_initial_data(
        description=text, max_cost=Field(default=cap, ge=0, description=_CAP)
    )
    if not _was_asked(key):
        await acreate_markdown_artifact(
            markdown=text, key=artifact_key("plan", batch.name), description=f"What {batch.name} needs"
        )
        announce("needs-approval", batch.name, max_cost=cap)
    wait = asuspend_flow_run if runtime.deployment.id else apause_flow_run
    context = FlowRunContext.get()
    if wait is asuspend_flow_run and context is not None and context.flow_run is not None:
        atexit.register(_say_asleep, context.flow_run)
    answer: Approval = await wait(wait_for_input=form, timeout=max(1, int(seconds)), key=key)
    return answer


def _say_asleep(flow_run: FlowRun) -> None:
    """Says, as the last thing of its process, that a suspended run gives no sign of life any more.

    A heartbeat may come after the run is suspended, for its engine ends a little later. The automation that looks for
    runs that died would wait for the next one in vain. Asked for directly: Prefect's own queue of events is closed by now.
    """
    asleep = Event(
        event="prefect.flow-run.asleep",
        resource=Resource(
            {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name}
        ),
        related=[
            RelatedResource(
                {
                    "prefect.resource.id": f"prefect.flow.{flow_run.flow_id}",
                    "prefect.resource.role": "flow",
                    "prefect.resource.name": "produce",
                }
            )
        ],
    )
    with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[asleep.model_dump(mode="json")])


def _was_asked(key: str) -> bool:
    """Whether this run was suspended for the same plan before: it begins again from the top when it is resumed."""
    context = FlowRunContext.get()
    policy = context.flow_run.empirical_policy if context and context.flow_run else None
    return policy is not None and key in (policy.pause_keys or ())


def proposed_cap(batch: Batch) -> float:
    """What the form begins with: the cap that was asked for, or what the plan costs at most and a quarter for retakes."""
    if batch.max_cost is not None:
        return batch.max_cost
    _, high = batch.plan.cost_range(set(batch.takes))
    return math.ceil(high * 125) / 100  # never below the price, however small


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def plan_text(batch: Batch) -> str:
    """The plan as Markdown: what is done, what is to be made, by which engines, for how much, and on whose terms."""
    plan, done = batch.plan, set(batch.takes)
    low, high = plan.cost_range(done)
    left = [step for key, step in plan.steps.items() if key not in done]
    price = f"${low:.2f}" if round(low, 2) == round(high, 2) else f"${low:.2f} to ${high:.2f}"
    lines = [
        f"# {plain(batch.name)}: {price}",
        "",
        f"{len(plan.shots)} shots, {len(plan.titles)} programmes; {len(plan.steps) - len(left)} of {len(plan.steps)} takes are there.",
        "",
        "| engine | to make | there | time of its lanes | $ |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {plain(row.engine)} | {row.steps - row.done} | {row.done} | {_duration(row.seconds)} | {row.cost:.2f} |"
        for row in plan.estimates(done)
    ]
    if plan.fleet.provider == "draft":
        lines += ["", "These are drafts: they cost nothing, and final takes are made with another fleet."]
    if (rent := plan.fleet.rent) is not None and any(step.engine != ASSEMBLY for step in left):
        lines += [
            "",
            f"Up to {rent.max_hosts} hosts are rented, at ${rent.max_per_hour:.2f} an hour each at most; what is rented and "
            "there already is used first.",
        ]
    return "\n".join([*lines, *_terms(batch)]) + "\n"


def _terms(batch: Batch) -> list[str]:
    """Licences and consents that are in play, of what is still to be made."""
    plan = batch.plan
    left = [step for key, step in plan.steps.items() if key not in batch.takes]
    kinds = sorted({step.engine for step in left if step.engine in ENGINE_KINDS})
    lines = [f"- {plain(kind)}: {plain(ENGINE_KINDS[kind].licence)}" for kind in kinds]
    workflows = {
        step.inputs.workflow.name: step.inputs.workflow
        for step in left
        if isinstance(step.inputs, PictureInputs)
    }
    lines += [
        f"- workflow {plain(name)}: {plain(workflow.licence)}"
        for name, workflow in sorted(workflows.items())
        if workflow.licence
    ]
    voices = {
        step.inputs.voice.voice: step.inputs.voice for step in left if isinstance(step.inputs, SpeechInputs)
    }
    lines += [
        f"- voice {plain(name)}: consent {plain(voice.consent or 'none')}, licence {plain(voice.licence or 'none')}"
        + (f", until {voice.expires}" if voice.expires else "")
        for name, voice in sorted(voices.items())
    ]
    return ["", "## On whose terms", "", *lines] if lines else []
