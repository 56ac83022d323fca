"""A store as runs leave it, without running any: takes, batches and what tells of them. And a store that is killed."""

from __future__ import annotations

import datetime
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from callsheet.fleet import StepKind
from callsheet.journal import journal_path
from callsheet.manifest import LatestRun, Manifest, ManifestShot, Totals, batch_path, latest_path
from callsheet.needed import PlannedTakes
from callsheet.r2 import R2Store
from callsheet.store import LocalFolder, Store
from callsheet.takes import Attempt, Sidecar, attempt_path, sidecar_path
from tests.buckets import bucket

DAY = 86_400.0


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def make_sidecar(name: str, *, kind: StepKind = "speech", attempts: int = 1, suffix: str = ".wav") -> Sidecar:
    """The sidecar of a take that is called so, whose last attempt was chosen."""
    key = key_of(name)

    def attempt(n: int) -> Attempt:
        content = content_of(name, n)
        digest = hashlib.sha256(content).hexdigest()
        return Attempt(n=n, file=attempt_path(kind, key, n, suffix), sha256=digest, bytes=len(content))

    made = [attempt(n) for n in range(attempts)]
    return Sidecar(
        key=key, kind=kind, engine="lighttts", revision="r1", inputs={}, chosen=attempts - 1, attempts=made
    )


def content_of(name: str, n: int = 0) -> bytes:
    return f"{name} {n} ".encode() * 10


def put_media(store: Store, name: str, **how: Any) -> Sidecar:
    """A take's media, and no sidecar."""
    sidecar = make_sidecar(name, **how)
    for attempt in sidecar.attempts:
        store.put(attempt.file, content_of(name, attempt.n))
    return sidecar


def put_sidecar(store: Store, sidecar: Sidecar) -> None:
    store.put(sidecar_path(sidecar.kind, sidecar.key), sidecar.model_dump_json().encode())


def put_take(store: Store, name: str, **how: Any) -> Sidecar:
    sidecar = put_media(store, name, **how)
    put_sidecar(store, sidecar)
    return sidecar


def iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def put_journal(store: Store, batch: str, takes: Iterable[Sidecar], run: str = "1f0c9a2e") -> None:
    lines = "".join(f"{take.model_dump_json()}\n" for take in takes)
    store.put(journal_path(batch, run), lines.encode())


def put_plan(store: Store, batch: str, takes: Sequence[Sidecar], started: float) -> None:
    planned = PlannedTakes(
        batch=batch,
        script={"name": batch, "sha256": ""},
        run="1f0c9a2e",
        started=iso(started),
        takes={"speech": [take.key for take in takes]},
    )
    store.put(batch_path(batch, "plan.json"), planned.model_dump_json().encode())


def put_batch(
    store: Store,
    batch: str,
    takes: Mapping[str, Sidecar],
    *,
    finished: float,
    title: str = "雨夜茶馆",
    pointer: bool = True,
) -> Manifest:
    """A batch that was published: a shot for each take, by shot_id. Its script is called as it is."""
    put_plan(store, batch, list(takes.values()), finished - 60)
    put_journal(store, batch, takes.values())
    shots = []
    for shot_id, take in takes.items():
        clip = batch_path(batch, f"{title}/{shot_id}.wav")
        store.copy(take.take.file, clip)
        shots.append(
            ManifestShot(shot_id=shot_id, title=title, state="done", takes={"clip": take.key}, clip=clip)
        )
    totals = dict.fromkeys(Totals.model_fields, 0) | {"lanes": {}}
    manifest = Manifest(
        batch=batch,
        script={"name": batch, "sha256": ""},
        fleet={},
        started=iso(finished - 60),
        finished=iso(finished),
        totals=Totals.model_validate(totals),
        shots=shots,
        programmes=[],
        lanes=[],
    )
    store.put(batch_path(batch, "report.html"), b"<html>")
    store.put(batch_path(batch, "report-data.js"), b"window.CALLSHEET = {}")
    store.put(batch_path(batch, "manifest.json"), manifest.model_dump_json().encode())
    if pointer:
        latest = LatestRun(
            script=manifest.script, batch=batch, finished=manifest.finished, manifest="", report=""
        )
        store.put(latest_path(batch), latest.model_dump_json().encode())
    return manifest


def paths(store: Store, prefix: str = "") -> set[str]:
    return {file.path for file in store.list(prefix)}


class Killed(BaseException):
    """The process is no more."""


class Mortal:
    """A store whose process is killed after so many writes and deletes: each one after that does nothing but raise."""

    def __init__(self, store: Store, lives: int) -> None:
        self._store, self._lives, self._lock = store, lives, threading.Lock()
        self.log: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("put", "put_if", "copy", "delete"):
            return found

        def counted(path: str, *others: Any) -> Any:
            with self._lock:
                if len(self.log) >= self._lives:
                    raise Killed
                self.log.append((name, path))
                return found(path, *others)

        return counted


def killed_at_every_call(
    make: Callable[[], Store], work: Callable[[Store], object], check: Callable[[Store, int], None]
) -> int:
    """Lets ``work`` be killed after 0, 1, 2, … calls that change a new store, and asks each time whether all is well.

    Returns:
        How many calls it makes in all.
    """
    for lives in range(10_000):
        store = make()
        mortal = Mortal(store, lives)
        try:
            work(mortal)  # type: ignore[arg-type]
        except Killed:
            check(store, lives)
            continue
        check(store, lives)
        return lives
    raise AssertionError("it never came to an end")


def new_stores(kind: str, s3: Callable[[], str], folder: Path, name: str) -> Callable[[], Store]:
    """Gives a new, empty store each time: a folder, or a folder of a bucket of moto's server."""
    if kind == "folder":
        return lambda: LocalFolder(folder / uuid.uuid4().hex)
    first = bucket(s3(), f"b{hashlib.sha256(name.encode()).hexdigest()[:20]}")
    return lambda: R2Store(replace(first.settings, prefix=f"作品/{uuid.uuid4().hex}"))
