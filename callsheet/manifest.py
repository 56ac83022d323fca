"""What a batch came to: the manifest, the names of its deliverables, and the summary of a run.

    names = deliverable_names(plan)
    names["lh-01"]                   # 'The Lighthouse/lh-01'

The manifest's fields and the paths of deliverables are an interface: other people's tools read them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from callsheet.fleet import Lane
from callsheet.meter import LaneMeter
from callsheet.plan import Plan
from callsheet.schedule import Failure
from callsheet.takes import Check

#: The ``error`` of shots that were left out of a run: they are not done, and nothing failed.
LEFT_OUT = "LeftOut"
CONTACT_SHEET = "contact-sheet.jpg"
#: A batch's files that are not delivered, besides journals and ``shards/``.
BOOKS = (
    "manifest.json", "plan.json", "lease.json", "replacing.json", "report.html", "report-data.js", CONTACT_SHEET,
)  # fmt: skip
#: Names in a batch's folder that no title may take.
_RESERVED = (*BOOKS, "shards", "untitled")
#: Bytes that a file's name may have on common disks, with room for a suffix.
_LONGEST_NAME = 120
UNTITLED = "untitled"


class ShotFailure(BaseModel):
    """Why a shot is not done."""

    step: str
    error: str
    reason: str

    @classmethod
    def of(cls, failure: Failure) -> ShotFailure:
        return cls(step=failure.step, error=failure.error, reason=failure.reason)


class ManifestShot(BaseModel):
    """One shot of the manifest. Paths are relative to the store."""

    shot_id: str
    title: str
    state: Literal["done", "failed"]
    takes: dict[str, str | list[str]] = Field(
        description="step to take key; a list where several clips cover a narration"
    )
    clip: str | None = None
    captions: dict[str, str] = Field(default_factory=dict)
    poster: str | None = None
    sha256: dict[str, str] = Field(
        default_factory=dict, description="of its files: clip, poster, and captions by kind"
    )
    seconds: float = 0.0
    cost: float = 0.0
    cost_loaded: float = Field(
        default=0.0, description="with its share of rented hosts: boot, loading, waiting"
    )
    needs_review: bool = False
    failed: ShotFailure | None = None


class ManifestProgramme(BaseModel):
    """One programme of the manifest."""

    title: str
    state: Literal["done", "failed"]
    take: str
    file: str | None = None
    captions: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(
        default_factory=dict, description="of its files: file, and captions by kind"
    )
    seconds: float = 0.0
    loudness_lufs: float | None = None
    true_peak_dbtp: float | None = None
    checks: list[Check] = Field(default_factory=list)
    needs_review: bool = False
    failed: ShotFailure | None = None


class LaneTime(BaseModel):
    """What the time of lanes went into, in seconds of lanes (`callsheet.meter`)."""

    rented: float = Field(default=0.0, description="from when a lane could work until it was given back")
    busy: float = Field(default=0.0, description="of the engine, less what the loading of models took")
    swapping: float = Field(default=0.0, description="loading models, by how much longer first steps took")
    waiting_for_vram: float = Field(default=0.0, description="while another engine had the host's memory")
    waiting: float = Field(
        default=0.0, description="while another run had the lane, or lanes the tag's slots"
    )
    idle: float = Field(default=0.0, description="there was nothing to do")

    @classmethod
    def sum_of(cls, times: Iterable[LaneTime]) -> dict[str, float]:
        """Sums, by part."""
        rows = list(times)
        return {part: round(sum(getattr(row, part) for row in rows), 3) for part in LaneTime.model_fields}


class ManifestLane(LaneTime):
    """What one lane did in the run that wrote the manifest."""

    lane: str
    host: str
    engine: str
    steps: int
    seconds: float = Field(description="of its engine, loading models included")

    @classmethod
    def of(cls, lane: Lane, meter: LaneMeter) -> ManifestLane:
        parts = {part: round(seconds, 3) for part, seconds in meter.parts().items()}
        return cls(
            lane=lane.name,
            host=lane.host.name,
            engine=lane.engine.name,
            steps=meter.steps,
            seconds=round(meter.seconds, 3),
            **parts,
        )

    @classmethod
    def joined(cls, lanes: Iterable[ManifestLane]) -> list[ManifestLane]:
        """One entry for each lane, where several runs used it."""
        by_name: dict[str, list[ManifestLane]] = {}
        for lane in lanes:
            by_name.setdefault(lane.lane, []).append(lane)
        return [
            mine[0].model_copy(
                update={
                    **LaneTime.sum_of(mine),
                    "steps": sum(lane.steps for lane in mine),
                    "seconds": round(sum(lane.seconds for lane in mine), 3),
                }
            )
            for mine in by_name.values()
        ]


class ManifestHost(LaneTime):
    """What the lanes of a host did, in sum."""

    host: str
    cost: float = Field(default=0.0, description="$ of a rented host in this run, from its order on")

    @classmethod
    def of(cls, lanes: Iterable[ManifestLane], costs: Mapping[str, float]) -> list[ManifestHost]:
        by_host: dict[str, list[ManifestLane]] = {}
        for lane in lanes:
            by_host.setdefault(lane.host, []).append(lane)
        hosts = dict.fromkeys([*by_host, *costs])
        return [
            cls(host=host, cost=round(costs.get(host, 0.0), 6), **LaneTime.sum_of(by_host.get(host, [])))
            for host in hosts
        ]


class Totals(BaseModel):
    """Sums over the batch; ``cost`` in $ is of all takes, ``spent`` of this run's engines, ``paid`` of its hosts."""

    shots: int
    done: int
    failed: int
    needs_review: int
    takes: int
    takes_made: int
    takes_reused: int
    media_seconds: float
    cost: float
    spent: float
    paid: float = Field(default=0.0, description="$ of this run with what rented hosts cost while idle")
    lanes: LaneTime = Field(default_factory=LaneTime, description="of all lanes of this run")


class Manifest(BaseModel):
    """What a batch came to, as of its latest run."""

    batch: str
    script: dict[str, str]
    fleet: dict[str, Any]
    started: str
    finished: str
    totals: Totals
    shots: list[ManifestShot]
    programmes: list[ManifestProgramme]
    lanes: list[ManifestLane]
    hosts: list[ManifestHost] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    stale: list[str] = Field(
        default_factory=list, description="files of earlier runs that go when this manifest is there"
    )

    @property
    def files(self) -> dict[str, str]:
        """All deliverables, as paths in the store, and their sha256; empty where an older manifest does not tell."""
        files: dict[str, str] = {}
        for shot in self.shots:
            parts = {"clip": shot.clip, "poster": shot.poster, **shot.captions}
            files |= {path: shot.sha256.get(part, "") for part, path in parts.items() if path}
        for programme in self.programmes:
            parts = {"file": programme.file, **programme.captions}
            files |= {path: programme.sha256.get(part, "") for part, path in parts.items() if path}
        return files


class LatestRun(BaseModel):
    """``latest/<script>.json``: where the newest batch of a script is, under whatever name."""

    script: dict[str, str]
    batch: str
    finished: str
    manifest: str
    report: str


class FailedShot(ShotFailure):
    """A shot that is not done, in a summary."""

    shot_id: str


class Summary(BaseModel):
    """What ``run --json`` prints."""

    batch: str
    shots: int
    done: int
    failed: list[FailedShot]
    needs_review: int
    takes_made: int
    takes_reused: int
    seconds: float
    cost: float
    report: str
    manifest: str

    @property
    def told(self) -> str:
        """What it came to, on one line."""
        return (
            f"{self.done} of {self.shots} shots are done, {self.takes_made} takes made, {self.takes_reused} reused, "
            f"{self.needs_review} to review, {self.seconds:.1f} s, ${self.cost:.4f}"
        )

    @property
    def faults(self) -> list[FailedShot]:
        """The shots that are not done though they were wanted."""
        return [shot for shot in self.failed if shot.error != LEFT_OUT]


def batch_path(batch: str, name: str) -> str:
    return f"batches/{batch}/{name}"


def latest_path(script: str) -> str:
    """The pointer to the newest batch of a script, by the script's name."""
    return f"latest/{file_name(script)}.json"


def deliverable_names(plan: Plan) -> dict[str, str]:
    """Each shot's deliverable and each title's (by ``programme:TITLE``), within the batch's folder, without ending."""
    titles = _unique([shot.shot.title for shot in plan.shots.values() if shot.shot.title])
    names = {
        shot_id: f"{titles.get(shot.shot.title, UNTITLED)}/{shot_id}" for shot_id, shot in plan.shots.items()
    }
    return names | {f"programme:{title}": name for title, name in titles.items()}


def _unique(titles: Iterable[str]) -> dict[str, str]:
    """A folder name for each title: readable, fit for every disk, and no two the same where case is ignored."""
    names: dict[str, str] = {}
    taken = {name.casefold() for name in _RESERVED}
    for title in dict.fromkeys(titles):
        name = file_name(title)
        if name.casefold() in taken:
            name = f"{name} {hashlib.sha256(title.encode()).hexdigest()[:6]}"
        taken.add(name.casefold())
        names[title] = name
    return names


def file_name(title: str) -> str:
    """``title`` without what disks and addresses refuse: separators, control characters, dots at its ends."""
    text = unicodedata.normalize("NFC", title)
    text = "".join(" " if c in '/\\:*?"<>|%#' or unicodedata.category(c).startswith("C") else c for c in text)
    text = re.sub(r"\s+", " ", text).strip(" .")
    while len(text.encode()) > _LONGEST_NAME:
        text = text[:-1].rstrip(" .")
    return text or UNTITLED
