"""Publishing: clips, captions, posters and programmes under readable names, then report and manifest, last.

    manifest = Publisher(batch, store, started).publish()

Deliverables are copies of takes, made within the store. Publishing again is cheap and changes nothing: what stands
there with the sha256 that the manifest of the run before names is left. What that run published and this one does not
is taken away when the new manifest is there, so that nothing stale stands beside what is new.

Wherever it is killed, what the manifest names is whole: it is written when all that it names is there. Files under new
names are written first and those that replace others last, so that the old manifest is true for as long as can be.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TypeVar

from pydantic import ValidationError

from callsheet.batch import Batch
from callsheet.errors import StoreFault
from callsheet.manifest import (
    LaneTime,
    LatestRun,
    Manifest,
    ManifestHost,
    ManifestProgramme,
    ManifestShot,
    ShotFailure,
    Totals,
    batch_path,
    deliverable_names,
    latest_path,
)
from callsheet.media.captions import Cue, make_cues, write_captions
from callsheet.media.narration import spoken_windows
from callsheet.media.video import poster
from callsheet.patience import Patience
from callsheet.plan import ShotPlan
from callsheet.report.page import report_files
from callsheet.store import Store
from callsheet.takes import Attempt, Sidecar

_Item = TypeVar("_Item")
#: How often a batch is published anew where another run published it in between.
_ATTEMPTS = 5


@dataclass(frozen=True)
class _File:
    """A deliverable.

    Attributes:
        sha256: of what is to stand there; empty where it is not known before it is written.
        bytes: its length; None where that is not known.
        write: writes it and returns its sha256.
    """

    path: str
    sha256: str
    bytes: int | None
    write: Callable[[], str]


@dataclass
class _Batch:
    """What a batch delivers.

    Attributes:
        cues: captions by shot_id and by ``programme:TITLE``.
    """

    shots: list[ManifestShot] = field(default_factory=list)
    programmes: list[ManifestProgramme] = field(default_factory=list)
    files: dict[str, _File] = field(default_factory=dict)
    cues: dict[str, list[Cue]] = field(default_factory=dict)

    def add(self, path: str, sha256: str, size: int | None, write: Callable[[], str]) -> str:
        self.files[path] = _File(path, sha256, size, write)
        return path

    def note(self, digests: Mapping[str, str]) -> None:
        """Tells each entry what its files' content is."""
        for shot in self.shots:
            parts = {"clip": shot.clip, "poster": shot.poster, **shot.captions}
            shot.sha256 = {part: digests[path] for part, path in parts.items() if path}
        for programme in self.programmes:
            parts = {"file": programme.file, **programme.captions}
            programme.sha256 = {part: digests[path] for part, path in parts.items() if path}


class Publisher:
    """Publishes one batch."""

    def __init__(
        self,
        batch: Batch,
        store: Store,
        started: str,
        *,
        posters: Callable[[Sidecar], bytes] | None = None,
        check: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        """
        Args:
            posters: makes the poster of a clip; from the clip in the store where it is not given.
            check: raises where another may publish the batch by now; asked before each write.
            patience: with a store that is away or busy for a while.
        """
        self.batch, self.store, self.started = batch, store, started
        self._poster_of = posters or partial(poster_of, store)
        self._check = check
        self._patience = patience or Patience()
        #: Lies there while files are replaced that the manifest names, until the next manifest is there.
        self._replacing = batch_path(batch.name, "replacing.json")
        self._is_replacing = False
        self.names = deliverable_names(batch.plan)
        self.failures = batch.failures
        self.made = {sidecar.key for sidecar in batch.made}

    def publish(self) -> Manifest:
        """Writes all that the batch delivers. Returns the manifest.

        Raises:
            StoreFault: the store does not take it; the manifest of the run before stands.
            LeaseLost: from ``check``.
        """
        manifest = self._patience(self._publish)
        if self._is_replacing:
            self._patience(lambda: self.store.delete(self._replacing))
        self._patience(lambda: self._point(manifest))
        self._each(self.store.delete, manifest.stale)
        return manifest

    def _publish(self) -> Manifest:
        """Writes all but the pointer."""
        for _ in range(_ATTEMPTS):
            version = self.store.version(batch_path(self.batch.name, "manifest.json"))
            before = _read_manifest(self.store, self.batch.name)
            # Who was killed while it replaced files has made the manifest untrue: then what stands there is not known.
            self._is_replacing = self.store.size(self._replacing) is not None
            delivers = self._collect(before)
            delivers.note(
                self._write(delivers.files, before.files if before and not self._is_replacing else {})
            )
            manifest = self._manifest(delivers)
            manifest.stale = self._stale(before, delivers)
            self._write_report(manifest, delivers.cues)
            self._check()
            content = manifest.model_dump_json(indent=1).encode()
            # What was sent again because its answer was lost comes second, to itself.
            written = self.store.put_if(batch_path(manifest.batch, "manifest.json"), content, version)
            if written or _read_manifest(self.store, self.batch.name) == manifest:
                return manifest
        raise StoreFault(f"store {self.store}: batch {self.batch.name} is published by others all the time")

    def _stale(self, before: Manifest | None, delivers: _Batch) -> list[str]:
        """What the run before published, or was killed before it could remove, and this one does not publish."""
        if before is None:
            return []
        return sorted(self.store.sizes({*before.files, *before.stale} - set(delivers.files)))

    def _write(self, files: Mapping[str, _File], before: Mapping[str, str]) -> dict[str, str]:
        """Writes what does not stand there already. Returns the sha256 of each."""
        there = self.store.sizes(files)

        def stands(file: _File) -> bool:
            size = there.get(file.path)
            is_same = bool(file.sha256) and before.get(file.path) == file.sha256
            return is_same and size is not None and size == (file.bytes or size)

        digests = {file.path: file.sha256 for file in files.values()}

        def write(file: _File) -> None:
            digests[file.path] = file.write()

        missing = [file for file in files.values() if not stands(file)]
        self._each(write, (file for file in missing if file.path not in there))
        if replaced := [file for file in missing if file.path in there]:
            self._check()
            self.store.put(self._replacing, b"{}")
            self._is_replacing = True
            self._each(write, replaced)
        return digests

    def _copy(self, take: Attempt, target: str) -> str:
        try:
            self.store.copy(take.file, target)
        except FileNotFoundError:
            raise StoreFault(
                f"store {self.store}: {take.file} was taken away while the batch was made; run it again: it is made anew"
            ) from None
        return take.sha256

    def _each(self, do: Callable[[_Item], object], items: Iterable[_Item]) -> None:
        """Does it for each, several at a time, while we may; the first that fails ends it."""

        def allowed(item: _Item) -> None:
            self._check()
            do(item)

        def one(item: _Item) -> None:
            self._patience(lambda: allowed(item))

        with ThreadPoolExecutor(self.store.at_once) as pool:
            under_way = [pool.submit(one, item) for item in items]
            try:
                for future in under_way:
                    future.result()
            except BaseException:
                for future in under_way:
                    future.cancel()
                raise

    def _collect(self, before: Manifest | None) -> _Batch:
        """What is to stand there."""
        delivers = _Batch()
        earlier = {shot.shot_id: shot for shot in before.shots} if before else {}
        for shot in self.batch.plan.shots.values():
            delivers.shots.append(self._shot(shot, earlier.get(shot.shot.shot_id), delivers))
        for title, key in self.batch.plan.programmes.items():
            delivers.programmes.append(self._programme(title, key, delivers))
        return delivers

    def _shot(self, shot: ShotPlan, earlier: ManifestShot | None, delivers: _Batch) -> ManifestShot:
        shot_id, batch = shot.shot.shot_id, self.batch
        takes: dict[str, str | list[str]] = {"clip": shot.clip}
        if shot.speech:
            takes["speech"] = shot.speech
        if shot.pictures:
            kind = batch.plan.steps[shot.pictures[0]].kind
            takes[kind] = shot.pictures if len(shot.pictures) > 1 else shot.pictures[0]
        entry = ManifestShot(shot_id=shot_id, title=shot.shot.title, state="failed", takes=takes)
        made = [batch.takes[key] for key in shot.keys if key in batch.takes]
        entry.cost = sum(sidecar.cost for sidecar in made)
        entry.cost_loaded = self._loaded(made, earlier)
        entry.needs_review = any(sidecar.needs_review for sidecar in made)
        if not batch.is_done(shot):
            failure = self.failures.get(shot_id)
            entry.failed = ShotFailure.of(failure) if failure else None
            return entry
        clip = batch.takes[shot.clip]
        entry.state, entry.seconds = "done", clip.take.length
        entry.clip = self._add_take(clip, self.names[shot_id], delivers)
        entry.captions = self._add_captions(self._shot_cues(shot, delivers), self.names[shot_id], delivers)
        if shot.canvas is not None:
            entry.poster = self._add_poster(clip, self.names[shot_id], earlier, delivers)
        return entry

    def _loaded(self, takes: list[Sidecar], earlier: ManifestShot | None) -> float:
        """What a shot cost with its share of rented hosts; as it was known where nothing of it was made now."""
        if earlier is not None and not any(take.key in self.made for take in takes):
            return earlier.cost_loaded
        factor = self.batch.load_factor
        return sum(take.cost * (factor if take.key in self.made else 1.0) for take in takes)

    def _programme(self, title: str, key: str, delivers: _Batch) -> ManifestProgramme:
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
            cues += [cue.shifted(at) for cue in self._shot_cues(shot, delivers)]
            at += self.batch.takes[shot.clip].take.length
        delivers.cues[f"programme:{title}"] = cues
        return ManifestProgramme(
            title=title,
            state="done",
            take=key,
            file=self._add_take(sidecar, name, delivers),
            captions=self._add_captions(cues, name, delivers),
            seconds=sidecar.take.length,
            loudness_lufs=loudness if isinstance(loudness, float) else None,
            true_peak_dbtp=peak if isinstance(peak, float) else None,
            checks=list(sidecar.take.checks),
            needs_review=sidecar.needs_review,
        )

    def _shot_cues(self, shot: ShotPlan, delivers: _Batch) -> list[Cue]:
        """The shot's captions, in its clip's time; made once."""
        shot_id = shot.shot.shot_id
        if shot_id not in delivers.cues:
            cues = delivers.cues[shot_id] = []
            if shot.speech:
                windows = spoken_windows(self.batch.takes[shot.speech].take.pieces, shot.pauses)
                for piece, window in zip(shot.reading, windows, strict=True):
                    cues += make_cues(piece.written, shot.language, *window)
        return delivers.cues[shot_id]

    def _add_take(self, sidecar: Sidecar, name: str, delivers: _Batch) -> str:
        take = sidecar.take
        target = batch_path(self.batch.name, name + PurePosixPath(take.file).suffix)
        return delivers.add(target, take.sha256, take.bytes, lambda: self._copy(take, target))

    def _add_captions(self, cues: list[Cue], name: str, delivers: _Batch) -> dict[str, str]:
        paths: dict[str, str] = {}
        for kind, text in write_captions(cues).items() if cues else ():
            target = batch_path(self.batch.name, f"{name}.{kind}")
            content = text.encode()
            write = partial(self.store.put, target, content)
            paths[kind] = delivers.add(target, hashlib.sha256(content).hexdigest(), len(content), write)
        return paths

    def _add_poster(self, clip: Sidecar, name: str, earlier: ManifestShot | None, delivers: _Batch) -> str:
        """The poster that stands there is left where it was made from the same clip."""
        target = batch_path(self.batch.name, f"{name}.jpg")
        is_same = earlier is not None and earlier.sha256.get("clip") == clip.take.sha256
        known = earlier.sha256.get("poster", "") if earlier is not None and is_same else ""
        return delivers.add(target, known, None, lambda: self.store.put(target, self._poster_of(clip)))

    def _write_report(self, manifest: Manifest, cues: Mapping[str, list[Cue]]) -> None:
        plan = self.batch.plan
        sidecars = {key: sidecar for key, sidecar in self.batch.takes.items() if key in plan.steps}
        for name, content in report_files(manifest, plan, sidecars, cues).items():
            self._check()
            self.store.put(batch_path(manifest.batch, name), content)

    def _point(self, manifest: Manifest) -> None:
        """Has the script's pointer name this batch, where it does not name one that was finished later."""
        path = latest_path(manifest.script["name"])
        latest = LatestRun(
            script=manifest.script,
            batch=manifest.batch,
            finished=manifest.finished,
            manifest=batch_path(manifest.batch, "manifest.json"),
            report=batch_path(manifest.batch, "report.html"),
        )
        for _ in range(_ATTEMPTS):
            version = self.store.version(path)
            try:
                if LatestRun.model_validate_json(self.store.get(path)).finished > latest.finished:
                    return
            except (FileNotFoundError, ValidationError):
                pass
            if self.store.put_if(path, latest.model_dump_json(indent=1).encode(), version):
                return

    def _manifest(self, delivers: _Batch) -> Manifest:
        batch, script, shots = self.batch, self.batch.plan.script, delivers.shots
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
            programmes=delivers.programmes,
            lanes=lanes,
            hosts=ManifestHost.of(lanes, batch.hosts_cost()),
            notes=list(script.notes),
        )


def now() -> str:
    """The time, as manifests give it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def poster_of(store: Store, clip: Sidecar) -> bytes:
    """The poster of a clip that lies in the store."""
    with TemporaryDirectory() as folder:
        return poster(store.fetch(clip.take.file, Path(folder)))


def _read_manifest(store: Store, batch: str) -> Manifest | None:
    """The manifest of the run before, where there is one that can be read."""
    try:
        return Manifest.model_validate_json(store.get(batch_path(batch, "manifest.json")))
    except (FileNotFoundError, ValidationError):
        return None
