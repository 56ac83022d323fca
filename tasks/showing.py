"""What a person sees of a batch in Prefect's UI: how far it is, what came of each shot, and the sum of it.

    async with shown_progress(batch):
        ...
    await show_manifest(manifest, batch, store)

Nothing here may fail a run: an artifact that cannot be written is left out, and said once in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.exceptions import PrefectException

from callsheet.batch import Batch
from callsheet.errors import StoreFault
from callsheet.inputs import Mistake
from callsheet.manifest import CONTACT_SHEET, LaneTime, Manifest, ManifestShot, batch_path
from callsheet.media.contact_sheet import Print, contact_sheet
from callsheet.store import Store
from callsheet.takes import Sidecar
from tasks.logs import run_logger

#: How often the bar is moved.
SHOW_SECONDS = 3.0
#: What an artifact that could not be written comes to.
LEFT_OUT = object()
#: So many shots are in the table; the UI suffers from more, and the report has them all.
MOST_ROWS = 500
#: So many pictures are on the contact sheet.
MOST_PRINTS = 24


@asynccontextmanager
async def shown_progress(batch: Batch) -> AsyncIterator[None]:
    """A bar of the steps that are done, while the block lasts."""
    bar = await _try(
        acreate_progress_artifact(
            progress=_progress(batch),
            key=artifact_key("progress", batch.name),
            description=f"Steps of {batch.name}",
        )
    )
    if not isinstance(bar, UUID):
        yield
        return

    async def keep_showing() -> None:
        shown, is_away = -1.0, False
        while True:
            await asyncio.sleep(SHOW_SECONDS)
            if (now := _progress(batch)) != shown:
                shown = now
                answer = await _try(aupdate_progress_artifact(bar, progress=now), silently=is_away)
                is_away = answer is LEFT_OUT

    showing = asyncio.create_task(keep_showing())
    try:
        yield
    finally:
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing
        await _try(aupdate_progress_artifact(bar, progress=_progress(batch)))


async def show_manifest(manifest: Manifest, batch: Batch, store: Store) -> None:
    """The table of shots, the table of lanes, the contact sheet, and a summary with links."""
    await _try(
        acreate_table_artifact(
            table=[_row(shot, batch, store) for shot in _most_urgent(manifest.shots)],
            key=artifact_key("shots", manifest.batch),
            description=_about_rows(manifest),
        )
    )
    if manifest.lanes:
        await _try(
            acreate_table_artifact(
                table=_lane_rows(manifest),
                key=artifact_key("lanes", manifest.batch),
                description=f"Lanes of {manifest.batch}, in seconds",
            )
        )
    has_sheet = await asyncio.to_thread(_keep_sheet, manifest, store)
    address = store.link(batch_path(manifest.batch, CONTACT_SHEET)) if has_sheet else ""
    if address.startswith("http"):  # browsers show no file of the disk in a page that is not one itself
        await _try(
            acreate_image_artifact(
                image_url=address,
                key=artifact_key("contact-sheet", manifest.batch),
                description=f"Shots of {manifest.batch}",
            )
        )
    await _try(
        acreate_markdown_artifact(
            markdown=summary_text(manifest, store, has_sheet=has_sheet),
            key=artifact_key("batch", manifest.batch),
            description=f"What {manifest.batch} came to",
        )
    )


async def show_mistakes(batch: str, mistakes: Sequence[Mistake]) -> None:
    """What is wrong in the tables of a batch that cannot begin, row by row."""
    rows: list[dict[str, Any]] = [
        {
            "file": plain(mistake.file),
            "row": mistake.row or "",
            "column": plain(mistake.column or ""),
            "found": plain(mistake.found),
            "expected": plain(mistake.expected),
        }
        for mistake in mistakes[:MOST_ROWS]
    ]
    await _try(
        acreate_table_artifact(
            table=rows,
            key=artifact_key("mistakes", batch),
            description=f"{len(mistakes)} mistakes in {batch}",
        )
    )


def summary_text(manifest: Manifest, store: Store, *, has_sheet: bool = False) -> str:
    """The sum of a batch as Markdown, with links where they need no key."""
    totals = manifest.totals
    lines = [
        f"# {plain(manifest.batch)}",
        "",
        f"**{totals.done} of {totals.shots} shots are done**, {totals.failed} are not, {totals.needs_review} need a review.",
        "",
        f"- {totals.media_seconds:.1f} s of media, {totals.takes_made} takes made, {totals.takes_reused} reused",
        f"- ${totals.paid:.4f} paid in this run; ${totals.cost:.4f} is what all its takes cost",
        f"- report: {_link(store, batch_path(manifest.batch, 'report.html'), 'report.html')}",
        f"- manifest: {_link(store, batch_path(manifest.batch, 'manifest.json'), 'manifest.json')}",
    ]
    if has_sheet:
        lines.append(
            f"- contact sheet: {_link(store, batch_path(manifest.batch, CONTACT_SHEET), CONTACT_SHEET)}"
        )
    done = [programme for programme in manifest.programmes if programme.file]
    if done:
        lines += ["", "## Programmes", ""]
        lines += [
            f"- {_link(store, str(programme.file), programme.title)}, {programme.seconds:.1f} s"
            + (", needs a review" if programme.needs_review else "")
            for programme in done
        ]
    if failed := [shot for shot in manifest.shots if shot.state == "failed"]:
        lines += ["", "## Not done", ""]
        for shot in failed[:MOST_ROWS]:
            why = (
                f"{shot.failed.step}: {shot.failed.reason} ({shot.failed.error})"
                if shot.failed
                else "no reason"
            )
            lines.append(f"- `{shot.shot_id}` {plain(why)}")
        if len(failed) > MOST_ROWS:
            lines.append(f"- and {len(failed) - MOST_ROWS} more: the report has them all")
    return "\n".join(lines) + "\n"


def _progress(batch: Batch) -> float:
    """Steps done or given up, of all, in percent."""
    steps = batch.plan.steps
    settled = sum(1 for key in steps if key in batch.takes or key in batch.queue.failures)
    return round(100 * settled / len(steps), 1) if steps else 100.0


def _most_urgent(shots: Iterable[ManifestShot]) -> list[ManifestShot]:
    """Failed ones first, then those to review, as many as the table holds, otherwise as in the script."""
    ordered = sorted(shots, key=lambda shot: 0 if shot.state == "failed" else 1 if shot.needs_review else 2)
    return ordered[:MOST_ROWS]


def _keep_sheet(manifest: Manifest, store: Store) -> bool:
    """Keeps the contact sheet: what must be looked at, then others as they come. Says whether there is one."""
    shots = [shot for shot in _most_urgent(manifest.shots) if shot.poster][:MOST_PRINTS]
    try:
        prints = [Print(shot.shot_id, store.get(str(shot.poster)), shot.needs_review) for shot in shots]
        if prints:
            store.put(batch_path(manifest.batch, CONTACT_SHEET), contact_sheet(prints))
        return bool(prints)
    except (StoreFault, OSError) as error:
        run_logger().warning("the contact sheet was left out: %s", error)
        return False


def _row(shot: ManifestShot, batch: Batch, store: Store) -> dict[str, Any]:
    keys = [key for value in shot.takes.values() for key in ([value] if isinstance(value, str) else value)]
    made = [batch.takes[key] for key in keys if key in batch.takes]
    checks = [check for sidecar in made for check in sidecar.take.checks]
    return {
        "shot": plain(shot.shot_id),
        "state": "needs review" if shot.needs_review and shot.state == "done" else shot.state,
        "title": plain(shot.title),
        "takes": f"{len(made)} in {sum(len(sidecar.attempts) for sidecar in made)} attempts",
        "checks": f"{sum(check.ok for check in checks)} of {len(checks)}",
        "seconds": round(shot.seconds, 2),
        "$": round(shot.cost_loaded, 4),
        "why": plain(_why(shot, made)),
        "clip": _link(store, shot.clip, shot.clip.rpartition("/")[2]) if shot.clip else "",
    }


def _why(shot: ManifestShot, made: list[Sidecar]) -> str:
    """Why it is not done, or what is to be looked at."""
    if shot.failed:
        return f"{shot.failed.step}: {shot.failed.reason}"
    return "; ".join(fault for sidecar in made if sidecar.needs_review for fault in sidecar.take.faults)


def _about_rows(manifest: Manifest) -> str:
    about = f"Shots of {manifest.batch}"
    if len(manifest.shots) > MOST_ROWS:
        about += f": {MOST_ROWS} of {len(manifest.shots)}, those that failed or need a review first; the report has all"
    return about


def _lane_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """What the time of the run's lanes went into."""
    rows: list[dict[str, Any]] = [
        {"lane": lane.lane, "steps": lane.steps, **lane.model_dump(include=set(LaneTime.model_fields))}
        for lane in manifest.lanes
    ]
    steps = sum(lane.steps for lane in manifest.lanes)
    return [*rows, {"lane": "all", "steps": steps, **manifest.totals.lanes.model_dump()}]


def _link(store: Store, path: str, text: str) -> str:
    """A link, or where it would need a key the path: an address with a signature is a secret for a day."""
    address = store.link(path)
    return f"[{plain(text)}](<{address}>)" if address else f"`{path}` in {store}"


def plain(text: str) -> str:
    """Text of a person's as Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~])", r"\\\1", " ".join(text.split()))


def artifact_key(what: str, batch: str) -> str:
    """An artifact's key: lower case, digits, dashes."""
    return f"{what}-{re.sub('[^a-z0-9]+', '-', batch.lower()).strip('-')}".strip("-")


async def _try(request: Awaitable[Any], *, silently: bool = False) -> Any:
    """What the request came to; LEFT_OUT where it failed, which is said unless ``silently``."""
    try:
        return await request
    except (httpx.HTTPError, PrefectException) as error:
        if not silently:
            run_logger().warning("an artifact was left out: %s", error)
        return LEFT_OUT
