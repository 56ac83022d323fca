"""Publishing: clips, captions, posters and programmes under readable names, then manifest and report, last.

Deliverables are copies of takes, so publishing again is cheap and changes nothing; what an earlier run
published and this one did not make is taken away, so that nothing stale stands beside what is new.
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.logging import get_run_logger
from pydantic import ValidationError

from callsheet.batch import Batch
from callsheet.manifest import (
    LaneTime,
    Manifest,
    ManifestHost,
    ManifestProgramme,
    ManifestShot,
    ShotFailure,
    Totals,
    batch_path,
    deliverable_names,
)
from callsheet.media.captions import Cue, make_cues, write_captions
from callsheet.media.narration import spoken_windows
from callsheet.media.video import poster
from callsheet.plan import ShotPlan
from callsheet.report.page import report_files
from callsheet.store import Store
from callsheet.takes import Sidecar
from tasks.policy import UNCACHED
from tasks.production import Production


@task(name="publish_batch", task_run_name="publish {batch_name}", **UNCACHED)
async def publish_batch(batch_name: str, started: str) -> Manifest:
    """Writes all that the batch delivers. Returns the manifest."""
    production = Production.current()
    publisher = _Publisher(production, started)
    manifest = await publisher.publish()
    await _show_lanes(manifest)
    get_run_logger().info(
        "%s: %d of %d shots published", batch_name, manifest.totals.done, manifest.totals.shots
    )
    return manifest


class _Publisher:
    """Publishes one batch once."""

    def __init__(self, production: Production, started: str) -> None:
        self.production = production
        self.batch: Batch = production.batch
        self.store: Store = production.store
        self.started = started
        self.names = deliverable_names(self.batch.plan)
        self.failures = self.batch.failures
        self.cues: dict[str, list[Cue]] = {}
        self.before = _previous(self.store, self.batch.name)
        self.made = {sidecar.key for sidecar in self.batch.made}
        self.loaded = {shot.shot_id: shot.cost_loaded for shot in self.before.shots} if self.before else {}
        self.published = dict(_published(self.before)) if self.before else {}

    async def publish(self) -> Manifest:
        shots = [await self._shot(shot) for shot in self.batch.plan.shots.values()]
        programmes = [await self._programme(title, key) for title, key in self.batch.plan.programmes.items()]
        manifest = self._manifest(shots, programmes)
        sidecars = {key: sidecar for key, sidecar in self.batch.takes.items() if key in self.batch.plan.steps}
        for name, content in report_files(manifest, self.batch.plan, sidecars, self.cues).items():
            await self._put(name, content)
        await self._put("manifest.json", manifest.model_dump_json(indent=1).encode())
        for stale in (self.before.files if self.before else set()) - manifest.files:
            await asyncio.to_thread(self.store.delete, stale)
        return manifest

    async def _shot(self, shot: ShotPlan) -> ManifestShot:
        shot_id, title = shot.shot.shot_id, shot.shot.title
        takes: dict[str, str | list[str]] = {"clip": shot.clip}
        if shot.speech:
            takes["speech"] = shot.speech
        if shot.pictures:
            kind = self.batch.plan.steps[shot.pictures[0]].kind
            takes[kind] = shot.pictures if len(shot.pictures) > 1 else shot.pictures[0]
        entry = ManifestShot(shot_id=shot_id, title=title, state="failed", takes=takes)
        made = [self.batch.takes[key] for key in shot.keys if key in self.batch.takes]
        entry.cost = sum(sidecar.cost for sidecar in made)
        entry.cost_loaded = self._loaded(shot_id, made)
        entry.needs_review = any(sidecar.needs_review for sidecar in made)
        if not self.batch.is_done(shot):
            failure = self.failures.get(shot_id)
            entry.failed = ShotFailure.of(failure) if failure else None
            return entry
        clip = self.batch.takes[shot.clip]
        entry.state, entry.seconds = "done", clip.take.length
        entry.clip = await self._deliver(clip, self.names[shot_id])
        entry.captions = await self._captions(shot_id, self._shot_cues(shot), self.names[shot_id])
        if shot.canvas is not None:
            entry.poster = await self._poster(clip, self.names[shot_id])
        return entry

    def _loaded(self, shot_id: str, takes: list[Sidecar]) -> float:
        """What a shot cost with its share of rented hosts; as it was known where nothing of it was made now."""
        if shot_id in self.loaded and not any(take.key in self.made for take in takes):
            return self.loaded[shot_id]
        factor = self.batch.load_factor
        return sum(take.cost * (factor if take.key in self.made else 1.0) for take in takes)

    async def _programme(self, title: str, key: str) -> ManifestProgramme:
        sidecar = self.batch.takes.get(key)
        if sidecar is None:
            failure = self.batch.queue.failures.get(key)
            failed = ShotFailure.of(failure) if failure else None
            return ManifestProgramme(title=title, state="failed", take=key, failed=failed)
        name = self.names[f"programme:{title}"]
        figures = {check.name: check.value for check in sidecar.take.checks}
        loudness, peak = figures.get("loudness_lufs"), figures.get("true_peak_dbtp")
        cues: list[Cue] = []
        at = 0.0
        for shot in self.batch.plan.titles[title]:
            cues += [cue.shifted(at) for cue in self._shot_cues(shot)]
            at += self.batch.takes[shot.clip].take.length
        self.cues[f"programme:{title}"] = cues
        return ManifestProgramme(
            title=title,
            state="done",
            take=key,
            file=await self._deliver(sidecar, name),
            captions=await self._captions(f"programme:{title}", cues, name),
            seconds=sidecar.take.length,
            loudness_lufs=loudness if isinstance(loudness, float) else None,
            true_peak_dbtp=peak if isinstance(peak, float) else None,
            checks=list(sidecar.take.checks),
            needs_review=sidecar.needs_review,
        )

    def _shot_cues(self, shot: ShotPlan) -> list[Cue]:
        """The shot's captions, in its clip's time; made once."""
        shot_id = shot.shot.shot_id
        if shot_id not in self.cues:
            self.cues[shot_id] = []
            if shot.speech:
                windows = spoken_windows(self.batch.takes[shot.speech].take.pieces, shot.pauses)
                for piece, window in zip(shot.reading, windows, strict=True):
                    self.cues[shot_id] += make_cues(piece.written, shot.language, *window)
        return self.cues[shot_id]

    async def _deliver(self, sidecar: Sidecar, name: str) -> str:
        """Copies a take to its readable name, where it does not stand there already."""
        source = sidecar.take.file
        target = batch_path(self.batch.name, name + PurePosixPath(source).suffix)
        if self.published.get(target) != sidecar.key or self.store.size(target) != sidecar.take.bytes:
            await asyncio.to_thread(self.store.copy, source, target)
        return target

    async def _captions(self, owner: str, cues: list[Cue], name: str) -> dict[str, str]:
        if not cues:
            return {}
        paths: dict[str, str] = {}
        for kind, text in write_captions(cues).items():
            paths[kind] = await self._put(f"{name}.{kind}", text.encode())
        return paths

    async def _poster(self, clip: Sidecar, name: str) -> str:
        target = batch_path(self.batch.name, f"{name}.jpg")
        if self.published.get(target) != clip.key or self.store.size(target) is None:
            media = await self.production.local(clip.take.file)
            content = await asyncio.to_thread(poster, media)
            await asyncio.to_thread(self.store.put, target, content)
        return target

    async def _put(self, name: str, content: bytes) -> str:
        target = batch_path(self.batch.name, name)
        await asyncio.to_thread(self.store.put, target, content)
        return target

    def _manifest(self, shots: list[ManifestShot], programmes: list[ManifestProgramme]) -> Manifest:
        batch, script = self.batch, self.batch.plan.script
        done = [shot for shot in shots if shot.state == "done"]
        lanes = batch.lane_times()
        totals = Totals(
            shots=len(shots),
            done=len(done),
            failed=len(shots) - len(done),
            needs_review=sum(shot.needs_review for shot in shots),
            takes=sum(1 for key in batch.plan.steps if key in batch.takes),
            takes_made=len(batch.made),
            takes_reused=batch.takes_reused,
            media_seconds=round(sum(shot.seconds for shot in done), 3),
            cost=sum(sidecar.cost for key, sidecar in batch.takes.items() if key in batch.plan.steps),
            spent=batch.spent,
            paid=batch.paid,
            lanes=LaneTime(**LaneTime.sum_of(lanes)),
        )
        return Manifest(
            batch=batch.name,
            script={"name": script.name, "sha256": script.sha256},
            fleet=batch.plan.fleet.model_dump(mode="json", by_alias=True),
            started=self.started,
            finished=now(),
            totals=totals,
            shots=shots,
            programmes=programmes,
            lanes=lanes,
            hosts=ManifestHost.of(lanes, batch.hosts_cost()),
            notes=list(script.notes),
        )


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


def now() -> str:
    """The time, as manifests give it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _previous(store: Store, batch: str) -> Manifest | None:
    """The manifest of the run before, where there is one that can be read."""
    try:
        return Manifest.model_validate_json(store.get(batch_path(batch, "manifest.json")))
    except (FileNotFoundError, ValidationError):
        return None


def _published(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What stands where: the path of each deliverable that is a copy of a take, and the take's key."""
    for shot in manifest.shots:
        for path in (shot.clip, shot.poster):
            if path:
                yield path, str(shot.takes["clip"])
    for programme in manifest.programmes:
        if programme.file:
            yield programme.file, programme.take
