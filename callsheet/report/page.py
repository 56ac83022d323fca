"""Makes the report: ``report.html`` and, beside it, ``report-data.js`` with all that it shows.

The data is a script and not JSON that is fetched, and captions are cues in it and not files that are
loaded, because a page opened from a folder may load neither. Links are relative, so the page works from
a folder and from a bucket alike.

Most of the data are takes and their checks. What a shot's card shows when it is drawn is a text in the data (``details``),
because a browser reads 40 MB of text in a moment and 40 MB of objects in seconds; names and limits of checks, which
are the same for most shots, stand there once (``check_kinds``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import jinja2

from callsheet.manifest import Manifest, ManifestProgramme, ManifestShot, batch_path
from callsheet.media.captions import Cue
from callsheet.plan import PictureInputs, Plan, ShotPlan, Step
from callsheet.takes import Attempt, Check, Sidecar

TEMPLATE = Path(__file__).with_name("report.html.j2")
STYLES = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")


def report_files(
    manifest: Manifest, plan: Plan, takes: Mapping[str, Sidecar], cues: Mapping[str, list[Cue]]
) -> dict[str, bytes]:
    """The report's files by name. ``cues`` are captions by shot_id and by ``programme:TITLE``."""
    page = _Page(manifest, plan, takes, cues)
    # In ASCII: browsers read it twice as fast, and it holds no line separators, which older ones take for line ends.
    data = json.dumps(page.data(), separators=(",", ":"))
    return {
        "report.html": report_page(manifest.batch),
        "report-data.js": f"window.CALLSHEET = {data};\n".encode(),
    }


def report_page(batch: str) -> bytes:
    """The page, which shows whatever data lies beside it; its styles and its script are part of it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text("utf-8"))
    return page.render(
        batch=batch, styles=STYLES.read_text("utf-8"), script=SCRIPT.read_text("utf-8")
    ).encode()


class _Page:
    """The data of one report."""

    def __init__(
        self, manifest: Manifest, plan: Plan, takes: Mapping[str, Sidecar], cues: Mapping[str, list[Cue]]
    ) -> None:
        self.manifest, self.plan, self.takes, self.cues = manifest, plan, takes, cues
        #: The place in the data of each name and limit of a check.
        self.check_kinds: dict[tuple[str, str], int] = {}
        #: The first picture of each programme.
        self.posters = {shot.title: shot.poster for shot in reversed(manifest.shots) if shot.poster}

    def data(self) -> dict[str, Any]:
        manifest = self.manifest
        data = {
            "batch": manifest.batch,
            "script": manifest.script["name"],
            "provider": manifest.fleet["provider"],
            "finished": manifest.finished,
            "totals": manifest.totals.model_dump(),
            "programmes": [self._programme(programme) for programme in manifest.programmes],
            "shots": [self._shot(shot) for shot in manifest.shots],
            "lanes": [lane.model_dump() for lane in manifest.lanes],
            "hosts": [host.model_dump() for host in manifest.hosts],
            "notes": manifest.notes,
        }
        return data | {"check_kinds": list(self.check_kinds)}

    def _programme(self, programme: ManifestProgramme) -> dict[str, Any]:
        return {
            **programme.model_dump(exclude={"file", "captions", "checks"}),
            "file": self._link(programme.file),
            "captions": {kind: self._link(path) for kind, path in programme.captions.items()},
            "poster": self._link(self.posters.get(programme.title)),
            "cues": self._cues(f"programme:{programme.title}"),
            "checks": [self._check(check) for check in programme.checks],
        }

    def _shot(self, entry: ManifestShot) -> dict[str, Any]:
        shot = self.plan.shots[entry.shot_id]
        return {
            **entry.model_dump(exclude={"takes", "clip", "captions", "poster"}),
            "text": shot.text,
            "spoken": _spoken_otherwise(shot),
            "language": shot.language,
            "voice": shot.shot.voice,
            "visual": shot.shot.visual,
            "prompt": shot.shot.prompt,
            "clip": self._link(entry.clip),
            "poster": self._link(entry.poster),
            "details": json.dumps(self._details(entry, shot), ensure_ascii=False, separators=(",", ":")),
        }

    def _details(self, entry: ManifestShot, shot: ShotPlan) -> dict[str, Any]:
        """What only the shot's own card shows."""
        return {
            "captions": {kind: self._link(path) for kind, path in entry.captions.items()},
            "cues": self._cues(entry.shot_id),
            "takes": [self._take(self.plan.steps[key], shot) for key in shot.keys],
        }

    def _take(self, step: Step, shot: ShotPlan) -> dict[str, Any]:
        sidecar = self.takes.get(step.key)
        row: dict[str, Any] = {
            "step": step.name.removeprefix(f"{shot.shot.shot_id} "),
            "key": step.key,
            "engine": step.engine,
            "revision": step.revision,
            "workflow": step.inputs.workflow.name if isinstance(step.inputs, PictureInputs) else "",
            "needs_review": bool(sidecar and sidecar.needs_review),
            "attempts": [],
        }
        if sidecar:
            row["attempts"] = [self._attempt(attempt, sidecar) for attempt in sidecar.attempts]
        return row

    def _attempt(self, attempt: Attempt, sidecar: Sidecar) -> dict[str, Any]:
        return {
            **attempt.model_dump(include={"n", "seed", "lane", "seconds", "length", "cost", "error"}),
            "file": f"../../{quote(attempt.file)}" if attempt.file else None,
            "chosen": attempt.n == sidecar.chosen,
            "checks": [self._check(check) for check in attempt.checks],
        }

    def _check(self, check: Check) -> tuple[int, float | str | None, bool]:
        """Which check it is, its value, and whether it passed. JSON has no number for the level of silence, -inf dBFS."""
        name = check.name if check.piece is None else f"{check.name} of piece {check.piece + 1}"
        kind = self.check_kinds.setdefault((name, _limit_text(check)), len(self.check_kinds))
        value = check.value
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        return kind, value, check.ok

    def _cues(self, owner: str) -> list[tuple[float, float, str]]:
        return [(round(cue.start, 3), round(cue.end, 3), cue.text) for cue in self.cues.get(owner, ())]

    def _link(self, path: str | None) -> str | None:
        """A path in the store as the page, which lies in the batch's folder, links to it."""
        if path is None:
            return None
        return quote(PurePosixPath(path).relative_to(batch_path(self.manifest.batch, "")).as_posix())


def _spoken_otherwise(shot: ShotPlan) -> str:
    """What the engine was given, where it is not what is written."""
    spoken = " ".join(piece.spoken for piece in shot.reading)
    return spoken if spoken != " ".join(piece.written for piece in shot.reading) else ""


def _limit_text(check: Check) -> str:
    if not isinstance(check.limit, tuple):
        return check.limit or ""
    low, high = check.limit
    if low is not None and high is not None:
        return f"{low:g} – {high:g}"
    if low is not None:
        return f"≥ {low:g}"
    return f"≤ {high:g}" if high is not None else ""
