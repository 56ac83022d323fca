"""Events that automations may act on: a webhook, a message, a call.

    announce("started", "demo", shots=12)        # callsheet.batch.started, of the resource callsheet.batch.demo

Their names and what they carry are listed in `EVENTS`; ``deployments/automation-webhook.yaml`` is a template for one.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from callsheet.errors import Budget
from callsheet.manifest import Summary

#: What happens to a batch, and what each event's payload has.
EVENTS = {
    "needs-approval": "max_cost",
    "started": "shots, steps, missing",
    "finished": "shots, done, needs_review, cost",
    "failed": "reason, and where shots failed: shots, done, failed",
    "needs-review": "shots, needs_review",
    "budget-reached": "reason",
}


def announce(what: str, batch: str, **payload: Any) -> None:
    """Emits ``callsheet.batch.<what>``; it is sent in the background."""
    if what not in EVENTS:
        raise ValueError(f"{what!r} is no event of a batch")
    resource = {"prefect.resource.id": f"callsheet.batch.{batch}", "prefect.resource.name": batch}
    emit_event(event=f"callsheet.batch.{what}", resource=resource, payload=payload)


def announce_leak(instances: list[int], reasons: list[str]) -> None:
    """Emits ``callsheet.host.leaked``: rented hosts that should not be there, and could not be destroyed."""
    resource = {"prefect.resource.id": "callsheet.hosts", "prefect.resource.name": "rented hosts"}
    emit_event(
        event="callsheet.host.leaked", resource=resource, payload={"instances": instances, "reasons": reasons}
    )


def announce_outcome(summary: Summary) -> None:
    """Says what came of the batch to whoever waits for it."""
    counts = {"shots": summary.shots, "done": summary.done, "needs_review": summary.needs_review}
    if broke := next((shot for shot in summary.failed if shot.error == Budget.__name__), None):
        announce("budget-reached", summary.batch, reason=broke.reason)
    if summary.faults:
        reason = f"{len(summary.faults)} of {summary.shots} shots are not done"
        announce("failed", summary.batch, reason=reason, failed=len(summary.faults), **counts)
    else:
        announce("finished", summary.batch, cost=summary.cost, **counts)
    if summary.needs_review:
        announce("needs-review", summary.batch, **counts)
