"""``callsheet reap``: destroys rented hosts that should not be there. For cron, too: it needs no Prefect server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callsheet.errors import BadInput
from callsheet.hosts import HostBook
from callsheet.reaper import AT_MOST, Reaper, Sweep
from callsheet.store import open_store
from callsheet.vastai import VastClient
from callsheet.vastai_answers import VastError

CLEAN, NOT_CLEAN = 0, 1


def reap(
    store: Annotated[
        str,
        typer.Option(
            help="Where hosts are written down: a folder or r2://BUCKET/PREFIX. Without it each goes when its time is over."
        ),
    ] = "",
    fleet: Annotated[str, typer.Option(help="Name of the fleet; all of ours when not given.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be destroyed, and do nothing.")
    ] = False,
    at_most: Annotated[
        int,
        typer.Option(
            min=0,
            help="Destroy none before its time where more than so many should go: something else is wrong.",
        ),
    ] = AT_MOST,
    work_pool: Annotated[
        str,
        typer.Option(
            help="Sweep not now but every five minutes, in this Prefect work pool; idle hosts go then, too."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Destroy rented hosts that should not be there; exit code 1 where one could not be destroyed."""
    if work_pool:
        _schedule(work_pool, store, fleet, at_most)
        return
    book = HostBook(open_store(store)) if store else None
    reaper = Reaper(VastClient.from_environment(), book, fleet=fleet, at_most=at_most)
    try:
        sweep = reaper.sweep(dry_run=dry_run)
    except VastError as error:
        # Not a mistake of whoever asked: cron is to shout.
        Console(stderr=True, highlight=False).print(
            f"Nothing was looked at: {error}", style="red", markup=False
        )
        raise typer.Exit(NOT_CLEAN) from None
    if as_json:
        print(json.dumps(_as_json(sweep)))
    else:
        _print(sweep, dry_run=dry_run)
    raise typer.Exit(CLEAN if sweep.is_clean else NOT_CLEAN)


def _schedule(work_pool: str, store: str, fleet: str, at_most: int) -> None:
    from flows import local  # noqa: PLC0415
    from flows.reap import ReapParameters  # noqa: PLC0415

    if not store:
        raise BadInput(
            "--store: found none; expected where the hosts are written down, as every worker reaches it"
        )
    local.schedule_reap(work_pool, ReapParameters(store=store, fleet=fleet, at_most=at_most))
    Console(highlight=False).print(f"Swept every five minutes in work pool {work_pool}.", markup=False)


def _as_json(sweep: Sweep) -> dict[str, Any]:
    return {
        "kept": [box.id for box in sweep.kept],
        "doomed": [{"id": box.id, "lease": box.label.lease, "reason": box.reason} for box in sweep.doomed],
        "destroyed": [box.id for box in sweep.destroyed],
        "left": {str(identity): reason for identity, reason in sweep.left.items()},
        "foreign": sweep.foreign,
        "breaker": sweep.breaker,
        "faults": sweep.faults,
    }


def _print(sweep: Sweep, *, dry_run: bool) -> None:
    out = Console(highlight=False)
    if sweep.doomed:
        gone = {box.id for box in sweep.destroyed}
        table = Table("instance", "fleet", "lease", "why", "")
        for box in sweep.doomed:
            outcome = (
                "would be destroyed"
                if dry_run
                else "destroyed"
                if box.id in gone
                else sweep.left.get(box.id, "left")
            )
            table.add_row(
                *(
                    escape(cell)
                    for cell in (str(box.id), box.label.fleet, box.label.lease, box.reason, outcome)
                )
            )
        out.print(table)
    if sweep.breaker:
        out.print(f"Not destroyed: {sweep.breaker} (--at-most)", style="red", markup=False)
    for identity, reason in sweep.left.items():
        out.print(
            f"Not destroyed, look at it yourself: instance {identity}: {reason}", style="red", markup=False
        )
    for fault in sweep.faults:
        out.print(f"Not read or written down: {fault}", style="red", markup=False)
    out.print(
        f"{len(sweep.kept)} hosts kept, {len(sweep.destroyed)} destroyed, {sweep.foreign} not ours.",
        markup=False,
    )
