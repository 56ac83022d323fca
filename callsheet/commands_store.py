"""The command ``callsheet store``: whether all that lies in a store is whole, and deleting what is old.

callsheet store check --store out                          what is broken, left over or nobody's; changes nothing
callsheet store check --store out --deep --repair          reads all media, and repairs what can be
callsheet store prune --older-than 90d --keep-batches 5    which batches and takes would go
callsheet store prune --older-than 90d --delete            deletes them

Exit codes: 0 all well, or done; 1 something was found and not repaired, or could not go; 2 bad input.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callsheet.store import open_store
from callsheet.store_check import GRACE_HOURS, MEANINGS, Finding, StoreCheck, check_store
from callsheet.store_prune import Doomed, Pruning, Receipt, find_prunable, parse_age
from callsheet.store_prune import prune as delete_prunable
from callsheet.store_repair import repair

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What lies in a store: check it, and delete what is old.",
)

Store = Annotated[str, typer.Option(help="A folder or r2://BUCKET/PREFIX.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
ALL_WELL, NOT_WELL = 0, 1
#: So many paths of a kind are shown; ``--json`` has all.
_SHOWN = 10


@app.command()
def check(
    store: Store = "out",
    with_repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="What is younger is left alone: a run may be about to commit it.")
    ] = GRACE_HOURS,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all media and compare it with what was made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is broken, left over or nobody's in a store; exit code 1 where something is broken and not repaired."""
    opened = open_store(store)
    found = check_store(opened, now=time.time(), grace_hours=grace_hours, deep=deep)
    if with_repair:
        found = repair(opened, found, now=time.time())
    if as_json:
        print(json.dumps(_check_json(found)))
    else:
        _print_check(found)
    raise typer.Exit(NOT_WELL if found.faults else ALL_WELL)


@app.command()
def prune(
    store: Store = "out",
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Batches and takes older than this go: 12h, 90d, 4w.")
    ] = "",
    keep_batches: Annotated[
        int | None, typer.Option(min=0, help="So many of the newest batches stay, however old.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--delete", help="Only say what would go, or delete it.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Delete old batches and the takes that no other batch needs; without --delete, say which."""
    age = parse_age(older_than) if older_than else None
    opened = open_store(store)
    pruning = find_prunable(opened, now=time.time(), older_than=age, keep_batches=keep_batches)
    path, receipt = "", None
    if not dry_run and not pruning.is_empty:
        path, receipt = delete_prunable(opened, pruning, now=time.time())
    if as_json:
        print(json.dumps(_prune_json(pruning, path, receipt)))
    else:
        _print_prune(pruning, path, receipt, dry_run=dry_run)
    raise typer.Exit(NOT_WELL if pruning.held_back or (receipt and receipt.left) else ALL_WELL)


def _check_json(found: StoreCheck) -> dict[str, Any]:
    return {
        "well": not found.faults,
        "findings": [finding.row() for finding in found.findings],
        "batches": [
            {
                "batch": batch.batch,
                "bytes": batch.bytes,
                "takes": batch.takes,
                "take_bytes": batch.take_bytes,
                "deliverables": batch.deliverables,
                "deliverable_bytes": batch.deliverable_bytes,
                "at_work": batch.at_work,
            }
            for batch in found.batches
        ],
        "totals": found.totals,
    }


def _print_check(found: StoreCheck) -> None:
    out = Console(highlight=False)
    if found.batches:
        rows = [
            (batch.batch, str(batch.takes), str(batch.deliverables), _size(batch.bytes), "at work" * batch.at_work)
            for batch in found.batches
        ]  # fmt: skip
        out.print(_table(("Batch", "Takes", "Deliverables", "Size", ""), rows))
    for kind, meaning in MEANINGS.items():
        _print_findings(out, f"{kind}: {meaning}", found.of(kind))
    totals = ", ".join(f"{what} {_size(size)}" for what, size in found.totals.items())
    out.print(f"In all: {totals}", markup=False, soft_wrap=True)
    out.print(f"{len(found.faults)} to be looked at." if found.faults else "All is well.", markup=False)


def _print_findings(out: Console, title: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    style = "red" if any(finding.is_fault for finding in findings) else None
    size = _size(sum(finding.bytes for finding in findings))
    out.print(f"{len(findings)} {title} ({size})", style=style, markup=False, soft_wrap=True)
    for finding in findings[:_SHOWN]:
        state = "" if finding.state == "found" else f" [{finding.state}]"
        why = f"; {finding.why}" if finding.why else ""
        out.print(f"  {finding.path}: {finding.what}{state}{why}", markup=False, soft_wrap=True)
    if len(findings) > _SHOWN:
        out.print(f"  … and {len(findings) - _SHOWN} more (--json)", markup=False)


def _prune_json(pruning: Pruning, path: str, receipt: Receipt | None) -> dict[str, Any]:
    return {
        **pruning.model_dump(),
        "bytes": pruning.bytes,
        "deleted": receipt.deleted if receipt else 0,
        "left": receipt.left if receipt else {},
        "receipt": path or None,
    }


def _print_prune(pruning: Pruning, path: str, receipt: Receipt | None, *, dry_run: bool) -> None:
    out = Console(highlight=False)
    left = receipt.left if receipt else {}
    if pruning.batches:
        rows = [(one.name, str(len(one.files)), _size(one.bytes), left.get(one.name, one.why)) for one in pruning.batches]  # fmt: skip
        out.print(_table(("Batch", "Files", "Size", "Why"), rows))
    if pruning.takes:
        out.print(_table(("Takes", "Files", "Size", "Why"), _take_rows(pruning.takes)))
    for name in pruning.at_work:
        out.print(f"{name} stays: a run is at work on it", markup=False, soft_wrap=True)
    if pruning.held_back:
        out.print(f"No take goes: {pruning.held_back}", style="red", markup=False, soft_wrap=True)
    for name, why in left.items():
        out.print(f"{name} stays: {why}", style="red", markup=False, soft_wrap=True)
    counts = f"{len(pruning.batches)} batches and {len(pruning.takes)} takes, {_size(pruning.bytes)}"
    if pruning.is_empty:
        out.print(f"Nothing to delete; {len(pruning.kept)} batches stay.", markup=False)
    elif dry_run:
        out.print(f"{counts} would go; delete them with --delete.", markup=False)
    elif receipt:
        out.print(f"{_size(receipt.deleted)} deleted. Receipt: {path}", markup=False, soft_wrap=True)


def _take_rows(takes: Iterable[Doomed]) -> list[tuple[str, ...]]:
    """A row for each kind of take and reason: takes have no names that a person knows."""
    groups: dict[tuple[str, str], list[Doomed]] = {}
    for take in takes:
        groups.setdefault((take.name.split("/")[1], take.why), []).append(take)
    return [
        (f"{len(group)} {kind}", str(sum(len(take.files) for take in group)), _size(sum(take.bytes for take in group)), why)
        for (kind, why), group in sorted(groups.items())
    ]  # fmt: skip


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
