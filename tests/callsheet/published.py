"""Batches whose takes are all in a store, to be published; and publishing that is killed on its way."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from callsheet.batch import Batch
from callsheet.fleet import read_fleet
from callsheet.journal import Journal, is_journal
from callsheet.manifest import Manifest, batch_path
from callsheet.parameters import ProduceParameters
from callsheet.plan import Plan, SpeechInputs
from callsheet.publishing import Publisher
from callsheet.resume import find_takes
from callsheet.store import Store
from callsheet.takes import Attempt, Sidecar, SpokenPiece, attempt_path, sidecar_path

#: What lies in a batch's folder and is not delivered.
BOOKS = ("manifest.json", "plan.json", "lease.json", "report.html", "report-data.js", "contact-sheet.jpg")
#: What writes to a store.
WRITES = ("put", "put_if", "copy", "delete")


def plan_of(script: Path) -> Plan:
    return ProduceParameters(script=script).plan(read_fleet("draft"))


def keep_takes(plan: Plan, store: Store) -> list[Sidecar]:
    """Puts a take for every step into the store, each of other bytes."""
    sidecars: dict[str, Sidecar] = {}
    for step in plan.steps.values():
        content = step.key.encode() * 3
        inputs = step.inputs
        count = len(inputs.pieces) if isinstance(inputs, SpeechInputs) else 0
        pieces = [
            SpokenPiece(start=n, end=n + 1, speech_start=n + 0.1, speech_end=n + 0.9) for n in range(count)
        ]
        suffix = ".wav" if step.kind == "speech" else ".mp4"
        attempt = Attempt(
            n=0, file=attempt_path(step.kind, step.key, 0, suffix), bytes=len(content), pieces=tuple(pieces),
            sha256=hashlib.sha256(content).hexdigest(), length=max(step.seconds, float(count), 1.0),
        )  # fmt: skip
        sidecars[step.key] = Sidecar(
            key=step.key, kind=step.kind, engine=step.engine, revision=step.revision, inputs={},
            sources={key: sidecars[key].take.sha256 for key in step.needs}, chosen=0, attempts=[attempt],
        )  # fmt: skip
        store.put(attempt.file, content)
        store.put(sidecar_path(step.kind, step.key), sidecars[step.key].model_dump_json().encode())
    journal = Journal(store, "demo", "earlier")
    journal.close(list(sidecars.values()))
    return list(sidecars.values())


def batch_in(store: Store, plan: Plan, name: str = "demo") -> Batch:
    return Batch(name, plan, list(plan.fleet.lanes()), found=find_takes(plan, store, name))


def publisher_of(store: Store, script: Path, **settings: Any) -> Publisher:
    """The posters are the clips' keys."""
    return Publisher(
        batch_in(store, plan_of(script)), store, "then", posters=lambda clip: clip.key.encode(), **settings
    )


def manifest_in(store: Store, batch: str = "demo") -> Manifest | None:
    try:
        return Manifest.model_validate_json(store.get(batch_path(batch, "manifest.json")))
    except FileNotFoundError:
        return None


def content_of(store: Store, path: str) -> str:
    return hashlib.sha256(store.get(path)).hexdigest()


def check_published(store: Store, batch: str = "demo") -> Manifest:
    """What the manifest names is there, each file as it says, and nothing else is. Returns the manifest."""
    manifest = manifest_in(store, batch)
    assert manifest is not None
    assert {path: content_of(store, path) for path in manifest.files} == manifest.files
    there = {file.path.removeprefix(f"batches/{batch}/") for file in store.list(f"batches/{batch}/")}
    published = {name for name in there if name not in BOOKS and not is_journal(name)}
    assert {batch_path(batch, name) for name in published} == set(manifest.files)
    return manifest


class Watched:
    """A store whose n-th write is seen before it is made."""

    def __init__(self, store: Store, before: Callable[[int, str], None]) -> None:
        self._store, self._before = store, before
        self._count = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in WRITES:
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._count += 1
                self._before(self._count, name)
            return value(*arguments, **named)

        return call

    def __str__(self) -> str:
        return str(self._store)


def publish_until(open_store: Callable[[], Store], script: Path, last: int) -> None:
    """Publishes and is killed before write ``last``; for a process of its own."""

    def die(number: int, _: str) -> None:
        if number >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    store: Any = Watched(open_store(), die)
    publisher_of(store, script).publish()
