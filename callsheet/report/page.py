"""Makes the report: ``report.html`` and, beside it, ``report-data.js`` with all that it shows.

The data is a script and not JSON that is fetched, and captions are cues in it and not files that are
loaded, because a page opened from a folder may load neither. Links are relative, so the page works from
a folder and from a bucket alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import jinja2

from callsheet.manifest import Manifest, ManifestProgramme, ManifestShot, batch_path
from callsheet.media.captions import Cue
from callsheet.plan import PictureInputs, Plan, ShotPlan, Step
from callsheet.takes import Attempt, Sidecar

TEMPLATE = Path(__file__).with_name("report.html.j2")


def report_files(
    manifest: Manifest, plan: Plan, takes: Mapping[str, Sidecar], cues: Mapping[str, list[Cue]]
) -> dict[str, bytes]:
    """The report's files by name. ``cues`` are captions by shot_id and by ``programme:TITLE``."""
    page = _Page(manifest, plan, takes, cues)
    # A line separator is legal in JSON and, in older browsers, not in a script.
    data = (
        json.dumps(page.data(), ensure_ascii=False, separators=(",", ":"))
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
    return {
        "report.html": report_page(manifest.batch),
        "report-data.js": f"window.CALLSHEET = {data};\n".encode(),
    }


def report_page(batch: str) -> bytes:
    """The page, which shows whatever data lies beside it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(batch=batch).encode()


class _Page:
    """The data of one report."""

    def __init__(
        self, manifest: Manifest, plan: Plan, takes: Mapping[str, Sidecar], cues: Mapping[str, list[Cue]]
    ) -> None:
        self.manifest, self.plan, self.takes, self.cues = manifest, plan, takes, cues
        #: The first picture of each programme.
        self.posters = {shot.title: shot.poster for shot in reversed(manifest.shots) if shot.poster}

    def data(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
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

    def _programme(self, programme: ManifestProgramme) -> dict[str, Any]:
        return {
            **programme.model_dump(exclude={"file", "captions", "checks"}),
            "file": self._link(programme.file),
            "captions": {kind: self._link(path) for kind, path in programme.captions.items()},
            "poster": self._link(self.posters.get(programme.title)),
            "cues": self._cues(f"programme:{programme.title}"),
            "checks": [_check_row(check) for check in programme.checks],
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
            "checks": [_check_row(check) for check in attempt.checks],
        }

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


def _check_row(check: Any) -> dict[str, Any]:
    limit = check.limit
    if isinstance(limit, tuple):
        low, high = limit
        limit = (
            f"{low:g} – {high:g}"
            if low is not None and high is not None
            else (f"≥ {low:g}" if low is not None else f"≤ {high:g}")
        )
    name = check.name if check.piece is None else f"{check.name} of piece {check.piece + 1}"
    return {"name": name, "value": check.value, "limit": limit or "", "ok": check.ok}
